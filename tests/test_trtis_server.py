"""The real server on a tiny model: answers, wrong requests, batches, its end.

Everything is asked of processes that the launcher starts.
"""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from fused_ops import library
import trtis_models
import trtis_server
from trtis_server import Refused
from utils import ports

OUTPUTS = ("start_logits", "end_logits")
# Answers what it is asked after a second.
SLOW = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:

  def initialize(self, args):
    self.begun = args["model_repository"] + "/begun"

  def execute(self, requests):
    open(self.begun, "w").close()
    time.sleep(1)
    return [pb_utils.InferenceResponse([pb_utils.Tensor(
        "out", pb_utils.get_input_tensor_by_name(r, "in").as_numpy())])
            for r in requests]
"""
SLOW_CONFIG = """
backend: "python"
max_batch_size: 0
input { name: "in" data_type: TYPE_INT32 dims: 1 }
output { name: "out" data_type: TYPE_INT32 dims: 1 }
instance_group { kind: KIND_CPU }
"""


@pytest.fixture(name="models", scope="module")
def _models(tmp_path_factory):
  """One model in batches of up to 8, of two versions, and one that waits."""
  trtis_server.environment("serving")
  folder = tmp_path_factory.mktemp("serving")
  models = trtis_models.make(folder, trtis_dyn_batching_delay=200)
  assert trtis_models.export(
      models, folder / "again", trtis_model_version=2,
      trtis_dyn_batching_delay=200, init_checkpoint=None,
      do_train=True, num_train_epochs=1).status == 0
  return models


@pytest.fixture(name="server", scope="module")
def _server(models):
  with trtis_server.server(models.repository) as started:
    yield started


def expected(models, arrays, version=1):
  """What this process's TensorFlow computes with the SavedModel."""
  folder = models.repository / "bert" / str(version) / "model.savedmodel"
  with tf.Graph().as_default(), tf.Session() as session:
    graph = tf.saved_model.load(session, ["serve"], str(folder))
    signature = graph.signature_def["serving_default"]
    feeds = {signature.inputs[n].name: np.reshape(a, [-1]) if
             n == "unique_ids" else a for n, a in arrays.items()}
    return dict(zip(OUTPUTS, session.run(
        [signature.outputs[n].name for n in OUTPUTS], feeds)))


def same(got, wanted):
  assert sorted(got) == sorted(wanted)
  for name, value in wanted.items():
    assert got[name].shape == value.shape
    np.testing.assert_allclose(
        got[name], value, rtol=0, atol=1e-4 * np.abs(value).max())


def test_answers_are_those_of_tensorflow(server, models):
  arrays = trtis_models.arrays(5)
  wanted = expected(models, arrays)
  same(server.ask(arrays, version="1"), wanted)
  same(server.ask_grpc(arrays, version="1"), wanted)


def test_versions_stand_side_by_side(server, models):
  arrays = trtis_models.arrays(3, seed=1)
  first, second = [expected(models, arrays, v) for v in (1, 2)]
  assert np.abs(first[OUTPUTS[0]] - second[OUTPUTS[0]]).max() > 1e-2
  same(server.ask(arrays, version="1"), first)
  same(server.ask(arrays, version="2"), second)
  same(server.ask(arrays), second)  # unnamed: the newest


def changed(name, value):
  """Inputs of two sequences, the second with a value of `name` changed."""
  arrays = trtis_models.arrays(2)
  arrays[name][1, 2] = value
  return arrays


WRONG = {
    "unknown model": (dict(model="brt"), 404, "unknown model: 'brt'"),
    "unknown version": (dict(version="9"), 404, "version 9"),
    "wrong length": (
        dict(arrays=trtis_models.arrays(1, seq_length=31)), 400,
        "Expected [-1,32], got [1,31]"),
    "wrong type": (dict(datatype="INT64"), 400, "expects 'INT32'"),
    "batch over the maximum": (
        dict(arrays=trtis_models.arrays(9)), 400, "batch-size must be <= 8"),
    "an input left out": (
        dict(arrays={k: v for k, v in trtis_models.arrays(1).items()
                     if k != "input_mask"}), 400, "expected 4 inputs"),
    "id beyond the vocabulary": (
        dict(arrays=changed("input_ids", len(trtis_models.VOCAB))), 400,
        "input_ids holds %d; this model takes 0 to %d" % (
            len(trtis_models.VOCAB), len(trtis_models.VOCAB) - 1)),
    "negative id": (dict(arrays=changed("input_ids", -1)), 400,
                    "input_ids holds -1"),
    "segment": (dict(arrays=changed("segment_ids", 2)), 400,
                "segment_ids holds 2; this model takes 0 to 1"),
    "mask": (dict(arrays=changed("input_mask", 3)), 400,
             "input_mask holds 3; this model takes 0 to 1"),
}


