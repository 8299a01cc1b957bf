#!/usr/bin/env bash
# Exports a fine-tuned BERT for the TensorRT (Triton) Inference Server.
#
#   bash scripts/trtis/export_model.sh /results/model.ckpt 8 fp16 true 384 128
#   bash scripts/trtis/export_model.sh --bert_model my_model \
#     --init_checkpoint results/squad_my_model_v1.1_20240229-120000 \
#     --trtis_model_name my_bert --trtis_dyn_batching_delay 5
#
# A checkpoint is a prefix, a folder (its newest) or <folder>/model.ckpt (the
# same). The model goes to RESULTS_DIR/trtis_models/<name>/<version> and its
# config.pbtxt beside it; versions stand side by side. precision and use_xla are
# what the server's GPU is to compute with, whatever this machine has: weights
# stay float32. Takes seconds, half a minute for large; no GPU is needed.

# shellcheck disable=SC2034  # arguments are read by their names
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=scripts/lib/squad.sh
source "$root/scripts/lib/squad.sh"

init_checkpoint=$results_dir/model.ckpt batch_size=8 precision=fp16 use_xla=true
seq_length=384 doc_stride=128 bert_model=large trtis_model_version=1
trtis_model_name=bert trtis_dyn_batching_delay=0 trtis_engine_count=1
trtis_model_overwrite=false
squad_version=1.1 seed='' do_lower_case='' create_logfile=true
trtis_model_repository=$results_dir/trtis_models trtis_max_queue_size=0
export_format=savedmodel export_fused_ops=false
arguments <<'END'
init_checkpoint path weights of a run of run_squad.sh
batch_size count the largest batch that the server forms
precision precision what the server computes in: fp32 or fp16 (= amp)
use_xla flag the server compiles with XLA
seq_length count tokens a window
doc_stride count unused here; clients cut passages into windows
bert_model text base, large, or a folder with bert_config.json and vocab.txt
trtis_model_version count number of the export, for clients to choose by
trtis_model_name text name of the export
trtis_dyn_batching_delay delay ms that a batch waits to fill; 0: none forms
trtis_engine_count count copies of the model, on each GPU
trtis_model_overwrite flag replace an export of that version
END
aliases=([checkpoint]=init_checkpoint [max_seq_length]=seq_length
  [trtis_max_batch_size]=batch_size [trtis_version_name]=trtis_model_version
  [repository]=trtis_model_repository)
options <<'END'
trtis_model_repository path folder of the models that a server serves
trtis_max_queue_size whole requests that may wait at the server; 0: any number
export_format choice:savedmodel|onnx what the server reads
export_fused_ops flag keep kernels of our own; the server has to load them
do_lower_case flag? lower-case the text; empty: as the vocabulary says
create_logfile flag keep a log in the run folder
END
computation_options
rank_options() { :; }   # one process does it
parse_arguments "$@"
[[ $precision != bf16 ]] ||
  die "precision bf16 is not there at servers: export for fp32 or fp16"
# What this machine has decides nothing here.
choose_python
choose_precision

squad_flags
require_checkpoint "$init_checkpoint" init_checkpoint
flags+=("--init_checkpoint=$init_checkpoint" --export_trtis=true
  "--trtis_max_batch_size=$batch_size")
for name in trtis_model_{repository,name,version,overwrite} \
  trtis_dyn_batching_delay trtis_max_queue_size trtis_engine_count \
  export_format export_fused_ops; do
  flags+=("--$name=${!name}")
done
run_python "trtis_export_${trtis_model_name//[^A-Za-z0-9._-]/_}" run_squad.py \
  "${flags[@]}"
