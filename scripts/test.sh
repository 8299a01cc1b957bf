#!/usr/bin/env bash
# Runs the tests, on every stack that this machine can have.
#
#   bash scripts/test.sh [--stack tf1|tf2|all] [pytest arguments]
#   bash scripts/test.sh --stack tf2 tests/test_modeling.py -k gelu
#   bash scripts/test.sh --slow         # also the tests that take minutes
#
# Sets up first (scripts/setup.sh --with_tests and scripts/trtis/setup.sh, since
# tests start a real server). Expect ten to twenty minutes a stack on two cores;
# the stacks run in turn, since both use all cores: as many test files at once
# as there are cores and one more, up to four (-n 0 after the options runs one
# after the other). What would show the same on both is tested once. A closing
# table tells how each stack went; the exit status is 0 if all of them passed.
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv_root=$(realpath -m -- "${BERT_VENV_DIR:-$root/.venv}")
# shellcheck source=scripts/setup/python.sh
source "$root/scripts/setup/python.sh"

unset BERT_TESTED
choice=${BERT_STACK:-all} arguments=() stacks=() summary=() failed=0 passed=0
serving=unknown
while (($#)); do
  case $1 in
    --stack)
      choice=${2-}
      shift
      ;;
    --stack=*) choice=${1#*=} ;;
    -h | --help)
      sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit
      ;;
    *) arguments+=("$1") ;;
  esac
  shift || break
done
case $choice in
  tf1 | tf2) stacks=("$choice") ;;
  all) mapfile -t stacks < <(possible_stacks) ;;
  *)
    echo "test.sh: --stack has to be tf1, tf2 or all" >&2
    exit 2
    ;;
esac
if ((${#stacks[@]} == 0)); then stacks=(tf2); fi  # set-up tells what is amiss

# One more than cores: many tests wait for a child, or a kill's aftermath.
cores=$(nproc 2>/dev/null) || cores=1
workers=$((cores < 4 ? cores + 1 : 4))

# Once for both stacks. Without a Python for it the tests of it are left out.
set_up_serving() {
  [[ $serving == unknown ]] || return 0
  if bash "$root/scripts/trtis/setup.sh"; then
    serving=there
  elif find_python serving > /dev/null; then
    return 1
  else
    serving=missing
  fi
}

# An own folder for each stack: pytest's cache holds what failed last.
run_tests() {
  bash "$root/scripts/setup.sh" --stack "$1" --with_tests || return
  set_up_serving || return
  (
    cd -- "$root"
    PATH=$venv_root/$1/bin:$PATH "$venv_root/$1/bin/python" -m pytest -q \
      -o "cache_dir=.pytest_cache/$1" -n "$workers" --dist loadfile \
      ${arguments[@]+"${arguments[@]}"}
  )
}

for stack in "${stacks[@]}"; do
  printf '\n== %s\n' "$stack"
  start=$SECONDS status=0
  run_tests "$stack" || status=$?
  if ((status == 0)); then
    passed=1 result=passed
    export BERT_TESTED=$stack  # what shows the same on both is done
  elif [[ $choice == all ]] && ! find_python "$stack" > /dev/null; then
    result="left out: its Python could not be fetched"
  else
    failed=1 result="FAILED (exit status $status)"
  fi
  summary+=("$stack  $result, $((SECONDS - start)) s")
done
printf '\n'
[[ $choice != all || ${#stacks[@]} == 2 ]] ||
  echo "only ${stacks[*]}: this machine has no Python for the other stack"
[[ $serving != missing ]] ||
  echo "no server was tested: this machine has no Python for it"
printf '%s\n' "${summary[@]}"
exit $((failed || !passed))
