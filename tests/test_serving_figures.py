"""The pictures of a sweep over a server's settings, and what they recommend.

The sweep itself has its tests in test_serving_sweep.py.
"""

import json
import pathlib
import subprocess
import sys

from matplotlib import pyplot
import pytest

import runners
from benchmarks import perf_points
from benchmarks import serving_figures
from utils.errors import UserError

pytestmark = pytest.mark.once
PNG = b"\x89PNG"


def point(concurrency, throughput, latency, stable=True):
  """A Point whose parts are 1, 2, 30, 60 and 7 per cent of the latency."""
  shares = dict(client_send=.01, network=.02, server_queue=.3,
                server_compute=.6, client_receive=.07)
  return perf_points.Point(
      concurrency=concurrency, batch_size=1, throughput=throughput,
      latency=latency, p50=latency, p90=latency, p95=latency, p99=latency,
      sentences=12, executions=4, executed_batch=3.0, stable=stable,
      **{name: share * latency for name, share in shares.items()})


def setting(batching="dynamic", size=8, delay=5.0, engines=1):
  return serving_figures.Setting(batching, size, delay, engines)


FOUND = {
    setting(): [point(1, 20.0, 50.0), point(4, 60.0, 66.0),
                point(16, 90.0, 177.0, stable=False)],
    setting("static", 1, 0.0): [point(1, 22.0, 45.0), point(4, 30.0, 133.0)],
    setting(engines=2): [point(1, 20.0, 50.0), point(4, 60.0, 67.0)],
}


def test_titles():
  assert setting("static", 8, 0.0, 2).title == (
      "static batching, requests of 8 sentences, 2 instances")
  assert setting(delay=2.5).title == (
      "dynamic batching up to 8 sentences, delay 2.5 ms, requests of 1 "
      "sentence, 1 instance")


# --- recommendation ----------------------------------------------------------


def test_most_sentences_within_the_limit_are_recommended():
  best = serving_figures.recommended(FOUND, 100.0, 10.0)
  # Of two that are as fast the sooner.
  assert best == (setting(), FOUND[setting()][1])
  assert serving_figures.recommended(FOUND, 66.0, 10.0) == best
  assert serving_figures.recommended(FOUND, 10.0, 10.0) is None


def test_what_did_not_settle_is_not_recommended():
  best = FOUND[setting()][1]
  assert serving_figures.recommended(FOUND, 500.0, 10.0)[1] == best
  settled = {setting(): [p._replace(stable=True) for p in FOUND[setting()]]}
  assert serving_figures.recommended(settled, 500.0, 10.0)[1].throughput == 90.0
  loose = {setting(): [p._replace(stable=False) for p in FOUND[setting()]]}
  assert serving_figures.recommended(loose, 500.0, 10.0) is None


def test_of_what_is_as_fast_within_the_tolerance_the_soonest_is_recommended():
  points = [point(1, 80.0, 40.0), point(2, 90.0, 60.0), point(4, 100.0, 300.0),
            point(8, 130.0, 50.0, stable=False), point(16, 120.0, 600.0)]
  found = {setting(): points}
  for tolerance, concurrency in ((5.0, 4), (10.0, 2), (19.0, 2), (20.0, 1)):
    assert serving_figures.recommended(
        found, 500.0, tolerance)[1].concurrency == concurrency
  # The most is that within the limit: 120 is above it, or is not.
  assert serving_figures.recommended(found, 600.0, 10.0)[1].concurrency == 16
  equal = {setting(): [point(1, 95.0, 40.0), point(2, 100.0, 40.0)]}
  assert serving_figures.recommended(equal, 50.0, 10.0)[1].concurrency == 2


# --- pictures ----------------------------------------------------------------


