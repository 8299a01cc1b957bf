"""The sweep over a server's settings: what it measures and keeps.

One short sweep over a real server at the end; how fast it is is not asked. Its
pictures have their tests in test_serving_figures.py.
"""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

import runners
import trtis_server
from benchmarks import perf_client
from benchmarks import perf_points
from benchmarks import serving_figures
from benchmarks import serving_sweep
from launcher_sandbox import clients  # pylint: disable=unused-import
from launcher_sandbox import one_line
from launcher_sandbox import site  # pylint: disable=unused-import
from test_serving_figures import PNG
from test_serving_figures import point
from test_serving_figures import setting
from utils import model_config
from utils.errors import UserError

pytestmark = pytest.mark.once
SAMPLE = runners.ROOT / "data" / "sample"


# --- settings ----------------------------------------------------------------


def test_settings_of_a_sweep():
  found = serving_sweep.settings_of([1, 4], [0.0, 2.5], [1, 2])
  assert [s.name for s in found] == [
      "static_batch_1_engines_1", "static_batch_4_engines_1",
      "dynamic_batch_4_delay_0ms_engines_1",
      "dynamic_batch_4_delay_2.5ms_engines_1",
      "static_batch_1_engines_2", "static_batch_4_engines_2",
      "dynamic_batch_4_delay_0ms_engines_2",
      "dynamic_batch_4_delay_2.5ms_engines_2"]
  assert len(serving_sweep.settings_of([4, 4], [2.0, 2.0], [1, 1])) == 2


def test_only_the_configuration_changes(tmp_path):
  before = model_config.ModelSettings(
      name="bert", platform=model_config.SAVED_MODEL, seq_length=48,
      max_batch_size=8, delay_ms=0, max_queue_size=0, engine_count=1,
      mixed_precision=False, xla=False, parameters={"a": "b"})
  model = tmp_path / "bert"
  (model / "configs").mkdir(parents=True)
  places = {"gpu": model / "config.pbtxt", "cpu": model / "configs/cpu.pbtxt"}
  for kind, path in places.items():
    path.write_text(model_config.text(before, kind))
  serving_sweep.configure(str(tmp_path), setting(size=4, delay=2.5, engines=3))
  for kind, path in places.items():
    assert model_config.read(path.read_text(), "x") == (before._replace(
        max_batch_size=4, delay_ms=2.5, engine_count=3), kind)
  serving_sweep.configure(str(tmp_path), setting("static", 2, 0.0, 1))
  for kind, path in places.items():
    text = path.read_text()
    assert "dynamic_batching" not in text
    assert model_config.read(text, "x") == (
        before._replace(max_batch_size=2), kind)


def test_delay_of_zero_is_dynamic_all_the_same(tmp_path):
  (tmp_path / "bert").mkdir()
  path = tmp_path / "bert" / "config.pbtxt"
  path.write_text('max_batch_size: 8 instance_group { count: 1 }')
  serving_sweep.configure(str(tmp_path), setting(delay=0.0))
  assert "dynamic_batching" in path.read_text()


# --- going on ----------------------------------------------------------------


def options_of(folder, **changes):
  """The options of a sweep over two settings, read as the program does."""
  values = dict(
      output_dir=str(folder), predict_file="q.json", vocab_file="v.txt",
      bert_model="mine", seq_length=48, init_checkpoint="c",
      export_python="python", export_flag="--use_fp16=false", batch_sizes="4",
      dyn_batching_delays="2", engine_counts="1", concurrencies="1,2,8",
      max_latency=100)
  values.update(changes)
  return serving_sweep.parse(["--%s=%s" % item for item in values.items()])


class Bench(object):
  """Stands in for export, server and perf_analyzer; counts what was done."""

  def __init__(self, monkeypatch):
    self.started, self.measured, self.broken = [], [], None
    monkeypatch.setattr(serving_sweep, "export",
                        lambda folder, options, largest: "repository")
    monkeypatch.setattr(serving_sweep.Sweep, "_start", self.start)
    monkeypatch.setattr(perf_client, "measure", self.measure)

  def start(self, unused_stack, which):
    if which.name == self.broken:
      raise UserError("out of memory")
    self.started.append(which.name)
    return which.name

  def measure(self, server, load, unused_inputs, concurrency, unused_log):
    self.measured.append((server, load.batch_size, concurrency))
    return (point(concurrency, 20.0 * concurrency, 30.0 * concurrency),
            "Concurrency\n%d\n" % concurrency)


