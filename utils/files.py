"""Files: globs, whole-or-not-at-all writing, hashes and the folder lock."""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
import time

from utils import errors
from utils.errors import UserError

# In temporary names, which several machines may write to one folder.
_HOST = re.sub(r"[^A-Za-z0-9_-]", "_", os.uname().nodename)
_OLD_SECONDS = 86400


def expand_globs(patterns, flag):
  """Returns the sorted distinct files that comma separated globs match.

  Args:
    patterns: string with commas between globs, or a list of globs.
    flag: name of the flag, for the message.

  Raises:
    UserError: if a pattern matches no file.
  """
  if isinstance(patterns, str):
    patterns = patterns.split(",")
  patterns = patterns or []
  found = set()
  for pattern in (p.strip() for p in patterns):
    if not pattern:
      continue
    matches = [p for p in glob.glob(pattern) if os.path.isfile(p)]
    if not matches:
      raise UserError("--%s: no file matches %s" % (flag, pattern))
    found.update(matches)
  if not found:
    raise UserError("--%s is required: it names no file" % flag)
  return sorted(found)


def require_file(path, flag):
  """Returns `path`; raises UserError if it is not a readable file."""
  if not path:
    raise UserError("--%s is required" % flag)
  if not os.path.isfile(path):
    raise UserError("--%s: no such file: %s" % (flag, path))
  if not os.access(path, os.R_OK):
    raise UserError("--%s: cannot read %s: check its permissions"
                    % (flag, path))
  return path


def require_output_dir(path, flag):
  """Creates folder `path` where missing; UserError if it cannot be written."""
  if not path:
    raise UserError("--%s is required" % flag)
  try:
    os.makedirs(path, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
      pass
  except OSError as error:
    raise UserError("--%s: cannot write to %s (%s)"
                    % (flag, path, error.strerror))
  return path


@contextlib.contextmanager
def writing(path, flag):
  """Turns what keeps the block from writing `path` into a UserError.

  A full disk stays what it is: it has a line of its own.
  """
  try:
    yield
  except OSError as error:
    if errors.disk_full(error):
      raise
    raise UserError("--%s: cannot write %s (%s)"
                    % (flag, path, error.strerror or error))


@contextlib.contextmanager
def atomic_write(path, binary=False):
  """Yields a file that becomes `path` when the block ends without an error.

  Until then it has a temporary name in the same folder, so a reader never
  sees half a file and an older `path` survives a crash.
  """
  folder = os.path.dirname(os.path.abspath(path))
  os.makedirs(folder, exist_ok=True)
  temporary = os.path.join(folder, ".%s.%s.%d.tmp" % (
      os.path.basename(path), _HOST, os.getpid()))
  try:
    if binary:
      stream = open(temporary, "wb")
    else:
      stream = open(temporary, "w", encoding="utf-8")
    with stream:
      yield stream
      stream.flush()
      os.fsync(stream.fileno())
    os.replace(temporary, path)
  finally:
    if os.path.exists(temporary):
      os.remove(temporary)


def _is_running(process):
  """Says whether a process (its number as str) lives; a zombie does not."""
  try:
    with open("/proc/%s/stat" % process) as stream:
      return stream.read().rpartition(")")[2].split()[0] != "Z"
  except OSError:
    return False


def remove_leftovers(path):
  """Removes the temporary files that killed writers of `path` left.

  Writers on other machines cannot be looked at: what they left goes once it is
  a day old.
  """
  folder, name = os.path.split(os.path.abspath(path))
  for leftover in glob.glob(os.path.join(
      glob.escape(folder), ".%s.*.tmp" % glob.escape(name))):
    host, _, process = os.path.basename(
        leftover)[len(name) + 2:-len(".tmp")].rpartition(".")
    if not process.isdigit():
      continue
    with contextlib.suppress(FileNotFoundError):
      if host == _HOST:
        dead = not _is_running(process)
      else:
        dead = time.time() - os.stat(leftover).st_mtime > _OLD_SECONDS
      if dead:
        os.remove(leftover)


@contextlib.contextmanager
def atomic_folder(path):
  """Yields a temporary folder that becomes `path` when the block succeeds.

  A folder that already stands at `path` is replaced.
  """
  parent = os.path.dirname(os.path.abspath(path))
  os.makedirs(parent, exist_ok=True)
  temporary = tempfile.mkdtemp(
      prefix=".%s." % os.path.basename(path), suffix=".tmp", dir=parent)
  try:
    yield temporary
    os.chmod(temporary, 0o755)
    if os.path.isdir(path):
      shutil.rmtree(path)
    os.replace(temporary, path)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def read_json(path, what):
  """Returns the parsed JSON file; UserError names `what` and the place."""
  try:
    with open(path, encoding="utf-8-sig") as stream:
      return json.load(stream)
  except OSError as error:
    raise UserError("%s: cannot read %s (%s)" % (what, path, error.strerror))
  except ValueError as error:
    raise UserError("%s: %s is not valid JSON (%s)" % (what, path, error))
  except RecursionError:
    raise UserError("%s: %s is not valid JSON (too deeply nested)"
                    % (what, path))


def write_json(path, value):
  """Writes `value` as indented JSON, whole or not at all."""
  with atomic_write(path) as stream:
    json.dump(value, stream, indent=2, ensure_ascii=False)
    stream.write("\n")


def sha256_of_file(path):
  """Returns the SHA-256 of a file's content as 64 hexadecimal digits."""
  digest = hashlib.sha256()
  with open(path, "rb") as stream:
    for block in iter(lambda: stream.read(1 << 20), b""):
      digest.update(block)
  return digest.hexdigest()


def stable_hash(value):
  """Returns 16 hexadecimal digits that depend only on JSON-able `value`."""
  text = json.dumps(value, sort_keys=True, ensure_ascii=False)
  return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


class FolderLock(object):
  """Holds a folder for one run; the kernel frees it however the run ends.

  Raises:
    UserError: on entering, if another living process holds the folder.
  """

  def __init__(self, folder):
    self._path = os.path.join(folder, ".lock")
    self._stream = None

  def __enter__(self):
    self._stream = open(self._path, "a+")
    try:
      fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      self._stream.seek(0)
      holder = self._stream.read().strip() or "unknown"
      self._stream.close()
      raise UserError(
          "another run (process %s) is writing to %s: wait for it, stop it, "
          "or use another folder" % (holder, os.path.dirname(self._path)))
    self._stream.truncate(0)
    self._stream.write("%d\n" % os.getpid())
    self._stream.flush()
    return self

  def __exit__(self, *unused):
    self._stream.close()
