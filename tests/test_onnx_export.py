"""A model in ONNX: what it says against TensorFlow, and what is refused."""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import time

import numpy as np
import pytest

import processes
import runners
import tokenization
import trtis_server
from test_run_pretraining import CONFIG
from test_run_squad import dataset
from test_run_squad import VOCAB
from utils import squad_answers
from utils import squad_data
import tensorflow.compat.v1 as tf

SEQ = 32
QUESTIONS = 240
VENVS = pathlib.Path(os.environ.get("BERT_VENV_DIR")
                     or runners.ROOT / ".venv")
ONNX_PYTHON = VENVS / "onnx" / "bin" / "python"

# Runs a model on what an .npz file holds; prints what the file declares.
_RUN = """
import json, sys
import numpy as np
import onnx
import onnxruntime
path, inputs, outputs = sys.argv[1:]
session = onnxruntime.InferenceSession(
    path, providers=["CPUExecutionProvider"])
names = [value.name for value in session.get_outputs()]
np.savez(outputs, **dict(zip(names, session.run(names, dict(np.load(inputs))))))
model = onnx.load(path)
nodes, made_by = model.graph.node, {}
types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
print(json.dumps({
    "inputs": {v.name: [v.type, v.shape] for v in session.get_inputs()},
    "outputs": {v.name: [v.type, v.shape] for v in session.get_outputs()},
    "opset": {o.domain: o.version for o in model.opset_import},
    "products": sorted({types[name] for node in nodes
                        if node.op_type == "MatMul" for name in node.input
                        if name in types}),
    "bytes": sum(len(t.raw_data) for t in model.graph.initializer)}))
"""


