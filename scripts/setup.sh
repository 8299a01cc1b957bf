#!/usr/bin/env bash
# Makes the Python environment of a TensorFlow stack: .venv/tf1 or .venv/tf2.
#
#   bash scripts/setup.sh [--stack tf1|tf2] [--with_tests] [--help]
#
# Expect one to five minutes the first time (Horovod is built from source once
# a machine), under two seconds after that. A broken, half-made or outdated
# environment is noticed and made anew. pip's output goes to .venv/<stack>.log;
# the last line tells what is there.
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv_root=${BERT_VENV_DIR:-$root/.venv} stack='' with_tests=no
# shellcheck source=scripts/setup/python.sh
source "$root/scripts/setup/python.sh"
# shellcheck source=scripts/setup/install.sh
source "$root/scripts/setup/install.sh"
# shellcheck source=scripts/setup/horovod.sh
source "$root/scripts/setup/horovod.sh"
# shellcheck source=scripts/setup/kernels.sh
source "$root/scripts/setup/kernels.sh"

usage() {
  cat <<'END'
usage: bash scripts/setup.sh [--stack tf1|tf2] [--with_tests] [--help]

  --stack tf1   TensorFlow 1.15.5 on Python 3.7, the reference
  --stack tf2   TensorFlow 2.15.1 on Python 3.9, 3.10 or 3.11
                default: tf1 where Python 3.7 is found (on PATH, in pyenv, uv
                or conda), else tf2; in an NGC container the container's own
  --with_tests  also what the tests need

Environment variables: BERT_STACK (as --stack), BERT_VENV_DIR (folder of the
environments instead of .venv in the checkout), BERT_BASE_PYTHON (the
interpreter to make the environment from).
END
}

parse_arguments() {
  stack=${BERT_STACK-}
  while (($#)); do
    case $1 in
      --stack)
        stack=${2-}
        [[ -n $stack ]] || usage_error "--stack needs a value: tf1 or tf2"
        shift
        ;;
      --stack=?*) stack=${1#*=} ;;
      --stack=) usage_error "--stack needs a value: tf1 or tf2" ;;
      --with_tests) with_tests=yes ;;
      -h | --help) usage && exit ;;
      *) usage_error "unknown argument '$1' (--help lists them)" ;;
    esac
    shift
  done
  case $stack in
    tf1 | tf2 | '') ;;
    *) usage_error "--stack has to be tf1 or tf2" ;;
  esac
}

# Without --stack: tf1 where it is or its Python can be had, else tf2. By its
# stamp the launchers choose tf1 as well, so that all take the same one.
choose_stack() {
  local own
  if own=$(container_stack); then
    [[ ${stack:=$own} == "$own" ]] ||
      die "this container holds the $own stack; --stack $stack is not there"
  elif [[ -z $stack ]]; then
    stack=tf1
    [[ -f $venv_root/tf1/setup-stamp ]] || find_python tf1 > /dev/null ||
      { [[ ! -f $venv_root/tf2/setup-stamp ]] && fetch_python tf1; } ||
      stack=tf2
  fi
}

# One set-up a stack at a time; a second one waits and then finds it done. The
# children of one that was ended just now hold the lock for a moment more.
take_lock() {
  exec 9> "$venv_root/$stack.lock"
  if have flock && ! flock -w 2 9; then
    say "another set-up is running; waiting for it"
    flock 9
  fi
}

# Sets $interpreter, with Python from uv, conda or Debian where there is none.
choose_interpreter() {
  local advice
  if container_stack > /dev/null; then
    interpreter=$(type -P python3) && return
  fi
  interpreter=$(find_python "$stack") && return
  fetch_python "$stack" && interpreter=$(find_python "$stack") && return
  if [[ $stack == tf1 ]]; then
    advice="take --stack tf2, install one"
  else
    advice="install one (on Debian: apt-get install python3-venv)"
    if [[ -z ${BERT_BASE_PYTHON-} ]] && have apt-get && is_root; then
      install_packages python3-venv
      interpreter=$(find_python "$stack") && return
    fi
  fi
  no_python "$stack" BERT_BASE_PYTHON "$advice"
}

# What was whole before comes back when set-up ends early. After a kill -9 there
# is no stamp, and the next set-up starts anew.
put_back() {
  if [[ -d $venv.old ]]; then
    rm -rf -- "$venv"
    mv -- "$venv.old" "$venv"
  elif [[ -f $stamp.old ]]; then
    mv -- "$stamp.old" "$stamp"
  fi
}

replace_environment() {
  : > "$log"
  choose_interpreter
  set_aside
  make_environment "$interpreter"
}

# Brings the environment to what is asked for, doing no more than is needed.
bring_up() {
  local fault='' tests build=no kernels=no library
  if [[ -d $venv ]]; then
    fault=$(environment_fault)
    [[ -z $fault ]] || say "the environment $fault; making it anew"
  fi
  [[ -d $venv && -z $fault ]] || replace_environment
  tests=$(stamped tests)
  library=$(stamped library)
  if horovod_due; then build=yes; fi
  if kernels_due; then kernels=yes; fi
  if [[ -f $stamp ]]; then
    if [[ $build$kernels == nono ]] &&
      [[ $with_tests == no || $tests == "$(tests_key)" ]]; then return; fi
    trap put_back EXIT
    mv -- "$stamp" "$stamp.old"
  fi
  if [[ $with_tests == yes && $tests != "$(tests_key)" ]]; then
    install_list "$root/requirements-test.txt"
    tests=$(tests_key)
  fi
  if [[ $build == yes ]]; then
    install_horovod \
      "$(pins "$(requirements_file)" | grep -E '^tensorflow(-[cg]pu)?==')"
  fi
  if [[ $kernels == yes ]]; then build_kernels; fi
  write_stamp "${tests:-no}" "$library"
  trap - EXIT
  rm -rf -- "$venv.old" "$stamp.old"
}

parse_arguments "$@"
unset PYTHONHOME PYTHONPATH
export PIP_USER=no PIP_DISABLE_PIP_VERSION_CHECK=1
if ! mkdir -p "$venv_root" 2> /dev/null || [[ ! -w $venv_root ]]; then
  die "cannot write to $venv_root (BERT_VENV_DIR moves the environments)"
fi
venv_root=$(cd -- "$venv_root" && pwd -P)
log=$venv_root/setup.log
choose_stack
venv=$venv_root/$stack stamp=$venv_root/$stack/setup-stamp
log=$venv_root/$stack.log
take_lock
flavour=$(machine_flavour)
horovod=$(pinned horovod)
bring_up
say "ready: Python $(stamped python), TensorFlow $(stamped tensorflow)," \
  "Horovod $(stamped horovod), $SECONDS s"
