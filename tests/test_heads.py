"""The heads and losses: Google's code, numpy, and the published names."""


import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import bert_oracle
import modeling
import run_pretraining
import run_squad
from utils import precision
from utils import stack
from utils import training

stack.configure()

BATCH, SEQ, PREDICTIONS = 4, 7, 3
HIDDEN, INNER, VOCAB, POSITIONS, TYPES, LAYERS = 8, 12, 13, 9, 3, 2
SIZES = dict(vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=LAYERS,
             num_attention_heads=2, intermediate_size=INNER,
             type_vocab_size=TYPES, max_position_embeddings=POSITIONS,
             hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
TRAIN = tf.estimator.ModeKeys.TRAIN
FLOAT32 = precision.settle(False, False, False)
# What a run can compute: the reference's, and what is on by default.
LAYOUTS = {"reference": modeling.ModelOptions(),
           "default": modeling.ModelOptions(remove_padding=True,
                                            fused_ops=True)}
each_layout = pytest.mark.parametrize("layout", sorted(LAYOUTS))


def layer_shapes(layer):
  """Returns {published name: shape} of one layer."""
  square, wide = [HIDDEN, HIDDEN], [HIDDEN]
  root = "bert/encoder/layer_%d/" % layer
  return {root + name: shape for name, shape in {
      "attention/self/query/kernel": square,
      "attention/self/query/bias": wide,
      "attention/self/key/kernel": square,
      "attention/self/key/bias": wide,
      "attention/self/value/kernel": square,
      "attention/self/value/bias": wide,
      "attention/output/dense/kernel": square,
      "attention/output/dense/bias": wide,
      "attention/output/LayerNorm/gamma": wide,
      "attention/output/LayerNorm/beta": wide,
      "intermediate/dense/kernel": [HIDDEN, INNER],
      "intermediate/dense/bias": [INNER],
      "output/dense/kernel": [INNER, HIDDEN],
      "output/dense/bias": wide,
      "output/LayerNorm/gamma": wide,
      "output/LayerNorm/beta": wide,
  }.items()}


ENCODER = {
    "bert/embeddings/word_embeddings": [VOCAB, HIDDEN],
    "bert/embeddings/position_embeddings": [POSITIONS, HIDDEN],
    "bert/embeddings/token_type_embeddings": [TYPES, HIDDEN],
    "bert/embeddings/LayerNorm/gamma": [HIDDEN],
    "bert/embeddings/LayerNorm/beta": [HIDDEN],
    "bert/pooler/dense/kernel": [HIDDEN, HIDDEN],
    "bert/pooler/dense/bias": [HIDDEN],
}
for _layer in range(LAYERS):
  ENCODER.update(layer_shapes(_layer))
MASKED_LM = {
    "cls/predictions/transform/dense/kernel": [HIDDEN, HIDDEN],
    "cls/predictions/transform/dense/bias": [HIDDEN],
    "cls/predictions/transform/LayerNorm/gamma": [HIDDEN],
    "cls/predictions/transform/LayerNorm/beta": [HIDDEN],
    "cls/predictions/output_bias": [VOCAB],
}
NEXT_SENTENCE = {
    "cls/seq_relationship/output_weights": [2, HIDDEN],
    "cls/seq_relationship/output_bias": [2],
}
SPAN = {
    "cls/squad/output_weights": [2, HIDDEN],
    "cls/squad/output_bias": [2],
}
PRETRAINING = dict(ENCODER, **dict(MASKED_LM, **NEXT_SENTENCE))
SQUAD = dict(ENCODER, **SPAN)


def config(**changes):
  return modeling.BertConfig(**dict(SIZES, **changes))


def inputs(seed=0):
  """Returns {name: array} of what both models' graphs are fed."""
  random = np.random.RandomState(seed)
  ids, mask, kinds = bert_oracle.random_inputs(config(), BATCH, SEQ, seed)
  size = [BATCH, PREDICTIONS]
  return {
      "input_ids": ids, "input_mask": mask, "segment_ids": kinds,
      "masked_lm_positions": random.randint(
          0, mask.sum(1, keepdims=True), size).astype(np.int32),
      "masked_lm_ids": random.randint(0, VOCAB, size).astype(np.int32),
      # As in records: ones, then zeros that only fill them up; none at all in
      # the last.
      "masked_lm_weights": np.float32(
          [[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]]),
      "next_sentence_labels": np.int32([[0], [1], [1], [0]]),
      "unique_ids": np.arange(BATCH, dtype=np.int32),
      "start_positions": random.randint(0, mask.sum(1)).astype(np.int32),
      "end_positions": random.randint(0, mask.sum(1)).astype(np.int32)}


def run(build, seed=0):
  """Runs `build(features)` -> tensors over random weights.

  Returns:
    (arrays, {name: weight}).
  """
  with tf.Graph().as_default(), tf.Session() as session:
    feed = inputs(seed)
    features = {name: tf.constant(value) for name, value in feed.items()}
    tensors = build(features)
    weights = bert_oracle.random_weights(tf.trainable_variables())
    session.run([var.initializer for var in tf.global_variables()])
    session.run(tf.local_variables_initializer())
    bert_oracle.assign(session, weights)
    return session.run(tensors), weights


def wide(weights):
  return {name: value.astype(np.float64) for name, value in weights.items()}


def assert_equal(ours, theirs):
  """Each within 1e-5 of its largest value."""
  assert len(ours) == len(theirs)
  for one, other in zip(ours, theirs):
    assert bert_oracle.relative_error(one, other) < 1e-5


def shapes_of(variables):
  return {var.op.name: var.shape.as_list() for var in variables}


# Masked LM and next sentence ------------------------------------------------


def vectors(shape, seed=5):
  """What the encoder gives, as a constant."""
  return tf.constant(
      np.random.RandomState(seed).normal(size=shape), tf.float32)


def masked_vectors(features):
  """What the encoder gives at the masked positions."""
  return tf.gather_nd(vectors([BATCH, SEQ, HIDDEN]), tf.reshape(tf.stack(
      [tf.repeat(tf.range(BATCH), PREDICTIONS),
       tf.reshape(features["masked_lm_positions"], [-1])], 1), [-1, 2]))


def table():
  return tf.get_variable("bert/embeddings/word_embeddings", [VOCAB, HIDDEN])


@pytest.mark.parametrize("hidden_act,fused_ops", [
    ("gelu", False), ("gelu", True), ("gelu_exact", False), ("relu", False)])
def test_masked_lm_equals_google_and_numpy(hidden_act, fused_ops):
  def ours(features):
    outputs = run_pretraining.masked_lm_outputs(
        config(hidden_act=hidden_act), masked_vectors(features), table(),
        features, fused_ops)
    np.testing.assert_equal(outputs.labels.shape.as_list(),
                            [BATCH * PREDICTIONS])
    return [run_pretraining.weighted_mean(outputs), outputs.losses,
            outputs.log_probs]

  def theirs(features):
    return list(bert_oracle.google_runner(
        "run_pretraining").get_masked_lm_output(
            config(hidden_act=modeling.get_activation(hidden_act)),
            vectors([BATCH, SEQ, HIDDEN]), table(),
            *[features["masked_lm_" + name]
              for name in ("positions", "ids", "weights")]))

  found, weights = run(ours)
  expected, their_weights = run(theirs)
  assert sorted(weights) == sorted(their_weights) == sorted(
      list(MASKED_LM) + ["bert/embeddings/word_embeddings"])
  assert_equal(found, expected)
  assert_equal(found, masked_lm_by_numpy(wide(weights), hidden_act))


def masked_lm_by_numpy(weights, hidden_act):
  """Returns (loss, losses, log probabilities) in float64, row by row."""
  sequence = np.random.RandomState(5).normal(size=[BATCH, SEQ, HIDDEN])
  sequence = sequence.astype(np.float32).astype(np.float64)
  feed = inputs()
  root = "cls/predictions/transform/"
  log_probs, losses = [], []
  for b in range(BATCH):
    for position, label in zip(feed["masked_lm_positions"][b],
                               feed["masked_lm_ids"][b]):
      x = sequence[b, position].dot(weights[root + "dense/kernel"])
      x = bert_oracle.ACTIVATIONS[hidden_act](x + weights[root + "dense/bias"])
      x = bert_oracle.layer_norm(x, weights[root + "LayerNorm/gamma"],
                                 weights[root + "LayerNorm/beta"])
      logits = weights["bert/embeddings/word_embeddings"].dot(x)
      logits += weights["cls/predictions/output_bias"]
      log_probs.append(np.log(bert_oracle.softmax(logits)))
      losses.append(-log_probs[-1][label])
  # Six real predictions of twelve.
  real = feed["masked_lm_weights"].ravel()
  assert real.sum() == 6
  return np.dot(losses, real) / (6 + 1e-5), np.array(losses), np.array(
      log_probs)


def test_next_sentence_equals_google_and_numpy():
  def ours(features):
    outputs = run_pretraining.next_sentence_outputs(
        config(), vectors([BATCH, HIDDEN]), features)
    return [tf.reduce_mean(outputs.losses), outputs.losses, outputs.log_probs,
            outputs.weights]

  def theirs(features):
    outputs = bert_oracle.google_runner(
        "run_pretraining").get_next_sentence_output(
            config(), vectors([BATCH, HIDDEN]),
            features["next_sentence_labels"])
    return list(outputs) + [tf.ones([BATCH])]

  found, weights = run(ours)
  expected, their_weights = run(theirs)
  assert sorted(weights) == sorted(their_weights) == sorted(NEXT_SENTENCE)
  assert_equal(found, expected)
  pooled = np.random.RandomState(5).normal(size=[BATCH, HIDDEN])
  logits = pooled.dot(wide(weights)[
      "cls/seq_relationship/output_weights"].T) + weights[
          "cls/seq_relationship/output_bias"]
  log_probs = np.log(bert_oracle.softmax(logits))
  losses = -log_probs[range(BATCH), [0, 1, 1, 0]]
  assert_equal(found[:3], [losses.mean(), losses, log_probs])


def test_no_prediction_at_all_is_no_loss():
  outputs = run_pretraining.Outputs(
      tf.constant([3.0, 4.0]), None, None, tf.zeros([2]))
  with tf.Session() as session:
    assert session.run(run_pretraining.weighted_mean(outputs)) == 0


def test_metrics_equal_google():
  """Accuracies and losses over what is real."""
  def ours(features):
    mlm = run_pretraining.masked_lm_outputs(
        config(), masked_vectors(features), table(), features)
    nsp = run_pretraining.next_sentence_outputs(
        config(), vectors([BATCH, HIDDEN]), features)
    return {name: update for name, (_, update)
            in run_pretraining.eval_metrics(mlm, nsp).items()}

  found, weights = run(ours)
  _, losses, log_probs = masked_lm_by_numpy(wide(weights), "gelu")
  feed = inputs()
  real = feed["masked_lm_weights"].ravel() == 1
  right = log_probs.argmax(-1) == feed["masked_lm_ids"].ravel()
  assert found["masked_lm_accuracy"] == pytest.approx(right[real].mean())
  assert found["masked_lm_loss"] == pytest.approx(losses[real].mean(), 1e-5)
  assert right[real].mean() != right.mean()
  assert set(found) == {"masked_lm_accuracy", "masked_lm_loss",
                        "next_sentence_accuracy", "next_sentence_loss"}


# The span head --------------------------------------------------------------


def span_head(features):
  """Returns `span_logits` of a model that has every position."""
  model = modeling.BertModel(
      config(), False, features["input_ids"], features["input_mask"],
      features["segment_ids"])
  return list(run_squad.span_logits(model.token_output, model.sequences))


def test_span_logits_equal_google_and_numpy():
  found, weights = run(span_head)
  expected, their_weights = run(lambda features: list(
      bert_oracle.google_runner("run_squad").create_model(
          config(), False, features["input_ids"], features["input_mask"],
          features["segment_ids"], False)))
  assert sorted(weights) == sorted(their_weights) == sorted(SQUAD)
  assert_equal(found, expected)
  feed = inputs()
  _, layers, _ = bert_oracle.Oracle(config(), wide(weights)).forward(
      feed["input_ids"], feed["input_mask"], feed["segment_ids"])
  logits = layers[-1].dot(wide(weights)["cls/squad/output_weights"].T)
  logits += weights["cls/squad/output_bias"]
  assert_equal(found, [logits[..., 0], logits[..., 1]])


def test_span_loss_equals_numpy():
  random = np.random.RandomState(3)
  start, end = random.normal(size=[2, BATCH, SEQ]) * 3
  feed = inputs()
  with tf.Graph().as_default(), tf.Session() as session:
    loss = session.run(run_squad.span_loss_sum(
        tf.constant(start, tf.float32), tf.constant(end, tf.float32),
        {name: tf.constant(feed[name])
         for name in ("start_positions", "end_positions")})) / BATCH
  expected = 0.0
  for logits, name in ((start, "start_positions"), (end, "end_positions")):
    for row, position in zip(logits, feed[name]):
      expected -= np.log(bert_oracle.softmax(row)[position]) / BATCH / 2
  assert loss == pytest.approx(expected, rel=1e-6)


# Whole graphs ---------------------------------------------------------------


def run_config(runner, folder):
  """Returns a runner's config with what its training graph reads."""
  kind = {run_pretraining: run_pretraining.PretrainingConfig,
          run_squad: run_squad.SquadConfig}[runner]
  values = dict.fromkeys(kind._fields)
  values.update(
      output_dir=str(folder), train_batch_size=BATCH, learning_rate=1e-3,
      seed=1, log_every_steps=1, save_checkpoints_steps=10,
      keep_checkpoint_max=2, optimizer_type="adam", num_accumulation_steps=1,
      nan_policy="stop", allreduce_fp16=False)
  return kind(**{name: values[name] for name in kind._fields})


def model_params(runner, folder, layout, **more):
  """Returns what `training.estimator` gives a model function."""
  values = run_config(runner, folder)._replace(
      remove_padding=LAYOUTS[layout].remove_padding)
  return dict(config=values, bert_config=config(), precision=FLOAT32,
              fused_ops=LAYOUTS[layout].fused_ops, checkpoint=None, **more)


def training_spec(runner, features, folder, layout):
  return runner.model_fn(features, None, TRAIN, model_params(
      runner, folder, layout,
      run=training.Run(run_config(runner, folder), 10, 1, None)))


def google_spec(name, features):
  model_fn = bert_oracle.google_runner(name).model_fn_builder(
      config(), None, 1e-3, 10, 1, False, False)
  return model_fn(features, None, TRAIN, {})


@each_layout
@pytest.mark.parametrize("runner, name, golden", [
    (run_pretraining, "run_pretraining", PRETRAINING),
    (run_squad, "run_squad", SQUAD)])
def test_training_graph(tmp_path, runner, name, golden, layout):
  """Its variables have the published names, its loss is Google's.

  But for SQuAD without padding, whose loss is over tokens alone.
  """
  # SQuAD's loss does not reach the pooler.
  everything = dict(golden, global_step=[])
  everything.update({
      "%s/%s" % (variable, slot): shape for variable, shape in golden.items()
      for slot in ("adam_m", "adam_v")
      if runner is run_pretraining or "pooler" not in variable})

  def ours(features):
    loss = training_spec(runner, features, tmp_path, layout).loss
    assert shapes_of(tf.trainable_variables()) == golden
    assert shapes_of(tf.global_variables()) == dict(
        everything, records_consumed=[])
    return [loss]

  def theirs(features):
    loss = google_spec(name, features).loss
    assert shapes_of(tf.trainable_variables()) == golden
    assert shapes_of(tf.global_variables()) == everything
    return [loss]

  for seed in range(2):
    found, _ = run(ours, seed)
    expected, _ = run(theirs, seed)
    if runner is run_pretraining or layout == "reference":
      assert_equal(found, expected)
    else:
      assert 0.5 < found[0] < expected[0]
    assert expected[0] > 1


@each_layout
@pytest.mark.parametrize("runner", [run_pretraining, run_squad])
def test_training_computes_on_tokens_alone_by_kernels(tmp_path, runner, layout):
  types = set()

  def rows_of_queries(features):
    training_spec(runner, features, tmp_path, layout)
    operations = tf.get_default_graph().get_operations()
    types.update(op.type for op in operations)
    return [tf.shape(op.outputs[0])[0] for op in operations
            if op.type == "MatMul" and op.name.startswith("bert/")
            and "/query/" in op.name]

  rows, _ = run(rows_of_queries)
  kernels = {"Bert" + name + end for end in ("", "Grad") for name in (
      "Attention", "BiasGelu", "DropoutAddNorm") + (
          ("CrossEntropy",) if runner is run_pretraining else ())}
  if layout == "default":
    tokens = int((inputs()["input_mask"] > 0).sum())
    assert tokens < BATCH * SEQ
    assert rows == [tokens] * LAYERS
    assert types >= kernels | {"BertAdam", "BertGlobalNorm"}
  else:
    assert rows == [BATCH * SEQ] * LAYERS
    assert not [name for name in types if name.startswith("Bert")]


@each_layout
def test_prediction_graph_gives_the_logits(tmp_path, monkeypatch, layout):
  monkeypatch.setattr(training, "restoring", lambda params: None)

  def predicted(features):
    spec = run_squad.model_fn(
        features, None, tf.estimator.ModeKeys.PREDICT,
        model_params(run_squad, tmp_path, layout))
    assert shapes_of(tf.global_variables()) == SQUAD
    return [spec.predictions[key]
            for key in ("start_logits", "end_logits", "unique_ids")]

  found, _ = run(predicted)
  expected, _ = run(span_head)
  for one, other in zip(found[:2], expected):
    real = inputs()["input_mask"] > 0
    if layout == "default":
      assert (one[~real] == run_squad.PADDING_LOGIT).all()
      one, other = one[real], other[real]
    assert_equal([one], [other])
  assert list(found[2]) == list(range(BATCH))


@each_layout
def test_evaluation_graph(tmp_path, monkeypatch, layout):
  monkeypatch.setattr(training, "restoring", lambda params: None)

  def evaluated(features):
    spec = run_pretraining.model_fn(
        features, None, tf.estimator.ModeKeys.EVAL,
        model_params(run_pretraining, tmp_path, layout))
    assert shapes_of(tf.trainable_variables()) == PRETRAINING
    return {name: update for name, (_, update)
            in spec.eval_metric_ops.items()}

  def googles(features):
    model_fn = bert_oracle.google_runner("run_pretraining").model_fn_builder(
        config(), None, 1e-3, 10, 1, False, False)
    spec = model_fn(features, None, tf.estimator.ModeKeys.EVAL, {})
    function, tensors = spec.eval_metrics
    return {name: update for name, (_, update)
            in function(*tensors).items()}

  found, _ = run(evaluated)
  expected, _ = run(googles)
  assert set(found) == set(expected)
  for name, value in expected.items():
    assert found[name] == pytest.approx(value, rel=1e-5), name
