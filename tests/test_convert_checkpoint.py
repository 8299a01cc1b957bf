"""convert_checkpoint: both directions, the same outputs, bad input."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import tensorflow.compat.v1 as tf

import bert_oracle
import modeling
import runners
from utils import convert_checkpoint
from utils import stack
from utils.errors import UserError

stack.configure()

HIDDEN, INNER, LAYERS, VOCAB = 8, 12, 2, 21
CONFIG = {
    "model_type": "bert", "vocab_size": VOCAB, "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS, "num_attention_heads": 2,
    "intermediate_size": INNER, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 16, "type_vocab_size": 2,
    "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0}
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [
    "w%d" % i for i in range(VOCAB - 5)]


def hugging_face_shapes():
  """Returns {name: shape} as torch's BertForPreTraining has them, plus QA."""
  shapes = {
      "bert.embeddings.word_embeddings.weight": [VOCAB, HIDDEN],
      "bert.embeddings.position_embeddings.weight": [16, HIDDEN],
      "bert.embeddings.token_type_embeddings.weight": [2, HIDDEN],
      "bert.pooler.dense.weight": [HIDDEN, HIDDEN],
      "bert.pooler.dense.bias": [HIDDEN],
      "cls.predictions.bias": [VOCAB],
      "cls.predictions.transform.dense.weight": [HIDDEN, HIDDEN],
      "cls.predictions.transform.dense.bias": [HIDDEN],
      "cls.seq_relationship.weight": [2, HIDDEN],
      "cls.seq_relationship.bias": [2],
      "qa_outputs.weight": [2, HIDDEN],
      "qa_outputs.bias": [2]}
  norms = ["bert.embeddings.LayerNorm", "cls.predictions.transform.LayerNorm"]
  for layer in range(LAYERS):
    root = "bert.encoder.layer.%d." % layer
    norms += [root + "attention.output.LayerNorm", root + "output.LayerNorm"]
    for name, outputs, inputs in (
        ("attention.self.query", HIDDEN, HIDDEN),
        ("attention.self.key", HIDDEN, HIDDEN),
        ("attention.self.value", HIDDEN, HIDDEN),
        ("attention.output.dense", HIDDEN, HIDDEN),
        ("intermediate.dense", INNER, HIDDEN),
        ("output.dense", HIDDEN, INNER)):
      shapes[root + name + ".weight"] = [outputs, inputs]
      shapes[root + name + ".bias"] = [outputs]
  for norm in norms:
    shapes[norm + ".weight"] = shapes[norm + ".bias"] = [HIDDEN]
  return shapes


@pytest.fixture
def tensors():
  """Random weights of a Hugging Face model with all heads."""
  random = np.random.RandomState(1)
  return {name: (random.normal(size=shape) * 0.3
                 + ("LayerNorm.weight" in name)).astype(np.float32)
          for name, shape in sorted(hugging_face_shapes().items())}


def write_folder(folder, tensors, config=None, tokens=None, **changes):
  """Writes a Hugging Face folder and returns its path."""
  folder.mkdir(exist_ok=True)
  safetensors.numpy.save_file(tensors, str(folder / "model.safetensors"))
  if config is None:
    config = dict(CONFIG, **changes)
  (folder / "config.json").write_text(json.dumps(config))
  (folder / "vocab.txt").write_text(
      "".join("%s\n" % token for token in tokens or TOKENS))
  return str(folder)


def convert(to, source, output, **more):
  return runners.call("utils.convert_checkpoint", dict(
      more, to=to, input=source, output_dir=output))


def checkpoint_of(folder):
  reader = tf.train.load_checkpoint(str(folder / "bert_model.ckpt"))
  return {name: reader.get_tensor(name)
          for name in reader.get_variable_to_shape_map()}


def test_there_and_back_is_exact(tmp_path, tensors):
  there, back = tmp_path / "tf", tmp_path / "back"
  source = write_folder(tmp_path / "hf", tensors)
  result = convert("tf", source, there)
  assert result.status == 0, result.err
  assert result.out.splitlines() == [
      "%d tensors written to %s" % (len(tensors), there)]
  weights = checkpoint_of(there)
  np.testing.assert_array_equal(
      weights["bert/encoder/layer_1/output/dense/kernel"],
      tensors["bert.encoder.layer.1.output.dense.weight"].T)
  np.testing.assert_array_equal(weights["cls/squad/output_weights"],
                                tensors["qa_outputs.weight"])
  assert json.loads((there / "bert_config.json").read_text())[
      "hidden_act"] == "gelu_exact"
  assert (there / "vocab.txt").read_text().split() == TOKENS

  result = convert("safetensors", there, back)
  assert result.status == 0, result.err
  again = safetensors.numpy.load_file(str(back / "model.safetensors"))
  assert sorted(again) == sorted(tensors)
  for name, value in tensors.items():
    np.testing.assert_array_equal(again[name], value, err_msg=name)
  config = json.loads((back / "config.json").read_text())
  assert {key: config[key] for key in CONFIG} == CONFIG
  assert (back / "vocab.txt").read_bytes() == (
      tmp_path / "hf" / "vocab.txt").read_bytes()


