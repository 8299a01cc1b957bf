"""F1 of SQuAD fine-tuning in bfloat16 beside that in float32, run by run.

  python benchmarks/bf16_f1.py FOLDER [FOLDER ...]

Each FOLDER is that of a finished run of run_squad.py in float32 (its config.json
has the command). The same command is run again with --use_bf16 in FOLDER_bf16,
unless that is finished. A CPU without bfloat16 products takes the casts in the
graph, as GPUs do: TensorFlow multiplies what was rounded to bfloat16 there, only
not fast. The last lines give the scores, the differences and their mean.
"""

import json
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Run in place of the runner: its arguments, with the casts on any hardware.
_WITH_CASTS = """
import runpy, sys
sys.path.insert(0, {root!r})
from utils import precision
import tensorflow.compat.v1 as tf
settle = precision.settle
def settle_with_casts(*arguments):
  settled = settle(*arguments)
  if settled.computes == "bf16":
    return settled
  print("bfloat16 by casts in the graph", flush=True)
  return settled._replace(computes="bf16", matmul_dtype=tf.bfloat16)
precision.settle = settle_with_casts
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def read(folder, name):
  path = folder / name
  if not path.is_file():
    sys.exit("bf16_f1.py: no %s: give folders of finished runs of run_squad.py"
             % path)
  return json.loads(path.read_text())


def main():
  folders = [pathlib.Path(name).absolute() for name in sys.argv[1:]]
  if not folders:
    sys.exit(__doc__.strip())
  lines, differences = [], []
  for folder in folders:
    float32 = read(folder, "scores.json")
    other = folder.with_name(folder.name + "_bf16")
    if not (other / "scores.json").exists():
      command = [word for word in read(folder, "config.json")["command"]
                 if not word.startswith("--output_dir=")]
      other.mkdir(exist_ok=True)
      with (other / "output.log").open("a") as log:
        status = subprocess.call(
            [sys.executable, "-c", _WITH_CASTS.format(root=str(ROOT))] +
            command + ["--output_dir=%s" % other, "--use_bf16=true"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
      if status:
        sys.exit("bf16_f1.py: %s ended with status %d: see %s" % (
            other, status, log.name))
    bfloat16 = read(other, "scores.json")
    differences.append(bfloat16["f1"] - float32["f1"])
    lines.append(
        "%s: float32 F1 %.2f, exact match %.2f; bfloat16 F1 %.2f, exact match "
        "%.2f; F1 differs by %+.2f" % (
            folder.name, float32["f1"], float32["exact_match"],
            bfloat16["f1"], bfloat16["exact_match"], differences[-1]))
  print("\n".join(lines))
  print("mean difference of F1: %+.2f" % statistics.mean(differences))


if __name__ == "__main__":
  main()
