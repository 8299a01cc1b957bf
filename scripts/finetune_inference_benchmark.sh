#!/usr/bin/env bash
# Measures how fast BERT answers SQuAD questions: a table over lengths, batch
# sizes and precisions.
#
#   bash scripts/finetune_inference_benchmark.sh large true squad
#   bash scripts/finetune_inference_benchmark.sh --bert_model base \
#     --lengths 384 --batch_sizes 1,8 --precisions fp32 --steps 20
#
# Each case is a prediction of run_squad.py on some batches of real questions,
# the longest first; the first ones do not count. The table, with the latencies
# of batches, goes to RESULTS_DIR/squad_inference_benchmark_bert_<model>.log,
# every batch's seconds to .jsonl, a picture to .png beside it. It says in which
# precision the hardware did compute. Without a fine-tuned --init_checkpoint one
# step of training makes weights, which takes the same time as any. Features of
# the questions are made once, in a minute; a case then takes a minute on a GPU.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/squad.sh
source "$root/scripts/lib/squad.sh"
# shellcheck source=scripts/lib/benchmark.sh
source "$root/scripts/lib/benchmark.sh"

bert_model=large use_xla=true task=squad
arguments <<'END'
bert_model text base, large, or a folder with bert_config.json and vocab.txt
use_xla flag compile with XLA
task choice:squad what is answered: squad
END
lengths=128,384 batch_sizes=1,2,4,8 precisions=fp32,fp16 steps=100 warm_up=3
predict_file='' init_checkpoint=''
benchmark_options
options <<'END'
predict_file path? questions; empty: the dev file under DATA_DIR
init_checkpoint path? weights of a run of run_squad.sh; empty: random ones
END
computation_options
parse_arguments "$@"
# shellcheck disable=SC2034
num_gpus=1
prepare_benchmark 1

find_squad_file dev "$predict_file" predict_file
predict_file=$REPLY
find_model "$bert_model"
tag=${task}_inference_benchmark_bert_$model_tag
open_benchmark "$tag"
if [[ -n $init_checkpoint ]]; then
  require_checkpoint "$init_checkpoint" init_checkpoint
else
  note "no --init_checkpoint: one step of training makes weights"
  read -r seq_length _ <<<"$lengths"
  batch_size=1 precision=fp32 init_checkpoint=$benchmark_dir/weights
  choose_precision
  case_stride
  squad_flags
  # Not of predict_file: its questions may have several answers each.
  training_case_flags "$root/data/sample/train-v1.1.json" 1
  run_quietly weights run_squad.py "${flags[@]}" || exit 1
fi
predict_case() {
  flags+=("--init_checkpoint=$init_checkpoint" --do_predict=true
    "--predict_file=$predict_file" "--predict_batch_size=$batch_size"
    "--num_eval_iterations=$((steps + warm_up))")
  run_case "$case_name" run_squad.py "${flags[@]}"
}
squad_cases predict_case
$dry_run || rm -rf -- "$benchmark_dir/weights"
close_benchmark inference "$tag"
