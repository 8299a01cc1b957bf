"""run_trtis.sh end to end on the sample: export, server, client, scores."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

import processes
import runners
import trtis_server

ROOT = pathlib.Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "sample"
SCRIPT = str(ROOT / "scripts" / "trtis" / "run_trtis.sh")


@pytest.fixture(name="trained", scope="module")
def _trained(tmp_path_factory):
  """A run on the sample that has trained for a moment and has answered.

  Its sequences are so short that the scripts have to choose a
  max_query_length: half of them.
  """
  for name in ("serving", "client"):
    trtis_server.environment(name)
  output = tmp_path_factory.mktemp("trained")
  questions = json.loads((SAMPLE / "dev-v1.1.json").read_text())
  for article in questions["data"]:
    del article["paragraphs"][2:]
    for question in article["paragraphs"][0]["qas"]:
      question["question"] *= 9  # is cut
  (output / "dev.json").write_text(json.dumps(questions))
  result = runners.call("run_squad", {
      "vocab_file": SAMPLE / "vocab.txt",
      "bert_config_file": SAMPLE / "bert_config.json",
      "train_file": SAMPLE / "train-v1.1.json",
      "predict_file": output / "dev.json", "output_dir": output / "run",
      "cache_dir": output / "cache", "do_train": True, "do_predict": True,
      "num_train_epochs": 0.1, "learning_rate": 1e-3, "max_seq_length": 64,
      "doc_stride": 24, "max_query_length": 32, "seed": 3})
  assert result.status == 0, result.err
  return output, result.out.splitlines()[-1]


@pytest.fixture(name="exported", scope="module")
def _exported(trained):
  """The repository of an export of it, through export_model.sh."""
  results = trained[0] / "exported"
  exported = subprocess.run(
      ["bash", str(ROOT / "scripts" / "trtis" / "export_model.sh"),
       str(trained[0] / "run"), "4", "fp32", "false", "64", "24", str(SAMPLE)],
      stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
      universal_newlines=True, env=variables(results))
  assert exported.returncode == 0, exported.stderr
  return results / "trtis_models"


def words(trained, *more):
  return ["bash", SCRIPT, str(trained[0] / "run"), "4", "fp16", "true", "64",
          "24", str(SAMPLE), "--predict_file", str(trained[0] / "dev.json"),
          *more]


def variables(results):
  """The environment of a user whose stack is that of this test."""
  stack = "tf1" if sys.version_info < (3, 9) else "tf2"
  return dict(os.environ, RESULTS_DIR=str(results), BERT_STACK=stack)


def run(trained, results, *more):
  return subprocess.run(
      words(trained, *more), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, universal_newlines=True, timeout=300,
      env=variables(results))


def only(results, pattern):
  found, = results.glob(pattern)
  return found


def still_serving(results):
  """Ids of the launcher and its watchdog that serve a folder's models."""
  found = []
  for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      line = (folder / "cmdline").read_text()
    except OSError:
      continue
    if (str(results) in line and "launch_local.py" in line
        and processes.running(int(folder.name))):
      found.append(int(folder.name))
  return found


def wait_for_no_server(results):
  """Waits until they have ended: the watchdog does so a moment later."""
  deadline = time.time() + 60
  while still_serving(results):
    assert time.time() < deadline, still_serving(results)
    time.sleep(0.05)


def test_answers_are_those_of_run_squad(trained, tmp_path):
  done = run(trained, tmp_path, "--trtis_dyn_batching_delay", "5",
             "--trtis_engine_count", "2")
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1] == trained[1]
  client = only(tmp_path, "trtis_client_*")
  got, wanted = [json.loads((folder / "predictions.json").read_text())
                 for folder in (client, trained[0] / "run")]
  assert list(got.items()) == list(wanted.items())
  config = (tmp_path / "trtis_models" / "bert" / "config.pbtxt").read_text()
  assert "max_batch_size: 4" in config and "5000" in config
  assert "auto_mixed_precision" in config
  wait_for_no_server(tmp_path)


@pytest.mark.once
def test_serves_what_is_there_over_http(trained, exported, tmp_path):
  missing = run(trained, tmp_path, "--trtis_export_model", "false",
                "--max_query_length", "32")
  assert missing.returncode == 1
  line, = missing.stderr.splitlines()
  assert "there is no model in %s" % (tmp_path / "trtis_models") in line
  there = "--trtis_model_repository=%s" % exported
  done = run(trained, tmp_path, there, "--trtis_export_model", "False",
             "--protocol", "http", "--max_query_length", "32",
             "--concurrency", "2")
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1] == trained[1]
  assert not list(tmp_path.glob("trtis_export_*"))
  # What was exported before is not written over unless that is said.
  again = run(trained, tmp_path, there)
  assert again.returncode == 1
  assert "trtis_model_overwrite" in again.stderr


@pytest.mark.once
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_after_an_end_from_outside(
    trained, exported, tmp_path, number):
  # A folder of its own, by which its processes are known.
  repository = tmp_path / "trtis_models"
  repository.symlink_to(exported)
  with open(str(tmp_path / "said"), "w") as stream:
    process = subprocess.Popen(
        words(trained, "--trtis_export_model=false"), stdin=subprocess.DEVNULL,
        stdout=stream, stderr=stream, env=variables(tmp_path),
        start_new_session=True)
  deadline = time.time() + 120
  while "ready: " not in (tmp_path / "said").read_text():
    assert process.poll() is None and time.time() < deadline, (
        tmp_path / "said").read_text()
    time.sleep(0.05)
  server = int(re.search(r"ready: .*\(process (\d+)\)",
                         (tmp_path / "said").read_text()).group(1))
  assert processes.running(server)
  process.send_signal(number)
  status = process.wait(60)
  assert status == (128 + number if number == signal.SIGTERM else -number)
  wait_for_no_server(tmp_path)
  assert not processes.running(server)


@pytest.mark.once
def test_a_model_that_does_not_load_ends_it(trained, tmp_path):
  model = tmp_path / "trtis_models" / "bert"
  (model / "1").mkdir(parents=True)
  (model / "config.pbtxt").write_text('name: "bert"\nplatform: "nonsense"\n')
  done = run(trained, tmp_path, "--trtis_export_model", "false")
  assert done.returncode == 1 and done.stdout == ""
  assert "the server has ended" in done.stderr
  assert "the last lines of %s" % tmp_path in done.stderr
  assert not list(tmp_path.glob("trtis_client_*"))


def test_a_dry_run_tells_the_steps(trained, tmp_path):
  done = run(trained, tmp_path, "--dry_run")
  assert done.returncode == 0, done.stderr
  steps = [line for line in done.stdout.splitlines() if line[0] != "#"]
  for step, program in zip(steps, ("run_squad.py", "launch_local.py",
                                   "run_squad_trtis_client.py")):
    assert program in step
  assert len(steps) == 3 and not list(tmp_path.iterdir())