def test_picture_of_a_setting():
  points = FOUND[setting()]
  scales = serving_figures.scales_of(FOUND, 500.0)
  figure = serving_figures.draw_setting(setting(), points, scales,
                                        "on a machine")
  left, right = figure.axes
  assert [bar.get_label() for bar in left.containers] == [
      "client send", "network", "server queue", "server compute",
      "client receive"]
  for number, one in enumerate(points):
    bars = [bar.patches[number] for bar in left.containers]
    heights = [bar.get_height() for bar in bars]
    assert sum(heights) == pytest.approx(one.latency)
    assert heights == pytest.approx(
        [getattr(one, part) for part in perf_points.PARTS])
    # Each stands on the one below it.
    assert [bar.get_y() for bar in bars] == pytest.approx(
        [sum(heights[:n]) for n in range(len(heights))])
  assert [text.get_text() for text in left.get_xticklabels()] == [
      "1\n50 ms", "4\n66 ms", "16\n177 ms"]
  assert list(right.lines[0].get_ydata()) == [20.0, 60.0, 90.0]
  assert crossed(right) == [(2, 90.0)]
  assert "ms" in left.get_ylabel() and "sentences/s" in right.get_ylabel()
  legend = [text.get_text() for text in left.get_legend().get_texts()]
  assert legend[5:] == ["throughput (right)", "did not settle"]
  assert ("The scales are those of all settings of the sweep. on a machine"
          in words_of(figure))
  assert len(set(bar.patches[0].get_facecolor()
                 for bar in left.containers)) == 5
  pyplot.close(figure)


def test_all_settings_have_the_same_scales():
  """Without what is above the limit, whose bars are cut."""
  scales = serving_figures.scales_of(FOUND, 140.0)
  assert 133.0 < scales.latency < 177.0 and scales.throughput > 90.0
  for one, points in FOUND.items():
    figure = serving_figures.draw_setting(one, points, scales, "")
    left, right = figure.axes
    assert left.get_ylim() == (0, scales.latency)
    assert right.get_ylim() == (0, scales.throughput)
    cut = [label.get_text() for label in left.get_xticklabels()
           if "\u2191" in label.get_text()]
    assert cut == (["16\n177 ms \u2191"] if one == setting() else [])
    assert ("a bar above the sweep's limit is cut" in words_of(figure)) == bool(
        cut)
    pyplot.close(figure)
  # Where all are above it, none is cut.
  assert serving_figures.scales_of(FOUND, 1.0).latency > 177.0


def test_parts_that_cannot_be_seen_say_so():
  """Those below one per cent at each concurrency."""
  points = [one._replace(network=share * one.latency,
                         client_receive=.005 * one.latency)
            for one, share in zip(FOUND[setting()], (.009, .009, .011))]
  scales = serving_figures.scales_of(FOUND, 500.0)
  figure = serving_figures.draw_setting(setting(), points, scales, "")
  assert [bar.get_label() for bar in figure.axes[0].containers] == [
      "client send", "network", "server queue", "server compute",
      "client receive, < 1 %"]
  pyplot.close(figure)


def test_more_settings_than_looks_are_refused(tmp_path):
  write_sweep(tmp_path, {setting(engines=n): [point(1, 2.0, 3.0)]
                         for n in range(1, 6)})
  with pytest.raises(UserError, match="up to 4 instance counts apart"):
    serving_figures.draw(str(tmp_path))
  assert not list(tmp_path.glob("*.png"))


def test_each_setting_of_a_summary_looks_different():
  found = {setting(size=size, engines=engines, delay=delay): [
      point(1, 20.0, 50.0)] for size in range(1, 9) for engines in range(1, 5)
           for delay in range(10)}
  figure = serving_figures.draw_summary(found, 1.0, 10.0, "")
  looks = {(line.get_color(), line.get_marker(), line.get_fillstyle(),
            line.get_linestyle()) for line in figure.axes[0].lines[:len(found)]}
  assert len(looks) == len(found) == 320
  pyplot.close(figure)


def crossed(axes):
  """Places of crosses."""
  return [place for line in axes.lines if line.get_marker() == "x"
          for place in zip(line.get_xdata(), line.get_ydata())]


