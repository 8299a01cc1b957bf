"""The encoder's parts: config, names, masks, shapes, activations, dropout."""

import inspect
import json
import math

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import bert_oracle
import modeling
from utils import stack
from utils.errors import UserError

stack.configure()

TINY = dict(vocab_size=13, hidden_size=8, num_hidden_layers=2,
            num_attention_heads=2, intermediate_size=12, type_vocab_size=3,
            max_position_embeddings=9)
RANDOM_OPS = ("RandomUniform", "StatelessRandomUniform",
              "StatelessRandomUniformV2")


def evaluate(make):
  """Returns the value of the tensors that `make()` builds."""
  with tf.Graph().as_default(), tf.Session() as session:
    tensors = make()
    session.run(tf.global_variables_initializer())
    return session.run(tensors)


def expected_shapes(layers, hidden, inner, vocab, positions, kinds):
  """Returns the published names and shapes, in order of creation."""
  root = "bert/embeddings/"
  golden = [(root + "word_embeddings", [vocab, hidden]),
            (root + "token_type_embeddings", [kinds, hidden]),
            (root + "position_embeddings", [positions, hidden]),
            (root + "LayerNorm/beta", [hidden]),
            (root + "LayerNorm/gamma", [hidden])]
  for layer in range(layers):
    root = "bert/encoder/layer_%d/" % layer
    for name in ("query", "key", "value"):
      golden += [(root + "attention/self/%s/kernel" % name, [hidden, hidden]),
                 (root + "attention/self/%s/bias" % name, [hidden])]
    for scope, before, after in (("attention/output", hidden, hidden),
                                 ("intermediate", hidden, inner),
                                 ("output", inner, hidden)):
      golden += [(root + scope + "/dense/kernel", [before, after]),
                 (root + scope + "/dense/bias", [after])]
      if scope != "intermediate":
        golden += [(root + scope + "/LayerNorm/beta", [hidden]),
                   (root + scope + "/LayerNorm/gamma", [hidden])]
  return golden + [("bert/pooler/dense/kernel", [hidden, hidden]),
                   ("bert/pooler/dense/bias", [hidden])]


def build(config, is_training=False, shape=(2, 5), **more):
  ids = tf.zeros(shape, tf.int32)
  return modeling.BertModel(config, is_training, ids, tf.ones_like(ids),
                            tf.zeros_like(ids), **more)


# Names and signatures -------------------------------------------------------


@pytest.mark.parametrize("sizes, parameters", [
    ((2, 8, 12, 13, 9, 3), None), ((12, 768, 3072, 30522, 512, 2), 109482240)])
def test_variables_are_the_published_ones(sizes, parameters):
  layers, hidden, inner, vocab, positions, kinds = sizes
  config = modeling.BertConfig(
      vocab, hidden, layers, 2, inner, max_position_embeddings=positions,
      type_vocab_size=kinds)
  with tf.Graph().as_default():
    build(config)
    variables = tf.trainable_variables()
    assert len(tf.global_variables()) == len(variables)
  found = [(var.op.name, var.shape.as_list()) for var in variables]
  assert found == expected_shapes(*sizes)
  assert all(var.dtype.base_dtype == tf.float32 for var in variables)
  if parameters:
    assert sum(np.prod(shape) for _, shape in found) == parameters


def test_scope_renames_the_root():
  with tf.Graph().as_default():
    build(modeling.BertConfig(**TINY), scope="other")
    assert {var.name.split("/")[0] for var in tf.trainable_variables()} == {
        "other"}


@pytest.mark.parametrize("name", [
    "gelu", "get_activation", "get_assignment_map_from_checkpoint", "dropout",
    "layer_norm", "layer_norm_and_dropout", "create_initializer",
    "embedding_lookup", "embedding_postprocessor",
    "create_attention_mask_from_input_mask", "attention_layer",
    "transformer_model", "get_shape_list", "reshape_to_matrix",
    "reshape_from_matrix", "assert_rank", "BertConfig", "BertModel"])
