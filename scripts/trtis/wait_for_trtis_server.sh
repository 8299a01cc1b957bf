#!/usr/bin/env bash
# Waits until a Triton server is live and all its models can be asked.
#
#   bash scripts/trtis/wait_for_trtis_server.sh [server_hostname]
#   bash scripts/trtis/wait_for_trtis_server.sh localhost --timeout 60 \
#     --log server.log --server_process 1234
#
# Expect a word every ten seconds. It fails once the time is over, or at once
# where the named process has ended, with the last lines of the named log.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=scripts/lib/serving.sh
source "$root/scripts/lib/serving.sh"
# shellcheck source=scripts/lib/container.sh
source "$root/scripts/lib/container.sh"

# shellcheck disable=SC2034
keeps_runs=false
server_hostname=localhost http_port=8000 timeout=300 log='' server_process=''
arguments <<'END'
server_hostname text machine of the server
END
options <<'END'
http_port count port of HTTP
timeout count seconds to wait
log path? what the server says; its last lines are shown on failure
server_process count? process of the server on this machine
END
stack_options() { :; }   # no TensorFlow
parse_arguments "$@"
check_port http_port
server_hostname=${server_hostname#[} server_hostname=${server_hostname%]}
bracketed "$server_hostname"
address=$REPLY:$http_port
# By itself: who waits for this script has to see that it was interrupted.
trap 'trap - INT; kill -INT $$' INT

fail() {
  note "$*"
  if [[ -f $log ]]; then
    note "the last lines of $log:"
    tail -n 20 -- "$log" | sed 's/^/  /' >&2
  fi
  exit 1
}

answers() {
  # Whether the server answers address $1 with 200. Bash's own connection,
  # since curl is not everywhere; a machine that says nothing counts as no. In
  # the foreground, else Ctrl-C would not reach it and we would wait for it.
  local left=$((timeout - SECONDS + 1))
  # shellcheck disable=SC2016  # the inner bash expands it
  timeout --foreground "$((left < 5 ? left : 5))" bash -c '
    exec 3<>"/dev/tcp/$0/$1"
    printf "GET /v2/health/%s HTTP/1.0\r\nHost: %s\r\n\r\n" "$2" "$3" >&3
    IFS=" " read -r _ status _ <&3
    [[ $status == 200 ]]' "$server_hostname" "$http_port" "$1" "$address" \
    2>/dev/null
}

if $dry_run; then
  printf 'GET http://%s/v2/health/{live,ready}\n' "$address"
  exit
fi
told=0 state="nothing answers at $address"
while ((SECONDS < timeout)); do
  if answers live; then
    if answers ready; then
      note "the server at $address is ready, $SECONDS s"
      exit
    fi
    state="the server at $address is live, but not ready"
  fi
  if [[ -n $server_process ]] && process_ended "$server_process"; then
    fail "the server (process $server_process) has ended; $state"
  fi
  if ((SECONDS >= told + 10)); then
    told=$SECONDS
    note "... $state, $SECONDS s so far"
  fi
  sleep 0.5
done
fail "$state after $timeout s (--timeout)"
