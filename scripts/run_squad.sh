#!/usr/bin/env bash
# Fine-tunes BERT on SQuAD, answers the dev questions and scores the answers.
#
#   bash scripts/run_squad.sh 10 5e-6 fp16 true 1 384 128 large 1.1
#   bash scripts/run_squad.sh --bert_model my_model --num_gpus 1 \
#     --batch_size 16 --learning_rate 3e-5 --train_file my_train.json \
#     --predict_file my_dev.json
#
# Batch size and learning rate are for each GPU. The model is searched under
# DATA_DIR, the questions in DATA_DIR/squad/v<version>. It writes checkpoints,
# predictions.json, nbest_predictions.json, eval_results.txt, metrics.jsonl and
# a log to RESULTS_DIR/squad_<model>_v<version>_<date>; the last line says
# {"exact_match": ..., "f1": ...}. BERT-large takes hours on a V100; the same
# command repeated goes on where it stopped.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/squad.sh
source "$root/scripts/lib/squad.sh"
# shellcheck source=scripts/lib/training.sh
source "$root/scripts/lib/training.sh"

batch_size=10 learning_rate=5e-6 precision=fp16 use_xla=true num_gpus=''
seq_length=384 doc_stride=128 bert_model=large squad_version=1.1 checkpoint=''
epochs=2.0
arguments <<'END'
batch_size count windows a step and GPU
learning_rate number peak rate for each GPU
precision precision fp32, fp16 (= amp) or bf16 (tf2 stack)
use_xla flag compile with XLA
num_gpus count? GPUs to use; empty: those present, at most 8
seq_length count tokens a window
doc_stride count tokens from window to window of one passage
bert_model text base, large, or a folder with bert_config.json and vocab.txt
squad_version choice:1.1|2.0 1.1 or 2.0
checkpoint path? weights to begin with; empty: the model's bert_model.ckpt
epochs number passes over the training questions
END
# shellcheck disable=SC2034
aliases=([num_train_epochs]=epochs [init_checkpoint]=checkpoint
  [train_batch_size]=batch_size [max_seq_length]=seq_length)
train_file='' predict_batch_size=8 warmup_proportion=0.1
save_checkpoint_steps=1000 do_predict=true length_grouping=false
options <<'END'
train_file path? training questions; empty: the train file under DATA_DIR
predict_batch_size count windows a step when predicting
warmup_proportion fraction share of the steps in which the rate rises
save_checkpoint_steps count steps from checkpoint to checkpoint
do_predict flag answer and score the dev questions after training
length_grouping flag train on batches of similar length
END
training_options
squad_options
computation_options
parse_arguments "$@"
prepare

squad_flags
checkpoint=${checkpoint:-$model_dir/bert_model.ckpt}
require_checkpoint "$checkpoint" checkpoint
find_squad_file train "$train_file" train_file
flags+=("--init_checkpoint=$checkpoint" --do_train=true "--train_file=$REPLY"
  "--train_batch_size=$batch_size" "--learning_rate=$learning_rate"
  "--num_train_epochs=$epochs" "--warmup_proportion=$warmup_proportion"
  "--save_checkpoints_steps=$save_checkpoint_steps" "--do_predict=$do_predict")
if $do_predict; then
  find_squad_file dev "$predict_file" predict_file
  flags+=("--predict_file=$REPLY" "--predict_batch_size=$predict_batch_size")
fi
training_flags
if $length_grouping; then flags+=(--length_grouping=true); fi
run_python "squad_${model_tag}_v$squad_version" run_squad.py "${flags[@]}"
