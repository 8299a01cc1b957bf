"""plot_metrics: the picture's panels and lines, and what it refuses."""

import json
import struct
import subprocess
import sys

import pytest

pyplot = pytest.importorskip("matplotlib.pyplot")

# pylint: disable=wrong-import-position
from utils import plot_metrics
from utils.errors import UserError

ROWS = [{"kind": "train", "step": step, "mlm_loss": 9.0 - step,
         "nsp_loss": 0.5 + 0.1 * step} for step in range(1, 6)]


def run_folder(folder, rows):
  folder.mkdir()
  (folder / "metrics.jsonl").write_text(
      "".join(row if isinstance(row, str) else json.dumps(row) + "\n"
              for row in rows))
  return str(folder)


@pytest.fixture(autouse=True)
def figures():
  pyplot.close("all")
  yield
  pyplot.close("all")


def test_one_panel_a_tag_and_one_line_a_run(tmp_path):
  first = run_folder(tmp_path / "first", ROWS + [
      {"kind": "eval", "step": 5, "mlm_loss": 1.0}, "{\"kind\": \"tra"])
  second = run_folder(tmp_path / "second", ROWS[:3])
  output = tmp_path / "curve.png"
  plot_metrics.main([first, second, "--output", str(output)])
  content = output.read_bytes()
  assert content.startswith(b"\x89PNG\r\n\x1a\n")
  width, height = struct.unpack(">II", content[16:24])
  assert (width, height) == (2 * 572, 396)
  panels = pyplot.gcf().axes
  assert [panel.get_ylabel() for panel in panels] == [
      "masked-LM loss", "next-sentence loss"]
  for panel, tag in zip(panels, ("mlm_loss", "nsp_loss")):
    lines = panel.get_lines()
    assert [line.get_label() for line in lines] == ["first", "second"]
    assert [text.get_text() for text in panel.get_legend().get_texts()] == [
        "first", "second"]
    for line, rows in zip(lines, (ROWS, ROWS[:3])):
      assert list(line.get_xdata()) == [row["step"] for row in rows]
      assert list(line.get_ydata()) == [row[tag] for row in rows]


def test_command_line(root, tmp_path):
  run = run_folder(tmp_path / "run", ROWS)
  done = subprocess.run(
      [sys.executable, str(root / "utils" / "plot_metrics.py"), run, "--tags",
       "nsp_loss"], cwd=str(tmp_path), stderr=subprocess.PIPE)
  assert done.returncode == 0, done.stderr
  content = (tmp_path / "curve.png").read_bytes()
  assert struct.unpack(">II", content[16:24]) == (572, 396)


def error_of(capsys, *arguments):
  with pytest.raises(SystemExit) as caught:
    plot_metrics.main([str(argument) for argument in arguments])
  assert caught.value.code == 1
  err = capsys.readouterr().err
  assert err.startswith("ERROR: ") and err.count("\n") == 1
  return err


@pytest.mark.parametrize("row, message", [
    (5, "is not a JSON object"), ([1], "is not a JSON object"),
    ({"kind": "train", "mlm_loss": 1.0}, "no step"),
    ({"kind": "train", "step": 6, "mlm_loss": "1"}, "mlm_loss"),
    ({"kind": "train", "step": "6", "mlm_loss": 1.0}, "no step"),
    ({"step": 6}, "no training rows")])
def test_rows_that_are_none(tmp_path, capsys, row, message):
  rows = [row] if "training" in message else ROWS[:1] + [row]
  run = run_folder(tmp_path / "run", rows)
  err = error_of(capsys, run, "--output", tmp_path / "x.png")
  assert message in err and "metrics.jsonl" in err
  assert not (tmp_path / "x.png").exists()


def test_missing(tmp_path, capsys):
  assert "name the folder of a run" in error_of(capsys, tmp_path)
  run = run_folder(tmp_path / "run", ROWS)
  assert "run has no loss" in error_of(capsys, run, "--tags", "loss")
  (tmp_path / "run" / "metrics.jsonl").write_bytes(b"\xff\n")
  assert "metrics.jsonl is not text" in error_of(capsys, run)


def test_output_that_cannot_be_written(tmp_path, capsys):
  run = run_folder(tmp_path / "run", ROWS)
  for output in (tmp_path, tmp_path / "run" / "metrics.jsonl" / "x.png"):
    assert "ERROR: --output: cannot write %s" % output in error_of(
        capsys, run, "--output", output)
  with pytest.raises(UserError, match="--output: .*x.gif2.*png"):
    plot_metrics.draw([run], ["mlm_loss"], str(tmp_path / "x.gif2"))
