#!/usr/bin/env bash
# The whole main job on the bundled sample, from raw text to scored answers.
#
#   bash scripts/quickstart.sh [--stack tf1|tf2] [--run_dir FOLDER] [--fresh]
#
# Sets up first (minutes the first time, a second later), then four to seven
# minutes on two cores: text, shards, TFRecords, pre-training of a small BERT,
# fine-tuning on questions, prediction, scores. It may be run again or go on
# after Ctrl-C or a kill: what is trained stays trained, unless --fresh. All
# lies in RESULTS_DIR/quickstart_<stack>; the last line gives the scores.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
parse_arguments "$@"
((${#extra_flags[@]} == 0)) || usage_error "there are no flags to hand on"
sample=$root/data/sample table=()

run() {
  # A command of one of the stages; its end with a fault is the end of all.
  local status=0
  if $dry_run; then printf '%q ' "$@" && echo && return; fi
  run_logged '' "$@" || status=$?
  ((status == 0)) || exit "$status"
}

stage() {
  # Stage $1, what it makes $2 and its command, with a row for the table.
  local title=$1 where=$2 start=$SECONDS
  shift 2
  printf '\n== %s\n' "$title"
  "$@"
  table+=("$(printf '%-32s %4d s  %s' "$title" $((SECONDS - start)) "$where")")
}

open_folder() {
  # run_dir, emptied where it is of another sample, another version or --fresh.
  local key
  run_dir=${run_dir:-$results_dir/quickstart_$stack}
  ! $dry_run || return 0
  key=$(cat -- "$0" "$sample"/* | sha256sum)
  if [[ -f $run_dir/quickstart.key ]] &&
    { $fresh || [[ $(<"$run_dir/quickstart.key") != "$key" ]]; }; then
    note "beginning anew in $run_dir"
    rm -rf -- "$run_dir"
  elif [[ ! -f $run_dir/quickstart.key &&
    -n $(find "$run_dir/" -maxdepth 1 -mindepth 1 2>&-) ]]; then
    die "$run_dir is not empty and of no quickstart: give another --run_dir"
  fi
  { mkdir -p -- "$run_dir"/{shards,baselines} &&
    printf '%s\n' "$key" >"$run_dir/quickstart.key"; } 2>/dev/null ||
    die "cannot write to $run_dir: set RESULTS_DIR or give another --run_dir"
}

make_shards() {
  # Documents, which blank lines part, go round four files.
  # shellcheck disable=SC2016
  run awk -v RS= -v folder="$run_dir/shards" \
    '{ printf "%s\n\n", $0 > (folder "/part-" NR % 4 ".txt") }' \
    "$sample/corpus.txt"
}

make_records() {
  run "$python" "$root/create_pretraining_data.py" \
    "--input_file=$run_dir/shards/part-*.txt" \
    "--output_file=$run_dir/records/" "--vocab_file=$sample/vocab.txt" \
    --max_seq_length=80 --max_predictions_per_seq=12 --random_seed=1
}

pretrain() {
  # The fourth shard is held out.
  run bash "$root/scripts/run_pretraining.sh" --run_dir "$run_dir/pretraining" \
    --stack "$stack" --precision fp32 --use_xla false --num_gpus 1 \
    --bert_config "$sample/bert_config.json" --train_batch_size 32 \
    --input_file "$run_dir/records/part-[0-2].tfrecord" \
    --eval_input_file "$run_dir/records/part-3.tfrecord" \
    --learning_rate 5e-4 --train_steps 300 --warmup_steps 30 \
    --save_checkpoint_steps 100 --max_seq_length 80 \
    --max_predictions_per_seq 12 --max_eval_steps 20 -- --log_every_steps=25
}

finetune() {
  run bash "$root/scripts/run_squad.sh" --run_dir "$run_dir/squad" \
    --stack "$stack" --precision fp32 --use_xla false --num_gpus 1 \
    --bert_model "$sample" --checkpoint "$run_dir/pretraining" \
    --train_file "$sample/train-v1.1.json" \
    --predict_file "$sample/dev-v1.1.json" --batch_size 16 \
    --learning_rate 1e-3 --epochs 30 --seq_length 80 --doc_stride 32 \
    --save_checkpoint_steps 500 -- --max_query_length=16 \
    --max_answer_length=6 --log_every_steps=50
}

show_score() {
  # A row with the scores of answers $2, called $1; leaves them in scores.
  local found
  found=$("$python" "$root/utils/squad_score.py" "$sample/dev-v1.1.json" "$2")
  [[ $found =~ exact_match\":\ ([0-9.]+).*f1\":\ ([0-9.]+) ]]
  scores=("${BASH_REMATCH[@]:1}")
  printf '%-40s %5.1f %6.1f\n' "$1" "${scores[@]}"
}

show_end() {
  local scores
  printf '\n== What was done, on %s, in %d s\n' "$stack" "$SECONDS"
  printf '%s\n' "${table[@]}"
  printf '\n%-40s exact     F1\n' "Scores on questions about unseen names"
  show_score "always the most frequent position" \
    "$run_dir/baselines/baseline_position.json"
  show_score "always the first entity" \
    "$run_dir/baselines/baseline_entity.json"
  show_score "the model" "$run_dir/squad/predictions.json"
  cat <<END

Answers are in $run_dir/squad/predictions.json, losses in metrics.jsonl there.
Next: bash $root/scripts/run_squad.sh --help         fine-tune on real SQuAD
      bash $root/scripts/run_pretraining.sh --help   pre-train on your text
      $python -m tensorboard.main --logdir $run_dir
END
  printf '{"exact_match": %s, "f1": %s}\n' "${scores[@]}"
}

run bash "$root/scripts/setup.sh" ${stack:+--stack "$stack"}
choose_python
open_folder
stage "text to shards" "$run_dir/shards" make_shards
stage "shards to TFRecords" "$run_dir/records" make_records
stage "pre-training" "$run_dir/pretraining" pretrain
stage "fine-tuning and prediction" "$run_dir/squad" finetune
stage "answers without reading" "$run_dir/baselines" \
  run "$python" "$sample/baselines.py" "$sample/train-v1.1.json" \
  "$sample/dev-v1.1.json" "$run_dir/baselines"
$dry_run || show_end
