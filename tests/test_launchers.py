"""The launchers, run as real bash processes with a stand-in for Python."""

import fcntl
import os
import pathlib
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
LAUNCHERS = ["run_pretraining.sh", "run_squad.sh", "run_squad_inference.sh"]

# Records its arguments, says some lines, and ends as the environment tells.
STUB = """#!/usr/bin/env bash
printf '%s\\0' "$@" > "$STUB_ARGUMENTS"
if [[ -t 2 ]]; then echo 'stub: terminal' >&2; fi
echo 'stub: words on stdout'
echo 'stub: words on stderr' >&2
echo 'stub: score'
if [[ ${STUB_WAIT-} ]]; then
  trap 'echo "stub: told to end"; exit 143' TERM
  trap 'echo "stub: interrupted"; sleep 0.3; exit 130' INT
  echo "$$" > "$STUB_WAIT.part"
  mv "$STUB_WAIT.part" "$STUB_WAIT"
  for _ in {1..1000}; do sleep 0.05; done
fi
exit "${STUB_STATUS:-0}"
"""
GPUS = "#!/bin/sh\nfor i in 0 1 2; do echo \"GPU $i: Test\"; done\n"


def write_program(path, text):
  path.write_text(text)
  path.chmod(0o755)


class Site:
  """A folder with model, questions and records, and a caller's folder."""

  def __init__(self, folder, gpus=False):
    self.home = folder / "caller's home"
    self.data = self.home / "my data"
    self.results = self.home / "my results"
    google = self.data / "pretrained_models_google"
    for name in ("uncased_L-24_H-1024_A-16", "uncased_L-12_H-768_A-12", "mine"):
      self.make_model(google / name)
    for version in ("1.1", "2.0"):
      squad = self.data / "squad" / ("v" + version)
      squad.mkdir(parents=True)
      for part in ("train", "dev"):
        (squad / "{}-v{}.json".format(part, version)).write_text("{}")
    for corpus in ("wikipedia_corpus", "bookcorpus"):
      records = self.data / corpus / "final_tfrecords_sharded"
      records.mkdir(parents=True)
      (records / "a.tfrecord").write_bytes(b"")
    (self.results / "tuned").mkdir(parents=True)
    (self.results / "tuned" / "model.ckpt-7.index").write_bytes(b"")
    self.arguments = folder / "arguments"
    programs = folder / "bin"
    programs.mkdir()
    write_program(programs / "stub", STUB)
    path = os.environ["PATH"]
    if gpus:
      write_program(programs / "nvidia-smi", GPUS)
      path = "{}:{}".format(programs, path)
    self.env = {
        "PATH": path, "HOME": str(folder), "DATA_DIR": str(self.data),
        "RESULTS_DIR": str(self.results), "STUB_ARGUMENTS": str(self.arguments),
        "BERT_PYTHON": str(programs / "stub"), "LC_ALL": "C"}
    if not gpus:
      self.env["CUDA_VISIBLE_DEVICES"] = ""

  @staticmethod
  def make_model(folder):
    folder.mkdir(parents=True)
    for name in ("bert_config.json", "vocab.txt", "bert_model.ckpt.index"):
      (folder / name).write_text("{}")

  def popen(self, script, *words, **kwargs):
    env = dict(self.env, **kwargs.pop("env", {}))
    kwargs.setdefault("stdin", subprocess.DEVNULL)
    kwargs.setdefault("stdout", subprocess.PIPE)
    kwargs.setdefault("stderr", subprocess.PIPE)
    return subprocess.Popen(
        ["bash", str(SCRIPTS / script)] + list(words), env=env,
        cwd=str(self.home), universal_newlines=True, **kwargs)

  def run(self, script, *words, **kwargs):
    """The finished process, with stdout and stderr as text."""
    process = self.popen(script, *words, **kwargs)
    out, err = process.communicate(timeout=30)
    return subprocess.CompletedProcess(words, process.returncode, out, err)

  def command(self, script, *words, **kwargs):
    """{flag: value} of the command line that --dry_run prints."""
    done = self.run(script, *(("--dry_run",) + words), **kwargs)
    assert done.returncode == 0, done.stderr
    return flags_of(shlex.split(done.stdout.splitlines()[-1])[2:])

  def stub_flags(self):
    return flags_of(self.arguments.read_text().split("\0")[1:-1])

  def runs(self, tag="squad_large_v1.1"):
    return sorted(path for path in self.results.glob(tag + "_*"))


