"""README.md: its tables equal the code, its examples run as they are written.

A bash block is run for real in a copy of the checkout, in the order of the
page, unless a comment before it says otherwise: `<!-- test: dry run -->` adds
--dry_run to each launcher, with stand-ins for the files that it names;
`<!-- test: not run: REASON -->` needs an entry in readme_page.NOT_RUN.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from typing import List
from typing import NamedTuple

import pytest
import tensorflow.compat.v1 as tf

from readme_page import NOT_RUN
from readme_page import README
from readme_page import Block
from readme_page import blocks
from readme_page import commands
from readme_page import names
from readme_page import rows

# Its examples are of the default stack; what they do is tested on both.
pytestmark = pytest.mark.once
ROOT = pathlib.Path(__file__).resolve().parent.parent
# Environment of the stack that runs this test: <folder>/<stack>/bin/python.
VENV = pathlib.Path(sys.prefix)
STACK = "tf1" if tf.__version__.startswith("1.") else "tf2"
LAUNCHERS = sorted(path.name for path in (ROOT / "scripts").glob("*.sh")
                   if "\narguments <<" in path.read_text(encoding="utf-8"))
# Those of serving, which start no ranks.
SERVING = sorted("trtis/" + path.name
                 for path in (ROOT / "scripts" / "trtis").glob("*.sh")
                 if "\narguments <<" in path.read_text(encoding="utf-8"))
# The table is that of the last one, which takes all that the others take.
PREPARATIONS = ["data/wikipedia_corpus/run_preprocessing.sh",
                "data/bookcorpus/run_preprocessing.sh",
                "data/run_preprocessing.sh"]
PROGRAMS = ["create_pretraining_data", "run_pretraining", "run_squad",
            "run_squad_trtis_client"]
NONE = "–"
# Files that the dry runs name beside the sample's: a model's folder, a run's,
# questions, records.
MODELS = ["data/minilm",
          "data/pretrained_models_google/uncased_L-24_H-1024_A-16",
          "data/pretrained_models_google/uncased_L-12_H-768_A-12"]
RUNS = ["results/squad_base"]
CORPORA = ["data/wikipedia_corpus/download/a.xml.bz2",
           "data/bookcorpus/download/a.txt"]
RECORDS = ["data/%s/final_tfrecords_sharded/seq_128_pred_20/training/a.tfrecord"
           % corpus for corpus in ("wikipedia_corpus", "bookcorpus")] + [
               "my_records/train/a.tfrecord", "my_records/held_out/a.tfrecord"]


def test_every_block_is_of_a_known_kind():
  assert README.count("\n```") == 2 * len(
      blocks("bash") + blocks("ini") + blocks("nginx")), "what language?"
  for block in blocks("bash"):
    assert re.match(r"(dry run|not run: .+|)$", block.mark), block
  marks = re.findall(r"<!-- test: .*", README)
  assert len(marks) == sum(bool(b.mark) for b in blocks("bash")), (
      "a mark stands on the line before its block, and ends there")


def test_blocks_that_are_not_run_are_these_alone():
  found = {b.mark[len("not run: "):]: commands(b.text)
           for b in blocks("bash") if b.mark.startswith("not run: ")}
  assert found == NOT_RUN


def test_links_lead_somewhere():
  anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
             for title in re.findall(r"^#+ (.*)$", README, re.M)}
  for target in re.findall(r"\]\(([^)]+)\)", README):
    if target.startswith("#"):
      assert target[1:] in anchors, target
    else:
      assert (ROOT / target).is_file(), target


# --- tables ------------------------------------------------------------------


def run_quietly(words, **kwargs):
  """Returns the standard output of a command that has to succeed."""
  done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                        universal_newlines=True, **kwargs)
  assert done.returncode == 0, done.stderr
  return done.stdout


def declared_arguments(script):
  """Returns (by position, by name only): lists of (name, default)."""
  path = ROOT / script
  if not path.exists():
    path = ROOT / "scripts" / script
  text = run_quietly(["bash", str(path), "--help"],
                     env=dict(os.environ, RESULTS_DIR="/results"))
  parts = re.split(r"^(?:Arguments, in|Options, as).*$", text, flags=re.M)[1:]
  if len(parts) == 1 and "Arguments, in" not in text:
    parts.insert(0, "")
  assert len(parts) == 2, text
  return [re.findall(r"^  (\w+) .*\[(.*)\]$", part, re.M) for part in parts]


@pytest.fixture(scope="module")
def declared_flags():
  """{program: {flag: default}} as the programs themselves declare them."""
  code = """
