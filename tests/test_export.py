"""The exported SavedModel: an inference graph with the checkpoint's answers."""

import collections
import json
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import run_squad
import runners
from fused_ops import library
from test_run_squad import place  # pylint: disable=unused-import
from test_run_squad import settings
from test_run_squad import weights
from test_two_stacks import other_python  # pylint: disable=unused-import
from utils import files
from utils import model_config
from utils import signature
from utils import squad_task
from utils import stack

stack.configure()

SEQ = 32
TINY = dict(do_train=None, do_predict=None, export_trtis=True)
# What has no place in a graph that answers.
FOREIGN = ("Variable", "Assign", "Random", "Stateless", "Grad", "Summary",
           "Restore", "Save", "Apply", "Dropout", "Unused", "ReadFile", "Print",
           "Assert", "Iterator", "Dataset")


def export(place, output, **changes):
  """Returns the Result of an export by run_squad.py."""
  return runners.call("run_squad", settings(
      place, output, **dict(TINY, **changes)))


@pytest.fixture(scope="module")
def exported(place):
  """Folder of a run that trained, predicted and exported at one go."""
  output = place / "exported"
  result = runners.call("run_squad", settings(
      place, output, export_trtis=True, trtis_dyn_batching_delay=2.5,
      trtis_max_batch_size=4))
  assert result.status == 0, result.err
  return output


def saved_model(output, version=1):
  return output / "trtis_models" / "bert" / str(version) / "model.savedmodel"


def config_of(output, name="config.pbtxt"):
  path = output / "trtis_models" / "bert" / name
  return model_config.read(path.read_text(), str(path))


class Loaded(object):
  """A SavedModel in a session, as a server has it."""

  def __init__(self, folder):
    self._session = tf.Session(graph=tf.Graph())
    with self._session.graph.as_default():
      meta = tf.saved_model.load(self._session, ["serve"], str(folder))
    self.signature = meta.signature_def[signature.NAME]
    self.nodes = list(meta.graph_def.node)

  def __call__(self, batch):
    """Returns (start, end) logits of {name: int32 array}."""
    outputs = [self.signature.outputs[name].name for name in signature.OUTPUTS]
    return self._session.run(outputs, {
        self.signature.inputs[name].name: batch[name]
        for name in signature.INPUTS})


@pytest.fixture(scope="module")
def loaded(exported):
  return Loaded(saved_model(exported))


@pytest.fixture(scope="module")
def task(place):
  """(config, examples, features, tokenizer) of the predicted questions."""
  values = settings(
      place, None, do_lower_case=True, version_2_with_negative=False,
      n_best_size=20, max_answer_length=30, null_score_diff_threshold=0.0,
      verbose_logging=False)
  config = types.SimpleNamespace(**{
      name: str(value) if name.endswith(("file", "dir")) else value
      for name, value in values.items()})
  tokenizer = squad_task.load_tokenizer(config.vocab_file, True)
  return (config,) + squad_task.load_features(
      config, tokenizer, config.predict_file, False)[:2] + (tokenizer,)


def batch(count, seed=0, shortest=3):
  """Returns random inputs {name: int32 array}, `count` rows."""
  random = np.random.RandomState(seed)
  lengths = random.randint(shortest, SEQ + 1, [count])
  mask = (np.arange(SEQ) < lengths[:, None]).astype(np.int32)
  return dict(
      unique_ids=np.arange(count, dtype=np.int32), input_mask=mask,
      input_ids=random.randint(5, 30, [count, SEQ]).astype(np.int32) * mask,
      segment_ids=(np.arange(SEQ) >= 5).astype(np.int32) * mask)


def some(inputs, rows):
  return {name: value[rows] for name, value in inputs.items()}


def test_signature(loaded):
  for found, named in ((loaded.signature.inputs, signature.INPUTS),
                       (loaded.signature.outputs, signature.OUTPUTS)):
    assert set(found) == set(named)
    for name, shape in named.items():
      sizes = [d.size for d in found[name].tensor_shape.dim]
      assert sizes == [-1] + signature.sizes(shape, SEQ)
      assert found[name].dtype == (
          tf.int32 if named is signature.INPUTS else tf.float32)