# What one could do harm with: its path, its words and its call over gRPC.
HARM = {
    "the log's file": ("logging", {"log_file": "/nonexistent/log"},
                       "update_log_settings",
                       {"settings": {"log_file": "/nonexistent/log"}}),
    "traces": ("trace/setting", None, "get_trace_settings", {}),
    "another model": ("repository/models/bert/unload", {}, "unload_model",
                      {"model_name": "bert"}),
    "shared memory": ("systemsharedmemory/status", None,
                      "get_system_shared_memory_status", {}),
    "shared memory of a GPU": ("cudasharedmemory/status", None,
                               "get_cuda_shared_memory_status", {})}


def question(case):
  return dict(dict(arrays=trtis_models.arrays(1)), **WRONG[case][0])


@pytest.fixture(name="over_grpc", scope="module")
def _over_grpc(server):
  """{case of WRONG and HARM: what came back over gRPC}, and a right one."""
  calls = {case: ("infer", question(case)) for case in WRONG}
  calls.update({case: harm[2:] for case, harm in HARM.items()})
  calls["right"] = ("infer", dict(arrays=trtis_models.arrays(1)))
  return dict(zip(calls, server.call_grpc(list(calls.values()))))


def refused_with(refused, words):
  assert isinstance(refused, Refused), refused
  assert words in str(refused)
  assert len(str(refused).splitlines()) == 1


@pytest.mark.parametrize("case", sorted(WRONG))
def test_wrong_requests_are_answered_and_the_server_lives(
    server, over_grpc, case):
  _, status, words = WRONG[case]
  with pytest.raises(Refused) as refused:
    server.ask(**question(case))
  refused_with(refused.value, words)
  assert refused.value.status == status
  assert server.ask(trtis_models.arrays(1))
  refused_with(over_grpc[case], words)
  assert over_grpc[case].status == "StatusCode." + {
      400: "INVALID_ARGUMENT", 404: "NOT_FOUND"}[status]
  assert sorted(over_grpc["right"]) == sorted(OUTPUTS)


@pytest.mark.parametrize("case", sorted(HARM))
def test_what_could_do_harm_is_forbidden(server, over_grpc, case):
  with pytest.raises(Refused) as refused:
    server.get(*HARM[case][:2])
  unload = case == "another model"
  assert refused.value.status == (503 if unload else 403)
  refused_with(over_grpc[case], "not allowed" if unload else "restricted")


def test_it_listens_on_loopback_alone(server):
  listeners = server.listeners()
  assert {port for _, port in listeners} == {
      int(url.split(":")[1])
      for url in (server.http_url, server.grpc_url, server.metrics_url)}
  assert all(address.is_loopback for address, _ in listeners), listeners


def at_once(server, questions):
  """Asks all at the same time; returns their answers or refusals in order."""
  answers = [None] * len(questions)
  start = threading.Barrier(len(questions))

  def ask(place):
    start.wait()
    try:
      answers[place] = server.ask(questions[place], version="1")
    except Refused as refused:
      answers[place] = refused

  threads = [threading.Thread(target=ask, args=[i])
             for i in range(len(questions))]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return answers


def test_requests_share_batches_and_get_their_own_answers(server, models):
  questions = [trtis_models.arrays(1 + i % 2, seed=i) for i in range(16)]
  before = server.counts(version="1")
  answers = at_once(server, questions)
  after = server.counts(version="1")
  for question, answer in zip(questions, answers):
    same(answer, expected(models, question))
  assert after[0] - before[0] == 24
  # Three full batches would do.
  assert after[1] - before[1] < 12


