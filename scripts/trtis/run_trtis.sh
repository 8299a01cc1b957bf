#!/usr/bin/env bash
# Serves a fine-tuned BERT and has it answer SQuAD's questions, in one step:
# export, configuration, server, client, scores.
#
#   bash scripts/trtis/run_trtis.sh /results/model.ckpt 8 fp16 true 384 128
#   bash scripts/trtis/run_trtis.sh --bert_model my_model \
#     --init_checkpoint results/squad_my_model_v1.1_20240229-120000 \
#     --predict_file my_questions.json --trtis_dyn_batching_delay 5
#
# The model goes to RESULTS_DIR/trtis_models. A server is started for it, on
# free ports of this machine, and ended behind, unless --trtis_server_url names
# one that serves that folder. Answers and log lie in a folder of RESULTS_DIR;
# where the questions have answers, the last line says {"exact_match": ...,
# "f1": ...}.

# shellcheck disable=SC2034  # arguments are read by their names
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=scripts/lib/server.sh
source "$root/scripts/lib/server.sh"
# shellcheck source=scripts/lib/client.sh
source "$root/scripts/lib/client.sh"

init_checkpoint=$results_dir/model.ckpt batch_size=8 precision=fp16 use_xla=true
seq_length=384 doc_stride=128 bert_model=large squad_version=1.1
trtis_version_name=1 trtis_model_name=bert trtis_export_model=true
trtis_dyn_batching_delay=0 trtis_engine_count=1 trtis_model_overwrite=false
trtis_model_repository=$results_dir/trtis_models trtis_max_queue_size=0
export_format=savedmodel
predict_file='' do_lower_case='' trtis_server_url='' protocol=grpc
start_timeout=300 keeps_runs=false
arguments <<'END'
init_checkpoint path weights of a run of run_squad.sh
batch_size count windows a request, and the largest batch that the server forms
precision precision what the server computes in: fp32 or fp16 (= amp)
use_xla flag the server compiles with XLA
seq_length count tokens a window
doc_stride count tokens from window to window of one passage
bert_model text base, large, or a folder with bert_config.json and vocab.txt
squad_version choice:1.1|2.0 1.1 or 2.0
trtis_version_name count number of the export
trtis_model_name text name of the export
trtis_export_model flag export first; false serves what is there
trtis_dyn_batching_delay delay ms that a batch waits to fill; 0: none forms
trtis_engine_count count copies of the model, on each GPU
trtis_model_overwrite flag replace an export of that version
END
aliases=([checkpoint]=init_checkpoint [max_seq_length]=seq_length
  [trtis_model_version]=trtis_version_name
  [repository]=trtis_model_repository)
options <<'END'
trtis_model_repository path folder of the models
trtis_max_queue_size whole requests that may wait at the server; 0: any number
export_format choice:savedmodel|onnx what the server reads
predict_file path? questions; empty: the dev file under DATA_DIR
trtis_server_url text? host:port of a running server; empty: one is started
protocol choice:grpc|http what the client speaks
start_timeout count seconds to wait for the server
do_lower_case flag? lower-case the text; empty: as the vocabulary says
END
client_options
parse_arguments "$@"
settle_query_length

scripts=$root/scripts/trtis common=() child=''
[[ -z $stack ]] || export BERT_STACK=$stack
if [[ -n $do_lower_case ]]; then common+=("--do_lower_case=$do_lower_case"); fi
if $dry_run; then common+=(--dry_run); fi

step() {
  # Runs a command in a way that a signal to this script reaches it.
  "$@" &
  child=$!
  wait "$child"
  child=''
}

stop() {
  # Signal $1 came: ends the step under way; end_server does the rest.
  trap '' INT TERM HUP
  if [[ -n $child ]]; then
    kill -TERM "$child" 2>/dev/null || true
    wait "$child" || true
  fi
  exit $((128 + $1))
}

trap 'stop 2' INT
trap 'stop 15' TERM
trap 'stop 1' HUP
trap end_server EXIT
if $trtis_export_model; then
  step bash "$scripts/export_model.sh" "$init_checkpoint" "$batch_size" \
    "$precision" "$use_xla" "$seq_length" "$doc_stride" "$bert_model" \
    "$trtis_version_name" "$trtis_model_name" "$trtis_dyn_batching_delay" \
    "$trtis_engine_count" "$trtis_model_overwrite" \
    "--trtis_model_repository=$trtis_model_repository" \
    "--trtis_max_queue_size=$trtis_max_queue_size" \
    "--export_format=$export_format" "${common[@]}"
elif [[ ! -d $trtis_model_repository/$trtis_model_name/$trtis_version_name ]]
then
  missing "--trtis_export_model false, but there is no model in" \
    "$trtis_model_repository/$trtis_model_name/$trtis_version_name"
fi
if [[ -z $trtis_server_url ]]; then start_server; fi
flags=("${common[@]}")
add_stated "${request_names[@]}" "${answer_names[@]}"
if [[ -n $predict_file ]]; then flags+=("--predict_file=$predict_file"); fi
step bash "$scripts/run_client.sh" "$batch_size" "$seq_length" "$doc_stride" \
  "$trtis_version_name" "$trtis_model_name" "$bert_model" "$squad_version" \
  "--trtis_server_url=$trtis_server_url" "--protocol=$protocol" "${flags[@]}"
