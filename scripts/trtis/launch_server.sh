#!/usr/bin/env bash
# Runs the Triton server in the foreground until Ctrl-C or SIGTERM.
#
#   bash scripts/trtis/launch_server.sh
#   bash scripts/trtis/launch_server.sh --local --repository my_models \
#     --http_port 9000 --grpc_port 9001 --metrics_port 9002 --log server.log
#
#   --docker          the server of NGC's image, by scripts/docker/
#                     launch_server.sh
#   --local           the real tritonserver on this machine's CPU, out of
#                     .venv/serving (scripts/trtis/setup.sh makes it)
#                     default: --docker where an engine answers, else --local
#   --repository DIR  the models [trtis_models in RESULTS_DIR]
#   --host ADDRESS    where to listen [127.0.0.1]: for this machine alone
#   --http_port N     [8000]
#   --grpc_port N     [8001]
#   --metrics_port N  [8002]
#   --log FILE        the server's words go there instead of to the terminal
#   --end_with N      end once process N of this machine has ended
#   --dry_run         print the command, do nothing
#
# "ready: ..." says that all models can be asked, on the CPU after seconds. A
# model that cannot be loaded ends it with a line and status 1.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=scripts/lib/serving.sh
source "$root/scripts/lib/serving.sh"

# shellcheck disable=SC2034
keeps_runs=false
kind='' repository=$results_dir/trtis_models host=127.0.0.1 log=''
http_port=8000 grpc_port=8001 metrics_port=8002 end_with='' words=()
for word; do
  case $word in
    --local | --docker) kind=${word#--} ;;
    -h | --help)
      sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit
      ;;
    *) words+=("$word") ;;
  esac
done
options <<'END'
repository path folder of the models
host text address to listen on
http_port count port of HTTP
grpc_port count port of gRPC
metrics_port count port of the metrics
log path? file for what the server says
end_with count? process whose end ends the server
END
stack_options() { :; }   # no TensorFlow
parse_arguments "${words[@]}"
((${#positionals[@]} == 0)) ||
  usage_error "'${positionals[0]}': no such argument; --help lists all"
flags=(--repository "$repository" --host "$host" --http_port "$http_port"
  --grpc_port "$grpc_port" --metrics_port "$metrics_port")
if [[ -n $log ]]; then flags+=(--log "$log"); fi
if [[ -n $end_with ]]; then flags+=(--end_with "$end_with"); fi
check_ports

if [[ -z $kind ]]; then
  kind=local
  if command -v docker >/dev/null && timeout 30 docker info >/dev/null 2>&1
  then kind=docker; fi
fi
if [[ $kind == docker ]]; then
  ! $dry_run || flags+=(--dry_run)
  exec bash "$root/scripts/docker/launch_server.sh" "${flags[@]}"
fi
absolute "${BERT_VENV_DIR:-$root/.venv}"
environment=$REPLY/serving
[[ -f $environment/setup-stamp ]] ||
  missing "there is no server here yet: run bash" \
    "$root/scripts/trtis/setup.sh --only serving"
command=("$environment/bin/python" "$root/serving/launch_local.py"
  "${flags[@]}")
if $dry_run; then
  join_words "${command[@]}"
  printf '%s\n' "$REPLY"
  exit
fi
check_log
exec "${command[@]}"
