"""The launchers of benchmarks, and the report that they end with."""

import argparse
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from benchmarks import pretraining_work
from benchmarks import report
from launcher_sandbox import flags_of
from launcher_sandbox import gpu_site  # pylint: disable=unused-import
from launcher_sandbox import large
from launcher_sandbox import ROOT
from launcher_sandbox import SCRIPTS
from launcher_sandbox import site  # pylint: disable=unused-import
from utils import records
from utils import stack

SAMPLE = ROOT / "data" / "sample"
TRAIN, INFER, PRETRAIN = LAUNCHERS = [
    "finetune_train_benchmark.sh", "finetune_inference_benchmark.sh",
    "benchmark_pretraining.sh"]


# --- command lines: of one stack, since they are bash ------------------------


def commands(done):
  """Returns (program, {flag: value}) of each command of a dry run."""
  assert done.returncode == 0, done.stderr
  lines = [shlex.split(line) for line in done.stdout.splitlines()
           if not line.startswith("#")]
  return [(pathlib.Path(words[1]).name, flags_of(words[2:]))
          for words in lines if "=" in words[2]]


@pytest.mark.once
def test_training_cases_are_all_combinations(gpu_site):
  found = commands(gpu_site.run(TRAIN, "--dry_run", "large", "true", "1"))
  sizes = [(f["max_seq_length"], f["train_batch_size"], f["use_fp16"])
           for _, f in found]
  assert sizes == [(length, batch, fp16) for length in ("128", "384")
                   for batch in "1248" for fp16 in ("false", "true")]
  assert {f["doc_stride"] for _, f in found} == {"64", "128"}
  flags = found[0][1]
  assert flags["init_checkpoint"] == large(gpu_site) + "/bert_model.ckpt"
  assert flags["use_xla"] == "true" and flags["log_every_steps"] == "1"
  assert not list(gpu_site.results.glob("squad_*"))


@pytest.mark.once
def test_epochs_make_the_steps(gpu_site):
  questions = gpu_site.home / "train.json"
  questions.write_text('{"question": 1, "x": "\\"question\\": 2"}\n' * 100)
  found = commands(gpu_site.run(
      TRAIN, "--dry_run", "--num_gpu=1", "--train_file=train.json",
      "--batch_sizes=4", "--lengths=128", "--precisions=fp32", "--steps=40",
      "--warm_up=10"))
  (_, flags), = found
  assert int(100 / 4 * float(flags["num_train_epochs"])) == 50


@pytest.mark.once
def test_ranks_are_started(gpu_site):
  done = gpu_site.run(TRAIN, "--dry_run", "--num_gpus=2", "--lengths=128",
                      "--batch_sizes=1", "--precisions=fp32")
  if "need Open MPI" not in done.stderr:
    assert "# 2 ranks by: " in done.stdout
  assert commands(done)[0][1]["horovod"] == "true"


@pytest.mark.once
def test_inference_makes_weights_once_and_counts_batches(gpu_site):
  found = commands(gpu_site.run(INFER, "--dry_run", "base", "--lengths=128",
                                "--batch_sizes=1,8", "--steps=7"))
  first, rest = found[0][1], [flags for _, flags in found[1:]]
  assert first["do_train"] == "true" and len(rest) == 4
  assert first["train_file"].endswith("data/sample/train-v1.1.json")
  for flags in rest:
    assert flags["init_checkpoint"] == first["output_dir"]
    assert flags["num_eval_iterations"] == "10"
  found = commands(gpu_site.run(
      INFER, "--dry_run", "--lengths=128", "--batch_sizes=1",
      "--precisions=amp,fp16", "--init_checkpoint=my results/tuned"))
  assert len(found) == 1 and found[0][1]["use_fp16"] == "true"


@pytest.mark.once
def test_pretraining_cases(gpu_site):
  found = commands(gpu_site.run(PRETRAIN, "--dry_run", "small", "--lengths=512",
                                "--batch_sizes=8", "--precisions=fp32"))
  runs = [flags for program, flags in found if program == "run_pretraining.py"]
  assert [flags["fused_ops"] for flags in runs] == ["auto", "off"]
  assert runs[0]["max_predictions_per_seq"] == "80"
  assert runs[0]["bert_config_file"].endswith("configs/bert_small.json")


