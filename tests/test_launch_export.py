"""scripts/trtis/export_model.sh: its command line, what it refuses, a run."""

import pytest

from launcher_sandbox import large
from launcher_sandbox import one_line
from launcher_sandbox import site  # pylint: disable=unused-import
from launcher_sandbox import without_output

pytestmark = pytest.mark.once
SCRIPT = "trtis/export_model.sh"


@pytest.fixture(autouse=True)
def _checkpoint(site):
  (site.results / "model.ckpt-3.index").write_bytes(b"")


def golden(site, **changes):
  model = large(site)
  flags = dict(
      vocab_file=model + "/vocab.txt", doc_stride="128",
      bert_config_file=model + "/bert_config.json", max_seq_length="384",
      cache_dir=str(site.results / "cache"), use_fp16="true", use_xla="true",
      init_checkpoint=str(site.results / "model.ckpt"), export_trtis="true",
      export_format="savedmodel", export_fused_ops="false",
      trtis_model_repository=str(site.results / "trtis_models"),
      trtis_model_name="bert", trtis_model_version="1",
      trtis_max_batch_size="8", trtis_dyn_batching_delay="0",
      trtis_max_queue_size="0", trtis_engine_count="1",
      trtis_model_overwrite="false")
  flags.update(changes)
  return flags


def test_defaults_are_the_servers_though_there_is_no_gpu(site):
  done = site.run(SCRIPT, "--dry_run")
  assert "warning" not in done.stderr
  flags = site.command(SCRIPT)
  assert "/my results/trtis_export_bert_20" in flags["output_dir"]
  assert without_output(flags) == golden(site)


def test_by_position(site):
  flags = site.command(
      SCRIPT, "my results/tuned/model.ckpt", "16", "fp32", "false", "128", "64",
      "mine", "3", "my_bert", "2.5", "4", "True")
  model = str(site.data / "pretrained_models_google/mine")
  assert "/trtis_export_my_bert_" in flags["output_dir"]
  assert without_output(flags) == golden(
      site, init_checkpoint=str(site.results / "tuned/model.ckpt"),
      trtis_max_batch_size="16", use_fp16="false", use_xla="false",
      max_seq_length="128", doc_stride="64", vocab_file=model + "/vocab.txt",
      bert_config_file=model + "/bert_config.json", trtis_model_version="3",
      trtis_model_name="my_bert", trtis_dyn_batching_delay="2.5",
      trtis_engine_count="4", trtis_model_overwrite="true")


def test_by_name_and_words_for_python(site):
  flags = site.command(
      SCRIPT, "--checkpoint=my results/tuned", "--trtis_max_batch_size=2",
      "--trtis_version_name=2", "--repository=models", "--precision=amp",
      "--do_lower_case=false", "--remove_padding=false",
      "--trtis_dyn_batching_delay=.5", "--trtis_max_queue_size=9",
      "--export_format=onnx", "--export_fused_ops=true", "--", "--seed=4")
  assert without_output(flags) == golden(
      site, init_checkpoint=str(site.results / "tuned"),
      trtis_max_batch_size="2", trtis_model_version="2",
      trtis_model_repository=str(site.home / "models"), do_lower_case="false",
      remove_padding="false", trtis_dyn_batching_delay=".5",
      trtis_max_queue_size="9", export_format="onnx", export_fused_ops="true",
      seed="4")


@pytest.mark.parametrize("delay", ["-1", "0", "0.0", "00", ".0"])
def test_words_for_no_delay(site, delay):
  words = [""] * 9 + [delay]
  assert site.command(SCRIPT, *words)["trtis_dyn_batching_delay"] == "0"


@pytest.mark.parametrize("words, expected", [
    (["--trtis_dyn_batching_delay=-2"], "trtis_dyn_batching_delay is '-2'"),
    (["--trtis_dyn_batching_delay=x"], "a number, 0 or more"),
    (["--trtis_model_version=0"], "trtis_model_version is '0'"),
    (["--batch_size=0"], "batch_size is '0'"),
    (["--trtis_engine_count=0"], "trtis_engine_count is '0'"),
    (["--trtis_model_overwrite=maybe"], "true or false"),
    (["--export_format=pb"], "savedmodel or onnx"),
    (["--num_gpus=2"], "no such argument"),
    (["--hosts=h"], "no such argument")])
def test_wrong_argument(site, words, expected):
  assert expected in one_line(site.run(SCRIPT, *words), 2)


@pytest.mark.parametrize("words, expected", [
    (["--bert_model=none"], "bert_config.json"),
    (["--init_checkpoint=none"], "no checkpoint at"),
    (["--precision=bf16"], "fp32 or fp16")])
def test_what_is_not_there(site, words, expected):
  assert expected in one_line(site.run(SCRIPT, *words), 1)
  assert not site.runs("trtis_export")


def test_run_and_log(site):
  done = site.run(SCRIPT)
  assert done.returncode == 0, done.stderr
  (folder,) = site.runs("trtis_export_bert")
  assert site.stub_flags() == golden(site, output_dir=str(folder))
  assert "stub: score" in (folder / "trtis_export_bert.log").read_text()
