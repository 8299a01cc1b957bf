#!/usr/bin/env bash
# The whole main job on the bundled sample, from raw text to scored answers.
#
#   bash scripts/quickstart.sh [--stack tf1|tf2] [--fresh] [--help]
#
# Sets up first (minutes the first time, two seconds later), then some minutes
# on two cores: text, shards, TFRecords, pre-training of a small BERT,
# fine-tuning on questions, prediction, scores. Finished stages are not
# repeated and a stage that was stopped (Ctrl-C, kill) goes on where it was;
# --fresh begins anew. Everything lies in $RESULTS_DIR/quickstart [results].
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
stack=${BERT_STACK:-} fresh=false
while (($#)); do
  case $1 in
    --stack) stack=${2-} && shift ;;
    --stack=*) stack=${1#*=} ;;
    --fresh) fresh=true ;;
    -h | --help)
      sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit
      ;;
    *)
      echo "quickstart.sh: unknown argument $1 (see --help)" >&2
      exit 2
      ;;
  esac
  shift || break
done
[[ -z $stack || $stack == tf1 || $stack == tf2 ]] || {
  echo "quickstart.sh: --stack has to be tf1 or tf2" >&2
  exit 2
}

bash "$root/scripts/setup.sh" ${stack:+--stack "$stack"}
venv=${BERT_VENV_DIR:-$root/.venv}
if [[ -z $stack ]]; then
  stack=tf2
  [[ ! -x $venv/tf1/bin/python ]] || stack=tf1
fi
python=$venv/$stack/bin/python
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}

out=${RESULTS_DIR:-$root/results}/quickstart
sample=$root/data/sample
if $fresh; then rm -rf -- "$out"; fi
mkdir -p -- "$out/shards" "$out/records" "$out/baselines"
began=$SECONDS table=()

# stage TITLE WHERE COMMAND...: runs a stage and keeps a row for the table.
stage() {
  local title=$1 where=$2 start=$SECONDS
  shift 2
  printf '\n== %s\n' "$title"
  "$@"
  table+=("$(printf '%-34s %5d s  %s' "$title" $((SECONDS - start)) "$where")")
}

make_shards() {
  # Documents, which blank lines part, go round four files.
  awk -v RS= -v folder="$out/shards" \
    '{ printf "%s\n\n", $0 > (folder "/part-" NR % 4 ".txt") }' \
    "$sample/corpus.txt"
  wc -l "$out"/shards/part-*.txt
}

make_records() {
  "$python" "$root/create_pretraining_data.py" \
    --input_file="$out/shards/part-*.txt" --output_file="$out/records" \
    --vocab_file="$sample/vocab.txt" --max_seq_length=96 \
    --max_predictions_per_seq=15 --dupe_factor=10 --random_seed=1
}

pretrain() {
  "$python" "$root/run_pretraining.py" --do_train --do_eval \
    --input_file="$out/records/part-*.tfrecord" \
    --bert_config_file="$sample/bert_config.json" \
    --output_dir="$out/pretraining" --train_batch_size=32 \
    --max_seq_length=96 --max_predictions_per_seq=15 --max_eval_steps=20 \
    --num_train_steps=300 --num_warmup_steps=30 --learning_rate=3e-4 \
    --save_checkpoints_steps=100 --log_every_steps=25
}

finetune() {
  "$python" "$root/run_squad.py" --do_train --do_predict \
    --vocab_file="$sample/vocab.txt" \
    --bert_config_file="$sample/bert_config.json" \
    --init_checkpoint="$out/pretraining" --output_dir="$out/squad" \
    --cache_dir="$out/cache" --train_file="$sample/train-v1.1.json" \
    --predict_file="$sample/dev-v1.1.json" --train_batch_size=16 \
    --learning_rate=1e-3 --num_train_epochs=9 --max_seq_length=96 \
    --max_query_length=24 --doc_stride=32 --max_answer_length=8 \
    --save_checkpoints_steps=200 --log_every_steps=50
}

baselines() {
  "$python" "$sample/baselines.py" "$sample/train-v1.1.json" \
    "$sample/dev-v1.1.json" "$out/baselines"
  for name in position entity; do
    printf 'baseline, always the %s: ' \
      "$([[ $name == position ]] && echo most frequent position ||
        echo first entity)"
    "$python" "$root/utils/squad_score.py" "$sample/dev-v1.1.json" \
      "$out/baselines/baseline_$name.json"
  done
}

stage "text to shards" "$out/shards" make_shards
stage "shards to TFRecords" "$out/records" make_records
stage "pre-training, 300 steps" "$out/pretraining" pretrain
stage "fine-tuning, answers, scores" "$out/squad" finetune
stage "two baselines that do not read" "$out/baselines" baselines

printf '\n== What was done, on %s, in %d s\n' "$stack" $((SECONDS - began))
printf '%s\n' "${table[@]}"
cat <<END

The answers are in $out/squad/predictions.json, losses in metrics.jsonl there.
Next: bash scripts/run_squad.sh --help   (fine-tune on real SQuAD)
      bash scripts/run_pretraining.sh --help
      tensorboard --logdir "$out"
END
"$python" -c 'import json, sys
scores = json.load(open(sys.argv[1]))
print(json.dumps({k: scores[k] for k in ("exact_match", "f1")}))' \
  "$out/squad/scores.json"