class Torch(object):
  """Looks up a Hugging Face model's tensors by the oracle's names.

  torch keeps a linear layer's weight as [outputs, inputs].
  """

  def __init__(self, tensors):
    self._tensors = tensors

  def __getitem__(self, name):
    name = name.replace("/layer_", "/layer.").replace("/", ".")
    for ours, theirs in (("kernel", "weight"), ("gamma", "weight"),
                         ("beta", "bias")):
      if name.endswith("." + ours):
        name = name[:-len(ours)] + theirs
        value = self._tensors[name]
        return (value.T if ours == "kernel" else value).astype(np.float64)
    if name.endswith("_embeddings"):
      name += ".weight"
    return self._tensors[name].astype(np.float64)


def outputs_of(module, folder, inputs):
  """Returns (sequence, pooled) output of a converted folder's model."""
  config = module.BertConfig.from_json_file(str(folder / "bert_config.json"))
  if module is not modeling and config.hidden_act == "gelu_exact":
    config.hidden_act = modeling.get_activation("gelu_exact")
  with tf.Graph().as_default(), tf.Session() as session:
    model = module.BertModel(config, False, *[tf.constant(x) for x in inputs])
    variables = tf.trainable_variables()
    names = [var.op.name for var in variables]
    tf.train.init_from_checkpoint(
        str(folder / "bert_model.ckpt"), {name: name for name in names})
    session.run(tf.global_variables_initializer())
    return session.run([model.get_sequence_output(),
                        model.get_pooled_output()])


@pytest.mark.parametrize("hidden_act, as_ours", [
    ("gelu", "gelu_exact"), ("gelu_new", "gelu"), ("relu", "relu")])
def test_same_outputs_as_before(tmp_path, tensors, hidden_act, as_ours):
  source = write_folder(tmp_path / "hf", tensors, hidden_act=hidden_act)
  folder = tmp_path / "tf"
  folder.mkdir()
  convert_checkpoint.to_tf(source, str(folder))
  config = modeling.BertConfig.from_dict(dict(CONFIG, hidden_act=as_ours))
  inputs = bert_oracle.random_inputs(config, 3, 9, seed=2)
  _, layers, pooled = bert_oracle.Oracle(config, Torch(tensors)).forward(
      *inputs)
  for module in (modeling, bert_oracle.google_modeling()):
    sequence, pooler = outputs_of(module, folder, inputs)
    assert bert_oracle.relative_error(sequence, layers[-1]) < 1e-5
    assert bert_oracle.relative_error(pooler, pooled) < 1e-5


def test_what_is_dropped_is_listed(tmp_path, tensors):
  tensors["classifier.weight"] = np.zeros([3, HIDDEN], np.float32)
  tensors["lm.scale"] = np.zeros([1], np.float32)
  # Copies and buffers are no loss.
  tensors["bert.embeddings.position_ids"] = np.arange(16)
  tensors["cls.predictions.decoder.weight"] = tensors[
      "bert.embeddings.word_embeddings.weight"].copy()
  tensors["cls.predictions.decoder.bias"] = tensors[
      "cls.predictions.bias"].copy()
  result = convert("tf", write_folder(tmp_path / "hf", tensors),
                   tmp_path / "tf")
  assert result.status == 0, result.err
  assert result.out.splitlines()[1:] == [
      "left out, no counterpart: classifier.weight",
      "left out, no counterpart: lm.scale"]
  weights = checkpoint_of(tmp_path / "tf")
  assert not [name for name in weights if "classifier" in name]

  # A run's own checkpoint: slots and counters are no loss either.
  with tf.Graph().as_default(), tf.Session() as session:
    for name in ("global_step", "records_consumed"):
      weights[name] = np.array(7, np.int64)
    weights["bert/pooler/dense/bias/adam_m"] = np.zeros([HIDDEN], np.float32)
    weights["output_weights"] = np.zeros([3, HIDDEN], np.float32)
    for name, value in weights.items():
      tf.get_variable(name, initializer=tf.constant(value))
    session.run(tf.global_variables_initializer())
    tf.train.Saver().save(session, str(tmp_path / "run" / "model.ckpt"),
                          global_step=7)
  result = convert("safetensors", tmp_path / "run", tmp_path / "back",
                   bert_config_file=tmp_path / "tf" / "bert_config.json",
                   vocab_file=tmp_path / "tf" / "vocab.txt")
  assert result.status == 0, result.err
  assert result.out.splitlines()[1:] == [
      "left out, no counterpart: output_weights"]


