#!/usr/bin/env bash
# Measures how fast BERT is fine-tuned on SQuAD: a table over lengths, batch
# sizes and precisions.
#
#   bash scripts/finetune_train_benchmark.sh large true 8 squad
#   bash scripts/finetune_train_benchmark.sh --bert_model base --num_gpu 1 \
#     --lengths 128 --batch_sizes 8 --precisions fp32 --steps 10 --warm_up 2
#
# Each case is a run of run_squad.py of a few steps, on real questions; the
# first ones do not count. The table goes to RESULTS_DIR/
# squad_training_benchmark_bert_<model>_gpu_<n>.log, every step's seconds to
# .jsonl, a picture to .png beside it. It says in which precision the hardware
# did compute. A model without bert_model.ckpt runs with random weights, which
# takes the same time. Features of the questions are made once, in minutes; a
# case then takes a minute on a GPU.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/squad.sh
source "$root/scripts/lib/squad.sh"
# shellcheck source=scripts/lib/benchmark.sh
source "$root/scripts/lib/benchmark.sh"

bert_model=large use_xla=true num_gpu='' task=squad
arguments <<'END'
bert_model text base, large, or a folder with bert_config.json and vocab.txt
use_xla flag compile with XLA
num_gpu count? GPUs to use; empty: those present, at most 8
task choice:squad what is trained: squad
END
# shellcheck disable=SC2034
aliases=([num_gpus]=num_gpu)
lengths=128,384 batch_sizes=1,2,4,8 precisions=fp32,fp16 steps=50 warm_up=10
train_file=''
benchmark_options
options <<'END'
train_file path? questions; empty: the train file under DATA_DIR
END
computation_options
parse_arguments "$@"
# shellcheck disable=SC2034
num_gpus=$num_gpu
prepare_benchmark 1

find_squad_file train "$train_file" train_file
train_file=$REPLY
find_model "$bert_model"
tag=${task}_training_benchmark_bert_${model_tag}_gpu_$ranks
open_benchmark "$tag"
train_case() {
  if [[ -f $model_dir/bert_model.ckpt.index ]]; then
    flags+=("--init_checkpoint=$model_dir/bert_model.ckpt")
  fi
  training_case_flags "$train_file" $((steps + warm_up))
  run_case "$case_name" run_squad.py "${flags[@]}"
}
squad_cases train_case
close_benchmark training "$tag"
