# shellcheck shell=bash
# Values of arguments: their kinds, checks and spellings; sourced by lib.sh.
#
# Kinds: count (1, 2, ...), whole (0, 1, ...), number (above 0), delay (0 or
# above), real (any number), fraction (0 to 1), flag (true or false), precision,
# text, path, paths (globs joined by commas) and choice:a|b. "?" behind a kind
# allows the empty value.

absolute() {
  # Path $1 as seen from the caller's folder, into REPLY, in the one spelling by
  # which a run is found again. Links to folders are followed; a linked file
  # keeps its name, since what lies beside the link belongs to it.
  local path=$1 name
  REPLY=$path
  [[ $path != *://* ]] || return 0
  if [[ -d $path ]]; then
    REPLY=$(realpath -m -- "$path")
    return
  fi
  while [[ $path == */ ]]; do path=${path%/}; done
  name=${path##*/} path=${path%"${path##*/}"}
  REPLY=$(realpath -m -- "${path:-.}")
  REPLY=${REPLY%/}/$name
}

absolute_list() {
  # The same for each of the paths in $1, which commas join. From its first glob
  # on a path stays as it is: what stands there is not the name of a folder.
  local piece fixed glob joined=''
  while IFS= read -r -d , piece; do
    fixed=${piece%%[*?[]*}
    if [[ $fixed == "$piece" ]]; then
      absolute "$piece"
    else
      fixed=${fixed%"${fixed##*/}"} glob=${piece#"$fixed"}
      absolute "${fixed:-.}"
      REPLY=${REPLY%/}/$glob
    fi
    joined+=${joined:+,}$REPLY
  done <<<"$1,"
  REPLY=$joined
}

quote() {
  # $1 as a shell reads it back, into REPLY.
  REPLY=$1
  [[ $1 =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || REPLY="'${1//\'/\'\\\'\'}'"
}

check_value() {
  # Brings value $2 of kind $1 to its one spelling in REPLY; where it is wrong,
  # fails and leaves in REPLY what was expected.
  local kind=$1 value=$2
  REPLY=$value
  case $kind in
    text) return 0 ;;
    path) absolute "$value"; return 0 ;;
    paths) absolute_list "$value"; return 0 ;;
    count)
      [[ $value =~ ^[1-9][0-9]{0,17}$ ]] && return 0
      REPLY='a whole number above 0' ;;
    whole)
      [[ $value =~ ^(0|[1-9][0-9]{0,17})$ ]] && return 0
      REPLY='a whole number, 0 or more' ;;
    number)
      [[ $value =~ ^([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$ &&
        ${value%%[eE]*} == *[1-9]* ]] && return 0
      REPLY='a number above 0' ;;
    delay)
      # -1 is another word for none in the reference.
      if [[ $value =~ ^(-1|0+(\.0*)?|\.0+)$ ]]; then REPLY=0; return 0; fi
      check_value number "$value" && return 0
      REPLY='a number, 0 or more' ;;
    real)
      [[ $value =~ ^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$ ]] &&
        return 0
      REPLY='a number' ;;
    fraction)
      [[ $value =~ ^(0?\.[0-9]+|[01]\.0*|[01])$ ]] && return 0
      REPLY='a number from 0 to 1' ;;
    flag)
      REPLY=${value,,}
      [[ $REPLY == true || $REPLY == false ]] && return 0
      REPLY='true or false' ;;
    precision)
      case $value in
        fp32 | fp16 | bf16) return 0 ;;
        # What older launchers called it.
        amp | manual_fp16) REPLY=fp16; return 0 ;;
      esac
      REPLY='fp32, fp16 (or amp) or bf16' ;;
    choice:*)
      [[ $value != *'|'* && "|${kind#choice:}|" == *"|$value|"* ]] && return 0
      REPLY=${kind#choice:} REPLY=${REPLY//|/ or } ;;
    *) REPLY="of a kind that is known ($kind is not)" ;;
  esac
  return 1
}

edit_distance() {
  # Levenshtein distance of $1 and $2, into REPLY.
  local a=$1 b=$2 i j above diagonal cost
  local -a row
  for ((j = 0; j <= ${#b}; j++)); do row[j]=$j; done
  for ((i = 1; i <= ${#a}; i++)); do
    diagonal=${row[0]} row[0]=$i
    for ((j = 1; j <= ${#b}; j++)); do
      above=${row[j]} cost=1
      if [[ ${a:i-1:1} == "${b:j-1:1}" ]]; then cost=0; fi
      row[j]=$((above < row[j-1] ? above + 1 : row[j-1] + 1))
      if ((diagonal + cost < row[j])); then row[j]=$((diagonal + cost)); fi
      diagonal=$above
    done
  done
  REPLY=${row[${#b}]}
}

read_config_line() {
  # Line $1 of a config file as name and value in config_name and config_value
  # (both empty for a blank line or a comment); fails where it is neither.
  local line=${1%$'\r'}
  config_name='' config_value=''
  [[ $line =~ ^[[:space:]]*(#|$) ]] && return 0
  [[ $line =~ ^[[:space:]]*([A-Za-z0-9_]+)[[:space:]]*=[[:space:]]*(.*)$ ]] ||
    return 1
  config_name=${BASH_REMATCH[1]} config_value=${BASH_REMATCH[2]}
  local quoted='^("([^"]*)"|'\''([^'\'']*)'\'')[[:space:]]*(#.*)?$'
  if [[ $config_value =~ $quoted ]]; then
    config_value=${BASH_REMATCH[2]}${BASH_REMATCH[3]}
  else
    if [[ $config_value == '#'* ]]; then config_value=''; fi
    config_value=${config_value%%[[:space:]]#*}
    config_value=${config_value%"${config_value##*[![:space:]]}"}
  fi
}