def flags(place, output, **changes):
  values = dict(
      bert_config_file=place / "config.json", vocab_file=place / "vocab.txt",
      output_dir=output, cache_dir=place / "cache", max_seq_length=SEQ,
      doc_stride=8, max_query_length=8, predict_batch_size=64, seed=7)
  values.update(changes)
  return values


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """Folder with a model that has learnt a little, and many questions."""
  trtis_server.environment("onnx")
  folder = tmp_path_factory.mktemp("onnx")
  (folder / "config.json").write_text(
      json.dumps(dict(CONFIG, vocab_size=len(VOCAB))))
  (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
  (folder / "train.json").write_text(json.dumps(dataset(40)))
  (folder / "dev.json").write_text(json.dumps(dataset(QUESTIONS)))
  result = runners.call("run_squad", flags(
      folder, folder / "run", do_train=True, train_file=folder / "train.json",
      train_batch_size=8, learning_rate=1e-2, num_train_epochs=5))
  assert result.status == 0, result.err
  return folder


def export(place, name, **changes):
  """Exports `place`/run; returns the runner's result."""
  return runners.call("run_squad", flags(
      place, place / "run", export_trtis=True, export_format="onnx",
      trtis_model_repository=place / "models", trtis_model_name=name,
      **changes))


@pytest.fixture(scope="module")
def float32(place):
  result = export(place, "float32")
  assert result.status == 0, result.err
  return place / "models" / "float32", result


@pytest.fixture(scope="module")
def float16(place):
  result = export(place, "float16", use_fp16=True)
  assert result.status == 0, result.err
  return place / "models" / "float16", result


@pytest.fixture(scope="module")
def features(place):
  """(examples, features) of the questions."""
  tokenizer = tokenization.FullTokenizer(str(place / "vocab.txt"))
  examples, found, _ = squad_data.load_or_make(
      str(place / "dev.json"), tokenizer, squad_data.FeatureSettings(
          max_seq_length=SEQ, doc_stride=8, max_query_length=8,
          do_lower_case=True, vocab_sha256="of this test"),
      is_training=False, version_2_with_negative=False, cache_dir=None)
  return examples, found


@pytest.fixture(scope="module")
def batch(features):
  every = np.arange(len(features[1].unique_ids))
  return {"unique_ids": features[1].unique_ids,
          "input_ids": features[1].input_ids[every],
          "input_mask": features[1].input_mask(every),
          "segment_ids": features[1].segment_ids(every)}


@pytest.fixture(scope="module")
def expected(place, batch):
  """{name: float32 [n, seq]}, what TensorFlow says of all questions."""
  result = runners.call("run_squad", flags(
      place, place / "run", export_trtis=True,
      trtis_model_repository=place / "models", trtis_model_name="tensorflow"))
  assert result.status == 0, result.err
  with tf.Graph().as_default(), tf.Session() as session:
    loaded = tf.saved_model.load(
        session, ["serve"],
        str(place / "models/tensorflow/1/model.savedmodel"))
    signature = loaded.signature_def["serving_default"]
    return session.run(
        {name: info.name for name, info in signature.outputs.items()},
        {signature.inputs[name].name: values
         for name, values in batch.items()})


def run(model, batch, folder):
  """Returns (outputs, what the file declares) of the ONNX model's version 1."""
  np.savez(str(folder / "inputs.npz"), **batch)
  out = subprocess.check_output(
      [str(ONNX_PYTHON), "-c", _RUN, str(model / "1" / "model.onnx"),
       str(folder / "inputs.npz"), str(folder / "outputs.npz")])
  return dict(np.load(str(folder / "outputs.npz"))), json.loads(out.decode())


def difference(found, expected, batch):
  """Returns the largest difference as a share of the largest logit."""
  real = batch["input_mask"] > 0
  assert set(found) == set(expected) == {"start_logits", "end_logits"}
  largest = max(np.abs(v[real]).max() for v in expected.values())
  return max(np.abs(found[name] - expected[name])[real].max()
             for name in expected) / largest


def answers(place, features, logits):
  tokenizer = tokenization.FullTokenizer(str(place / "vocab.txt"))
  return squad_answers.predict_answers(
      features[0], features[1], logits["start_logits"], logits["end_logits"],
      squad_answers.AnswerSettings(
          n_best_size=20, max_answer_length=30, do_lower_case=True,
          version_2_with_negative=False, null_score_diff_threshold=0.0),
      tokenizer)[0]


def test_float32_says_what_tensorflow_says(
    place, float32, features, batch, expected, tmp_path):
  found, declared = run(float32[0], batch, tmp_path)
  assert difference(found, expected, batch) <= 1e-4
  assert answers(place, features, found) == answers(place, features, expected)
  assert declared["products"] == [1]  # float
  # On its own, each is what it is among others.
  one = {name: values[5:6] for name, values in batch.items()}
  alone, _ = run(float32[0], one, tmp_path)
  assert difference(alone, {n: v[5:6] for n, v in expected.items()},
                    one) <= 1e-4


def test_float16_says_nearly_what_tensorflow_says(
    place, float16, float32, features, batch, expected, tmp_path):
  found, declared = run(float16[0], batch, tmp_path)
  assert 0 < difference(found, expected, batch) <= 5e-2
  wanted, given = [answers(place, features, logits)
                   for logits in (expected, found)]
  assert len(wanted) == QUESTIONS
  assert len(set(wanted.values())) > 3  # it says not the same to all
  equal = sum(wanted[key] == given[key] for key in wanted)
  assert equal >= 0.995 * QUESTIONS
  assert declared["products"] == [10]  # float16
  assert declared["bytes"] < 0.6 * run(
      float32[0], batch, tmp_path)[1]["bytes"]


def test_it_has_the_signature_of_the_savedmodel(float32, float16, batch,
                                                tmp_path):
  """unique_ids too, of which no output depends."""
  for model, _ in (float32, float16):
    _, declared = run(model, batch, tmp_path)
    assert declared["inputs"] == dict(
        {name: ["tensor(int32)", ["batch", SEQ]]
         for name in ("input_ids", "input_mask", "segment_ids")},
        unique_ids=["tensor(int32)", ["batch"]])
    assert declared["outputs"] == {
        name: ["tensor(float)", ["batch", SEQ]]
        for name in ("start_logits", "end_logits")}
    assert declared["opset"][""] == 13


def test_the_repository_is_one_for_onnx_runtime(float32):
  model, result = float32
  for name in ("config.pbtxt", "configs/cpu.pbtxt"):
    text = (model / name).read_text()
    assert 'platform: "onnxruntime_onnx"' in text
    assert "optimization" not in text  # of TensorFlow alone
  assert sorted(os.listdir(str(model / "1"))) == ["export.json", "model.onnx"]
  line = re.search(r"in ONNX: (\S+) apart .* logit is (\S+) ", result.err)
  assert float(line.group(1)) <= 1e-4 * float(line.group(2))
  assert not (model.parent.parent / "run" / "onnx_conversion.log").exists()


@pytest.mark.once
def test_layer_norms_stay_float32(place):
  """Embeddings whose squares float16 cannot hold."""
  prefix = str(place / "large" / "model.ckpt")
  reader = tf.train.load_checkpoint(str(place / "run"))
  with tf.Graph().as_default(), tf.Session() as session:
    values = {name: reader.get_tensor(name)
              for name in reader.get_variable_to_shape_map()}
    values["bert/embeddings/word_embeddings"] *= 5000
    assert np.abs(values["bert/embeddings/word_embeddings"]).max() > 256
    variables = [tf.get_variable(name, initializer=value)
                 for name, value in values.items()]
    session.run(tf.global_variables_initializer())
    os.mkdir(os.path.dirname(prefix))
    tf.train.Saver(variables).save(session, prefix, global_step=1,
                                   write_meta_graph=False)
  result = runners.call("run_squad", flags(
      place, place / "large", export_trtis=True, export_format="onnx",
      use_fp16=True))
  assert result.status == 0, result.err


def converter(folder, script):
  """Puts a stand-in for the converter's Python into `folder`."""
  (folder / "onnx" / "bin").mkdir(parents=True)
  (folder / "onnx" / "setup-stamp").write_text("")
  python = folder / "onnx" / "bin" / "python"
  python.write_text("#!/bin/sh\n" + script)
  python.chmod(0o755)


def export_command(place, name, **changes):
  return runners.command("run_squad", flags(
      place, place / "run", export_trtis=True, export_format="onnx",
      trtis_model_repository=place / "failed", trtis_model_name=name,
      **changes))


def export_elsewhere(place, venvs, name, **changes):
  """Exports with the environments of `venvs`, in a process of its own."""
  done = subprocess.run(
      export_command(place, name, **changes),
      env=dict(os.environ, BERT_VENV_DIR=str(venvs)), timeout=300,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
  return runners.Result(done.returncode, done.stdout, done.stderr)


def nothing_is_left(place):
  """Says whether no model nor part of one lies in the repository."""
  return (not (place / "failed").exists()
          or not os.listdir(str(place / "failed"))) and not [
              name for name in os.listdir(str(place))
              if name.endswith(".tmp")]


@pytest.mark.once
def test_no_environment_is_one_line(place, tmp_path):
  error = export_elsewhere(place, tmp_path, "none").error
  assert str(tmp_path / "onnx") in error
  assert "bash scripts/trtis/setup.sh --only onnx" in error
  assert nothing_is_left(place)


@pytest.mark.once
def test_an_environment_without_python_is_one_line(place, tmp_path):
  converter(tmp_path, "")
  (tmp_path / "onnx" / "bin" / "python").unlink()
  error = export_elsewhere(place, tmp_path, "half").error
  assert "not whole" in error and str(tmp_path / "onnx") in error


def wait_for(condition):
  end = time.monotonic() + 120
  while not condition():
    assert time.monotonic() < end
    time.sleep(.02)


@pytest.mark.once
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_converter_ends_with_the_exporter(place, tmp_path, number):
  converter(tmp_path, "echo $$ > %s/pid.tmp\nmv %s/pid.tmp %s/pid\n"
                      "exec sleep 600\n" % ((shlex.quote(str(tmp_path)),) * 3))
  exporter = subprocess.Popen(
      export_command(place, "ended"), stderr=subprocess.DEVNULL,
      env=dict(os.environ, BERT_VENV_DIR=str(tmp_path)))
  try:
    wait_for((tmp_path / "pid").exists)
    exporter.send_signal(number)
    assert exporter.wait(60) == {
        signal.SIGTERM: 128 + number, signal.SIGKILL: -number}[number]
    child = int((tmp_path / "pid").read_text())
    wait_for(lambda: not processes.running(child))
  finally:
    exporter.kill()
  if number == signal.SIGTERM:
    assert nothing_is_left(place)


@pytest.mark.once
def test_a_converter_that_fails_leaves_its_log_alone(place, tmp_path):
  converter(tmp_path, "for i in 1 2 3 4 5 6 7 8 9; do echo line $i; done\n"
                      "exit 7\n")
  result = export_elsewhere(place, tmp_path, "broken")
  log = place / "run" / "onnx_conversion.log"
  assert "status 7" in result.error and str(log) in result.error
  assert "converter: line 9" in result.err
  assert "converter: line 1" not in result.err
  assert "line 1\n" in log.read_text()
  log.unlink()
  assert nothing_is_left(place)


@pytest.mark.once
def test_a_model_that_says_something_else_is_refused(place, tmp_path):
  """The real converter with a tolerance that no model meets."""
  code = ("import sys; from utils import onnx_conversion as c; "
          "c.TOLERANCES['float32'] = 0.0; sys.exit(c.main())")
  converter(tmp_path, "shift 2\nexec %s -c \"%s\" \"$@\"\n"
            % (ONNX_PYTHON, code))
  error = export_elsewhere(place, tmp_path, "another").error
  assert "ONNX Runtime differs from TensorFlow" in error
  assert nothing_is_left(place)


@pytest.mark.once
@pytest.mark.parametrize("changes, named", [
    (dict(export_fused_ops=True), "--export_fused_ops"),
    (dict(use_bf16=True), "--use_bf16"),
])
def test_what_onnx_has_not(place, changes, named):
  error = export(place, "refused", **changes).error
  assert named in error
  assert not (place / "models" / "refused").exists()