import importlib, json, sys
from absl import flags
FLAGS, found = flags.FLAGS, {}
for program in sys.argv[1:]:
  module = importlib.import_module(program)
  before = set(FLAGS)
  module.define_flags()
  found[program] = {n: FLAGS[n].default for n in set(FLAGS) - before}
  for name in found[program]:
    delattr(FLAGS, name)
print(json.dumps(found))
"""
  return json.loads(run_quietly(
      [sys.executable, "-c", code] + PROGRAMS, cwd=str(ROOT)))


def test_every_launcher_and_program_has_a_table():
  found = re.findall(r"^### `(.*)`$", README, re.M)
  assert sorted(found) == sorted(
      ["scripts/" + name for name in LAUNCHERS + SERVING] + PREPARATIONS[-1:]
      + [name + ".py" for name in PROGRAMS])


@pytest.mark.parametrize("script", LAUNCHERS)
def test_arguments_of_launchers(script):
  by_position, by_name = declared_arguments(script)
  table = rows("`scripts/%s`" % script, "#")
  common = [row for row in rows("Of every launcher", "Argument")
            if re.match(r"`\w+`$", row[0])]
  shown = [(number, names(name)[0], default)
           for number, name, default, _ in table]
  shown += [("", names(row[0])[0], row[1]) for row in common]
  expected = [(str(number), name, default or NONE)
              for number, (name, default) in enumerate(by_position, 1)]
  expected += [("", name, default or NONE) for name, default in by_name]
  assert shown == expected


@pytest.mark.parametrize("script", SERVING)
def test_arguments_of_serving(script):
  by_position, by_name = declared_arguments(script)
  common = {names(row[0])[0]
            for row in rows("Of every launcher", "Argument")}
  shown = [(number, names(name)[0], default)
           for number, name, default, _ in rows("`scripts/%s`" % script, "#")]
  assert shown == [
      (str(number), name, default or NONE)
      for number, (name, default) in enumerate(by_position, 1)] + [
          ("", name, default or NONE) for name, default in by_name
          if name not in common]


def test_arguments_of_preparations():
  by_position, by_name = declared_arguments(PREPARATIONS[-1])
  assert by_name.pop() == ("stack", "")
  shown = [(number, names(name)[0], default) for number, name, default, _
           in rows("`%s`" % PREPARATIONS[-1], "#")]
  assert shown == [
      (str(number), name, default or NONE)
      for number, (name, default) in enumerate(by_position, 1)] + [
          ("", name, default or NONE) for name, default in by_name]
  shared = [item for item in by_name if item[0] not in ("documents", "pattern")]
  for script in PREPARATIONS[:-1]:
    own = declared_arguments(script)
    assert own[0] == []
    assert [name for name, _ in own[1][:2]] == ["input", "corpus_name"]
    assert own[1][2:] == shared + [("stack", "")]


def test_words_of_every_launcher():
  shown = [names(row[0])[0] for row in rows("Of every launcher", "Argument")]
  for script in LAUNCHERS:
    text = run_quietly(["bash", str(ROOT / "scripts" / script), "--help"])
    assert [name for name in shown if name.startswith("-")] == [
        line.strip() for line in re.findall(r"^  (--.*?)  ", text, re.M)]


def same_default(cell, default):
  """Says whether a table's cell shows a flag's default."""
  if default is None or isinstance(default, bool):
    return cell == {None: NONE, True: "true", False: "false"}[default]
  if isinstance(default, (int, float)):
    return isinstance(default, float) == bool(
        re.search(r"[.e]", cell)) and float(cell) == default
  return cell == default


@pytest.mark.parametrize("program", PROGRAMS)
def test_flags_of_programs(declared_flags, program):
  flags = declared_flags[program]
  shown = {names(row[0])[0]: row[1]
           for row in rows("`%s.py`" % program, "Flag")}
  assert sorted(shown) == sorted(flags)
  for name, default in flags.items():
    assert same_default(shown[name], default), (name, shown[name], default)


def test_environment_variables():
  scripts = "".join(path.read_text(encoding="utf-8")
                    for path in (ROOT / "scripts").rglob("*.sh"))
  used = set(re.findall(
      r"\$\{?((?:BERT|FROM)_[A-Z_]+|DATA_DIR|RESULTS_DIR|SOURCES"
      r"|(?:CUDA|NVIDIA)_VISIBLE_DEVICES)\b", scripts))
  shown = [names(row[0])[0]
           for row in rows("Places and environment", "Variable")]
  assert sorted(shown) == sorted(used)


# --- names in the examples and in the text -----------------------------------


def known_flags(program, declared):
  """Returns the names after "--" that a script or program knows."""
  path = ROOT / program
  if path.stem in declared and path.suffix == ".py":
    return set(declared[path.stem])
  if (path.name in LAUNCHERS or program in PREPARATIONS
      or program[len("scripts/"):] in SERVING):
    by_position, by_name = declared_arguments(program)
    return {name for name, _ in by_position + by_name} | {
        "config", "fresh", "dry_run", "help"}
  if path.suffix == ".sh":
    return set(re.findall(r"--(\w+)", run_quietly(
        ["bash", str(path), "--help"])))
  source = path.read_text(encoding="utf-8")
  return set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", source)) | set(
      re.findall(r"\"--(\w+)\"", source)) | {"help"}


def program_of(words):
  """Returns the program of a command, None if not ours, and what follows."""
  while re.match(r"\w+=", words[0]):
    words = words[1:]
  if words[0] in ("bash", "python") and words[1] != "-m":
    return words[1], words[2:]
  return None, []


def test_programs_and_flags_of_the_examples_exist(declared_flags):
  seen = set()
  for block in blocks("bash"):
    for command in commands(block.text):
      program, words = program_of(shlex.split(command))
      if program is None:
        continue
      assert (ROOT / program).is_file(), (block.line, program)
      if program == "scripts/docker/launch.sh" and words:
        program, words = program_of(words)
      own = words[:words.index("--")] if "--" in words else words
      known = known_flags(program, declared_flags)
      flags = {re.match(r"--(\w+)", w).group(1) for w in own
               if w.startswith("--")}
      assert flags <= known, (block.line, program, flags - known)
      seen.add(program)
  assert {"scripts/" + name for name in LAUNCHERS} <= seen


def test_paths_and_flags_of_the_text_exist(declared_flags):
  prose = re.sub(r"^```.*?^```$|<!--.*?-->", "", README, flags=re.M | re.S)
  code = " ".join(re.findall(r"`([^`]+)`", prose))
  paths = set(re.findall(
      r"(?<![\w/.-])((?:scripts|utils|tests|benchmarks|data/sample)/[\w./*-]+"
      r"|data/\w+/run_preprocessing\.sh|data/\w+\.(?:py|sh)"
      r"|\w+\.py|Dockerfile)(?![\w/])", code))
  for path in paths:
    assert (ROOT / path).exists(), path
  known = {"no" + n for f in declared_flags.values() for n in f}
  sources = (["scripts/" + n for n in LAUNCHERS + SERVING]
             + [p + ".py" for p in PROGRAMS] + PREPARATIONS + ["scripts/data_download.sh",
                               "data/check_records.py",
                               "data/clean_text.py", "data/segment.py"]
             + ["scripts/setup.sh", "scripts/test.sh", "utils/squad_score.py",
                "utils/convert_checkpoint.py", "utils/plot_metrics.py"])
  for source in sources:
    known |= known_flags(source, declared_flags)
  flags = set(re.findall(r"(?<!\S)--(\w+)", code))
  # Any flag; TensorBoard's, sbatch's, tritonserver's.
  flags -= {"name", "noname", "logdir", "array", "model", "disable"}
  assert flags <= known, flags - known


# --- examples ----------------------------------------------------------------


class Done(NamedTuple):
  """A block that was run: its exit status and what it said."""
  block: Block
  status: int
  out: str
  err: str


class Reader:
  """Someone with a fresh copy of the checkout and this test's environment."""

  def __init__(self, folder):
    if not (ROOT / ".git").exists():
      pytest.skip("the copy is made of what git tracks; this is no checkout")
    self.home = folder / "checkout"
    tracked = run_quietly(["git", "ls-files", "-z"], cwd=str(ROOT))
    for name in filter(None, tracked.split("\0")):
      if (ROOT / name).is_file():
        target = self.home / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(ROOT / name), str(target))
    if (ROOT / "fused_ops" / "build").is_dir():  # what set-up has built
      shutil.copytree(str(ROOT / "fused_ops" / "build"),
                      str(self.home / "fused_ops" / "build"))
    kept = {key: value for key, value in os.environ.items()
            if not key.startswith("BERT_")}
    self.env = dict(
        kept, PATH="%s:%s" % (VENV / "bin", os.environ["PATH"]),
        BERT_VENV_DIR=str(VENV.parent), BERT_STACK=STACK,
        RESULTS_DIR=str(self.home / "results"),
        DATA_DIR=str(self.home / "data"), CUDA_VISIBLE_DEVICES="",
        TF_CPP_MIN_LOG_LEVEL="2")
    if not (VENV.parent / STACK / "setup-stamp").is_file():
      self.env["BERT_PYTHON"] = sys.executable  # not an environment of setup.sh

  def run(self, block, text=None):
    """Runs a block as one shell would, up to its first failure."""
    process = subprocess.Popen(
        ["bash", "-e", "-c", text or block.text], cwd=str(self.home),
        env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, universal_newlines=True)
    out, err = process.communicate()
    return Done(block, process.returncode, out, err)