@pytest.mark.once
@pytest.mark.parametrize("script, words, status, expected", [
    (TRAIN, ["--task=glue"], 2, "--task is 'glue', but has to be squad"),
    (TRAIN, ["large", "true", "8", "glue"], 2, "argument 4, task, is 'glue'"),
    (TRAIN, ["--lengths=128,"], 2, "--lengths is '128,', but each"),
    (TRAIN, ["--batch_sizes=0,8"], 2, "has to be a whole number above 0"),
    (TRAIN, ["--precisions=fp8"], 2, "fp32, fp16 (or amp) or bf16"),
    (TRAIN, ["--warm_up=0"], 2, "--warm_up is '0'"),
    (TRAIN, ["--batchsizes=8"], 2, "did you mean batch_sizes?"),
    (TRAIN, ["--train_file=absent.json"], 1, "give --train_file"),
    (TRAIN, ["--bert_model=absent"], 1, "no model configuration at"),
    (TRAIN, ["--run_dir=my data"], 1, "is not empty; name another --run_dir"),
    (TRAIN, ["--precisions=bf16", "--stack=tf1"], 1, "add --stack tf2"),
    (INFER, ["--num_gpu=2"], 2, "--num_gpu: no such argument"),
    (INFER, ["--init_checkpoint=absent"], 1, "give --init_checkpoint"),
    (INFER, ["--predict_file=absent.json"], 1, "give --predict_file"),
    (PRETRAIN, ["--fused_ops=maybe"], 2, "has to be auto or on or off"),
    (PRETRAIN, ["absent"], 1, "base, large, small or a folder")])
def test_bad_words_end_in_one_line(gpu_site, script, words, status, expected):
  done = gpu_site.run(script, *words)
  assert done.returncode == status and done.stdout == ""
  lines = [line for line in done.stderr.splitlines()
           if "warning" not in line and "benchmark folder" not in line]
  assert len(lines) == 1 and expected in lines[0], lines


@pytest.mark.once
def test_a_stop_ends_all_cases(site):
  waits = site.home / "waits"
  process = site.popen(TRAIN, "--num_gpu=1", env={"STUB_WAIT": str(waits)})
  for _ in range(600):
    if waits.exists():
      break
    time.sleep(0.05)
  process.terminate()
  _, err = process.communicate(timeout=60)
  assert process.returncode == 143
  assert "stopped in length_128_batch_1_fp32" in err.splitlines()[-1]
  assert "case 2" not in err


@pytest.mark.once
@pytest.mark.parametrize("script", LAUNCHERS)
def test_help(site, script):
  done = site.run(script, "--help")
  assert done.returncode == 0 and done.stderr == ""
  for name in ("bert_model", "use_xla", "lengths", "batch_sizes", "--dry_run"):
    assert re.search(r"^  {}\b".format(name), done.stdout, re.M), name


@pytest.mark.once
def test_scripts_are_strict_short_and_clean():
  for script in LAUNCHERS:
    text = (SCRIPTS / script).read_text()
    assert "\nset -euo pipefail\n" in text and len(text.splitlines()) <= 100
  program = shutil.which("shellcheck") or str(
      pathlib.Path(sys.executable).parent / "shellcheck")
  if not os.path.exists(program):
    pytest.skip("shellcheck is not installed")
  done = subprocess.run(
      [program, "-x"] + ["scripts/" + name for name in LAUNCHERS],
      cwd=str(ROOT), stdout=subprocess.PIPE, universal_newlines=True)
  assert done.returncode == 0, done.stdout


# --- the report --------------------------------------------------------------


def options_of(tmp_path, work, **changes):
  values = dict(work=work, cases=str(tmp_path / "cases.jsonl"),
                output=str(tmp_path / "out" / "stem"), model="mine",
                device="", ranks=1, warm_up=1, use_xla="false")
  values.update(changes)
  return argparse.Namespace(**values)


