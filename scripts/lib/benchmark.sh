# shellcheck shell=bash disable=SC2034,SC2154  # set here, read elsewhere
# What the benchmark launchers share; sourced by them after lib.sh.
#
# A benchmark is a folder with a folder for each case, which is a real run of a
# few steps, and cases.jsonl, a line a case. benchmarks/report.py makes of them
# RESULTS_DIR/<tag>.log (the table), .jsonl and .png. A case that fails, as one
# too large for the memory does, leaves the others alone.

benchmark_dir='' case_number=0 case_count=0 bad_cases=0
doc_stride='' seq_length='' precision='' case_name=''   # of the case that runs
do_lower_case='' seed='' squad_version=1.1

benchmark_options() {
  options <<'END'
lengths text tokens a sentence, commas between
batch_sizes text sentences a step and GPU, commas between
precisions text fp32, fp16 (= amp) or bf16 (tf2 stack), commas between
steps count steps of a case that count
warm_up count steps before them that do not
END
}

check_list() {
  # Brings argument $1, values of kind $2 with commas between, to one spelling
  # with blanks between and each value once.
  local value joined=' '
  local -a parts=()
  IFS=, read -ra parts <<<"${!1}"
  [[ ${!1} != *, ]] || parts+=('')
  for value in "${parts[@]}"; do
    check_value "$2" "$value" || usage_error "${stated[$1]-$1} is '${!1}'," \
      "but each of its words, with commas between, has to be $REPLY"
    [[ $joined == *" $REPLY "* ]] || joined+="$REPLY "
  done
  printf -v "$1" %s "$joined"
}