def test_encoder_alone_has_the_names_of_bert_model(tmp_path, tensors):
  alone = {name[len("bert."):]: value for name, value in tensors.items()
           if name.startswith("bert.") and "pooler" not in name}
  folder = tmp_path / "tf"
  folder.mkdir()
  written, unknown = convert_checkpoint.to_tf(
      write_folder(tmp_path / "hf", alone), str(folder))
  assert not unknown and not [n for n in written if not n.startswith("bert/")]
  back = tmp_path / "back"
  written, unknown = convert_checkpoint.to_safetensors(
      str(folder / "bert_model.ckpt"), str(back),
      str(folder / "bert_config.json"), str(folder / "vocab.txt"))
  assert written == sorted(alone) and not unknown
  assert json.loads((back / "config.json").read_text())[
      "architectures"] == ["BertModel"]


def test_half_precision_and_older_names(tmp_path, tensors):
  half = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
      "LayerNorm.bias", "LayerNorm.beta"): value.astype(np.float16)
          for name, value in tensors.items()}
  folder = tmp_path / "tf"
  folder.mkdir()
  convert_checkpoint.to_tf(write_folder(tmp_path / "hf", half), str(folder))
  weights = checkpoint_of(folder)
  for name, value in (("bert/embeddings/LayerNorm/gamma",
                       "bert.embeddings.LayerNorm.weight"),
                      ("cls/predictions/output_bias", "cls.predictions.bias")):
    assert weights[name].dtype == np.float32
    np.testing.assert_array_equal(
        weights[name], tensors[value].astype(np.float16))


def test_bfloat16():
  value = np.array([1.5, -2.0, 3e-8], "<f4")
  info = {"dtype": "BF16", "shape": [3],
          "data": (value.view("<u4") >> 16).astype("<u2").tobytes()}
  np.testing.assert_allclose(
      convert_checkpoint._as_float32("x", info), value, rtol=2 ** -7)
  with pytest.raises(UserError, match="tensor x has type I64"):
    convert_checkpoint._as_float32("x", dict(info, dtype="I64"))


# Vocabularies ---------------------------------------------------------------


def write_tokenizer(folder, ids, **more):
  (folder / "tokenizer.json").write_text(json.dumps(
      {"model": dict({"type": "WordPiece", "vocab": ids}, **more)}))
  (folder / "vocab.txt").unlink()


def test_vocabulary_of_a_tokenizer_json(tmp_path, tensors):
  source = tmp_path / "hf"
  write_folder(source, tensors)
  # In any order.
  write_tokenizer(source, {t: TOKENS.index(t) for t in sorted(TOKENS)})
  (tmp_path / "tf").mkdir()
  convert_checkpoint.to_tf(str(source), str(tmp_path / "tf"))
  assert (tmp_path / "tf" / "vocab.txt").read_text().split("\n") == (
      TOKENS + [""])


@pytest.mark.parametrize("change, message", [
    (lambda ids: ids.update(w3=100), "no token has the id 8"),
    (lambda ids: ids.update(w3=9), "w3 and w4 have the same id 9|"
                                   "w4 and w3 have the same id 9"),
    (lambda ids: ids.update(w3=-1), "no token has the id 8"),
    (lambda ids: ids.update(w3="8"), "id of 'w3' is '8'"),
    (lambda ids: ids.update(w3=True), "id of 'w3' is True"),
    (lambda ids: ids.pop("w3"), "no token has the id 8"),
    (lambda ids: ids.pop("w%d" % (VOCAB - 6)), "has 20 tokens.*21"),
    (lambda ids: ids.update({"a\nb": VOCAB}), "'a.nb'"),
    (lambda ids: ids.update({" a": VOCAB}), "' a'"),
    (lambda ids: ids.clear(), "no WordPiece vocabulary")])
def test_tokenizer_json_that_cannot_be_a_vocabulary(tmp_path, tensors, change,
                                                    message):
  source = tmp_path / "hf"
  write_folder(source, tensors)
  ids = {token: i for i, token in enumerate(TOKENS)}
  change(ids)
  write_tokenizer(source, ids)
  with pytest.raises(UserError, match=message) as caught:
    convert_checkpoint.to_tf(str(source), str(tmp_path))
  assert "tokenizer.json" in str(caught.value)
  assert not (tmp_path / "bert_config.json").exists()


