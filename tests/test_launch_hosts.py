"""Runs on several machines: their file, what is asked of them, the starter.

The machines are this one under other names, with a stand-in for ssh; mpirun is
real. Real machines (network namespaces) have a test of their own.
"""

import os
import shlex
import subprocess
import sys

import pytest

from launcher_sandbox import LAUNCHERS
from launcher_sandbox import one_line
from launcher_sandbox import ROOT
from launcher_sandbox import write_program
from rank_sandbox import finish
from rank_sandbox import kill
from rank_sandbox import needs_mpirun
from rank_sandbox import own_lines
from rank_sandbox import parent
from rank_sandbox import RankSite
from rank_sandbox import SAVES_BY_SIGNAL

# Runs the command here; $SSH_DIR/HOST, where it is there, in its place. Its
# words are kept as ssh's would be: joined by blanks, read by a shell. mpirun's
# daemons need a folder each: in one they would remove each other's files.
SSH = """#!/bin/bash
echo "$*" >>"$SSH_DIR/log"
while [[ $1 == -* ]]; do case $1 in -o) shift 2 ;; *) shift ;; esac; done
host=$1
shift
if [[ -x $SSH_DIR/$host ]]; then exec "$SSH_DIR/$host" "$*"; fi
[[ $* == *orted* ]] || echo "welcome to $host"
export TMPDIR=$SSH_DIR/t.$host
mkdir -p "$TMPDIR"
exec bash -c "$*"
"""


class HostSite(RankSite):
  """A RankSite whose hosts are asked by the stand-in."""

  def __init__(self, folder):
    super().__init__(folder, "mpirun")
    write_program(folder / "bin" / "ssh", SSH)
    self.ssh = folder / "ssh"
    self.ssh.mkdir()
    self.hosts = self.home / "my hosts"
    self.env.update(PATH="%s:%s" % (folder / "bin", self.env["PATH"]),
                    SSH_DIR=str(self.ssh))
    self.program("exit 0")

  def program(self, text):
    """As a RankSite's, but asked for versions it is Python."""
    super().program(
        '[[ $1 != -W ]] || exec %s "$@"\n%s' % (shlex.quote(sys.executable),
                                               text))

  def words(self, *words):
    return ("--hosts=my hosts", "--run_dir=my run") + words

  def machine(self, name, text):
    write_program(self.ssh / name, "#!/bin/bash\n" + text + "\n")


@pytest.fixture
def site(tmp_path):
  return HostSite(tmp_path)


# --- the file ----------------------------------------------------------------


@pytest.mark.parametrize("text, slots, total", [
    ("left slots=2\nright:3 # the old one\n", "left:2,right:3", 5),
    ("\n# both\n  left   \t\nright slots=1\r\n", "left:4,right:1", 5),
    ("a-1.b_c:2", "a-1.b_c:2", 2)])
def test_hosts_file(site, text, slots, total):
  site.hosts.write_text(text)
  done = site.two("--dry_run", "--num_gpus=4")
  assert done.returncode == 0, done.stderr
  line = done.stdout.splitlines()[-2]
  assert line.startswith("# %d ranks by: " % total)
  assert "--host %s " % slots in line
  assert not (site.ssh / "log").exists()   # a dry run asks nobody


@pytest.mark.parametrize("text, expected", [
    ("left\nright slots 2", "line 2: expected NAME, NAME:RANKS or NAME slots="),
    ("left slots=0", "line 1: expected NAME"), ("left:", "line 1: expected"),
    ("left slots=", "line 1: expected"), ("-oProxy", "line 1: expected"),
    ("left two", "line 1: expected NAME"), ("a;b", "line 1: expected NAME"),
    ("left\n\nright\nleft:2", "line 4: host left stands there twice"),
    ("# nobody\n", "names no machine")])
def test_wrong_hosts_file(site, text, expected):
  site.hosts.write_text(text)
  line = one_line(site.two(), 2)
  assert expected in line and str(site.hosts) in line


@pytest.mark.parametrize("script", LAUNCHERS)
def test_hosts_file_that_is_not_there(site, script):
  done = site.run(script, "--hosts=nowhere")
  assert "--hosts: cannot read the file" in one_line(done, 2)


