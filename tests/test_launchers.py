"""The launchers' command lines, devices and refusals: real bash processes.

What becomes of a run has its tests in test_launcher_runs.py.
"""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from launcher_sandbox import checkout  # pylint: disable=unused-import
from launcher_sandbox import flags_of
from launcher_sandbox import gpu_site  # pylint: disable=unused-import
from launcher_sandbox import large
from launcher_sandbox import LAUNCHERS
from launcher_sandbox import one_line
from launcher_sandbox import pretraining_golden
from launcher_sandbox import ROOT
from launcher_sandbox import SCRIPTS
from launcher_sandbox import set_up
from launcher_sandbox import site  # pylint: disable=unused-import
from launcher_sandbox import squad_golden
from launcher_sandbox import without_output
from launcher_sandbox import write_program

pytestmark = pytest.mark.once


# --- command lines -----------------------------------------------------------


def test_squad_defaults(gpu_site):
  flags = gpu_site.command("run_squad.sh", "--num_gpus", "1")
  folder = flags.pop("output_dir")
  assert flags == squad_golden(gpu_site)
  assert re.match(r".*/my results/squad_large_v1\.1_\d{8}-\d{6}$", folder)
  assert not gpu_site.runs()


def test_squad_by_position(gpu_site):
  site = gpu_site
  flags = site.command("run_squad.sh", "4", "3e-5", "fp32", "false", "1", "128",
                       "64", "base", "2.0", "my results/tuned", "1.5")
  model = large(site).replace("24_H-1024_A-16", "12_H-768_A-12")
  squad = str(site.data / "squad/v2.0")
  assert without_output(flags) == squad_golden(
      site, train_batch_size="4", learning_rate="3e-5", use_fp16="false",
      use_xla="false", max_seq_length="128", doc_stride="64",
      vocab_file=model + "/vocab.txt", version_2_with_negative="true",
      bert_config_file=model + "/bert_config.json", num_train_epochs="1.5",
      init_checkpoint=str(site.results / "tuned"),
      train_file=squad + "/train-v2.0.json",
      predict_file=squad + "/dev-v2.0.json")
  assert "/squad_base_v2.0_" in flags["output_dir"]


def test_squad_by_name_equals_by_position(gpu_site):
  named = gpu_site.command(
      "run_squad.sh", "--run_dir=r", "--epochs=1.5", "--use_xla", "False",
      "--precision=amp", "--num_gpus=1", "--squad_version", "2.0",
      "--bert_model=mine", "--seed", "7", "--do_lower_case=TRUE")
  mixed = gpu_site.command(
      "run_squad.sh", "", "", "fp16", "--seed=7", "false", "1", "384", "128",
      "--run_dir", "./r", "mine", "2.0", "", "1.5", "--do_lower_case", "true")
  assert named == mixed
  assert named["output_dir"] == str(gpu_site.home / "r")
  assert named["do_lower_case"] == "true" and named["seed"] == "7"
  assert named["use_fp16"] == "true" and named["use_xla"] == "false"


def test_other_names_and_words_for_python(gpu_site):
  flags = gpu_site.command(
      "run_squad.sh", "--num_gpus=1", "--num_train_epochs=3",
      "--init_checkpoint=my results/tuned/model.ckpt", "--do_predict=false",
      "--train_file=my data/squad/v1.1/dev-v1.1.json",
      "--", "--log_every_steps=5", "--n_best_size=3")
  golden = squad_golden(
      gpu_site, num_train_epochs="3", do_predict="false", log_every_steps="5",
      n_best_size="3",
      train_file=str(gpu_site.data / "squad/v1.1/dev-v1.1.json"),
      init_checkpoint=str(gpu_site.results / "tuned/model.ckpt"))
  for name in ("predict_file", "predict_batch_size"):
    del golden[name]
  assert without_output(flags) == golden


def test_inference(gpu_site):
  site = gpu_site
  flags = site.command("run_squad_inference.sh", "my results/tuned/model.ckpt",
                       "4", "fp32", "true", "128", "64", "mine", "1.1")
  model = str(site.data / "pretrained_models_google/mine")
  assert "/squad_inference_mine_v1.1_" in flags["output_dir"]
  assert without_output(flags) == dict(
      vocab_file=model + "/vocab.txt", max_seq_length="128", doc_stride="64",
      bert_config_file=model + "/bert_config.json", do_predict="true",
      init_checkpoint=str(site.results / "tuned/model.ckpt"),
      cache_dir=str(site.results / "cache"), use_fp16="false", use_xla="true",
      predict_file=str(site.data / "squad/v1.1/dev-v1.1.json"),
      predict_batch_size="4")


