"""Machines for tests of jobs on several: namespaces, a network, ssh, Slurm.

A machine here is a set of Linux namespaces with a host name, an address,
processes and memory files of its own. What the disk holds is shared by all, as
on a cluster. Nothing is set up outside: each machine lives as long as its
first process, which ends with the pipe to its maker, so that nothing is left
of it however the tests end.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

_ADDRESS = "10.213.7.%d"
NETWORK = _ADDRESS % 0 + "/24"
# What each group of programs comes with on Debian.
_PROGRAMS = {
    "unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2",
    "bash": "bash"}
_SSH_PROGRAMS = {
    "sshd": "openssh-server", "ssh": "openssh-client",
    "ssh-keygen": "openssh-client", "mpirun": "openmpi-bin"}
_SLURM_PROGRAMS = {
    "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client",
    "munged": "munge"}
_SERVERS = {"sshd", "munged", "slurmctld", "slurmscriptd", "slurmd",
            "slurmstepd"}
# The first process of a machine. Without a wish for news of its children the
# kernel takes away those that it inherits.
_INIT = """
import signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("up", flush=True)
sys.stdin.read()
"""
_SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _program(name):
  """Returns the path of a program, also of one that only root looks for."""
  return shutil.which(name, path=_SEARCH)


def _lacking(programs):
  packages = sorted({package for name, package in programs.items()
                     if not _program(name)})
  if packages:
    return "not installed: apt-get install %s" % " ".join(packages)
  if os.geteuid() != 0:
    return "making machines of namespaces needs root"
  probe = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"]
  done = subprocess.run(probe, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                        universal_newlines=True)
  if done.returncode:
    return ("no namespaces here (%s): in a container, start it with "
            "--privileged" % done.stdout.strip())
  return None


def lacking_for_ssh():
  """Returns what keeps machines with sshd from running here, or None."""
  return _lacking(dict(_PROGRAMS, **_SSH_PROGRAMS))


def lacking_for_slurm():
  """Returns what keeps Slurm from running here, or None."""
  return _lacking(dict(_PROGRAMS, **_SLURM_PROGRAMS))


def wait_until(condition, seconds, describe, pause=0.1):
  """Returns the first true value of `condition()`; fails when time is up.

  Args:
    condition: function.
    seconds: time to wait at most.
    describe: function that returns what to say of a failure.
    pause: seconds between two calls.
  """
  deadline = time.time() + seconds
  while True:
    value = condition()
    if value:
      return value
    assert time.time() < deadline, "%d s are over: %s" % (seconds, describe())
    time.sleep(pause)


def _children(parent):
  """Returns the ids of the living children of a process."""
  found = []
  for name in filter(str.isdigit, os.listdir("/proc")):
    with contextlib.suppress(OSError):
      stat = pathlib.Path("/proc", name, "stat").read_text()
      state, ppid = stat.rpartition(")")[2].split()[:2]
      if int(ppid) == parent and state not in "ZX":
        found.append(int(name))
  return found


def _check(command, **kwargs):
  done = subprocess.run(command, stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT, universal_newlines=True,
                        **kwargs)
  assert done.returncode == 0, "%s: %s" % (command, done.stdout)
  return done.stdout


class Machine(object):
  """A set of namespaces, from its making to `close`.

  Args:
    name: host name.
  """

  def __init__(self, name):
    self.name = name
    self.address = None
    self._unshare = subprocess.Popen(
        ["unshare", "--net", "--uts", "--mount", "--pid", "--fork",
         "--mount-proc", sys.executable, "-c", _INIT],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert self._unshare.stdout.readline() == b"up\n"
    (self.init,) = _children(self._unshare.pid)
    self.check("hostname", name)
    # What programs keep in memory or find by a fixed path is each machine's.
    for folder in ("/dev/shm", "/run"):
      self.check("mount", "-t", "tmpfs", "tmpfs", folder)
    self.ip("link set lo up")

  def command(self, words, folder="/"):
    """Returns the command that runs `words` in this machine."""
    return ["nsenter", "--target=%d" % self.init, "--net", "--uts", "--mount",
            "--pid", "--wd=%s" % folder] + [str(word) for word in words]

  def check(self, *words):
    """Runs a command here and returns what it printed; fails if it does."""
    return _check(self.command(words))

  def ip(self, words):
    """Runs ip(8) on this machine's network; process ids are the outside's."""
    _check(["nsenter", "--target=%d" % self.init, "--net", "ip"]
           + words.split())

  def popen(self, words, folder="/", **kwargs):
    """Starts a command here; see `signal` for its end before its time."""
    return subprocess.Popen(self.command(words, folder), **kwargs)

  @staticmethod
  def signal(process, number=signal.SIGTERM):
    """Sends a signal to what `popen` started.

    The process that it returned only waits for the one in the machine.
    """
    for child in _children(process.pid):
      os.kill(child, number)

  def hide(self, folder):
    """Gives the machine an empty folder of its own in the place of one."""
    folder.mkdir()
    self.check("mount", "-t", "tmpfs", "tmpfs", folder)

  def processes(self):
    """Returns {process id: command line} of what runs here besides servers."""
    found = {}
    mine = os.readlink("/proc/%d/ns/pid" % self.init)
    for name in filter(str.isdigit, os.listdir("/proc")):
      folder = pathlib.Path("/proc", name)
      with contextlib.suppress(OSError):
        if os.readlink(str(folder / "ns/pid")) != mine:
          continue
        words = (folder / "cmdline").read_bytes().decode("utf-8", "replace")
        words = words.replace("\0", " ").strip()
        program = (folder / "comm").read_text().strip()
        if words and int(name) != self.init and program not in _SERVERS:
          found[int(name)] = words
    return found

  def close(self):
    """Ends all that runs here."""
    self._unshare.stdin.close()
    self._unshare.wait()
    self._unshare.stdout.close()


class Network(object):
  """Machines that reach each other by name through a switch.

  Args:
    folder: pathlib.Path of an empty folder for keys, settings and logs, and
      for temporary files in `tmp`.
    names: their host names.
  """

  def __init__(self, folder, names):
    self.folder = folder
    (folder / "tmp").mkdir()
    self.machines = []
    self._open = contextlib.ExitStack()
    try:
      self._start(names)
    except BaseException:
      self.close()
      raise

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.close()

  def _start(self, names):
    self._switch = self._machine("switch")
    self._switch.ip("link add bridge type bridge")
    self._switch.ip("link set bridge up")
    hosts = self.folder / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(
        "%s %s\n" % (_ADDRESS % number, name)
        for number, name in enumerate(names, 1)))
    for number, name in enumerate(names, 1):
      machine = self._machine(name)
      machine.address = _ADDRESS % number
      self._switch.ip("link add %s type veth peer name eth0 netns %d"
                      % (name, machine.init))
      self._switch.ip("link set %s master bridge up" % name)
      machine.ip("address add %s/24 dev eth0" % machine.address)
      machine.ip("link set eth0 up")
      machine.check("mount", "--bind", hosts, "/etc/hosts")
      self.machines.append(machine)

  def _machine(self, name):
    machine = Machine(name)
    self._open.callback(machine.close)
    return machine

  def cut(self, machine):
    """Pulls the cable of a machine; the others notice nothing at once."""
    self._switch.ip("link set %s down" % machine.name)

  def mend(self, machine):
    """Puts the cable back."""
    self._switch.ip("link set %s up" % machine.name)

  def close(self):
    """Ends all machines."""
    self._open.close()


def start_sshd(network):
  """Starts an SSH server on each machine, with keys of its own.

  Returns:
    the folder with a program `ssh` that reaches them without questions: to be
    the first of PATH.
  """
  folder = network.folder
  for name in ("key", "host_key"):
    _check(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f",
            str(folder / name)])
  (folder / "sshd_config").write_text(
      "HostKey {0}/host_key\nAuthorizedKeysFile {0}/key.pub\nStrictModes no\n"
      "UsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
      "PidFile none\nSetEnv TMPDIR={0}/tmp\n".format(folder))
  names = [machine.name for machine in network.machines]
  key = (folder / "host_key.pub").read_text()
  (folder / "known_hosts").write_text("%s %s" % (",".join(names), key))
  (folder / "ssh_config").write_text(
      "IdentityFile {0}/key\nIdentitiesOnly yes\nBatchMode yes\n"
      "UserKnownHostsFile {0}/known_hosts\nGlobalKnownHostsFile /dev/null\n"
      "StrictHostKeyChecking yes\n".format(folder))
  programs = folder / "bin"
  programs.mkdir()
  (programs / "ssh").write_text('#!/bin/sh\nexec %s -F "%s" "$@"\n' % (
      _program("ssh"), folder / "ssh_config"))
  (programs / "ssh").chmod(0o755)
  for machine in network.machines:
    # It separates privileges by a folder that has to be there.
    machine.check("mkdir", "/run/sshd")
    machine.check(_program("sshd"), "-f", folder / "sshd_config", "-E",
                  folder / ("sshd-%s.log" % machine.name))
  return programs


_SLURM_CONF = """
ClusterName=test
SlurmctldHost={first}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
# Without control groups, which a container rarely hands on.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=10
# A requeued job waits for this long, two minutes without it.
AuthInfo=cred_expire=10
SchedulerParameters=sched_interval=5,bf_interval=5
"""


class Slurm(object):
  """Slurm on the machines of a network; the first one controls them.

  Args:
    network: Network.
  """

  def __init__(self, network):
    self.folder = network.folder
    self.machines = network.machines
    self._environment = dict(os.environ, SLURM_CONF=str(
        self.folder / "slurm.conf"))
    self._write_settings()
    for number, machine in enumerate(self.machines):
      self._start_munge(machine)
      if number == 0:
        self._daemon(machine, "slurmctld")
      self._daemon(machine, "slurmd", "-N", machine.name)
    idle = "idle %d" % len(self.machines)
    wait_until(lambda: idle in self.ask("sinfo", "-h", "-o", "%T %D"), 60,
               lambda: self.ask("sinfo", "--long", "--Node"))

  def _write_settings(self):
    cores = os.cpu_count()
    text = _SLURM_CONF.format(folder=self.folder, first=self.machines[0].name)
    for machine in self.machines:
      text += "NodeName=%s NodeAddr=%s CPUs=%d State=UNKNOWN\n" % (
          machine.name, machine.address, cores)
    text += "PartitionName=all Nodes=ALL Default=YES State=UP\n"
    (self.folder / "slurm.conf").write_text(text)
    (self.folder / "state").mkdir()
    key = self.folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)

  def _start_munge(self, machine):
    # Where all its clients look for it; /run is the machine's own.
    machine.check("mkdir", "-p", "/run/munge")
    machine.check(
        _program("munged"), "--force", "--key-file",
        self.folder / "munge.key", "--log-file",
        self.folder / ("munged-%s.log" % machine.name), "--seed-file",
        self.folder / ("munged-%s.seed" % machine.name))

  def _daemon(self, machine, name, *words):
    _check(machine.command([_program(name)] + list(words)),
           env=self._environment)

  def ask(self, *words, folder="/", **environment):
    """Runs one of Slurm's commands on the first machine; returns its output.

    Args:
      words: the command.
      folder: where to run it, and a job.
      environment: variables for it, and for a job.
    """
    return _check(self.machines[0].command(words, folder),
                  env=dict(self._environment, **environment))
