#!/usr/bin/env bash
# Answers SQuAD questions with a fine-tuned BERT and scores the answers.
#
#   bash scripts/run_squad_inference.sh /results/model.ckpt 8 fp16 true 384 128
#   bash scripts/run_squad_inference.sh --bert_model my_model \
#     --init_checkpoint results/squad_my_model_v1.1_20240229-120000 \
#     --predict_file my_questions.json
#
# A checkpoint is a prefix, a folder (its newest) or <folder>/model.ckpt (the
# same). It writes predictions.json, nbest_predictions.json and a log to
# RESULTS_DIR/squad_inference_<model>_v<version>_<date>; where the file holds
# answers, the last line says {"exact_match": ..., "f1": ...}. The 10,570
# questions of the v1.1 dev set take minutes on a GPU.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/squad.sh
source "$root/scripts/lib/squad.sh"

init_checkpoint=$results_dir/model.ckpt batch_size=8 precision=fp16 use_xla=true
seq_length=384 doc_stride=128 bert_model=large squad_version=1.1
arguments <<'END'
init_checkpoint path weights of a run of run_squad.sh
batch_size count windows a step
precision precision fp32, fp16 (= amp) or bf16 (tf2 stack)
use_xla flag compile with XLA
seq_length count tokens a window
doc_stride count tokens from window to window of one passage
bert_model text base, large, or a folder with bert_config.json and vocab.txt
squad_version choice:1.1|2.0 1.1 or 2.0
END
# shellcheck disable=SC2034
aliases=([checkpoint]=init_checkpoint [predict_batch_size]=batch_size
  [max_seq_length]=seq_length)
# shellcheck disable=SC2034
num_gpus=1
options <<'END'
num_gpus count? GPUs to use; empty: those present, at most 8
END
squad_options
computation_options
parse_arguments "$@"
prepare

squad_flags
require_checkpoint "$init_checkpoint" init_checkpoint
find_squad_file dev "$predict_file" predict_file
flags+=("--init_checkpoint=$init_checkpoint" --do_predict=true
  "--predict_file=$REPLY" "--predict_batch_size=$batch_size")
run_python "squad_inference_${model_tag}_v$squad_version" run_squad.py \
  "${flags[@]}"