def test_pretraining_defaults_and_both_orders(gpu_site):
  site = gpu_site
  flags = site.command("run_pretraining.sh", "--num_gpus", "1")
  assert without_output(flags) == pretraining_golden(site)
  golden = pretraining_golden(
      site, train_batch_size="4", eval_batch_size="2", learning_rate="2e-4",
      num_warmup_steps="10", num_train_steps="100",
      save_checkpoints_steps="50", use_fp16="false")
  today = ["4", "2", "2e-4", "fp32", "true", "1", "10", "100", "50", "false"]
  older = ["4", "2", "2e-4", "fp32_xla", "1", "10", "100", "50", "false"]
  for words in (today, older):
    flags = site.command("run_pretraining.sh", *words)
    assert without_output(flags) == golden
  older[3] = "manual_fp16"
  flags = site.command("run_pretraining.sh", *older)
  assert flags["use_xla"] == "false" and flags["use_fp16"] == "true"


def test_older_order_and_xla_by_name(gpu_site):
  run = lambda *words: gpu_site.run("run_pretraining.sh", "4", "2", "2e-4",
                                    *words)
  flags = gpu_site.command("run_pretraining.sh", "4", "2", "2e-4", "fp16", "1",
                           "--use_xla=true")
  assert flags["use_xla"] == "true" and flags["use_fp16"] == "true"
  line = one_line(run("fp16_xla", "1", "--use_xla=false"), 2)
  assert "use_xla is stated twice: in argument 4, fp16_xla, and as" in line
  # Places are counted as the caller did.
  assert "argument 7, train_steps, is 'x'" in one_line(
      run("fp16", "1", "10", "x"), 2)
  assert "number 10 of at most 9" in one_line(
      run("fp16", "1", "10", "100", "50", "false", "spare"), 2)
  (gpu_site.home / "c").write_text("use_xla=false\n")
  flags = gpu_site.command("run_pretraining.sh", "4", "2", "2e-4", "fp16_xla",
                           "1", "--config=c")
  assert flags["use_xla"] == "true"


def test_pretraining_named(gpu_site):
  flags = gpu_site.command(
      "run_pretraining.sh", "--num_gpus=1", "--bert_model=base",
      "--input_file", "a/*.tfrecord,/b/c.tfrecord", "--seed=3",
      "--eval_input_file=held out", "--init_checkpoint=my results/tuned",
      "--max_seq_length=128", "--max_predictions_per_seq=20", "--do_eval=false")
  home = str(gpu_site.home)
  base = large(gpu_site).replace("24_H-1024_A-16", "12_H-768_A-12")
  assert without_output(flags) == pretraining_golden(
      gpu_site, bert_config_file=base + "/bert_config.json", seed="3",
      input_file=home + "/a/*.tfrecord,/b/c.tfrecord", do_eval="false",
      eval_input_file=home + "/held out", max_seq_length="128",
      max_predictions_per_seq="20",
      init_checkpoint=str(gpu_site.results / "tuned"))


def test_preset_and_single_corpus(gpu_site):
  shutil.rmtree(str(gpu_site.data / "pretrained_models_google"))
  shutil.rmtree(str(gpu_site.data / "bookcorpus"))
  done = gpu_site.run("run_pretraining.sh", "--num_gpus=1", "--dry_run")
  flags = flags_of(shlex.split(done.stdout.splitlines()[-1])[2:])
  assert flags["bert_config_file"] == str(SCRIPTS / "configs/bert_large.json")
  assert "bookcorpus" not in flags["input_file"]
  assert "bookcorpus" in one_line(
      subprocess.CompletedProcess([], 0, "", done.stderr), 0)