def flags_of(words):
  assert all(word.startswith("--") and "=" in word for word in words), words
  return dict(word[2:].split("=", 1) for word in words)


def one_line(done, status):
  """The only line on stderr of a process that ended with that status."""
  lines = [line for line in done.stderr.splitlines() if "warning" not in line]
  assert done.returncode == status and len(lines) == 1, done.stderr
  assert done.stdout == ""
  return lines[0]


@pytest.fixture
def site(tmp_path):
  return Site(tmp_path)


@pytest.fixture
def gpu_site(tmp_path):
  return Site(tmp_path, gpus=True)


def large(site):
  return str(site.data / "pretrained_models_google/uncased_L-24_H-1024_A-16")


def squad_golden(site, **changes):
  """Flags of run_squad.sh with its defaults on one GPU."""
  model = large(site)
  squad = str(site.data / "squad/v1.1")
  flags = dict(
      vocab_file=model + "/vocab.txt", learning_rate="5e-6",
      bert_config_file=model + "/bert_config.json", max_seq_length="384",
      init_checkpoint=model + "/bert_model.ckpt", doc_stride="128",
      cache_dir=str(site.results / "cache"), use_fp16="true", use_xla="true",
      do_train="true", train_file=squad + "/train-v1.1.json",
      train_batch_size="10", num_train_epochs="2.0", warmup_proportion="0.1",
      save_checkpoints_steps="1000", do_predict="true",
      predict_file=squad + "/dev-v1.1.json", predict_batch_size="8")
  flags.update(changes)
  return flags


def pretraining_golden(site, **changes):
  """Flags of run_pretraining.sh with its defaults on one GPU."""
  corpora = ["{}/{}/final_tfrecords_sharded/*.tfrecord*".format(site.data, name)
             for name in ("wikipedia_corpus", "bookcorpus")]
  flags = dict(
      bert_config_file=large(site) + "/bert_config.json",
      input_file=",".join(corpora), do_train="true", do_eval="true",
      train_batch_size="14", eval_batch_size="8", learning_rate="1e-4",
      num_train_steps="1144000", num_warmup_steps="10000",
      max_seq_length="512", max_predictions_per_seq="80", max_eval_steps="100",
      save_checkpoints_steps="5000", use_fp16="true", use_xla="true")
  flags.update(changes)
  return flags


def without_output(flags):
  flags = dict(flags)
  flags.pop("output_dir")
  return flags


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


def test_several_processes_are_refused(site):
  line = one_line(site.run("run_squad.sh", "--num_gpus=2"), 1)
  assert "num_gpus is 2" in line and "--num_gpus 1" in line
  done = site.run("run_squad.sh", "--num_gpus=2", "--dry_run")
  assert done.returncode == 0
  assert "a run would stop here: num_gpus is 2" in done.stderr


def test_number_of_gpus(gpu_site):
  run = lambda *words, **env: gpu_site.run("run_squad.sh", *words, env=env)
  assert "num_gpus is 3" in one_line(run(), 1)
  assert "num_gpus is 2" in one_line(run(CUDA_VISIBLE_DEVICES="0,2"), 1)
  assert "offers 3" in one_line(run("--num_gpus=4"), 1)
  done = run("--num_gpus=4", "--dry_run")
  assert done.returncode == 0
  assert "a run would stop here: num_gpus is 4" in done.stderr
  assert run("--dry_run", CUDA_VISIBLE_DEVICES="1").returncode == 0
  assert "on the CPU" in run("--dry_run", CUDA_VISIBLE_DEVICES="-1").stderr


def set_up(checkout, stack):
  """The stand-in for the environment of a stack; returns its interpreter."""
  python = checkout / ".venv" / stack / "bin/python"
  python.parent.mkdir(parents=True)
  write_program(python, STUB)
  (checkout / ".venv" / stack / "setup-stamp").write_text("")
  return python


@pytest.fixture(name="checkout")
def _checkout(site, tmp_path):
  """A checkout with launchers only, for a site without BERT_PYTHON."""
  del site.env["BERT_PYTHON"]
  shutil.copytree(str(SCRIPTS), str(tmp_path / "checkout" / "scripts"))
  return tmp_path / "checkout"


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


