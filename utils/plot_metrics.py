"""Draws the losses of runs from their metrics.jsonl.

  python utils/plot_metrics.py RUN_FOLDER [RUN_FOLDER ...] --output curve.png
"""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# pylint: disable=wrong-import-position
import matplotlib
matplotlib.use("Agg")
from matplotlib import pyplot

from utils import errors
from utils import metrics
from utils.errors import UserError

LABELS = {"loss": "total loss", "mlm_loss": "masked-LM loss",
          "nsp_loss": "next-sentence loss"}


def training_rows(folder):
  """Returns the training rows of a run; UserError if it has none."""
  path = os.path.join(folder, "metrics.jsonl")
  if not os.path.exists(path):
    raise UserError("%s: no metrics.jsonl in it: name the folder of a run"
                    % folder)
  rows = [r for r in metrics.read_metrics(path) if r["kind"] == "train"]
  if not rows:
    raise UserError("%s has no training rows yet" % path)
  return rows


def draw(folders, tags, output):
  """Writes a PNG with one panel a tag and one line a run."""
  runs = [(os.path.basename(os.path.normpath(f)), training_rows(f))
          for f in folders]
  figure, panels = pyplot.subplots(
      1, len(tags), figsize=(5.2 * len(tags), 3.6), squeeze=False)
  for panel, tag in zip(panels[0], tags):
    for name, rows in runs:
      points = [(row["step"], row[tag]) for row in rows if tag in row]
      if not points:
        raise UserError("%s has no %s" % (name, tag))
      panel.plot(*zip(*points), label=name)
    panel.set_xlabel("optimizer step")
    panel.set_ylabel(LABELS.get(tag, tag.replace("_", " ")))
    panel.grid(alpha=0.3)
    if len(runs) > 1:
      panel.legend()
  figure.tight_layout()
  figure.savefig(output, dpi=110)


def main(argv=None):
  """Runs the command line."""
  parser = argparse.ArgumentParser(
      description="Draws losses from the metrics.jsonl of runs.")
  parser.add_argument("folders", nargs="+", metavar="RUN_FOLDER")
  parser.add_argument("--tags", default="mlm_loss,nsp_loss",
                      help="which columns, commas between")
  parser.add_argument("--output", default="curve.png")
  options = parser.parse_args(argv)
  errors.guard(draw, options.folders, options.tags.split(","),
               options.output)


if __name__ == "__main__":
  main()
