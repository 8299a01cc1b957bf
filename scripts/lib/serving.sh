# shellcheck shell=bash
# What the scripts that start a server or wait for one check; sourced after
# lib.sh.

port_names=(http_port grpc_port metrics_port)

check_port() {
  # That argument $1 is a port.
  ((${!1} <= 65535)) ||
    die "--$1 is ${!1}, but has to be 65535 or less"
}

check_ports() {
  # That the three are ports and differ, before anything is done.
  local name other
  for name in "${port_names[@]}"; do
    check_port "$name"
    for other in "${port_names[@]}"; do
      [[ $other != "$name" ]] || break
      ((${!name} != ${!other})) || die "--$other and --$name are both" \
        "${!name}; give three different ports"
    done
  done
}

check_free() {
  # That nobody listens on the ports of address $1 yet. A machine that says
  # nothing counts as no.
  local name
  for name in "${port_names[@]}"; do
    # shellcheck disable=SC2016  # the inner bash expands it
    ! timeout --foreground 5 bash -c ': <>"/dev/tcp/$0/$1"' "$1" "${!name}" \
      2>/dev/null || die "port ${!name} (--$name) is taken by another" \
      "program; give another port or end that one"
  done
}

check_log() {
  # That the server's words can go to $log, if they shall.
  [[ -z $log ]] || { mkdir -p -- "${log%/*}" && : >>"$log"; } 2>/dev/null ||
    die "--log: cannot write to $log"
}

numeric_address() {
  # The address of host $1 in numbers, IPv6 without brackets, into REPLY. A
  # name's IPv4 one: what listens on localhost is asked at 127.0.0.1.
  local host=${1#[} version=4
  host=${host%]}
  if [[ $host == *:* ]]; then version=6; fi
  REPLY=$(getent "ahostsv$version" "$host") ||
    die "--host: $1 has no address of IPv$version; give an address of this" \
      "machine, such as 127.0.0.1"
  REPLY=${REPLY%%[[:space:]]*}
}

bracketed() {
  # Address $1 as it stands before a port, into REPLY.
  REPLY=$1
  if [[ $1 == *:* && $1 != '['* ]]; then REPLY="[$1]"; fi
}
