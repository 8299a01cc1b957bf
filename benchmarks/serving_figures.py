"""Pictures of a sweep over a server's settings.

  python benchmarks/serving_figures.py SWEEP_FOLDER [--max_latency MS]

scripts/trtis/generate_figures.sh draws them at its end; this draws them again,
with another limit if one is given. Of points.csv and sweep.json it makes a
picture a setting (parts of the latency stacked, throughput as a line, over the
concurrency; all on the same scales) and summary.png (latency against throughput
of all, with the recommended point marked). Points that did not settle are
crossed out and never recommended.
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

from benchmarks import perf_client
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
# Over a point that did not settle.
_CROSS = dict(color="#000000", marker="x", markersize=11, markeredgewidth=1.3,
              linestyle="")
# Share of a bar that cannot be seen.
_TRACE = 0.01
# Room above what is highest.
_ROOM = 1.15


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


def check_looks(settings):
  """Raises UserError if a summary could not tell these settings apart."""
  for what, looks, values in (
      ("batch sizes", _BATCH_COLOURS, {s.max_batch_size for s in settings}),
      ("ways of batching", _BATCHING_MARKS,
       {s.batching_title for s in settings}),
      ("instance counts", _ENGINE_FILLS, {s.engine_count for s in settings})):
    if len(values) > len(looks):
      raise UserError(
          "a summary tells up to %d %s apart, but these settings have %d: "
          "measure some of them into another folder"
          % (len(looks), what, len(values)))


def recommended(found, max_latency, tolerance):
  """Returns (Setting, Point) of the point to take.

  Of the points that settled and are within the limit, those count as equal to
  the one of most sentences/s that come within `tolerance` of it, since a
  measurement says no more; of these the one of the lowest latency. None where
  no point is within the limit.

  Args:
    found: {Setting: list of Point}.
    max_latency: float, milliseconds of average latency.
    tolerance: float, per cent: the sweep's --stability_percentage.
  """
  within = [(setting, point) for setting, points in found.items()
            for point in points
            if point.stable and point.latency <= max_latency]
  most = max((point.throughput for _, point in within), default=0)
  least = most * (1 - tolerance / 100)
  return min((pair for pair in within if pair[1].throughput >= least),
             key=lambda pair: (pair[1].latency, -pair[1].throughput),
             default=None)


class Scales(NamedTuple):
  """Tops of the axes of all of a sweep's pictures of a setting.

  Attributes:
    latency: float, milliseconds.
    throughput: float, sentences/s.
  """
  latency: float
  throughput: float


def scales_of(found, max_latency):
  """Returns the Scales: all points within the limit have room.

  One above it ends a setting and may be far off: its bar is cut. Where all
  are above it, all have room.

  Args:
    found: {Setting: list of Point}.
    max_latency: float, milliseconds; the limit that the sweep had.
  """
  points = [point for points in found.values() for point in points]
  latencies = [point.latency for point in points]
  return Scales(
      _ROOM * max([value for value in latencies if value <= max_latency]
                  or latencies),
      _ROOM * max(point.throughput for point in points))


# --- one setting -------------------------------------------------------------


def _caption(figure, words):
  """Writes what was measured, and where; returns the height it takes."""
  width, height = figure.get_size_inches()
  lines = textwrap.wrap(words, int(16 * width))
  figure.text(0.012, 0.012, "\n".join(lines), fontsize=7.5, color="#444444",
              va="bottom")
  return (0.13 * len(lines) + 0.1) / height


def _draw_bars(axes, points, top):
  """Stacks the parts of the latencies; what does not show says so."""
  places = range(len(points))
  bottom = [0.0] * len(points)
  for part, (label, colour) in PART_LOOKS.items():
    values = [getattr(point, part) for point in points]
    if all(value < _TRACE * point.latency
           for value, point in zip(values, points)):
      label += ", < %g %%" % (100 * _TRACE)
    axes.bar(places, values, 0.6, bottom=bottom, label=label, color=colour)
    bottom = [low + value for low, value in zip(bottom, values)]
  axes.set_xticks(list(places))
  axes.set_xticklabels(
      ["%d\n%.4g ms%s" % (point.concurrency, point.latency,
                          " \u2191" if point.latency > top else "")
       for point in points], fontsize=9)
  axes.set_xlabel("concurrency (requests in flight) and its average latency")
  axes.set_ylabel("average latency (ms)")
  axes.set_ylim(0, top)
  axes.set_xlim(-0.6, len(points) - 0.4)


def _draw_throughput(axes, points, top):
  """Draws the line of the throughputs."""
  axes.plot(range(len(points)), [point.throughput for point in points], "o-",
            color="#000000", linewidth=1.6)
  for place, point in enumerate(points):
    if not point.stable:
      axes.plot([place], [point.throughput], **_CROSS)
  axes.set_ylabel("throughput (sentences/s)")
  axes.set_ylim(0, top)


def draw_setting(setting, points, scales, words):
  """Returns the figure of one setting.

  Args:
    setting: Setting.
    points: list of Point, rising in concurrency.
    scales: Scales.
    words: str, what was measured and where.
  """
  figure, left = pyplot.subplots(figsize=(8, 4.8))
  _draw_bars(left, points, scales.latency)
  right = left.twinx()
  _draw_throughput(right, points, scales.throughput)
  handles = left.get_legend_handles_labels()[0] + [line_art.Line2D(
      [], [], color="#000000", marker="o", label="throughput (right)")]
  if not all(point.stable for point in points):
    handles.append(line_art.Line2D([], [], label="did not settle", **_CROSS))
  left.legend(handles=handles, loc="lower center", ncol=4, fontsize=8,
              bbox_to_anchor=(0.5, 1.0), frameon=False)
  figure.suptitle(setting.title, fontsize=10.5, y=0.985)
  words = "The scales are those of all settings of the sweep. " + words
  if max(point.latency for point in points) > scales.latency:
    words = "\u2191: a bar above the sweep's limit is cut. " + words
  figure.tight_layout(rect=(0, _caption(figure, words), 1, 0.99))
  return figure


# --- all of them -------------------------------------------------------------


def _looks(found):
  """Returns ({batch size: colour}, {batching: mark}, {engines: number})."""
  check_looks(found)

  def numbered(values, looks):
    return dict(zip(dict.fromkeys(values), looks))
  return (
      numbered(sorted(s.max_batch_size for s in found), _BATCH_COLOURS),
      numbered([s.batching_title for s in sorted(found, key=lambda s: (
          s.batching != STATIC, s.dyn_batching_delay))], _BATCHING_MARKS),
      numbered(sorted(s.engine_count for s in found),
               range(len(_ENGINE_FILLS))))


def _legend(axes, looks, handles):
  """Puts a legend of colours, marks and fills right of the axes."""
  colours, marks, engines = looks

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


def _mark_recommended(axes, best, max_latency, tolerance):
  """Marks the best point; returns (its handles, a sentence on it)."""
  rule = ("of what settled up to %g ms, the lowest latency within %g %% of the "
          "most sentences/s" % (max_latency, tolerance))
  if best is None:
    return [], "No point that settled has a latency up to %g ms." % max_latency
  setting, point = best
  (ring,) = axes.plot([point.throughput], [point.latency], "o", markersize=17,
                      markerfacecolor="none", markeredgecolor="#d00000",
                      markeredgewidth=2, linestyle="", label="recommended",
                      zorder=5)
  return [ring], (
      "Recommended (%s): %s, concurrency %d: %.4g sentences/s, %.4g ms." % (
          rule, setting.title, point.concurrency, point.throughput,
          point.latency))


def _write_concurrencies(axes, points, best, colour):
  """Writes its concurrency at each end of a line, and at the best point."""
  for place, point in enumerate(points):
    if point is best:
      offset = (10, -10)   # clear of the ring
    elif place == 0:
      offset = (-6, -6)
    elif place == len(points) - 1:
      offset = (6, 6)
    else:
      continue
    axes.annotate("%d" % point.concurrency, (point.throughput, point.latency),
                  xytext=offset, textcoords="offset points", fontsize=7.5,
                  color=colour, ha="left" if offset[0] > 0 else "right",
                  va="bottom" if offset[1] > 0 else "top")


def _draw_lines(axes, found, looks, best):
  """Draws a line a setting; returns handles for what did not settle."""
  colours, marks, engines = looks
  for setting, points in found.items():
    number = engines[setting.engine_count]
    colour = colours[setting.max_batch_size]
    axes.plot([point.throughput for point in points],
              [point.latency for point in points],
              _ENGINE_LINES[number], linewidth=0.7, markersize=6,
              marker=marks[setting.batching_title], alpha=0.85,
              fillstyle=_ENGINE_FILLS[number], color=colour)
    _write_concurrencies(axes, points, best[1] if best else None, colour)
  loose = [point for points in found.values() for point in points
           if not point.stable]
  if not loose:
    return []
  return axes.plot([point.throughput for point in loose],
                   [point.latency for point in loose], label="did not settle",
                   **_CROSS)


def _logarithmic(axes):
  """Gives latencies that differ much equal room, with plain numbers."""
  axes.set_yscale("log")
  axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axes.yaxis.set_major_formatter("{x:g}")
  axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def draw_summary(found, max_latency, tolerance, words):
  """Returns the figure of latency against throughput of all settings.

  Args:
    found: {Setting: list of Point}.
    max_latency: float, milliseconds; limit of what is recommended.
    tolerance: float, per cent of throughput that count as equal.
    words: str, what was measured and where.

  Raises:
    UserError: if there are more settings than looks.
  """
  looks = _looks(found)
  figure, axes = pyplot.subplots(figsize=(9, 5.6))
  latencies = [p.latency for points in found.values() for p in points]
  best = recommended(found, max_latency, tolerance)
  loose = _draw_lines(axes, found, looks, best)
  handles, sentence = _mark_recommended(axes, best, max_latency, tolerance)
  if max(latencies) > max_latency:
    handles.append(axes.axhline(max_latency, color="#888888", linewidth=1,
                                linestyle="--",
                                label="limit, %g ms" % max_latency))
  # For the numbers at the ends.
  axes.margins(0.08)
  axes.set_xlim(left=0)
  if max(latencies) > 10 * min(latencies):
    _logarithmic(axes)
  else:
    axes.set_ylim(bottom=0)
  handles += loose
  axes.set_xlabel("throughput (sentences/s)")
  axes.set_ylabel("average latency of a request (ms)")
  axes.grid(alpha=0.3)
  _legend(axes, looks, handles)
  figure.suptitle("Latency against throughput; a line is a setting, the "
                  "numbers at its ends are the concurrency", fontsize=10.5,
                  y=0.985)
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
    UserError: if the folder holds no sweep, or more settings than looks.
  """
  said = files.read_json(os.path.join(folder, "sweep.json"), "SWEEP_FOLDER")
  found = read_points(os.path.join(folder, "points.csv"))
  try:
    words, own_limit = said["caption"], float(said["max_latency"])
    tolerance = float(said["identity"]["stability_percentage"])
  except (KeyError, TypeError, ValueError):
    raise UserError("%s/sweep.json is not that of a sweep" % folder)
  check_looks(found)
  paths, scales = [], scales_of(found, own_limit)
  for setting, points in found.items():
    paths.append(os.path.join(folder, setting.name + ".png"))
    _save(draw_setting(setting, points, scales, words), paths[-1])
  paths.append(os.path.join(folder, "summary.png"))
  _save(draw_summary(found, max_latency or own_limit, tolerance, words),
        paths[-1])
  return paths


def main(argv=None):
  """Runs the command line."""
  parser = argparse.ArgumentParser(
      description="Draws the pictures of a sweep over a server's settings.")
  parser.add_argument("folder", metavar="SWEEP_FOLDER")
  parser.add_argument("--max_latency", type=perf_client.positive,
                      help="milliseconds; empty: the sweep's own")
  options = parser.parse_args(argv)
  paths = errors.guard(draw, options.folder, options.max_latency)
  print("\n".join(paths))


if __name__ == "__main__":
  main()