def test_graph_is_one_of_inference(loaded, exported):
  ops = collections.Counter(node.op for node in loaded.nodes)
  for op in ops:
    assert not any(word in op for word in FOREIGN), op
  assert ops["Placeholder"] == len(signature.INPUTS)
  # Each weight once and whole, and nothing of the optimizer.
  constants = {node.name: node.attr["value"].tensor
               for node in loaded.nodes if node.op == "Const"}
  kept = {name: value for name, value in weights(exported).items()
          if not name.startswith("bert/pooler")
          and name.startswith(("bert", "cls"))
          and not name.endswith(("adam_m", "adam_v"))}
  for name, value in kept.items():
    np.testing.assert_array_equal(
        tf.make_ndarray(constants[name]), value, err_msg=name)
  floats = sum(tf.make_ndarray(value).size for value in constants.values()
               if value.dtype == tf.float32)
  assert floats < 1.05 * sum(np.size(value) for value in kept.values())


def test_answers_are_those_of_do_predict(loaded, exported, task):
  config, examples, features, tokenizer = task
  rows = np.arange(len(features.unique_ids))
  answers = squad_task.answer(
      config, examples, features,
      loaded(squad_task.batch_of(features, rows, False)), tokenizer)
  predicted = json.loads((exported / "predictions.json").read_text())
  assert dict(answers.predictions) == predicted
  nbest = json.loads((exported / "nbest_predictions.json").read_text())
  largest = max(abs(a["start_logit"]) for b in nbest.values() for a in b)
  for key, expected in nbest.items():
    assert [a["text"] for a in answers.nbest[key]] == [
        a["text"] for a in expected]
    for one, other in zip(answers.nbest[key], expected):
      for name in ("start_logit", "end_logit"):
        assert abs(one[name] - other[name]) <= 1e-4 * largest


def test_any_batch_gives_a_row_the_same(loaded):
  inputs = batch(9)
  inputs["input_mask"][4] = 0  # a row without any token
  whole = loaded(inputs)
  for rows in ([0], [8, 1], [4], [4, 4, 4], list(range(5))):
    for one, part in zip(whole, loaded(some(inputs, rows))):
      np.testing.assert_allclose(part, one[rows], rtol=1e-4, atol=1e-4)
  for logits in whole:
    assert logits.shape == (9, SEQ) and np.isfinite(logits).all()
    assert (logits[inputs["input_mask"] == 0] == run_squad.PADDING_LOGIT).all()
    assert (logits[inputs["input_mask"] == 1] > -1000).all()


def test_wrong_length(loaded):
  with pytest.raises(ValueError):
    loaded({name: value[:, :SEQ - 1] if value.ndim == 2 else value
            for name, value in batch(2).items()})


def test_padding_kept_gives_the_same(place, exported, loaded, tmp_path):
  result = export(place, tmp_path / "out", init_checkpoint=exported,
                  remove_padding=False)
  assert result.status == 0, result.err
  inputs = batch(6)
  real = inputs["input_mask"] == 1
  for one, other in zip(loaded(inputs),
                        Loaded(saved_model(tmp_path / "out"))(inputs)):
    np.testing.assert_allclose(other[real], one[real], rtol=1e-4, atol=1e-4)


LOAD = """
import sys
import numpy as np
import tensorflow.compat.v1 as tf
folder, inputs, outputs = sys.argv[1:4]
inputs = np.load(inputs)
for library in sys.argv[4:]:
  tf.load_op_library(library)
with tf.Graph().as_default(), tf.Session() as session:
  found = tf.saved_model.load(session, ["serve"], folder).signature_def[
      "serving_default"]
  np.save(outputs, session.run(
      [found.outputs[name].name for name in ("start_logits", "end_logits")],
      {found.inputs[name].name: inputs[name] for name in inputs.files}))
"""


def loaded_by(python, folder, inputs, tmp_path, *libraries):
  """Returns (start, end) logits of a process that knows nothing of ours."""
  np.savez(str(tmp_path / "inputs.npz"), **inputs)
  done = subprocess.run(
      [python, "-c", LOAD, str(folder), str(tmp_path / "inputs.npz"),
       str(tmp_path / "outputs.npy")] + [str(path) for path in libraries],
      stderr=subprocess.PIPE)
  assert done.returncode == 0, done.stderr.decode()
  return np.load(str(tmp_path / "outputs.npy"))


