"""utils/checkpoints: what a run goes on from, and what it never keeps."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import runners
from test_run_pretraining import CONFIG
from test_run_pretraining import place  # pylint: disable=unused-import
from test_run_pretraining import settings
from test_run_pretraining import trained  # pylint: disable=unused-import
from test_run_pretraining import weights
from utils import checkpoints
from utils import run_folder
from utils import runner_flags
from utils.errors import UserError


def save(folder, name, value):
  """Writes a checkpoint with one variable, and no state file."""
  with tf.Graph().as_default(), tf.Session() as session:
    variable = tf.get_variable(
        "w", initializer=tf.constant(value, tf.float32))
    session.run(variable.initializer)
    return tf.train.Saver().save(
        session, os.path.join(str(folder), name), write_meta_graph=False,
        write_state=False)


def steps(folder):
  """Returns the steps of a run's checkpoints, smallest first."""
  return sorted(int(path.name[len("model.ckpt-"):-len(".index")])
                for path in folder.glob("model.ckpt-*.index"))


def named_in_state(folder):
  """Returns the names as they stand in the state file, oldest first."""
  text = (folder / "checkpoint").read_text()
  return [line.split('"')[1] for line in text.splitlines()
          if line.startswith("all_model")]


def damage(folder, kind, step):
  """Makes the checkpoint at `step` unusable, or the state file stale."""
  if kind == "stale state":
    (folder / "checkpoint").write_text(
        'model_checkpoint_path: "model.ckpt-10"\n'
        'all_model_checkpoint_paths: "model.ckpt-10"\n')
  elif kind == "truncated data":
    path, = folder.glob("model.ckpt-%d.data-*" % step)
    path.write_bytes(path.read_bytes()[:-500])
  else:
    (folder / ("model.ckpt-%d.index" % step)).write_bytes(b"")


KINDS = ["stale state", "truncated data", "empty index"]


class TestNewest:

  @pytest.fixture
  def folder(self, tmp_path):
    for step in (10, 20, 30):
      save(tmp_path, "model.ckpt-%d" % step, [1.0])
    save(tmp_path, "bert_model.ckpt", [2.0])
    return tmp_path

  @pytest.mark.parametrize("kind", KINDS)
  @pytest.mark.parametrize("relative", [True, False])
  def test_state_names_it(self, folder, kind, relative):
    damage(folder, kind, 30)
    path = os.path.relpath(str(folder)) if relative else str(folder)
    prefix = checkpoints.latest(path)
    assert prefix == os.path.join(
        path, "model.ckpt-%d" % (30 if kind == "stale state" else 20))
    checkpoints.set_newest(path, prefix)
    assert tf.train.latest_checkpoint(path) == prefix
    assert named_in_state(folder) == [
        "model.ckpt-10", "model.ckpt-20", "model.ckpt-30"][
            :3 if kind == "stale state" else 2]

  def test_folder_can_be_moved(self, folder):
    checkpoints.set_newest(str(folder), str(folder / "model.ckpt-30"))
    moved = folder.parent / "moved"
    folder.rename(moved)
    assert tf.train.latest_checkpoint(str(moved)) == str(
        moved / "model.ckpt-30")

  def test_keep(self, folder):
    save(folder, "model.ckpt-40", [3.0])
    checkpoints.set_newest(str(folder), str(folder / "model.ckpt-30"), 2)
    # Later ones are not counted: the run is to repeat those steps.
    assert steps(folder) == [20, 30, 40]
    assert named_in_state(folder) == ["model.ckpt-20", "model.ckpt-30"]
    checkpoints.set_newest(str(folder), str(folder / "model.ckpt-40"), 2)
    assert steps(folder) == [30, 40]
    assert not list(folder.glob("model.ckpt-20*"))
    assert (folder / "bert_model.ckpt.index").exists()

  def test_none(self, folder):
    checkpoints.set_newest(str(folder), None)
    checkpoints.set_newest(str(folder), str(folder / "model.ckpt-30"))
    checkpoints.set_newest(str(folder), None)
    assert tf.train.latest_checkpoint(str(folder)) is None

  @pytest.mark.parametrize("value", [np.nan, np.inf])
  def test_not_finite_is_passed_over(self, folder, value):
    prefix = save(folder, "model.ckpt-40", [1.0, value])
    with pytest.raises(UserError, match="model.ckpt-40 .* w .* not finite"):
      checkpoints.verify(prefix)
    assert checkpoints.latest(str(folder)) == str(folder / "model.ckpt-30")


