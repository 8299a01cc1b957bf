#!/usr/bin/env bash
# Answers SQuAD questions through a Triton server and scores the answers.
#
#   bash scripts/trtis/run_client.sh 8 384 128 1 bert large 1.1
#   bash scripts/trtis/run_client.sh --bert_model my_model --seq_length 128 \
#     --trtis_model_name my_bert --predict_file my_questions.json \
#     --trtis_server_url my_server:8001
#
# The server has to be up (scripts/trtis/launch_server.sh). It writes
# predictions.json, nbest_predictions.json and a log to
# RESULTS_DIR/trtis_client_<model>_v<version>_<date>, tells throughput and
# latencies, and where the file holds answers, the last line says
# {"exact_match": ..., "f1": ...}. Where the server dies, unanswered.json names
# the questions without an answer, the status is 69, and the same command asks
# for those alone.

# shellcheck disable=SC2034  # arguments are read by their names
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=scripts/lib/squad.sh
source "$root/scripts/lib/squad.sh"

batch_size=8 seq_length=384 doc_stride=128 trtis_version_name=1
trtis_model_name=bert bert_model=large squad_version=1.1
trtis_server_url='' protocol=grpc concurrency=8 max_retries=8
request_timeout=60 timeout=0 predict_file='' do_lower_case=''
arguments <<'END'
batch_size count windows a request
seq_length count tokens a window, as the model was exported
doc_stride count tokens from window to window of one passage
trtis_version_name count version of the model
trtis_model_name text name of the model
bert_model text base, large, or a folder with vocab.txt
squad_version choice:1.1|2.0 1.1 or 2.0
END
aliases=([predict_batch_size]=batch_size [max_seq_length]=seq_length
  [trtis_model_version]=trtis_version_name)
options <<'END'
trtis_server_url text? host:port; empty: this machine, the protocol's own port
protocol choice:grpc|http how to ask
concurrency count requests in flight
max_retries whole how often a request is sent again where that may help
request_timeout number seconds that one request may take
timeout delay seconds that all requests together may take; 0: any
predict_file path? questions to answer; empty: the dev file under DATA_DIR
do_lower_case flag? lower-case the text; empty: as the model was exported
create_logfile flag keep a log in the run folder
END
stack_options() { :; }   # no TensorFlow
rank_options() { :; }    # one process does it
parse_arguments "$@"
choose_client_python

find_model "$bert_model"
require_file "$model_dir/vocab.txt" vocabulary \
  "give --bert_model a folder that holds it, or set DATA_DIR"
find_squad_file dev "$predict_file" predict_file
flags=("--vocab_file=$model_dir/vocab.txt" "--predict_file=$REPLY"
  "--cache_dir=$results_dir/cache" "--max_seq_length=$seq_length"
  "--trtis_model_version=$trtis_version_name")
if [[ $squad_version == 2.0 ]]; then flags+=(--version_2_with_negative=true); fi
for name in batch_size doc_stride trtis_model_name protocol concurrency \
  max_retries request_timeout timeout; do
  flags+=("--$name=${!name}")
done
for name in trtis_server_url do_lower_case; do
  if [[ -n ${!name} ]]; then flags+=("--$name=${!name}"); fi
done
run_python "trtis_client_${model_tag}_v$squad_version" \
  run_squad_trtis_client.py "${flags[@]}"
