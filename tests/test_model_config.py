"""The model configuration: what it says, and that Triton's schema reads it."""

import json
import os
import pathlib
import subprocess

import pytest

from utils import model_config
from utils import signature
from utils.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Prints the named configuration as JSON, by the schema of Triton's own client.
READER = """
import sys
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
config = text_format.Parse(sys.stdin.read(), model_config_pb2.ModelConfig())
print(json_format.MessageToJson(config, preserving_proto_field_name=True))
"""


def settings(**changes):
  values = dict(
      name="bert", platform=model_config.SAVED_MODEL, seq_length=384,
      max_batch_size=8, delay_ms=2.5, max_queue_size=100, engine_count=2,
      mixed_precision=True, xla=True,
      parameters={"vocab_sha256": "a1", "do_lower_case": "true"})
  values.update(changes)
  return model_config.ModelSettings(**values)


@pytest.fixture(scope="module")
def by_triton():
  """Returns what Triton's schema makes of a text, as a dict."""
  folder = pathlib.Path(os.environ.get("BERT_VENV_DIR") or ROOT / ".venv")
  python = folder.resolve() / "client" / "bin" / "python"
  if not python.exists():
    pytest.skip("%s is not set up (scripts/trtis/setup.sh --only client)"
                % python)

  def read(text):
    done = subprocess.run([str(python), "-c", READER], input=text,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
  return read


def test_triton_reads_what_was_said(by_triton):
  config = by_triton(model_config.text(settings(), "gpu"))
  inputs = [dict(name="unique_ids", data_type="TYPE_INT32", dims=["1"],
                 reshape={})]
  inputs += [dict(name=name, data_type="TYPE_INT32", dims=["384"])
             for name in ("input_ids", "input_mask", "segment_ids")]
  assert config == dict(
      name="bert", platform="tensorflow_savedmodel", max_batch_size=8,
      version_policy={"all": {}}, input=inputs,
      output=[dict(name=name, data_type="TYPE_FP32", dims=["384"])
              for name in ("start_logits", "end_logits")],
      instance_group=[dict(count=2, kind="KIND_GPU")],
      dynamic_batching=dict(
          preferred_batch_size=[4, 8], max_queue_delay_microseconds="2500",
          default_queue_policy=dict(max_queue_size=100)),
      optimization=dict(graph=dict(level=1), execution_accelerators=dict(
          gpu_execution_accelerator=[dict(name="auto_mixed_precision")])),
      parameters={"vocab_sha256": dict(string_value="a1"),
                  "do_lower_case": dict(string_value="true")})


def test_triton_reads_that_for_cpus_and_what_was_changed(by_triton):
  gpu = by_triton(model_config.text(settings(), "gpu"))
  text = model_config.text(settings(), "cpu")
  cpu = by_triton(text)
  assert gpu.pop("optimization")
  gpu["instance_group"][0]["kind"] = "KIND_CPU"
  assert cpu == gpu
  changed = by_triton(model_config.changed(
      text, max_batch_size=3, delay_ms=0, dynamic_batching=True,
      engine_count=1))
  cpu.update(max_batch_size=3, instance_group=[dict(count=1, kind="KIND_CPU")],
             dynamic_batching=dict(
                 preferred_batch_size=[3],
                 default_queue_policy=dict(max_queue_size=100)))
  assert changed == cpu


@pytest.mark.parametrize("largest, preferred", [
    (2, [2]), (3, [3]), (4, [2, 4]), (7, [3, 7]), (8, [4, 8])])
def test_no_batch_of_one_is_preferred(by_triton, largest, preferred):
  """A server that prefers it sends the first request at once, all alone."""
  text = model_config.text(settings(max_batch_size=largest), "gpu")
  assert by_triton(text)["dynamic_batching"][
      "preferred_batch_size"] == preferred


BY_HAND = """
model_operations { op_library_filename: "/models/lib.so" }
model_warmup { name: "one" batch_size: 1 inputs { key: "input_ids" value {
  data_type: TYPE_INT32 dims: 384 random_data: true } } }
response_cache { enable: true }
"""


def test_what_is_not_used_here_can_be_read(by_triton):
  text = model_config.text(settings(), "gpu")
  assert by_triton(text + BY_HAND)["model_operations"]
  assert model_config.read(text + BY_HAND, "it") == (settings(), "gpu")


def test_what_was_changed_by_hand_is_told():
  for kind in ("gpu", "cpu"):
    text = model_config.text(settings(), kind)
    assert model_config.is_as_written(text)
    assert model_config.is_as_written("# a comment\n" + text)
    for edited in (text + BY_HAND, text.replace("count: 2", "count: 3 gpus: 1"),
                   text + "oops", "", text.replace("KIND_", "KIND_MODEL #")):
      assert edited != text and not model_config.is_as_written(edited)


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
@pytest.mark.parametrize("changes", [
    {}, dict(delay_ms=0.0, max_queue_size=0), dict(max_queue_size=0),
    dict(mixed_precision=False), dict(xla=False), dict(engine_count=1),
    dict(platform=model_config.ONNX, mixed_precision=False, xla=False),
    dict(parameters={'a "quoted" \\ é\n': 'x"y'})])
def test_read_returns_what_was_written(changes, kind):
  values = settings(**changes)
  if kind == "cpu":
    # A CPU has neither.
    values = values._replace(mixed_precision=False, xla=False)
  text = model_config.text(values, kind)
  assert model_config.read(text, "x") == (values, kind)


def test_static_batching_has_no_section():
  for values in (settings(delay_ms=0.0), settings(max_batch_size=1)):
    assert "dynamic_batching" not in model_config.text(values, "gpu")


def test_changes_leave_the_rest():
  text = model_config.text(settings(), "gpu")
  assert model_config.changed(text) == text
  assert model_config.changed(text, dynamic_batching=False) == (
      model_config.text(settings(delay_ms=0.0), "gpu"))
  assert model_config.changed(text, delay_ms=0) == (
      model_config.text(settings(delay_ms=0.0), "gpu"))
  assert model_config.changed(
      text, max_batch_size=64, delay_ms=1, engine_count=4,
      max_queue_size=7) == model_config.text(settings(
          max_batch_size=64, delay_ms=1.0, engine_count=4, max_queue_size=7),
                                             "gpu")


@pytest.mark.parametrize("text", [
    "name: 'bert'\nnonsense: 3", "{", "name: 3", "name: 'bert'",
    model_config.text(settings(), "gpu") + "instance_group { count: 1 }"])
def test_unreadable_is_one_line(text):
  with pytest.raises(UserError) as caught:
    model_config.read(text, "models/bert/config.pbtxt")
  assert "models/bert/config.pbtxt" in str(caught.value)
  assert "\n" not in str(caught.value)


def test_sizes_behind_the_batch():
  assert signature.sizes(signature.INPUTS["input_ids"], 48) == [48]
  assert signature.sizes(signature.INPUTS["unique_ids"], 48) == []
