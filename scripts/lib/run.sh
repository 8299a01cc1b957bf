# shellcheck shell=bash
# Run folders and the program that runs in one; sourced by lib.sh.
#
# A run folder holds the checkpoints, the log, launch.hash (of the program and
# all its flags but output and log: equal settings find the folder again) and,
# once the program has ended well, launch.done. The program holds a lock on
# .lock, but only once TensorFlow is loaded; the launcher holds launch.hash.

create_logfile=true
exec {held}</dev/null   # until hold_run_dir puts its lock there

name_new_run() {
  # A folder of its own for a run of tag $1, into run_dir.
  local name copy=2
  name=$results_dir/$1_$(date +%Y%m%d-%H%M%S)
  run_dir=$name
  ! $dry_run || return 0
  mkdir -p -- "$results_dir" 2>/dev/null || true
  until mkdir -- "$run_dir" 2>/dev/null; do
    [[ -e $run_dir ]] || die "cannot write to $results_dir: set RESULTS_DIR" \
      "to a folder that can be written"
    run_dir=${name}_$((copy++))
  done
}

choose_run_dir() {
  # Settles run_dir for tag $1 and hash $2: named, to be gone on with, or new;
  # what there is to tell of it into REPLY.
  local tag=$1 hash=$2 folder
  REPLY=''
  if [[ -n $run_dir ]]; then
    if $fresh && [[ -n $(find "$run_dir/" -maxdepth 1 -mindepth 1 2>&-) ]]; then
      die "--fresh: $run_dir is not empty; name another --run_dir"
    fi
    [[ ! -f $run_dir/launch.hash || $(<"$run_dir/launch.hash") == "$hash" ]] ||
      REPLY="the settings differ from those that $run_dir was begun with"
    return 0
  fi
  if ! $fresh; then
    for folder in "$results_dir/$tag"_*/; do   # in the order of their dates
      folder=${folder%/}
      if [[ -f $folder/launch.hash && ! -e $folder/launch.done &&
        $(<"$folder/launch.hash") == "$hash" ]]; then run_dir=$folder; fi
    done
  fi
  if [[ -n $run_dir ]]; then
    REPLY="going on with the unfinished run of equal settings in $run_dir"
    REPLY+=" (--fresh begins a new one)"
  else
    name_new_run "$tag"
  fi
}

hold_run_dir() {
  # Ends where another run lives in run_dir, before anything there is touched.
  # Without flock(1) the program finds that out by itself, a little later.
  local lock=$run_dir/.lock holder=''
  { mkdir -p -- "$run_dir" && exec {held}>>"$run_dir/launch.hash"; } \
    2>/dev/null || die "cannot write to the run folder $run_dir"
  command -v flock >/dev/null || return 0
  if [[ -f $lock ]] && ! is_free "$lock"; then
    holder=$(<"$lock")
  elif is_free "$held"; then
    return 0
  fi
  die "another run${holder:+ (process $holder)} is going on in $run_dir:" \
    "wait for it, stop it, or give another --run_dir"
}

is_free() {
  # Whether nobody holds $1, a file or a descriptor; the latter is then held.
  # Waits 2 seconds for a holder that was killed and is not gone yet. 75 says
  # that somebody does: a file system without locks is no reason to end.
  local status=0
  if [[ $1 == /* ]]; then set -- "$1" true; fi
  flock -w 2 -E 75 "$@" 2>/dev/null || status=$?
  ((status != 75))
}

open_run() {
  # Marks run_dir as begun with hash $1 and heads log $2 with command line $3.
  { rm -f -- "$run_dir/launch.done" &&
    printf '%s\n' "$1" >"$run_dir/launch.hash" &&
    { [[ -z $2 ]] || printf '# %s\n%s\n' "$(date '+%F %T %z')" "$3" >>"$2"; }
  } 2>/dev/null || die "cannot write to the run folder $run_dir"
  note "run folder $run_dir, log ${2:-none}"
}

join_words() {
  # The arguments as a shell reads them back, into REPLY.
  local word line=''
  for word; do quote "$word"; line+=${line:+ }$REPLY; done
  REPLY=$line
}

run_python() {
  # Runs program $2 of the checkout with the flags that follow, in a run folder
  # of tag $1; ends the script with the program's exit status. How many ranks
  # do it is no part of the settings: a run may go on with more or fewer.
  local tag=$1 program=$root/$2 hash log='' copied='' line told
  local -a command
  shift 2
  set -- "$@" "${extra_flags[@]}"
  hash=$(printf '%s\0' "${program##*/}" "$@" | sha256sum)
  hash=${hash%% *}
  choose_run_dir "$tag" "$hash"
  told=$REPLY
  $dry_run || hold_run_dir
  [[ -z $told ]] || note "$told"
  if $create_logfile; then log=$run_dir/$tag.log; fi
  copied=$log
  command=("$python" "$program" "--output_dir=$run_dir" "$@")
  export PYTHONUNBUFFERED=1   # lines reach the log when they are said
  if $several; then
    command+=(--horovod=true)
    rank_starter
  elif [[ -n $log && -t 2 ]]; then
    # A person at a terminal sees a progress bar: there the program writes to
    # the terminal itself, and plain lines to the log.
    command+=("--log_file=$log") copied=''
  fi
  join_words "${command[@]}"
  line=$REPLY
  if $several; then
    join_words "${starter[@]}"
    line="# $ranks ranks by: $REPLY"$'\n'$line
  fi
  if $dry_run; then
    printf '# run folder: %s\n# log: %s\n%s\n' "$run_dir" "${log:-none}" "$line"
    exit 0
  fi
  open_run "$hash" "$log" "$line"
  run_to_end "$copied" "$log" "${starter[@]}" "${command[@]}"
}