def test_sources(gpu_site):
  """Records made for the lengths come first, and their test part is scored."""
  def made(corpus, side, lengths="seq_512_pred_80"):
    folder = (gpu_site.data / corpus / "final_tfrecords_sharded" / lengths
              / side)
    folder.mkdir(parents=True)
    (folder / "a.tfrecord").write_bytes(b"")
    return str(folder) + "/*.tfrecord"

  train, test = made("mine", "training"), made("mine", "test")
  made("mine", "training", "seq_128_pred_20")
  old = str(gpu_site.data / "bookcorpus/final_tfrecords_sharded/*.tfrecord*")
  words = ["run_pretraining.sh", "--num_gpus=1", "--sources=mine,bookcorpus",
           "--batch_sources=single"]
  flags = gpu_site.command(*words)
  assert flags["input_file"] == train + "," + old
  assert flags["eval_input_file"] == test
  assert flags["batch_sources"] == "single"
  flags = gpu_site.command(*words, "--eval_input_file=/held/out")
  assert flags["eval_input_file"] == "/held/out"
  flags = gpu_site.command("run_pretraining.sh", "--num_gpus=1",
                           env={"SOURCES": "mine"})
  assert flags["input_file"] == train
  # One that was named has to be there, for these lengths.
  line = one_line(gpu_site.run(*words, "--max_seq_length=64"), 1)
  assert "no records for length 64 and 80 predictions in" in line
  assert "/mine/final_tfrecords_sharded: make them" in line


def test_config_file(gpu_site):
  config = gpu_site.home / "my.conf"
  config.write_bytes(
      b"# comment\n\nbatch_size = 6   # sentences\r\nnum_gpus=1\n"
      b"bert_model='mine'\ntrain_file=\"my data/squad/v2.0/train-v2.0.json\"\n"
      b"init_checkpoint = my results/tuned  \nlearning_rate=1e-5\nseed=")
  flags = gpu_site.command("run_squad.sh", "--learning_rate=2e-5",
                           "--config", "my.conf")
  assert flags["train_batch_size"] == "6"
  assert flags["learning_rate"] == "2e-5"
  assert flags["vocab_file"].endswith("/mine/vocab.txt")
  assert flags["train_file"] == str(
      gpu_site.data / "squad/v2.0/train-v2.0.json")
  assert flags["init_checkpoint"] == str(gpu_site.results / "tuned")
  assert "seed" not in flags
  flags = gpu_site.command("run_squad.sh", "12", "--config=my.conf")
  assert flags["train_batch_size"] == "12"


def test_value_is_never_run(gpu_site):
  evil = "m$(touch hacked)`touch hacked`;'\" \\ *"
  gpu_site.make_model(gpu_site.home / evil)
  (gpu_site.home / "c").write_text("predict_file=$(touch hacked)x y\n")
  (gpu_site.home / "$(touch hacked)x y").write_text("{}")
  flags = gpu_site.command("run_squad.sh", "--num_gpus=1", "--config=c",
                           "--bert_model", evil)
  assert flags["vocab_file"] == str(gpu_site.home / evil / "vocab.txt")
  assert flags["predict_file"] == str(gpu_site.home / "$(touch hacked)x y")
  assert not (gpu_site.home / "hacked").exists()


def test_paths_have_one_spelling(gpu_site):
  home = gpu_site.home
  linked = home.parent / "linked"
  linked.symlink_to(str(home))
  (home / "deep").mkdir()
  (home / "deep" / "er").symlink_to(str(home / "my data" / "squad"))
  for spelling in ("a.json", "./a.json", "deep//../a.json",
                   str(linked / "a.json"), str(linked) + "/deep/./../a.json"):
    flags = gpu_site.command("run_squad.sh", "--num_gpus=1", "--train_file",
                             spelling)
    assert flags["train_file"] == str(home / "a.json")
  # As the file system reads "..", which follows links.
  for spelling in ("deep/er/..", "deep/er/../"):
    flags = gpu_site.command("run_squad.sh", "--num_gpus=1", "--checkpoint",
                             spelling)
    assert flags["init_checkpoint"] == str(home / "my data")
  # A linked file keeps its name: its settings lie beside the link.
  (home / "linked.json").symlink_to(str(home / "elsewhere"))
  flags = gpu_site.command("run_squad.sh", "--num_gpus=1",
                           "--train_file=deep/../linked.json")
  assert flags["train_file"] == str(home / "linked.json")


