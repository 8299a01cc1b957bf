"""Zip archives, whole or not at all, and nothing of them outside a folder."""

import os
import shutil
import stat
import struct
import zipfile
import zlib

from data.download import outcome
from data.download import state
from utils import files

_BAD = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError,
        NotImplementedError, RuntimeError)
_IGNORED = ("__MACOSX", ".DS_Store")


def _parts(info):
  """Returns the parts of a member's path; Failed if it may leave a folder.

  `zipfile` itself cuts `..` out of names on unpacking; an archive that has
  it is not the one that was published, so nothing of it is to be trusted.
  """
  name = info.filename
  parts = name.rstrip("/").split("/")
  # `orig_filename` still has the backslashes and zero bytes.
  if (not parts[0] or "\\" in info.orig_filename or
      "\0" in info.orig_filename or name[1:2] == ":" or
      any(part in ("", ".", "..") for part in parts)):
    raise outcome.Failed("unsafe archive: the name %r leaves the folder"
                         % info.orig_filename)
  kind = stat.S_IFMT(info.external_attr >> 16)
  if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
    raise outcome.Failed("unsafe archive: %r is a link or a device" % name)
  return parts


def _plan(archive):
  """Returns [(member, its path in the folder)] of the files of an archive.

  A folder that holds all the rest is left out of the paths.
  """
  found = []
  for info in archive.infolist():
    parts = _parts(info)
    if not info.filename.endswith("/") and not set(_IGNORED) & set(parts):
      found.append((info, parts))
  if not found:
    raise outcome.Failed("the archive holds no file")
  outer = {parts[0] for _, parts in found}
  strip = len(outer) == 1 and all(len(parts) > 1 for _, parts in found)
  plan = [(info, "/".join(parts[1:] if strip else parts))
          for info, parts in found]
  if len({path for _, path in plan}) < len(plan):
    raise outcome.Failed("unsafe archive: a name stands in it twice")
  return plan


def _need_room(folder, count):
  free = shutil.disk_usage(folder).free
  if free < count:
    raise outcome.NoSpace(
        "too little room to unpack: %s needed, %s free; the archive is kept"
        % (outcome.size_text(count), outcome.size_text(free)))


def _copy(archive, info, path):
  os.makedirs(os.path.dirname(path), exist_ok=True)
  # "x": a second name for the same file, by upper and lower case, is refused.
  with archive.open(info) as source, open(path, "xb") as target:
    shutil.copyfileobj(source, target, 1 << 20)
    target.flush()
    os.fsync(target.fileno())  # before the record says that it is there


def folder(archive_path, place, digests):
  """Unpacks an archive into the empty folder `place` and records its files.

  Args:
    archive_path: the zip file.
    place: the folder.
    digests: {name in the folder: published hash}; each has to be there.

  Returns:
    {name: entry of state.py}.

  Raises:
    Failed: if it is no whole archive, unsafe, or not what was published.
  """
  try:
    with zipfile.ZipFile(archive_path) as archive:
      plan = _plan(archive)
      _need_room(place, sum(info.file_size for info, _ in plan))
      for info, name in plan:
        _copy(archive, info, os.path.join(place, name))
  except (FileExistsError, NotADirectoryError, IsADirectoryError):
    raise outcome.Failed("unsafe archive: one name is a file and a folder")
  except _BAD as error:
    raise outcome.Failed("not a whole zip archive (%s)" % error)
  missing = sorted(set(digests) - {name for _, name in plan})
  if missing:
    raise outcome.Failed("the archive lacks %s" % ", ".join(missing))
  for name, digest in digests.items():
    found = state.digest_of(os.path.join(place, name), digest)
    if found != digest:
      raise outcome.Failed("wrong hash of %s in it: %s, published is %s"
                           % (name, found, digest))
  entries = {name: state.entry(os.path.join(place, name),
                               digests.get(name, "")) for _, name in plan}
  state.remember(place, entries)
  return entries


def text(archive_path, path):
  """Writes the only text of an archive to file `path`.

  Raises:
    Failed: if it is no whole archive, unsafe, or has not just one text.
  """
  try:
    with zipfile.ZipFile(archive_path) as archive:
      texts = [info for info, name in _plan(archive)
               if name.lower().endswith(".txt")]
      if len(texts) != 1:
        raise outcome.Failed("the archive holds %d texts, not one"
                             % len(texts))
      _need_room(os.path.dirname(path), texts[0].file_size)
      with archive.open(texts[0]) as source:
        with files.atomic_write(path, binary=True) as target:
          shutil.copyfileobj(source, target, 1 << 20)
  except _BAD as error:
    raise outcome.Failed("not a whole zip archive (%s)" % error)