class Examples(NamedTuple):
  """What the page's quick examples, run one after the other, left."""
  home: pathlib.Path
  done: List[Done]

  def lines(self, word):
    """Returns what the first block that holds `word` said, as lines."""
    (found,) = [d for d in self.done if word in d.block.text][:1]
    return found.out.splitlines()


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
  """The blocks without a mark, run in their order."""
  reader = Reader(tmp_path_factory.mktemp("reader"))
  done = []
  for block in blocks("bash"):
    if not block.mark:
      done.append(reader.run(block))
      if done[-1].status:
        break
  return Examples(reader.home, done)


def test_examples_run_as_written(examples):
  last = examples.done[-1]
  assert last.status == 0, "README.md line %d:\n%s\n%s\n%s" % (
      last.block.line, last.block.text, last.out, last.err)
  assert len(examples.done) == sum(not b.mark for b in blocks("bash"))


def test_examples_cover_the_programs(examples):
  ran = " ".join(d.block.text for d in examples.done)
  programs = ["scripts/" + name for name in LAUNCHERS] + [
      "data/run_preprocessing.sh", "data/check_records.py",
      "scripts/data_download.sh", "create_pretraining_data.py", "utils/squad_score.py",
      "--to=safetensors", "--to=tf", "utils/plot_metrics.py"]
  assert not [p for p in programs if p not in ran]


