#!/usr/bin/env bash
# One rank of several: keeps it to its CPUs, runs it, tells how it ended.
#
#   mpirun -np 2 bash scripts/lib/rank.sh RUN_DIR BIND PROGRAM ARGUMENT ...
#   bash scripts/lib/rank.sh --cpus 1 4     # CPUs of the second of four ranks
#   bash scripts/lib/rank.sh --end RUN_DIR  # kill what is left of a run here
#
# The launchers have it started by mpirun or horovodrun. BIND is true or false.
# SIGTERM, SIGINT and SIGUSR1 reach the program as SIGTERM and SIGINT. What
# ranks other than the first say comes out on stderr behind "rank N: ". The
# first one that ends badly is named in RUN_DIR/launch.failed; the others then
# end too, since a rank that waits for a dead one waits for ever.
set -euo pipefail
# shellcheck source=scripts/lib/cpus.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/cpus.sh"

end_run() {
  # By the argument that starter, this script and program have in common; as a
  # pattern on the command line it would find grep itself. Waits till they are
  # gone, 10 seconds at most.
  local file pid try
  local -a files=()
  for try in {1..100}; do
    mapfile -t files < <(grep -lzxF -f /dev/stdin -- /proc/[0-9]*/cmdline \
      <<<"--output_dir=$1" 2>/dev/null)
    ((${#files[@]})) || return 0
    for file in "${files[@]}"; do
      pid=${file#/proc/} pid=${pid%/*}
      ((try > 1)) || kill -KILL "$pid" 2>/dev/null || true
    done
    sleep 0.1
  done
}

case $1 in
  --cpus) rank_cpus "$2" "$3"; printf '%s\n' "$REPLY"; exit 0 ;;
  --end) end_run "$2"; exit 0 ;;
esac

run_dir=$1 bind=$2 host=$(uname -n)   # HOSTNAME may be that of a caller
shift 2
rank=${OMPI_COMM_WORLD_RANK-${HOROVOD_RANK-0}}
local_rank=${OMPI_COMM_WORLD_LOCAL_RANK-${HOROVOD_LOCAL_RANK-0}}
local_size=${OMPI_COMM_WORLD_LOCAL_SIZE-${HOROVOD_LOCAL_SIZE-1}}
command=("$@")
((rank > 0)) || : 2>/dev/null >"$run_dir/launch.begun" || true
if $bind && command -v taskset >/dev/null; then
  rank_cpus "$local_rank" "$local_size"
  [[ -z $REPLY ]] || command=(taskset -c "$REPLY" "${command[@]}")
fi
# It does not outlive a kill -9 of this script, and hears of signals to this
# process group, as mpirun sends them, from this script alone, once.
if [[ $(setpriv --help 2>&1) == *pdeathsig* ]]; then
  command=(setpriv --pdeathsig KILL "${command[@]}")
fi
! command -v setsid >/dev/null || command=(setsid "${command[@]}")
if ((rank > 0)); then
  exec 2> >(trap '' TERM INT HUP USR1 USR2
    exec sed -u "s/^/rank $rank: /" >&2) 1>&2
fi

must_end() {
  # Whether another rank has failed, the launcher has lost patience (it then
  # writes into launch.stop), or nobody waits for this script any more.
  [[ -e $run_dir/launch.failed || -s $run_dir/launch.stop ]] ||
    ! kill -0 "$PPID" 2>/dev/null
}

tell() {
  # The first one wins: ln makes the name and fails where it is there. From a
  # machine without the launcher's folder it reads it among what ranks say; a
  # file left in a folder of that machine's own would end the next start.
  local own=$run_dir/.launch.failed.$host.$$
  local line="rank $rank (host $host) ended $1"
  if [[ -e $run_dir/launch.hash ]] &&
    printf '%s\n' "$line" 2>/dev/null >"$own"; then
    ln -- "$own" "$run_dir/launch.failed" 2>/dev/null || true
    rm -f -- "$own"
  else
    printf '%s\n' "$line" >&2
  fi
}

# Where mpirun listens, as lines of /proc/net/tcp have it: :ABCD|:1234.
ports=$(grep -oE '[0-9.]:[0-9]+|\]:[0-9]+' <<<"${OMPI_MCA_orte_hnp_uri-}" |
  awk -F: '{printf "%s:%04X", (NR > 1 ? "|" : ""), $2}') || ports=''

unheard() {
  # Whether mpirun's machine leaves unanswered what is sent to it: sent again 3
  # times and more.
  { cat /proc/net/tcp /proc/net/tcp6 || true; } | awk -v to="($ports)\$" '
    $3 ~ to && $4 == "01" && $7 > "00000002" {found = 1} END {exit !found}'
}

watch_network() {
  # Keep-alive tries idle connections only: where this machine is cut off with
  # words on their way, the kernel would let orted wait for a quarter of an
  # hour. In the background, since a look into the run folder may hang as well.
  local silent=0
  trap '' TERM INT HUP USR1 USR2
  while kill -0 "$child"; do
    if unheard; then silent=$((silent + 1)); else silent=0; fi
    if ((silent >= 20)); then kill -KILL "$child"; kill -TERM "$PPID"; fi
    sleep 1
  done </dev/null >/dev/null 2>&1
}

told=false status=0 child='' pause=0.05
trap 'told=true; kill -TERM "$child" 2>/dev/null || true' TERM USR1
trap 'told=true; kill -INT "$child" 2>/dev/null || true' INT
(trap - TERM INT USR1; exec "${command[@]}") </dev/null &
child=$!
! $told || kill -TERM "$child" 2>/dev/null || true   # told before it began
if [[ -n $ports ]]; then watch_network & disown; fi
# Without wait: where a signal comes as the program ends, bash may lose its
# status, or wait for ever.
while kill -0 "$child"; do
  ! must_end || kill -KILL "$child"
  sleep "$pause" || true   # a signal may end it
  case $pause in 0.05) pause=0.2 ;; 0.2) pause=1 ;; esac
done 2>/dev/null
wait "$child" 2>/dev/null || status=$?
# A signal is a cause, while a plain status may come of another rank's end; a
# mistake that all find is rank 0's to tell.
if ((status == 0)) || must_end; then
  :
elif ((status <= 128)); then
  (trap '' TERM INT USR1; exec sleep $((status <= 2 && rank > 0 ? 3 : 1)))
  tell "with status $status"
elif ! $told || ((status != 143 && status != 130)); then
  tell "by signal $((status - 128))"
fi
# After any other status mpirun takes 20 seconds to end; the launcher has it
# from that file.
[[ ! -s $run_dir/launch.failed ]] || exit 0
exit "$status"
