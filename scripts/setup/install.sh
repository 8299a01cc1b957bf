# shellcheck shell=bash disable=SC2154
# Making an environment from the pinned lists, and the stamp that tells that it
# is whole. Sourced by setup.sh; defines functions only. They read $root,
# $venv_root, $stack, $venv, $stamp, $log, $flavour and $horovod.

setup_version=1  # raised when the same lists give another environment
no_index='from versions: none|establish a new connection|ProxyError|timed out'
build_packages='^(pip|setuptools|wheel)=='  # needed before any other

say() { printf 'setup %s: %s\n' "${stack-}" "$*"; }
die() {
  say "$@" >&2
  exit 1
}
usage_error() {
  say "$@" >&2
  exit 2
}

# Runs a command with its output in the log. A line says what it is, and one
# every 20 seconds that it still goes on; $1 empty: nothing is said.
run_logged() {
  local message=$1 beat='' status=0
  shift
  printf -- '--- %s\n' "$*" >> "$log"
  if [[ -n $message ]]; then
    say "$message"
    while sleep 20 > /dev/null 2>&1 && kill -0 $$ 2> /dev/null; do
      say "... still at it, $SECONDS s so far"
    done < /dev/null 9>&- &
    beat=$!
  fi
  "$@" >> "$log" 2>&1 < /dev/null || status=$?
  if [[ -n $beat ]]; then
    kill "$beat" 2> /dev/null || true
    wait "$beat" 2> /dev/null || true
  fi
  return "$status"
}

# cpu, gpu or container. Asked of the driver each time, since a GPU can come
# later; an environment made for a GPU also works without one.
machine_flavour() {
  if container_stack > /dev/null; then
    echo container
  elif [[ $(stamped flavour) == gpu ]] ||
    { have nvidia-smi && lists_a_gpu; }; then
    echo gpu
  else
    echo cpu
  fi
}

# A driver that hangs counts as none. grep reads to the end: one that leaves
# earlier would end nvidia-smi, and the pipe, with an error.
lists_a_gpu() {
  timeout 30 nvidia-smi -L 2> /dev/null | grep '^GPU ' > /dev/null
}

requirements_file() {
  case $stack in
    tf1) echo "$root/requirements.txt" ;;
    *) echo "$root/requirements-$stack.txt" ;;
  esac
}

# The pinned packages of file $1 for this machine, one a line, less what pip
# does not install: Horovod, and the wheel that Triton is taken out of.
pins() {
  awk -v flavour="$flavour" -v stack="$stack" '
    /^# -- GPU/ { gpu_only = 1 }
    /^#/ || /^[ \t]*$/ || /^(horovod|nvidia-pytriton)==/ { next }
    gpu_only && flavour != "gpu" { next }
    flavour == "gpu" {
      if (stack == "tf1") sub(/^tensorflow==/, "tensorflow-gpu==")
      if (stack == "tf2") sub(/^tensorflow-cpu==/, "tensorflow==")
    }
    { print }' "$1"
}

# Version of package $1 in the stack's list; nothing if it is not there.
pinned() { sed -n "s/^$1==\([^ ;]*\).*/\1/p" "$(requirements_file)"; }

# All that shapes the environment beside the tests' packages and the tools. The
# place is part of it: scripts in bin/ name it, so a moved checkout is new.
environment_key() {
  {
    echo "$setup_version $stack $flavour $venv" \
      "${BERT_BASE_PYTHON-} ${NVIDIA_TENSORFLOW_VERSION-}"
    cat "$(requirements_file)"
  } | sha256sum | cut -c1-64
}
tests_key() { sha256sum < "$root/requirements-test.txt" | cut -c1-64; }

# Value of field $1 in the stamp; nothing without one.
stamped() { [[ ! -f $stamp ]] || sed -n "s/^$1 //p" "$stamp"; }

