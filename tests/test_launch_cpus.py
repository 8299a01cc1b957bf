"""CPUs of ranks: lib/rank.sh --cpus on machines made of files, and for real."""

import os
import subprocess

import pytest

from launcher_sandbox import ROOT
from launcher_sandbox import write_program
from rank_sandbox import needs_mpirun
from rank_sandbox import RankSite

pytestmark = pytest.mark.once

SCRIPT = str(ROOT / "scripts/lib/rank.sh")


class Machine:
  """A /sys of its own, with NUMA nodes, cores of two threads, and GPUs."""

  def __init__(self, folder, nodes, threads=(), gpus=()):
    self.folder = folder
    self.env = {"PATH": "%s:%s" % (folder, os.environ["PATH"]),
                "SYSFS_ROOT": str(folder / "sys"), "CUDA_VISIBLE_DEVICES": ""}
    devices = folder / "sys" / "devices" / "system"
    for node, cpus in enumerate(nodes):
      self.write(devices / "node" / ("node%d" % node) / "cpulist", cpus)
    for siblings in threads:
      for cpu in siblings.split(","):
        self.write(devices / "cpu" / ("cpu" + cpu) / "topology"
                   / "thread_siblings_list", siblings)
    rows = []
    for index, node in enumerate(gpus):
      bus = "0000:%02x:00.0" % (0x1a + index)
      rows.append("echo '%d, GPU-%d, 0000%s'" % (index, index, bus.upper()))
      self.write(folder / "sys/bus/pci/devices" / bus / "numa_node", str(node))
    if gpus:
      write_program(
          folder / "nvidia-smi", "\n".join(["#!/bin/sh"] + rows) + "\n")
      del self.env["CUDA_VISIBLE_DEVICES"]

  @staticmethod
  def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")

  def cpus(self, size, allowed, **env):
    """What each of `size` ranks gets, as sorted lists of numbers."""
    found = []
    for rank in range(size):
      text = subprocess.run(
          ["bash", SCRIPT, "--cpus", str(rank), str(size)],
          env=dict(self.env, CPUS_ALLOWED=allowed, **env), check=True,
          stdout=subprocess.PIPE).stdout.decode().strip()
      found.append(sorted(int(cpu) for cpu in text.split(",") if cpu))
    return found


def test_equal_parts_without_gpus(tmp_path):
  machine = Machine(tmp_path, ["0-3", "4-7"])
  assert machine.cpus(2, "0-7") == [[0, 1, 2, 3], [4, 5, 6, 7]]
  assert machine.cpus(3, "0-7") == [[0, 1], [2, 3, 4], [5, 6, 7]]
  assert machine.cpus(1, "0-7") == [list(range(8))]
  # What a scheduler has left to this job.
  assert machine.cpus(2, "2-3,6,9") == [[2], [3, 6]]
  # Fewer CPUs than ranks: none is kept to any.
  assert machine.cpus(3, "0-1") == [[], [], []]


def test_nodes_in_their_order_and_none_at_all(tmp_path):
  interleaved = Machine(tmp_path / "a", ["0,2,4", "1,3,5"] + [""] * 9)
  assert interleaved.cpus(2, "0-5") == [[0, 2, 4], [1, 3, 5]]
  assert Machine(tmp_path / "b", []).cpus(2, "0-5") == [[0, 1, 2], [3, 4, 5]]


def test_threads_of_a_core_stay_together(tmp_path):
  machine = Machine(tmp_path, ["0-7"], ["0,4", "1,5", "2,6", "3,7"])
  assert machine.cpus(2, "0-7") == [[0, 1, 4, 5], [2, 3, 6, 7]]
  assert machine.cpus(4, "0-7") == [[0, 4], [1, 5], [2, 6], [3, 7]]
  everyone = machine.cpus(8, "0-7")   # more ranks than cores
  assert sorted(sum(everyone, [])) == list(range(8))
  assert machine.cpus(2, "4-7") == [[4, 5], [6, 7]]   # one thread of each


def test_node_of_the_gpu(tmp_path):
  machine = Machine(tmp_path, ["0-3", "4-7"], gpus=[1, 0, 1, 0])
  assert machine.cpus(2, "0-7") == [[4, 5, 6, 7], [0, 1, 2, 3]]
  assert machine.cpus(4, "0-7") == [[4, 5], [0, 1], [6, 7], [2, 3]]
  for visible in ("2,3,1", "GPU-2,GPU-3,GPU-1"):
    assert machine.cpus(3, "0-7", CUDA_VISIBLE_DEVICES=visible) == [
        [4, 5, 6, 7], [0, 1], [2, 3]]
  # Fewer CPUs than GPUs on a node: all share all.
  assert machine.cpus(4, "0-4") == [[0], [1], [2], [3, 4]]


@pytest.mark.parametrize("gpus, visible", [
    ([-1, -1], None), ([0, 1], "0"), ([0, 1], ""), ([0, 1], "MIG-a,MIG-b")])
def test_gpus_whose_place_is_not_known(tmp_path, gpus, visible):
  machine = Machine(tmp_path, ["0-3", "4-7"], gpus=gpus)
  env = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
  assert machine.cpus(2, "0-7", **env) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@needs_mpirun
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU")
def test_ranks_keep_to_cpus_of_their_own(tmp_path):
  ranks = RankSite(tmp_path, "mpirun")
  ranks.program("grep ^Cpus_allowed: /proc/self/status "
                ">\"$run/cpus.$rank\"")

  def masks(*words):
    done = ranks.two(*words)
    assert done.returncode == 0, done.stderr
    return [int((ranks.run_dir / ("cpus.%d" % rank)).read_text().split()[1]
                .replace(",", ""), 16) for rank in range(2)]

  first, second = masks()
  assert first & second == 0 and first and second
  everything = sum(1 << cpu for cpu in os.sched_getaffinity(0))
  assert first | second == everything
  assert masks("--bind_cpus=false") == [everything, everything]