def test_bf16_is_refused_clearly(site):
  for stack, expected in (("tf1", "--stack tf2"), ("tf2", "not supported yet")):
    done = site.run("run_squad.sh", "--precision=bf16", "--stack", stack)
    assert expected in one_line(done, 1)


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
  assert "no records in" in line and "--input_file" in line
  assert str(site.home / "elsewhere/wikipedia_corpus") in line


def test_results_that_cannot_be_written(site):
  (site.home / "file").write_text("")
  done = site.run("run_squad.sh", env={"RESULTS_DIR": "file/below"})
  assert "RESULTS_DIR" in one_line(done, 1)
  done = site.run("run_squad.sh", "--run_dir=file")
  assert "cannot write to the run folder" in one_line(done, 1)


# --- runs --------------------------------------------------------------------


def test_run_and_log(site):
  done = site.run("run_squad.sh")
  assert done.returncode == 0
  assert done.stdout == "stub: words on stdout\nstub: score\n"
  assert done.stderr.endswith("stub: words on stderr\n")
  (folder,) = site.runs()
  assert site.stub_flags() == squad_golden(
      site, use_fp16="false", use_xla="false", output_dir=str(folder))
  lines = (folder / "squad_large_v1.1.log").read_text().splitlines()
  assert lines[0].startswith("# 20")
  assert flags_of(shlex.split(lines[1])[2:]) == site.stub_flags()
  assert sorted(lines[2:]) == [
      "stub: score", "stub: words on stderr", "stub: words on stdout"]
  assert (folder / "launch.done").exists()


def test_one_stream_keeps_its_order(site):
  done = site.run("run_squad.sh", stderr=subprocess.STDOUT)
  tail = ["stub: words on stdout", "stub: words on stderr", "stub: score"]
  assert done.stdout.splitlines()[-3:] == tail
  (folder,) = site.runs()
  assert (folder / "squad_large_v1.1.log").read_text().splitlines()[2:] == tail


def test_printed_command_is_the_command(site):
  words = ["--run_dir=r", "--bert_model=mine"]
  printed = site.command("run_squad.sh", *words)
  assert not (site.home / "r").exists()
  site.run("run_squad.sh", *words)
  assert site.stub_flags() == printed


def test_status_and_resume(site):
  done = site.run("run_squad.sh", env={"STUB_STATUS": "3"})
  assert done.returncode == 3
  (first,) = site.runs()
  other = site.run("run_squad.sh", "--seed=1")
  assert other.returncode == 0 and len(site.runs()) == 2

  again = site.run("run_squad.sh", "--dry_run")
  assert str(first) in again.stdout and "going on with" in again.stderr
  again = site.run("run_squad.sh")
  assert again.returncode == 0 and "going on with" in again.stderr
  assert site.stub_flags()["output_dir"] == str(first)
  log = (first / "squad_large_v1.1.log").read_text()
  assert log.count("stub: words on stdout") == 2

  finished = site.run("run_squad.sh")
  assert "going on with" not in finished.stderr
  assert len(site.runs()) == 3


def test_newest_unfinished_run_or_a_fresh_one(site):
  fail = {"STUB_STATUS": "1"}
  site.run("run_squad.sh", env=fail)
  (first,) = site.runs()
  site.run("run_squad.sh", "--fresh", env=fail)
  (second,) = set(site.runs()) - {first}
  site.run("run_squad.sh", env=fail)
  assert site.stub_flags()["output_dir"] == str(second)
  (first / "launch.hash").replace(second / "launch.hash")
  site.run("run_squad.sh")
  assert site.stub_flags()["output_dir"] == str(second)


def test_named_folder(site):
  assert site.run("run_squad.sh", "--run_dir=a b").returncode == 0
  folder = site.home / "a b"
  assert site.stub_flags()["output_dir"] == str(folder)
  assert (folder / "launch.done").exists() and not site.runs()
  done = site.run("run_squad.sh", "--run_dir=a b", "--epochs=3",
                  env={"STUB_STATUS": "1"})
  assert "settings differ" in done.stderr
  assert not (folder / "launch.done").exists()
  done = site.run("run_squad.sh", "--run_dir=a b", "--fresh")
  assert "is not empty" in one_line(done, 1)


