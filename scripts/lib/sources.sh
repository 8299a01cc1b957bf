# shellcheck shell=bash disable=SC2034,SC2154
# Where pre-training finds its records; sourced by run_pretraining.sh.

find_records() {
  # input_file: as given, else the records of the sources under DATA_DIR, made
  # for these lengths or, as older tools leave them, in the folder itself.
  local corpus folder made all='' absent='' held_out=''
  local corpora='wikipedia_corpus bookcorpus'
  local lengths=seq_${max_seq_length}_pred_$max_predictions_per_seq
  [[ -z $input_file ]] || return 0
  [[ -z $sources ]] || corpora=${sources//,/ }
  for corpus in $corpora; do
    folder=$data_dir/$corpus/final_tfrecords_sharded made=''
    if compgen -G "$folder/$lengths/training/*.tfrecord" >/dev/null; then
      made="$folder/$lengths/training/*.tfrecord"
      if compgen -G "$folder/$lengths/test/*.tfrecord" >/dev/null; then
        held_out+=${held_out:+,}"$folder/$lengths/test/*.tfrecord"
      fi
    elif compgen -G "$folder/*.tfrecord*" >/dev/null; then
      made="$folder/*.tfrecord*"
    else
      absent+=${absent:+ and }$folder
    fi
    all+=${all:+,}"$folder/$lengths/training/*.tfrecord"
    input_file+=${made:+${input_file:+,}$made}
  done
  if [[ -z $input_file || -n $sources && -n $absent ]]; then
    missing "no records for length $max_seq_length and" \
      "$max_predictions_per_seq predictions in $absent: make them with" \
      "run_preprocessing.sh, give --input_file 'GLOB', or set DATA_DIR"
    input_file=$all
  elif [[ -n $absent ]]; then
    note "no records in $absent: training without them"
  fi
  eval_input_file=${eval_input_file:-$held_out}
}
