# shellcheck shell=bash disable=SC2034,SC2154
# A server for as long as a launcher runs; sourced by trtis/run_trtis.sh.

server=''   # process of its launcher

end_server() {
  [[ -n $server ]] || return 0
  kill -TERM "$server" 2>/dev/null || true
  wait "$server" || true
}

free_ports() {
  # Three ports that nobody listens on, into ports.
  local found
  found=$("$python" -c 'import sys; sys.path[0] = sys.argv[1]
from utils import ports
print(*ports.free(3))' "$root")
  read -ra ports <<<"$found"
}

start_server() {
  # Sets trtis_server_url once all its models can be asked.
  local log
  local -a ports=(8000 8001 8002) command
  log=$results_dir/trtis_server_$(date +%Y%m%d-%H%M%S)_$$.log
  if ! $dry_run; then choose_python; free_ports; fi
  command=(bash "$scripts/launch_server.sh"
    --repository "$trtis_model_repository" --http_port "${ports[0]}"
    --grpc_port "${ports[1]}" --metrics_port "${ports[2]}" --log "$log")
  trtis_server_url=127.0.0.1:${ports[1]}
  if [[ $protocol == http ]]; then trtis_server_url=127.0.0.1:${ports[0]}; fi
  if $dry_run; then step "${command[@]}" --dry_run; return; fi
  note "starting the server, its log is $log"
  "${command[@]}" --end_with "$$" &
  server=$!
  step bash "$scripts/wait_for_trtis_server.sh" 127.0.0.1 --log "$log" \
    --http_port "${ports[0]}" --timeout "$start_timeout" \
    --server_process "$server"
}
