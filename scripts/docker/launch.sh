#!/usr/bin/env bash
# Runs a command, by default a shell, in the container image bert-tf1.
#
#   bash scripts/docker/launch.sh [--dry_run] [command ...]
#   bash scripts/docker/launch.sh bash scripts/run_squad.sh --num_gpus 1
#
# The checkout is at /workspace/bert, results at /results. Build the image
# first: bash scripts/docker/build.sh. Environment variables: BERT_IMAGE names
# the image, RESULTS_DIR the folder on this machine [results in the checkout],
# DATA_DIR one that appears as /data, with DATA_DIR set to it inside;
# NVIDIA_VISIBLE_DEVICES which GPUs [all]. --dry_run prints the docker command.
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
note() { echo "launch.sh: $*" >&2; }
image=${BERT_IMAGE:-bert-tf1} results=${RESULTS_DIR:-$root/results} dry_run=no
case ${1-} in
  -h | --help)
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit
    ;;
  --dry_run)
    dry_run=yes
    shift
    ;;
esac

# Horovod's ranks and NCCL talk through shared memory and pinned pages: Docker's
# defaults of 64 MB and 64 KB are too small for them.
command=(docker run --rm --shm-size=1g --ulimit memlock=-1
  --ulimit stack=67108864)
if [[ -t 0 && -t 1 ]]; then command+=(--interactive --tty); fi
# A driver that hangs counts as none; grep reads all, lest it break the pipe.
if timeout 30 nvidia-smi -L 2> /dev/null | grep '^GPU ' > /dev/null; then
  command+=(--gpus all
    --env "NVIDIA_VISIBLE_DEVICES=${NVIDIA_VISIBLE_DEVICES:-all}")
else
  note "no NVIDIA GPU answers here; the container runs on the CPU"
fi
command+=(--volume "$root:/workspace/bert")
command+=(--volume "$(realpath -m -- "$results"):/results")
if [[ -n ${DATA_DIR-} ]]; then
  command+=(--volume "$(realpath -m -- "$DATA_DIR"):/data" --env DATA_DIR=/data)
fi
command+=(--workdir /workspace/bert "$image")
if (($#)); then command+=("$@"); else command+=(bash); fi

if [[ $dry_run == yes ]]; then
  printf '%q ' "${command[@]}"
  echo
  exit
fi
if ! docker info > /dev/null 2>&1; then
  note "no Docker engine answers (docker info); start or install it"
  exit 1
fi
if ! docker image inspect "$image" > /dev/null 2>&1; then
  note "no image $image yet: run bash scripts/docker/build.sh"
  exit 1
fi
mkdir -p -- "$results"  # else Docker makes it, as root
exec "${command[@]}"
