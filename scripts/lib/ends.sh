# shellcheck shell=bash disable=SC2034,SC2154
# How runs end: signals, ranks that fail, restarts; sourced by lib.sh.
#
# In the run folder, beside launch.hash and launch.done (run.sh):
#   launch.stop     by the launcher: save a checkpoint and end; once there is a
#                   word in it: end at once
#   launch.stopped  by the program: "step N", a checkpoint of it is saved
#   launch.failed   by lib/rank.sh: the line of the first rank that ended badly
#   launch.begun    by lib/rank.sh: rank 0 has been started
# Exit status of a program: 1 is a mistake that starting again does not mend, 2
# a wrong argument, 130 Ctrl-C, above 128 a signal; anything else is a crash.

child='' interrupts=0 stops=0 early=false timer=''
restart_pause=5    # seconds, doubled each time: a machine takes its time
kill_pause=30      # from the end by force to SIGKILL: mpirun needs 20

parent_of() {
  # The process that started process $1, into REPLY; empty where it is gone. Of
  # a process that has ended the number may be another's by now.
  REPLY=$(awk '{sub(/.*\) /, ""); print $2}' "/proc/$1/stat" 2>/dev/null) ||
    REPLY=''
}

start_timer() {
  # Sends this launcher another SIGTERM in $1 seconds.
  end_timer
  (trap 'kill "$sleeper" 2>/dev/null; exit' TERM
    sleeper=''
    sleep "$1" &
    sleeper=$!
    wait "$sleeper"
    parent_of "$BASHPID"
    [[ $REPLY != "$$" ]] || kill -TERM "$$") {held}>&- >/dev/null 2>&1 &
  timer=$!
}

end_timer() {
  [[ -n $timer ]] || return 0
  parent_of "$timer"
  [[ $REPLY != "$$" ]] || kill "$timer" 2>/dev/null || true
  timer=''
}

asked_to_stop() {
  # SIGTERM or a terminal that hangs up: the program saves and ends. After a
  # second one, or the time for that, it is ended by force, and then killed.
  if [[ -z $child ]]; then early=true; return; fi   # run_logged calls again
  case $((++stops)) in
    1) start_timer "$stop_seconds" ;;
    2) start_timer "$kill_pause" ;;
  esac
  if ! $several; then
    if ((stops < 3)); then kill -TERM "$child"; else kill -KILL "$child"; fi
  elif ((stops == 1)); then
    : >"$run_dir/launch.stop"
    # mpirun hands this one on; horovodrun would die of it.
    [[ $rank_launcher != mpirun ]] || kill -USR1 "$child"
  else
    echo now >"$run_dir/launch.stop"
    kill -TERM "$child"
    if ((stops > 2)); then end_everywhere; kill -KILL "$child"; fi
  fi 2>/dev/null || true
}

interrupted() {
  # A terminal sends Ctrl-C to the program as well, so only a second one is
  # handed on; but older versions of bash switch it off in programs started so.
  local ignored
  ignored=$(awk '/^SigIgn/ {print $2}' "/proc/$child/status" 2>/dev/null) ||
    ignored=0   # no /proc, or the program has ended just now
  if ((++interrupts > 1 || 16#${ignored:-0} & 2)); then
    kill -TERM "$child" 2>/dev/null || true
  fi
}

end_what_does_not_begin() {
  # mpirun waits for ever for a machine that cannot reach it.
  if ((SECONDS - begun > start_seconds)) && [[ -n $hosts &&
    ! -e $run_dir/launch.begun && ! -e $run_dir/launch.failed ]]; then
    note_failure "no rank has begun in $start_seconds seconds: can the machines\
 reach each other (--network_interface)?"
    kill -KILL "$child"
  fi
}

copy_through() {
  # Puts the command in the arguments between the program and out, and err.
  local to joined=false
  [[ $out != "$err" ]] || joined=true
  exec {to}> >("$@" >&"$out" {held}>&-)
  copies+=("$!")
  exec {out}>&-
  out=$to
  if $joined; then
    err=$out   # one stream for both keeps the lines in order
  else
    exec {to}> >("$@" >&"$err" {held}>&-)
    copies+=("$!")
    exec {err}>&-
    err=$to
  fi
}

run_logged() {
  # Runs a command, copies what it says to log $1 (unless that is empty), hands
  # signals on to it and returns its exit status. The copying processes outlive
  # signals, so that the command's last words are kept.
  local log=$1 status=0 out err copy pause=0.05 begun=$SECONDS
  local -a copies=()
  shift
  child=''
  exec {out}>&1
  if [[ /dev/fd/1 -ef /dev/fd/2 ]]; then err=$out; else exec {err}>&2; fi
  trap '' INT TERM HUP   # inherited
  [[ -z $log ]] || copy_through tee -a -- "$log"
  ! $several || copy_through "${rank_launcher}_words"
  # In the background, since bash acts on a signal only between its commands.
  trap asked_to_stop TERM HUP
  trap interrupted INT
  (trap - INT TERM HUP
    exec "$@" >&"$out" 2>&"$err" {out}>&- {err}>&- {held}>&-) </dev/null &
  child=$!
  exec {out}>&- {err}>&-
  if $early; then early=false; asked_to_stop; fi
  # Without wait: where a signal comes as the program ends, bash may lose its
  # status, or wait for ever.
  while kill -0 "$child"; do
    end_what_does_not_begin
    sleep "$pause" || true   # a signal may end it
    case $pause in 0.05) pause=0.1 ;; 0.1) pause=0.5 ;; esac
  done 2>/dev/null
  wait "$child" 2>/dev/null || status=$?
  end_timer
  trap - INT TERM HUP
  for copy in "${copies[@]}"; do wait "$copy" || true; done
  return "$status"
}

