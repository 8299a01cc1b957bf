"""Work on tokens alone gives what work on padding gives, but for padding.

In float32, dropout off. The features are those of the bundled sample.
"""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import bert_oracle
import modeling
import run_pretraining
import run_squad
from fused_ops import sequences as rows_of
from utils import stack

stack.configure()

CONFIG = dict(vocab_size=60, hidden_size=32, num_hidden_layers=3,
              num_attention_heads=4, intermediate_size=48, type_vocab_size=2,
              max_position_embeddings=24, hidden_dropout_prob=0.0,
              attention_probs_dropout_prob=0.0)
LAYOUTS = {"packed": dict(remove_padding=True),
           "rounded": dict(remove_padding=True, row_buckets=3),
           "fused": dict(remove_padding=True, fused_ops=True),
           "fused padded": dict(fused_ops=True)}


def features_of(lengths, length=20, predictions=4, seed=0):
  """Returns features of sequences of these lengths, [batch, ...]."""
  random = np.random.RandomState(seed)
  batch = len(lengths)
  mask = (np.arange(length) < np.array(lengths)[:, None]).astype(np.int32)
  positions = np.stack([np.resize(random.permutation(max(n, 1)), predictions)
                        for n in lengths])
  weights = np.ones([batch, predictions], np.float32)
  weights[0, -2:], positions[0, -2:] = 0, 0  # a record that is filled up
  return dict(
      input_ids=random.randint(1, 60, [batch, length]) * mask,
      input_mask=mask, segment_ids=random.randint(0, 2, mask.shape) * mask,
      masked_lm_positions=positions, masked_lm_weights=weights,
      masked_lm_ids=random.randint(1, 60, [batch, predictions]),
      next_sentence_labels=random.randint(0, 2, [batch, 1]),
      start_positions=random.randint(0, np.maximum(lengths, 1)),
      end_positions=random.randint(0, np.maximum(lengths, 1)))


def evaluate(make, features, dynamic=False, **layout):
  """Returns the value of `make(features, config, options)`'s tensors."""
  with tf.Graph().as_default(), tf.Session() as session:
    inputs = {}
    for name, value in features.items():
      dtype = tf.float32 if name.endswith("weights") else tf.int32
      inputs[name] = tf.placeholder(
          dtype, [None] * value.ndim if dynamic and value.ndim == 2
          and name.startswith(("input", "segment")) else value.shape)
    outputs = make(inputs, modeling.BertConfig(**CONFIG),
                   modeling.ModelOptions(**layout))
    bert_oracle.assign(session, bert_oracle.random_weights(
        tf.trainable_variables()))
    return session.run(outputs, {inputs[key]: features[key] for key in inputs})


def pretraining(features, config, options):
  """Returns [loss, the gradients of all weights]."""
  mlm, nsp = run_pretraining.outputs_of(features, config, True, options)
  loss = (run_pretraining.weighted_mean(mlm)
          + run_pretraining.weighted_mean(nsp))
  return [loss] + [tf.convert_to_tensor(grad) for grad in tf.gradients(
      loss, tf.trainable_variables())]


def squad(features, config, options):
  return run_squad.logits_of(features, config, True, options)


