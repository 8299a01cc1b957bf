# shellcheck shell=bash disable=SC2034  # what is set here is read elsewhere
# What the SQuAD launchers share; sourced by them after lib.sh.

squad_options() {
  # Options of all of them, declared after their own.
  predict_file='' do_lower_case='' seed='' create_logfile=true
  options <<'END'
predict_file path? questions to answer; empty: the dev file under DATA_DIR
do_lower_case flag? lower-case the text; empty: as the vocabulary says
seed whole? seed of weights, dropout and order; empty: the program's own
create_logfile flag keep a log in the run folder
END
}

find_squad_file() {
  # File $2 where it is given, else part $1 (train or dev) under DATA_DIR, into
  # REPLY; $3 names the argument that moves it.
  local path=$data_dir/squad/v$squad_version/$1-v$squad_version.json
  path=${2:-$path}
  require_file "$path" "SQuAD file" "give --$3 FILE or set DATA_DIR"
  REPLY=$path
}

squad_flags() {
  # Flags that all of them pass, into flags; finds the model on the way.
  local hint="give --bert_model a folder that holds it, or set DATA_DIR" name
  find_model "$bert_model"
  require_file "$model_dir/bert_config.json" "model configuration" "$hint"
  require_file "$model_dir/vocab.txt" "vocabulary" "$hint"
  flags=("--vocab_file=$model_dir/vocab.txt"
    "--bert_config_file=$model_dir/bert_config.json"
    "--max_seq_length=$seq_length" "--doc_stride=$doc_stride"
    "--cache_dir=$results_dir/cache" "${precision_flags[@]}")
  if [[ $squad_version == 2.0 ]]; then
    flags+=(--version_2_with_negative=true)
  fi
  for name in do_lower_case seed; do
    if [[ -n ${!name} ]]; then flags+=("--$name=${!name}"); fi
  done
}
