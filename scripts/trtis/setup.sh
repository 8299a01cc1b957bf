#!/usr/bin/env bash
# Makes the Python environments that serving needs, beside those of TensorFlow:
#   .venv/serving  the real tritonserver, for a machine without Docker, and
#                  what runs models behind it on the CPU
#   .venv/client   the clients, perf_analyzer, figures; no TensorFlow
#   .venv/onnx     the converter from SavedModel to ONNX
#
#   bash scripts/trtis/setup.sh [--only serving|client|onnx] [--help]
#
# Expect two minutes and 3 GB the first time, under two seconds after that. A
# broken, half-made or outdated environment is noticed and made anew. pip's
# output goes to .venv/<environment>.log.
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
venv_root=${BERT_VENV_DIR:-$root/.venv} stack=serving
names=(serving client onnx) interpreter='' flavour=cpu
# shellcheck source=scripts/setup/python.sh
source "$root/scripts/setup/python.sh"
# shellcheck source=scripts/setup/install.sh
source "$root/scripts/setup/install.sh"
# shellcheck source=scripts/setup/horovod.sh
source "$root/scripts/setup/horovod.sh"
# shellcheck source=scripts/setup/serving.sh
source "$root/scripts/setup/serving.sh"

usage() {
  cat <<'END'
usage: bash scripts/trtis/setup.sh [--only serving|client|onnx] [--help]

  --only NAME   this environment alone

Python 3.10 or 3.11 is looked for on PATH, in pyenv, uv and conda. Environment
variables: BERT_VENV_DIR (folder of the environments instead of .venv in the
checkout), BERT_SERVING_PYTHON (the interpreter to make them from).
END
}

while (($#)); do
  case $1 in
    --only)
      names=("${2-}")
      shift
      ;;
    --only=*) names=("${1#*=}") ;;
    -h | --help) usage && exit ;;
    *) usage_error "unknown argument '$1' (--help lists them)" ;;
  esac
  shift || break
done
case ${names[0]} in
  serving | client | onnx) ;;
  *) usage_error "--only has to be serving, client or onnx" ;;
esac
unset PYTHONHOME PYTHONPATH BERT_BASE_PYTHON
if [[ -n ${BERT_SERVING_PYTHON-} ]]; then
  export BERT_BASE_PYTHON=$BERT_SERVING_PYTHON
fi
export PIP_USER=no PIP_DISABLE_PIP_VERSION_CHECK=1
if ! mkdir -p "$venv_root" 2> /dev/null || [[ ! -w $venv_root ]]; then
  die "cannot write to $venv_root (BERT_VENV_DIR moves the environments)"
fi
venv_root=$(cd -- "$venv_root" && pwd -P)
[[ $(uname -sm) == 'Linux x86_64' ]] ||
  die "the server's programs are made for Linux on x86-64, this is $(uname -sm)"

# What was whole before comes back when set-up ends early. After a kill -9 there
# is no stamp, and the next set-up starts anew.
put_back() {
  [[ -d $venv.old ]] || return 0
  rm -rf -- "$venv"
  mv -- "$venv.old" "$venv"
}

bring_up() {
  local fault=''
  if [[ -d $venv ]]; then
    fault=$(environment_fault)
    [[ -n $fault ]] || return 0
    say "the environment $fault; making it anew"
  fi
  : > "$log"
  choose_serving_python
  set_aside
  make_environment "$interpreter"
  unpack_triton
  write_serving_stamp
  trap - EXIT
  rm -rf -- "$venv.old"
}

for stack in "${names[@]}"; do
  venv=$venv_root/$stack stamp=$venv_root/$stack/setup-stamp
  log=$venv_root/$stack.log
  # One set-up of an environment at a time; a second one waits for it.
  exec 9> "$venv_root/$stack.lock"
  if have flock && ! flock -w 2 9; then
    say "another set-up is running; waiting for it"
    flock 9
  fi
  bring_up
  say "ready: Python $(stamped python), $SECONDS s"
done
