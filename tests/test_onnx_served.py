"""Models in ONNX behind the real server, beside the SavedModel they are of."""

import shutil

import numpy as np
import pytest

import trtis_models
import trtis_server
from test_run_squad import VOCAB

MAX_BATCH = 8


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """The same weights as "bert" (SavedModel), "float32" and "float16" (ONNX)."""
  trtis_server.environment("onnx")
  folder = tmp_path_factory.mktemp("served") / "with a blank"
  folder.mkdir()
  made = trtis_models.make(folder, trtis_dyn_batching_delay=20)
  for name in ("float32", "float16"):
    result = trtis_models.export(
        made, folder / name, export_format="onnx", trtis_model_name=name,
        trtis_dyn_batching_delay=20, use_fp16=name == "float16")
    assert result.status == 0, result.err
  return made


@pytest.fixture(scope="module")
def server(models):
  with trtis_server.server(models.repository) as started:
    yield started


def apart(arrays, found, wanted):
  """Returns the largest difference as a share of the largest logit."""
  real = arrays["input_mask"] > 0
  assert set(found) == set(wanted) == {"start_logits", "end_logits"}
  largest = max(np.abs(values[real]).max() for values in wanted.values())
  return max(np.abs(found[name] - wanted[name])[real].max()
             for name in wanted) / largest


@pytest.mark.parametrize("name, most", [("float32", 1e-4), ("float16", 5e-2)])
def test_logits_are_those_of_the_savedmodel(server, name, most):
  for rows in (1, 3, MAX_BATCH):
    arrays = trtis_models.arrays(rows, seed=rows)
    wanted = server.ask(arrays)
    assert apart(arrays, server.ask(arrays, model=name), wanted) <= most
    assert apart(arrays, server.ask_grpc(arrays, model=name), wanted) <= most


@pytest.mark.once
@pytest.mark.parametrize("name, value", [
    ("input_ids", -1), ("input_ids", len(VOCAB)), ("segment_ids", 2),
    ("segment_ids", -1), ("input_mask", 2)])
def test_what_no_weight_belongs_to_is_refused(server, name, value):
  """ONNX by itself takes -1 for the last word piece, and 2 for no segment."""
  arrays = trtis_models.arrays(2)
  wrong = dict(arrays, **{name: arrays[name].copy()})
  wrong[name][1, 1] = value
  with pytest.raises(trtis_server.Refused, match="%s holds %d; " % (
      name, value)):
    server.ask(wrong, model="float32")
  assert apart(arrays, server.ask(arrays, model="float32"),
               server.ask(arrays)) <= 1e-4


@pytest.mark.once
def test_sequences_without_a_token_do_no_harm(server):
  arrays = trtis_models.arrays(3)
  wanted = server.ask(arrays)
  empty = {name: np.array(values) for name, values in arrays.items()}
  empty["input_mask"][1] = 0
  found = server.ask(empty, model="float32")
  one = {name: values[2:] for name, values in arrays.items()}
  assert apart(one, {name: values[2:] for name, values in found.items()},
               {name: values[2:] for name, values in wanted.items()}) <= 1e-4
  empty["input_mask"][:] = 0
  with pytest.raises(trtis_server.Refused, match="no word piece"):
    server.ask(empty, model="float32")
  assert apart(arrays, server.ask(arrays, model="float32"), wanted) <= 1e-4


@pytest.mark.once
@pytest.mark.parametrize("content, words", [
    (b"not a model", "is no model in ONNX"), (None, "there is no file")])
def test_what_is_no_model_ends_the_start_with_a_line(
    models, tmp_path, content, words):
  repository = tmp_path / "models"
  shutil.copytree(str(models.repository / "float32"),
                  str(repository / "float32"))
  model = repository / "float32" / "1" / "model.onnx"
  model.unlink()
  if content:
    model.write_bytes(content)
  with pytest.raises(AssertionError) as failure:
    with trtis_server.server(repository):
      pass
  line = str(failure.value).splitlines()[0]
  assert words in line and str(model) in line