def read_json(path):
  return json.loads(path.read_text(encoding="utf-8"))


def test_records_are_those_of_the_text(examples):
  results = examples.home / "results"
  for folder, whole in (("records", False), ("whole_word_records", True)):
    (records,) = (results / folder).glob("*.tfrecord")
    settings = read_json(records.with_name(records.name + ".settings.json"))
    assert settings["do_whole_word_mask"] is whole
    assert settings["num_records"] > 100


def metrics(folder, kind):
  lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
  return [row for row in map(json.loads, lines) if row["kind"] == kind]


def test_finished_run_trained_further(examples):
  folder = examples.home / "results" / "my_pretraining"
  steps = [row["step"] for row in metrics(folder, "train")]
  assert steps == [1, 5, 10, 15, 20, 21, 25, 30]
  assert [row["step"] for row in metrics(folder, "eval")] == [20, 30]
  assert "global_step = 30" in (folder / "eval_results.txt").read_text()


def test_all_ways_to_a_score_agree(examples):
  results = examples.home / "results"
  trained = examples.lines("run_squad.sh")
  last = json.loads(trained[-1])
  assert list(last) == ["exact_match", "f1"]
  first = json.loads([line for line in trained if line.startswith("{")][0])
  assert json.loads(examples.lines("run_squad_inference.sh")[-1]) == first
  alone = [json.loads(line) for line in examples.lines("squad_score.py")]
  assert alone[0] == first == read_json(results / "my_squad" / "scores.json")
  assert "best_f1" in alone[1] and alone[1]["total"] > 0
  answers = [(results / name / "predictions.json").read_bytes()
             for name in ("my_squad", "my_answers")]
  assert answers[0] == answers[1]


def weights(prefix):
  reader = tf.train.load_checkpoint(str(prefix))
  return {name: reader.get_tensor(name)
          for name in reader.get_variable_to_shape_map()
          if name.startswith(("bert/", "cls/")) and "/adam_" not in name}


def test_weights_come_back_as_the_same_bits(examples):
  results = examples.home / "results"
  before = weights(tf.train.latest_checkpoint(str(results / "my_squad")))
  after = weights(results / "my_squad_tf" / "bert_model.ckpt")
  assert sorted(after) == sorted(before) and "cls/squad/output_bias" in after
  for name, value in before.items():
    assert after[name].tobytes() == value.tobytes(), name
  sample = examples.home / "data" / "sample"
  for folder in ("my_squad_hf", "my_squad_tf"):
    assert (results / folder / "vocab.txt").read_bytes() == (
        sample / "vocab.txt").read_bytes()
  size = read_json(sample / "bert_config.json")["vocab_size"]
  for name in ("my_squad_hf/config.json", "my_squad_tf/bert_config.json"):
    assert read_json(results / name)["vocab_size"] == size