def test_equal_settings_however_paths_are_written(site):
  (site.home / "t").mkdir()
  (site.home / "t" / "a.json").write_text("{}")
  link = site.home.parent / "linked"
  link.symlink_to(str(site.home))
  site.run("run_squad.sh", "--train_file=t/a.json", env={"STUB_STATUS": "1"})
  (folder,) = site.runs()
  for spelling in ("t/../t/a.json", str(link / "t/a.json")):
    for results in (site.env["RESULTS_DIR"], "my results", "t/../my results",
                    str(link / "my results")):
      done = site.run("run_squad.sh", "--dry_run", "--train_file", spelling,
                      env={"RESULTS_DIR": results})
      assert "going on with" in done.stderr and str(folder) in done.stdout


def test_linked_checkout_is_the_same_checkout(site, checkout):
  set_up(checkout, "tf1")
  link = site.home / "link to it"
  link.symlink_to(str(checkout))
  env = {"RESULTS_DIR": "", "STUB_STATUS": "1"}
  (checkout / "results").mkdir()
  config = "--bert_config={}/scripts/configs/bert_base.json"
  for place in (link, checkout):
    done = site.run(str(place / "scripts/run_pretraining.sh"),
                    config.format(place), env=env)
  assert "going on with" in done.stderr


def held_contents(folder):
  return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("words", [[], ["--run_dir={}"],
                                   ["--run_dir={}", "--epochs=3"]])
def test_folder_of_a_living_run_is_left_alone(site, words):
  site.run("run_squad.sh", env={"STUB_STATUS": "1"})
  (folder,) = site.runs()
  words = [word.format(folder) for word in words]
  with open(str(folder / ".lock"), "a+") as lock:
    lock.write("77\n")
    lock.flush()
    fcntl.flock(lock, fcntl.LOCK_EX)
    before = held_contents(folder)
    line = one_line(site.run("run_squad.sh", *words), 1)
    assert "another run (process 77)" in line and str(folder) in line
    assert held_contents(folder) == before
  assert site.run("run_squad.sh", *words).returncode == 0


def test_second_start_before_the_program_has_its_lock(site):
  process = started(site)
  (folder,) = site.runs()
  log = folder / "squad_large_v1.1.log"
  while "stub: score" not in log.read_text():
    time.sleep(0.02)
  before = held_contents(folder)
  line = one_line(site.run("run_squad.sh"), 1)
  assert "another run" in line and str(folder) in line
  assert held_contents(folder) == before
  os.kill(int((site.home / "ready").read_text()), signal.SIGKILL)
  process.communicate(timeout=30)
  assert "going on with" in site.run("run_squad.sh").stderr


def test_no_log_file(site):
  done = site.run("run_pretraining.sh", "--create_logfile=false")
  assert done.returncode == 0 and "log none" in done.stderr
  (folder,) = site.runs("pretraining")
  assert sorted(path.name for path in folder.iterdir()) == [
      "launch.done", "launch.hash"]


def started(site, *words, **kwargs):
  """A launcher whose stub waits to be told to end."""
  ready = site.home / "ready"
  process = site.popen("run_squad.sh", *words, env={"STUB_WAIT": str(ready)},
                       **kwargs)
  limit = time.time() + 20
  while not ready.exists():
    assert time.time() < limit and process.poll() is None
    time.sleep(0.02)
  return process


def test_signal_reaches_the_program(site):
  process = started(site)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=30)
  assert process.returncode == 143
  assert "stub: told to end" in out and "the same command goes on" in err
  (folder,) = site.runs()
  log = (folder / "squad_large_v1.1.log").read_text()
  assert "stub: told to end" in log and "ended by signal 15" in log
  assert not (folder / "launch.done").exists()


def test_killed_program_is_one_line_and_gone_on_with(site):
  process = started(site)
  os.kill(int((site.home / "ready").read_text()), signal.SIGKILL)
  _, err = process.communicate(timeout=30)
  assert process.returncode == 137
  assert err.splitlines()[-2:] == [
      "stub: words on stderr",
      "run_squad.sh: ended by signal 9; the same command goes on"]
  assert "going on with" in site.run("run_squad.sh").stderr


