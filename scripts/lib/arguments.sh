# shellcheck shell=bash disable=SC2034  # what is set here is read elsewhere
# Arguments of the launchers: declared once, stated by position, by name or in
# a file; sourced by lib.sh.
#
# Later words win: the default (a variable of the argument's name), then
# --config FILE (lines of name=value, # comments), then the command line. A
# default that is empty without a "?" behind the kind is an argument that has
# to be given. An argument that is wrong ends the script with status 2.
# A launcher may define rewrite_positionals() to bring positionals of an older
# order, or positional_names, up to date, and fill aliases[OTHER]=NAME.

argument_names=() positional_names=() positionals=() extra_flags=()
declare -A argument_kind=() argument_help=() argument_default=() aliases=()
declare -A stated=()     # name -> where its value was stated; unset: default
stack='' run_dir='' fresh=false dry_run=false
keeps_runs=true           # false: the program has no run folder
# These two also stand alone on the command line.
argument_kind[fresh]=flag argument_kind[dry_run]=flag

options() {
  local name kind help
  while read -r name kind help; do
    argument_names+=("$name")
    argument_kind[$name]=$kind
    argument_help[$name]=$help
    argument_default[$name]=${!name}
  done
}

arguments() {
  options
  positional_names=("${argument_names[@]}")
}