def test_a_corpus_of_ones_own(examples):
  """Prepared, checked, trained on, and scored on its held-out part."""
  made = (examples.home / "data" / "my_corpus" / "final_tfrecords_sharded"
          / "seq_64_pred_10")
  assert len(list((made / "training").glob("*.tfrecord"))) == 4
  report = examples.home / "results" / "my_corpus"
  assert (report / "check_records.png").read_bytes().startswith(b"\x89PNG")
  config = read_json(
      examples.home / "results" / "my_corpus_run" / "config.json")
  assert str(made / "test") in json.dumps(config)


def test_curves_are_pictures(examples):
  for name in ("my_pretraining.png", "my_squad.png"):
    content = (examples.home / "results" / name).read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 5000


def test_a_run_leaves_what_the_table_says(examples):
  shown = [name for row in rows("What a run leaves", "File")
           for name in names(row[0])]
  folders = [examples.home / "results" / name for name in (
      "my_pretraining", "my_squad", "my_squad_v2", "my_answers")]
  for pattern in shown:
    assert any(list(folder.glob(pattern)) for folder in folders), pattern
  for folder in folders:
    for path in folder.iterdir():
      assert any(path.match(pattern) for pattern in shown), path


# --- dry runs ----------------------------------------------------------------


def lay_stand_ins(home):
  """Puts small files where the dry runs' blocks name real ones."""
  sample = home / "data" / "sample"
  for name in MODELS:
    (home / name).mkdir(parents=True)
    for part in ("bert_config.json", "vocab.txt"):
      shutil.copy(str(sample / part), str(home / name))
    (home / name / "bert_model.ckpt.index").touch()
  for name in RUNS:
    (home / name).mkdir(parents=True)
    (home / name / "model.ckpt-7.index").touch()
  for name in RECORDS + CORPORA:
    (home / name).parent.mkdir(parents=True, exist_ok=True)
    (home / name).touch()
  for version in ("1.1", "2.0"):
    folder = home / "data" / "squad" / ("v" + version)
    folder.mkdir(parents=True)
    for part in ("train", "dev"):
      shutil.copy("%s/%s-v%s.json" % (sample, part, version), str(folder))
  shutil.copy(str(sample / "train-v1.1.json"), str(
      home / "data" / "squad" / "v1.1" / "train-v1.1-44articles.json"))
  (block,) = blocks("ini")
  (home / "my_squad.conf").write_text(block.text, encoding="utf-8")


def dry(command):
  """Returns a launcher's command line with --dry_run as its first word."""
  changed, count = re.subn(
      r"^((?:\w+=\S* )*bash (?:scripts|data)/(?:\w+/)?\w+\.sh)(?= |$)",
      r"\1 --dry_run", command)
  assert count == 1, "no launcher: only those can be run dry: " + command
  return changed


@pytest.fixture(scope="module")
def traveller(tmp_path_factory):
  """A Reader with stand-ins for big files and for both stacks' Python."""
  folder = tmp_path_factory.mktemp("traveller")
  reader = Reader(folder)
  lay_stand_ins(reader.home)
  for stack in ("tf1", "tf2"):
    python = folder / "venv" / stack / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    (folder / "venv" / stack / "setup-stamp").touch()
  reader.env["BERT_VENV_DIR"] = str(folder / "venv")
  reader.env.pop("BERT_PYTHON", None)
  return reader


@pytest.mark.parametrize(
    "block", [b for b in blocks("bash") if b.mark == "dry run"],
    ids=lambda block: "line %d" % block.line)
def test_examples_that_take_long_run_dry(traveller, declared_flags, block):
  for command in commands(block.text):
    done = traveller.run(block, dry(command))
    assert done.status == 0, done
    assert "a run would stop here" not in done.err, done.err
    printed = shlex.split(done.out.splitlines()[-1])
    if "docker/" in command:
      assert printed[0] == "docker", done.out
      continue
    if "run_preprocessing" in command:
      for line in done.out.splitlines():
        assert pathlib.Path(shlex.split(line)[1]).is_file(), line
      continue
    program = pathlib.Path(printed[1])
    flags = {re.match(r"--(\w+)=", w).group(1) for w in printed[2:]}
    assert flags <= set(declared_flags[program.stem])
    wanted = "tf2" if "tf2" in command else STACK
    assert printed[0] == str(
        pathlib.Path(traveller.env["BERT_VENV_DIR"], wanted, "bin", "python"))
