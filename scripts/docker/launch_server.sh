#!/usr/bin/env bash
# Runs NVIDIA's Triton server in its container on this machine's GPUs, in the
# foreground until Ctrl-C or SIGTERM.
#
#   bash scripts/docker/launch_server.sh [precision] [--name value ...]
#   bash scripts/docker/launch_server.sh fp16 --repository my_models
#
# The first start fetches the image (several GB). Its health is asked every ten
# seconds (docker ps shows it). The default image is the last with TensorFlow 1
# and 2: from 23.04 on there is 2 alone, from 25.03 on neither. Without a GPU
# the server takes the models' configuration for CPUs. The container ends with
# this script, whatever ends that.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=scripts/lib/serving.sh
source "$root/scripts/lib/serving.sh"
# shellcheck source=scripts/lib/container.sh
source "$root/scripts/lib/container.sh"

# shellcheck disable=SC2034
keeps_runs=false
image=${BERT_SERVER_IMAGE:-nvcr.io/nvidia/tritonserver:23.03-py3}
precision='' repository=$results_dir/trtis_models host=127.0.0.1 log=''
http_port=8000 grpc_port=8001 metrics_port=8002 shm_size=1g
name='' end_with=''
arguments <<'END'
precision precision? fp32 or fp16 (= amp), checked; the models' own is taken
END
options <<'END'
repository path folder of the models
host text address of this machine to listen on
http_port count port of HTTP
grpc_port count port of gRPC
metrics_port count port of the metrics
shm_size text shared memory of the container
image text image of the server (BERT_SERVER_IMAGE)
name text? name of the container; empty: bert_trtis_server_<http_port>
log path? file for what the server says; empty: the terminal
end_with count? process of this machine whose end ends the server
END
stack_options() { :; }   # no TensorFlow
parse_arguments "$@"
((${#extra_flags[@]} == 0)) || usage_error "-- hands nothing on"
compgen -G "$repository/*/config.pbtxt" >/dev/null ||
  missing "--repository: $repository holds no model (<name>/config.pbtxt);" \
    "scripts/trtis/export_model.sh makes one"

[[ $precision != bf16 ]] ||
  usage_error "precision bf16 is not there at servers: fp32 or fp16"
# The models' own configuration says what a server computes in, except in ONNX.
for config in "$repository"/*/config.pbtxt; do
  [[ -n $precision && -f $config ]] || continue
  ! grep -q onnxruntime_onnx "$config" || continue
  found=fp32
  if grep -q auto_mixed_precision "$config"; then found=fp16; fi
  [[ $precision == "$found" ]] || note "$config was exported for $found and" \
    "is served so; export it anew for $precision"
done
choose_kernels
check_ports
numeric_address "$host"
address=$REPLY
bracketed "$address"

command=(docker run --rm --init --name "${name:-bert_trtis_server_$http_port}"
  --shm-size="$shm_size" --ulimit memlock=-1 --ulimit stack=67108864
  --publish "$REPLY:$http_port:8000" --publish "$REPLY:$grpc_port:8001"
  --publish "$REPLY:$metrics_port:8002"
  --volume "$repository:/models:ro"
  --health-cmd 'curl -sf localhost:8000/v2/health/ready'
  --health-interval=10s --health-timeout=5s --health-start-period=120s)
count_gpus
if ((REPLY > 0)); then
  command+=(--gpus all
    --env "NVIDIA_VISIBLE_DEVICES=${NVIDIA_VISIBLE_DEVICES:-all}")
else
  note "no NVIDIA GPU answers here; the server computes on the CPU"
  for config in "$repository"/*/configs/cpu.pbtxt; do
    [[ -f $config ]] || continue
    model=${config%/configs/cpu.pbtxt}
    command+=(--volume "$config:/models/${model##*/}/config.pbtxt:ro")
  done
fi
# Else it batches dynamically where a model's configuration says nothing of it.
flags=(--model-repository=/models --disable-auto-complete-config)
command+=("$image")
if [[ -n $kernels ]]; then
  kernel_words "$kernels"
  command+=("${kernel_words[@]}") flags+=("${kernel_flags[@]}")
fi
command+=(tritonserver "${flags[@]}")
if $dry_run; then
  join_words "${command[@]}"
  printf '%s\n' "$REPLY"
  exit
fi
timeout 30 docker info >/dev/null 2>&1 ||
  die "no Docker engine answers (docker info); start or install it, or take" \
    "scripts/trtis/launch_server.sh --local"
check_free "$address"
check_log
if [[ $address != 127.* && $address != ::1 ]]; then
  note "warning: listening on $host, for all who can reach this machine: no" \
    "password, no encryption (README, \"In front of others\")"
fi
label=bert_trtis_server=$$_$(date +%s)_$RANDOM
command=(docker run --label "$label" "${command[@]:2}")
end_container_with "$label" "$$" ${end_with:+"$end_with"}
if [[ -z $log ]]; then exec "${command[@]}"; fi
exec "${command[@]}" >>"$log" 2>&1
