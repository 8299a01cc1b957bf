"""Pictures of a sweep over a server's settings.

  python benchmarks/serving_figures.py SWEEP_FOLDER [--max_latency MS]

scripts/trtis/generate_figures.sh draws them at its end; this draws them again,
with another limit if one is given. Of points.csv and sweep.json it makes a
picture a setting (parts of the latency stacked, throughput as a line, over the
concurrency) and summary.png (latency against throughput of all, with the
recommended point marked).
"""

import argparse
import os
import pathlib
import sys
import textwrap
from typing import NamedTuple

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent.parent)]

# pylint: disable=wrong-import-position
import matplotlib
matplotlib.use("Agg")
from matplotlib import lines as line_art
from matplotlib import pyplot
from matplotlib import ticker

from benchmarks import perf_points
from utils import errors
from utils import files
from utils.errors import UserError

STATIC, DYNAMIC = "static", "dynamic"
# Part of the latency, from the bottom of a bar to its top: name and colour,
# which people who see few colours can tell apart, too (Okabe and Ito's).
PART_LOOKS = {
    "client_send": ("client send", "#0072b2"),
    "network": ("network", "#56b4e9"),
    "server_queue": ("server queue", "#e69f00"),
    "server_compute": ("server compute", "#009e73"),
    "client_receive": ("client receive", "#cc79a7"),
}
_BATCH_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000",
                  "#e69f00", "#56b4e9", "#999999"]
_BATCHING_MARKS = "sovD^P<X>p"
_ENGINE_FILLS = ["full", "none", "left", "top"]
_ENGINE_LINES = ["-", "--", ":", "-."]


class Setting(NamedTuple):
  """What a server is told: one picture each.

  Attributes:
    batching: `STATIC`, a request is a batch of max_batch_size sentences, or
      `DYNAMIC`, the server puts requests of one sentence together.
    max_batch_size: int, sentences of a batch at most.
    dyn_batching_delay: float, milliseconds that a request waits for others;
      0 for static batching.
    engine_count: int, copies of the model.
  """
  batching: str
  max_batch_size: int
  dyn_batching_delay: float
  engine_count: int

  @property
  def name(self):
    """str for file names."""
    delay = ("_delay_%gms" % self.dyn_batching_delay
             if self.batching == DYNAMIC else "")
    return "%s_batch_%d%s_engines_%d" % (
        self.batching, self.max_batch_size, delay, self.engine_count)

  @property
  def batching_title(self):
    """str: the way of batching, for people."""
    if self.batching == STATIC:
      return "static"
    return "dynamic, %g ms delay" % self.dyn_batching_delay

  @property
  def title(self):
    """str for people."""
    engines = "%d instance%s" % (self.engine_count,
                                 "s" if self.engine_count > 1 else "")
    size = "%d sentence%s" % (self.max_batch_size,
                              "s" if self.max_batch_size > 1 else "")
    if self.batching == STATIC:
      return "static batching, requests of %s, %s" % (size, engines)
    return ("dynamic batching up to %s, delay %g ms, requests of 1 sentence, "
            "%s" % (size, self.dyn_batching_delay, engines))


def setting_of(columns):
  """Returns the Setting of a row's columns (str each); KeyError, ValueError."""
  return Setting(columns["batching"], int(columns["max_batch_size"]),
                 float(columns["dyn_batching_delay"]),
                 int(columns["engine_count"]))


def read_points(path):
  """Returns {Setting: list of Point} of a sweep's points.csv, in its order."""
  found = {}
  for columns, point in perf_points.read(path):
    try:
      setting = setting_of(columns)
    except (KeyError, ValueError):
      raise UserError("%s: its rows do not say the server's settings" % path)
    found.setdefault(setting, []).append(point)
  if not found:
    raise UserError("%s has no points yet" % path)
  return found


def recommended(found, max_latency):
  """Returns (Setting, Point) of the most sentences/s within the limit.

  Of equal ones the first. None where no point is within it.

  Args:
    found: {Setting: list of Point}.
    max_latency: float, milliseconds of average latency.
  """
  within = [(setting, point) for setting, points in found.items()
            for point in points if point.latency <= max_latency]
  return max(within, key=lambda pair: pair[1].throughput, default=None)


