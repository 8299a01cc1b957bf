# shellcheck shell=bash disable=SC2034,SC2154
# What prepares a corpus, stage by stage; sourced by data/*/run_preprocessing.sh
# after lib.sh.

keeps_runs=false   # there is no run folder: the places are the corpus's
steps=extract,segment,shard,records,check vocab_file='' do_lower_case=''
lengths=128:20,512:80 num_training_shards=256 num_test_shards=''
test_fraction=0.01 dupe_factor=5 masked_lm_prob=0.15 do_whole_word_mask=false
seed=12345 punkt=auto num_workers='' num_shards='' shard_index=''
wait_minutes=720

preprocessing_options() {
  options <<'END'
vocab_file path? vocabulary; empty: that of uncased BERT-large under DATA_DIR
lengths text max_seq_length:max_predictions_per_seq, commas between
num_training_shards count text files, and so record files, to train on
num_test_shards count? the same, held out; empty: in proportion
test_fraction fraction share of the text that is held out; 0: none
dupe_factor count passes over the text, with different masks
masked_lm_prob fraction share of masked tokens
do_whole_word_mask flag mask all pieces of a word, or none
do_lower_case flag? lower-case the text; empty: as the vocabulary has it
seed whole seed of the held-out part, of pairs and masks
punkt choice:auto|published|corpus sentence model: NLTK's, or the text's own
steps text stages to run, commas between
num_workers count? processes; empty: as many as there are cores
num_shards count? machines or ranks that share the work; empty: as launched
shard_index whole? which of them this is, from 0; empty: as launched
wait_minutes count longest wait for other parts' work
END
}

stage() {
  # One stage: line $1, then the command; a dry run prints that alone.
  local word line=''
  if $dry_run; then
    shift
    for word in "$python" "$@"; do quote "$word"; line+=${line:+ }$REPLY; done
    printf '%s\n' "$line"
    return
  fi
  note "$1"
  shift
  "$python" "$@"
}

wants() { [[ ,$steps, == *,$1,* ]]; }

check_steps() {
  local step length
  for step in ${steps//,/ }; do
    [[ $step =~ ^(extract|segment|shard|records|check)$ ]] || usage_error \
      "--steps: '$step' is none of extract, segment, shard, records, check"
  done
  for length in ${lengths//,/ }; do
    [[ $length =~ ^[1-9][0-9]*:[1-9][0-9]*$ ]] || usage_error "--lengths:" \
      "'$length' has to be like 128:20, tokens and predictions a sequence"
  done
}

find_part() {
  # Flags by which parts share the work, into part_flags; which one this is,
  # from 0, into part.
  local flag
  part_flags=() part=0
  for flag in num_shards shard_index; do
    [[ -z ${!flag} ]] || part_flags+=("--$flag=${!flag}")
  done
  ! $dry_run || return 0
  part=$(PYTHONPATH=$root "$python" -m utils.shares "${part_flags[@]}")
}

remove_stale_records() {
  # Removes from folder $1 the records whose text is there no more: those of an
  # earlier division, which training would read as well.
  local path base gone=0
  for path in "$1"/*.tfrecord; do
    base=${path##*/}
    if [[ -f $path && ! -f $text_dir/${base%.tfrecord}.txt ]]; then
      rm -f -- "$path.settings.json" "$path"
      gone=$((gone + 1))
    fi
  done
  ((gone == 0)) || note "removed $gone record files of an earlier division" \
    "from $1"
}

make_records() {
  # Records of length $1 with $2 predictions from the texts of side $3, training
  # or test.
  local output=$records_dir/seq_$1_pred_$2/$3 texts=$text_dir/${corpus_name}_$3_
  local -a flags=("--input_file=$texts*.txt" "--output_file=$output/"
    "--vocab_file=$vocab_file" "--max_seq_length=$1"
    "--max_predictions_per_seq=$2" "--dupe_factor=$dupe_factor"
    "--masked_lm_prob=$masked_lm_prob" "--random_seed=$seed"
    "--do_whole_word_mask=$do_whole_word_mask" "${worker_flags[@]}"
    "${part_flags[@]}")
  [[ -z $do_lower_case ]] || flags+=("--do_lower_case=$do_lower_case")
  if ! $dry_run; then
    wants records || wants check || return 0
    ((part)) || remove_stale_records "$output"
    if ! compgen -G "$texts*.txt" >/dev/null; then
      [[ $3 == test ]] || die "no text in $text_dir yet: run the step shard"
      ((part)) || rm -f -- "$output"/check_records.*
      return 0
    fi
    mkdir -p -- "$output"
  fi
  # The part that checks waits for the others'.
  if wants check && ((part == 0)); then
    flags+=("--wait_minutes=$wait_minutes")
  fi
  ! wants records || stage "records: $output" \
    "$root/create_pretraining_data.py" "${flags[@]}"
  if wants check && ((part == 0)); then
    stage "check: $output" "$root/data/check_records.py" "$output" \
      "--output_dir=$output" "--vocab_file=$vocab_file" "${worker_flags[@]}"
  fi
}

preprocess() {
  # All stages for corpus folder $1; the other words are the program of the
  # first, to which output folder, name and parts are added.
  local corpus=$1 length side
  shift
  text_dir=$corpus/final_text_files_sharded
  records_dir=$corpus/final_tfrecords_sharded
  local single=$corpus/final_text_file_single/$corpus_name.segmented.nltk.txt
  worker_flags=()
  [[ -z $num_workers ]] || worker_flags=("--num_workers=$num_workers")
  find_part
  local -a parts=("${part_flags[@]}" "--wait_minutes=$wait_minutes")
  ! wants extract || stage "extract: $corpus/extracted" "$@" \
    "--output_dir=$corpus/extracted" "--name=$corpus_name" \
    "${worker_flags[@]}" "${parts[@]}"
  ! wants segment || stage "segment: $single" "$root/data/segment.py" \
    "--input=$corpus/extracted/$corpus_name-*.txt" "--output=$single" \
    "--punkt=$punkt" "--nltk_data=$data_dir/nltk_data" "${worker_flags[@]}" \
    "${parts[@]}"
  ! wants shard || stage "shard: $text_dir" "$root/data/shard.py" \
    "--input=$single" "--output_dir=$text_dir" "--name=$corpus_name" \
    "--num_training_shards=$num_training_shards" \
    "--test_fraction=$test_fraction" "--seed=$seed" \
    ${num_test_shards:+"--num_test_shards=$num_test_shards"} "${parts[@]}"
  for length in ${lengths//,/ }; do
    for side in training test; do
      make_records "${length%:*}" "${length#*:}" "$side"
    done
  done
  $dry_run || note "done: $records_dir"
}

start_preprocessing() {
  # What all of them do between their arguments and their first stage.
  check_steps
  choose_python
  local model=pretrained_models_google/uncased_L-24_H-1024_A-16
  vocab_file=${vocab_file:-$data_dir/$model/vocab.txt}
  ! wants records || require_file "$vocab_file" vocabulary \
    "give --vocab_file FILE, or run bash scripts/data_download.sh weights"
}
