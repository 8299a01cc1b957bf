#!/usr/bin/env bash
# Makes the environment of PyTorch and Hugging Face's transformers that
# bench_peers.py compares this suite with: .venv/peers.
#
#   bash benchmarks/peers.sh [--python INTERPRETER] [--help]
#
# Expect one to five minutes the first time, under a second after that; changed
# pins make it anew. pip's output goes to .venv/peers.log. What pip finds as
# torch of the pinned version is taken: on a machine without an NVIDIA GPU, tell
# pip of the smaller CPU builds first (PIP_INDEX_URL or PIP_FIND_LINKS).
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv_root=${BERT_VENV_DIR:-$root/.venv} interpreter=''
# shellcheck source=scripts/setup/python.sh
source "$root/scripts/setup/python.sh"

die() {
  printf 'peers: %s\n' "$*" >&2
  exit 1
}

usage() {
  echo 'usage: bash benchmarks/peers.sh [--python INTERPRETER] [--help]'
  echo '  --python  Python 3.11, 3.12 or 3.13; default: what is found here'
}

while (($#)); do
  case $1 in
    --python)
      interpreter=${2-}
      [[ -n $interpreter ]] || die "--python needs an interpreter"
      shift
      ;;
    -h | --help) usage && exit ;;
    *) die "unknown argument '$1' (--help lists them)" ;;
  esac
  shift
done

# Prints an interpreter that the pins have packages for.
find_peer_python() {
  local version candidate
  for version in 3.11 3.12 3.13; do
    while IFS= read -r candidate; do
      if [[ -x $candidate ]]; then
        python_behind "$candidate" "$version" && return
      fi
    done < <(if [[ -n $interpreter ]]; then
      type -P "$interpreter"
    else
      python_candidates "$version"
    fi)
  done
  return 1
}

list=$root/requirements-peers.txt venv=$venv_root/peers
stamp=$venv/peers-stamp log=$venv_root/peers.log
mkdir -p "$venv_root"
key=$(sha256sum < "$list")
if [[ -f $stamp && $(< "$stamp") == "$key" ]]; then
  echo "peers: $venv is there"
  exit
fi
python=$(find_peer_python) || die "found no Python 3.11, 3.12 or 3.13 that" \
  "can make an environment: name one with --python"
echo "peers: making $venv with $python (log: $log)"
rm -rf -- "$venv"
{
  "$python" -m venv "$venv" &&
    "$venv/bin/python" -m pip install --no-deps -r "$list" &&
    "$venv/bin/python" -m pip check
} > "$log" 2>&1 < /dev/null || die "$(tail -n 1 "$log") (log: $log)"
printf '%s\n' "$key" > "$stamp"
echo "peers: $venv is ready"