@pytest.mark.parametrize("whole_group", [False, True])
def test_terminal_that_hangs_up_ends_the_program(site, whole_group):
  process = started(site, start_new_session=True)
  (os.killpg if whole_group else os.kill)(process.pid, signal.SIGHUP)
  out, _ = process.communicate(timeout=30)
  # The group's program hears of it from the terminal and from the launcher.
  assert process.returncode in ((129, 143) if whole_group else (143,))
  (folder,) = site.runs()
  log = (folder / "squad_large_v1.1.log").read_text()
  assert "# ended by signal" in log
  assert whole_group or "stub: told to end" in out and "told to end" in log
  assert not (folder / "launch.done").exists()


def test_nohup_is_heeded(site):
  process = started(
      site, start_new_session=True,
      preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
  os.killpg(process.pid, signal.SIGHUP)
  time.sleep(0.3)
  assert process.poll() is None
  process.terminate()
  out, _ = process.communicate(timeout=30)
  assert process.returncode == 143 and "stub: told to end" in out


def test_interrupt_of_the_whole_group(site):
  process = started(site, start_new_session=True)
  os.killpg(process.pid, signal.SIGINT)
  out, err = process.communicate(timeout=30)
  assert process.returncode == 130, err
  assert "stub: interrupted" in out
  (folder,) = site.runs()
  assert "stub: interrupted" in (folder / "squad_large_v1.1.log").read_text()


def test_interrupt_of_a_program_that_cannot_hear_it(site):
  stub = site.env["BERT_PYTHON"]
  write_program(pathlib.Path(stub), STUB.replace("trap 'echo \"stub: int",
                                                 "trap '' INT; : 'echo \"int"))
  process = started(site, start_new_session=True)
  os.killpg(process.pid, signal.SIGINT)
  process.communicate(timeout=30)
  assert process.returncode == 143


def test_at_a_terminal(site):
  main, terminal = pty.openpty()
  process = site.popen("run_squad.sh", env={"STUB_STATUS": "4"},
                       stdout=terminal, stderr=terminal)
  os.close(terminal)
  shown = b""
  while True:
    try:
      piece = os.read(main, 4096)
    except OSError:  # Linux: the other end is closed
      break
    if not piece:
      break
    shown += piece
  os.close(main)
  assert process.wait(timeout=30) == 4
  assert b"stub: terminal" in shown
  (folder,) = site.runs()
  log = folder / "squad_large_v1.1.log"
  assert site.stub_flags()["log_file"] == str(log)
  assert log.read_text().splitlines()[2:] == [  # the program writes the rest
      "# ended with status 4"]
  assert site.run("run_squad.sh").returncode == 0  # log_file is no setting
  assert site.runs() == [folder]


# --- the scripts themselves --------------------------------------------------


def test_flags_exist_in_the_runners(gpu_site):
  both = (ROOT / "utils/runner_flags.py").read_text()
  for script, runner in (("run_pretraining.sh", "run_pretraining.py"),
                         ("run_squad.sh", "run_squad.py"),
                         ("run_squad_inference.sh", "run_squad.py")):
    declared = set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"",
                              both + (ROOT / runner).read_text()))
    words = ["--num_gpus=1"] if "inference" not in script else []
    words += ["--seed=1", "--init_checkpoint=my results/tuned"]
    if "squad" in script:
      words += ["--do_lower_case=true", "--squad_version=2.0"]
    else:
      words += ["--eval_input_file=x"]
    flags = set(gpu_site.command(script, *words))
    assert flags | {"log_file"} <= declared, flags - declared


def test_shellcheck():
  program = shutil.which("shellcheck") or str(
      pathlib.Path(sys.executable).parent / "shellcheck")
  if not os.path.exists(program):
    pytest.skip("shellcheck is not installed")
  done = subprocess.run(
      [program, "-x"] + ["scripts/" + name for name in ["lib.sh"] + LAUNCHERS],
      cwd=str(ROOT), stdout=subprocess.PIPE, universal_newlines=True)
  assert done.returncode == 0, done.stdout


def test_strict_short_and_without_eval():
  for script in LAUNCHERS:
    text = (SCRIPTS / script).read_text()
    assert "\nset -euo pipefail\n" in text and len(text.splitlines()) < 120
  sources = [SCRIPTS / name for name in ["lib.sh"] + LAUNCHERS]
  for path in sources + sorted((SCRIPTS / "lib").glob("*.sh")):
    assert not re.search(r"(^|[;&|({])\s*eval\b", path.read_text(), re.M), path