def test_signatures_are_googles(name):
  google = bert_oracle.google_modeling()

  def positional(module):
    target = getattr(module, name)
    if inspect.isclass(target):
      target = target.__init__
    return [(p.name, p.default if not callable(p.default) else "function")
            for p in inspect.signature(target).parameters.values()
            if p.kind is not p.KEYWORD_ONLY]

  assert positional(modeling) == positional(google)


def test_googles_own_unit_tests_pass(monkeypatch):
  bert_oracle.google_modeling()
  from bert import modeling_test  # pylint: disable=import-outside-toplevel
  monkeypatch.setattr(modeling_test, "modeling", modeling)
  bert_oracle.run_googles_tests(modeling_test.BertModelTest, 2)


# Config ---------------------------------------------------------------------


def test_config_round_trips(tmp_path):
  config = modeling.BertConfig(vocab_size=99, hidden_size=36, hidden_act="relu")
  path = tmp_path / "bert_config.json"
  path.write_text(config.to_json_string())
  again = modeling.BertConfig.from_json_file(str(path))
  assert again.to_dict() == config.to_dict()
  assert json.loads(again.to_json_string())["hidden_size"] == 36
  again.to_dict()["hidden_size"] = 1
  assert again.hidden_size == 36


def test_config_keeps_what_it_does_not_know():
  config = modeling.BertConfig.from_dict({"vocab_size": 5, "pooler": "x"})
  assert config.pooler == "x" and config.hidden_size == 768


@pytest.mark.parametrize("text, words", [
    (None, "cannot read"), ("{", "not valid JSON"), ("[1]", "JSON object"),
    ("{}", "vocab_size"), ('{"vocab_size": "5"}', "vocab_size"),
    ('{"vocab_size": 5, "hidden_size": 10}', "multiple of"),
    ('{"vocab_size": 5, "num_hidden_layers": 0}', "num_hidden_layers"),
    ('{"vocab_size": 5, "hidden_dropout_prob": 1.0}', "hidden_dropout_prob"),
    ('{"vocab_size": 5, "hidden_act": "swish"}', "swish"),
    ('{"vocab_size": 5, "hidden_act": null}', None)])
def test_bad_config_is_one_line(tmp_path, text, words):
  path = tmp_path / "bert_config.json"
  if text is not None:
    path.write_text(text)
  if words is None:
    assert modeling.BertConfig.from_json_file(str(path)).vocab_size == 5
    return
  with pytest.raises(UserError) as error:
    modeling.BertConfig.from_json_file(str(path))
  assert words in str(error.value) and str(path) in str(error.value)
  assert "\n" not in str(error.value)


# Activations ----------------------------------------------------------------


def test_gelus_equal_their_formulas():
  x = np.concatenate([np.linspace(-12, 12, 997), [-1e4, -60, 0, 60, 1e4]])
  tanh, exact = evaluate(lambda: [
      modeling.gelu(tf.constant(x, tf.float32)),
      modeling.gelu_exact(tf.constant(x, tf.float32))])
  np.testing.assert_allclose(tanh, bert_oracle.tanh_gelu(x), rtol=1e-5,
                             atol=1e-6)
  np.testing.assert_allclose(exact, bert_oracle.exact_gelu(x), rtol=1e-5,
                             atol=1e-6)
  assert np.abs(tanh - exact).max() > 1e-4


def test_gelu_gradients_equal_differences_of_the_formulas():
  x = np.linspace(-9, 9, 201)
  for function, formula in ((modeling.gelu, bert_oracle.tanh_gelu),
                            (modeling.gelu_exact, bert_oracle.exact_gelu)):
    def gradient(function=function):
      point = tf.constant(x, tf.float32)
      return tf.gradients(function(point), point)[0]
    expected = (formula(x + 1e-5) - formula(x - 1e-5)) / 2e-5
    np.testing.assert_allclose(evaluate(gradient), expected, rtol=0, atol=6e-6)


