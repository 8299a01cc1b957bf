#!/usr/bin/env bash
# Measures how fast BERT is pre-trained: a table over lengths, batch sizes,
# precisions, and with or without the kernels of fused_ops.
#
#   bash scripts/benchmark_pretraining.sh large
#   bash scripts/benchmark_pretraining.sh base false --lengths 128 \
#     --batch_sizes 8 --precisions fp32 --steps 5 --warm_up 2
#
# Each case is a run of run_pretraining.py of a few steps on full, made-up
# sequences; the first steps do not count. Beside the time of a step it says
# what the step's matrix products (of dense layers, both passes) reach by
# themselves on this device, and which share of that the whole step reaches.
# The table goes to RESULTS_DIR/pretraining_benchmark_bert_<model>.log, every
# step's seconds to .jsonl, a picture to .png beside it. A case takes a minute
# on a GPU.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/benchmark.sh
source "$root/scripts/lib/benchmark.sh"

bert_model=large use_xla=true
arguments <<'END'
bert_model text base, large, small, or a folder with bert_config.json
use_xla flag compile with XLA
END
lengths=128,512 batch_sizes=4,8 precisions=fp32,fp16 steps=20 warm_up=5
fused_ops=auto,off
benchmark_options
options <<'END'
fused_ops text auto, on, off, commas between: kernels of fused_ops
END
parse_arguments "$@"
check_list fused_ops 'choice:auto|on|off'
kernels=$fused_ops stated[fused_ops]=fused_ops
# shellcheck disable=SC2034
num_gpus=1 remove_padding=true
read -ra words <<<"$kernels"
prepare_benchmark "${#words[@]}"

find_model "$bert_model"
bert_config=$model_dir/bert_config.json
if [[ ! -f $bert_config && $bert_model =~ ^(base|large|small)$ ]]; then
  bert_config=$root/scripts/configs/bert_$bert_model.json
fi
require_file "$bert_config" "model configuration" \
  "give --bert_model base, large, small or a folder that holds it"
tag=pretraining_benchmark_bert_$model_tag
open_benchmark "$tag"
sequences=512
for batch_size in $batch_sizes; do
  if ((batch_size > sequences)); then sequences=$batch_size; fi
done
for seq_length in $lengths; do
  model=("--bert_config_file=$bert_config" "--length=$seq_length")
  input=$benchmark_dir/records/length_$seq_length.tfrecord
  call_python pretraining_work.py records "${model[@]}" \
    "--sequences=$sequences" "--output=$input"
  for batch_size in $batch_sizes; do
    for precision in $precisions; do
      call_python pretraining_work.py products "${model[@]}" \
        "--batch=$batch_size" "--precision=$precision"
      products=${REPLY#\{} products=${products%\}}
      for fused_ops in $kernels; do
        choose_precision
        # shellcheck disable=SC2034
        more_of_case=", \"fused_ops\": \"$fused_ops\", $products"
        run_case "length_${seq_length}_batch_${batch_size}_${precision}_fused_\
$fused_ops" run_pretraining.py "--bert_config_file=$bert_config" \
          "--input_file=$input" --do_train=true --num_warmup_steps=0 \
          "--train_batch_size=$batch_size" "--max_seq_length=$seq_length" \
          "--max_predictions_per_seq=$((seq_length > 128 ? 80 :
            seq_length > 20 ? 20 : seq_length))" \
          "--num_train_steps=$((steps + warm_up))" --log_every_steps=1 \
          --save_checkpoints_steps=1000000000 "${precision_flags[@]}"
      done
    done
  done
done
$dry_run || rm -rf -- "$benchmark_dir/records"
close_benchmark pretraining "$tag"
