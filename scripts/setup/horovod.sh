# shellcheck shell=bash disable=SC2154
# Horovod, built against the TensorFlow of an environment, and the system
# packages for it. Sourced by setup.sh; defines functions only.

# What the build would find now: a change means that Horovod is built anew (or
# at last) at the next set-up. Without mpirun, what was linked to MPI cannot
# load.
build_tools() {
  local mpi=no
  if have mpirun && have mpicxx; then
    mpi=$(mpirun --version 2> /dev/null | grep -oE '[0-9]+(\.[0-9]+)+' |
      head -1) || mpi=unknown
  fi
  printf 'g++%s_cmake%s_make%s_mpi%s_nccl%s\n' \
    "$(g++ -dumpversion 2> /dev/null || echo no)" \
    "$(have cmake && echo yes || echo no)" \
    "$(have make && echo yes || echo no)" "$mpi" \
    "$([[ -e /usr/include/nccl.h ]] && have nvcc && echo yes || echo no)"
}

# Whether Horovod is to be built: not tried yet with these tools, or in vain an
# hour ago or earlier (the network may be back). Until then a line tells.
horovod_due() {
  [[ -n $horovod && $flavour != container ]] || return 1
  [[ $(stamped tools) == "$(build_tools)" ]] || return 0
  [[ $(stamped horovod) == no ]] || return 1
  [[ -z $(find "$stamp" -mmin +60) ]] || return 0
  say "Horovod is missing, its build failed (log: $log); set-up tries again" \
    "after an hour or with other tools"
  return 1
}

# Debian packages that the build lacks, one a line.
missing_packages() {
  have g++ || echo g++
  have cmake || echo cmake
  have make || echo make
  { have mpirun && have mpicxx; } || printf '%s\n' libopenmpi-dev openmpi-bin
}

is_root() { ((EUID == 0)); }

# Installs Debian packages as root; anyone else gets the command to run. One
# at a time, since two of them would trip over apt's locks.
install_packages() {
  local command="apt-get install -y --no-install-recommends $*"
  if ! have apt-get; then
    say "missing (Debian's names): $*; going on without"
  elif ! is_root; then
    say "going on without what this installs: sudo $command"
  elif ! run_logged "system packages: $*" env DEBIAN_FRONTEND=noninteractive \
    flock "$venv_root" bash -c "apt-get update -q; $command"; then
    say "going on without: could not install them (log: $log)"
  fi
  hash -r
}

# The wheel's place outside the checkout, named by all that shapes it, so that
# another clone on this machine does not build again. $1: TensorFlow's pin.
horovod_folder() {
  local system=unknown python
  python=$("$venv/bin/python" -c \
    'import sys; print("%d.%d" % sys.version_info[:2])')
  if [[ -r /etc/os-release ]]; then
    # shellcheck source=/dev/null
    system=$(. /etc/os-release && echo "${ID-linux}${VERSION_ID-}")
  fi
  printf '%s/bert-tf/horovod-%s_%s_python%s_%s_%s_%s\n' \
    "${XDG_CACHE_HOME:-${HOME:-$venv_root}/.cache}" "$horovod" "${1/==/-}" \
    "$python" "$(build_tools)" "$system" "$(uname -m)"
}

# Builds the wheel into folder $1, whole or not at all. pip's own cache of
# built wheels is left out of it: it would hand over one that was built
# against another TensorFlow.
build_horovod() {
  local folder=$1 partial options=(HOROVOD_WITH_TENSORFLOW=1
    HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_GLOO=1)
  case $(build_tools) in
    *mpino*) options+=(HOROVOD_WITHOUT_MPI=1) ;;
    *) options+=(HOROVOD_WITH_MPI=1) ;;
  esac
  if [[ $flavour == gpu && $(build_tools) == *ncclyes* ]]; then
    options+=(HOROVOD_GPU_OPERATIONS=NCCL)
  fi
  mkdir -p "${folder%/*}" && partial=$(mktemp -d "$folder.XXXXXX") || return 1
  if run_logged "Horovod $horovod, built from source: minutes, once a machine" \
    env PATH="$venv/bin:$PATH" "${options[@]}" "$venv/bin/python" -m pip wheel \
    -q --no-cache-dir --no-deps --no-build-isolation -w "$partial" \
    "horovod==$horovod"; then
    rm -rf -- "$folder" && mv -- "$partial" "$folder"
  else
    rm -rf -- "$partial"
    return 1
  fi
}

# Puts Horovod into the environment, from the cache or built; a failure is one
# line and not the end, since one process needs no Horovod. $1: TensorFlow's
# pin.
install_horovod() {
  local folder missing try
  mapfile -t missing < <(missing_packages)
  ((${#missing[@]} == 0)) || install_packages "${missing[@]}"
  folder=$(horovod_folder "$1")
  for try in cached built; do
    if [[ $try == built ]]; then build_horovod "$folder" || break; fi
    [[ -d $folder ]] || continue
    run_logged "Horovod $horovod ($try)" "$venv/bin/python" -m pip install -q \
      --no-deps --no-compile --force-reinstall "$folder"/horovod-*.whl &&
      run_logged '' "$venv/bin/python" -c 'import horovod.tensorflow' && return
  done
  "$venv/bin/python" -m pip uninstall -q -y horovod >> "$log" 2>&1 || true
  say "Horovod could not be built; one process works without it (log: $log)"
}