def test_activations_by_name():
  assert modeling.get_activation("GELU") is modeling.gelu
  assert modeling.get_activation("gelu_exact") is modeling.gelu_exact
  assert modeling.get_activation("relu") is tf.nn.relu
  assert modeling.get_activation("tanh") is tf.tanh
  for none in ("linear", "", None):
    assert modeling.get_activation(none) is None
  assert modeling.get_activation(math.sin) is math.sin
  with pytest.raises(ValueError, match="Unsupported activation: swish"):
    modeling.get_activation("swish")


# Shapes and masks -----------------------------------------------------------


def test_shape_helpers():
  with tf.Graph().as_default(), tf.Session() as session:
    fixed = tf.zeros([2, 3, 4])
    moving = tf.placeholder(tf.float32, [None, 3, 4])
    assert modeling.get_shape_list(fixed, expected_rank=[2, 3]) == [2, 3, 4]
    shape = modeling.get_shape_list(moving)
    assert shape[1:] == [3, 4]
    assert session.run(shape[0], {moving: np.zeros([5, 3, 4])}) == 5
    matrix = modeling.reshape_to_matrix(moving)
    assert matrix.shape.as_list() == [None, 4]
    assert modeling.reshape_to_matrix(matrix) is matrix
    back = modeling.reshape_from_matrix(modeling.reshape_to_matrix(fixed),
                                        [2, 3, 4])
    assert back.shape.as_list() == [2, 3, 4]
    with pytest.raises(ValueError, match="rank 2"):
      modeling.reshape_to_matrix(tf.zeros([3]))
    with pytest.raises(ValueError, match="actual rank `3`"):
      modeling.assert_rank(fixed, 2)
    with pytest.raises(ValueError, match="actual rank `3`"):
      modeling.get_shape_list(fixed, expected_rank=[1, 2])


def test_attention_mask_repeats_the_input_mask():
  mask = evaluate(lambda: modeling.create_attention_mask_from_input_mask(
      tf.zeros([2, 3, 7]), tf.constant([[1, 1, 0, 0], [1, 0, 1, 0]])))
  assert mask.dtype == np.float32
  np.testing.assert_array_equal(
      mask, [[[1, 1, 0, 0]] * 3, [[1, 0, 1, 0]] * 3])


def test_attention_to_another_sequence():
  """Against the definition, with three-dimensional inputs and a full mask."""
  random = np.random.RandomState(0)
  source, target = random.normal(size=(2, 3, 5)), random.normal(size=(2, 4, 6))
  mask = random.randint(0, 2, (2, 3, 4))
  mask[:, :, 0] = 1
  with tf.Graph().as_default(), tf.Session() as session:
    context = modeling.attention_layer(
        tf.constant(source, tf.float32), tf.constant(target, tf.float32),
        tf.constant(mask), num_attention_heads=2, size_per_head=3,
        value_act=tf.tanh, initializer_range=0.5)
    session.run(tf.global_variables_initializer())
    weights = {var.op.name: session.run(var).astype(np.float64)
               for var in tf.trainable_variables()}
    actual = session.run(context)
  query, key, value = (
      x.dot(weights[name + "/kernel"]).reshape(2, -1, 2, 3)
      for name, x in (("query", source), ("key", target), ("value", target)))
  value = np.tanh(value)
  expected = np.zeros([2, 3, 2, 3])
  for b in range(2):
    for n in range(2):
      scores = query[b, :, n].dot(key[b, :, n].T) / math.sqrt(3)
      scores += (1 - mask[b]) * -10000.0
      expected[b, :, n] = bert_oracle.softmax(scores).dot(value[b, :, n])
  assert bert_oracle.relative_error(actual, expected) < 1e-5


