"""What lies in a folder already: by its hash, or as recorded when it came.

Each folder keeps a small file .download.json: {file name: {"bytes", "mtime_ns",
"digest"}}, written before a file gets its final name. A digest is written
"kind:hexadecimal digits"; "" where no hash was published.
"""

import hashlib
import os

from utils import files
from utils import logs
from utils.errors import UserError

_NAME = ".download.json"
_BLOCK = 1 << 20
# Below this a bar would only flicker.
_LONG = 1 << 28


def digest_of(path, digest):
  """Returns the file's hash of the same kind as `digest`, in its form."""
  kind = digest.split(":")[0]
  hasher = hashlib.new(kind)
  size = os.path.getsize(path)
  bar = (logs.progress(size, "B", "checking " + os.path.basename(path))
         if size >= _LONG else None)
  if bar:
    bar.unit_scale = True
  with open(path, "rb") as stream:
    for block in iter(lambda: stream.read(_BLOCK), b""):
      hasher.update(block)
      if bar:
        bar.update(len(block))
  if bar:
    bar.close()
  return "%s:%s" % (kind, hasher.hexdigest())


def read(folder):
  """Returns the record of a folder; {} where there is none."""
  path = os.path.join(folder, _NAME)
  if not os.path.exists(path):
    return {}
  try:
    record = files.read_json(path, "record")
  except UserError:
    return {}
  return record if isinstance(record, dict) else {}


def entry(path, digest):
  """Returns what the record says of file `path`, whose hash was checked."""
  status = os.stat(path)
  return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns,
          "digest": digest}


def remember(folder, entries):
  """Adds {file name: entry} to the record of a folder."""
  record = read(folder)
  record.update(entries)
  files.write_json(os.path.join(folder, _NAME), record)


def _checked(path, digest, recorded):
  """Returns the entry of a file that is the right one, else None.

  Args:
    path: the file.
    digest: its published hash, or "".
    recorded: its entry in the record, or None.
  """
  if not os.path.isfile(path):
    return None
  recorded = recorded if isinstance(recorded, dict) else {}
  wanted = digest or recorded.get("digest", "")
  found = entry(path, wanted)
  if found == recorded:
    return found
  if wanted:
    return found if digest_of(path, wanted) == wanted else None
  return found if found["bytes"] == recorded.get("bytes") else None


def recognise(folder, digests):
  """Returns {file name: entry} of the files that are there and right.

  Args:
    folder: where they lie.
    digests: {file name: published hash or ""} of all that have to be there.
      Without any, all that the record names.

  Returns:
    None if one of them is missing, not whole or not the published one.
  """
  record = read(folder)
  digests = digests or {name: "" for name in record}
  found = {}
  for name, digest in digests.items():
    found[name] = _checked(os.path.join(folder, name), digest,
                           record.get(name))
    if found[name] is None:
      return None
  return found or None