@pytest.mark.parametrize("content", [
    "[]", "{}", "{\"model\": 3}", "{\"model\": {\"vocab\": [[\"a\", 1.0]]}}",
    "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}}}"])
def test_tokenizer_json_without_wordpiece(tmp_path, tensors, content):
  source = tmp_path / "hf"
  write_folder(source, tensors)
  (source / "vocab.txt").unlink()
  (source / "tokenizer.json").write_text(content)
  with pytest.raises(UserError, match="tokenizer.json holds no WordPiece"):
    convert_checkpoint.to_tf(str(source), str(tmp_path))


@pytest.mark.parametrize("tokens, message", [
    (TOKENS[:-1], "vocab.txt has 20 tokens, but vocab_size is 21"),
    (TOKENS + ["x"], "vocab.txt has 22 tokens, but vocab_size is 21"),
    (TOKENS[:-1] + ["w0"], "vocab.txt has the token 'w0' twice")])
def test_vocabulary_of_another_size(tmp_path, tensors, tokens, message):
  source = write_folder(tmp_path / "hf", tensors, tokens=tokens)
  with pytest.raises(UserError, match=message):
    convert_checkpoint.to_tf(source, str(tmp_path))
  good = tmp_path / "good"
  good.mkdir()
  convert_checkpoint.to_tf(write_folder(tmp_path / "hf2", tensors), str(good))
  with pytest.raises(UserError, match=message):
    convert_checkpoint.to_safetensors(
        str(good / "bert_model.ckpt"), str(tmp_path / "back"),
        str(good / "bert_config.json"), source + "/vocab.txt")
  assert not (tmp_path / "back").exists()


def test_padded_table_is_told(tmp_path, tensors):
  """Tables are often padded to a multiple of 8 (here 21 to 24)."""
  for name in ("bert.embeddings.word_embeddings.weight",
               "cls.predictions.bias"):
    value = tensors[name]
    tensors[name] = np.concatenate([value, value[:3]])
  result = convert("tf", write_folder(
      tmp_path / "hf", tensors, vocab_size=24), tmp_path / "tf")
  assert result.status == 0
  assert "21 tokens" in result.err and "24 rows" in result.err
  result = convert("safetensors", tmp_path / "tf", tmp_path / "back")
  assert result.status == 0 and "24 rows" in result.err


# Malformed input ------------------------------------------------------------


@pytest.mark.parametrize("changes, message", [
    (dict(hidden_size=16), "word_embeddings.weight has shape .21, 8."),
    (dict(intermediate_size=8), "intermediate.dense.weight has shape .12, 8. "
                                "where .* wants .8, 8."),
    (dict(vocab_size=24), "word_embeddings.weight has shape"),
    (dict(max_position_embeddings=32), "position_embeddings"),
    (dict(type_vocab_size=3), "token_type_embeddings"),
    (dict(num_hidden_layers=1), "encoder.layer.1.*num_hidden_layers is 1"),
    (dict(num_hidden_layers=3), "lacks 16 tensors.*encoder.layer.2"),
    (dict(num_attention_heads=3), "multiple of num_attention_heads"),
    (dict(num_hidden_layers="2"), "num_hidden_layers must be"),
    (dict(hidden_size=None), "hidden_size must be"),
    (dict(hidden_act="swish"), "hidden_act 'swish' has no counterpart"),
    (dict(hidden_act=["gelu"]), "hidden_act .'gelu'. has no counterpart"),
    (dict(model_type="roberta"), "model_type is 'roberta'"),
    (dict(position_embedding_type="relative_key"), "position_embedding_type"),
    (dict(layer_norm_eps=1e-5), "layer_norm_eps is 1e-05"),
    (dict(is_decoder=True), "is_decoder is True"),
    (dict(config=[]), "config.json does not hold a JSON object"),
    (dict(config={"model_type": "bert"}), "config.json lacks")])
def test_config_that_contradicts_the_tensors(tmp_path, tensors, changes,
                                             message):
  tokens = TOKENS + ["x", "y", "z"] if "vocab_size" in changes else TOKENS
  source = write_folder(tmp_path / "hf", tensors, tokens=tokens, **changes)
  with pytest.raises(UserError, match=message) as caught:
    convert_checkpoint.to_tf(source, str(tmp_path))
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "bert_config.json").exists()


