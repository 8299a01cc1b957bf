# shellcheck shell=bash disable=SC2154
# Finds a Python interpreter for a stack. Sourced by setup.sh and test.sh;
# defines functions only.

have() { type -P "$1" > /dev/null; }

# Python versions that a stack can run on, best first. TensorFlow 1.15.5 has
# wheels up to 3.7; 2.15.1 for 3.9 to 3.11; what serves (scripts/trtis/setup.sh)
# needs 3.10 for ONNX.
python_versions() {
  case $1 in
    tf1) echo 3.7 ;;
    tf2) echo 3.11 3.10 3.9 ;;
    serving | client | onnx) echo 3.11 3.10 ;;
  esac
}

# The stack of the NGC container around us; nothing outside one. Old images
# (before 20.01) are TensorFlow 1 and carry no suffix.
container_stack() {
  case ${NVIDIA_TENSORFLOW_VERSION-} in
    '') return 1 ;;
    *tf2*) echo tf2 ;;
    *) echo tf1 ;;
  esac
}

# Prints the interpreter behind program $1 if it really is Python $2 and can
# make environments. Asks by running it: a pyenv shim answers for a version
# that is not active, Debian's python3 comes without ensurepip. An environment's
# python gives the interpreter that the environment was made from. What is no
# Python may succeed as well, but says no interpreter.
python_behind() {
  local found
  found=$("$1" -I -c '
import ctypes, ensurepip, os, ssl, sys, venv, zlib
if "%d.%d" % sys.version_info[:2] != sys.argv[1] or sys.maxsize < 2 ** 32:
  sys.exit(1)
base = os.path.join(sys.base_prefix, "bin", "python" + sys.argv[1])
print(base if os.access(base, os.X_OK) else sys.executable)
' "$2" < /dev/null 2> /dev/null) && [[ -x $found ]] && printf '%s\n' "$found"
}

# Programs on this machine that may be Python $1, one a line.
python_candidates() {
  local version=$1 pyenv=${PYENV_ROOT:-${HOME-}/.pyenv} conda
  type -ap "python$version" python3 python || true
  printf '%s\n' "$pyenv/versions/$version".*/bin/"python$version" | sort -rV
  if have uv; then
    UV_PYTHON_DOWNLOADS=never uv python find "$version" 2> /dev/null || true
  fi
  if have conda; then
    conda=$(readlink -f -- "$(type -P conda)")
    printf '%s\n' "${conda%/*/*}"/{,envs/*/}bin/"python$version"
  fi
  printf '%s\n' \
    "$venv_root"/{"python$version",tf1,tf2,serving}/bin/"python$version"
}

# Prints an interpreter for stack $1 that is here already. BERT_BASE_PYTHON
# names the only one to try.
find_python() {
  local version candidate
  for version in $(python_versions "$1"); do
    while IFS= read -r candidate; do
      [[ -x $candidate ]] || continue
      python_behind "$candidate" "$version" && return
    done < <(if [[ -n ${BERT_BASE_PYTHON-} ]]; then
      printf '%s\n' "$BERT_BASE_PYTHON"
    else
      python_candidates "$version"
    fi)
  done
  return 1
}

# Ends set-up for want of a Python for stack $1. $2 is the variable that names
# one, the rest what else to do.
no_python() {
  local versions named=${BERT_BASE_PYTHON-} variable=$2
  versions=$(python_versions "$1")
  shift 2
  if [[ -n $named && ! -x $named ]]; then
    die "$variable: there is no program $named (the interpreter's whole path)"
  elif [[ -n $named ]]; then
    die "$variable: $named is no Python ${versions// / or } that can make an" \
      "environment (with ensurepip, ssl, venv and zlib)"
  fi
  die "found no Python ($versions) that can make an environment, on PATH or" \
    "in pyenv, uv or conda: $* or name it with $variable"
}

can_fetch_python() {
  [[ -z ${BERT_BASE_PYTHON-} ]] && { have uv || have conda; }
}

# Fetches the best version for stack $1 through uv or conda, where one of them
# is here; conda's goes into a folder beside the environments.
fetch_python() {
  local version
  version=$(python_versions "$1")
  version=${version%% *}
  can_fetch_python || return 1
  if have uv; then
    run_logged "Python $version through uv" uv python install "$version" &&
      return
  fi
  have conda && run_logged "Python $version through conda" conda create -y -q \
    -p "$venv_root/python$version" "python=$version"
}

# Stacks that this machine has or that set-up can make on it, one a line.
possible_stacks() {
  local stack
  container_stack && return
  for stack in tf1 tf2; do
    if [[ -f $venv_root/$stack/setup-stamp ]] || can_fetch_python ||
      find_python "$stack" > /dev/null; then echo "$stack"; fi
  done
}
