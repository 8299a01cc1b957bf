"""What the tests of the launchers share: a site, a stand-in for Python."""

import os
import pathlib
import shlex
import shutil
import subprocess

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
  if path.is_symlink():
    path.unlink()  # never write to what it leads to, a tool of this machine
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
      batch_sources="mixed",
      save_checkpoints_steps="5000", use_fp16="true", use_xla="true")
  flags.update(changes)
  return flags


def without_output(flags):
  flags = dict(flags)
  flags.pop("output_dir")
  return flags


def set_up(checkout, stack):
  """The stand-in for the environment of a stack; returns its interpreter."""
  python = checkout / ".venv" / stack / "bin/python"
  python.parent.mkdir(parents=True)
  write_program(python, STUB)
  (checkout / ".venv" / stack / "setup-stamp").write_text("")
  return python


@pytest.fixture
def checkout(site, tmp_path):
  """A checkout with launchers only, for a site without BERT_PYTHON."""
  del site.env["BERT_PYTHON"]
  shutil.copytree(str(SCRIPTS), str(tmp_path / "checkout" / "scripts"))
  return tmp_path / "checkout"


@pytest.fixture
def clients(site):  # pylint: disable=redefined-outer-name
  """A site whose environment of clients is a stand-in."""
  python = site.home / "venv" / "client" / "bin" / "python"
  python.parent.mkdir(parents=True)
  write_program(python, "#!/bin/sh\nexit 1\n")
  (site.home / "venv" / "client" / "setup-stamp").touch()
  site.env["BERT_VENV_DIR"] = str(site.home / "venv")
  return site