# What is wrong with the environment as a whole; nothing if it is fine.
environment_fault() {
  local found
  if [[ ! -f $stamp ]]; then
    echo "was left half made"
  elif [[ $(stamped key) != "$(environment_key)" ]]; then
    echo "was made from other lists or elsewhere"
  elif ! found=$("$venv/bin/python" -I "$root/scripts/setup/environment.py" \
    check "$stamp" 2> /dev/null); then
    echo "is broken: ${found:-its Python does not start}"
  fi
}

# Written last and in one piece: an environment without a stamp is half made.
write_stamp() {
  local found
  found=$("$venv/bin/python" -I "$root/scripts/setup/environment.py" versions \
    2>> "$log") ||
    die "TensorFlow does not start in the new environment (log: $log)"
  {
    printf 'key %s\nflavour %s\n' "$(environment_key)" "$flavour"
    printf 'tests %s\ntools %s\n' "$1" "$(build_tools)"
    printf 'kernels %s\nlibrary %s\n' "$(kernels_key)" "$2"
    printf '%s\n' "$found"
    "$venv/bin/python" -I "$root/scripts/setup/environment.py" packages
  } > "$stamp.new"
  mv -- "$stamp.new" "$stamp"
}

# pip with the exact list on standard input; ends set-up with one clear line.
pip_install() {
  local list=$venv/requirements.txt reason
  cat > "$list"
  run_logged "$1" "$venv/bin/python" -m pip install --no-compile \
    --no-build-isolation "${@:2}" -r "$list" && return
  if tail -n 40 "$log" | grep -qE "$no_index"; then
    die "pip cannot reach a package index: no network? (log: $log)"
  fi
  reason=$(grep -aE '^ *(ERROR|OSError)' "$log" | tail -n 1)
  die "pip could not install the packages: ${reason:-see the log} (log: $log)"
}

# What this project needs beside TensorFlow, for an NGC container, whose own
# packages stay as they are. Reads pins, writes those to add.
container_additions() {
  "$venv/bin/python" -m pip list -q --format freeze 2>> "$log" |
    grep -F '==' > "$venv/constraints.txt"
  awk '
    function plain(name) {
      sub(/[=;@ ].*/, "", name); gsub(/[_.]/, "-", name); return tolower(name)
    }
    NR == FNR { there[plain($0)] = 1; next }
    plain($0) in there { next }
    plain($0) !~ /^(tensor|keras|numpy|protobuf|grpcio|h5py)/
  ' "$venv/constraints.txt" -
}

# The packages of list file $1 into the environment: exactly these and nothing
# that they would pull in, which `pip check` then shows to be complete.
install_list() {
  local list
  list=$(pins "$1")
  if [[ $flavour == container ]]; then
    list=$(container_additions <<< "$list")
    [[ -z $list ]] || pip_install "what the container lacks of ${1##*/}" \
      -c "$venv/constraints.txt" <<< "$list"
    return
  fi
  if grep -qE "$build_packages" <<< "$list"; then
    pip_install '' --no-deps < <(grep -E "$build_packages" <<< "$list")
  fi
  pip_install "$(wc -l <<< "$list") packages of ${1##*/}" --no-deps <<< "$list"
  run_logged '' "$venv/bin/python" -m pip check ||
    die "${1##*/} is not complete: $(tail -n 1 "$log") (log: $log)"
}

# A fresh environment from interpreter $1.
make_environment() {
  local options=()
  [[ $flavour != container ]] || options+=(--system-site-packages)
  run_logged "new environment with $1" "$1" -m venv "${options[@]}" "$venv" ||
    die "$1 cannot make an environment (log: $log)"
  install_list "$(requirements_file)"
}

# Makes room for a new environment. What was whole before is kept beside it.
set_aside() {
  [[ ! -f $stamp ]] || rm -rf -- "$venv.old"
  trap put_back EXIT   # before the move, else a signal here would leave it so
  [[ ! -f $stamp ]] || mv -- "$venv" "$venv.old"
  rm -rf -- "$venv"
}
