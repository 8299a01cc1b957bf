"""Reads every pre-training record and says what is in it and what is damaged.

  python data/check_records.py FOLDER_OR_GLOB [FOLDER_OR_GLOB ...]

Prints a table, writes check_records.json and check_records.png into
--output_dir. Ends with status 0 if all records can be used, else with 1 and a
line that names the first damaged place. Needs no TensorFlow.
"""

import argparse
import functools
import glob
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# pylint: disable=wrong-import-position
import numpy as np

import tokenization
from utils import errors
from utils import files
from utils import logs
from utils import record_statistics
from utils import records
from utils import workers
from utils.errors import UserError

REPORT, PICTURE = "check_records.json", "check_records.png"
PERCENTILES = (1, 10, 25, 50, 75, 90, 99)
# With more files than these the table has the oddest alone.
MOST_ROWS = 20
MOST_PROBLEMS = 20

COLUMNS = (("records", "num_records", "%d"), ("damaged", "damaged", "%d"),
           ("fill %", "token_fill", "%.1f"), ("masked %", "masked", "%.2f"),
           ("a record", "predictions_per_record", "%.2f"),
           ("random %", "random_next", "%.1f"), ("mean", "mean_length", "%.1f"),
           ("full %", "full", "%.1f"), ("short %", "short", "%.1f"))
SHARES = {"token_fill", "masked", "random_next", "full", "short"}
# What makes a file odd: its distance from the other files in one of these.
ODDITIES = ("token_fill", "masked", "predictions_per_record", "random_next")


# -------------------------------------------------------------- the numbers


def _share(part, whole):
  return part / whole if whole else None


