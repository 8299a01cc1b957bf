#!/usr/bin/env bash
# Answers SQuAD questions through a Triton server and scores the answers.
# One question and its passage on the command line, or what is typed, too.
#
#   bash scripts/trtis/run_client.sh 8 384 128 1 bert large 1.1
#   bash scripts/trtis/run_client.sh --bert_model my_model --seq_length 128 \
#     --trtis_model_name my_bert --predict_file my_questions.json \
#     --trtis_server_url my_server:8001
#   bash scripts/trtis/run_client.sh --bert_model my_model \
#     --question "Where does Anna live?" --context "Anna lives in Oslo."
#   bash scripts/trtis/run_client.sh --bert_model my_model --interactive
#
# The server has to be up (scripts/trtis/launch_server.sh). It writes
# predictions.json, nbest_predictions.json and a log to
# RESULTS_DIR/trtis_client_<model>_v<version>_<date>, tells throughput and
# latencies, and where the file holds answers, the last line says
# {"exact_match": ..., "f1": ...}. Where the server dies, unanswered.json names
# the questions without an answer, the status is 69, and the same command asks
# for those alone. One question's answer is the last line, in JSON; like a
# prompt it leaves no folder, unless --run_dir names one.

# shellcheck disable=SC2034  # arguments are read by their names
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=scripts/lib/squad.sh
source "$root/scripts/lib/squad.sh"
# shellcheck source=scripts/lib/client.sh
source "$root/scripts/lib/client.sh"

batch_size=8 seq_length=384 doc_stride=128 trtis_version_name=1
trtis_model_name=bert bert_model=large squad_version=1.1
trtis_server_url='' protocol=grpc timeout=0 predict_file='' do_lower_case=''
question='' context='' interactive=false
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
timeout delay seconds that all requests together may take; 0: any
predict_file path? questions to answer; empty: the dev file under DATA_DIR
question text? one question to answer in place of a file, with context
context text? passage of question, or of what is typed
interactive flag answer what is typed: a passage, then questions about it
do_lower_case flag? lower-case the text; empty: as the model was exported
create_logfile flag keep a log in the run folder
END
client_options
stack_options() { :; }   # no TensorFlow
rank_options() { :; }    # one process does it
parse_arguments "$@"
check_question
settle_query_length
choose_client_python

find_model "$bert_model"
require_file "$model_dir/vocab.txt" vocabulary \
  "give --bert_model a folder that holds it, or set DATA_DIR"
flags=("--vocab_file=$model_dir/vocab.txt"
  "--cache_dir=$results_dir/cache" "--max_seq_length=$seq_length"
  "--trtis_model_version=$trtis_version_name")
if [[ $squad_version == 2.0 ]]; then flags+=(--version_2_with_negative=true); fi
for name in batch_size doc_stride trtis_model_name protocol timeout \
  "${request_names[@]}"; do
  flags+=("--$name=${!name}")
done
for name in trtis_server_url do_lower_case; do
  if [[ -n ${!name} ]]; then flags+=("--$name=${!name}"); fi
done
add_stated "${answer_names[@]}" question context interactive
program=run_squad_trtis_client.py tag=trtis_client_${model_tag}_v$squad_version
if $typed; then ask_typed "$tag" "$program" "${flags[@]}"; fi
find_squad_file dev "$predict_file" predict_file
run_python "$tag" "$program" "--predict_file=$REPLY" "${flags[@]}"