@pytest.mark.once
def test_a_wrong_request_does_not_spoil_the_batch(server, models):
  questions = [trtis_models.arrays(2, seed=i) for i in range(4)]
  questions[1] = changed("input_ids", 10 ** 6)
  before = server.counts(version="1")
  answers = at_once(server, questions)
  assert "input_ids holds 1000000" in str(answers.pop(1))
  assert server.counts(version="1")[1] - before[1] < 4  # they were together
  for question, answer in zip(questions[:1] + questions[2:], answers):
    same(answer, expected(models, question))


# -- Models that cannot be served, or not well


def only_model(models, folder):
  """A repository with a copy of version 1 alone; returns (it, version)."""
  repository = folder / "models"
  shutil.copytree(str(models.repository / "bert"), str(repository / "bert"))
  shutil.rmtree(str(repository / "bert" / "2"))
  return repository, repository / "bert" / "1"


def set_library(model, name):
  path = model / "configs" / "cpu.pbtxt"
  path.write_text(path.read_text() + (
      'parameters { key: "fused_ops_library" value { string_value: "%s" } }\n'
      % name))


def no_saved_model(model):
  shutil.rmtree(str(model / "1" / "model.savedmodel"))


def cut_saved_model(model):
  path = model / "1" / "model.savedmodel" / "saved_model.pb"
  path.write_bytes(path.read_bytes()[:1000])


def no_number(model):
  path = model / "configs" / "cpu.pbtxt"
  text, changes = re.subn(
      r'(key: "vocab_size"\s+value \{\s+string_value: )"\d+"', r'\1"many"',
      path.read_text())
  assert changes == 1
  path.write_text(text)


def foreign_kernels(model):
  (model / "1" / "libbert_1.2.3_abc.so").write_bytes(b"")
  set_library(model, "libbert_1.2.3_abc.so")


def no_kernels(model):
  set_library(model, "libbert_%s_abc.so" % tf.__version__)


DAMAGE = {
    no_saved_model: "there is no folder",
    cut_saved_model: "Cannot parse file",
    no_number: "its parameter vocab_size is 'many', not a number",
    foreign_kernels: "are not for this server's TensorFlow: export the model",
    no_kernels: "library of fused operations is not there"}


@pytest.mark.once
def test_a_model_that_cannot_be_loaded_ends_the_start(models, tmp_path):
  """All damage at once: a start takes seconds."""
  repository, version = only_model(models, tmp_path)
  for damage in DAMAGE:
    model = repository / damage.__name__
    shutil.copytree(str(version.parent), str(model))
    for path in (model / "config.pbtxt", model / "configs" / "cpu.pbtxt"):
      path.write_text(path.read_text().replace('"bert"', '"%s"' % model.name))
    damage(model)
  server = trtis_server.Server(repository, tmp_path / "log")
  with server.process.stderr as stream:
    line, = stream.read().splitlines()
  assert server.process.wait(60) == 1
  assert "version 1 not loaded: " in line and "before it was ready" in line
  assert str(tmp_path / "log") in line
  log = server.log.read_text()
  for damage, words in DAMAGE.items():
    start = 'E[^"]*"%s version 1 not loaded: [^"]*' % damage.__name__
    assert re.search(start + re.escape(words), log), damage.__name__
  assert "bert version 1 loaded" in log
  assert not traces(server)


@pytest.mark.once
def test_what_is_not_a_number_is_refused(models, tmp_path):
  repository, version = only_model(models, tmp_path)
  shutil.rmtree(str(version / "model.savedmodel"))
  with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
    inputs = {name: tf.placeholder(tf.int32, shape, name)
              for name, shape in (
                  ("unique_ids", [None]), ("input_ids", [None, 32]),
                  ("input_mask", [None, 32]), ("segment_ids", [None, 32]))}
    logits = tf.cast(inputs["input_mask"], tf.float32)
    # 0/0 where a sequence has no token at all.
    logits /= tf.reduce_sum(logits, -1, True)
    tf.saved_model.simple_save(
        session, str(version / "model.savedmodel"), inputs,
        {name: tf.identity(logits, name) for name in OUTPUTS})
  with trtis_server.server(repository) as server:
    bad, good = trtis_models.arrays(2), trtis_models.arrays(2, seed=1)
    bad["input_mask"][1] = 0
    answers = at_once(server, [bad, good])
    assert answers[0].status == 500
    assert "end_logits is not finite" in str(answers[0])
    assert np.isfinite(answers[1]["start_logits"]).all()


