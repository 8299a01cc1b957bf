# shellcheck shell=bash
# What a server's container needs besides its command; defines functions only.

process_ended() {
  # Whether process $1 has. A zombie has: only its parent has not asked yet how.
  ! grep -q '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$1/status" 2>/dev/null
}

end_container() {
  # Waits until one of the processes $2 ... has ended, then ends the container
  # with label $1, if it is still there. By its label, since a name may belong
  # to the container that was in the way.
  local label=$1 process
  local -a containers
  shift
  while true; do
    for process; do ! process_ended "$process" || break 2; done
    sleep 0.5
  done
  mapfile -t containers < <(docker ps --all --quiet --filter "label=$label")
  ((${#containers[@]})) || return 0
  docker stop -t 30 "${containers[@]}"
  docker rm --force "${containers[@]}"   # one that never came to run
}

end_container_with() {
  # The same in the background, in a session that no signal to ours reaches and
  # that outlives it. The engine runs a container on whatever becomes of the
  # program that asked for it.
  local -a own=()
  ! command -v setsid >/dev/null || own=(setsid)
  # shellcheck disable=SC2016  # the inner bash expands it
  ("${own[@]}" bash -c 'trap "" INT TERM HUP; source "$0"; end_container "$@"' \
    "${BASH_SOURCE[0]}" "$@" </dev/null >/dev/null 2>&1 &)
}

kernels_of() {
  # The library that the model in folder $1 of the repository needs, as the
  # container sees it, into REPLY; empty for none.
  local name file
  REPLY=$(tr '\n' ' ' <"$1/config.pbtxt")
  local pattern='"fused_ops_library"[^"]*"([^"]+)"'
  [[ $REPLY =~ $pattern ]] || { REPLY=''; return; }
  name=${BASH_REMATCH[1]}
  for file in "$1"/[0-9]*/"$name"; do
    [[ -f $file ]] || die "$1/config.pbtxt names the library $name of the" \
      "model's own operations, but no version has it; export the model anew"
    REPLY=/models/${file#"$repository/"}
    return
  done
}

choose_kernels() {
  # The one library of operations that the models need, into kernels; empty for
  # none. Each registers the same operations: a second one ends TensorFlow.
  local config
  kernels=''
  for config in "$repository"/*/config.pbtxt; do
    kernels_of "${config%/*}"
    [[ -n $REPLY ]] || continue
    : "${kernels:=$REPLY}"
    [[ ${REPLY##*/} == "${kernels##*/}" ]] || die "the models need operations" \
      "of two libraries, $kernels and $REPLY: serve each from a repository of" \
      "its own, or export one anew"
  done
}

kernel_words() {
  # What stands before the server's program to load library $1, into
  # kernel_words, and the server's flags for it, into kernel_flags. Only the
  # server gets it: others in the container lack the TensorFlow that it needs,
  # whose place depends on its age and on that of the image.
  local place=/opt/tritonserver/backends/tensorflow
  kernel_flags=()
  place=${place}2:$place
  if [[ $1 == */libbert_1.* ]]; then
    place=/opt/tritonserver/backends/tensorflow1
    kernel_flags=(--backend-config=tensorflow,version=1)
  fi
  # shellcheck disable=SC2016  # the container's bash expands it
  local script='LD_LIBRARY_PATH=$0${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} '
  # shellcheck disable=SC2016
  script+='LD_PRELOAD=$1${LD_PRELOAD:+:$LD_PRELOAD} exec "${@:2}"'
  # shellcheck disable=SC2034
  kernel_words=(bash -c "$script" "$place" "$1")
}
