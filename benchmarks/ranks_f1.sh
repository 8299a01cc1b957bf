#!/usr/bin/env bash
# F1 of SQuAD fine-tuning on two ranks beside that on one, seed by seed.
#
#   bash benchmarks/ranks_f1.sh --bert_model FOLDER --train_file FILE \
#     --predict_file FILE [--seeds "1 2 3"] [--batch 16] [--rate 1e-4] \
#     [--results FOLDER] [-- FLAG ...]
#
# One rank takes batches of `batch` at `rate`, each of two ranks half of both,
# which is the same update (the launcher's rate is per rank). The last lines
# give F1 and exact match of each run, the differences and their mean. What is
# finished is not done again. FLAG ... goes to scripts/run_squad.sh as it is.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
declare -A value=([seeds]="1 2 3" [batch]=16 [rate]=1e-4
  [results]=results/ranks_f1 [bert_model]='' [train_file]='' [predict_file]='')
usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
while (($#)) && [[ $1 != -- ]]; do
  name=${1#--}
  if [[ $1 == --help ]]; then usage && exit; fi
  if [[ $1 != --?* || -z ${value[$name]+known} || -z ${2-} ]]; then
    usage >&2
    exit 2
  fi
  value[$name]=$2
  shift 2
done
if (($#)); then shift; fi
for name in bert_model train_file predict_file; do
  if [[ -z ${value[$name]} ]]; then
    echo "ranks_f1.sh: --$name is missing" >&2
    exit 2
  fi
done

for seed in ${value[seeds]}; do
  for ranks in 1 2; do
    rate=$(awk "BEGIN {print ${value[rate]} / $ranks}")
    bash "$root/scripts/run_squad.sh" --num_gpus "$ranks" --seed "$seed" \
      --batch_size $((value[batch] / ranks)) --learning_rate "$rate" \
      --bert_model "${value[bert_model]}" --train_file "${value[train_file]}" \
      --predict_file "${value[predict_file]}" \
      --run_dir "${value[results]}/seed${seed}_ranks$ranks" "$@"
  done
done

python3 - "${value[results]}" "${value[seeds]}" <<'PYTHON'
import json
import pathlib
import statistics
import sys

folder, differences = pathlib.Path(sys.argv[1]), []
for seed in sys.argv[2].split():
  one, two = [json.loads((folder / ("seed%s_ranks%d" % (
      seed, ranks)) / "scores.json").read_text()) for ranks in (1, 2)]
  differences.append(two["f1"] - one["f1"])
  print("seed %s: one rank F1 %.2f, exact match %.2f; two ranks F1 %.2f, exact "
        "match %.2f; F1 differs by %+.2f" % (
            seed, one["f1"], one["exact_match"], two["f1"],
            two["exact_match"], differences[-1]))
print("mean difference of F1: %+.2f" % statistics.mean(differences))
PYTHON