STATIC = "static_batch_4_engines_1"
DYNAMIC = "dynamic_batch_4_delay_2ms_engines_1"


def prepare_points(folder):
  for name in (STATIC, DYNAMIC):
    (folder / "points" / name).mkdir(parents=True)


def test_a_sweep_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
  bench = Bench(monkeypatch)
  prepare_points(tmp_path)
  serving_sweep.run(options_of(tmp_path, concurrencies="1"))
  # Requests of four sentences, or of one where the server makes the batches.
  assert bench.measured == [(STATIC, 4, 1), (DYNAMIC, 1, 1)]
  capsys.readouterr()
  os.remove(str(tmp_path / "points" / DYNAMIC / "concurrency_1.csv"))
  del bench.measured[:], bench.started[:]
  serving_sweep.run(options_of(tmp_path))
  assert bench.measured == [(STATIC, 4, 2), (STATIC, 4, 8), (DYNAMIC, 1, 1),
                            (DYNAMIC, 1, 2), (DYNAMIC, 1, 8)]
  assert bench.started == [STATIC, DYNAMIC]
  # Of three concurrencies the last is over the limit of 100 ms.
  assert capsys.readouterr().out == (
      "recommended: static batching, requests of 4 sentences, 1 instance, "
      "concurrency 2: 40.0 sentences/s, 60.00 ms\n")
  del bench.started[:]
  serving_sweep.run(options_of(tmp_path))
  assert not bench.started
  assert (tmp_path / (STATIC + "_analyzer.csv")).read_text() == (
      "Concurrency\n1\n2\n8\n")
  assert len(perf_points.read(str(tmp_path / "points.csv"))) == 6


def test_a_setting_that_fails_leaves_the_others_alone(tmp_path, monkeypatch):
  bench = Bench(monkeypatch)
  bench.broken = STATIC
  prepare_points(tmp_path)
  with pytest.raises(UserError, match="1 of 2 settings failed: " + STATIC):
    serving_sweep.run(options_of(tmp_path))
  assert (tmp_path / (DYNAMIC + ".png")).exists()
  assert not (tmp_path / (STATIC + ".png")).exists()


@pytest.mark.parametrize("change, said", [
    (dict(batch_sizes="1,2,3,4,5,6,7,8,9"),
     "up to 8 batch sizes apart, but these settings have 9"),
    (dict(engine_counts="1,2,3,4,5"), "up to 4 instance counts apart"),
    (dict(dyn_batching_delays="0,1,2,3,4,5,6,7,8,9"),
     "up to 10 ways of batching apart, but these settings have 11")])
def test_more_settings_than_a_picture_tells_apart(
    tmp_path, monkeypatch, change, said):
  bench = Bench(monkeypatch)
  with pytest.raises(UserError, match=said):
    serving_sweep.run(options_of(tmp_path, **change))
  assert not bench.started and not bench.measured


@pytest.mark.parametrize("change", [
    dict(seq_length=64), dict(init_checkpoint="d"), dict(predict_file="r"),
    dict(measurement_interval=7), dict(export_flag="--use_fp16=true")])
def test_points_of_other_things_are_not_mixed(tmp_path, change):
  serving_sweep.open_sweep(str(tmp_path), options_of(tmp_path))
  with pytest.raises(UserError, match="was begun with another %s: .*--run_dir"
                                      % list(change)[0]):
    serving_sweep.open_sweep(str(tmp_path), options_of(tmp_path, **change))


def checkpoint(folder, step, words):
  """Writes what looks like the files of a checkpoint; returns its prefix."""
  folder.mkdir(exist_ok=True)
  for end in ("index", "data-00000-of-00001"):
    (folder / ("model.ckpt-%d.%s" % (step, end))).write_text(words)
  return folder / ("model.ckpt-%d" % step)


@pytest.mark.parametrize("path, steps", [
    # Of a folder the newest; beside a prefix others may come and go.
    ("run", [12, 100]), ("run/model.ckpt", [12, 100]),
    ("run/model.ckpt-9", [9])])
