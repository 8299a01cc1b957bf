"""Answers through the real server are those of run_squad.py --do_predict."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time

import numpy as np
import pytest

import runners
from test_run_pretraining import CONFIG
from trtis_server import environment
from trtis_server import ROOT
from trtis_server import server
from utils import model_config

SAMPLE = ROOT / "data" / "sample"
SEQ_LENGTH = 64
# The model of the exports that serving computes, which waits as long as a file
# is there.
HELD = """
import importlib.util
import os
import time

spec = importlib.util.spec_from_file_location("served", {served!r})
served = importlib.util.module_from_spec(spec)
spec.loader.exec_module(served)


class TritonPythonModel(served.TritonPythonModel):

  def run(self, arrays):
    while os.path.exists({gate!r}):
      time.sleep(.01)
    return super().run(arrays)
"""
# Apart by no more than this, two scores may change places.
TIE = 2e-4


def settings(folder, output, **changes):
  return dict(dict(
      bert_config_file=folder / "config.json", output_dir=output,
      vocab_file=SAMPLE / "vocab.txt", cache_dir=folder / "cache",
      max_seq_length=SEQ_LENGTH, doc_stride=24, max_query_length=16), **changes)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
  """Folder with a run that has trained, predicted and exported: "tuned".

  The models are "bert", whose batches form at the server, and "alone", which
  takes each request by itself.
  """
  folder = tmp_path_factory.mktemp("answers")
  (folder / "config.json").write_text(json.dumps(dict(
      CONFIG, vocab_size=346, max_position_embeddings=SEQ_LENGTH)))
  export = dict(export_trtis=True, trtis_max_batch_size=8,
                trtis_model_repository=folder / "models")
  done = runners.call("run_squad", settings(
      folder, folder / "tuned", do_train=True, train_batch_size=16,
      train_file=SAMPLE / "train-v1.1.json", learning_rate=1e-3,
      num_train_epochs=.2, do_predict=True, predict_batch_size=16,
      predict_file=SAMPLE / "dev-v1.1.json", trtis_dyn_batching_delay=2,
      **export))
  assert done.status == 0, done.err
  done = runners.call("run_squad", settings(
      folder, folder / "negative", do_predict=True,
      version_2_with_negative=True,
      init_checkpoint=folder / "tuned", trtis_model_name="alone",
      predict_file=SAMPLE / "dev-v2.0.json", **export))
  assert done.status == 0, done.err
  return folder


@pytest.fixture(scope="module")
def up(tuned):
  with server(tuned / "models") as started:
    yield started


def ask(folder, output, url, **changes):
  """Runs the client to its end."""
  values = settings(
      folder, output, **dict(dict(
          predict_file=SAMPLE / "dev-v1.1.json", trtis_server_url=url),
                             **changes))
  del values["bert_config_file"]
  return subprocess.run(
      [str(environment("client") / "bin" / "python"),
       str(ROOT / "run_squad_trtis_client.py")] + runners.arguments(values),
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
      timeout=300)


def read(folder, name):
  return json.loads((folder / name).read_text())


def check_same(output, reference, version="1.1"):
  """Same answers and scores; n-best lists in the same order, but for ties."""
  assert read(output, "predictions.json") == read(
      reference, "predictions.json")
  # Among v2.0's scores are thresholds, which are differences of logits.
  assert read(output, "scores.json") == pytest.approx(
      read(reference, "scores.json"), rel=0, abs=TIE)
  found, expected = [read(folder, "nbest_predictions.json")
                     for folder in (output, reference)]
  assert list(found) == list(expected)
  for name in expected:
    # Where two scores are that close, either may come first, or be the last.
    last = sum(expected[name][-1][part] for part in ("start_logit",
                                                     "end_logit"))
    sure = [[e for e in entries if e["start_logit"] + e["end_logit"]
             > last + TIE] for entries in (found[name], expected[name])]
    texts = [[e["text"] for e in entries] for entries in sure]
    assert sorted(texts[0]) == sorted(texts[1]), name
    logits = {e["text"]: (e["start_logit"], e["end_logit"]) for e in sure[1]}
    scores = []
    for entry in sure[0]:
      np.testing.assert_allclose(
          (entry["start_logit"], entry["end_logit"]), logits[entry["text"]],
          atol=1e-4, rtol=0)
      scores.append(sum(logits[entry["text"]]))
    assert all(a > b - TIE for a, b in zip(scores, scores[1:])), name
  if version == "2.0":
    odds = [read(folder, "null_odds.json") for folder in (output, reference)]
    assert list(odds[0]) == list(odds[1])
    np.testing.assert_allclose(list(odds[0].values()), list(odds[1].values()),
                               atol=TIE, rtol=0)


@pytest.mark.parametrize("protocol,model,batch,concurrency", [
    ("grpc", "bert", 1, 16), ("grpc", "bert", 8, 2), ("grpc", "alone", 5, 4),
    ("http", "bert", 3, 8), ("http", "alone", 8, 1)])
def test_answers_are_those_of_run_squad(tuned, up, tmp_path, protocol, model,
                                        batch, concurrency):
  url = up.grpc_url if protocol == "grpc" else up.http_url
  done = ask(tuned, tmp_path, url, protocol=protocol, trtis_model_name=model,
             batch_size=batch, concurrency=concurrency)
  assert done.returncode == 0, done.stderr
  check_same(tmp_path, tuned / "tuned")
  assert json.loads(done.stdout.splitlines()[-1]) == read(
      tuned / "tuned", "scores.json")


def test_answers_of_questions_that_may_have_none(tuned, up, tmp_path):
  done = ask(tuned, tmp_path, up.grpc_url, version_2_with_negative=True,
             predict_file=SAMPLE / "dev-v2.0.json")
  assert done.returncode == 0, done.stderr
  check_same(tmp_path, tuned / "negative", "2.0")


def test_wrong_words_leave_the_server_alive(tuned, up, tmp_path):
  for changes, words in [
      (dict(trtis_model_name="other"), "does not serve it"),
      (dict(trtis_model_version=9), "its models: alone 1, bert 1"),
      (dict(batch_size=9), "takes at most 8 features"),
      (dict(trtis_server_url=up.http_url), "no server answers there over grpc"),
      (dict(trtis_server_url=up.grpc_url, protocol="http"),
       "no server answers there over http")]:
    done = ask(tuned, tmp_path, up.grpc_url, **changes)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and len(lines) == 1, done.stderr
    assert lines[0].startswith("ERROR: ") and words in lines[0]
  assert up.is_ready()


class Relay:
  """Hands bytes on to a server; `heed` gets its words, True ends them."""

  def __init__(self, url, heed):
    self._to, self._heed = url.split(":"), heed
    self._lock = threading.Lock()
    self._door = socket.socket()
    self._door.bind(("127.0.0.1", 0))
    self._door.listen(64)
    self.url = "127.0.0.1:%d" % self._door.getsockname()[1]
    threading.Thread(target=self._accept, daemon=True).start()

  def _accept(self):
    with contextlib.suppress(OSError):
      while True:
        client = self._door.accept()[0]
        try:
          behind = socket.create_connection((self._to[0], int(self._to[1])))
        except OSError:
          client.close()
          continue
        for pair in ((client, behind, False), (behind, client, True)):
          threading.Thread(target=self._copy, args=pair, daemon=True).start()

  def _copy(self, source, target, heeded):
    with contextlib.suppress(OSError):
      while True:
        data = source.recv(4096)
        if not data:
          break
        if heeded:
          with self._lock:
            if self._heed(data):
              break
        target.sendall(data)
    for end in (source, target):
      with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)

  def close(self):
    self._door.close()


def test_a_server_killed_under_way(tuned, up, tmp_path):
  """The questions without an answer are told, and alone asked again."""
  with server(tuned / "models", log=tmp_path / "log") as doomed:

    said = []

    def kill(data):
      said.append(len(data))
      # A window's logits are 512 bytes, all of them above 130,000.
      if sum(said) <= 50000:
        return False
      for process in doomed.processes():
        with contextlib.suppress(ProcessLookupError):
          os.kill(process, signal.SIGKILL)
      return True

    relay = Relay(doomed.grpc_url, kill)
    done = ask(tuned, tmp_path, relay.url, batch_size=2, concurrency=3,
               max_retries=2)
    relay.close()
  lines = [l for l in done.stderr.splitlines() if l.startswith("ERROR: ")]
  assert done.returncode == 69 and len(lines) == 1, done.stderr
  missing = read(tmp_path, "unanswered.json")["questions"]
  count = len(read(tuned / "tuned", "predictions.json"))
  assert 0 < len(missing) < count
  assert "%d of %d questions are unanswered" % (len(missing), count) in lines[0]
  with np.load(str(tmp_path / "logits.npz")) as kept:
    known = len(kept["rows"])
  before = up.counts()[0]
  done = ask(tuned, tmp_path, up.grpc_url)
  assert done.returncode == 0, done.stderr
  assert "logits of %d of " % known in done.stderr
  features = int(done.stderr.split("logits of %d of " % known)[1].split()[0])
  assert up.counts()[0] - before == features - known
  check_same(tmp_path, tuned / "tuned")
  assert not (tmp_path / "unanswered.json").exists()


@pytest.fixture(scope="module")
def narrow(tuned):
  """(server, file) of "bert" with room for one waiting request.

  As long as the file is there, nothing is computed.
  """
  gate = tuned / "gate"
  model = tuned / "narrow" / "bert"
  shutil.copytree(str(tuned / "models" / "bert"), str(model))
  (model / "1" / "model.py").write_text(HELD.format(
      served=str(ROOT / "serving" / "tensorflow" / "model.py"),
      gate=str(gate)))
  path = model / "configs" / "cpu.pbtxt"
  text = model_config.changed(path.read_text(), max_queue_size=1)
  platform = 'platform: "tensorflow_savedmodel"'
  assert platform in text
  path.write_text(text.replace(platform, 'backend: "python"'))
  with server(tuned / "narrow") as started:
    yield started, gate


def ask_all_at_once(tuned, narrow, output, protocol, **changes):
  """Runs a client of 32 requests at a time.

  Nothing is computed before the server has refused one of them.
  """
  started, gate = narrow

  def heed(data):
    if b"maximum queue size" in data and gate.exists():
      gate.unlink()

  gate.touch()
  relay = Relay(getattr(started, protocol + "_url"), heed)
  try:
    return ask(tuned, output, relay.url, protocol=protocol, batch_size=8,
               concurrency=32, **changes)
  finally:
    relay.close()
    if gate.exists():
      gate.unlink()


@pytest.mark.once
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_overload(tuned, narrow, tmp_path, protocol):
  """A full queue is told, not waited for; with retries all is answered."""
  done = ask_all_at_once(tuned, narrow, tmp_path, protocol, max_retries=0)
  assert done.returncode == 69, done.stderr
  line, = [l for l in done.stderr.splitlines() if l.startswith("ERROR: ")]
  assert "questions are unanswered" in line
  assert "the server's queue is full" in line and "--max_retries" in line
  # It is alive, and asked for the rest it has it all.
  done = ask_all_at_once(tuned, narrow, tmp_path, protocol, max_retries=200)
  assert done.returncode == 0, done.stderr
  check_same(tmp_path, tuned / "tuned")
  rows = [json.loads(row) for row in (
      tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert any(row.get("retries", 0) > 0 for row in rows)


@pytest.mark.parametrize("clients,seconds,growth", [
    # Too short for a word on memory: any growth will do.
    (16, 3, 1e6), pytest.param(64, 120, 5, marks=pytest.mark.slow)])
@pytest.mark.once
def test_load(tuned, up, clients, seconds, growth):
  """Each request is asked and answered once, and over two minutes memory stays.

  By the server's own count, which also sees what is asked twice.
  """
  before = up.counts()[0]
  done = subprocess.run(
      [str(environment("client") / "bin" / "python"),
       str(ROOT / "benchmarks" / "serving_load.py")] + runners.arguments(dict(
           trtis_server_url=up.grpc_url, vocab_file=SAMPLE / "vocab.txt",
           predict_file=SAMPLE / "dev-v1.1.json", doc_stride=24,
           max_query_length=16, clients=clients, seconds=seconds,
           server_pid=up.processes()[0], memory_growth=growth)),
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
      timeout=600)
  assert done.returncode == 0, done.stdout + done.stderr
  line = done.stdout.splitlines()[-1]
  assert "; 0 lost, 0 wrong; memory " in line, line
  asked = int(line.split(" s: ")[1].split()[0])
  first = int(done.stderr.split("windows that differ, of ")[1].split()[0])
  assert asked > clients
  # The server counts a request a moment after its reply.
  deadline = time.time() + 30
  while up.counts()[0] < before + first + asked and time.time() < deadline:
    time.sleep(0.05)
  assert up.counts()[0] == before + first + asked
