"""A checkpoint of the published names loads whole, or tells what it lacks."""

import logging

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import modeling
import run_pretraining
import run_squad
import runners
from test_heads import config
from test_heads import ENCODER
from test_heads import inputs
from test_heads import MASKED_LM
from test_heads import NEXT_SENTENCE
from test_heads import PRETRAINING
from test_heads import SPAN
from test_heads import span_head
from test_run_squad import place  # pylint: disable=unused-import
from test_run_squad import settings
from test_run_squad import weights
from utils import checkpoints
from utils import convert_checkpoint
from utils import stack
from utils.errors import UserError

stack.configure()
LOGGER = logging.getLogger("test_published_checkpoint")


def random_arrays(shapes):
  """Returns {name: array}, such that a model's numbers stay finite."""
  random = np.random.RandomState(0)
  return {name: (random.normal(size=shape) * 0.3
                 + name.endswith("gamma")).astype(np.float32)
          for name, shape in sorted(shapes.items())}


@pytest.fixture
def published(tmp_path):
  """(prefix, {name: array}) as Google published: no slots, no step."""
  arrays = random_arrays(PRETRAINING)
  prefix = str(tmp_path / "bert_model.ckpt")
  convert_checkpoint.write_checkpoint(prefix, arrays)
  return prefix, arrays


def pretraining_heads():
  """Builds the whole pre-training model."""
  features = {name: tf.constant(value) for name, value in inputs().items()}
  model = modeling.BertModel(
      config(), False, features["input_ids"], features["input_mask"],
      features["segment_ids"])
  run_pretraining.masked_lm_outputs(
      config(), model.vectors_at(features["masked_lm_positions"]),
      model.get_embedding_table(), features)
  run_pretraining.next_sentence_outputs(
      config(), model.get_pooled_output(), features)


def squad_head():
  features = {name: tf.constant(value) for name, value in inputs().items()}
  span_head(features)


def load(build, prefix, **more):
  """Returns (report, {name: value}) after starting a model from `prefix`."""
  with tf.Graph().as_default(), tf.Session() as session:
    build()
    variables = tf.trainable_variables()
    report = checkpoints.init_from(prefix, variables, **more)
    session.run(tf.global_variables_initializer())
    return report, {var.op.name: session.run(var) for var in variables}


def test_pretraining_loads_whole(published, caplog):
  prefix, arrays = published
  report, values = load(pretraining_heads, prefix)
  assert sorted(report.loaded) == sorted(PRETRAINING)
  assert report.missing == report.extra == report.fresh == []
  assert set(values) == set(arrays)
  for name, value in arrays.items():
    np.testing.assert_array_equal(values[name], value, err_msg=name)
  with caplog.at_level(logging.INFO, LOGGER.name):
    checkpoints.log_report(report, LOGGER)
  assert [record.getMessage() for record in caplog.records] == [
      "%d variables start from %s" % (len(PRETRAINING), prefix)]


def test_squad_loads_the_encoder_and_lists_the_heads(published, caplog):
  prefix, arrays = published
  report, values = load(squad_head, prefix, optional_scopes=("cls",))
  assert sorted(report.loaded) == sorted(ENCODER)
  assert sorted(report.missing) == sorted(report.fresh) == sorted(SPAN)
  assert sorted(report.extra) == sorted(list(MASKED_LM) + list(NEXT_SENTENCE))
  for name in ENCODER:
    np.testing.assert_array_equal(values[name], arrays[name], err_msg=name)
  with caplog.at_level(logging.INFO, LOGGER.name):
    checkpoints.log_report(report, LOGGER)
  for name in list(SPAN) + list(MASKED_LM) + list(NEXT_SENTENCE):
    assert name in caplog.text
  assert not [r for r in caplog.records if r.levelno > logging.INFO]


def test_missing_and_extra_are_listed_by_name(tmp_path, caplog):
  lost = ["bert/encoder/layer_1/output/dense/bias", "bert/pooler/dense/kernel"]
  arrays = random_arrays({name: shape for name, shape in PRETRAINING.items()
                          if name not in lost})
  arrays["other/weights"] = np.zeros([3], np.float32)
  # Of training: no weights that are left out.
  arrays["global_step"] = np.array(5, np.int64)
  arrays["records_consumed"] = np.array(40, np.int64)
  arrays["bert/pooler/dense/bias/adam_m"] = np.zeros([8], np.float32)
  prefix = str(tmp_path / "model.ckpt")
  convert_checkpoint.write_checkpoint(prefix, arrays)
  report, _ = load(pretraining_heads, prefix, optional_scopes=("cls",))
  assert sorted(report.missing) == lost and report.extra == ["other/weights"]
  with caplog.at_level(logging.INFO, LOGGER.name):
    checkpoints.log_report(report, LOGGER)
  warning, = [r.getMessage() for r in caplog.records
              if r.levelno == logging.WARNING]
  assert "MISSING" in warning and all(name in warning for name in lost)
  assert "not in the model: other/weights" in caplog.text
  assert "adam_m" not in caplog.text and "global_step" not in caplog.text


def test_wrong_shape_is_one_line(published):
  prefix, _ = published

  def build():
    tf.get_variable("bert/pooler/dense/kernel", [8, 9])

  with pytest.raises(UserError) as caught:
    load(build, prefix)
  message = str(caught.value)
  assert "\n" not in message and prefix in message
  assert "bert/pooler/dense/kernel has shape [8, 8]" in message
  assert "[8, 9]" in message


def test_googles_own_map_finds_all(published):
  """`get_assignment_map_from_checkpoint`, as code written for it calls it."""
  prefix, _ = published
  with tf.Graph().as_default():
    pretraining_heads()
    variables = tf.trainable_variables()
    assignment, initialized = modeling.get_assignment_map_from_checkpoint(
        variables, prefix)
  assert sorted(assignment) == sorted(PRETRAINING)
  assert {name for name in initialized if not name.endswith(":0")} == set(
      PRETRAINING)


def test_fine_tuning_starts_from_it(place, tmp_path):
  """The log of a run tells what came from the checkpoint and what did not."""
  sizes = modeling.BertConfig.from_json_file(str(place / "config.json"))
  with tf.Graph().as_default():
    modeling.BertModel(sizes, False, tf.zeros([1, 2], tf.int32))
    shapes = {var.op.name: var.shape.as_list()
              for var in tf.trainable_variables()}
  assert set(shapes) == set(ENCODER)
  arrays = random_arrays(shapes)
  arrays["cls/predictions/output_bias"] = np.zeros(
      [sizes.vocab_size], np.float32)
  prefix = str(tmp_path / "bert_model.ckpt")
  convert_checkpoint.write_checkpoint(prefix, arrays)
  # A rate of next to nothing, so that the weights are still the checkpoint's.
  result = runners.call("run_squad", settings(
      place, tmp_path / "out", init_checkpoint=prefix, do_predict=None,
      learning_rate=1e-30, num_train_epochs=1))
  assert result.status == 0, result.err
  assert "%d variables start from %s" % (len(ENCODER), prefix) in result.err
  assert ("new, not in the checkpoint: cls/squad/output_weights, "
          "cls/squad/output_bias") in result.err
  assert ("in the checkpoint, not in the model: cls/predictions/output_bias"
          ) in result.err
  saved = weights(tmp_path / "out")
  for name in ENCODER:
    np.testing.assert_array_equal(saved[name], arrays[name], err_msg=name)