def test_the_other_stack_loads_it(exported, loaded, tmp_path, other_python):
  inputs = batch(5)
  there = loaded_by(other_python, saved_model(exported), inputs, tmp_path)
  for one, other in zip(loaded(inputs), there):
    np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)


def test_configuration(exported, place):
  found, kind = config_of(exported)
  assert kind == "gpu"
  assert len(found.parameters.pop("export_fingerprint")) == 16
  assert found == model_config.ModelSettings(
      name="bert", platform="tensorflow_savedmodel", seq_length=SEQ,
      max_batch_size=4, delay_ms=2.5, max_queue_size=0, engine_count=1,
      mixed_precision=False, xla=False, parameters={
          "vocab_sha256": files.sha256_of_file(str(place / "vocab.txt")),
          "do_lower_case": "true", "vocab_size": "32", "type_vocab_size": "2"})
  assert config_of(exported, "configs/cpu.pbtxt")[1] == "cpu"


def test_precision_and_xla_are_the_servers(place, exported, loaded, tmp_path):
  output = tmp_path / "out"
  result = export(
      place, output, init_checkpoint=exported, use_fp16=True, use_xla=True,
      trtis_dyn_batching_delay=-1, trtis_engine_count=3,
      trtis_model_version=7)
  assert result.status == 0, result.err
  found, _ = config_of(output)
  assert found.mixed_precision and found.xla
  assert (found.delay_ms, found.engine_count) == (0, 3)
  cpu, _ = config_of(output, "configs/cpu.pbtxt")
  assert not cpu.mixed_precision and not cpu.xla
  assert (found.parameters["export_fingerprint"]
          != config_of(exported)[0].parameters["export_fingerprint"])
  here = Loaded(saved_model(output, 7))
  assert not [node.name for node in here.nodes
              if node.attr["dtype"].type in (tf.float16, tf.bfloat16)]
  inputs = batch(7)
  for one, other in zip(loaded(inputs), here(inputs)):
    np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)


def test_kept_kernels(place, exported, loaded, tmp_path):
  if library.fault():
    pytest.fail("the kernels are " + library.fault())
  output = tmp_path / "out"
  result = export(place, output, init_checkpoint=exported,
                  export_fused_ops=True)
  assert result.status == 0, result.err
  name = config_of(output)[0].parameters["fused_ops_library"]
  copy = output / "trtis_models" / "bert" / "1" / name
  assert copy.read_bytes() == library.path().read_bytes()
  assert tf.__version__ in name
  assert "LD_PRELOAD=%s" % copy in result.err
  library.load()  # for the graph to be read here
  assert any(node.op == "BertAttention"
             for node in Loaded(saved_model(output)).nodes)
  assert not any(node.op.startswith("Bert") for node in loaded.nodes)
  inputs = batch(6)
  there = loaded_by(sys.executable, saved_model(output), inputs, tmp_path, copy)
  for one, other in zip(loaded(inputs), there):
    np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)


def test_second_version_and_overwriting(place, exported, tmp_path):
  output = tmp_path / "out"
  models = dict(init_checkpoint=exported,
                trtis_model_repository=output / "models")
  assert export(place, output / "run", **models).status == 0
  # Known before an hour of training.
  error = export(place, output / "run", do_train=True, **models).error
  assert "--trtis_model_version=1" in error and "overwrite" in error
  assert not list((output / "run").glob("model.ckpt*"))
  error = export(place, output / "run", trtis_model_version=2,
                 max_seq_length=24, **models).error
  assert "--trtis_model_name=bert" in error and "seq_length" in error
  result = export(place, output / "run", trtis_model_version=2,
                  trtis_max_batch_size=5, **models)
  assert result.status == 0, result.err
  assert "max_batch_size was 8, is now 5" in result.err
  assert export(place, output / "run", trtis_model_overwrite=True,
                **models).status == 0
  assert sorted(path.name for path in (output / "models" / "bert").iterdir()
               ) == ["1", "2", "config.pbtxt", "configs"]


