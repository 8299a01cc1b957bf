"""Brings one item to its place, whole and checked, or says why not."""

import contextlib
import glob
import os
import shutil

from data.download import fetch
from data.download import outcome
from data.download import state
from data.download import unpack
from data.download.outcome import Result
from utils import errors
from utils import files
from utils import logs
from utils.errors import UserError


def _folder_and_digests(item, path, digest):
  """Returns the folder with the record of an item, and what it must hold."""
  if item.kind == "folder":
    return path, dict(item.members)
  return os.path.dirname(path), {os.path.basename(path): digest}


def there_already(item, data_dir, digest=None, keep=True):
  """Returns a `Result` if the item is in place, right and whole, else None.

  Args:
    item: `sources.Item`.
    data_dir: folder.
    digest: its published hash if that is known by now; None: the item's.
    keep: whether a hash that had to be computed goes to the record.
  """
  path = os.path.join(data_dir, item.path)
  folder, digests = _folder_and_digests(
      item, path, item.digest if digest is None else digest)
  found = state.recognise(folder, digests)
  if not found:
    return None
  if keep and any(state.read(folder).get(name) != entry
         for name, entry in found.items()):
    with contextlib.suppress(OSError):  # a folder that may only be read
      state.remember(folder, found)
  return _result(item, outcome.HAD, found)


def _result(item, status, entries):
  checked = item.members or entries
  return Result(item.what, item.name, status,
                sum(entry["bytes"] for entry in entries.values()),
                all(entries[name]["digest"] for name in checked))


def get(item, data_dir, client):
  """Fetches an item unless it is there already.

  Args:
    item: `sources.Item`.
    data_dir: folder.
    client: `fetch.Client`.

  Returns:
    `Result`. What keeps one item from coming does not keep the next.

  Raises:
    OSError: if the disk is full.
  """
  status = outcome.FAILED
  try:
    had = there_already(item, data_dir)
    if had and (had.verified or not item.sums):
      return had
    place = os.path.dirname(os.path.join(data_dir, item.path))
    os.makedirs(place, exist_ok=True)
    with files.FolderLock(place):
      result = _get(item, data_dir, client)
    if result.status == outcome.GOT:
      logs.LOGGER.info("%s %s: got %s", item.what, item.name,
                       outcome.size_text(result.bytes))
    return result
  except outcome.Skipped as error:
    status, note = outcome.SKIPPED, "%s%s" % (error, item.hint)
  except (outcome.Failed, UserError) as error:
    note = error
  except OSError as error:
    if errors.disk_full(error):
      raise
    note = "cannot write %s (%s)" % (error.filename or item.path,
                                     error.strerror or error)
  note = errors.one_line(note)
  logs.LOGGER.warning("%s %s: %s: %s (%s)", item.what, item.name, status,
                      note, item.url)
  return Result(item.what, item.name, status, note=note)


def _get(item, data_dir, client):
  path = os.path.join(data_dir, item.path)
  digest = item.digest
  if item.sums:
    digest = _published_digest(item, client)
    had = there_already(item, data_dir, digest)
    if had:
      return had
  partial = _partial(item, path)
  logs.LOGGER.info("%s %s: fetching %s", item.what, item.name, item.url)
  for last in (False, True):
    resumed = client.fetch(item.url, partial, item.size, item.delay)
    try:
      return _result(item, outcome.GOT, _install(item, digest, partial, path))
    except outcome.NoSpace:
      raise
    except outcome.Failed as error:
      fetch.discard(partial)
      if last or not resumed:
        raise
      # The server may have another version by now, or a crash left a hole.
      logs.LOGGER.info("%s %s: %s after it was resumed, fetching it again from "
                       "the start", item.what, item.name, error)


def _partial(item, path):
  if item.kind == "folder":
    return os.path.join(os.path.dirname(path), item.name + ".part")
  return path + ".part"


def _published_digest(item, client):
  """Returns the hash of an item from the list beside it; "" without one."""
  kind, url = item.sums
  try:
    listed = [line.split() for line in client.text(url).splitlines()]
  except outcome.Skipped as error:
    logs.LOGGER.warning("%s %s: no list of hashes, %s (%s)", item.what,
                        item.name, error, url)
    return ""
  for words in listed:
    if len(words) == 2 and words[1].lstrip("*") == item.name:
      return "%s:%s" % (kind, words[0].lower())
  logs.LOGGER.warning("%s %s: not in the list of hashes %s", item.what,
                      item.name, url)
  return ""


def _install(item, digest, partial, path):
  """Checks what came and gives it its final name; returns its entries.

  Raises:
    Failed: if it is not what was published.
  """
  if digest:
    found = state.digest_of(partial, digest)
    if found != digest:
      raise outcome.Failed("wrong hash: %s, published is %s" % (found, digest))
  if item.kind == "folder":
    entries = _install_folder(item, partial, path)
  elif item.kind == "text":
    written = path + ".new"
    unpack.text(partial, written)
    entries = _install_file("", written, path)
  else:
    entries = _install_file(digest, partial, path)
  fetch.discard(partial)
  return entries


def _install_file(digest, written, path):
  with open(written, "rb") as stream:
    os.fsync(stream.fileno())
  folder, name = os.path.split(path)
  entries = {name: state.entry(written, digest)}
  _move_aside(path)
  state.remember(folder, entries)
  os.replace(written, path)
  return entries


def _install_folder(item, partial, path):
  # A process that was killed while it unpacked left these; the lock is ours.
  parent, name = os.path.split(path)
  for left in glob.glob(os.path.join(glob.escape(parent), ".%s.*.tmp"
                                     % glob.escape(name))):
    shutil.rmtree(left, ignore_errors=True)
  with files.atomic_folder(path) as place:
    entries = unpack.folder(partial, place, item.members)
    _move_aside(path)
  return entries


def _move_aside(path):
  """Keeps what stands at `path`, which is not what was published."""
  if not os.path.lexists(path):
    return
  copy, number = path + ".old", 1
  while os.path.lexists(copy):
    number += 1
    copy = "%s.old%d" % (path, number)
  os.rename(path, copy)
  logs.LOGGER.warning("%s was not the published one; it is now %s", path, copy)
