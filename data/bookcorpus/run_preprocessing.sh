#!/usr/bin/env bash
# Turns a folder of books, .txt, into checked TFRecords, in five stages:
#
#   extract   books without licences, page numbers and hard line breaks
#   segment, shard, records, check: as for Wikipedia
#
#   bash data/bookcorpus/run_preprocessing.sh
#   bash data/bookcorpus/run_preprocessing.sh --input my_books \
#     --num_training_shards 16
#
# A book is a document, so there can be no more shards than books. All lies in
# bookcorpus under DATA_DIR. What is finished and newer than its input is kept:
# the same command goes on after a stop. Started by mpirun, srun or a job array,
# each process does its part.
set -euo pipefail
here=$(dirname -- "${BASH_SOURCE[0]}")
# shellcheck source=scripts/lib.sh
source "$here/../../scripts/lib.sh"
# shellcheck source=scripts/lib/preprocess.sh
source "$root/scripts/lib/preprocess.sh"

# shellcheck disable=SC2034  # read by name
input='' corpus_name=bookscorpus corpus=$data_dir/bookcorpus
options <<'END'
input path? folder of the books; empty: bookcorpus/download
corpus_name text name of the corpus in its files
END
preprocessing_options
parse_arguments "$@"
start_preprocessing
input=${input:-$corpus/download}
! wants extract || [[ -e $input ]] || missing "no books at $input:" \
  "give --input FOLDER, or run bash scripts/data_download.sh books"
preprocess "$corpus" "$root/data/clean_text.py" --kind=books "--input=$input"