@pytest.mark.skipif(not tf.__version__.startswith("2."),
                    reason="the server's TensorFlow is 2")
def test_kept_kernels_are_loaded(models, tmp_path):
  if library.fault():
    pytest.skip("fused_ops: " + library.fault())
  kept = models._replace(repository=tmp_path / "models")
  result = trtis_models.export(kept, tmp_path / "run", export_fused_ops=True)
  assert result.status == 0, result.err
  arrays = trtis_models.arrays(5)
  with trtis_server.server(kept.repository) as server:
    same(server.ask(arrays), expected(models, arrays))


# -- Start and end


def traces(server):
  """What is left of a server: processes, shared memory, folders."""
  regions = set()
  log = server.log.read_text() if server.log.exists() else ""
  for word in log.replace("/", " ").replace('"', " ").split():
    if word.startswith("bert_trtis_"):
      regions.add(word.strip("_"))
  return server.processes() + [
      str(path) for region in regions for folder in ("/tmp", "/dev/shm")
      for path in pathlib.Path(folder).glob(region + "*")]


def wait_for_no_traces(server):
  deadline = time.time() + 60
  while traces(server):
    assert time.time() < deadline, traces(server)
    time.sleep(0.1)


@pytest.mark.once
def test_a_busy_port_is_one_line(server, models):
  http, grpc = [url.split(":")[1] for url in (server.http_url, server.grpc_url)]
  for flag, port in (("http_port", http), ("grpc_port", grpc)):
    other = trtis_server.Server(models.repository, str(models.place / "log"),
                                **{flag: port})
    with other.process.stderr as stream:
      line, = stream.read().splitlines()
    assert other.process.wait(60) == 1
    assert "port %s (--%s) is taken" % (port, flag) in line
  assert server.ask(trtis_models.arrays(1))


@pytest.mark.once
@pytest.mark.parametrize("options, words", [
    (dict(http_port=8000, grpc_port=8000), "are both 8000"),
    (dict(http_port=70000), "--http_port is 70000"),
    (dict(host="192.0.2.1"), "--http_port: cannot listen on 192.0.2.1"),
    (dict(host="no.such.host.invalid"), "is no IPv4 address of this machine"),
    (dict(host="a..b"), "--host: a..b is no IPv4 address"),
    (dict(host="::1"), "--host: ::1 is no IPv4 address of this machine"),
    (dict(repository="/nonexistent"), "there is no folder /nonexistent"),
    (dict(repository=str(trtis_server.ROOT / "tests")), "holds no model"),
    (dict(log="/proc/x/y"), "--log: cannot write to /proc/x/y")])
def test_wrong_options_are_one_line(tmp_path, options, words):
  trtis_server.environment("serving")
  options = dict(dict(repository=tmp_path, log=tmp_path / "log"), **options)
  (tmp_path / "bert").mkdir()
  (tmp_path / "bert" / "config.pbtxt").write_text("")
  server = trtis_server.Server(**options)
  with server.process.stderr as stream:
    line, = stream.read().splitlines()
  assert server.process.wait(60) == 1
  assert words in line


@pytest.mark.once
@pytest.mark.parametrize("host, warned", [
    ("127.0.0.2", False), ("0.0.0.0", True)])
def test_a_warning_tells_of_what_others_reach(tmp_path, host, warned):
  """Told before the server sees that its one model is none."""
  config = tmp_path / "models" / "bert" / "config.pbtxt"
  config.parent.mkdir(parents=True)
  config.write_text("nonsense: {")
  trtis_server.environment("serving")
  server = trtis_server.Server(tmp_path / "models", tmp_path / "log", host=host)
  with server.process.stderr as stream:
    lines = stream.read().splitlines()
  assert server.process.wait(60) == 1
  end = lines.pop()
  # The repository as the user names it, not by the launcher's link.
  assert "before it was ready: Poll failed for" in end and str(config) in end
  assert ["warning: listening on 0.0.0.0" in line for line in lines] == (
      [True] if warned else [])