def test_globs_stay_as_they_are(gpu_site):
  home = gpu_site.home
  (home.parent / "linked").symlink_to(str(home))
  (home / "deep").mkdir()
  flags = gpu_site.command(
      "run_pretraining.sh", "--num_gpus=1", "--input_file",
      "deep/../my data/*/../x-?.tfrecord,./*,../linked/deep/a[0-9]/b,/*.t,"
      "gs://bucket/../*,plain")
  assert flags["input_file"] == ",".join([
      str(home) + "/my data/*/../x-?.tfrecord", str(home) + "/*",
      str(home) + "/deep/a[0-9]/b", "/*.t", "gs://bucket/../*",
      str(home) + "/plain"])


def test_model_is_where_its_configuration_is(gpu_site):
  (gpu_site.home / "mine").mkdir()
  flags = gpu_site.command("run_squad.sh", "--num_gpus=1", "--bert_model=mine")
  assert flags["bert_config_file"] == str(
      gpu_site.data / "pretrained_models_google/mine/bert_config.json")
  line = one_line(gpu_site.run("run_squad.sh", "--num_gpus=1",
                               "--bert_model=../bin"), 1)
  assert str(gpu_site.home.parent / "bin/bert_config.json") in line


def header_examples():
  """Launcher commands in the headers of all scripts, as lists of words."""
  for path in sorted(SCRIPTS.rglob("*.sh")):
    header = path.read_text().split("\nset -")[0].replace("\\\n#", "")
    for line in header.splitlines():
      if "bash scripts/run_" in line:
        yield shlex.split(line.split("bash scripts/")[-1])


def test_examples_in_headers_work_today(gpu_site):
  examples = list(header_examples())
  assert len(examples) >= 7
  for words in examples:
    done = gpu_site.run(*(words + ["--dry_run"]))
    assert done.returncode == 0, done.stderr
    assert "num_gpus" not in done.stderr, words


# --- devices -----------------------------------------------------------------


def test_cpu_warns_once_and_runs_in_float32(site):
  done = site.run("run_squad.sh", "--dry_run")
  assert len(done.stderr.splitlines()) == 1 and "warning" in done.stderr
  assert "CPU in fp32 without XLA" in done.stderr
  assert "--use_fp16=false --use_xla=false" in done.stdout
  done = site.run("run_squad.sh", "--dry_run", "--precision=fp16",
                  "--use_xla=true")
  assert len(done.stderr.splitlines()) == 1 and "fp32" not in done.stderr
  assert "--use_fp16=true --use_xla=true" in done.stdout


def test_number_of_gpus(gpu_site):
  run = lambda *words, **env: gpu_site.run(
      "run_squad.sh", "--rank_launcher=horovodrun", *words, env=env)
  write_program(gpu_site.home.parent / "bin" / "horovodrun", "#!/bin/sh\n")
  assert "# 3 ranks by: " in run("--dry_run").stdout
  assert "# 2 ranks by: " in run("--dry_run", CUDA_VISIBLE_DEVICES="0,2").stdout
  line = one_line(run("--num_gpus=4"), 1)
  assert "num_gpus is 4, but this machine offers 3" in line
  done = run("--num_gpus=4", "--dry_run")
  assert done.returncode == 0
  assert "a run would stop here: num_gpus is 4" in done.stderr
  done = run("--dry_run", CUDA_VISIBLE_DEVICES="1")
  assert done.returncode == 0 and "ranks" not in done.stdout
  assert "on the CPU" in run("--dry_run", CUDA_VISIBLE_DEVICES="-1").stderr


def test_stack_and_environment(site, checkout):
  squad = str(checkout / "scripts/run_squad.sh")

  def python(*words, **env):
    done = site.run(squad, "--dry_run", *words, env=env)
    return shlex.split(done.stdout.splitlines()[-1])[0]

  environments = {}
  for stack in ("tf2", "tf1"):
    environments[stack] = set_up(checkout, stack)
    assert python() == str(environments[stack])
  assert python("--stack", "tf2") == str(environments["tf2"])
  assert python(BERT_STACK="tf2") == str(environments["tf2"])
  assert python("--stack=tf1", BERT_STACK="tf2") == str(environments["tf1"])
  # As set-up has it: a container's own stack, whatever else lies there.
  assert python(NVIDIA_TENSORFLOW_VERSION="23.12-tf2") == str(
      environments["tf2"])
  shutil.rmtree(str(checkout / ".venv/tf1"))
  assert python(NVIDIA_TENSORFLOW_VERSION="23.03-tf1") == "python"
  moved = {"BERT_VENV_DIR": str(checkout / "else"),
           "NVIDIA_TENSORFLOW_VERSION": "20.03-tf2"}
  assert python(**moved) == "python"
  line = one_line(site.run(squad, env={"BERT_STACK": "tf3"}), 2)
  assert "BERT_STACK is 'tf3'" in line