# --- what is asked of them ---------------------------------------------------


def test_host_that_does_not_answer(site):
  site.hosts.write_text("left\nright\n")
  site.machine("right", "echo 'ssh: connect to host right port 22: Connection "
               "timed out\r' >&2; exit 255")
  line = one_line(site.two(), 1)
  assert line.endswith("host right gives no answer by ssh: ssh: connect to "
                       "host right port 22: Connection timed out")
  asked = (site.ssh / "log").read_text()
  assert "-o BatchMode=yes -o ConnectTimeout=10 " in asked
  assert not site.run_dir.exists()


def test_host_without_checkout_or_python(site):
  site.hosts.write_text("right")
  site.machine("right", 'cd /; exec bash -c "${1//scripts/nowhere}"')
  assert one_line(site.two(), 1).endswith(
      "host right has no checkout at " + str(ROOT))
  python = site.env["BERT_PYTHON"]
  site.machine("right", 'exec bash -c "${1//bin\\/stub/bin/none}"')
  line = one_line(site.two(), 1)
  assert "host right has no Python at " + python in line
  assert "scripts/setup.sh there" in line


def versions():
  return subprocess.run(
      [sys.executable, "-W", "ignore", str(ROOT / "scripts/lib/versions.py")],
      stdout=subprocess.PIPE, check=True).stdout.decode().strip()


@pytest.mark.parametrize("key, expected", [
    ("tensorflow", "has tensorflow 9.8.7, this machine "),
    ("horovod", "has horovod 9.8.7, this machine "),
    ("python", "has python 9.8.7, this machine "),
    ("sources", "has other Python sources in ")])
def test_mixed_versions(site, key, expected):
  site.hosts.write_text("localhost\nright")
  ours = dict(word.split("=") for word in versions().split()[1:])
  assert sorted(ours) == ["gpus", "horovod", "python", "sources", "tensorflow"]
  theirs = dict(ours, **{key: "9.8.7"})
  site.machine("right", "echo here: " + " ".join(
      "%s=%s" % item for item in theirs.items()))
  line = one_line(site.two(), 1)
  assert "host right " + expected in line
  assert key == "sources" or line.endswith(ours[key])


def test_more_ranks_than_gpus_on_a_host(site):
  site.hosts.write_text("left:2\nright:3")
  answer = versions()[:-1]   # less the number of GPUs
  for name, gpus in (("left", 4), ("right", 2)):
    site.machine(name, "echo '%s%d'" % (answer, gpus))
  line = one_line(site.two(), 1)
  assert line.endswith("host right is to run 3 ranks, but it offers 2 GPUs")


def test_versions_are_those_of_the_packages():
  import tensorflow  # pylint: disable=import-outside-toplevel
  found = dict(word.split("=") for word in versions().split()[1:])
  assert found["tensorflow"] == tensorflow.__version__
  assert found["python"] == "%d.%d" % sys.version_info[:2]


# --- runs --------------------------------------------------------------------


def test_mpirun_between_machines(site):
  site.hosts.write_text("left:2\nright:2\n")
  done = site.two("--dry_run", "--network_interface=eth1",
                  env={"HOROVOD_FUSION_THRESHOLD": "1", "SECRET": "x"})
  words = shlex.split(done.stdout.splitlines()[-2])
  options = {words[i + 1]: words[i + 2] for i, word in enumerate(words)
             if word == "--mca"}
  keep_alive = [int(options["oob_tcp_keepalive_" + name])
                for name in ("time", "intvl", "probes")]
  assert keep_alive[0] + keep_alive[1] * keep_alive[2] <= 30
  assert options["plm_rsh_agent"].startswith("ssh -o BatchMode=yes")
  assert options["oob_tcp_if_include"] == "eth1"
  assert options["btl_tcp_if_include"] == "eth1"
  handed = {words[i + 1] for i, word in enumerate(words) if word == "-x"}
  assert {"PATH", "HOROVOD_FUSION_THRESHOLD", "HOROVOD_GLOO_IFACE", "DATA_DIR",
          "NCCL_SOCKET_IFNAME", "PYTHONUNBUFFERED", "CUDA_VISIBLE_DEVICES",
          "BERT_PYTHON"} <= handed
  assert not {"SECRET", "HOME", "SSH_DIR"} & handed
  assert "--leave-session-attached" not in words
  done = site.two("--dry_run", "--remote_shell=bash -x")
  words = shlex.split(done.stdout.splitlines()[-2])
  assert "bash -x" in words and "--leave-session-attached" in words


