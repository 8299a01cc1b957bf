# shellcheck shell=bash
# What the launchers share; sourced, never run.
#
#   batch_size=10                    # defaults are plain variables
#   arguments <<'END'                # name, kind, help; in positional order
#   batch_size  count  sentences a step
#   END
#   options <<'END'                  # the same, by name only
#   seed  whole?  seed of every random number
#   END
#   parse_arguments "$@"             # $batch_size is now checked and final
#   prepare                          # interpreter, devices, ranks, precision
#   run_python squad run_squad.py "--train_batch_size=$batch_size"
#
# Functions that compute a value leave it in REPLY: a subshell for each would
# cost more than all else that a launcher does.

launcher=${0##*/}
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "$launcher: needs bash 4.4 or newer, this is $BASH_VERSION" >&2
  exit 1
fi
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

note() { printf '%s: %s\n' "$launcher" "$*" >&2; }
die() { note "$*"; exit 1; }
usage_error() { note "$*"; exit 2; }

# shellcheck source=scripts/lib/values.sh
source "$root/scripts/lib/values.sh"
# shellcheck source=scripts/lib/arguments.sh
source "$root/scripts/lib/arguments.sh"
# shellcheck source=scripts/lib/places.sh
source "$root/scripts/lib/places.sh"
# shellcheck source=scripts/lib/hosts.sh
source "$root/scripts/lib/hosts.sh"
# shellcheck source=scripts/lib/ranks.sh
source "$root/scripts/lib/ranks.sh"
# shellcheck source=scripts/lib/words.sh
source "$root/scripts/lib/words.sh"
# shellcheck source=scripts/lib/ends.sh
source "$root/scripts/lib/ends.sh"
# shellcheck source=scripts/lib/run.sh
source "$root/scripts/lib/run.sh"
