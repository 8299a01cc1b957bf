"""Train on one TensorFlow stack, resume and predict on the other."""

import json
import os
import pathlib
import subprocess

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import bert_oracle
import runners
# pylint: disable=unused-import
from test_run_pretraining import place as pretraining_place
from test_run_pretraining import settings as pretraining_settings
from test_run_squad import place
from test_run_squad import settings
from test_run_squad import weights
from utils import checkpoints
from utils import records
from utils import stack

stack.configure()


@pytest.fixture(scope="module")
def other_python():
  """Interpreter of the stack that does not run this test."""
  folder = pathlib.Path(
      os.environ.get("BERT_VENV_DIR") or runners.ROOT / ".venv")
  other = "tf2" if stack.IS_TF1 else "tf1"
  python = folder.resolve() / other / "bin" / "python"
  if not python.exists():
    pytest.skip("%s is not set up (scripts/setup.sh --stack %s)"
                % (python, other))
  return str(python)


def run_on(python, runner, values):
  command = runners.command(runner, values)
  done = subprocess.run([python] + command[1:], stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE)
  assert done.returncode == 0, done.stderr.decode()
  return done.stdout.decode(), done.stderr.decode()


def test_train_here_resume_and_predict_there(place, tmp_path, other_python):
  whole, shared = tmp_path / "whole", tmp_path / "shared"
  assert runners.call("run_squad", settings(place, whole)).status == 0
  # The whole run with its schedule, cut short after 20 of 30 steps.
  result = runners.call("run_squad", settings(
      place, shared, do_predict=None))
  assert result.status == 0, result.err
  for path in shared.glob("model.ckpt-30.*"):
    path.unlink()
  state = shared / "checkpoint"
  state.write_text(state.read_text().replace(
      'model_checkpoint_path: "model.ckpt-30"',
      'model_checkpoint_path: "model.ckpt-20"', 1))
  out, err = run_on(other_python, "run_squad", settings(place, shared))
  assert "model.ckpt-20" in err and "step 20" in err
  assert json.loads(out.splitlines()[-1])["exact_match"] > 90
  one, other = weights(whole), weights(shared)
  assert set(one) == set(other)
  for name, value in one.items():
    np.testing.assert_allclose(other[name], value, atol=2e-3, err_msg=name)


def test_same_logits_and_answers_there(place, tmp_path, other_python):
  trained = tmp_path / "trained"
  assert runners.call("run_squad", settings(place, trained)).status == 0
  there = tmp_path / "there"
  run_on(other_python, "run_squad", settings(
      place, there, do_train=None, init_checkpoint=trained))
  for name in ("predictions.json", "scores.json"):
    assert (there / name).read_bytes() == (trained / name).read_bytes()
  here, elsewhere = (json.loads((f / "nbest_predictions.json").read_text())
                     for f in (trained, there))
  largest = max(abs(a["start_logit"]) for b in here.values() for a in b)
  for key in here:
    for one, other in zip(here[key], elsewhere[key]):
      assert abs(one["start_logit"] - other["start_logit"]) < 1e-5 * largest
      assert abs(one["end_logit"] - other["end_logit"]) < 1e-5 * largest


def results(folder):
  """Returns {name: float} of eval_results.txt."""
  lines = (folder / "eval_results.txt").read_text().splitlines()
  return {name: float(value)
          for name, value in (line.split(" = ") for line in lines)}


def google_results(place, prefix):
  """Returns what Google's code makes of the checkpoint and the records."""
  config = bert_oracle.google_modeling().BertConfig.from_json_file(
      str(place / "config.json"))
  examples = [records.decode_example(payload)
              for path in sorted(place.glob("part-*.tfrecord"))
              for payload in records.read_records(str(path))]
  size, losses = pretraining_settings(place, None)["eval_batch_size"], []
  with tf.Graph().as_default(), tf.Session() as session:
    features = {
        name: tf.placeholder(
            tf.float32 if isinstance(value[0], float) else tf.int32,
            [size, len(value)]) for name, value in examples[0].items()}
    model_fn = bert_oracle.google_runner("run_pretraining").model_fn_builder(
        config, prefix, 1e-4, 10, 1, False, False)
    spec = model_fn(features, None, tf.estimator.ModeKeys.EVAL, {})
    function, tensors = spec.eval_metrics
    metrics = function(*tensors)
    session.run([tf.global_variables_initializer(),
                 tf.local_variables_initializer()])
    for start in range(0, len(examples), size):
      batch = examples[start:start + size]
      _, loss = session.run(
          [[update for _, update in metrics.values()], spec.loss],
          {place_of: [example[name] for example in batch]
           for name, place_of in features.items()})
      losses.append(loss)
    found = session.run({name: value for name, (value, _) in metrics.items()})
  return dict(found, loss=np.mean(losses))


def test_same_pretraining_losses_there_and_by_google(
    pretraining_place, tmp_path, other_python):
  here, there = tmp_path / "here", tmp_path / "there"
  values = pretraining_settings(
      pretraining_place, here, do_eval=True, num_train_steps=20)
  result = runners.call("run_pretraining", values)
  assert result.status == 0, result.err
  run_on(other_python, "run_pretraining", dict(
      values, output_dir=there, do_train=None, init_checkpoint=here))
  ours, theirs = results(here), results(there)
  assert set(ours) == set(theirs) and ours["global_step"] == 20
  google = google_results(pretraining_place, checkpoints.latest(str(here)))
  assert set(google) == set(ours) - {"global_step"}
  for name in ours:
    assert theirs[name] == pytest.approx(ours[name], rel=1e-5), name
  for name, value in google.items():
    assert ours[name] == pytest.approx(value, rel=1e-5), name