@pytest.mark.once
@pytest.mark.parametrize("changes, expected", [
    (dict(trtis_model_name="../x"), "--trtis_model_name=../x"),
    (dict(trtis_model_name=""), "--trtis_model_name="),
    (dict(trtis_model_version=0), "--trtis_model_version=0"),
    (dict(trtis_max_batch_size=0), "--trtis_max_batch_size=0"),
    (dict(trtis_engine_count=0), "--trtis_engine_count=0"),
    (dict(trtis_dyn_batching_delay=-2), "--trtis_dyn_batching_delay=-2"),
    (dict(trtis_dyn_batching_delay=1, trtis_max_batch_size=1),
     "--trtis_max_batch_size=1"),
    (dict(trtis_dyn_batching_delay=1e20), "--trtis_dyn_batching_delay=1e+20"),
    (dict(trtis_dyn_batching_delay=1e-4), "--trtis_dyn_batching_delay=0.0001"),
    (dict(trtis_max_batch_size=3 * 10 ** 9), "up to 2147483647"),
    (dict(trtis_engine_count=3 * 10 ** 9), "up to 2147483647"),
    (dict(trtis_model_version=2 ** 63), "up to 9223372036854775807"),
    (dict(trtis_dyn_batching_delay=1, trtis_max_queue_size=2 ** 32),
     "up to 4294967295"),
    (dict(trtis_model_name="x4\n"), "--trtis_model_name=x4"),
    (dict(trtis_model_name=300 * "x"), "up to 200 of them"),
    (dict(trtis_max_queue_size=4), "--trtis_max_queue_size=4"),
    (dict(use_bf16=True), "--use_bf16"),
    (dict(export_fused_ops=True, fused_ops="off"), "--export_fused_ops"),
    (dict(export_fused_ops=True, use_xla=True), "--export_fused_ops"),
    (dict(vocab_file=None), "--vocab_file"),
    (dict(export_format="pb"), "--export_format"),
    ({}, "no checkpoint in --output_dir")])
def test_wrong_flags_are_one_line(place, tmp_path, changes, expected):
  result = export(place, tmp_path / "out", **changes)
  assert expected in result.error
  assert not list(tmp_path.glob("out/trtis_models/*"))


def without(weights, folder, name):
  """Writes a checkpoint of all weights but one; returns its prefix."""
  with tf.Graph().as_default(), tf.Session() as session:
    for key, value in weights.items():
      if key != name:
        tf.get_variable(key, initializer=value)
    session.run(tf.global_variables_initializer())
    return tf.train.Saver().save(session, str(folder / "model.ckpt"),
                                 write_meta_graph=False)


@pytest.mark.once
def test_checkpoint_of_something_else_is_refused(place, exported, tmp_path):
  found = weights(exported)
  prefix = without(found, tmp_path / "pretrained", "cls/squad/output_weights")
  error = export(place, tmp_path / "out", init_checkpoint=prefix).error
  assert "cls/squad/output_weights" in error and prefix in error
  found["cls/squad/output_weights"] = np.full([2, 16], np.nan, np.float32)
  prefix = without(found, tmp_path / "broken", "")
  error = export(place, tmp_path / "out", init_checkpoint=prefix).error
  assert "finite" in error and "cls/squad/output_weights" in error
  found["cls/squad/output_weights"] = np.zeros([2, 8], np.float32)
  prefix = without(found, tmp_path / "other", "")
  error = export(place, tmp_path / "out", init_checkpoint=prefix).error
  assert "[2, 8]" in error and "bert_config.json" in error
  assert not list((tmp_path / "out" / "trtis_models").iterdir())


KILLED = """
import os, signal, sys
sys.path.insert(0, os.getcwd())
import run_squad
from utils import errors, model_repository
model_repository.publish = lambda *unused: os.kill(os.getpid(), signal.SIGKILL)
run_squad.define_flags()
errors.run_main(run_squad.main)
"""


@pytest.mark.once
def test_killed_export_leaves_no_model(place, exported, tmp_path):
  output = tmp_path / "out"
  command = runners.command("run_squad", settings(
      place, output, init_checkpoint=exported, **TINY))
  done = subprocess.run([command[0], "-c", KILLED] + command[2:],
                        cwd=str(runners.ROOT), stderr=subprocess.PIPE)
  assert done.returncode == -signal.SIGKILL, done.stderr.decode()
  assert not list((output / "trtis_models").iterdir())
  (left,) = output.glob(".trtis_models.*.tmp")
  assert (left / "model" / "model.savedmodel" / "saved_model.pb").exists()
  result = export(place, output, init_checkpoint=exported)
  assert result.status == 0, result.err
  assert saved_model(output).is_dir() and not left.exists()
