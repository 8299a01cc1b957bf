#!/usr/bin/env bash
# Measures a Triton server that runs, with its own perf_analyzer: latency and
# throughput over rising concurrency.
#
#   bash scripts/trtis/run_perf_client.sh bert 1 fp16 8 500 10 50 my.server
#   bash scripts/trtis/run_perf_client.sh --batch_size 4 --max_concurrency 16
#
# Real questions are sent, made into windows of the model's own length. The
# concurrency doubles until the average latency is over max_latency or
# max_concurrency is reached. The table is printed; RESULTS_DIR/
# trtis_perf_<model>_<date> keeps perf_analyzer.csv (its own columns, µs),
# points.csv (ours, ms, with the server's count of executions) and the logs.
# Expect 15 seconds or more a concurrency. precision is a word for the table:
# the server computes as the model was exported.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=scripts/lib/benchmark.sh
source "$root/scripts/lib/benchmark.sh"
# shellcheck source=scripts/lib/measure.sh
source "$root/scripts/lib/measure.sh"

model_name=bert model_version=1 precision=fp16 batch_size=1
max_concurrency=50 server_hostname=localhost
arguments <<'END'
model_name text model to measure
model_version count its version
precision precision how it computes; a word for the table
batch_size count sentences a request
max_latency number milliseconds on average; a higher one ends the measurement
max_client_threads count threads that send requests
max_concurrency count requests in flight at most
server_hostname text machine of the server
END
concurrencies='' http_port=8000 grpc_port=8001
options <<'END'
concurrencies text? requests in flight, commas between; empty: 1, 2, 4, ...
http_port count port of the server that answers HTTP
grpc_port count port of the server that answers gRPC
vocab_file path? the model's vocabulary; empty: data/sample's, base's or large's
END
measure_options
stack_options() { :; }   # no TensorFlow
rank_options() { :; }    # one process does it
parse_arguments "$@"

flags=("--batch_size=$batch_size" "--max_concurrency=$max_concurrency"
  "--server_hostname=$server_hostname" "--http_port=$http_port"
  "--grpc_port=$grpc_port" "--model_name=$model_name"
  "--model_version=$model_version")
if [[ -n $concurrencies ]]; then
  comma_list concurrencies count
  flags+=("--concurrencies=$concurrencies")
fi
measure_flags
if [[ -n $vocab_file ]]; then
  flags+=("--vocab_file=$vocab_file")
else
  flags+=("--vocab_file=$root/data/sample/vocab.txt")
  for bert_model in base large; do
    find_model "$bert_model"
    flags+=("--vocab_file=$model_dir/vocab.txt")
  done
fi
run_python "trtis_perf_${model_name//[^A-Za-z0-9._-]/_}" \
  benchmarks/perf_client.py "${flags[@]}"