def test_hint_at_set_up_names_a_stack_only_if_stated(site, checkout):
  squad = str(checkout / "scripts/run_squad.sh")
  hint = "run bash {}/scripts/setup.sh".format(checkout)
  assert one_line(site.run(squad), 1).endswith(hint)
  for line in (one_line(site.run(squad, "--stack=tf2"), 1),
               one_line(site.run(squad, env={"BERT_STACK": "tf2"}), 1)):
    assert "for the tf2 stack" in line and line.endswith(hint + " --stack tf2")


def test_half_made_environment_is_none(site, checkout):
  squad = str(checkout / "scripts/run_squad.sh")
  set_up(checkout, "tf1")
  stamp = checkout / ".venv/tf1/setup-stamp"
  stamp.unlink()
  assert "there is no Python environment" in one_line(site.run(squad), 1)
  # The other stack's is whole, so set-up is not told to finish this one.
  python = set_up(checkout, "tf2")
  done = site.run(squad, "--dry_run")
  assert done.stdout.splitlines()[-1].startswith(str(python))
  # What set-up and quickstart go by as well: the stamp, not the interpreter.
  stamp.write_text("")
  (checkout / ".venv/tf1/bin/python").unlink()
  assert "there is no Python environment" in one_line(site.run(squad), 1)


# --- wrong arguments ---------------------------------------------------------

WRONG = [
    (["--batchsize", "4"], "--batchsize: no such argument; did you mean "
     "batch_size?"),
    (["--zebra=1"], "--zebra: no such argument; --help"),
    (["-x"], "-x: no such argument"),
    (["--batch_size"], "--batch_size needs a value"),
    (["--batch_size", "--fresh"], "--batch_size needs a value"),
    (["--batch_size="], "--batch_size needs a value"),
    (["--batch_size", "0"], "--batch_size is '0', but has to be a whole"),
    (["2.5"], "argument 1, batch_size, is '2.5', but has to be a whole"),
    (["10", "0e5"], "argument 2, learning_rate, is '0e5'"),
    (["--learning_rate=-1"], "a number above 0"),
    (["--precision=fp8"], "fp32, fp16 (or amp) or bf16"),
    (["--use_xla=yes"], "--use_xla is 'yes', but has to be true or false"),
    (["--squad_version=3"], "1.1 or 2.0"),
    (["--warmup_proportion=1.5"], "from 0 to 1"),
    (["--stack=tf3"], "tf1 or tf2"),
    (["--seed=-1"], "a whole number, 0 or more"),
    (["10", "--batch_size=10"], "batch_size is stated twice"),
    (["1"] * 4, "argument 3, precision, is '1'"),
    (["10", "5e-6", "fp16", "true", "1", "384", "128", "large", "1.1", "", "2",
      "spare"], "'spare' is number 12 of at most 11"),
    (["--config", "nowhere"], "cannot read the file nowhere"),
    (["--confg", "c"], "--confg: no such argument; did you mean config?"),
    (["--fresh=maybe"], "--fresh is 'maybe', but has to be true or false"),
    (["--dry_run="], "--dry_run needs a value"),
    (["--", "--seed=1", "--output_dir=zz"], "--output_dir after --: "),
    (["--", "-output_dir", "zz"], "-output_dir after --: "),
    (["--", "--log_file=zz"], "--log_file after --: "),
]


@pytest.mark.parametrize("words, expected", WRONG)
def test_wrong_argument(site, words, expected):
  assert expected in one_line(site.run("run_squad.sh", *words), 2)
  assert not site.runs()


