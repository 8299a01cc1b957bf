"""The load of many clients: what it refuses, counts and tells.

Stand-ins for the server; a real one is loaded in test_trtis_answers.py.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import serving_load
from conftest import ROOT
from trtis_stand_in import logits_of
from utils import serving_client
from utils import serving_requests
from utils.errors import PeerError
from utils.errors import UserError

pytestmark = pytest.mark.once
FILES = ["--vocab_file=v.txt", "--predict_file=q.json"]


def load_of(*words):
  """(options, a Load of two windows)."""
  options = serving_load.parse(FILES + list(words))
  return options, serving_load.Load(options, [
      serving_load.Window({"input_ids": ids}, logits_of(ids))
      for ids in (np.array([[1, 2]]), np.array([[3, 4]]))])


def answered(load, count):
  """Has a Load ask `count` times and get the right replies."""
  jobs = load.jobs()
  for number in range(count):
    load.take(number, logits_of(next(jobs)["input_ids"]))


# --- what it refuses ---------------------------------------------------------


@pytest.mark.parametrize("word", [
    "--clients=0", "--clients=-1", "--windows=0", "--windows=1",
    "--seconds=0", "--seconds=nan", "--request_timeout=0", "--server_pid=0",
    "--server_pid=", "--memory_growth=-1", "--doc_stride=0",
    "--max_query_length=0", "--trtis_model_version=x"])
def test_values_that_make_no_load(capsys, word):
  with pytest.raises(SystemExit) as end:
    serving_load.parse(FILES + [word])
  assert end.value.code == 2
  assert "argument %s: invalid" % word.split("=")[0] in capsys.readouterr().err


def test_a_process_that_is_not_there():
  gone = subprocess.Popen([sys.executable, "-c", ""])
  gone.wait()
  assert serving_load.memory_of(gone.pid) == 0
  done = subprocess.run(
      [sys.executable, str(ROOT / "benchmarks" / "serving_load.py")] + FILES
      + ["--server_pid=%d" % gone.pid], stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, universal_newlines=True)
  assert done.returncode == 1
  assert done.stderr.startswith(
      "ERROR: --server_pid=%d: there is no such process" % gone.pid)
  assert done.stderr.count("\n") == 1


class Model:
  """A served model whose sequences have any length."""
  name, seq_length, vocab_sha256, do_lower_case = "bert", None, None, None


def test_a_model_of_any_length(tmp_path):
  for name in ("v.txt", "q.json"):
    (tmp_path / name).write_text("[UNK]\n")
  options = serving_load.parse(["--vocab_file=%s" % (tmp_path / "v.txt"),
                                "--predict_file=%s" % (tmp_path / "q.json")])
  with pytest.raises(UserError, match="bert takes sequences of any length"):
    serving_load._features(options, Model)


@pytest.mark.parametrize("fault", [
    serving_client.Passing, serving_client.Refused, serving_client.BadReply])
def test_a_server_that_does_not_answer_the_first_window(monkeypatch, fault):
  class Connection:
    """To a server that is busy."""

    def infer(self, *unused):
      raise fault("the queue is full")

  monkeypatch.setattr(serving_load.serving_answers, "inputs_of",
                      lambda *unused: {})
  with pytest.raises(PeerError, match="window 0, .*the queue is full"):
    serving_load.windows_of(Connection(), Model, [1, 2], 2)


# --- what it finds -----------------------------------------------------------


def tell(capsys, options, load, outcome=None):
  """(exit status, the closing line)."""
  status = serving_load.tell(
      options, load, outcome or serving_requests.Outcome(), 2.0)
  return status, capsys.readouterr().out


def test_all_is_well(capsys):
  options, load = load_of()
  answered(load, 5)
  status, line = tell(capsys, options, load)
  assert status == 0 and "5 requests" in line and "; 0 lost, 0 wrong\n" in line


def test_a_lost_request(capsys):
  options, load = load_of()
  answered(load, 5)
  next(load.jobs())
  outcome = serving_requests.Outcome()
  outcome.failed[5] = "no connection"
  status, line = tell(capsys, options, load, outcome)
  assert status == 1 and "; 1 lost, 0 wrong; the first loss: no conn" in line


def test_a_reply_to_another_request(capsys):
  options, load = load_of()
  answered(load, 5)
  next(load.jobs())
  load.take(5, logits_of(np.array([[1, 2]])))   # window 0's, not window 1's
  status, line = tell(capsys, options, load)
  assert status == 1 and "; 0 lost, 1 wrong" in line


@pytest.mark.parametrize("last, status, said", [
    (103, 0, "+3.00 %"), (106, 1, "+6.00 %"), (90, 0, "-10.00 %")])
def test_memory_that_grows(capsys, last, status, said):
  """By the second quarter and the last; 5 per cent may pass."""
  options, load = load_of("--server_pid=1")
  answered(load, 1)
  load.memory = [1e6] * 2 + [100e6] * 2 + [500e6] * 2 + [last * 1e6] * 2
  found, line = tell(capsys, options, load)
  assert found == status
  assert "memory 100.0 to %.1f MB (%s)" % (last, said) in line


def test_memory_of_a_process_and_its_children():
  code = ("import subprocess, sys; b = bytearray(%d << 20); "
          "%s; print(len(b), flush=True); sys.stdin.read()")
  child = [sys.executable, "-c", code % (64, "pass")]
  parent = code % (32, "subprocess.Popen(%r)" % child)
  process = subprocess.Popen([sys.executable, "-c", parent],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
  try:
    for _ in range(2):
      process.stdout.readline()
    found = serving_load.memory_of(process.pid)
  finally:
    process.communicate()
  assert 96 << 20 < found < 300 << 20
  _, load = load_of("--server_pid=%d" % os.getpid())
  load.look()
  load.look()   # too early
  (mine,) = load.memory
  assert mine > 1 << 20


def test_a_server_that_has_ended_has_no_memory(capsys):
  gone = subprocess.Popen([sys.executable, "-c", ""])
  gone.wait()
  options, load = load_of("--server_pid=%d" % gone.pid)
  answered(load, 5)
  load.look()
  assert load.memory == []
  status, line = tell(capsys, options, load)
  assert status == 0 and "memory not known" in line