def getters(features, config, options):
  """Returns all that a model gives away, [batch, ...]."""
  model = modeling.BertModel(
      config, False, features["input_ids"], features["input_mask"],
      features["segment_ids"], options=options)
  return ([model.get_pooled_output(), model.get_sequence_output(),
           model.get_embedding_output(), model.get_word_embedding_output()]
          + model.get_all_encoder_layers())


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("lengths", [[20], [1, 20, 7, 13], [20, 20, 20]])
def test_pretraining_loss_and_gradients(lengths, layout):
  features = features_of(lengths)
  expected = evaluate(pretraining, features)
  found = evaluate(pretraining, features, **LAYOUTS[layout])
  assert found[0] == pytest.approx(expected[0], rel=1e-5)
  largest = max(np.abs(grad).max() for grad in expected[1:])
  assert len(found) == len(expected)
  for one, other in zip(found[1:], expected[1:]):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_logits_of_tokens(layout, dynamic):
  features = features_of([1, 20, 7, 13])
  real = features["input_mask"] > 0
  for one, other in zip(evaluate(squad, features, dynamic, **LAYOUTS[layout]),
                        evaluate(squad, features, dynamic)):
    np.testing.assert_allclose(one[real], other[real], rtol=0,
                               atol=1e-5 * np.abs(other[real]).max())
    if LAYOUTS[layout].get("remove_padding"):
      assert (one[~real] == run_squad.PADDING_LOGIT).all()


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_getters_keep_their_shapes(layout):
  features = features_of([1, 20, 7, 13])
  real = features["input_mask"] > 0
  expected = evaluate(getters, features)
  found = evaluate(getters, features, **LAYOUTS[layout])
  for one, other in zip(found, expected):
    assert one.shape == other.shape
    if one.ndim == 2:
      np.testing.assert_allclose(one, other, atol=1e-5)
      continue
    np.testing.assert_allclose(one[real], other[real], rtol=0,
                               atol=1e-5 * np.abs(other).max())
    if LAYOUTS[layout].get("remove_padding"):
      assert not one[~real].any()


def test_mask_with_holes():
  features = features_of([20, 20])
  features["input_mask"][0, 3:9] = features["input_mask"][1, -1] = 0
  real = features["input_mask"] > 0
  for layout in LAYOUTS.values():
    for one, other in zip(evaluate(squad, features, **layout),
                          evaluate(squad, features)):
      np.testing.assert_allclose(one[real], other[real], atol=1e-5)


def test_sequence_without_tokens_is_finite():
  features = features_of([0, 9, 0])
  for layout in LAYOUTS.values():
    for value in evaluate(pretraining, features, **layout):
      assert np.isfinite(value).all()


def test_batch_without_tokens_is_finite():
  for layout in LAYOUTS.values():
    for value in evaluate(squad, features_of([0, 0]), **layout):
      assert np.isfinite(value).all()


def test_no_padded_matrix_is_made(monkeypatch):
  """Training moves rows to their places for attention alone, if at all."""
  moved = []
  pad = rows_of.pad
  monkeypatch.setattr(rows_of, "pad", lambda sequences, rows: (
      moved.append(rows.shape.as_list()), pad(sequences, rows))[1])
  evaluate(pretraining, features_of([3, 9]), **LAYOUTS["fused"])
  assert not moved
  evaluate(pretraining, features_of([3, 9]), **LAYOUTS["packed"])
  assert len(moved) == 3 * CONFIG["num_hidden_layers"]


def test_packing_and_padding_are_each_others_inverse():
  mask = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1]], np.int32)
  rows = np.arange(5 * 2, dtype=np.float32).reshape(5, 2) + 1
  with tf.Graph().as_default(), tf.Session() as session:
    sequences = rows_of.of_tokens(3, 4, tf.constant(mask))
    padded = rows_of.pad(sequences, tf.constant(rows))
    short = rows_of.shortened(sequences)
    values = session.run([
        padded, rows_of.pack(sequences, padded), sequences.starts,
        rows_of.positions(sequences), short.length, short.mask,
        rows_of.pad(short, tf.constant(rows)),
        rows_of.rows_at(sequences, tf.constant([0, 1, 8, 11]))])
  padded, packed, starts, positions, longest, short_mask, short, at = values
  np.testing.assert_array_equal(padded[mask > 0], rows)
  assert not padded[mask == 0].any()
  np.testing.assert_array_equal(packed, rows)
  assert starts.tolist() == [0, 2, 2, 5] and positions.tolist() == [0, 1, 0, 2,
                                                                    3]
  assert longest == 3 and short_mask.tolist() == [[1, 1, 0], [0, 0, 0],
                                                  [1, 1, 1]]
  np.testing.assert_array_equal(short[2], rows[2:])
  assert at.tolist() == [0, 1, 2, 4]
