# shellcheck shell=bash disable=SC2034,SC2154
# The machines of a run: their file, and whether they can do it; sourced by
# lib.sh.
#
# A file has a machine a line: NAME, NAME:RANKS or NAME slots=RANKS; # begins a
# comment. Without a number a machine gets num_gpus ranks. The first one runs
# rank 0, which writes the run folder: let it be this machine, or let both
# share that folder. Checkout, environment and records lie at the same paths
# everywhere.

host_names=() host_slots=() remote_command=()

read_hosts() {
  # The machines in file $1 into host_names, their ranks into host_slots.
  local line number=0
  local -A seen=()
  local form='^([A-Za-z0-9][A-Za-z0-9._-]*)((:|[[:space:]]+slots=)'
  form+='([1-9][0-9]*))?$'
  [[ -f $1 && -r $1 ]] || usage_error "--hosts: cannot read the file $1"
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    line=${line%%#*}
    line=${line%"${line##*[![:space:]]}"} line=${line#"${line%%[![:space:]]*}"}
    [[ -n $line ]] || continue
    [[ $line =~ $form ]] || usage_error "$1 line $number: expected NAME," \
      "NAME:RANKS or NAME slots=RANKS, found '$line'"
    [[ -z ${seen[${BASH_REMATCH[1]}]-} ]] || usage_error "$1 line $number:" \
      "host ${BASH_REMATCH[1]} stands there twice"
    seen[${BASH_REMATCH[1]}]=yes
    host_names+=("${BASH_REMATCH[1]}")
    host_slots+=("${BASH_REMATCH[4]}")
  done <"$1"
  ((${#host_names[@]})) || usage_error "--hosts: $1 names no machine"
  read -ra remote_command <<<"$remote_shell"
  command -v -- "${remote_command[0]}" >/dev/null ||
    missing "--remote_shell: there is no program ${remote_command[0]}"
  [[ ${remote_command[0]##*/} != ssh ]] || remote_command+=(
    -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=10
    -o ServerAliveCountMax=3)
}

is_here() {
  # Whether host $1 is this machine.
  local address own
  own=$(uname -n)   # HOSTNAME may be that of a caller
  [[ $1 != localhost && $1 != "$own" && $1 != "${own%%.*}" ]] || return 0
  address=$(getent ahostsv4 "$1" | awk 'NR == 1 {print $1}') || return 1
  [[ $address == 127.* || -n $address &&
    " $(hostname -I 2>/dev/null) " == *" $address "* ]]
}

on_host() {
  # Runs shell command $2 on host $1, for $3 seconds at most.
  local words
  if is_here "$1"; then
    timeout "$3" sh -c "$2" </dev/null
  else
    quote "$2"   # for the shell over there, which may be any
    timeout "$3" "${remote_command[@]}" "$1" "sh -c $REPLY" </dev/null
  fi
}

ask_hosts() {
  # Asks this machine and all hosts at once what they have, into the arrays
  # answers and complaints; this machine is number 0.
  local folder command i
  local -a names=(localhost "${host_names[@]}") asked=()
  quote "$root"
  command="cd $REPLY 2>/dev/null && test -f scripts/lib/versions.py || "
  command+="{ echo here: no checkout; exit; }; "
  quote "$python"
  command+="command -v $REPLY >/dev/null || { echo here: no Python; exit; }; "
  command+="exec $REPLY -W ignore scripts/lib/versions.py"
  folder=$(mktemp -d)
  for i in "${!names[@]}"; do
    on_host "${names[i]}" "$command" 60 >"$folder/$i" 2>"$folder/$i.errors" &
    asked+=("$!")
  done
  wait "${asked[@]}" || true
  answers=() complaints=()
  for i in "${!names[@]}"; do   # a login may say more before and after
    answers+=("$(awk '/^here: / {last = $0} END {print last}' "$folder/$i")")
    complaints+=("$(tr -d '\r' <"$folder/$i.errors" | tail -n 1)")
  done
  rm -rf -- "$folder"
}

check_hosts() {
  # Ends with a line on the first host that cannot take part; the fewest GPUs
  # of all into REPLY.
  local i name slots gpus least=''
  local -a answers complaints
  ask_hosts
  for i in "${!host_names[@]}"; do
    name=${host_names[i]} slots=${host_slots[i]:-${num_gpus:-1}}
    check_host "$name" "${answers[i+1]}" "${answers[0]}" "${complaints[i+1]}"
    gpus=${answers[i+1]##*gpus=}
    ((gpus == 0 || slots <= gpus)) ||
      die "host $name is to run $slots ranks, but it offers $gpus GPUs"
    if [[ -z $least ]] || ((gpus < least)); then least=$gpus; fi
  done
  REPLY=$least
}

check_host() {
  # Host $1 answered $2, this machine $3; $4 is what ssh complained of last.
  local name=$1 answer=$2 word key
  local -A our=()
  case $answer in
    'here: no checkout') die "host $name has no checkout at $root" ;;
    'here: no Python') die "host $name has no Python at $python: run bash" \
      "$root/scripts/setup.sh there" ;;
    'here: '*=*) ;;
    *) die "host $name gives no answer by ${remote_command[0]##*/}${4:+: $4}" ;;
  esac
  for word in ${3#here: }; do our[${word%%=*}]=${word#*=}; done
  for word in ${answer#here: }; do
    key=${word%%=*}
    [[ $key != gpus && ${our[$key]-} != "${word#*=}" ]] || continue
    [[ $key != sources ]] || die "host $name has other Python sources in" \
      "$root than this machine"
    die "host $name has $key ${word#*=}, this machine ${our[$key]-none}"
  done
}

end_everywhere() {
  # Kills what is left of the run in run_dir, here and on the other hosts but
  # one that is known not to answer.
  local name command failed=''
  local -a asked=()
  quote "$root/scripts/lib/rank.sh"
  command="bash $REPLY --end "
  quote "$run_dir"
  command+=$REPLY
  [[ ! -s $run_dir/launch.failed ]] || failed=$(<"$run_dir/launch.failed")
  for name in localhost "${host_names[@]}"; do
    [[ $failed != "host $name "* ]] || continue
    on_host "$name" "$command" 20 >/dev/null 2>&1 &
    asked+=("$!")
  done
  wait "${asked[@]}" || true
}
