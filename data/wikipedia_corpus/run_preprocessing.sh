#!/usr/bin/env bash
# Turns a Wikipedia dump into checked TFRecords, in five stages:
#
#   extract   running text of the articles      -> extracted/
#   segment   a sentence a line                 -> final_text_file_single/
#   shard     text files of equal size          -> final_text_files_sharded/
#   records   for each length, training, test   -> final_tfrecords_sharded/
#   check     every record, tables and pictures    beside them
#
#   bash data/wikipedia_corpus/run_preprocessing.sh
#   bash data/wikipedia_corpus/run_preprocessing.sh --input dump.xml.bz2 \
#     --num_training_shards 64 --lengths 128:20
#   mpirun -np 3 bash data/wikipedia_corpus/run_preprocessing.sh
#
# All lies in wikipedia_corpus under DATA_DIR. What is finished and newer than
# its input is kept: the same command goes on after a stop. Started by mpirun,
# srun or a job array, each process does its part. Expect hours on a few cores
# for the whole of the English Wikipedia.
set -euo pipefail
here=$(dirname -- "${BASH_SOURCE[0]}")
# shellcheck source=scripts/lib.sh
source "$here/../../scripts/lib.sh"
# shellcheck source=scripts/lib/preprocess.sh
source "$root/scripts/lib/preprocess.sh"

# shellcheck disable=SC2034  # read by name
input='' corpus_name=wikicorpus_en corpus=$data_dir/wikipedia_corpus
options <<'END'
input path? the dump, .xml.bz2 or .xml; empty: the newest that is downloaded
corpus_name text name of the corpus in its files
END
preprocessing_options
parse_arguments "$@"
start_preprocessing
if [[ -z $input ]]; then
  mapfile -t dumps < <(compgen -G "$corpus/download/*.xml.bz2")
  input=$corpus/download/enwiki-DATE-pages-articles-multistream.xml.bz2
  if ((${#dumps[@]})); then input=${dumps[-1]}; fi
fi
! wants extract || require_file "$input" dump \
  "give --input FILE, or run bash scripts/data_download.sh wiki"
preprocess "$corpus" "$root/data/extract_wikipedia.py" "--input=$input"