@pytest.fixture(name="slow")
def _slow(tmp_path):
  """A repository of a model that takes a second."""
  folder = tmp_path / "models" / "slow"
  (folder / "1").mkdir(parents=True)
  (folder / "1" / "model.py").write_text(SLOW)
  (folder / "config.pbtxt").write_text(SLOW_CONFIG)
  return folder.parent


def ask_slow(server, answers):
  body = {"inputs": [{"name": "in", "datatype": "INT32", "shape": [1],
                      "data": [7]}]}
  with contextlib.suppress(OSError, Refused):
    answers.append(server.get("models/slow/infer", body)["outputs"][0]["data"])


@pytest.mark.once
@pytest.mark.parametrize("number, finishes", [
    (signal.SIGINT, True), (signal.SIGKILL, False)])
def test_nothing_is_left_whatever_ends_the_launcher(slow, number, finishes):
  with trtis_server.server(slow) as server:
    assert len(server.processes()) == 2
    answers = []
    asking = threading.Thread(target=ask_slow, args=[server, answers])
    asking.start()
    deadline = time.time() + 60
    while not (slow / "slow" / "begun").exists():
      assert time.time() < deadline
      time.sleep(0.01)
    status = server.stop(number)
    asking.join()
    assert status == (0 if finishes else -signal.SIGKILL)
    if finishes:
      assert answers == [[7]]  # what was under way is answered
    wait_for_no_traces(server)


@pytest.mark.once
def test_a_server_that_is_killed_ends_the_launcher(slow):
  with trtis_server.server(slow) as server:
    os.kill(server.processes()[0], signal.SIGKILL)
    line = server.process.stderr.read().splitlines()[-1]
    assert server.process.wait(60) == 1
    assert "the server has ended with status -9 by itself" in line
    wait_for_no_traces(server)


@pytest.mark.once
def test_a_name_is_an_address_and_nohup_counts(slow):
  """A host by name; what is ignored at the start stays so."""
  ignored = (signal.SIGHUP, signal.SIGINT)
  with trtis_server.server(slow, host="localhost", ignored=ignored) as server:
    assert sorted((str(address), "127.0.0.1:%d" % port)
                  for address, port in server.listeners()) == sorted(
        ("127.0.0.1", url) for url in (server.http_url, server.grpc_url,
                                       server.metrics_url))
    for number in ignored:
      server.process.send_signal(number)
    assert server.is_ready() and server.process.poll() is None
    status = pathlib.Path("/proc/%d/status" % server.pid).read_text()
    mask = int(re.search(r"SigIgn:\s*(\w+)", status).group(1), 16)
    assert all(mask >> (number - 1) & 1 for number in ignored)
    assert server.stop() == 0


# The launcher, with a server that takes a name for HTTP and listens elsewhere.
ELSEWHERE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import launch_local
launch_local.SILENCE = launch_local.TELL = 0
words = launch_local.command
launch_local.command = lambda *a: [
    w.replace("--http-address=127.0.0.1", "--http-address=localhost")
    for w in words(*a)]
sys.exit(launch_local.main())
"""


@pytest.mark.once
def test_a_server_that_does_not_answer_ends_the_start(slow, tmp_path):
  words = [str(trtis_server.environment("serving") / "bin" / "python"), "-c",
           ELSEWHERE, str(trtis_server.ROOT / "serving"), "--repository",
           str(slow), "--log", str(tmp_path / "log")]
  found = ports.free(3)
  for name, port in zip(("http", "grpc", "metrics"), found):
    words += ["--%s_port" % name, str(port)]
  done = subprocess.run(words, stderr=subprocess.PIPE, universal_newlines=True,
                        stdin=subprocess.DEVNULL, timeout=120)
  assert done.returncode == 1
  waiting, end = done.stderr.splitlines()
  assert "not ready after 0 s, still waiting" in waiting
  assert ("is not ready at 127.0.0.1 port %d after 0 s (log: %s)"
          % (found[0], tmp_path / "log")) in end