def copy_of(trained, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(str(trained[0]), str(folder))
  return folder


@pytest.mark.parametrize("kind,relative", [
    ("stale state", True), ("truncated data", False),
    ("empty index", True)])
def test_training_goes_on_from_the_newest_whole_one(
    place, trained, tmp_path, kind, relative):
  folder = copy_of(trained, tmp_path)
  damage(folder, kind, 30)
  path = os.path.relpath(str(folder)) if relative else folder
  for last in (31, 32):  # The second start reads what the first one wrote.
    result = runners.call("run_pretraining", settings(
        place, path, num_train_steps=last, keep_checkpoint_max=2,
        save_checkpoints_steps=1))
    assert result.status == 0, result.err
    assert steps(folder) == [last - 1, last]
    assert tf.train.latest_checkpoint(str(folder)) == str(
        folder / ("model.ckpt-%d" % last))
  assert weights(folder)["global_step"] == 32


def test_without_a_whole_one_training_begins_anew(place, trained, tmp_path):
  folder = copy_of(trained, tmp_path)
  for step in (10, 20, 30):
    damage(folder, "truncated data", step)
  result = runners.call("run_pretraining", settings(
      place, folder, num_train_steps=6))
  assert result.status == 0, result.err
  assert "model.ckpt-30 is damaged" in result.err
  assert "starting at step 0" in result.err
  assert weights(folder)["global_step"] == 6


def test_never_leaves_weights_that_are_not_finite(place, tmp_path):
  """1e39 is finite, but not in float32."""
  folder = tmp_path / "run"
  result = runners.call("run_pretraining", settings(
      place, folder, learning_rate=1e39, num_warmup_steps=0,
      save_checkpoints_steps=1))
  assert "not finite" in result.error and "--learning_rate" in result.error
  assert "model.ckpt-1" in result.error
  assert not list(folder.glob("model.ckpt*"))
  assert tf.train.latest_checkpoint(str(folder)) is None


COUNT_READS = """
import sys
import %(runner)s
from utils import checkpoints
from utils import errors
whole = checkpoints.verify
def verify(prefix):
  sys.stderr.write("READ %%s\\n" %% prefix)
  whole(prefix)
checkpoints.verify = verify
%(runner)s.define_flags()
errors.run_main(%(runner)s.main)
"""


@pytest.mark.parametrize("values", [
    dict(num_train_steps=1, num_warmup_steps=0),
    dict(do_train=None, do_eval=True)])
def test_a_folder_to_start_from_is_read_once(place, trained, tmp_path, values):
  argv = runners.arguments(settings(
      place, tmp_path, init_checkpoint=trained[0], **values))
  done = subprocess.run(
      [sys.executable, "-c", COUNT_READS % dict(runner="run_pretraining")]
      + argv, stderr=subprocess.PIPE, cwd=str(runners.ROOT))
  error = done.stderr.decode()
  assert done.returncode == 0, error
  assert error.count("READ %s" % trained[0]) == 1
  settings_line, = [l for l in error.splitlines() if "settings:" in l]
  assert "init_checkpoint=%s/model.ckpt-30" % trained[0] in settings_line


@pytest.mark.parametrize("change", [
    dict(hidden_act="relu"), dict(num_attention_heads=4),
    dict(hidden_dropout_prob=0.2)])
def test_another_model_on_resume_is_refused(place, trained, tmp_path, change):
  """None of these shows in the shapes."""
  folder = copy_of(trained, tmp_path)
  (tmp_path / "other.json").write_text(json.dumps(dict(CONFIG, **change)))
  (name, now), = change.items()
  for values in (dict(num_train_steps=40), dict(do_train=None, do_eval=True)):
    result = runners.call("run_pretraining", settings(
        place, folder, bert_config_file=tmp_path / "other.json", **values))
    assert "--bert_config_file" in result.error
    assert "%s was %s, is %s now" % (name, CONFIG[name], now) in result.error
  assert runners.call("run_pretraining", settings(place, folder)).status == 0


def test_another_model_in_a_folder_without_checkpoints(tmp_path):
  run_folder._check_model({"model": {"a": 1}}, {"a": 2}, str(tmp_path))
  save(tmp_path, "model.ckpt-1", [1.0])
  run_folder._check_model({"model": {"a": 2}}, {"a": 2}, str(tmp_path))
  run_folder._check_model({}, {"a": 2}, str(tmp_path))
  with pytest.raises(UserError, match="a was 1, is 2 now"):
    run_folder._check_model({"model": {"a": 1}}, {"a": 2}, str(tmp_path))


@pytest.mark.parametrize("text", ["[1]", '{"settings": [1]}',
                                  '{"model": 3}'])
def test_config_json_that_describes_no_run(tmp_path, text):
  path = tmp_path / "config.json"
  path.write_text(text)
  with pytest.raises(UserError, match="config.json does not describe"):
    run_folder._read_description(str(path))


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_check_positive(value):
  with pytest.raises(UserError, match="--rate="):
    runner_flags.check_positive("rate", value)


def test_leftovers_of_a_kill_are_removed(tmp_path):
  save(tmp_path, "model.ckpt-1", [1.0])
  save(tmp_path, "model.ckpt-2", [1.0])
  os.remove(str(tmp_path / "model.ckpt-2.index"))
  for name in ("checkpoint.tmp0a1b", ".x.json.12.tmp",
               "model.ckpt-3.data-00000-of-00001.tempstate99"):
    (tmp_path / name).write_text("x")
  run_folder._clean(str(tmp_path))
  assert sorted(p.name.split(".data")[0] for p in tmp_path.iterdir()) == [
      "model.ckpt-1", "model.ckpt-1.index"]
