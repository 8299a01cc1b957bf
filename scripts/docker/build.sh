#!/usr/bin/env bash
# Builds the container image bert-tf1 from the Dockerfile.
#
#   bash scripts/docker/build.sh [--dry_run] [docker build arguments]
#
# Expect the base image (several GB) to be fetched the first time. Environment
# variables: BERT_IMAGE names the image, FROM_IMAGE_NAME another base.
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
image=${BERT_IMAGE:-bert-tf1} dry_run=no options=()
while (($#)); do
  case $1 in
    -h | --help)
      sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit
      ;;
    --dry_run) dry_run=yes ;;
    *) options+=("$1") ;;
  esac
  shift
done
[[ -z ${FROM_IMAGE_NAME-} ]] ||
  options+=(--build-arg "FROM_IMAGE_NAME=$FROM_IMAGE_NAME")

command=(docker build ${options[@]+"${options[@]}"} --tag "$image" "$root")
if [[ $dry_run == yes ]]; then
  printf '%q ' "${command[@]}"
  echo
  exit
fi
if ! docker info > /dev/null 2>&1; then
  echo "build.sh: no Docker engine answers (docker info); start or install" \
    "it" >&2
  exit 1
fi
exec "${command[@]}"