judge_end() {
  # What exit status $1 means: into exit_status; into ending (done, stopped,
  # asked, refused or crashed); a line on it into REPLY, and into loud whether
  # anyone should hear it who has heard the program.
  local failed=''
  exit_status=$1 ending=crashed loud=true REPLY=''
  if [[ -s $run_dir/launch.failed ]]; then
    failed=$(<"$run_dir/launch.failed")
    case $failed in
      *' by signal '*) exit_status=$((128 + ${failed##* })) ;;
      *' with status '*) exit_status=${failed##* } ;;
      # A lost machine: mpirun may end well. 70 is sysexits' EX_SOFTWARE.
      *) exit_status=$((exit_status ? exit_status : 70)) ;;
    esac
  fi
  if [[ -e $run_dir/launch.stopped && -z $failed ]] &&
    { $several || ((exit_status == 0)); }; then
    ending=stopped exit_status=$((interrupts ? 130 : stopped_status))
    REPLY="stopped at $(<"$run_dir/launch.stopped"), checkpoint saved"
  elif ((exit_status == 0)); then
    ending='done'
    return
  elif ((stops || interrupts)); then
    ending=asked
    if $several && [[ -z $failed ]]; then
      exit_status=$((interrupts ? 130 : 143))
    fi
  elif ((exit_status == 130)); then
    ending=asked
  elif ((exit_status <= 2)) && [[ -n $failed || $several == false ]]; then
    ending=refused
  fi
  if [[ -z $REPLY ]]; then describe_end "$failed"; fi
  [[ $ending == refused ]] || ! $loud || REPLY+='; the same command goes on'
  # Of these the program has told, on its only rank or its first one.
  if ((exit_status == 130)) && [[ $ending != stopped ]]; then loud=false; fi
  [[ $ending != refused || $failed == 'rank '[1-9]* ]] || loud=false
}

describe_end() {
  # A line for judge_end, $1 being that of the rank which failed first.
  if [[ -n $1 ]]; then
    REPLY=$1
  elif $several && [[ $ending != asked ]]; then
    REPLY="$rank_launcher ended with status $exit_status"
  elif ((exit_status > 128)); then
    REPLY="ended by signal $((exit_status - 128))"
  else
    REPLY="ended with status $exit_status" loud=false   # the program said why
  fi
}

run_to_end() {
  # Runs the command behind $1 and $2, and again after a crash where that is
  # allowed; ends the script. $1 is the log that gets what the command says ('':
  # none), $2 the one for this launcher's own lines.
  local copied=$1 log=$2 restarts=0 status
  shift 2
  while :; do
    rm -f -- "$run_dir"/launch.{stop,stopped,failed,begun}
    # What an earlier one left on a machine that was cut off.
    [[ -z $hosts ]] || end_everywhere
    status=0
    run_logged "$copied" "$@" || status=$?
    ! $several || end_everywhere   # a rank that has lost its starter
    judge_end "$status"
    rm -f -- "$run_dir/launch.begun"
    [[ -z $REPLY ]] || say_end "$REPLY" "$loud" "$log"
    if [[ $ending == 'done' ]]; then : >"$run_dir/launch.done"; fi
    if [[ $ending != crashed ]] || ((++restarts > max_restarts)); then
      exit "$exit_status"
    fi
    say_end "restart $restarts of $max_restarts in $restart_pause seconds" \
      true "$log"
    sleep "$restart_pause"
    if ((restart_pause < 300)); then restart_pause=$((2 * restart_pause)); fi
  done
}

say_end() {
  # Line $1 to log $3, and to the user where $2 is true.
  ! $2 || note "$1"
  [[ -z $3 ]] || printf '# %s\n' "$1" >>"$3"
}