@pytest.mark.parametrize("name, shape, message", [
    ("bert.encoder.layer.0.output.dense.weight", [INNER, HIDDEN],
     "output.dense.weight has shape .12, 8. where .* wants .8, 12."),
    ("qa_outputs.weight", [3, HIDDEN], "qa_outputs.weight has shape"),
    ("bert.pooler.dense.bias", [1, HIDDEN], "pooler.dense.bias has shape"),
    ("cls.predictions.bias", None, "lacks 1 tensors: cls.predictions.bias"),
    ("bert.pooler.dense.bias", None, "lacks 1 tensors: pooler.dense.bias"),
    ("bert.encoder.layer.1.output.LayerNorm.bias", None, "lacks 1 tensors"),
    ("cls.predictions.decoder.weight", [VOCAB, HIDDEN],
     "decoder.weight is not a copy of the word embeddings"),
    ("cls.predictions.decoder.bias", [VOCAB], "decoder.bias is not a copy"),
    ("embeddings.LayerNorm.gamma", [HIDDEN],
     "embeddings.LayerNorm.weight twice")])
def test_tensors_that_do_not_fit(tmp_path, tensors, name, shape, message):
  if shape is None:
    del tensors[name]
  else:
    tensors[name] = np.full(shape, 0.5, np.float32)
  with pytest.raises(UserError, match=message):
    convert_checkpoint.to_tf(write_folder(tmp_path / "hf", tensors),
                             str(tmp_path))


def test_bias_under_the_name_of_its_copy(tmp_path, tensors):
  """Files leave out one of two tensors that share their memory."""
  bias = tensors["cls.predictions.decoder.bias"] = tensors.pop(
      "cls.predictions.bias")
  (tmp_path / "tf").mkdir()
  convert_checkpoint.to_tf(write_folder(tmp_path / "hf", tensors),
                           str(tmp_path / "tf"))
  np.testing.assert_array_equal(
      checkpoint_of(tmp_path / "tf")["cls/predictions/output_bias"], bias)


def test_checkpoint_that_contradicts_its_config(tmp_path, tensors):
  folder = tmp_path / "tf"
  folder.mkdir()
  convert_checkpoint.to_tf(write_folder(tmp_path / "hf", tensors), str(folder))
  config = json.loads((folder / "bert_config.json").read_text())
  for change, message in (
      (dict(num_hidden_layers=1), "layer_1.*num_hidden_layers is 1"),
      (dict(num_hidden_layers=3), "lacks 16 tensors.*layer_2"),
      (dict(intermediate_size=8),
       "intermediate/dense/kernel has shape .8, 12. where .* wants .8, 8."),
      (dict(hidden_act="swish"), "hidden_act")):
    (folder / "bert_config.json").write_text(json.dumps(dict(config,
                                                             **change)))
    with pytest.raises(UserError, match=message):
      convert_checkpoint.to_safetensors(
          str(folder / "bert_model.ckpt"), str(tmp_path / "back"),
          str(folder / "bert_config.json"), str(folder / "vocab.txt"))
  assert not (tmp_path / "back").exists()


def test_command_line_errors(root, tmp_path, tensors):
  source = write_folder(tmp_path / "hf", tensors)
  for changes, message in (
      (dict(input=tmp_path / "none"), "--input: no such folder"),
      (dict(input=tmp_path), "config.json"),
      (dict(output_dir=None), "--output_dir is required"),
      (dict(to="safetensors"), "holds no whole checkpoint"),
      (dict(to="safetensors", input=None), "--input is required")):
    values = dict(dict(to="tf", input=source, output_dir=tmp_path / "out"),
                  **changes)
    result = runners.call("utils.convert_checkpoint", values)
    assert message in result.error
  shutil.copy(source + "/vocab.txt", source + "/model.safetensors")
  assert "cannot read" in convert("tf", source, tmp_path / "out").error
  # The program itself, from elsewhere.
  done = subprocess.run(
      [sys.executable, str(root / "utils" / "convert_checkpoint.py"),
       "--input=none"], cwd=str(tmp_path), stdout=subprocess.PIPE,
      stderr=subprocess.PIPE)
  assert done.returncode == 1
  assert done.stderr.startswith(b"ERROR: --input: no such folder: none")


def test_damaged_checkpoint_is_one_line(tmp_path, tensors):
  folder = tmp_path / "tf"
  folder.mkdir()
  convert_checkpoint.to_tf(write_folder(tmp_path / "hf", tensors), str(folder))
  data, = folder.glob("bert_model.ckpt.data-*")
  content = bytearray(data.read_bytes())
  content[100] ^= 255
  data.write_bytes(bytes(content))
  assert "damaged" in convert("safetensors", folder / "bert_model.ckpt",
                              tmp_path / "back").error
