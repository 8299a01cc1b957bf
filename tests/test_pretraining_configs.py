"""scripts/configs/*.conf: they parse, and their figures fit together."""

import re
import shlex

import pytest

from launcher_sandbox import flags_of
from launcher_sandbox import large
from launcher_sandbox import ROOT
from launcher_sandbox import Site
from launcher_sandbox import write_program

pytestmark = pytest.mark.once

CONFIGS = sorted((ROOT / "scripts" / "configs").glob("*.conf"))
PHASES = [path for path in CONFIGS if "_cpu_" not in path.name]
# Tokens and predictions a sequence, sequences a step, steps, warm-up.
PUBLISHED = {1: (128, 20, 65536, 7038, 2000), 2: (512, 80, 32768, 1564, 200)}
WHOLE = 7820


def settings(path):
  """{name: value}, read without the launcher."""
  lines = [line.split("#")[0] for line in path.read_text().splitlines()]
  return dict(re.split(r"\s*=\s*", line.strip()) for line in lines if line)


def header(path):
  return "".join(line[2:].rstrip() + " "
                 for line in path.read_text().splitlines() if line[:1] == "#")


def phase(path):
  return int(re.search(r"_phase([12])\.conf$", path.name).group(1))


def name_of(path):
  return path.name


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  """A machine with sixteen GPUs, and records of both lengths."""
  made = Site(tmp_path_factory.mktemp("machine"), gpus=True)
  programs = made.home.parent / "bin"
  write_program(programs / "nvidia-smi", "#!/bin/sh\n" + "".join(
      "echo 'GPU %d: Test'\n" % index for index in range(16)))
  write_program(programs / "mpirun", "#!/bin/sh\necho 'Open MPI'\n")
  for lengths in ("seq_128_pred_20", "seq_512_pred_80"):
    for corpus in ("wikipedia_corpus", "bookcorpus"):
      folder = (made.data / corpus / "final_tfrecords_sharded" / lengths
                / "training")
      folder.mkdir(parents=True)
      (folder / "a.tfrecord").write_bytes(b"")
  return made


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_config_is_taken(site, path):
  own = settings(path)
  done = site.run("run_pretraining.sh", "--dry_run", "--config", str(path))
  assert done.returncode == 0 and "would stop" not in done.stderr, done.stderr
  *_, ranks, command = done.stdout.splitlines()
  assert ranks.startswith("# %s ranks by: " % own["num_gpus"])
  flags = flags_of(shlex.split(command)[2:])
  assert flags["optimizer_type"] == "lamb" and flags["horovod"] == "true"
  for name, flag in (("train_batch_size",) * 2, ("learning_rate",) * 2,
                     ("num_accumulation_steps",) * 2,
                     ("train_steps", "num_train_steps"),
                     ("warmup_steps", "num_warmup_steps")):
    assert flags[flag] == own[name]
  lengths = "seq_%s_pred_%s" % (
      own["max_seq_length"], own["max_predictions_per_seq"])
  assert flags["input_file"].count("/%s/training/" % lengths) == 2
  model = {"large": large(site) + "/bert_config.json",
           "small": str(ROOT / "scripts/configs/bert_small.json")}
  assert flags["bert_config_file"] == model[own["bert_model"]]


def test_every_machine_has_both_phases():
  names = {re.sub(r"_phase[12]\.conf$", "", path.name) for path in CONFIGS}
  assert names == {"pretrain_" + name for name in (
      "dgx1_16g_fp16", "dgx1_16g_fp32", "dgx1_32g_fp16", "dgx2h_fp16",
      "dgxa100_fp16", "dgxh100_fp16", "cpu")}
  assert len(CONFIGS) == 2 * len(names)


@pytest.mark.parametrize("path", PHASES, ids=name_of)
def test_published_figures(path):
  own = settings(path)
  number = lambda name: int(own[name])
  length, predictions, sequences, steps, warmup = PUBLISHED[phase(path)]
  gpus = number("num_gpus")
  assert number("train_batch_size") * number(
      "num_accumulation_steps") * gpus == sequences
  assert (number("max_seq_length"), number("max_predictions_per_seq"),
          number("train_steps"), number("warmup_steps")) == (
              length, predictions, steps, warmup)
  assert float(own["learning_rate"]) * gpus == pytest.approx(
      {1: 6e-3, 2: 4e-3}[phase(path)])
  assert own["use_xla"] == "true" and own["bert_model"] == "large"


def test_share_of_the_phases():
  assert PUBLISHED[1][3] == WHOLE * 9 // 10 and PUBLISHED[2][3] * 5 == WHOLE


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_warm_up_is_shorter_than_the_run(path):
  own = settings(path)
  assert 0 < int(own["warmup_steps"]) < int(own["train_steps"])


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_header_tells_command_cost_and_loss(path):
  text = header(path)
  assert "--config scripts/configs/%s" % path.name in text
  assert ("--init_checkpoint" in text) == (phase(path) == 2)
  assert "Cost: " in text and re.search(r"Loss to expect[^:]*: ", text)
  own = settings(path)
  sequences = int(own["train_batch_size"]) * int(
      own["num_accumulation_steps"]) * int(own["num_gpus"])
  assert "A step is %s sequences: %s a " % (
      format(sequences, ","), own["train_batch_size"]) in text


@pytest.mark.parametrize("path", PHASES, ids=name_of)
def test_stated_hours_follow_from_the_stated_speed(path):
  found = re.search(r"Cost: (\d+) hours.* a step of (\d+) seconds.*: "
                    r"([\d,.]+) sequences/s", header(path))
  if not found:
    assert "Cost: not known" in header(path) and "h100" in path.name
    return
  hours, seconds, speed = (
      float(part.replace(",", "")) for part in found.groups())
  _, _, sequences, steps, _ = PUBLISHED[phase(path)]
  assert seconds == pytest.approx(sequences / speed, abs=1)
  assert hours == pytest.approx(steps * sequences / speed / 3600, abs=1)
  # A stop waits for a step and its checkpoint.
  assert int(settings(path)["stop_seconds"]) > 1.3 * seconds + 30