show_help() {
  # The script's own header, then the tables.
  local name index=0
  awk 'NR > 1 && !/^#/ {exit} NR > 1 {sub(/^# ?/, ""); print}' "$0"
  ((${#positional_names[@]} == 0)) ||
    printf '\nArguments, in this order or as --name value [default]:\n'
  for name in "${argument_names[@]}"; do
    if ((index++ == ${#positional_names[@]})); then
      printf '\nOptions, as --name value [default]:\n'
    fi
    printf '  %-24s %s [%s]\n' "$name" "${argument_help[$name]}" \
      "${argument_default[$name]}"
  done
  printf '  --%-22s %s\n' 'config FILE' \
    'lines of name=value; the command line wins'
  if $keeps_runs; then
    cat <<'END'
  --fresh                  begin a new run, even where an unfinished one waits
  --dry_run                print the Python command and its folder, do nothing
  -- FLAG ...              handed to the Python program as they are

Environment: DATA_DIR [data in the checkout], RESULTS_DIR [/results where it
can be written, else results in the checkout], BERT_STACK (as --stack),
BERT_PYTHON (an interpreter in place of the one that setup.sh made).
END
  else
    cat <<'END'
  --dry_run                print the Python commands, do nothing

Environment: DATA_DIR [data in the checkout], BERT_STACK (as --stack),
BERT_PYTHON (an interpreter in place of the one that setup.sh made).
END
  fi
}

unknown_name() {
  # $1 is no argument; $2 says where it stands.
  local name closest='' best=99
  local -a names=("${argument_names[@]}" fresh dry_run)
  if [[ $2 == --* ]]; then names+=(config help); fi   # not in a file
  for name in "${names[@]}"; do
    edit_distance "$1" "$name"
    if ((REPLY < best)); then best=$REPLY closest=$name; fi
  done
  ((best <= (${#1} + 3) / 3)) || usage_error "$2: no such argument; --help" \
    "lists all"
  usage_error "$2: no such argument; did you mean $closest? --help lists all"
}

set_argument() {
  # Checks value $2 of argument $1 and assigns it; $3 says where it stands.
  local kind=${argument_kind[$1]}
  if [[ -z $2 ]]; then
    [[ $kind == *\? ]] || usage_error "$3 needs a value"
    REPLY=''
  elif ! check_value "${kind%\?}" "$2"; then
    usage_error "$3 is '$2', but has to be $REPLY"
  fi
  printf -v "$1" %s "$REPLY"
  stated[$1]=$3
}

read_config() {
  local line name number=0
  [[ -f $1 && -r $1 ]] || usage_error "--config: cannot read the file $1"
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    read_config_line "$line" ||
      usage_error "$1 line $number: expected name=value, found '$line'"
    [[ -n $config_name ]] || continue
    name=${aliases[$config_name]-$config_name}
    [[ -n ${argument_kind[$name]-} ]] ||
      unknown_name "$name" "$1 line $number: $name"
    set_argument "$name" "$config_value" "$1 line $number: $name"
  done <"$1"
}

set_positionals() {
  local index name limit=${#positional_names[@]}
  if ((${#positionals[@]} > limit)); then
    usage_error "too many arguments: '${positionals[limit]}' is number" \
      "$((limit + 1)) of at most $limit (quote what holds spaces or *;" \
      "--help lists all)"
  fi
  for index in "${!positionals[@]}"; do
    name=${positional_names[index]}
    [[ -n ${positionals[index]} ]] || continue   # as ${1:-default} would do
    [[ -z ${named[$name]-} ]] || usage_error "$name is stated twice: as" \
      "argument $((index + 1)) and as --$name"
    set_argument "$name" "${positionals[index]}" \
      "argument $((index + 1)), $name,"
  done
}

split_words() {
  # Sorts the command line into names and values, positionals and extra_flags.
  local name
  while (($#)); do
    case $1 in
      --) shift; extra_flags=("$@"); break ;;
      -h | --help) show_help; exit 0 ;;
      --fresh) $keeps_runs || usage_error "--fresh: delete what is to be made" \
        "anew"
        names+=(fresh) values+=(true) ;;
      --dry_run) names+=("${1#--}") values+=(true) ;;
      --*)
        name=${1%%=*} name=${name#--} name=${aliases[$name]-$name}
        [[ $name == config || -n ${argument_kind[$name]-} ]] ||
          unknown_name "$name" "${1%%=*}"
        names+=("$name")
        if [[ $1 == *=* ]]; then
          values+=("${1#*=}")
        elif (($# > 1)) && [[ $2 != --* ]]; then
          values+=("$2"); shift
        elif [[ ${argument_kind[$name]-} == flag* ]]; then
          values+=(true)   # a switch by itself
        else
          usage_error "$1 needs a value"
        fi ;;
      -[!0-9.]*) usage_error "$1: no such argument; --help lists all" ;;
      *) positionals+=("$1") ;;
    esac
    shift
  done
}

check_extra_flags() {
  # A second one of these would win over the launcher's, unnoticed.
  local word
  for word in "${extra_flags[@]}"; do
    [[ ! $word =~ ^--?(output_dir|log_file)(=|$) ]] || usage_error \
      "${word%%=*} after --: the run folder holds both output and log;" \
      "--run_dir names it"
  done
}

stack_options() {
  # A launcher of a program without TensorFlow defines another one.
  options <<'END'
stack choice:tf1|tf2? TensorFlow stack; empty: BERT_STACK, else tf1 where set up
END
}

parse_arguments() {
  local name index
  local -a names=() values=()
  local -A named=()
  stack_options
  if $keeps_runs; then
    options <<'END'
run_dir path? folder of the run; empty: one of its own under RESULTS_DIR
END
    rank_options
  fi
  split_words "$@"
  if ! $keeps_runs && ((${#extra_flags[@]})); then
    usage_error "-- is for launchers of one program"
  fi
  check_extra_flags
  if declare -F rewrite_positionals >/dev/null; then rewrite_positionals; fi
  for index in "${!names[@]}"; do
    named[${names[index]}]=yes
    if [[ ${names[index]} == config ]]; then read_config "${values[index]}"; fi
  done
  set_positionals
  for index in "${!names[@]}"; do
    name=${names[index]}
    [[ $name == config ]] || set_argument "$name" "${values[index]}" "--$name"
  done
  for name in "${argument_names[@]}"; do
    [[ -n ${!name} || ${argument_kind[$name]} == *\? ]] ||
      usage_error "--$name has to be given; --help lists all"
  done
}