def test_padding_does_not_reach_tokens():
  config = modeling.BertConfig(**TINY)
  with tf.Graph().as_default(), tf.Session() as session:
    ids = tf.placeholder(tf.int32, [None, None])
    mask = tf.placeholder(tf.int32, [None, None])
    output = modeling.BertModel(config, False, ids, mask).get_sequence_output()
    bert_oracle.assign(
        session, bert_oracle.random_weights(tf.trainable_variables()))
    short = session.run(output, {ids: [[4, 7, 2]], mask: [[1, 1, 1]]})
    for padding in ([0, 0], [5, 9]):
      long = session.run(output, {ids: [[4, 7, 2] + padding],
                                  mask: [[1, 1, 1, 0, 0]]})
      np.testing.assert_allclose(long[:, :3], short, atol=1e-5)
    seen = session.run(output, {ids: [[4, 7, 2, 5, 9]],
                                mask: [[1, 1, 1, 1, 1]]})
    assert np.abs(seen[:, :3] - short).max() > 1e-3


def test_defaults_are_all_tokens_of_the_first_kind():
  config = modeling.BertConfig(**TINY)
  with tf.Graph().as_default(), tf.Session() as session:
    ids = tf.constant([[1, 2, 3]])
    plain = modeling.BertModel(config, False, ids, scope="bert")
    with tf.variable_scope(tf.get_variable_scope(), reuse=True):
      full = modeling.BertModel(config, False, ids, tf.ones_like(ids),
                                tf.zeros_like(ids), scope="bert")
    session.run(tf.global_variables_initializer())
    outputs = session.run([plain.get_pooled_output(),
                           full.get_pooled_output()])
  np.testing.assert_allclose(*outputs, atol=1e-6)


def test_too_long_a_sequence_is_an_error():
  config = modeling.BertConfig(**TINY)
  with tf.Graph().as_default():
    with pytest.raises(ValueError, match="length 10 exceeds the model's 9"):
      build(config, shape=(2, 10))
  with tf.Graph().as_default(), tf.Session() as session:
    ids = tf.placeholder(tf.int32, [None, None])
    output = modeling.BertModel(config, False, ids).get_sequence_output()
    session.run(tf.global_variables_initializer())
    session.run(output, {ids: np.ones([1, 9])})
    with pytest.raises(tf.errors.InvalidArgumentError, match="too long|longer"):
      session.run(output, {ids: np.ones([1, 10])})


@pytest.mark.parametrize("change, words", [
    (dict(num_attention_heads=3), "not a multiple"),
    (dict(hidden_act="swish"), "Unsupported activation")])
def test_impossible_config_is_an_error(change, words):
  with tf.Graph().as_default(), pytest.raises(ValueError, match=words):
    build(modeling.BertConfig(**dict(TINY, **change)))


def test_assignment_map_is_the_intersection(tmp_path):
  with tf.Graph().as_default(), tf.Session() as session:
    tf.get_variable("both", [2])
    tf.get_variable("stored", [2])
    session.run(tf.global_variables_initializer())
    prefix = tf.train.Saver().save(session, str(tmp_path / "model"))
  with tf.Graph().as_default():
    tvars = [tf.get_variable("both", [2]), tf.get_variable("new", [2])]
    names, initialized = modeling.get_assignment_map_from_checkpoint(
        tvars, prefix)
  assert dict(names) == {"both": "both"}
  assert set(initialized) == {"both", "both:0"}


# Dropout --------------------------------------------------------------------


def keyed(value, prob=0.3, name="dropout", scope="s", noise=0, **key):
  """Returns dropout of `value` under the key, in a graph of its own."""
  def make():
    for _ in range(noise):
      tf.random_uniform([3])
    with tf.variable_scope(scope):
      return modeling.dropout(
          tf.constant(value, tf.float32), prob, name=name,
          key=modeling.DropoutKey(**dict(dict(seed=1, step=5), **key)))
  return evaluate(make)


def test_dropout_rate_and_scale():
  size = 400000
  for prob in (0.1, 0.5):
    output = keyed(np.full([size], 2.0), prob)
    kept = output[output != 0]
    np.testing.assert_allclose(kept, 2.0 / (1 - prob), rtol=1e-6)
    deviation = math.sqrt(prob * (1 - prob) / size)
    assert abs(1 - len(kept) / size - prob) < 4 * deviation