# --- one setting -------------------------------------------------------------


def _caption(figure, words):
  """Writes what was measured, and where; returns the height it takes."""
  width, height = figure.get_size_inches()
  lines = textwrap.wrap(words, int(16 * width))
  figure.text(0.012, 0.012, "\n".join(lines), fontsize=7.5, color="#444444",
              va="bottom")
  return (0.13 * len(lines) + 0.1) / height


def draw_setting(setting, points, words):
  """Returns the figure of one setting.

  Args:
    setting: Setting.
    points: list of Point, rising in concurrency.
    words: str, what was measured and where.
  """
  figure, left = pyplot.subplots(figsize=(8, 4.8))
  places = range(len(points))
  bottom = [0.0] * len(points)
  for part, (label, colour) in PART_LOOKS.items():
    values = [getattr(point, part) for point in points]
    left.bar(places, values, 0.6, bottom=bottom, label=label, color=colour)
    bottom = [low + value for low, value in zip(bottom, values)]
  left.set_xticks(list(places))
  left.set_xticklabels(["%d" % point.concurrency for point in points])
  left.set_xlabel("concurrency (requests in flight)")
  left.set_ylabel("average latency (ms)")
  left.set_ylim(0, 1.12 * max(bottom))
  left.set_xlim(-0.6, len(points) - 0.4)
  right = left.twinx()
  throughput = [point.throughput for point in points]
  right.plot(places, throughput, "-", color="#000000", linewidth=1.6)
  for place, point in zip(places, points):
    right.plot([place], [point.throughput], "o", color="#000000",
               markerfacecolor="#000000" if point.stable else "#ffffff")
  right.set_ylabel("throughput (sentences/s)")
  right.set_ylim(0, 1.12 * max(throughput))
  handles = left.get_legend_handles_labels()[0] + [line_art.Line2D(
      [], [], color="#000000", marker="o", label="throughput (right)")]
  if not all(point.stable for point in points):
    handles.append(line_art.Line2D(
        [], [], color="#000000", marker="o", markerfacecolor="#ffffff",
        linestyle="", label="did not settle"))
  left.legend(handles=handles, loc="lower center", ncol=4, fontsize=8,
              bbox_to_anchor=(0.5, 1.0), frameon=False)
  figure.suptitle(setting.title, fontsize=10.5, y=0.985)
  figure.tight_layout(rect=(0, _caption(figure, words), 1, 0.99))
  return figure


# --- all of them -------------------------------------------------------------


def _looks(found):
  """Returns ({batch size: colour}, {batching: mark}, {engines: number})."""
  def numbered(values, looks):
    values = list(dict.fromkeys(values))
    return {value: looks[number % len(looks)]
            for number, value in enumerate(values)}
  return (
      numbered(sorted(s.max_batch_size for s in found), _BATCH_COLOURS),
      numbered([s.batching_title for s in sorted(found, key=lambda s: (
          s.batching != STATIC, s.dyn_batching_delay))], _BATCHING_MARKS),
      numbered(sorted(s.engine_count for s in found), range(4)))


def _legend(axes, colours, marks, engines, handles):
  """Puts a legend of colours, marks and fills right of the axes."""
  def entry(label, **look):
    look = dict(dict(color="#555555", linestyle=""), **look)
    return line_art.Line2D([], [], label=label, **look)

  handles = list(handles)
  handles.append(entry("Largest batch"))
  handles.extend(entry("%d" % size, color=colour, marker="o")
                 for size, colour in colours.items())
  handles.append(entry("Batching"))
  handles.extend(entry(title, marker=mark) for title, mark in marks.items())
  handles.append(entry("Instances"))
  handles.extend(entry("%d" % count, marker="o", fillstyle=_ENGINE_FILLS[n],
                       linestyle=_ENGINE_LINES[n])
                 for count, n in engines.items())
  axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.02),
              fontsize=8, frameon=False)