prepare_benchmark() {
  # All that comes before the cases. $1 is the number of cases of a size.
  local -a sizes=()
  check_list lengths count
  check_list batch_sizes count
  check_list precisions precision
  read -ra sizes <<<"$lengths"
  case_count=$((${#sizes[@]} * $1))
  read -ra sizes <<<"$batch_sizes"
  case_count=$((${#sizes[@]} * case_count))
  read -ra sizes <<<"$precisions"
  case_count=$((${#sizes[@]} * case_count))
  stated[precision]=${stated[precisions]-precisions} precision=fp32
  prepare
  for precision in $precisions; do choose_precision; done   # tf1 has no bf16
}

open_benchmark() {
  # Settles the folder of a benchmark of tag $1.
  if [[ -z $run_dir ]]; then
    name_new_run "$1"
  elif [[ -n $(find "$run_dir/" -maxdepth 1 -mindepth 1 2>&-) ]]; then
    die "$run_dir is not empty; name another --run_dir"
  fi
  benchmark_dir=$run_dir
  $dry_run || mkdir -p -- "$benchmark_dir" 2>/dev/null ||
    die "cannot write to $benchmark_dir: give another --run_dir"
  note "benchmark folder $benchmark_dir"
}

call_python() {
  # Runs program $1 of benchmarks/ with the words that follow; what it prints
  # is left in REPLY.
  local -a command=("$python" "$root/benchmarks/$1" "${@:2}")
  join_words "${command[@]}"
  if $dry_run; then printf '%s\n' "$REPLY"; REPLY=''; return 0; fi
  REPLY=$("${command[@]}" 2>"$benchmark_dir/python.log") ||
    die "$(tail -n 1 "$benchmark_dir/python.log")"
}

run_quietly() {
  # Runs program $2 with the flags that follow in folder $1 of the benchmark;
  # its words go to run.log there. Fails if it does; a stop ends the script.
  local name=$1 log status=0
  local -a command=("$python" "$root/$2")
  run_dir=$benchmark_dir/$name log=$run_dir/run.log starter=()
  command+=("--output_dir=$run_dir" "${@:3}" "${extra_flags[@]}")
  if $several; then command+=(--horovod=true); rank_starter; fi
  join_words "${starter[@]}"
  if $dry_run && $several; then
    printf '# %s ranks by: %s\n' "$ranks" "$REPLY"
  fi
  join_words "${command[@]}"
  if $dry_run; then printf '%s\n' "$REPLY"; return 0; fi
  mkdir -p -- "$run_dir"
  printf '# %s\n' "$REPLY" >"$log"
  PYTHONUNBUFFERED=1 run_logged '' "${starter[@]}" "${command[@]}" \
    >>"$log" 2>&1 || status=$?
  ! $several || end_everywhere   # a rank that has lost its starter
  judge_end "$status"
  [[ $ending != 'done' ]] || return 0
  # Of a large model, gigabytes that nobody asked for.
  rm -f -- "$run_dir"/model.ckpt*
  if [[ $ending == stopped || $ending == asked ]]; then
    note "stopped in $name; $benchmark_dir has what was run"
    exit $((exit_status ? exit_status : 143))
  fi
  REPLY=${REPLY:-ended with status $exit_status}
  note "$name: ${REPLY%; the same command goes on};" \
    "$(grep -v '^#' "$log" | tail -n 1)"
  return 1
}

run_case() {
  # Runs a case, program $2 with the flags that follow, in folder $1 and adds
  # it to the list; more_of_case goes into its line.
  local name=$1
  note "case $((++case_number)) of $case_count: $name"
  run_quietly "$@" || bad_cases=$((bad_cases + 1))
  ! $dry_run || return 0
  rm -f -- "$benchmark_dir/$name"/model.ckpt*
  printf '{"folder": "%s", "length": %d, "batch": %d, "precision": "%s"%s}\n' \
    "$name" "$seq_length" "$batch_size" "$precision" "${more_of_case-}" \
    >>"$benchmark_dir/cases.jsonl"
}

gpu_name() {
  # What the first GPU is called, into REPLY; empty where there is none.
  REPLY=''
  count_gpus
  ((REPLY)) || { REPLY=''; return 0; }
  REPLY=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null |
    head -n 1) || REPLY='GPU'
}

close_benchmark() {
  # Shows the table of work $1; it and the rest go to RESULTS_DIR/$2.*.
  local device
  ! $dry_run || exit 0
  gpu_name
  device=$REPLY
  run_dir=$benchmark_dir
  call_python report.py "$1" "$benchmark_dir/cases.jsonl" \
    "--output=$results_dir/$2" "--model=$model_tag" "--device=$device" \
    "--ranks=$ranks" "--warm_up=$warm_up" "--use_xla=$use_xla"
  printf '%s\n' "$REPLY"
  note "table $results_dir/$2.log, every step in .jsonl, picture in .png"
  ((bad_cases == 0)) || die "$bad_cases of $case_count cases failed; each has" \
    "a run.log in $benchmark_dir"
}

# --- SQuAD -------------------------------------------------------------------

case_stride() {
  # Windows of short sentences overlap by more: a question takes its room too.
  doc_stride=$((seq_length < 256 ? seq_length / 2 : 128))
}

epochs_of() {
  # Passes over file $1 that are $2 steps of batch_size, into REPLY. A few
  # questions may not be usable, so that it is a little more.
  local questions passes
  passes='{printf "%.9g", (steps + 0.9) * batch / (found ? found : 1)}'
  questions=$(grep -oE '"question"[[:space:]]*:' "$1" 2>/dev/null | wc -l) ||
    questions=0
  REPLY=$(awk -v steps="$2" -v batch="$((batch_size * ranks))" \
    -v found="$questions" "BEGIN $passes")
}

squad_cases() {
  # Calls function $1, which adds to flags and runs the program, for each case;
  # its name is left in case_name.
  for seq_length in $lengths; do
    for batch_size in $batch_sizes; do
      for precision in $precisions; do
        choose_precision
        case_stride
        squad_flags
        case_name=length_${seq_length}_batch_${batch_size}_$precision
        "$1"
      done
    done
  done
}

training_case_flags() {
  # Adds what trains $2 steps on file $1 to flags.
  epochs_of "$@"
  flags+=(--do_train=true "--train_file=$1" "--num_train_epochs=$REPLY"
    "--train_batch_size=$batch_size" --save_checkpoints_steps=1000000000
    --log_every_steps=1)
}
