#!/usr/bin/env bash
# Turns any folder of text files into checked TFRecords, in five stages:
#
#   extract   documents, one a line, hard line breaks removed
#   segment, shard, records, check: as for Wikipedia
#
#   bash data/run_preprocessing.sh my_texts my_corpus --num_training_shards 8
#
# Each file is a document; --documents blank_line or line divides files. All
# lies in a folder of the corpus's name under DATA_DIR, for
# scripts/run_pretraining.sh --sources my_corpus. What is finished and newer
# than its input is kept: the same command goes on after a stop. Started by
# mpirun, srun or a job array, each process does its part.
set -euo pipefail
here=$(dirname -- "${BASH_SOURCE[0]}")
# shellcheck source=scripts/lib.sh
source "$here/../scripts/lib.sh"
# shellcheck source=scripts/lib/preprocess.sh
source "$root/scripts/lib/preprocess.sh"

# shellcheck disable=SC2034  # read by name
input='' corpus_name='' documents=file pattern='*.txt'
arguments <<'END'
input path folder of text files, or one
corpus_name text name of the corpus
END
options <<'END'
documents choice:file|blank_line|line what is a document
pattern text names of the files in the folder
END
preprocessing_options
parse_arguments "$@"
[[ $corpus_name =~ ^[A-Za-z0-9._-]+$ ]] || usage_error \
  "--corpus_name is '$corpus_name', but" \
  "has to consist of letters, digits, . _ and -"
start_preprocessing
! wants extract || [[ -e $input ]] || missing "no text at $input"
preprocess "$data_dir/$corpus_name" "$root/data/clean_text.py" --kind=text \
  "--input=$input" "--documents=$documents" "--pattern=$pattern"
