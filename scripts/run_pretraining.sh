#!/usr/bin/env bash
# Pre-trains BERT on TFRecords and evaluates it: masked words, next sentence.
#
#   bash scripts/run_pretraining.sh 14 8 1e-4 fp16 true 1 10000 1144000
#   bash scripts/run_pretraining.sh --bert_model base --num_gpus 1 \
#     --train_steps 2000 --warmup_steps 200 --input_file 'my_records/*.tfrecord'
#
# Batch sizes and the learning rate are for each GPU. Without --input_file it
# reads the records that run_preprocessing.sh made of each of the --sources
# (environment: SOURCES) under DATA_DIR. It writes checkpoints,
# metrics.jsonl, eval_results.txt and pretraining.log to
# RESULTS_DIR/pretraining_<date>, takes many days for BERT-large on a V100 with
# the defaults, and goes on where it stopped when the same command is repeated.
# A fifth argument that is a number means the older order without use_xla, in
# which precision may carry it (fp16_xla).
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/sources.sh
source "$root/scripts/lib/sources.sh"
# shellcheck source=scripts/lib/training.sh
source "$root/scripts/lib/training.sh"

train_batch_size=14 eval_batch_size=8 learning_rate=1e-4 precision=fp16
use_xla=true num_gpus='' warmup_steps=10000 train_steps=1144000
save_checkpoint_steps=5000 create_logfile=true
arguments <<'END'
train_batch_size count sentences a step and GPU
eval_batch_size count the same when evaluating
learning_rate number peak rate for each GPU
precision precision fp32, fp16 (= amp) or bf16 (tf2 stack)
use_xla flag compile with XLA
num_gpus count? GPUs to use; empty: those present, at most 8
warmup_steps whole steps until the rate is at its peak
train_steps count steps in all
save_checkpoint_steps count steps from checkpoint to checkpoint
create_logfile flag keep pretraining.log in the run folder
END
# shellcheck disable=SC2034  # some are read by name only
bert_model=large bert_config='' input_file='' eval_input_file='' seed=''
init_checkpoint='' max_seq_length=512 max_predictions_per_seq=80
max_eval_steps=100 do_train=true do_eval=true batch_sources=mixed
sources=${SOURCES-}
options <<'END'
bert_model text base, large, small, or a folder with bert_config.json
bert_config path? bert_config.json in place of the model's
sources text? corpora of DATA_DIR, commas between; empty: both usual ones
input_file paths? TFRecords, globs and commas, in place of the sources
eval_input_file paths? held out; empty: the sources' test part or all records
batch_sources choice:mixed|single each batch of all sources, or of one
init_checkpoint path? weights to begin with; empty: random ones
max_seq_length count tokens a sequence, as the records were made
max_predictions_per_seq count masked tokens a sequence, likewise
max_eval_steps count steps of evaluation
do_train flag train
do_eval flag evaluate at the end
seed whole? seed of weights, dropout and order; empty: the program's own
END
training_options
computation_options

rewrite_positionals() {
  # train, eval, rate, precision, GPUs, ...: the order without use_xla.
  [[ ${positionals[4]-} =~ ^[0-9]+$ ]] || return 0
  positional_names=("${positional_names[@]:0:4}" "${positional_names[@]:5}")
  use_xla=false
  [[ ${positionals[3]} == *_xla ]] || return 0
  [[ " ${names[*]} " != *" use_xla "* ]] || usage_error "use_xla is stated" \
    "twice: in argument 4, ${positionals[3]}, and as --use_xla"
  positionals[3]=${positionals[3]%_xla}
  names+=(use_xla) values+=(true)
}
parse_arguments "$@"
! $do_train || ((warmup_steps < train_steps)) || usage_error "warmup_steps is" \
  "$warmup_steps, but has to be less than train_steps, $train_steps"
prepare

find_config() {
  # bert_config: as given, else the model's, else the preset of that name.
  if [[ -z $bert_config ]]; then
    find_model "$bert_model"
    bert_config=$model_dir/bert_config.json
    if [[ ! -f $bert_config && $bert_model =~ ^(base|large|small)$ ]]; then
      bert_config=$root/scripts/configs/bert_$bert_model.json
    fi
  fi
  require_file "$bert_config" "model configuration" \
    "give --bert_model base, large, small or a folder, or --bert_config FILE"
}

find_config
find_records
[[ -z $init_checkpoint ]] ||
  require_checkpoint "$init_checkpoint" init_checkpoint
flags=("--bert_config_file=$bert_config" "--input_file=$input_file"
  "--do_train=$do_train" "--do_eval=$do_eval"
  "--train_batch_size=$train_batch_size" "--eval_batch_size=$eval_batch_size"
  "--learning_rate=$learning_rate" "--num_train_steps=$train_steps"
  "--num_warmup_steps=$warmup_steps" "--max_seq_length=$max_seq_length"
  "--max_predictions_per_seq=$max_predictions_per_seq"
  "--save_checkpoints_steps=$save_checkpoint_steps"
  "--batch_sources=$batch_sources" "--max_eval_steps=$max_eval_steps"
  "${precision_flags[@]}")
for name in eval_input_file init_checkpoint seed; do
  if [[ -n ${!name} ]]; then flags+=("--$name=${!name}"); fi
done
training_flags
run_python pretraining run_pretraining.py "${flags[@]}"