def percentiles_of(counts):
  """Returns {percent: the smallest length that so many records reach}.

  Args:
    counts: int array, the number of records of each length.
  """
  reached = np.cumsum(counts)
  if not len(counts) or not reached[-1]:
    return {}
  return {str(percent): int(np.searchsorted(
      reached, max(1, -(-int(reached[-1]) * percent // 100))))
          for percent in PERCENTILES}


def summary_of(tally):
  """Returns what a Tally amounts to, as a dict for JSON; shares from 0 to 1.

  What cannot be said, such as a share of nothing, is None.
  """
  sums = tally.sums
  return {
      "num_records": sums["records"],
      "num_bytes": sums["bytes"],
      "damaged": sums["damaged"],
      "token_fill": _share(sums["tokens"], sums["positions"]),
      "masked": _share(sums["predictions"], sums["tokens"]),
      "predictions_per_record": _share(sums["predictions"], sums["sound"]),
      "random_next": _share(sums["random_next"], sums["sound"]),
      "mean_length": _share(sums["tokens"], sums["sound"]),
      "length_percentiles": percentiles_of(tally.lengths),
      "full": _share(sums["full"], sums["sound"]),
      "short": _share(sums["short"], sums["sound"]),
      "replaced_by_mask": _share(sums["masked"], sums["outcomes"]),
      "kept": _share(sums["same"], sums["outcomes"]),
      "replaced_by_other": _share(sums["other"], sums["outcomes"])}


def file_entry(report):
  """Returns a FileReport as a dict for JSON."""
  entry = {"path": report.path}
  entry.update(summary_of(report.tally))
  counts = report.counts or {}
  entry.update(
      max_seq_length=counts.get("input_ids"),
      max_predictions_per_seq=counts.get("masked_lm_ids"),
      mask_id=report.mask_id, mask_id_is_guessed=report.is_mask_guessed,
      num_problems=report.num_problems,
      problems=[{"offset": offset, "what": what}
                for offset, what in report.problems],
      remarks=report.remarks)
  return entry


def _differences(reports):
  """Returns a remark for each setting that is not the same in all files."""
  remarks = []
  for name in ("max_seq_length", "max_predictions_per_seq", "vocab_sha256",
               "do_lower_case"):
    first = {}
    for report in reports:
      if name in report.identity:
        first.setdefault(str(report.identity[name]), report.path)
    if len(first) > 1:
      remarks.append("the files differ in %s: %s" % (name, ", ".join(
          "%.12s (%s)" % item for item in sorted(first.items()))))
  return remarks


def _remarks(reports):
  """Returns what is odd, in lines: equal remarks of files are counted."""
  by_text = {}
  for report in reports:
    for text in report.remarks:
      by_text.setdefault(text, []).append(report.path)
  lines = ["%s: %d of %d files (the first: %s)" % (
      text, len(paths), len(reports), paths[0])
           for text, paths in sorted(by_text.items())]
  guessed = {report.mask_id for report in reports if report.is_mask_guessed}
  if guessed:
    lines.append(
        "[MASK] is taken to be the commonest replacement, id %s: "
        "--vocab_file tells" % ", ".join(map(str, sorted(guessed))))
  return lines + _differences(reports)


def whole_report(reports, orphans):
  """Returns all that was found, as a dict for JSON.

  Args:
    reports: list of FileReport.
    orphans: list of settings files without their record file.
  """
  tally = record_statistics.Tally()
  for report in reports:
    tally.add(report.tally)
  total = summary_of(tally)
  total.update(
      num_files=len(reports),
      damaged_files=sum(1 for r in reports if r.num_problems),
      records_of_each_length=tally.lengths.tolist(),
      records_of_each_number_of_predictions=tally.predictions.tolist(),
      remarks=_remarks(reports) + [
          "%s has no record file beside it" % path for path in orphans])
  return {"format": 1, "total": total,
          "files": [file_entry(report) for report in reports]}


# ---------------------------------------------------------------- the table


def _cell(entry, name, pattern):
  value = entry[name]
  if value is None:
    return "-"
  return pattern % (100 * value if name in SHARES else value)


def table_of(entries, folder):
  """Returns aligned lines, one a file, with paths as seen from `folder`."""
  rows = [["file"] + [title for title, _, _ in COLUMNS]]
  for entry in entries:
    rows.append([os.path.relpath(entry["path"], folder)] + [
        _cell(entry, name, pattern) for _, name, pattern in COLUMNS])
  widths = [max(map(len, column)) for column in zip(*rows)]
  return ["  ".join([row[0].ljust(widths[0])] + [
      cell.rjust(width) for cell, width in zip(row[1:], widths[1:])])
          for row in rows]


def oddest(entries, count):
  """Returns `count` files: damaged ones, then those unlike the others.

  A file is as odd as its greatest distance from the median of the files, in
  standard deviations, in one of ODDITIES.
  """
  odd = np.zeros(len(entries))
  for name in ODDITIES:
    values = np.array([entry[name] for entry in entries], float)
    known = ~np.isnan(values)
    spread = values[known].std() if known.any() else 0
    if spread:
      distance = np.abs(values - np.median(values[known])) / spread
      odd[known] = np.maximum(odd, distance)[known]
  damaged = [bool(entry["num_problems"]) for entry in entries]
  order = sorted(range(len(entries)), key=lambda i: (-damaged[i], -odd[i], i))
  return [entries[i] for i in order[:count]]


def _percent(value, digits=1):
  return "-" if value is None else "%.*f %%" % (digits, 100 * value)


def _number(value):
  return "-" if value is None else "%.2f" % value


def total_lines(total):
  """Returns the numbers of all files together, in lines."""
  percentiles = ", ".join("%s %% %d" % item for item in sorted(
      total["length_percentiles"].items(), key=lambda item: int(item[0])))
  rows = (
      ("files", "%d, damaged: %d" % (total["num_files"],
                                     total["damaged_files"])),
      ("records", "{:,}, damaged: {:,}".format(total["num_records"],
                                               total["damaged"])),
      ("bytes", "{:,}".format(total["num_bytes"])),
      ("token fill", "%s of the positions are real tokens"
       % _percent(total["token_fill"])),
      ("masked", "%s of the real tokens, %s a record" % (
          _percent(total["masked"], 2),
          _number(total["predictions_per_record"]))),
      ("  of these", "%s [MASK], %s as they were, %s another token" % (
          _percent(total["replaced_by_mask"]), _percent(total["kept"]),
          _percent(total["replaced_by_other"]))),
      ("next sentence", "%s random" % _percent(total["random_next"])),
      ("length", "mean %s; full: %s of the records, less than half full: %s"
       % (_number(total["mean_length"]), _percent(total["full"]),
          _percent(total["short"]))),
      ("  percentiles", percentiles or "-"))
  return ["%-14s %s" % row for row in rows]


def _place(entry, problem):
  if problem["offset"] is None:
    return "%s: %s" % (entry["path"], problem["what"])
  return "%s: byte %d: %s" % (entry["path"], problem["offset"],
                              problem["what"])


def problem_lines(entries):
  """Returns what is damaged and where, in lines."""
  places = [_place(entry, problem) for entry in entries
            for problem in entry["problems"]]
  total = sum(entry["num_problems"] for entry in entries)
  lines = places[:MOST_PROBLEMS]
  if total > len(lines):
    lines.append("... and %d more" % (total - len(lines)))
  return lines


def report_lines(report, per_file):
  """Returns the printed form of `whole_report`, in lines."""
  entries = report["files"]
  folder = os.path.commonpath([
      os.path.dirname(os.path.abspath(entry["path"])) for entry in entries])
  shown = entries
  title = "Files"
  if len(entries) > MOST_ROWS and not per_file:
    shown = oddest(entries, MOST_ROWS)
    title = ("The %d files most unlike the others (--per_file shows all),"
             % MOST_ROWS)
  lines = total_lines(report["total"]) + [
      "", "%s in %s" % (title, folder)] + table_of(shown, folder)
  for title, more in (("Remarks", report["total"]["remarks"]),
                      ("Damage", problem_lines(entries))):
    if more:
      lines += ["", title] + more
  return lines


# -------------------------------------------------------------- the picture


def _draw_counts(panel, counts, width, label):
  """Draws a histogram and returns the height of its highest bar."""
  counts = np.asarray(counts or [0])
  edges = np.arange(0, len(counts) + width, width)
  heights, _, _ = panel.hist(np.arange(len(counts)), bins=edges - 0.5,
                             weights=counts, color="tab:blue")
  panel.set_xlabel(label)
  panel.set_xlim(-0.5, max(edges) - 0.5)
  panel.xaxis.get_major_locator().set_params(integer=True)
  return heights.max()


def _draw_files(panel, entries, total, name, label):
  values = [100 * e[name] for e in entries if e[name] is not None]
  low, high = (min(values), max(values)) if values else (0.0, 100.0)
  room = max(1.0, 0.1 * (high - low))
  heights, _, _ = panel.hist(
      values, bins=min(41, 21 + len(values) // 20),
      range=(low - room, high + room), color="tab:green")
  panel.set_ylim(0, 1.25 * heights.max() or 1)  # room for the legend
  if total[name] is not None:
    panel.axvline(100 * total[name], color="black", linestyle="--",
                  label="all records: %.1f %%" % (100 * total[name]))
    panel.legend(loc="upper left")
  panel.yaxis.get_major_locator().set_params(integer=True)
  panel.set_xlabel(label)
  panel.set_ylabel("files")


def draw(report, path):
  """Writes the picture of `whole_report`: four histograms."""
  # Slow to import; the processes that read records do without.
  import matplotlib  # pylint: disable=g-import-not-at-top
  matplotlib.use("Agg")
  from matplotlib import pyplot  # pylint: disable=g-import-not-at-top
  total, entries = report["total"], report["files"]
  figure, panels = pyplot.subplots(2, 2, figsize=(10.4, 7.2))
  lengths = total["records_of_each_length"]
  highest = _draw_counts(panels[0][0], lengths, -(-len(lengths) // 64) or 1,
                         "real tokens of a record")
  panels[0][0].set_yscale("symlog")
  panels[0][0].set_ylim(0, 3 * highest or 1)
  panels[0][0].set_ylabel("records (logarithmic)")
  _draw_counts(panels[0][1], total["records_of_each_number_of_predictions"],
               1, "predictions of a record")
  panels[0][1].set_ylabel("records")
  _draw_files(panels[1][0], entries, total, "token_fill",
              "token fill of a file: real tokens in 100 positions")
  _draw_files(panels[1][1], entries, total, "random_next",
              "random next sentences of a file in 100 records")
  for panel in panels.flat:
    panel.grid(alpha=0.3)
    panel.set_axisbelow(True)
  figure.suptitle("records: {:,} (damaged: {:,})     files: {:,} (damaged: "
                  "{:,})".format(total["num_records"], total["damaged"],
                                 total["num_files"], total["damaged_files"]))
  figure.tight_layout(rect=(0, 0, 1, 0.97))
  with files.atomic_write(path, binary=True) as stream:
    figure.savefig(stream, format="png", dpi=110)
  pyplot.close(figure)


# ------------------------------------------------------------- command line


def _in_folder(folder):
  """Returns (record files, settings without one) in a folder and below."""
  found, orphans = [], []
  for place, folders, names in os.walk(folder):
    folders.sort()
    for name in sorted(names):
      path = os.path.join(place, name)
      if name.startswith(".") or not os.path.isfile(path):
        continue
      if name.endswith(records.SETTINGS_SUFFIX):
        if not os.path.exists(path[:-len(records.SETTINGS_SUFFIX)]):
          orphans.append(path)
      elif ".tfrecord" in name or ".tf_record" in name:
        found.append(path)
  if not found:
    raise UserError("%s: no *.tfrecord file in this folder" % folder)
  return found, orphans


def find_files(patterns):
  """Returns (sorted record files, settings without their record file).

  Args:
    patterns: list of folders, globs and files.

  Raises:
    UserError: if one of them gives no file.
  """
  found, orphans = set(), set()
  for pattern in patterns:
    places = [pattern] if os.path.exists(pattern) else glob.glob(pattern)
    places = [p for p in places if os.path.isdir(p) or (
        os.path.isfile(p) and not p.endswith(records.SETTINGS_SUFFIX))]
    if not places:
      raise UserError("no record file matches %s" % pattern)
    for place in places:
      more, lost = _in_folder(place) if os.path.isdir(place) else ([place], [])
      found.update(more)
      orphans.update(lost)
  return sorted(found), sorted(orphans)


def read_vocabulary(path):
  """Returns the Vocabulary of a file, or None without one.

  Raises:
    UserError: if it cannot be used.
  """
  if not path:
    return None
  vocab = tokenization.load_vocab(files.require_file(path, "vocab_file"))
  if "[MASK]" not in vocab:
    raise UserError("--vocab_file: %s has no token [MASK]" % path)
  return record_statistics.Vocabulary(
      len(vocab), vocab["[MASK]"], files.sha256_of_file(path))


def check_files(paths, vocabulary, num_workers):
  """Reads all files.

  Returns:
    List of FileReport, in the order of `paths`.
  """
  # The largest first: the last ones to finish are small then.
  jobs = sorted(paths, key=lambda path: (-os.path.getsize(path), path))
  function = functools.partial(record_statistics.check_file,
                               vocabulary=vocabulary)
  reports = {}
  size = sum(map(os.path.getsize, paths))
  with logs.progress(size, "B", "checking") as bar:
    for report in workers.run_all(function, jobs, num_workers):
      reports[report.path] = report
      bar.update(report.num_bytes)
  return [reports[path] for path in paths]


def run(options):
  """Checks what the options name; UserError if anything is damaged."""
  files.require_output_dir(options.output_dir, "output_dir")
  vocabulary = read_vocabulary(options.vocab_file)
  paths, orphans = find_files(options.places)
  start = time.time()
  report = whole_report(
      check_files(paths, vocabulary, options.num_workers), orphans)
  seconds = max(time.time() - start, 1e-9)
  place = os.path.join(options.output_dir, REPORT)
  with files.writing(place, "output_dir"):
    files.write_json(place, report)
    draw(report, os.path.join(options.output_dir, PICTURE))
  print("\n".join(report_lines(report, options.per_file)))
  print("\nread in %.1f s (%.1f MB/s); report: %s, picture: %s" % (
      seconds, report["total"]["num_bytes"] / seconds / 1e6, place,
      os.path.join(options.output_dir, PICTURE)))
  damaged = [e for e in report["files"] if e["num_problems"]]
  if damaged:
    raise UserError("%d of %d files are damaged, the first: %s; make them "
                    "again" % (len(damaged), len(paths), _place(
                        damaged[0], damaged[0]["problems"][0])))


def main(argv=None):
  """Runs the command line."""
  parser = argparse.ArgumentParser(
      description="Reads every pre-training record and says what is damaged.")
  parser.add_argument("places", nargs="+", metavar="FOLDER_OR_GLOB",
                      help="folders (all *.tfrecord in and below), globs, "
                      "files")
  parser.add_argument("--num_workers", type=int,
                      default=workers.default_num_workers(),
                      help="processes (default: cores, here %(default)s)")
  parser.add_argument("--output_dir", default=".",
                      help="where %s and %s go (default: here)"
                      % (REPORT, PICTURE))
  parser.add_argument("--vocab_file", help="the vocabulary that the records "
                      "should have been made with")
  parser.add_argument("--per_file", action="store_true",
                      help="show each file, however many there are")
  errors.guard(run, parser.parse_args(argv))


if __name__ == "__main__":
  main()