def words_of(figure):
  """All that is written below the axes and above them."""
  return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def test_summary_has_all_points_and_marks_one():
  figure = serving_figures.draw_summary(FOUND, 100.0, 10.0, "on a machine")
  (axes,) = figure.axes
  drawn = [(list(line.get_xdata()), list(line.get_ydata()))
           for line in axes.lines]
  for points in FOUND.values():
    assert ([p.throughput for p in points],
            [p.latency for p in points]) in drawn
  assert drawn.count(([60.0], [66.0])) == 1   # the ring
  legend = [text.get_text() for text in axes.get_legend().get_texts()]
  for words in ("recommended", "limit, 100 ms", "static", "did not settle",
                "dynamic, 5 ms delay", "1", "2", "8"):
    assert words in legend
  assert crossed(axes) == [(90.0, 177.0)]
  assert ("Recommended (of what settled up to 100 ms, the lowest latency "
          "within 10 % of the most sentences/s): dynamic batching up to 8 "
          "sentences, delay 5 ms, requests of 1 sentence, 1 instance, "
          "concurrency 4: 60 sentences/s, 66 ms. on a machine"
          in words_of(figure))
  # Both ends of each line and the recommended point.
  assert sorted((text.xy, text.get_text()) for text in axes.texts) == sorted(
      ((p.throughput, p.latency), "%d" % p.concurrency)
      for points in FOUND.values() for p in points
      if p in (points[0], points[-1], FOUND[setting()][1]))
  pyplot.close(figure)
  figure = serving_figures.draw_summary(
      {setting("static"): FOUND[setting("static", 1, 0.0)]}, 1.0, 10.0, "")
  assert "No point that settled has a latency up to 1 ms." in words_of(figure)
  assert not crossed(figure.axes[0])
  assert "did not settle" not in [
      text.get_text() for text in figure.axes[0].get_legend().get_texts()]
  pyplot.close(figure)


def boxes(figure):
  """Extents of what is written below, above and beside the axes."""
  renderer = figure.canvas.get_renderer()
  return [item.get_window_extent(renderer) for item in figure.texts
          + [figure.axes[0].get_legend(), figure.axes[0].xaxis.label]]


@pytest.mark.parametrize("draw", [
    lambda words: serving_figures.draw_setting(
        setting(), FOUND[setting()], serving_figures.scales_of(FOUND, 100.0),
        words),
    lambda words: serving_figures.draw_summary(FOUND, 100.0, 10.0, words)])
def test_words_do_not_overlap(draw):
  figure = draw("A machine with a very long name indeed, 64 cores; " * 4)
  figure.canvas.draw()
  found = boxes(figure)
  for number, one in enumerate(found):
    assert one.x0 >= 0 and one.y0 >= 0 and one.x1 <= figure.bbox.x1
    assert one.y1 <= figure.bbox.y1
    assert not any(one.overlaps(other) for other in found[number + 1:])
  pyplot.close(figure)


def write_sweep(folder, found=None):
  rows = [(s, p) for s, points in (found or FOUND).items() for p in points]
  perf_points.write(str(folder / "points.csv"), [p for _, p in rows],
                    [s._asdict() for s, _ in rows])
  (folder / "sweep.json").write_text(json.dumps(
      {"caption": "on a machine", "max_latency": 100,
       "identity": {"stability_percentage": 10.0}}))


def test_pictures_are_drawn_again(tmp_path):
  write_sweep(tmp_path)
  assert serving_figures.read_points(str(tmp_path / "points.csv")) == FOUND
  done = subprocess.run(
      [sys.executable, str(runners.ROOT / "benchmarks/serving_figures.py"),
       str(tmp_path), "--max_latency=60"], stdout=subprocess.PIPE, check=True)
  paths = [pathlib.Path(line) for line in done.stdout.decode().splitlines()]
  assert [path.stem for path in paths] == [s.name for s in FOUND] + ["summary"]
  for path in paths:
    assert path.read_bytes().startswith(PNG)


def test_folder_without_a_sweep(tmp_path):
  with pytest.raises(UserError, match="cannot read .*sweep.json"):
    serving_figures.draw(str(tmp_path))
  write_sweep(tmp_path)
  (tmp_path / "sweep.json").write_text("[]")
  with pytest.raises(UserError, match="not that of a sweep"):
    serving_figures.draw(str(tmp_path))
