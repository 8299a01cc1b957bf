"""SQuAD end to end on a tiny model: files, scores, resume, bad input."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import termios

import numpy as np
import pytest

import runners
from test_checkpoints import save
from test_run_pretraining import CONFIG
from test_run_pretraining import kill_when
from test_run_pretraining import rows
from test_run_pretraining import same_weights
from test_run_pretraining import weights
from test_run_pretraining import weights_alone
from utils import squad_task

WORDS = ("the is in who where lives works with and a house city named old "
         "anna bela cora dora emil paris rome oslo bern kiel ?").split()
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + WORDS + [".", "##s"]


def dataset(count, version="1.1", impossible=()):
  """Returns a SQuAD dict of `count` questions about who lives where."""
  people, cities = WORDS[14:19], WORDS[19:24]
  paragraphs = []
  for i in range(count):
    person, city = people[i % 5], cities[(i * 3 + i // 5) % 5]
    context = "%s lives in %s . the old house is in a city ." % (
        person.capitalize(), city.capitalize())
    answer = {"text": city.capitalize(),
              "answer_start": context.index(city.capitalize())}
    question = {"id": "q%d" % i, "question": "where lives %s ?" % person,
                "answers": [answer]}
    if version == "2.0":
      question["is_impossible"] = i in impossible
      if i in impossible:
        question.update(question="where works %s ?" % person, answers=[])
    paragraphs.append({"context": context, "qas": [question]})
  return {"version": version,
          "data": [{"title": "people", "paragraphs": paragraphs}]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """Folder with config, vocabulary and SQuAD files."""
  folder = tmp_path_factory.mktemp("squad")
  (folder / "config.json").write_text(
      json.dumps(dict(CONFIG, vocab_size=len(VOCAB))))
  (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
  (folder / "train.json").write_text(json.dumps(dataset(40)))
  (folder / "dev.json").write_text(json.dumps(dataset(11)))
  (folder / "train2.json").write_text(json.dumps(
      dataset(40, "2.0", range(0, 40, 4))))
  (folder / "dev2.json").write_text(json.dumps(
      dataset(11, "2.0", (1, 5))))
  return folder


def settings(place, output, **changes):
  values = dict(
      bert_config_file=place / "config.json", vocab_file=place / "vocab.txt",
      output_dir=output, cache_dir=place / "cache",
      train_file=place / "train.json", predict_file=place / "dev.json",
      do_train=True, do_predict=True, train_batch_size=8,
      predict_batch_size=4, learning_rate=1e-2, num_train_epochs=6,
      max_seq_length=32, doc_stride=8, max_query_length=8,
      save_checkpoints_steps=10, log_every_steps=1, seed=7)
  values.update(changes)
  return values


@pytest.fixture(scope="module")
def trained(place):
  output = place / "undisturbed"
  result = runners.call("run_squad", settings(place, output))
  assert result.status == 0, result.err
  return output, result


def test_learns_writes_everything_and_ends_with_the_scores(place, trained):
  output, result = trained
  last = json.loads(result.out.splitlines()[-1])
  assert list(last) == ["exact_match", "f1"]
  assert last["exact_match"] > 90
  predictions = json.loads((output / "predictions.json").read_text())
  assert sorted(predictions) == sorted("q%d" % i for i in range(11))
  assert predictions["q0"] == "Paris"
  assert len(json.loads((output / "nbest_predictions.json").read_text())) == 11
  assert json.loads((output / "scores.json").read_text())["f1"] == last["f1"]
  for text in ("0 Total Training Time = ", "Sentences processed = 240",
               "0 Training Performance = ", "0 Total Inference Time = ",
               "Sentences processed = 11", "0 Inference Performance = "):
    assert text in result.err
  losses = [r["loss"] for r in rows(output)]
  assert len(losses) == 30 and losses[-1] < losses[0]


def test_log_file_has_the_lines(place, tmp_path, trained):
  log = tmp_path / "run.log"
  result = runners.call("run_squad", settings(
      place, trained[0], log_file=log, do_train=None))
  assert result.status == 0, result.err
  assert "Inference Performance" in log.read_text()
  assert result.out.splitlines()[-1] in log.read_text()


def test_terminal_shows_a_bar_and_the_log_file_has_lines(place, tmp_path):
  log = tmp_path / "run.log"
  controller, terminal = pty.openpty()
  fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 90, 0, 0))
  process = subprocess.Popen(
      runners.command("run_squad", settings(
          place, tmp_path / "out", log_file=log, do_predict=None)),
      stdout=subprocess.DEVNULL, stderr=terminal)
  os.close(terminal)
  shown = b""
  while True:
    try:
      piece = os.read(controller, 65536)
    except OSError:
      break
    if not piece:
      break
    shown += piece
  os.close(controller)
  assert process.wait() == 0, shown
  assert b"training" in shown and b"30/30" in shown
  assert b"step 30/30  loss" not in shown
  assert "step 30/30  loss" in log.read_text()


def test_errors_reach_the_log_file(place, tmp_path):
  log = tmp_path / "run.log"
  result = runners.call("run_squad", settings(
      place, tmp_path / "out", log_file=log, do_train=None))
  assert result.error[len("ERROR: "):] in log.read_text()


def test_scorer_alone_agrees(place, trained):
  done = subprocess.run(
      [runners.sys.executable, str(runners.ROOT / "utils" / "squad_score.py"),
       str(place / "dev.json"), str(trained[0] / "predictions.json")],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=True,
      cwd="/")
  assert done.stdout.decode().splitlines() == [
      trained[1].out.splitlines()[-1]]


def test_prediction_from_another_folder_is_the_same(place, trained):
  output = place / "inference"
  result = runners.call("run_squad", settings(
      place, output, do_train=None, train_file=None,
      init_checkpoint=trained[0] / "model.ckpt", predict_batch_size=3))
  assert result.status == 0, result.err
  for name in ("predictions.json", "eval_results.txt"):
    assert (output / name).read_bytes() == (trained[0] / name).read_bytes()


def test_weights_alone_are_enough_to_predict(place, trained, tmp_path):
  """What others publish has no step, no slots and no position."""
  result = runners.call("run_squad", settings(
      place, tmp_path / "out", do_train=None, train_file=None,
      init_checkpoint=weights_alone(trained[0], tmp_path)))
  assert result.status == 0, result.err
  assert (tmp_path / "out" / "predictions.json").read_bytes() == (
      trained[0] / "predictions.json").read_bytes()


def test_killed_and_resumed_is_the_same_run(place):
  values = dict(train_batch_size=40, num_train_epochs=250,
                do_predict=None, learning_rate=1e-3)
  whole, killed = place / "whole", place / "killed"
  assert runners.call("run_squad", settings(
      place, whole, **values)).status == 0
  log = killed / "metrics.jsonl"
  kill_when(runners.command("run_squad", settings(place, killed, **values)),
            lambda: log.exists() and len(log.read_text().splitlines()) > 34)
  result = runners.call("run_squad", settings(place, killed, **values))
  assert result.status == 0, result.err
  assert "going on from" in result.err
  assert same_weights(whole, killed)


def test_version_2(place):
  output = place / "v2"
  result = runners.call("run_squad", settings(
      place, output, train_file=place / "train2.json",
      predict_file=place / "dev2.json", version_2_with_negative=True))
  assert result.status == 0, result.err
  last = json.loads(result.out.splitlines()[-1])
  scores = json.loads((output / "scores.json").read_text())
  assert last == {"exact_match": scores["exact"], "f1": scores["f1"]}
  assert {"best_f1", "best_f1_thresh", "NoAns_f1"} <= set(scores)
  assert len(json.loads((output / "null_odds.json").read_text())) == 11


def test_one_question_one_step(place, tmp_path):
  path = tmp_path / "one.json"
  path.write_text(json.dumps(dataset(1)))
  result = runners.call("run_squad", settings(
      place, tmp_path / "out", train_file=path, predict_file=path,
      train_batch_size=1, num_train_epochs=1,
      # What the reference's command lines may hold.
      export_trtis=False, trtis_model_name="bert", trtis_model_version=1,
      trtis_max_batch_size=8, trtis_dyn_batching_delay=0.5,
      trtis_engine_count=2, trtis_model_overwrite=True))
  assert result.status == 0, result.err
  assert weights(tmp_path / "out")["global_step"] == 1
  assert json.loads(result.out.splitlines()[-1])["f1"] >= 0


def test_questions_without_answers_are_predicted_not_scored(
    place, tmp_path, trained):
  data = dataset(3)
  for paragraph in data["data"][0]["paragraphs"]:
    del paragraph["qas"][0]["answers"]
  path = tmp_path / "open.json"
  path.write_text(json.dumps(data))
  result = runners.call("run_squad", settings(
      place, tmp_path / "out", do_train=None, predict_file=path,
      init_checkpoint=trained[0]))
  assert result.status == 0, result.err
  assert result.out == ""
  assert len(json.loads(
      (tmp_path / "out" / "predictions.json").read_text())) == 3


def test_num_eval_iterations_only_measures(place, tmp_path, trained):
  result = runners.call("run_squad", settings(
      place, tmp_path / "out", do_train=None, init_checkpoint=trained[0],
      num_eval_iterations=2))
  assert result.status == 0, result.err
  assert "Sentences processed = 8" in result.err
  assert not (tmp_path / "out" / "predictions.json").exists()
  (row,) = rows(tmp_path / "out", "predict")
  assert len(row["batch_seconds"]) == 2 and min(row["batch_seconds"]) > 0
  assert sum(row["batch_seconds"]) <= row["seconds"] + 1e-3


def test_nothing_of_an_earlier_prediction_stays(place, tmp_path, trained):
  out = tmp_path / "out"
  out.mkdir()
  every = set(squad_task.ANSWER_FILES + squad_task.SCORE_FILES)
  for name in every:
    (out / name).write_text("old")

  def predict(**changes):
    result = runners.call("run_squad", settings(
        place, out, do_train=None, init_checkpoint=trained[0], **changes))
    assert result.status == 0, result.err
    there = {path.name for path in out.iterdir()} & every
    assert not any((out / name).read_text() == "old" for name in there)
    return there
  assert predict() == every - {"null_odds.json"}  # v1.1
  data = dataset(3)
  for paragraph in data["data"][0]["paragraphs"]:
    del paragraph["qas"][0]["answers"]
  (tmp_path / "open.json").write_text(json.dumps(data))
  assert predict(predict_file=tmp_path / "open.json") == {
      "predictions.json", "nbest_predictions.json"}
  assert predict(num_eval_iterations=1) == set()


def test_killed_prediction_ends_with_whole_files(place, trained, tmp_path):
  path = tmp_path / "many.json"
  path.write_text(json.dumps(dataset(4000)))
  values = settings(place, tmp_path / "out", do_train=None,
                    predict_file=path, init_checkpoint=trained[0],
                    predict_batch_size=1, log_file=tmp_path / "log")
  out, log = tmp_path / "out", tmp_path / "log"
  old = squad_task.ANSWER_FILES + squad_task.SCORE_FILES
  out.mkdir()
  for name in old:
    (out / name).write_text("old")
  kill_when(runners.command("run_squad", values),
            lambda: log.exists() and "predicted 2000" in log.read_text())
  assert all((out / name).read_text() == "old" for name in old)
  result = runners.call("run_squad", dict(values, predict_batch_size=100))
  assert result.status == 0, result.err
  assert len(json.loads((out / "predictions.json").read_text())) == 4000
  assert not [n for n in os.listdir(str(out)) if n.endswith(".tmp")]


def written(place, name, text):
  """Returns the path of a new file."""
  (place / name).write_text(text)
  return place / name


def bad_questions(place):
  """Returns {name: (changed settings, what the one line must hold)}."""
  def changed(name, edit):
    data = dataset(9)
    edit(data["data"][0]["paragraphs"][2])
    return written(place, name, json.dumps(data))

  def question(**values):
    return lambda paragraph: paragraph["qas"][0].update(values)

  def answer(**values):
    return lambda paragraph: paragraph["qas"][0]["answers"][0].update(values)

  return {
      "missing train file": (dict(train_file=place / "none.json"),
                             ["--train_file", "none.json"]),
      "not JSON": (dict(predict_file=written(place, "cut.json", '{"data": [')),
                   ["cut.json"]),
      "not SQuAD": (dict(predict_file=written(place, "other.json",
                                              '{"a": 1}')), ["other.json"]),
      "empty file": (dict(train_file=written(place, "empty.json", "")),
                     ["empty.json"]),
      "offset outside": (dict(train_file=changed(
          "offset.json", answer(answer_start=5000))), ["offset.json", "q2"]),
      "empty context": (dict(train_file=changed(
          "context.json", lambda paragraph: paragraph.update(context=""))),
                        ["context.json"]),
      "empty question": (dict(train_file=changed(
          "question.json", question(question=" "))), ["question.json", "q2"]),
      "no answer to score": (dict(predict_file=changed(
          "unanswered.json", question(answers=[]))),
                             ["unanswered.json", "q2"]),
      "answer is no text": (dict(predict_file=changed(
          "number.json", answer(text=7))), ["number.json", "q2"])}


def bad_vocabularies(place):
  """Returns cases as `bad_questions` does."""
  def vocabulary(name, words):
    return written(place, name, "\n".join(words) + "\n")

  def without(token):
    # As many tokens as before, so that only the missing one is amiss.
    return vocabulary("without%s.txt" % token,
                      ["x" if word == token else word for word in VOCAB])

  cased = vocabulary("cased.txt", [
      word if word[0] in "[#" else word.capitalize() for word in VOCAB])
  return {
      "missing vocabulary": (dict(vocab_file=place / "none.txt"),
                             ["--vocab_file", "none.txt"]),
      "vocabulary of another size": (
          dict(vocab_file=vocabulary("long.txt", VOCAB + ["x"])),
          ["long.txt", "config.json"]),
      "case mismatch": (dict(vocab_file=cased, do_lower_case=True),
                        ["--do_lower_case"]),
      "no [CLS]": (dict(vocab_file=without("[CLS]")), ["txt", "[CLS]"]),
      "no [SEP]": (dict(vocab_file=without("[SEP]")), ["txt", "[SEP]"]),
      "no [UNK]": (dict(vocab_file=without("[UNK]")), ["txt", "[UNK]"])}


def bad_settings(place):
  """Returns cases as `bad_questions` does."""
  named = place / "cased_L-12_H-768_A-12"
  if not named.exists():
    named.mkdir()
    save(named, "bert_model.ckpt", [1.0])
  return {
      "over positions": (dict(max_seq_length=33), ["--max_seq_length", "32"]),
      "no room": (dict(max_query_length=30), ["--max_query_length"]),
      "batch 0": (dict(train_batch_size=0), ["--train_batch_size"]),
      "predict batch 0": (dict(predict_batch_size=0),
                          ["--predict_batch_size"]),
      "batch over questions": (dict(train_batch_size=41),
                               ["--train_batch_size", "40"]),
      "not a checkpoint": (dict(init_checkpoint=place / "train.json"),
                           ["train.json"]),
      "unknown flag": (dict(doc_strid=3), ["doc_strid"]),
      "endless epochs": (dict(num_train_epochs="inf"),
                         ["--num_train_epochs=inf"]),
      "iterations below 0": (dict(num_eval_iterations=-1),
                             ["--num_eval_iterations=-1"]),
      "log in no folder": (dict(log_file=place / "none" / "log"),
                           ["--log_file", str(place / "none" / "log")]),
      "published cased model": (
          dict(init_checkpoint=named, do_lower_case=True),
          ["--do_lower_case", "cased_L-12_H-768_A-12"]),
      "export": (dict(export_trtis=True, trtis_model_name="a/b"),
                 ["--trtis_model_name=a/b"])}


def bad_cases(place):
  return dict(bad_questions(place), **dict(bad_vocabularies(place),
                                           **bad_settings(place)))


@pytest.mark.parametrize("name", [
    "missing train file", "missing vocabulary", "not JSON", "not SQuAD",
    "empty file", "offset outside", "empty context", "empty question",
    "vocabulary of another size", "case mismatch", "over positions",
    "no room", "batch 0", "predict batch 0", "batch over questions",
    "not a checkpoint", "unknown flag", "endless epochs",
    "iterations below 0", "no [CLS]", "no [SEP]", "no [UNK]",
    "log in no folder", "published cased model", "export",
    "no answer to score", "answer is no text"])
def test_bad_input_gets_one_line(place, tmp_path, name):
  changes, expected = bad_cases(place)[name]
  result = runners.call(
      "run_squad", settings(place, tmp_path / "out", **changes))
  for text in expected:
    assert text in result.error
  # Training would have been for nothing.
  assert "step 1/" not in result.err


def test_no_checkpoint_to_predict_with(place, tmp_path):
  result = runners.call("run_squad", settings(
      place, tmp_path / "out", do_train=None))
  assert "no checkpoint" in result.error


def test_logits_do_not_depend_on_the_batch(trained, place, tmp_path):
  result = runners.call("run_squad", settings(
      place, tmp_path / "out", do_train=None, predict_batch_size=11,
      init_checkpoint=trained[0]))
  assert result.status == 0, result.err
  one, other = (json.loads((f / "nbest_predictions.json").read_text())
                for f in (tmp_path / "out", trained[0]))
  for key in one:
    assert [a["text"] for a in one[key]] == [a["text"] for a in other[key]]
    np.testing.assert_allclose([a["start_logit"] for a in one[key]],
                               [a["start_logit"] for a in other[key]],
                               rtol=1e-5, atol=1e-5)
