"""A pre-training run that is killed twice, beside an undisturbed one.

  python benchmarks/killed_run.py --results FOLDER --kills 120,210 -- ARGUMENT ...

ARGUMENT ... are those of scripts/run_pretraining.sh, without --run_dir. The
second run loses rank 1 (kill -9) once it has logged the first of `kills`, and
launcher and ranks together (kill -9) at the second; the same command is given
again each time. Draws both curves into FOLDER/killed_run.png and prints by how
much the final weights differ. A finished run is not repeated.
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# pylint: disable=wrong-import-position
import numpy as np

from utils import metrics
from utils import plot_metrics
from utils import stack  # pylint: disable=unused-import
import tensorflow.compat.v1 as tf

LOSSES = ("mlm_loss", "nsp_loss")


def launch(folder, arguments):
  """Returns the started launcher, the first of its own process group."""
  return subprocess.Popen(
      ["bash", str(ROOT / "scripts/run_pretraining.sh"), "--run_dir",
       str(folder)] + arguments, start_new_session=True)


def ranks_of(folder):
  """Returns {rank: process id} of the run in a folder."""
  found = {}
  for entry in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      words = (entry / "cmdline").read_bytes().decode().split("\0")
      known = dict(word.split("=", 1) for word in
                   (entry / "environ").read_bytes().decode().split("\0")
                   if "=" in word)
    except (OSError, UnicodeDecodeError):
      continue  # it has ended
    # mpirun has the ranks' words in its own command line.
    if "--output_dir=%s" % folder in words and "python" in words[0]:
      found[int(known.get("OMPI_COMM_WORLD_RANK",
                          known.get("HOROVOD_RANK", 0)))] = int(entry.name)
  return found


def last_step(folder):
  """Returns the last step in a run's metrics.jsonl, 0 without any."""
  path = folder / "metrics.jsonl"
  rows = metrics.read_metrics(str(path)) if path.exists() else []
  return max([row["step"] for row in rows if row["kind"] == "train"] or [0])


def run_and_kill(folder, kills, arguments):
  """Runs to the end; kills rank 1 at the first step, everything at others."""
  for number, step in enumerate(kills):
    launcher = launch(folder, arguments)
    while last_step(folder) < step:
      if launcher.poll() is not None:
        sys.exit("%s ended before step %d" % (folder, step))
      time.sleep(0.2)
    ranks = ranks_of(folder)
    victims = [ranks[1]] if number == 0 else [launcher.pid] + list(
        ranks.values())
    for victim in victims:
      os.kill(victim, signal.SIGKILL)
    print("killed %s after step %d" % (
        "rank 1" if number == 0 else "launcher and ranks", last_step(folder)))
    launcher.wait()
    while ranks_of(folder):
      time.sleep(0.2)
  if launch(folder, arguments).wait():
    sys.exit("%s did not end well" % folder)


def largest_difference(one, other):
  """Returns the largest difference of weights, relative to the largest."""
  readers = [tf.train.load_checkpoint(tf.train.latest_checkpoint(str(folder)))
             for folder in (one, other)]
  names = sorted(readers[0].get_variable_to_shape_map())
  assert names == sorted(readers[1].get_variable_to_shape_map())
  pairs = [[reader.get_tensor(name) for reader in readers] for name in names]
  largest = lambda arrays: max(float(np.max(np.abs(array)))
                               for array in arrays if array.dtype == np.float32)
  return largest(a - b for a, b in pairs) / largest(a for a, _ in pairs)


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument("--results", required=True, type=pathlib.Path)
  parser.add_argument("--kills", required=True,
                      type=lambda text: [int(n) for n in text.split(",")])
  parser.add_argument("arguments", nargs="+", metavar="ARGUMENT")
  options = parser.parse_args()
  results = options.results.resolve()
  folders = [results / "undisturbed", results / "killed_twice"]
  for folder, kills in zip(folders, ([], options.kills)):
    if not (folder / "launch.done").exists():
      run_and_kill(folder, kills, options.arguments)
  plot_metrics.draw([str(folder) for folder in folders], LOSSES,
                    str(results / "killed_run.png"))
  rows = [{row["step"]: row
           for row in metrics.read_metrics(str(folder / "metrics.jsonl"))
           if row["kind"] == "train"} for folder in folders]
  # The first step after a start is logged as well.
  assert set(rows[0]) <= set(rows[1])
  for tag in LOSSES:
    print("%s: largest difference at %d logged steps %.2g" % (
        tag, len(rows[0]), max(abs(row[tag] - rows[1][step][tag])
                               for step, row in rows[0].items())))
  print("final weights differ by %.2g of the largest" %
        largest_difference(*folders))


if __name__ == "__main__":
  main()
