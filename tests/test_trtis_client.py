"""The client of a server: faults, retries, what it keeps, wrong input.

The server is a stand-in which misbehaves as told; test_trtis_answers.py asks
the real one.
"""

import collections
import json
import os
import signal
import subprocess
import threading

import numpy as np
import pytest

import run_squad_trtis_client
from test_run_squad import dataset
from test_run_squad import VOCAB
from trtis_server import environment
from trtis_server import ROOT
from trtis_stand_in import config
from trtis_stand_in import logits_of
from trtis_stand_in import stand_in
from utils import files
from utils import ports
from utils import serving_answers
from utils import serving_model
from utils import squad_task

pytestmark = pytest.mark.once
SEQ_LENGTH, QUESTIONS = 32, 11
FIRST = 1000000000  # number of the first feature
ANSWERS = ("predictions.json", "nbest_predictions.json")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """Folder with vocabulary and questions, one feature each."""
  folder = tmp_path_factory.mktemp("client")
  (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
  (folder / "dev.json").write_text(json.dumps(dataset(QUESTIONS)))
  return folder


@pytest.fixture
def server():
  with stand_in(config(SEQ_LENGTH)) as started:
    yield started


def flags(place, server, output, **changes):
  values = dict(
      trtis_server_url=server.url, protocol="http", output_dir=output,
      vocab_file=place / "vocab.txt", predict_file=place / "dev.json",
      cache_dir=place / "cache", doc_stride=8, max_query_length=8, batch_size=2,
      concurrency=3, max_retries=2, request_timeout=60)
  values.update(changes)
  return ["--%s=%s" % item for item in sorted(values.items())
          if item[1] is not None]


def command(*arguments):
  return [str(environment("client") / "bin" / "python"),
          str(ROOT / "run_squad_trtis_client.py")] + list(arguments)


def client(place, server, output, stdin="", **changes):
  """Runs the client to its end."""
  return subprocess.run(
      command(*flags(place, server, output, **changes)), input=stdin,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
      timeout=120)


def error(done, status):
  """The one line that a user sees."""
  lines = [l for l in done.stderr.splitlines() if l.startswith("ERROR: ")]
  assert done.returncode == status and len(lines) == 1, done.stderr
  assert "Traceback" not in done.stderr
  return lines[0]


def unanswered(output):
  found = json.loads((output / "unanswered.json").read_text())
  return [q["id"] for q in found["questions"]], found["reason"]


Settings = collections.namedtuple("Settings", (
    "vocab_file do_lower_case max_seq_length doc_stride max_query_length "
    "version_2_with_negative cache_dir n_best_size max_answer_length "
    "null_score_diff_threshold verbose_logging output_dir predict_file"))


@pytest.fixture(scope="module")
def expected(place):
  """{file: bytes} of the answers to the stand-in's logits, made here."""
  output = place / "expected"
  settings = Settings(str(place / "vocab.txt"), True, SEQ_LENGTH, 8, 8, False,
                      None, 20, 30, 0.0, False, str(output),
                      str(place / "dev.json"))
  tokenizer = squad_task.load_tokenizer(settings.vocab_file, True)
  examples, features = squad_task.load_features(
      settings, tokenizer, settings.predict_file, False)
  assert len(features) == QUESTIONS  # what the tests count with
  logits = logits_of(features.input_ids)
  squad_task.write_answers(settings, squad_task.answer(
      settings, examples, features,
      (logits["start_logits"], logits["end_logits"]), tokenizer))
  return {name: (output / name).read_bytes() for name in ANSWERS}


def check_answers(output, expected):
  for name in ANSWERS:
    assert (output / name).read_bytes() == expected[name]
  assert not (output / "logits.npz").exists()
  assert not (output / "unanswered.json").exists()


def row(output):
  [found] = [r for r in map(json.loads, (output / "metrics.jsonl").open())
             if r["kind"] == "predict"][-1:]
  return found


# --- answers -----------------------------------------------------------------


def test_answers_scores_and_figures(place, server, tmp_path, expected):
  done = client(place, server, tmp_path)
  assert done.returncode == 0, done.stderr
  check_answers(tmp_path, expected)
  last = json.loads(done.stdout.splitlines()[-1])
  assert set(last) == {"exact_match", "f1"}
  assert json.loads((tmp_path / "scores.json").read_text()) == last
  assert "exact_match = " in (tmp_path / "eval_results.txt").read_text()
  assert "Inference Performance = " in done.stderr
  found = row(tmp_path)
  assert found["sentences"] == QUESTIONS and found["requests"] == 6
  assert found["retries"] == 0
  # No reply counts as a start-up that the rate leaves out.
  assert found["sentences_per_sec"] * (found["seconds"] - .0006) <= QUESTIONS
  assert list(found["latency_ms"]) == ["average", "50%", "90%", "95%", "99%",
                                       "100%"]
  assert sorted(map(len, (a["input_ids"] for a in server.requests))) == [
      1, 2, 2, 2, 2, 2]
  assert server.asked() == list(range(FIRST, FIRST + QUESTIONS))
  for arrays in server.requests:
    assert arrays["unique_ids"].shape == (len(arrays["input_ids"]), 1)


def test_as_many_in_flight_as_told(place, server, tmp_path, expected):
  met = threading.Barrier(3)

  def behave(handler, request, arrays, number):
    met.wait(60)  # which only three at a time get through
    return True
  server.behave = behave
  done = client(place, server, tmp_path)  # six requests
  assert done.returncode == 0, done.stderr
  assert server.most == 3
  check_answers(tmp_path, expected)


def test_one_typed_question(place, server, tmp_path):
  done = client(place, server, None, predict_file=None,
                question="where lives anna ?",
                context="Anna lives in Rome . Bela lives in Oslo .")
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["answer"] in "Anna lives in Rome . Bela lives in Oslo ."
  assert 0 < found["probability"] <= 1 and len(found) == 2
  done = client(place, server, tmp_path, predict_file=None,
                question="where lives anna ?", context="Anna lives in Rome .",
                version_2_with_negative=True)
  found = json.loads(done.stdout.splitlines()[-1])
  assert set(found) == {"answer", "probability", "null_odds"}
  assert json.loads((tmp_path / "predictions.json").read_text()) == {
      "typed": found["answer"]}


def test_prompt(place, server):
  words = ("Anna lives in Rome .\nwhere lives anna ?\nwhere lives bela ?\n\n"
           "Bela lives in Oslo .\nwhere lives bela ?\n")
  done = client(place, server, None, stdin=words, predict_file=None,
                interactive=True)
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert len(lines) == 3 and all(line.endswith(" %)") for line in lines)
  for line, context in zip(lines, ["Anna lives in Rome ."] * 2
                           + ["Bela lives in Oslo ."]):
    assert line.rsplit("  (", 1)[0] in context


def test_prompt_outlives_a_server(place, server):
  server.behave = lambda handler, *unused: handler.say({"error": "no"}, 400)
  done = client(place, server, None, predict_file=None, interactive=True,
                stdin="Anna lives in Rome .\nwho ?\nwho ?\n")
  assert done.returncode == 0
  assert [l.startswith("ERROR: no answer: the server refuses: no")
          for l in done.stdout.splitlines()] == [True, True]


# --- faults that pass --------------------------------------------------------


def close(handler, *unused):
  handler.hang_up()


def overloaded(handler, *unused):
  handler.say({"error": "[request id: a] Exceeds maximum queue size"}, 503)


def page(status):
  def send(handler, *unused):
    handler._send(status, b"<html>")  # pylint: disable=protected-access
  return send


def late(handler, *unused):
  handler.server.owner.ended.wait(60)


def others(handler, request, arrays):
  handler.reply(request, logits_of(arrays["input_ids"]), id="another")


def other_version(handler, request, arrays):
  handler.reply(request, logits_of(arrays["input_ids"]), model_version="2")


@pytest.mark.parametrize("fault", [close, overloaded, late, others,
                                   other_version], ids=lambda f: f.__name__)
def test_faults_that_pass(place, server, tmp_path, expected, fault):
  server.behave = (lambda handler, request, arrays, number:
                   number not in (1, 4) or fault(handler, request, arrays))
  done = client(place, server, tmp_path,
                request_timeout=2 if fault is late else 60)
  assert done.returncode == 0, done.stderr
  check_answers(tmp_path, expected)
  assert len(server.requests) == 6 + 2
  # The library by itself sends again what a kept connection has lost.
  assert row(tmp_path)["retries"] == 2 or fault is close


@pytest.mark.parametrize("fault,words", [
    (overloaded, "the server's queue is full (Exceeds maximum queue size): "
     "give less --concurrency or more --max_retries (asked 3 times)"),
    (late, "Deadline Exceeded (asked 3 times)"),
    (page(429), "status 429 in a reply that is not Triton's own, such as that "
     "of a proxy (asked 3 times)"),
    (page(403), "the server refuses: status 403 in a reply that is not"),
    (other_version, "the reply belongs to request")],
                         ids=lambda value: getattr(value, "__name__", None))
def test_faults_that_stay(place, server, tmp_path, fault, words):
  (tmp_path / "predictions.json").write_text("of an earlier run")
  server.behave = lambda handler, request, arrays, number: fault(
      handler, request, arrays)
  line = error(client(place, server, tmp_path, request_timeout=1), 69)
  assert words in line and "11 of 11 questions are unanswered" in line
  assert unanswered(tmp_path)[0] == ["q%d" % i for i in range(QUESTIONS)]
  assert not (tmp_path / "predictions.json").exists()
  # Each thread asks one in vain, no more.
  assert len(server.requests) <= 3 * 3


def test_time_for_all(place, server, tmp_path):
  server.behave = lambda handler, *unused: late(handler)
  # client() itself waits for 120 s.
  line = error(client(place, server, tmp_path, timeout=1, request_timeout=600,
                      max_retries=1000), 69)
  assert "--timeout=1 seconds are over" in line
  assert "11 of 11 questions are unanswered" in line


# --- faults that do not pass -------------------------------------------------


def nan(handler, request, arrays):
  outputs = logits_of(arrays["input_ids"])
  outputs["end_logits"][0, 3] = np.nan
  handler.reply(request, outputs)


def other_shape(handler, request, arrays):
  handler.reply(request, logits_of(arrays["input_ids"][:, 1:]))


def one_output(handler, request, arrays):
  outputs = logits_of(arrays["input_ids"])
  del outputs["end_logits"]
  handler.reply(request, outputs)


def no_reply_of_triton(handler, *unused):
  handler._send(200, b"hello")  # pylint: disable=protected-access


def other_json(handler, *unused):
  handler.say([])


@pytest.mark.parametrize("fault,words", [
    (nan, "end_logits is not finite"),
    (other_shape, "start_logits is float32 [2, 31], expected float32 [2, 32]"),
    (one_output, "the reply lacks end_logits"),
    (no_reply_of_triton, "the reply cannot be read"),
    (other_json, "the reply cannot be read")],
                         ids=lambda value: getattr(value, "__name__", None))
def test_bad_replies(place, server, tmp_path, expected, fault, words):
  """They cost the questions they are for, and these are asked again."""
  server.behave = (lambda handler, request, arrays, number:
                   number != 2 or fault(handler, request, arrays))
  line = error(client(place, server, tmp_path, concurrency=1), 69)
  assert "2 of 11 questions are unanswered" in line and words in line
  assert len(server.requests) == 6  # not again at once
  names, reason = unanswered(tmp_path)
  missing = server.requests[2]["unique_ids"].ravel()
  assert names == sorted("q%d" % (i - FIRST) for i in missing)
  assert words in reason
  del server.requests[:]
  assert client(place, server, tmp_path).returncode == 0
  assert server.asked() == sorted(missing)
  check_answers(tmp_path, expected)


def test_a_refusal_is_not_asked_again(place, server, tmp_path):
  server.behave = lambda handler, request, arrays, number: (
      number != 1 or handler.say({"error": "unexpected shape"}, 400))
  line = error(client(place, server, tmp_path, concurrency=1), 69)
  assert "9 of 11" in line and "the server refuses: unexpected shape" in line
  assert len(server.requests) == 2


def test_what_the_server_cannot_compute_costs_that_alone(
    place, server, tmp_path, expected):
  def behave(handler, request, arrays, number):
    return FIRST + 3 not in arrays["unique_ids"] or handler.say(
        {"error": "end_logits is not finite"}, 500)
  server.behave = behave
  for asked in (6 + 1, 1 + 1):  # the second time the rest alone
    line = error(client(place, server, tmp_path, concurrency=1,
                        max_retries=1), 69)
    assert "2 of 11 questions are unanswered" in line
    assert "end_logits is not finite" in line
    assert len(server.requests) == asked
    del server.requests[:]
  server.behave = lambda *unused: True
  assert client(place, server, tmp_path).returncode == 0
  check_answers(tmp_path, expected)


def test_a_server_that_computes_nothing_is_given_up(place, server, tmp_path):
  server.behave = lambda handler, *unused: handler.say({"error": "no"}, 500)
  line = error(client(place, server, tmp_path, concurrency=1,
                      max_retries=1), 69)
  assert "11 of 11" in line and "no (asked 2 times)" in line
  assert len(server.requests) == 3 * 2


# --- what is kept ------------------------------------------------------------


def cut_short(place, server, output, answered=3, **changes):
  """Runs a client whose server is gone after some replies."""
  server.behave = lambda handler, request, arrays, number: (
      number < answered or close(handler))
  done = client(place, server, output, concurrency=1, max_retries=1, **changes)
  server.behave = lambda *unused: True
  del server.requests[answered:]
  asked = set(server.asked())
  del server.requests[:]
  return done, asked


def test_a_rerun_asks_for_the_rest_alone(place, server, tmp_path, expected):
  done, answered = cut_short(place, server, tmp_path)
  line = error(done, 69)
  assert "5 of 11 questions are unanswered" in line
  assert "the logits of 6 features are kept" in line
  assert row(tmp_path)["sentences"] == 6
  # Batch size, protocol and such change no logits.
  done = client(place, server, tmp_path, batch_size=3)
  assert done.returncode == 0, done.stderr
  assert set(server.asked()) == set(
      range(FIRST, FIRST + QUESTIONS)) - answered
  check_answers(tmp_path, expected)
  # What is complete is asked anew.
  del server.requests[:]
  client(place, server, tmp_path)
  assert len(server.asked()) == QUESTIONS


@pytest.mark.parametrize("change", ["model", "settings", "damage"])
def test_what_is_kept_is_never_mixed(place, server, tmp_path, change):
  cut_short(place, server, tmp_path)
  more = {}
  if change == "model":
    server.config = config(SEQ_LENGTH, "two")
  elif change == "settings":
    more = {"max_query_length": 7}
  else:
    kept = (tmp_path / "logits.npz").read_bytes()
    (tmp_path / "logits.npz").write_bytes(kept[:-200])
  done = client(place, server, tmp_path, **more)
  assert done.returncode == 0, done.stderr
  assert "are asked anew" in done.stderr.replace("all are", "are")
  assert len(server.asked()) == QUESTIONS


def test_a_model_replaced_under_way(place, server, tmp_path):
  def behave(handler, request, arrays, number):
    if number == 3:
      server.config = config(SEQ_LENGTH, "two")
    return True
  server.behave = behave
  (tmp_path / "unanswered.json").write_text("of an earlier run")
  line = error(client(place, server, tmp_path), 69)
  assert "model bert 1 was replaced while it was asked" in line
  assert os.listdir(str(tmp_path)) and not {
      "logits.npz", "predictions.json", "unanswered.json"} & set(
          os.listdir(str(tmp_path)))


def test_a_fault_of_ours_keeps_what_there_is(place, tmp_path, monkeypatch):
  settings = dict(
      {name: None for name in run_squad_trtis_client.ClientConfig._fields},
      vocab_file=str(place / "vocab.txt"), do_lower_case=True, batch_size=2,
      max_seq_length=SEQ_LENGTH, doc_stride=8, max_query_length=8,
      output_dir=str(tmp_path), predict_file=str(place / "dev.json"))
  model = serving_model.Model("bert", 1, 8, SEQ_LENGTH, {}, None, None, "one")
  session = serving_answers.Session(
      run_squad_trtis_client.ClientConfig(**settings), None, model,
      squad_task.load_tokenizer(settings["vocab_file"], True))

  def ask(asking):
    asking._logits.take([1, 4], {name: np.ones([2, SEQ_LENGTH]) for name in (
        "start_logits", "end_logits")})
    raise ZeroDivisionError
  monkeypatch.setattr(serving_answers._Asking, "ask", ask)
  with pytest.raises(ZeroDivisionError):
    serving_answers.answer_file(session)
  with np.load(str(tmp_path / "logits.npz")) as kept:
    assert kept["rows"].tolist() == [1, 4]


def test_a_model_without_fingerprint(place, server, tmp_path, expected):
  server.config = config(SEQ_LENGTH, None)
  done, _ = cut_short(place, server, tmp_path)
  assert "no export_fingerprint" in error(done, 69)
  assert not (tmp_path / "logits.npz").exists()
  assert client(place, server, tmp_path).returncode == 0
  assert len(server.asked()) == QUESTIONS
  check_answers(tmp_path, expected)


def test_a_signal_keeps_what_there_is(place, server, tmp_path):
  fourth = threading.Event()

  def behave(handler, request, arrays, count):
    if count == 3:
      fourth.set()
    return count < 3 or late(handler)
  server.behave = behave
  process = subprocess.Popen(
      command(*flags(place, server, tmp_path, concurrency=1)),
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
  assert fourth.wait(60)
  process.send_signal(signal.SIGTERM)
  process.send_signal(signal.SIGINT)  # which changes nothing
  done = subprocess.CompletedProcess(
      [], None, *process.communicate(timeout=60))
  done.returncode = process.returncode
  assert "interrupted" in error(done, 130)
  assert "5 of 11 questions are unanswered" in done.stderr
  server.ended.set()
  del server.requests[:]
  server.behave = lambda *unused: True
  assert client(place, server, tmp_path).returncode == 0
  assert len(server.asked()) == 5


def test_one_client_a_folder(place, server, tmp_path):
  with files.FolderLock(str(tmp_path)):
    assert "another run" in error(client(place, server, tmp_path), 1)


# --- wrong input -------------------------------------------------------------


def test_wrong_words(place, server, tmp_path):
  typed = dict(predict_file=None, question="a", context="b")
  (place / "other.txt").write_text("\n".join(VOCAB + ["more"]) + "\n")
  server.config = config(
      SEQ_LENGTH, do_lower_case="true",
      vocab_sha256=files.sha256_of_file(str(place / "vocab.txt")))
  for changes, words in [
      (dict(typed, question=" "), "--question is empty"),
      (dict(typed, context=" "), "--context is empty"),
      (dict(typed, context=None), "--question needs --context"),
      (dict(question="a"), "--predict_file and --question: give one of"),
      (dict(context="a"), "--context goes with --question"),
      (dict(predict_file=None), "nothing to answer"),
      (dict(predict_file=place / "no"), "--predict_file: no such file"),
      (dict(output_dir=None), "--output_dir is required"),
      (dict(batch_size=0), "--batch_size=0: give a number above 0"),
      (dict(batch_size=9), "--batch_size=9: the model bert 1 takes at most 8"),
      (dict(request_timeout=1e300), "--request_timeout=1e+300: give at most"),
      (dict(timeout=-1), "--timeout=-1.0: give 0 or more"),
      (dict(max_seq_length=64), "takes features of 32"),
      (dict(max_query_length=29), "--max_seq_length=32 leaves no room"),
      (dict(do_lower_case=False), "--do_lower_case=false: the model bert 1 was"
       " exported with true"),
      (dict(vocab_file=place / "other.txt"), "is not the vocabulary that"),
      (dict(trtis_server_url="http://a:1"), "give host:port"),
      (dict(trtis_server_url="127.0.0.1:%d" % ports.free(1)[0]),
       "no server answers there over http"),
      (dict(trtis_server_url="127.0.0.1:%d" % ports.free(1)[0],
            protocol="grpc"), "no server answers there over grpc")]:
    line = error(client(place, server, tmp_path / "out", **changes), 1)
    assert words in line, line
  assert not server.requests


@pytest.mark.parametrize("change,words", [
    (lambda c: c["input"].pop(), "has the inputs input_ids, input_mask, "
     "unique_ids, but a model that answers questions has"),
    (lambda c: c["output"][0].update(data_type="TYPE_FP16"),
     "its output start_logits is TYPE_FP16 [32], expected TYPE_FP32 [seq]"),
    (lambda c: c["input"][1].update(dims=[16]), "different lengths (16, 32)"),
    (lambda c: c.update(max_batch_size=0), "takes no batches"),
    (lambda c: c["input"][0].update(dims=None), "is no Triton server: what"),
    (lambda c: c.update(parameters=[1]), "is no Triton server: what")],
                         ids=["inputs", "type", "lengths", "batches", "dims",
                              "parameters"])
def test_another_kind_of_model(place, server, tmp_path, change, words):
  change(server.config)
  assert words in error(client(place, server, tmp_path), 1)


@pytest.mark.parametrize("largest, used", [(3, 3), (16, 8)])
def test_batches_fit_the_model_unless_told(place, server, tmp_path, expected,
                                           largest, used):
  server.config["max_batch_size"] = largest
  done = client(place, server, tmp_path, batch_size=None)
  assert done.returncode == 0, done.stderr
  assert row(tmp_path)["batch_size"] == used
  check_answers(tmp_path, expected)


def test_a_model_of_any_length(place, server, tmp_path, expected):
  for tensor in server.config["input"][1:] + server.config["output"]:
    tensor["dims"] = [-1]
  done = client(place, server, tmp_path, max_seq_length=SEQ_LENGTH)
  assert done.returncode == 0, done.stderr
  check_answers(tmp_path, expected)


# --- the launcher ------------------------------------------------------------


def test_launcher_goes_on(place, server, tmp_path, expected):
  def launch():
    return subprocess.run(
        ["bash", str(ROOT / "scripts/trtis/run_client.sh"),
         "--protocol", "http", "--bert_model", str(place),
         "--trtis_server_url", server.url,
         "--seq_length", str(SEQ_LENGTH), "--doc_stride", "8",
         "--predict_file", str(place / "dev.json"), "--batch_size", "2",
         "--concurrency", "1", "--max_retries", "0", "--",
         "--max_query_length=8"],
        env=dict(os.environ, RESULTS_DIR=str(tmp_path),
                 BERT_VENV_DIR=str(environment("client").parent)),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, universal_newlines=True, timeout=120)
  server.behave = lambda handler, request, arrays, number: (
      number < 3 or close(handler))
  assert "5 of 11" in error(launch(), 69)
  server.behave = lambda *unused: True
  del server.requests[:]
  done = launch()
  assert done.returncode == 0, done.stderr
  assert len(server.asked()) == 5
  [output] = tmp_path.glob("trtis_client_*_v1.1_*")
  check_answers(output, expected)