def write_lines(path, rows):
  path.parent.mkdir(exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def cells(text, number):
  """Returns the cells of a row of the table, the first one being 0."""
  rows = [line for line in text.splitlines() if line.startswith("|")][2:]
  return [cell.strip() for cell in rows[number].strip("|").split("|")]


def case(folder, batch, **more):
  return dict(dict(folder=folder, length=64, batch=batch, precision="fp32"),
              **more)


def test_training_table_by_hand(tmp_path):
  write_lines(tmp_path / "a" / "metrics.jsonl", [
      {"kind": "train", "step": step, "sentences_per_sec": rate}
      for step, rate in enumerate([1, 16, 32, 32])] + [{"kind": "summary"}])
  write_lines(tmp_path / "cases.jsonl", [
      case("a", 4), case("a", 4, precision="fp16"), case("absent", 8)])
  text = report.report(options_of(tmp_path, "training", ranks=2))
  # 8 sentences of both ranks in 0.5, 0.25 and 0.25 s.
  assert cells(text, 0) == ["2", "4", "64", "fp32", "24.00", "1.00"]
  # There is no GPU in a test.
  assert cells(text, 1) == ["2", "4", "64", "fp32 (asked: fp16)", "24.00", ""]
  assert cells(text, 2) == ["2", "8", "64", "fp32", "failed", ""]
  out = tmp_path / "out"
  assert (out / "stem.log").read_text() == text
  rows = [json.loads(line) for line in
          (out / "stem.jsonl").read_text().splitlines()]
  assert rows[0]["work"] == "training" and rows[0]["ranks"] == 2
  assert rows[1]["seconds"] == [0.5, 0.25, 0.25]
  assert rows[1]["latency_ms"]["50%"] == 250
  assert rows[3]["steps"] == 0
  assert (out / "stem.png").read_bytes()[:4] == b"\x89PNG"


def test_inference_table_by_hand(tmp_path):
  write_lines(tmp_path / "a" / "metrics.jsonl", [
      {"kind": "predict", "sentences": 8, "batch_seconds": [9.0]},
      # The last one's batch has a sentence alone.
      {"kind": "predict", "sentences": 9,
       "batch_seconds": [2.0, 0.5, 0.25, 0.125, 0.125]}])
  write_lines(tmp_path / "cases.jsonl", [case("a", 2)])
  text = report.report(options_of(tmp_path, "inference"))
  assert cells(text, 0) == [
      "mine", "64", "2", "fp32", "7.00", "250.00", "125.00"] + ["500.00"] * 4


def test_pretraining_table_by_hand(tmp_path):
  write_lines(tmp_path / "a" / "metrics.jsonl", [
      {"kind": "train", "step": step, "sentences_per_sec": 16}
      for step in range(3)])
  write_lines(tmp_path / "cases.jsonl", [case(
      "a", 4, fused_ops="off", products_seconds=0.125,
      products_flops=500000000000)])
  text = report.report(options_of(tmp_path, "pretraining"))
  assert cells(text, 0)[4:] == ["off", "16.00", "250.00", "250.00", "250.00",
                                "4000", "50 %"]


def run_report(tmp_path, work="training"):
  done = subprocess.run(
      [sys.executable, str(ROOT / "benchmarks" / "report.py"), work,
       str(tmp_path / "cases.jsonl"), "--output", str(tmp_path / "stem")],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
      cwd=str(tmp_path))
  assert "Traceback" not in done.stderr
  return done


@pytest.mark.parametrize("work, text, expected", [
    ("training", "", "no cases in it"),
    ("training", "{}\n", "line 1: expected a JSON object with batch, folder"),
    ("training", json.dumps(case("a", 1)) + "\n[3]\n", "line 2: expected"),
    ("training", '{"folder": "a"', "line 1: expected"),
    ("pretraining", json.dumps(case("a", 1)), "fused_ops")])
def test_bad_cases(tmp_path, work, text, expected):
  (tmp_path / "cases.jsonl").write_text(text)
  with pytest.raises(report.UserError, match="cases.jsonl.*" + expected):
    report.report(options_of(tmp_path, work))


@pytest.mark.parametrize("work, row", [
    ("training", {"kind": "train", "step": 1}),
    ("training", {"kind": "train", "sentences_per_sec": 0}),
    ("training", {"kind": "train", "sentences_per_sec": "fast"}),
    ("inference", {"kind": "predict", "sentences": 3}),
    ("inference", {"kind": "predict", "sentences": 3, "batch_seconds": [-1]})])
def test_bad_rows(tmp_path, work, row):
  write_lines(tmp_path / "a" / "metrics.jsonl", [row])
  write_lines(tmp_path / "cases.jsonl", [case("a", 1)])
  with pytest.raises(report.UserError, match="is no time or rate of a step"):
    report.report(options_of(tmp_path, work))


def test_faults_are_one_line(tmp_path):
  done = run_report(tmp_path)
  assert done.returncode == 1 and done.stdout == ""
  assert "no such file" in done.stderr.splitlines()[-1]


# --- what pre-training computes on -------------------------------------------


def test_records_are_full_sequences(tmp_path):
  sizes = pretraining_work.sizes_of(str(SAMPLE / "bert_config.json"), 3, 32)
  path = str(tmp_path / "records")
  pretraining_work.write_records(sizes, path)
  found = [records.decode_example(payload)
           for payload in records.read_records(path)]
  assert len(found) == 3
  for features in found:
    assert list(features["input_mask"]) == [1] * 32
    assert len(features["masked_lm_positions"]) == 20
    assert max(features["input_ids"]) < 346


def test_products_are_timed():
  sizes = pretraining_work.sizes_of(str(SAMPLE / "bert_config.json"), 2, 32)
  found = pretraining_work.products(sizes, "fp32")
  assert 0 < found["products_seconds"] < 10
  # 3 layers: 64 rows, 128 wide; 40 predictions.
  assert found["products_flops"] == 6 * (
      3 * 64 * 128 * 12 * 128 + 40 * 128 * (128 + 346))


def test_models_that_products_are_not_known_of(tmp_path):
  config = json.loads((SAMPLE / "bert_config.json").read_text())
  path = tmp_path / "bert_config.json"
  path.write_text(json.dumps(dict(config, intermediate_size=100)))
  with pytest.raises(report.UserError, match="intermediate_size"):
    pretraining_work.sizes_of(str(path), 1, 32)
  with pytest.raises(report.UserError, match="--length=256 is over"):
    pretraining_work.sizes_of(str(SAMPLE / "bert_config.json"), 1, 256)


# --- real runs ---------------------------------------------------------------


def run(tmp_path, script, *words):
  """Runs a launcher on the sample's model; returns the finished process."""
  env = dict(os.environ, BERT_PYTHON=sys.executable, CUDA_VISIBLE_DEVICES="",
             RESULTS_DIR=str(tmp_path), TF_CPP_MIN_LOG_LEVEL="2")
  return subprocess.run(
      ["bash", str(SCRIPTS / script), str(SAMPLE), "--use_xla=false",
       "--stack=" + stack.NAME, "--steps=3", "--warm_up=1",
       "--precisions=fp32", "--lengths=48"] + list(words),
      env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, universal_newlines=True, timeout=600)


def rows_of(tmp_path, tag):
  return [json.loads(line) for line in
          (tmp_path / (tag + ".jsonl")).read_text().splitlines()][1:]


@pytest.mark.once
def test_training_runs_and_a_case_that_fails_is_told(tmp_path):
  # The sample has fewer than 100000 questions.
  done = run(tmp_path, TRAIN, "--num_gpu=1", "--batch_sizes=4,100000",
             "--train_file=%s" % (SAMPLE / "train-v1.1.json"), "--",
             "--max_query_length=16")
  assert done.returncode == 1, done.stderr
  assert "--train_batch_size=100000, but there are only" in done.stderr
  assert "1 of 2 cases failed" in done.stderr.splitlines()[-1]
  tag = "squad_training_benchmark_bert_sample_gpu_1"
  good, bad = rows_of(tmp_path, tag)
  assert good["steps"] == 3 and good["throughput"] > 0
  assert "throughput" not in bad and cells(done.stdout, 1)[4] == "failed"
  assert (tmp_path / (tag + ".log")).read_text().strip() == done.stdout.strip()
  assert (tmp_path / (tag + ".png")).stat().st_size > 1000
  assert not list(tmp_path.glob("**/model.ckpt*"))


@pytest.mark.once
def test_inference_runs(tmp_path):
  dataset = json.loads((SAMPLE / "dev-v1.1.json").read_text())
  for article in dataset["data"]:
    for paragraph in article["paragraphs"]:
      for question in paragraph["qas"]:
        question["answers"] *= 3  # as in SQuAD's own dev file
  (tmp_path / "dev.json").write_text(json.dumps(dataset))
  done = run(tmp_path, INFER, "--batch_sizes=4",
             "--predict_file=%s" % (tmp_path / "dev.json"), "--",
             "--max_query_length=16")
  assert done.returncode == 0, done.stderr
  row, = rows_of(tmp_path, "squad_inference_benchmark_bert_sample")
  assert row["steps"] == 3 and len(row["seconds"]) == 3
  assert not list(tmp_path.glob("**/model.ckpt*"))


def test_pretraining_runs(tmp_path):
  done = run(tmp_path, PRETRAIN, "--batch_sizes=4", "--fused_ops=off")
  assert done.returncode == 0, done.stderr
  row, = rows_of(tmp_path, "pretraining_benchmark_bert_sample")
  assert row["steps"] == 3 and row["fused"] is False and row["share"] > 0
