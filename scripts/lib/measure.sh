# shellcheck shell=bash disable=SC2034,SC2154  # set here, read elsewhere
# What the launchers that measure a server share; sourced after lib.sh and
# benchmark.sh.

predict_file='' vocab_file='' doc_stride='' max_latency=500
max_client_threads=10 protocol=grpc measurement_interval=5000
stability_percentage=10 max_trials=10
measure_names=(max_latency max_client_threads protocol measurement_interval
  stability_percentage max_trials)

measure_options() {
  # Options of both, declared after their own; each after the arguments.
  options <<'END'
predict_file path? questions to send; empty: those of data/sample
doc_stride count? tokens from window to window; empty: half of one, 128 at most
protocol choice:grpc|http what carries the requests
measurement_interval count milliseconds of one of perf_analyzer's windows
stability_percentage number by how much its last three windows may differ
max_trials count windows at most, 3 or more
END
}

comma_list() {
  # Brings list $1, values of kind $2 with commas between, to one spelling.
  check_list "$1" "$2"   # blanks around each
  REPLY=${!1# }
  REPLY=${REPLY% }
  printf -v "$1" %s "${REPLY// /,}"
}

serving_device() {
  # The GPU that launch_server.sh's server computes on, into REPLY; empty for
  # the CPU, as it is without a container.
  REPLY=''
  if command -v docker >/dev/null && timeout 30 docker info >/dev/null 2>&1
  then gpu_name; fi
}

measure_flags() {
  # Adds what measures to flags, and finds the Python that does. That of
  # BERT_PYTHON has no perf_analyzer beside it.
  local name
  BERT_PYTHON='' choose_client_python
  ((max_trials >= 3)) || usage_error "--max_trials is '$max_trials', but has" \
    "to be 3 or more: three windows are compared"
  predict_file=${predict_file:-$root/data/sample/dev-v1.1.json}
  require_file "$predict_file" "SQuAD file" "give --predict_file FILE"
  flags+=("--predict_file=$predict_file" "--precision=$precision")
  if [[ -n $doc_stride ]]; then flags+=("--doc_stride=$doc_stride"); fi
  for name in "${measure_names[@]}"; do flags+=("--$name=${!name}"); done
}
