#!/usr/bin/env bash
# Downloads data and weights to their places under DATA_DIR.
#
#   bash scripts/data_download.sh                    # all of it
#   bash scripts/data_download.sh squad weights      # some of it
#   bash scripts/data_download.sh all --dry_run      # what, from where, whereto
#
#   squad    SQuAD v1.1 and v2.0 with their official evaluators -> squad/v*
#   weights  Google's BERT: base and large, uncased and cased, multilingual and
#            Chinese -> pretrained_models_google/
#   punkt    NLTK's sentence models -> nltk_data/tokenizers/punkt
#   glue     the tasks of GLUE -> glue/TASK
#   ngc      NVIDIA's checkpoints -> pretrained_models_nvidia/
#   wiki     a dated dump of the English Wikipedia -> wikipedia_corpus/download
#   books    texts, one .txt each -> bookcorpus/download
#
# Options, as --name value or --name=value:
#   --dry_run         print what would be fetched, how large, from where and
#                     whereto; uses no network
#   --wiki_date DATE  date of the dump, yyyymmdd [in data/download/sources.conf]
#   --book_list FILE  URLs of texts, one a line, # comments; without it books
#                     come from Project Gutenberg, two seconds apart as its
#                     rules ask
#   --max_books N     how many of those [100]
#   --mirrors FILE    lines source=URL: fetch that source's files, by the same
#                     names, from below that URL
#   --data_dir DIR    in place of DATA_DIR
#   --tries N         times that a request is made [5]
#   --backoff SECONDS wait before the second try; doubles from try to try [2]
#   --timeout SECONDS without a byte, after which a try ends [60]
#   --stack tf1|tf2   whose Python to use; any with requests and tqdm will do
#
# Expect minutes for squad, and hours for all: some 20 GB for wiki alone. After
# Ctrl-C or a crash the same command goes on where it stopped, and it fetches
# only what is missing. A file gets its name once its size and published hash
# are right; one without a published hash is reported as not verified. A table
# ends it. Exit status: 0 all is there; 1 something failed, or could not be
# written; 2 wrong arguments; 3 nothing failed, but a dead link was skipped;
# 130 Ctrl-C. Environment: DATA_DIR [data in the checkout], BERT_MIRROR_SQUAD,
# BERT_MIRROR_WEIGHTS, ... (a base URL, as in --mirrors, which wins),
# BERT_STACK, BERT_PYTHON, and HTTPS_PROXY and its like.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

words=()
while (($#)); do
  case $1 in
    -h | --help) awk 'NR > 1 && !/^#/ {exit} NR > 1 {sub(/^# ?/, ""); print}' \
      "$0"; exit 0 ;;
    --stack) (($# > 1)) || usage_error "--stack needs a value"
      stack=$2; shift ;;
    --stack=*) stack=${1#*=} ;;
    *) words+=("$1") ;;
  esac
  shift
done
[[ -z $stack || $stack == tf[12] ]] ||
  usage_error "--stack is '$stack', but has to be tf1 or tf2"

can_download() {
  "$1" -c 'import sys, requests, tqdm; sys.exit(sys.version_info < (3, 6))' \
    2>/dev/null
}

find_downloader() {
  # A Python with the two packages, into python: the stack's, else any.
  local first='' venv=${BERT_VENV_DIR:-$root/.venv}
  if [[ -z $stack && -z ${BERT_PYTHON-} ]]; then
    first=$(choose_python 2>/dev/null && echo "$python") || true
    for python in "${first:-python3}" "$venv"/tf[12]/bin/python python3 python
    do
      ! can_download "$python" || return 0
    done
  fi
  choose_python
}

find_downloader
exec "$python" "$root/data/download" "--data_dir=$data_dir" "${words[@]}"