def _mark_recommended(axes, best, max_latency):
  """Marks the best point; returns (its handles, a sentence on it)."""
  rule = "most sentences/s with an average latency up to %g ms" % max_latency
  if best is None:
    return [], "No point is within the limit (%s)." % rule
  setting, point = best
  (ring,) = axes.plot([point.throughput], [point.latency], "o", markersize=17,
                      markerfacecolor="none", markeredgecolor="#d00000",
                      markeredgewidth=2, linestyle="", label="recommended",
                      zorder=5)
  return [ring], (
      "Recommended (%s): %s, concurrency %d: %.4g sentences/s, %.4g ms." % (
          rule, setting.title, point.concurrency, point.throughput,
          point.latency))


def _logarithmic(axes):
  """Gives latencies that differ much equal room, with plain numbers."""
  axes.set_yscale("log")
  axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axes.yaxis.set_major_formatter("{x:g}")
  axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def draw_summary(found, max_latency, words):
  """Returns the figure of latency against throughput of all settings.

  Args:
    found: {Setting: list of Point}.
    max_latency: float, milliseconds; limit of what is recommended.
    words: str, what was measured and where.
  """
  figure, axes = pyplot.subplots(figsize=(9, 5.6))
  colours, marks, engines = _looks(found)
  for setting, points in found.items():
    number = engines[setting.engine_count]
    axes.plot([point.throughput for point in points],
              [point.latency for point in points],
              _ENGINE_LINES[number], linewidth=0.7, markersize=6,
              marker=marks[setting.batching_title], alpha=0.85,
              fillstyle=_ENGINE_FILLS[number],
              color=colours[setting.max_batch_size])
  latencies = [p.latency for points in found.values() for p in points]
  best = recommended(found, max_latency)
  handles, sentence = _mark_recommended(axes, best, max_latency)
  if max(latencies) > max_latency:
    handles.append(axes.axhline(max_latency, color="#888888", linewidth=1,
                                linestyle="--",
                                label="limit, %g ms" % max_latency))
  axes.set_xlim(left=0)
  if max(latencies) > 10 * min(latencies):
    _logarithmic(axes)
  else:
    axes.set_ylim(bottom=0)
  axes.set_xlabel("throughput (sentences/s)")
  axes.set_ylabel("average latency of a request (ms)")
  axes.grid(alpha=0.3)
  _legend(axes, colours, marks, engines, handles)
  figure.suptitle("Latency against throughput; a line is a setting, along it "
                  "the concurrency rises", fontsize=10.5, y=0.985)
  figure.tight_layout(rect=(0, _caption(figure, sentence + " " + words), 1, 1))
  return figure


# --- files -------------------------------------------------------------------


def _save(figure, path):
  with files.atomic_write(path, binary=True) as stream:
    figure.savefig(stream, format="png", dpi=110)
  pyplot.close(figure)


def draw(folder, max_latency=None):
  """Draws all pictures of a sweep.

  Args:
    folder: str, with points.csv and sweep.json.
    max_latency: float, milliseconds; None for the sweep's own.

  Returns:
    list of str, the pictures' paths, the summary last.

  Raises:
    UserError: if the folder holds no sweep.
  """
  said = files.read_json(os.path.join(folder, "sweep.json"), "SWEEP_FOLDER")
  found = read_points(os.path.join(folder, "points.csv"))
  try:
    words = said["caption"]
    max_latency = max_latency or float(said["max_latency"])
  except (KeyError, TypeError, ValueError):
    raise UserError("%s/sweep.json is not that of a sweep" % folder)
  paths = []
  for setting, points in found.items():
    paths.append(os.path.join(folder, setting.name + ".png"))
    _save(draw_setting(setting, points, words), paths[-1])
  paths.append(os.path.join(folder, "summary.png"))
  _save(draw_summary(found, max_latency, words), paths[-1])
  return paths


def main(argv=None):
  """Runs the command line."""
  parser = argparse.ArgumentParser(
      description="Draws the pictures of a sweep over a server's settings.")
  parser.add_argument("folder", metavar="SWEEP_FOLDER")
  parser.add_argument("--max_latency", type=float,
                      help="milliseconds; empty: the sweep's own")
  options = parser.parse_args(argv)
  paths = errors.guard(draw, options.folder, options.max_latency)
  print("\n".join(paths))


if __name__ == "__main__":
  main()