@pytest.mark.parametrize("text, expected", [
    ("batch_size=2\nbatch_sizes=4", "c line 2: batch_sizes: no such argument; "
     "did you mean batch_size?"),
    ("\n\nbatch_size=many", "c line 3: batch_size is 'many'"),
    ("batch_size 4", "c line 1: expected name=value, found 'batch_size 4'"),
    ("root=/", "c line 1: root: no such argument"),
    ("confg=c", "c line 1: confg: no such argument; --help"),
    ("dryrun=true", "no such argument; did you mean dry_run?"),
    ("fresh=1", "c line 1: fresh is '1', but has to be true or false"),
])
def test_wrong_config(site, text, expected):
  (site.home / "c").write_text(text)
  assert expected in one_line(site.run("run_squad.sh", "--config=c"), 2)


def test_switches_take_a_word_and_stand_in_files(site):
  config = site.home / "c"
  config.write_text("dry_run=true\nfresh=true\n")
  fail = {"STUB_STATUS": "1"}
  site.run("run_squad.sh", "--dry_run=false", "--fresh=False", env=fail)
  assert len(site.runs()) == 1
  done = site.run("run_squad.sh", "--config=c")
  assert "# run folder" in done.stdout and "going on" not in done.stderr
  done = site.run("run_squad.sh", "--config=c", "--fresh=false")
  assert "# run folder" in done.stdout and "going on" in done.stderr
  site.run("run_squad.sh", "--config=c", "--dry_run=false", env=fail)
  assert len(site.runs()) == 2
  done = site.run("run_squad.sh", "--dry_run", "4")  # a batch size of 4
  assert "--train_batch_size=4" in done.stdout


def test_warm_up_longer_than_the_run(site):
  done = site.run("run_pretraining.sh", "--train_steps=200")
  assert "warmup_steps is 10000" in one_line(done, 2)
  flags = site.command("run_pretraining.sh", "--train_steps=200",
                       "--do_train=false")
  assert flags["do_train"] == "false" and flags["num_train_steps"] == "200"


@pytest.mark.parametrize("script", LAUNCHERS)
def test_help_shows_every_argument(site, script):
  done = site.run(script, "--help")
  assert done.returncode == 0 and done.stderr == ""
  assert len(done.stdout.splitlines()) > 30
  for name in ("precision", "use_xla", "stack", "--config", "--dry_run"):
    assert re.search(r"^  {}\b".format(name), done.stdout, re.M), name
  assert "shellcheck" not in done.stdout and "set -euo" not in done.stdout


def test_bf16(site):
  done = site.run("run_squad.sh", "--precision=bf16", "--stack=tf1")
  assert "needs the tf2 stack: add --stack tf2" in one_line(done, 1)
  flags = site.command("run_squad.sh", "--precision=bf16", "--stack=tf2")
  assert flags["use_bf16"] == "true" and flags["use_fp16"] == "false"


TRAINING = {
    "num_accumulation_steps": "4", "optimizer_type": "lamb",
    "allreduce_fp16": "true", "nan_policy": "skip", "keep_checkpoint_max": "3",
    "eval_every_steps": "50"}


@pytest.mark.parametrize("script", LAUNCHERS[:2])
def test_options_of_training_are_flags_once_stated(site, script):
  plain = site.command(script)
  assert not set(TRAINING) & set(plain)
  words = ["--%s=%s" % item for item in TRAINING.items()]
  assert without_output(site.command(script, *words)) == dict(
      without_output(plain), **TRAINING)
  (site.home / "c").write_text("optimizer_type = adam\n")   # the default
  assert site.command(script, "--config=c")["optimizer_type"] == "adam"


@pytest.mark.parametrize("word, expected", [
    ("--num_accumulation_steps=0", "has to be a whole number above 0"),
    ("--optimizer_type=sgd", "has to be adam or lamb"),
    ("--nan_policy=hope", "has to be stop or skip"),
    ("--keep_checkpoint_max=0", "has to be a whole number above 0"),
    ("--max_restarts=-1", "has to be a whole number, 0 or more"),
    ("--rank_launcher=srun", "has to be mpirun or horovodrun")])
def test_wrong_option_of_training(site, word, expected):
  assert expected in one_line(site.run("run_pretraining.sh", word), 2)


# --- missing files -----------------------------------------------------------