def test_horovodrun_between_machines(site):
  write_program(site.home.parent / "bin" / "horovodrun", "#!/bin/sh\n")
  site.hosts.write_text("left:2\nright:2\n")
  done = site.two("--dry_run", "--network_interface=eth1",
                  "--rank_launcher=horovodrun")
  assert "-H left:2,right:2" in done.stdout
  assert "--network-interfaces eth1" in done.stdout


@needs_mpirun
def test_ranks_on_two_machines(site):
  site.hosts.write_text("left\nright slots=2\n")
  site.program("""
    echo "$OMPI_COMM_WORLD_LOCAL_RANK of $OMPI_COMM_WORLD_LOCAL_SIZE" \\
      >"$run/place.$rank"
    for word; do [[ $word != --horovod=true ]] || echo "rank $rank"; done
  """)
  done = site.two("--num_gpus=1")
  assert done.returncode == 0, done.stderr
  assert done.stdout == "rank 0\n"
  assert [(site.run_dir / ("place.%d" % rank)).read_text().strip()
          for rank in range(3)] == ["0 of 1", "0 of 2", "1 of 2"]
  log = (site.ssh / "log").read_text()
  assert log.count("orted") == 2 and not site.left()


@needs_mpirun
def test_stop_on_two_machines(site):
  site.hosts.write_text("left\nright\n")
  site.program(SAVES_BY_SIGNAL)
  process, _ = site.two_started()
  process.terminate()
  status, _, err = finish(process)
  assert status == 0 and not site.left()
  assert own_lines(err) == [
      "stopped at step 7, checkpoint saved; the same command goes on"]


@needs_mpirun
def test_machine_that_is_lost(site):
  """One whose daemon is gone: the run ends, and what it left there as well."""
  site.hosts.write_text("left\nright\n")
  site.program("begun; wait_long")
  process, pids = site.two_started()
  kill(parent(parent(pids[1])))   # program, rank.sh, orted
  status, _, err = finish(process)
  assert status not in (0, 2, 130) and not site.left()
  (line,) = own_lines(err)
  assert line.endswith("; the same command goes on")
  assert line.startswith("host right does not answer any more"), err


@needs_mpirun
def test_machines_that_do_not_reach_each_other(site):
  """mpirun waits for ever for a daemon that says nothing."""
  site.hosts.write_text("left\nright\n")
  site.machine("right", '[[ $* != *orted* ]] || exit 0; exec bash -c "$*"')
  done = site.two(env={"HOROVOD_START_TIMEOUT": "2"})
  assert done.returncode not in (0, 2, 130) and not site.left()
  assert own_lines(done.stderr) == [
      "no rank has begun in 2 seconds: can the machines reach each other "
      "(--network_interface)?; the same command goes on"]


@needs_mpirun
def test_run_folder_that_machines_do_not_share(site):
  """A rank that cannot write there is named all the same."""
  script = ROOT / "scripts/lib/rank.sh"
  code = ('root=%s; launcher=t; source "$root/scripts/lib/words.sh"; '
          'run_dir=%s; mkdir "$run_dir"; '
          'OMPI_COMM_WORLD_RANK=1 bash %s /not/there false '
          'bash -c "echo hm; kill -9 \\$\\$" 2>&1 | mpirun_words; '
          'cat "$run_dir/launch.failed"') % (
              shlex.quote(str(ROOT)), shlex.quote(str(site.run_dir)), script)
  done = subprocess.run(["bash", "-c", code], stdout=subprocess.PIPE,
                        universal_newlines=True)
  assert done.stdout.splitlines() == [
      "rank 1: hm",
      "rank 1 (host %s) ended by signal 9" % os.uname().nodename]
