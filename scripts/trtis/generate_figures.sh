#!/usr/bin/env bash
# Measures how a server's settings change latency and throughput, and draws it:
# largest batch, static or dynamic batching, its delay, number of instances.
#
#   bash scripts/trtis/generate_figures.sh base 128 fp16 results/my_squad
#   bash scripts/trtis/generate_figures.sh --bert_model my_model \
#     --init_checkpoint results/my_squad --batch_sizes 1,8 \
#     --dyn_batching_delays 2 --engine_counts 1 --concurrencies 1,4,16
#
# The checkpoint is exported once. For each setting the model's configuration is
# changed, a server started on this machine (launch_server.sh) and measured by
# perf_analyzer with real questions. RESULTS_DIR/trtis_figures_<model>_<date>
# gets a picture a setting, summary.png, the CSVs behind them and the logs; the
# last line names the recommended setting. Started again, the same command goes
# on where it stopped. Expect 15 seconds or more a point: half an hour for the
# 20 settings of the defaults. A server elsewhere cannot be given other
# settings: measure it with run_perf_client.sh.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=scripts/lib/squad.sh
source "$root/scripts/lib/squad.sh"
# shellcheck source=scripts/lib/benchmark.sh
source "$root/scripts/lib/benchmark.sh"
# shellcheck source=scripts/lib/measure.sh
source "$root/scripts/lib/measure.sh"

bert_model=base seq_length=128 precision=fp16 init_checkpoint='' use_xla=true
arguments <<'END'
bert_model text base, large, or a folder with bert_config.json and vocab.txt
seq_length count tokens a sentence
precision precision fp32, fp16 (= amp) or bf16 (tf2 stack)
init_checkpoint path weights of a run of run_squad.sh
END
# shellcheck disable=SC2034
batch_sizes=1,2,4,8 dyn_batching_delays=0,5 engine_counts=1,2
# shellcheck disable=SC2034
concurrencies=1,2,4,8,16,32 num_gpus=1
export_format=savedmodel
options <<'END'
use_xla flag compile with XLA
batch_sizes text sentences of a batch at most, commas between
dyn_batching_delays text milliseconds a request waits for others, commas between
engine_counts text instances of the model, commas between
concurrencies text requests in flight, commas between
export_format choice:savedmodel|onnx what the server reads
max_latency number milliseconds on average; the limit of what is recommended
max_client_threads count threads that send requests
do_lower_case flag? lower-case the text; empty: as the vocabulary says
END
measure_options
rank_options() { :; }   # one process does it
parse_arguments "$@"

for name in batch_sizes engine_counts concurrencies; do
  comma_list "$name" count
done
comma_list dyn_batching_delays delay
prepare
doc_stride=${doc_stride:-$((seq_length < 256 ? seq_length / 2 : 128))}
squad_flags
require_checkpoint "$init_checkpoint" init_checkpoint
serving_device
if [[ -z $REPLY && $precision != fp32 ]]; then
  note "a server on a CPU computes in fp32, whatever the precision"
  precision=fp32
fi
export_flags=("${flags[@]/#/--export_flag=}")
flags=("--init_checkpoint=$init_checkpoint" "--bert_model=$model_tag"
  "--seq_length=$seq_length" "--vocab_file=$model_dir/vocab.txt"
  "--export_python=$python" "${export_flags[@]}" "--device=$REPLY"
  "--export_format=$export_format")
for name in batch_sizes dyn_batching_delays engine_counts concurrencies; do
  flags+=("--$name=${!name}")
done
measure_flags
run_python "trtis_figures_$model_tag" benchmarks/serving_sweep.py "${flags[@]}"
