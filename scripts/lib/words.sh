# shellcheck shell=bash disable=SC2154
# What mpirun and horovodrun say, made fit to be read; sourced by lib.sh.
#
# The ranks' lines pass as they are. What the starter says of a rank's end is
# left out: the launcher says that in one line. Its other words pass as well.

note_failure() {
  # Line $1 is the first bad end: ranks and launcher find it in the run folder.
  local file=$run_dir/launch.failed
  [[ -e $file ]] || printf '%s\n' "$1" >"$file"
}

mistake=''

pass_on() {
  # A rank on a machine without the run folder tells of its end this way. A
  # mistake that each rank finds is said once.
  local end='^(rank [0-9]+: )?(rank [0-9]+ \(host .*\) ended (by|with) .*)'
  local error='^(rank [0-9]+: )?(ERROR: .*)'
  if [[ $1 =~ $end ]]; then
    note_failure "${BASH_REMATCH[2]}"
  elif [[ ! $1 =~ $error || ${BASH_REMATCH[2]} != "$mistake" ]]; then
    printf '%s\n' "$1"
  fi
  if [[ $1 =~ $error ]]; then mistake=${BASH_REMATCH[2]}; fi
}

mpirun_message() {
  # Message $1 of mpirun, which stood between lines of dashes.
  case $1 in
    *'Primary job '*'terminated normally'* | *'mpirun noticed that process'* | \
      *'mpirun detected that one or more'* | *'mpirun has exited due to'*) ;;
    *'lost communication with a remote daemon'*)
      [[ $1 =~ Remote\ daemon:.*\ on\ node\ ([^[:space:]]+) ]]
      note_failure "host ${BASH_REMATCH[1]-} does not answer any more" ;;
    *) printf '%s' "$1" ;;
  esac
}

mpirun_words() {
  local line message='' inside=false dashes
  printf -v dashes '%74s' ''
  dashes=${dashes// /-}
  while IFS= read -r line || [[ -n $line ]]; do
    if [[ $line == "$dashes" ]]; then
      ! $inside || mpirun_message "$message"
      message=''
      if $inside; then inside=false; else inside=true; fi
    elif $inside; then
      message+=$line$'\n'
    elif [[ $line != 'mpirun: Forwarding signal '* ]]; then
      pass_on "$line"
    fi
  done
  printf '%s' "$message"
}

horovodrun_words() {
  local line error=''
  local own='^(Process ([0-9]+ exit with|name:) |Exit code: [0-9]'
  own+='|Terminating remaining)'
  while IFS= read -r line || [[ -n $line ]]; do
    if [[ $line =~ ^\[[0-9]+\]\<std(out|err)\>:(.*) ]]; then
      pass_on "${BASH_REMATCH[2]}"
    elif [[ $line == 'Traceback (most recent call last):' || -n $error ]]; then
      error+=$line$'\n'
      if [[ $line != [[:space:]]* && $line != Traceback* ]]; then
        [[ $line == *': Horovod detected that one or more'* ]] ||
          printf '%s' "$error"
        error=''
      fi
    elif [[ -n $line && ! $line =~ $own ]]; then
      pass_on "$line"
    fi
  done
  printf '%s' "$error"
}
