#!/usr/bin/env bash
# Runs NVIDIA's Triton server in its container on this machine's GPUs, in the
# foreground until Ctrl-C or SIGTERM.
#
#   bash scripts/docker/launch_server.sh [precision] [--name value ...]
#   bash scripts/docker/launch_server.sh fp16 --repository my_models
#
# The first start fetches the image (several GB). Its health is asked every ten
# seconds (docker ps shows it). The default image is the last whose TensorFlow
# backend is there in versions 1 and 2; new ones read ONNX alone. Without
# a GPU the server takes the models' configuration for CPUs.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

# shellcheck disable=SC2034
keeps_runs=false
image=${BERT_SERVER_IMAGE:-nvcr.io/nvidia/tritonserver:23.03-py3}
precision=fp16 repository=$results_dir/trtis_models host=127.0.0.1 log=''
http_port=8000 grpc_port=8001 metrics_port=8002 shm_size=1g
name=bert_trtis_server
arguments <<'END'
precision precision fp32, fp16 (= amp): the models' own, exported with it
END
options <<'END'
repository path folder of the models
host text address of this machine to listen on
http_port count port of HTTP
grpc_port count port of gRPC
metrics_port count port of the metrics
shm_size text shared memory of the container
image text image of the server (BERT_SERVER_IMAGE)
name text name of the container
log path? file for what the server says; empty: the terminal
END
stack_options() { :; }   # no TensorFlow
parse_arguments "$@"
((${#extra_flags[@]} == 0)) || usage_error "-- hands nothing on"
compgen -G "$repository/*/config.pbtxt" >/dev/null ||
  missing "--repository: $repository holds no model (<name>/config.pbtxt);" \
    "scripts/trtis/export_model.sh makes one"

# The models' own configuration says what the server computes in.
for config in "$repository"/*/config.pbtxt; do
  [[ -f $config ]] || continue
  found=fp32
  if grep -q auto_mixed_precision "$config"; then found=fp16; fi
  [[ $precision == "$found" ]] || note "$config was exported for $found and" \
    "is served so; export it anew for $precision"
done

command=(docker run --rm --init --name "$name" --shm-size="$shm_size"
  --ulimit memlock=-1 --ulimit stack=67108864
  --publish "$host:$http_port:8000" --publish "$host:$grpc_port:8001"
  --publish "$host:$metrics_port:8002"
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
command+=("$image" tritonserver --model-repository=/models
  --disable-auto-complete-config)
if $dry_run; then
  join_words "${command[@]}"
  printf '%s\n' "$REPLY"
  exit
fi
timeout 30 docker info >/dev/null 2>&1 ||
  die "no Docker engine answers (docker info); start or install it, or take" \
    "scripts/trtis/launch_server.sh --local"
for port in http_port grpc_port metrics_port; do
  ! (exec 3<>"/dev/tcp/$host/${!port}") 2>/dev/null ||
    die "port ${!port} (--$port) is taken by another program; give another" \
      "port or end that one"
done
if [[ $host != 127.0.0.1 && $host != localhost ]]; then
  note "warning: listening on $host, for all who can reach this machine: no" \
    "password, no encryption (README, \"In front of others\")"
fi
if [[ -z $log ]]; then exec "${command[@]}"; fi
mkdir -p -- "${log%/*}"
exec "${command[@]}" >>"$log" 2>&1