def test_equal_keys_repeat_the_mask():
  ones = np.ones([50, 20])
  np.testing.assert_array_equal(keyed(ones), keyed(ones, noise=3))


@pytest.mark.parametrize("change", [
    dict(seed=2), dict(step=6), dict(micro_batch=1), dict(rank=1),
    dict(name="other"), dict(scope="t"), dict(step=5 + (1 << 33))])
def test_masks_of_other_keys_are_independent(change):
  ones = np.ones([400, 400])
  base, other = keyed(ones) != 0, keyed(ones, **change) != 0
  # Independent masks agree on a share of p^2 + q^2.
  share = 0.7 ** 2 + 0.3 ** 2
  deviation = math.sqrt(share * (1 - share) / ones.size)
  assert abs((base == other).mean() - share) < 4 * deviation


def test_rows_and_columns_of_a_mask_are_independent():
  mask = (keyed(np.ones([500, 500])) != 0) - 0.7
  for moved in (np.roll(mask, 1, 0), np.roll(mask, 1, 1)):
    assert abs((mask * moved).mean()) < 4 * 0.21 / 500


def test_gradient_goes_through_the_same_mask():
  def make():
    x = tf.ones([30, 30])
    y = modeling.dropout(x, 0.4, key=modeling.DropoutKey(1, 2))
    return y, tf.gradients(y, x)[0]
  np.testing.assert_array_equal(*evaluate(make))


def test_no_dropout_returns_the_input():
  with tf.Graph().as_default():
    x = tf.ones([3])
    assert modeling.dropout(x, 0.0) is x
    assert modeling.dropout(x, None, key=modeling.DropoutKey(1, 2)) is x


def random_ops(is_training, keyed_dropout):
  with tf.Graph().as_default() as graph:
    step = tf.train.get_or_create_global_step()
    key = modeling.DropoutKey(1, step) if keyed_dropout else None
    build(modeling.BertConfig(**TINY), is_training,
          options=modeling.ModelOptions(dropout_key=key))
    types = [op.type for op in graph.get_operations()]
    return [op for op in types if op in RANDOM_OPS]


def test_dropout_is_where_the_reference_has_it():
  # The embeddings; in each layer attention and two dense outputs.
  assert len(random_ops(True, False)) == 1 + 3 * 2
  assert len(random_ops(True, True)) == 1 + 3 * 2
  assert all(op.startswith("Stateless") for op in random_ops(True, True))
  assert not random_ops(False, True)


def test_training_output_is_a_function_of_the_step():
  def run(steps):
    with tf.Graph().as_default(), tf.Session() as session:
      tf.set_random_seed(7)
      step = tf.train.get_or_create_global_step()
      options = modeling.ModelOptions(modeling.DropoutKey(3, step))
      model = build(modeling.BertConfig(**TINY), True, options=options)
      weights = bert_oracle.random_weights(tf.trainable_variables())
      session.run(step.initializer)
      bert_oracle.assign(session, weights)
      outputs = []
      for value in steps:
        step.load(value, session)
        outputs.append(session.run(model.get_sequence_output()))
      return outputs

  first, second, again = run([4, 5, 4])
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - second).max() > 0.01
  np.testing.assert_array_equal(run([5])[0], second)


def test_masks_differ_between_the_places_of_a_model():
  """No two of a model's masks may be drawn from one seed."""
  with tf.Graph().as_default() as graph, tf.Session() as session:
    build(modeling.BertConfig(**TINY), True, options=modeling.ModelOptions(
        modeling.DropoutKey(3, 1)))
    seeds = [op.inputs[1] for op in graph.get_operations()
             if op.type == "StatelessRandomUniform"]
    if not seeds:  # TensorFlow 2 turns the seed into a key and a counter.
      seeds = [op.inputs[1] for op in graph.get_operations()
               if op.type == "StatelessRandomUniformV2"]
    values = session.run(seeds)
  assert len(values) == 7
  assert len({tuple(np.ravel(value)) for value in values}) == 7