@pytest.mark.parametrize("script, words, parts", [
    ("run_squad.sh", ["--bert_model=absent"],
     ["no model configuration at", "/caller's home/absent/", "--bert_model"]),
    ("run_squad.sh", ["--checkpoint=absent"],
     ["no checkpoint at", "/absent", "--checkpoint"]),
    ("run_squad.sh", ["--train_file=absent.json"],
     ["no SQuAD file at", "/absent.json", "--train_file"]),
    ("run_squad.sh", ["--predict_file=absent.json"], ["--predict_file"]),
    ("run_squad_inference.sh", [],
     ["no checkpoint at", "/my results/model.ckpt", "--init_checkpoint"]),
    ("run_pretraining.sh", ["--bert_config=absent.json"],
     ["/absent.json", "--bert_config"]),
    ("run_pretraining.sh", ["--bert_model=absent"], ["/absent/bert_config"]),
    ("run_pretraining.sh", ["--init_checkpoint=absent"],
     ["no checkpoint at", "--init_checkpoint"]),
])
def test_missing_file(site, script, words, parts):
  line = one_line(site.run(script, *words), 1)
  assert all(part in line for part in parts), line
  done = site.run(script, "--dry_run", *words)
  assert done.returncode == 0 and "a run would stop here" in done.stderr


def test_no_records(site):
  done = site.run("run_pretraining.sh", env={"DATA_DIR": "elsewhere"})
  line = one_line(done, 1)
  assert "no records for length 512" in line and "--input_file" in line
  assert str(site.home / "elsewhere/wikipedia_corpus") in line


def test_results_that_cannot_be_written(site):
  (site.home / "file").write_text("")
  done = site.run("run_squad.sh", env={"RESULTS_DIR": "file/below"})
  assert "RESULTS_DIR" in one_line(done, 1)
  done = site.run("run_squad.sh", "--run_dir=file")
  assert "cannot write to the run folder" in one_line(done, 1)


# --- the scripts themselves --------------------------------------------------


def declared_flags(runner):
  """Names of the flags that a runner says it has, wherever it declares them."""
  done = subprocess.run(
      [sys.executable, str(ROOT / runner), "--helpxml"],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
  assert "</AllFlags>" in done.stdout, done.stderr
  listed = done.stdout[done.stdout.index("<?xml"):]
  return {flag.findtext("name")
          for flag in ElementTree.fromstring(listed).iter("flag")}


@pytest.mark.parametrize("runner, scripts", [
    ("run_pretraining.py", ["run_pretraining.sh"]),
    ("run_squad.py", ["run_squad.sh", "run_squad_inference.sh"]),
])
def test_flags_exist_in_the_runners(gpu_site, runner, scripts):
  declared = declared_flags(runner)
  for script in scripts:
    words = ["--num_gpus=1"] if "inference" not in script else []
    words += ["--seed=1", "--init_checkpoint=my results/tuned"]
    if "squad" in script:
      words += ["--do_lower_case=true", "--squad_version=2.0"]
    else:
      words += ["--eval_input_file=x"]
    if "inference" not in script:
      words += ["--%s=%s" % item for item in TRAINING.items()]
    flags = set(gpu_site.command(script, *words)) | {"horovod", "use_bf16"}
    assert flags | {"log_file"} <= declared, flags - declared


def test_shellcheck():
  program = shutil.which("shellcheck") or str(
      pathlib.Path(sys.executable).parent / "shellcheck")
  if not os.path.exists(program):
    pytest.skip("shellcheck is not installed")
  names = ["lib.sh", "lib/rank.sh", "lib/slurm_shell.sh",
           "run_pretraining.slurm"] + LAUNCHERS
  done = subprocess.run(
      [program, "-x"] + ["scripts/" + name for name in names],
      cwd=str(ROOT), stdout=subprocess.PIPE, universal_newlines=True)
  assert done.returncode == 0, done.stdout


def test_strict_short_and_without_eval():
  for script in LAUNCHERS:
    text = (SCRIPTS / script).read_text()
    assert "\nset -euo pipefail\n" in text and len(text.splitlines()) < 120
  sources = [SCRIPTS / name for name in ["lib.sh"] + LAUNCHERS]
  for path in sources + sorted((SCRIPTS / "lib").glob("*.sh")):
    assert not re.search(r"(^|[;&|({])\s*eval\b", path.read_text(), re.M), path
