"""The table, rows and picture of a benchmark's runs.

  python benchmarks/report.py WORK CASES --output STEM [--device NAME] ...

The launchers of benchmarks call it. WORK is training, inference or pretraining.
CASES has a JSON object a line: {"folder", "length", "batch", "precision"},
for pretraining also {"fused_ops", "products_seconds", "products_flops"}; the
folders, beside that file, are those of the runs. It writes STEM.log, the table;
STEM.jsonl, every figure with the seconds of every step; STEM.png. A case
without figures stays in the table as "failed".
"""

import argparse
import json
import os
import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent.parent)]

# pylint: disable=wrong-import-position
# Before TensorFlow, which it keeps quiet.
from utils import stack
import matplotlib
matplotlib.use("Agg")
from matplotlib import pyplot

from utils import benchmarks
from utils import errors
from utils import files
from utils import kernels
from utils import metrics
from utils import precision
from utils.errors import UserError

_KEYS = {"folder": str, "length": int, "batch": int, "precision": str}
_PRETRAINING_KEYS = {"fused_ops": str, "products_seconds": (int, float),
                     "products_flops": (int, float)}
_LATENCIES = ["%d%%" % percent for percent in benchmarks.PERCENTILES]
COLUMNS = {
    "training": ["GPUs", "Batch Size / GPU", "Sequence Length", "Precision",
                 "Throughput (sentences/sec)", "Speed-up over fp32"],
    "inference": ["Model", "Sequence Length", "Batch Size", "Precision",
                  "Throughput (sentences/sec)", "Latency Average (ms)"]
                 + ["Latency %s (ms)" % name for name in _LATENCIES],
    "pretraining": ["Model", "Sequence Length", "Batch Size", "Precision",
                    "Fused Ops", "Throughput (sentences/sec)",
                    "Step Average (ms)", "Step 50% (ms)", "Step 99% (ms)",
                    "Products Alone (GFLOP/s)", "Share of That"]}


# --- what the runs left ------------------------------------------------------


def read_cases(path, work):
  """Returns the dicts of a file of cases.

  Raises:
    UserError: for a line that is none, by its number.
  """
  keys = dict(_KEYS, **(_PRETRAINING_KEYS if work == "pretraining" else {}))
  cases = []
  with open(files.require_file(path, "CASES"), encoding="utf-8") as stream:
    for number, line in enumerate(stream, 1):
      try:
        case = json.loads(line)
        wrong = [key for key, kind in keys.items()
                 if not isinstance(case[key], kind)]
      except (ValueError, KeyError, TypeError):
        wrong = sorted(keys)
      if wrong:
        raise UserError("%s line %d: expected a JSON object with %s: %.60r"
                        % (path, number, ", ".join(wrong), line.strip()))
      cases.append(case)
  if not cases:
    raise UserError("%s: no cases in it" % path)
  return cases


def _numbers(path, values):
  for value in values:
    if not isinstance(value, (int, float)) or not value > 0:
      raise UserError("%s: %.40r is no time or rate of a step" % (path, value))
  return values


def step_seconds(folder, work, batch):
  """Returns (seconds, sentences) of each step that a run has left.

  Args:
    folder: of the run.
    work: "training", "inference" or "pretraining".
    batch: sentences a step, those of all ranks.

  Returns:
    Two lists, empty for a run that has not come so far.
  """
  path = os.path.join(folder, "metrics.jsonl")
  if not os.path.exists(path):
    return [], []
  kind = "predict" if work == "inference" else "train"
  rows = [row for row in metrics.read_metrics(path)
          if isinstance(row, dict) and row.get("kind") == kind]
  if work != "inference":
    rates = _numbers(path, [row.get("sentences_per_sec") for row in rows])
    return [batch / rate for rate in rates], [batch] * len(rates)
  if not rows:
    return [], []
  seconds = _numbers(path, rows[-1].get("batch_seconds") or [None])
  # The last batch may be smaller.
  left = rows[-1]["sentences"]
  return seconds, [min(batch, left - i * batch) for i in range(len(seconds))]


def measure(case, work, place, options):
  """Returns a case with its figures: {} of them where there are none.

  Args:
    case: dict of `read_cases`.
    work: str.
    place: folder of the cases' folders.
    options: of the command line.
  """
  batch = case["batch"] * options.ranks
  seconds, sentences = step_seconds(
      os.path.join(place, case["folder"]), work, batch)
  seconds, sentences = seconds[options.warm_up:], sentences[options.warm_up:]
  row = dict(case, steps=len(seconds))
  row["computes"] = precision.settle(
      case["precision"] == "fp16", case["precision"] == "bf16",
      options.use_xla == "true").computes
  if not seconds:
    return row
  row.update(throughput=sum(sentences) / sum(seconds),
             latency_ms=benchmarks.latencies(seconds), seconds=seconds)
  if work == "pretraining":
    row["fused"] = kernels.settle(case["fused_ops"],
                                  options.use_xla == "true")
    row["share"] = case["products_seconds"] * len(seconds) / sum(seconds)
  return row


# --- the table ---------------------------------------------------------------


def _precision_cell(row):
  if row["computes"] == row["precision"]:
    return row["precision"]
  return "%s (asked: %s)" % (row["computes"], row["precision"])


