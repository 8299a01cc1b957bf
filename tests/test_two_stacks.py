"""Train on one TensorFlow stack, resume and predict on the other."""

import json
import subprocess
import sys

import numpy as np
import pytest

import runners
from test_run_squad import place  # pylint: disable=unused-import
from test_run_squad import settings
from test_run_squad import weights


@pytest.fixture(scope="module")
def other_python():
  """Interpreter of the stack that does not run this test."""
  folder = runners.ROOT / ".venv"
  for name in ("tf1", "tf2"):
    python = folder / name / "bin" / "python"
    if python.exists() and str(folder / name) != sys.prefix:
      return str(python)
  pytest.skip("the other stack is not set up (scripts/setup.sh --stack ...)")


def run_on(python, values):
  command = runners.command("run_squad", values)
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
  out, err = run_on(other_python, settings(place, shared))
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
  run_on(other_python, settings(
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
