# shellcheck shell=bash disable=SC2034,SC2154
# What a server's client is asked for and how; sourced by trtis/run_client.sh
# and trtis/run_trtis.sh after lib.sh.

answer_names=(max_query_length max_answer_length n_best_size
  null_score_diff_threshold)
request_names=(concurrency max_retries request_timeout)

client_options() {
  # Options of both, declared after their own; the client's names and defaults.
  max_query_length='' max_answer_length=30 n_best_size=20
  null_score_diff_threshold=0.0 concurrency=8 max_retries=8 request_timeout=60
  options <<'END'
concurrency count requests in flight
max_retries whole how often a request is sent again where that may help
request_timeout number seconds that one request may take
max_query_length count? tokens of a question; empty: 64, or half a short window
max_answer_length count tokens of the longest answer
n_best_size count answers in the n-best list
null_score_diff_threshold real v2.0: no answer if null - best score is above it
END
}

settle_query_length() {
  # A window holds three tokens beside the question and needs one of the
  # passage: ends where max_query_length leaves no room, and chooses another
  # one where nobody has stated it and run_squad.py's own, 64, leaves none.
  local word chosen=false
  for word in "${extra_flags[@]}"; do
    [[ ! $word =~ ^--?max_query_length(=|$) ]] || return 0
  done
  if [[ -z $max_query_length ]]; then
    unset 'stated[max_query_length]'
    ((seq_length <= 67)) || return 0
    max_query_length=$((seq_length / 2)) chosen=true
    stated[max_query_length]=seq_length
  fi
  ((seq_length > max_query_length + 3)) || usage_error "seq_length" \
    "$seq_length leaves no room for the passage: it has to be above" \
    "max_query_length $max_query_length plus 3"
  ! $chosen || note "max_query_length is $max_query_length:" \
    "$seq_length tokens have no room for 64"
}

add_stated() {
  # Adds those of the named arguments that were stated to array flags.
  local name
  for name; do
    [[ -z ${stated[$name]-} ]] || flags+=("--$name=${!name}")
  done
}

check_question() {
  # Ends unless there is one thing to answer; sets typed to whether that is no
  # file.
  local name
  local -a given=()
  typed=false
  [[ -z $predict_file ]] || given+=(--predict_file)
  [[ -z ${stated[question]-} ]] || given+=(--question) typed=true
  ! $interactive || given+=(--interactive) typed=true
  ((${#given[@]} < 2)) || usage_error "${given[0]} and ${given[1]}: give one" \
    "of --predict_file, --question with --context, and --interactive"
  for name in question context; do
    [[ -z ${stated[$name]-} || ${!name} == *[![:space:]]* ]] ||
      usage_error "--$name is empty: give one"
  done
  [[ -z ${stated[question]-} || -n ${stated[context]-} ]] ||
    usage_error "--question needs --context, the passage to look in"
  $typed || [[ -z ${stated[context]-} ]] ||
    usage_error "--context goes with --question or --interactive"
}

ask_typed() {
  # Runs program $2 with the flags that follow in place of this script, so that
  # the terminal is the program's. Only a run folder that was named gets what
  # is answered and, as <tag $1>.log, what is logged.
  local tag=$1 program=$root/$2
  shift 2
  if [[ -n $run_dir ]]; then
    choose_run_dir "$tag" ''
    [[ -z $REPLY ]] || note "$REPLY"
    $dry_run || mkdir -p -- "$run_dir" 2>/dev/null ||
      die "cannot write to the run folder $run_dir"
    set -- "--output_dir=$run_dir" "$@"
    if $create_logfile; then set -- "--log_file=$run_dir/$tag.log" "$@"; fi
  fi
  set -- "$python" "$program" "$@" "${extra_flags[@]}"
  if $dry_run; then
    join_words "$@"
    printf '%s\n' "$REPLY"
    exit
  fi
  exec "$@"
}