def test_points_of_a_run_that_has_trained_on_are_not_mixed(
    tmp_path, path, steps):
  folder = tmp_path / "run [1]"
  path = str(tmp_path / path.replace("run", "run [1]"))
  checkpoint(folder, 9, "nine")
  options = options_of(tmp_path / "sweep", init_checkpoint=path)
  (tmp_path / "sweep").mkdir()
  for step in steps:
    serving_sweep.open_sweep(options.output_dir, options)
    serving_sweep.open_sweep(options.output_dir, options)
    checkpoint(folder, step, "longer than before, " + str(step))
    with pytest.raises(UserError, match="with another init_checkpoint: "):
      serving_sweep.open_sweep(options.output_dir, options)
    os.remove(os.path.join(options.output_dir, "sweep.json"))
  serving_sweep.open_sweep(options.output_dir, options)
  checkpoint(folder, 10, "of a folder an older one, beside a prefix another")
  serving_sweep.open_sweep(options.output_dir, options)


def test_same_size_but_later_is_another_checkpoint(tmp_path):
  prefix = str(checkpoint(tmp_path, 3, "x"))
  before = serving_sweep.weights_of(prefix)
  assert sorted(before) == [prefix + ".data-00000-of-00001", prefix + ".index"]
  os.utime(prefix + ".index", (1, 1))
  assert serving_sweep.weights_of(prefix) != before
  assert serving_sweep.weights_of(str(tmp_path / "none")) == {}


def test_caption_says_machine_and_model(tmp_path):
  serving_sweep.open_sweep(str(tmp_path), options_of(tmp_path))
  said = json.loads((tmp_path / "sweep.json").read_text())["caption"]
  assert said.startswith("BERT mine, 48 tokens, fp16, SavedModel, on ")
  assert serving_sweep.machine("") in said and "core" in said
  assert serving_sweep.machine("A GPU").startswith("A GPU (")


# --- launcher ----------------------------------------------------------------


def dry(site, *words):  # pylint: disable=redefined-outer-name
  """(options as the sweep reads them, stderr) of the launcher's command."""
  done = site.run("trtis/generate_figures.sh", "--dry_run", *words)
  assert done.returncode == 0, done.stderr
  line = subprocess.check_output(
      ["bash", "-c", "printf '%s\\0' " + done.stdout.splitlines()[-1]])
  return serving_sweep.parse(
      line.decode("utf-8").split("\0")[2:-1]), done.stderr


def test_launcher_by_position(clients):
  found, _ = dry(clients, "mine", "64", "fp32", "my results/tuned",
                 "--batch_sizes=8,1", "--dyn_batching_delays", "0,2.5",
                 "--engine_counts=3", "--concurrencies=2,4", "--max_latency=9",
                 "--measurement_interval=700", "--stability_percentage=50",
                 "--max_trials=3", "--doc_stride=20", "--run_dir=r",
                 "--export_format=onnx")
  model = str(clients.data / "pretrained_models_google/mine")
  assert found.output_dir == str(clients.home / "r")
  assert found.init_checkpoint == str(clients.results / "tuned")
  assert (found.bert_model, found.seq_length) == ("mine", 64)
  assert found.batch_sizes == [8, 1] and found.engine_counts == [3]
  assert found.dyn_batching_delays == [0.0, 2.5]
  assert found.concurrencies == [2, 4] and found.max_latency == 9
  assert (found.measurement_interval, found.stability_percentage,
          found.max_trials, found.doc_stride) == (700, 50.0, 3, 20)
  assert found.vocab_file == [model + "/vocab.txt"]
  assert found.export_python == clients.env["BERT_PYTHON"]
  assert found.export_format == "onnx"
  for words in ("--max_seq_length=64", "--use_fp16=false",
                "--vocab_file=%s/vocab.txt" % model,
                "--bert_config_file=%s/bert_config.json" % model):
    assert words in found.export_flag


def test_launcher_on_a_cpu(clients):
  found, said = dry(clients, "--init_checkpoint=my results/tuned",
                    "--precision=fp16")
  assert found.precision == "fp32" and "on a CPU computes in fp32" in said
  assert found.doc_stride == 64 and found.device == ""


@pytest.mark.parametrize("words, said", [
    ([], "--init_checkpoint has to be given"),
    (["--init_checkpoint=c", "--dyn_batching_delays=x"], "0 or more"),
    (["--init_checkpoint=c", "--engine_counts=0"], "whole number above 0")])
