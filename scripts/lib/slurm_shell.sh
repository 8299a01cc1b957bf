#!/usr/bin/env bash
# Runs a command on a machine of the Slurm job around it, as ssh would.
#
#   bash scripts/lib/slurm_shell.sh HOST COMMAND ...
#
# run_pretraining.slurm gives it to the launcher as --remote_shell. The words of
# the command are joined by blanks and read by bash over there, which has all
# that the job has on that machine. Needs Slurm 20.11 or newer (--overlap).
set -euo pipefail
host=$1
shift
exec srun --nodes=1 --ntasks=1 --nodelist="$host" --overlap --mem=0 \
  --cpu-bind=none --mpi=none --input=none --quiet bash -c "$*"
