"""SQuAD on two ranks: the same answers, the same training."""

import pytest

import ranks
import runners
from test_ranks import largest_difference
from test_run_pretraining import weights
from test_run_squad import CONFIG
from test_run_squad import json
from test_run_squad import place  # pylint: disable=unused-import
from test_run_squad import rows
from test_run_squad import settings
from test_run_squad import trained  # pylint: disable=unused-import

ANSWERS = ("predictions.json", "nbest_predictions.json", "scores.json",
           "eval_results.txt")


@pytest.fixture(scope="module")
def ended(place, trained):
  """{name: Ended} of all calls by two ranks of one mpirun."""
  (place / "no_dropout.json").write_text(json.dumps(dict(
      json.loads((place / "config.json").read_text()), hidden_dropout_prob=0.0,
      attention_probs_dropout_prob=0.0)))
  assert CONFIG["hidden_dropout_prob"] > 0
  calls = {}

  def call(name, **changes):
    calls[name] = ranks.Call(settings(place, place / name, horovod=True,
                                      **changes))

  call("answers", do_train=None, init_checkpoint=trained[0])
  # Its cache of features is made by one of the two ranks.
  call("train", bert_config_file=place / "no_dropout.json", do_predict=None,
       cache_dir=place / "cache_of_ranks", train_batch_size=2,
       num_accumulation_steps=2, num_train_epochs=2, learning_rate=1e-4)
  call("fewer_batches_than_ranks", do_train=None, init_checkpoint=trained[0],
       predict_batch_size=16)
  call("early", do_train=None, init_checkpoint=trained[0],
       num_eval_iterations=1)
  call("best", num_train_epochs=2, train_batch_size=4, eval_every_steps=5)
  call("too_large", train_batch_size=11, num_accumulation_steps=2)
  return dict(zip(calls, ranks.call(place, "run_squad",
                                    list(calls.values()))))


@pytest.mark.parametrize("name, size", [("answers", 4),
                                        ("fewer_batches_than_ranks", 16)])
def test_two_ranks_answer_byte_for_byte_as_one(place, trained, ended, name,
                                               size):
  assert ended[name].statuses == [0, 0], ended[name].err
  one = place / ("%s_one" % name)
  done = runners.call("run_squad", settings(
      place, one, do_train=None, init_checkpoint=trained[0],
      predict_batch_size=size))
  assert done.status == 0, done.err
  for file in ANSWERS[:1] + ANSWERS[2:]:
    assert (place / name / file).read_bytes() == (one / file).read_bytes()
  assert "Sentences processed = 11" in ended[name].err
  assert rows(place / name, "predict")[0]["sentences"] == 11


def test_training_is_that_of_one_rank(place, ended):
  assert ended["train"].statuses == [0, 0], ended["train"].err
  one = place / "train_one"
  done = runners.call("run_squad", settings(
      place, one, bert_config_file=place / "no_dropout.json", do_predict=None,
      train_batch_size=8, learning_rate=2e-4, num_train_epochs=2))
  assert done.status == 0, done.err
  assert largest_difference(weights(place / "train"), weights(one)) <= 1e-6
  assert weights(one)["global_step"] == 10


def test_prediction_that_stops_early_writes_no_answers(place, ended):
  assert ended["early"].statuses == [0, 0], ended["early"].err
  assert "after 4 of 11 features" in ended["early"].err
  assert not (place / "early" / "predictions.json").exists()


def test_the_best_by_f1_is_kept(place, ended):
  assert ended["best"].statuses == [0, 0], ended["best"].err
  best = json.loads((place / "best" / "best" / "best.json").read_text())
  scores = [row["f1"] for row in rows(place / "best", "eval")]
  assert best["score"] == "f1" and best["value"] == max(scores)
  assert len(scores) == 3  # At steps 5 and 10, and the last prediction.


def test_a_batch_of_all_ranks_above_the_questions(ended):
  assert ended["too_large"].statuses == [1, 1]
  assert ended["too_large"].errors == [
      "ERROR: --train_batch_size=44, but there are only 40 usable questions in "
      "--train_file: use a smaller batch"]