def test_launcher_refuses(clients, words, said):
  assert said in one_line(clients.run("trtis/generate_figures.sh", *words), 2)


# --- a real server -----------------------------------------------------------


def processes_of(folder):
  """Command lines of servers over a folder's models."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    try:
      line = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
      continue
    if "tritonserver" in line and str(folder) in line:
      found.append(line)
  return found


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
  """(folder, words) of a sweep over a tiny model that was stopped once."""
  trtis_server.environment("client")
  trtis_server.environment("serving")
  home = tmp_path_factory.mktemp("sweep")
  (home / "model").mkdir()
  config = json.loads((SAMPLE / "bert_config.json").read_text())
  config.update(hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                intermediate_size=64)
  (home / "model" / "bert_config.json").write_text(json.dumps(config))
  (home / "model" / "vocab.txt").write_bytes(
      (SAMPLE / "vocab.txt").read_bytes())
  result = runners.call("run_squad", dict(
      bert_config_file=home / "model" / "bert_config.json",
      vocab_file=home / "model" / "vocab.txt", output_dir=home / "run",
      train_file=SAMPLE / "train-v1.1.json", do_train=True,
      num_train_epochs=0.02, max_seq_length=48, max_query_length=16,
      cache_dir=home / "cache"))
  assert result.status == 0, result.err
  command = [
      "bash", str(runners.ROOT / "scripts/trtis/generate_figures.sh"),
      str(home / "model"), "48", "fp32", str(home / "run"), "--batch_sizes=4",
      "--dyn_batching_delays=20", "--engine_counts=1", "--concurrencies=1,4",
      "--measurement_interval=400", "--stability_percentage=400",
      "--max_trials=5", "--max_latency=60000",
      "--run_dir=%s" % (home / "sweep")]
  env = dict(os.environ, BERT_PYTHON=sys.executable, RESULTS_DIR=str(home))
  kept = stopped_once(command, env, home / "sweep")
  done = subprocess.run(command, env=env, stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE, universal_newlines=True,
                        timeout=400)
  assert done.returncode == 0, done.stderr
  assert kept[0].stat().st_mtime_ns == kept[1]
  return home / "sweep", done


def stopped_once(command, env, folder):
  """Ends a sweep behind its first point; returns (its path, its time)."""
  process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE,
                             universal_newlines=True)
  first = folder / "points" / STATIC / "concurrency_1.csv"
  deadline = time.time() + 300
  while not first.exists():
    assert process.poll() is None, process.stderr.read()
    assert time.time() < deadline
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=120)
  assert process.returncode == 143
  # The server does not outlive it.
  assert not processes_of(folder)
  return first, first.stat().st_mtime_ns


def test_real_sweep_leaves_tables_and_pictures(sweep):
  folder, done = sweep
  dynamic = DYNAMIC.replace("2ms", "20ms")
  for name in (STATIC, dynamic):
    assert (folder / (name + ".png")).read_bytes().startswith(PNG)
    with open(str(folder / (name + "_analyzer.csv"))) as stream:
      rows = list(csv.DictReader(stream))
    assert [row["Concurrency"] for row in rows] == ["1", "4"]
    assert "Server Queue" in rows[0]
  assert (folder / "summary.png").read_bytes().startswith(PNG)
  assert done.stdout.splitlines()[-1].startswith("recommended: ")
  found = serving_figures.read_points(str(folder / "points.csv"))
  assert [s.name for s in found] == [STATIC, dynamic]
  for points in found.values():
    assert [p.concurrency for p in points] == [1, 4]
    for one in points:
      parts = sum(getattr(one, part) for part in perf_points.PARTS)
      assert abs(parts - one.latency) <= 0.01 and one.latency > 0
      assert one.throughput > 0 and one.sentences > 0
  assert not processes_of(folder)


def test_real_server_puts_requests_together(sweep):
  """Its own statistics: sentences against executions of the model."""
  folder, _ = sweep
  static, dynamic = serving_figures.read_points(
      str(folder / "points.csv")).values()
  for one in static:
    assert one.batch_size == 4 and one.executed_batch == 4.0
  for one in dynamic:
    assert one.batch_size == 1 and one.executions > 0
  assert dynamic[0].executed_batch == 1.0
  # Four wait for one another for 20 ms, most of the time at least.
  assert 1.5 < dynamic[1].executed_batch <= 4.0
