"""Which part of the work is this process's, where several do one job.

Launchers of many processes number them in the environment: `mpirun` of Open
MPI (OMPI_COMM_WORLD_RANK), others that speak PMI (PMI_RANK), `srun`
(SLURM_PROCID) and Slurm's job arrays (SLURM_ARRAY_TASK_ID). The parts need not
talk to each other: who does what follows from the number alone.
"""

import argparse
import os
from typing import NamedTuple

from utils import errors
from utils.errors import UserError


class Share(NamedTuple):
  """Part `index` (from 0) of `count` equal ones; `source` tells who said so."""
  index: int
  count: int
  source: str

  def mine(self, items):
    """Returns this part of a list: each `count`-th item, from `index` on."""
    return items[self.index::self.count]

  def __str__(self):
    return "part %d of %d (%s)" % (self.index + 1, self.count, self.source)


WHOLE = Share(0, 1, "alone")


def add_arguments(parser):
  """Adds --shard_index and --num_shards to an argparse parser."""
  parser.add_argument(
      "--num_shards", type=int, default=None, metavar="N",
      help="number of processes, on any machines, that share this work out; "
      "default: what mpirun, srun or a job array says, else 1")
  parser.add_argument(
      "--shard_index", type=int, default=None, metavar="I",
      help="which of them this is, from 0")


def _number(environ, name):
  value = environ.get(name, "")
  if not value.lstrip("-").isdigit():
    raise UserError("the environment variable %s is %r instead of a number: "
                    "give --shard_index and --num_shards" % (name, value))
  return int(value)


def _of_ranks(environ):
  """Returns the Share that an MPI or Slurm step gives."""
  # SLURM_PROCID is also set, to 0, in a batch script outside of any step;
  # only `srun` sets SLURM_STEP_NUM_TASKS.
  for index, count in (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
                       ("PMI_RANK", "PMI_SIZE"),
                       ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
    if index in environ and count in environ:
      return Share(_number(environ, index), _number(environ, count), index)
  return WHOLE


def _of_array(environ):
  """Returns the Share that a job array of Slurm gives."""
  if "SLURM_ARRAY_TASK_COUNT" not in environ:
    return WHOLE
  count = _number(environ, "SLURM_ARRAY_TASK_COUNT")
  low = _number(environ, "SLURM_ARRAY_TASK_MIN")
  high = _number(environ, "SLURM_ARRAY_TASK_MAX")
  step = (high - low) // (count - 1) if count > 1 else 1
  offset = _number(environ, "SLURM_ARRAY_TASK_ID") - low
  index, rest = divmod(offset, step)
  if rest or (high - low) % max(count - 1, 1):
    raise UserError(
        "the numbers of the job array are not evenly spaced, so it is not "
        "clear which part this task has: give --shard_index and --num_shards")
  return Share(index, count, "SLURM_ARRAY_TASK_ID")


def share_of(shard_index=None, num_shards=None, environ=None):
  """Returns the Share of this process.

  Args:
    shard_index: what --shard_index says, or None.
    num_shards: what --num_shards says, or None.
    environ: mapping in place of `os.environ`.

  Raises:
    UserError: if one of the two is missing, or they do not fit.
  """
  if shard_index is not None or num_shards is not None:
    if shard_index is None or num_shards is None:
      raise UserError("--shard_index and --num_shards go together: give both "
                      "or neither")
    share = Share(shard_index, num_shards, "--shard_index")
  else:
    environ = os.environ if environ is None else environ
    array, ranks = _of_array(environ), _of_ranks(environ)
    sources = [s.source for s in (array, ranks) if s.count > 1]
    share = Share(array.index * ranks.count + ranks.index,
                  array.count * ranks.count, " and ".join(sources) or "alone")
  if not 0 <= share.index < share.count:
    raise UserError("part %d of %d (%s) does not exist: parts are numbered "
                    "from 0" % (share.index, share.count, share.source))
  return share


def main():
  """Prints the number of this part, from 0, for launchers."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  add_arguments(parser)
  options = parser.parse_args()
  print(errors.guard(share_of, options.shard_index, options.num_shards).index)


if __name__ == "__main__":
  main()
