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
from utils import files
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
  try:
    rows = metrics.read_metrics(path)
  except UnicodeDecodeError:
    raise UserError("%s is not text: name the folder of a run" % path)
  for row in rows:
    if not isinstance(row, dict):
      raise UserError("%s: the row %.50r is not a JSON object: name the "
                      "folder of a run" % (path, row))
  rows = [row for row in rows if row.get("kind") == "train"]
  if not rows:
    raise UserError("%s has no training rows yet" % path)
  return rows


def points_of(folder, rows, tag):
  """Returns [(step, value)] of a tag; UserError if it has none."""
  points = []
  for row in rows:
    if not isinstance(row.get("step"), int):
      raise UserError("%s/metrics.jsonl: a training row has no step: %.80r"
                      % (folder, row))
    if tag not in row:
      continue
    if not isinstance(row[tag], (int, float)):
      raise UserError("%s/metrics.jsonl: %s of step %d is no number: %.50r"
                      % (folder, tag, row["step"], row[tag]))
    points.append((row["step"], row[tag]))
  if not points:
    raise UserError("%s has no %s: see --tags" % (folder, tag))
  return points


def draw(folders, tags, output):
  """Writes a picture with one panel a tag and one line a run."""
  runs = [(folder, training_rows(folder)) for folder in folders]
  figure, panels = pyplot.subplots(
      1, len(tags), figsize=(5.2 * len(tags), 3.6), squeeze=False)
  for panel, tag in zip(panels[0], tags):
    for number, (folder, rows) in enumerate(runs):
      # The first of several is wide: seen also where another one covers it.
      wide = len(runs) > 1 and number == 0
      panel.plot(*zip(*points_of(folder, rows, tag)),
                 label=os.path.basename(os.path.normpath(folder)),
                 linewidth=5 if wide else 1.5, alpha=0.4 if wide else 1)
    panel.set_xlabel("optimizer step")
    panel.set_ylabel(LABELS.get(tag, tag.replace("_", " ")))
    panel.grid(alpha=0.3)
    if len(runs) > 1:
      panel.legend()
  figure.tight_layout()
  _save(figure, output)


def _save(figure, output):
  """Writes the picture, whole or not at all; its name says the format."""
  kind = os.path.splitext(output)[1][1:].lower() or "png"
  known = figure.canvas.get_supported_filetypes()
  if kind not in known:
    raise UserError("--output: no format is known for %s: end its name in "
                    "one of %s" % (output, ", ".join(sorted(known))))
  with files.writing(output, "output"):
    with files.atomic_write(output, binary=True) as stream:
      figure.savefig(stream, format=kind, dpi=110)


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