def _speed_up(row, rows):
  """Returns a row's throughput over that of its size in fp32, as text.

  Nothing where the hardware computes in fp32 though it was asked for less.
  """
  if row["computes"] == "fp32" != row["precision"]:
    return ""
  for other in rows:
    if (other["precision"] == "fp32" and "throughput" in other
        and (other["length"], other["batch"]) == (row["length"],
                                                  row["batch"])):
      return "%.2f" % (row["throughput"] / other["throughput"])
  return ""


def cells_of(row, rows, work, options):
  """Returns a row of the table as texts, in the order of `COLUMNS`."""
  sizes = [str(row["length"]), str(row["batch"]), _precision_cell(row)]
  if work == "training":
    cells = [str(options.ranks)] + [sizes[1], sizes[0], sizes[2]]
  else:
    cells = [options.model] + sizes
  if "throughput" not in row:
    if work == "pretraining":
      cells.append(row["fused_ops"])
    return cells + ["failed"] + [""] * (
        len(COLUMNS[work]) - len(cells) - 1)
  throughput, times = "%.2f" % row["throughput"], row["latency_ms"]
  if work == "training":
    return cells + [throughput, _speed_up(row, rows)]
  if work == "inference":
    return cells + [throughput] + [
        "%.2f" % times[name] for name in ["average"] + _LATENCIES]
  return cells + ["on" if row["fused"] else "off", throughput] + [
      "%.2f" % times[name] for name in ("average", "50%", "99%")] + [
          "%.0f" % (row["products_flops"] / row["products_seconds"] / 1e9),
          "%.0f %%" % (100 * row["share"])]


# --- the picture -------------------------------------------------------------


def _label(row):
  label = "%d tokens, %s" % (row["length"], _precision_cell(row))
  if "fused" in row:
    label += ", fused" if row["fused"] else ", not fused"
  return label


def draw(rows, work, title):
  """Returns a figure: throughput and times over batch sizes, a line a kind."""
  figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.4))
  lines = {}
  for row in rows:
    if "throughput" in row:
      key = tuple(row.get(name) for name in (
          "length", "precision", "fused_ops"))
      lines.setdefault(key, []).append(row)
  for points in lines.values():
    batches = [point["batch"] for point in points]
    color = left.plot(batches, [point["throughput"] for point in points],
                      marker="o", label=_label(points[0]))[0].get_color()
    times = [point["latency_ms"] for point in points]
    if work == "pretraining":
      right.plot(batches, [100 * point["share"] for point in points],
                 marker="o", color=color)
    else:
      right.plot(batches, [time["average"] for time in times], marker="o",
                 color=color)
      right.fill_between(batches, [time["50%"] for time in times],
                         [time["99%"] for time in times], color=color,
                         alpha=0.15)
  left.set_ylabel("sentences a second")
  right.set_ylabel("share of the matrix products' own rate (%)"
                   if work == "pretraining" else
                   "ms a step: average, 50 to 99 %")
  for panel in (left, right):
    panel.set_xlabel("batch size")
    panel.set_ylim(0, 1.08 * panel.get_ylim()[1])
    panel.set_xticks(sorted({row["batch"] for row in rows}))
    panel.grid(alpha=0.3)
  figure.suptitle(title, fontsize="medium")
  figure.tight_layout(rect=(0, 0, 1, 0.95))
  if lines:
    # Beside the panels: dozens of lines would cover what they name.
    figure.legend(*left.get_legend_handles_labels(), loc="upper left",
                  bbox_to_anchor=(1, 0.9), fontsize="small")
  return figure


# --- all ---------------------------------------------------------------------


def _header(work, options):
  """Returns {name: value} of what the figures were measured on."""
  machine = benchmarks.machine()
  return dict(
      work=work, model=options.model, device=options.device or machine["cpu"],
      ranks=options.ranks, xla=options.use_xla, tensorflow=stack.versions()[
          "tensorflow"], warm_up=options.warm_up, date=machine["date"])


def report(options):
  """Writes the three files of a benchmark; returns the table as text."""
  work, stem = options.work, options.output
  place = os.path.dirname(os.path.abspath(options.cases))
  rows = [measure(case, work, place, options)
          for case in read_cases(options.cases, work)]
  header = _header(work, options)
  said = ", ".join("%s: %s" % (name.replace("_", "-"), value)
                   for name, value in header.items())
  text = "%s\n\n%s\n" % (said, benchmarks.markdown_table(
      COLUMNS[work], [cells_of(row, rows, work, options) for row in rows]))
  with files.writing(stem, "output"):
    with files.atomic_write(stem + ".jsonl") as stream:
      for row in [header] + rows:
        stream.write(json.dumps(row) + "\n")
    with files.atomic_write(stem + ".png", binary=True) as stream:
      draw(rows, work, "%s: BERT %s on %s%s" % (
          work, options.model, "%d x " % options.ranks if options.ranks > 1
          else "", header["device"])).savefig(
              stream, format="png", dpi=110, bbox_inches="tight")
    with files.atomic_write(stem + ".log") as stream:
      stream.write(text)
  return text


def _run(options):
  print(report(options), end="")


def main(argv=None):
  """Command line."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add("work", choices=sorted(COLUMNS))
  add("cases", metavar="CASES")
  add("--output", required=True, help="paths of the three without their ends")
  add("--model", default="", help="its name in the table")
  add("--device", default="", help="name of the GPU; default: the CPU's")
  add("--ranks", type=int, default=1, help="processes of a run")
  add("--warm_up", type=int, default=0, help="first steps that do not count")
  add("--use_xla", choices=["true", "false"], default="false")
  errors.guard(_run, parser.parse_args(argv))


if __name__ == "__main__":
  main()
