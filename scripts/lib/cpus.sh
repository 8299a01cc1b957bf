# shellcheck shell=bash
# Which CPUs a rank should keep to; sourced by rank.sh.
#
# A rank gets CPUs of the NUMA node that its GPU hangs on, an equal part for
# each of the ranks there; without GPUs, or where the machine does not tell, an
# equal part of all CPUs, node by node. Both threads of a core stay together
# while there are cores enough, since two ranks on one core slow each other.
# Only CPUs that this process may use count. SYSFS_ROOT [/sys] and CPUS_ALLOWED
# [as the kernel says] describe another machine, for tests.

sysfs=${SYSFS_ROOT:-/sys}

expand_cpus() {
  # The CPUs of a list such as 0-3,8 into the array cpus.
  local piece
  local -a pieces=()
  cpus=()
  IFS=, read -ra pieces <<<"$1"
  for piece in "${pieces[@]}"; do
    [[ $piece =~ ^[0-9]+(-[0-9]+)?$ ]] || continue
    mapfile -t -O "${#cpus[@]}" cpus < <(seq "${piece%-*}" "${piece#*-}")
  done
}

read_sysfs() {
  # Content of file $1 under /sys, into REPLY; empty where there is none.
  REPLY=''
  [[ ! -r $sysfs/$1 ]] || REPLY=$(<"$sysfs/$1")
}

usable_cpus() {
  # CPUs of the NUMA nodes $@ that this process may use, into the array cpus.
  local list=${CPUS_ALLOWED-} node cpu
  local -A allowed=()
  local -a found=()
  [[ -n $list ]] ||
    list=$(awk '/^Cpus_allowed_list:/ {print $2}' /proc/self/status)
  expand_cpus "$list"
  for cpu in "${cpus[@]}"; do allowed[$cpu]=yes; done
  for node; do
    read_sysfs "devices/system/node/node$node/cpulist"
    expand_cpus "$REPLY"
    for cpu in "${cpus[@]}"; do
      if [[ -n ${allowed[$cpu]-} ]]; then found+=("$cpu"); fi
    done
  done
  cpus=("${found[@]}")
  (($#)) || expand_cpus "$list"
}

share_of_cpus() {
  # Part $1 of $2 of the CPUs in the array cpus, into REPLY as a list; empty
  # where there are fewer CPUs than parts.
  local part=$1 parts=$2 cpu first
  local -a order=() units=()
  local -A threads=()
  REPLY=''
  ((${#cpus[@]} >= parts)) || return 0
  for cpu in "${cpus[@]}"; do
    read_sysfs "devices/system/cpu/cpu$cpu/topology/thread_siblings_list"
    first=${REPLY%%[,-]*} first=${first:-$cpu}
    [[ -n ${threads[$first]-} ]] || order+=("$first")
    threads[$first]+=${threads[$first]:+,}$cpu
  done
  for first in "${order[@]}"; do units+=("${threads[$first]}"); done
  ((${#units[@]} >= parts)) || units=("${cpus[@]}")
  local from=$((part * ${#units[@]} / parts))
  local end=$(((part + 1) * ${#units[@]} / parts))
  local IFS=,
  REPLY="${units[*]:from:end-from}"
}

gpu_nodes() {
  # NUMA nodes of the GPUs of the $1 ranks here, in the ranks' order, into the
  # array nodes; an empty array where one of them is not known.
  local index uuid bus wanted
  local -a lines=() order=()
  local -A place=()
  nodes=()
  command -v nvidia-smi >/dev/null || return 0
  mapfile -t lines < <(timeout 30 nvidia-smi \
    --query-gpu=index,uuid,pci.bus_id --format=csv,noheader 2>/dev/null)
  for wanted in "${lines[@]}"; do
    IFS=', ' read -r index uuid bus <<<"$wanted"
    bus=${bus,,}
    place[$index]=${bus: -12} place[$uuid]=${bus: -12}   # 0000:3b:00.0
    order+=("$index")
  done
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    IFS=, read -ra order <<<"$CUDA_VISIBLE_DEVICES"
  fi
  for wanted in "${order[@]:0:$1}"; do
    [[ -n $wanted ]] || break
    read_sysfs "bus/pci/devices/${place[$wanted]:-none}/numa_node"
    [[ $REPLY =~ ^[0-9]+$ ]] || break
    nodes+=("$REPLY")
  done
  ((${#nodes[@]} == $1)) || nodes=()
}

rank_cpus() {
  # CPUs of rank $1 of the $2 on this machine, into REPLY as a list; empty:
  # better none in particular.
  local rank=$1 size=$2 path before=0 i
  local -a nodes=() cpus=()
  local -A peers=()
  gpu_nodes "$size"
  for i in "${!nodes[@]}"; do
    if ((i < rank)) && [[ ${nodes[i]} == "${nodes[rank]}" ]]; then
      before=$((before + 1))
    fi
    peers[${nodes[i]}]=$((${peers[${nodes[i]}]-0} + 1))
  done
  for i in "${!peers[@]}"; do
    usable_cpus "$i"
    ((${#cpus[@]} >= peers[$i])) || nodes=()   # then all divide all
  done
  if ((${#nodes[@]})); then
    usable_cpus "${nodes[rank]}"
    share_of_cpus "$before" "${peers[${nodes[rank]}]}"
    return
  fi
  for path in "$sysfs"/devices/system/node/node[0-9]*/; do
    if [[ -d $path ]]; then path=${path%/} nodes+=("${path##*/node}"); fi
  done
  mapfile -t nodes < <(printf '%s\n' "${nodes[@]}" | sort -n)
  [[ -n ${nodes[0]-} ]] || nodes=()
  usable_cpus "${nodes[@]}"
  share_of_cpus "$rank" "$size"
}
