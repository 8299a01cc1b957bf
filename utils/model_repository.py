"""Folders of models as Triton reads them: versions side by side, each whole.

  <repository>/<name>/config.pbtxt        for servers with GPUs
  <repository>/<name>/configs/cpu.pbtxt   for servers without
  <repository>/<name>/<version>/...       the model

What is written lies in a hidden folder beside the repository until it is
whole: a server takes every folder in the repository for a model, whatever its
name. From there it is renamed into place, so both must be on one file system.
"""

import contextlib
import ctypes
import fcntl
import glob
import os
import re
import shutil
import tempfile

from utils import files
from utils import model_config
from utils.errors import UserError
from utils.logs import LOGGER

CONFIG = "config.pbtxt"
CPU_CONFIG = os.path.join("configs", "cpu.pbtxt")
# What belongs to one version: where its weights came from, its fingerprint.
DESCRIPTION = "export.json"
# What a configuration was that had been changed by hand.
_EDITED = ".before"
_FINGERPRINT = "export_fingerprint"
_ASIDE = "aside"
_HERE, _EXCHANGE = -100, 2  # fcntl.h, linux/fs.h
# Of a configuration that all versions have in common, what no version can do
# without: servers and clients would take one model's for another's.
_COMMON = ("platform", "seq_length")


def versions(repository, name):
  """Returns the numbers of a model's versions, ascending."""
  folder = os.path.join(repository, name)
  if not os.path.isdir(folder):
    return []
  return sorted(int(entry) for entry in os.listdir(folder)
                if re.match(r"[1-9][0-9]*\Z", entry)
                and os.path.isdir(os.path.join(folder, entry)))


def check(repository, settings, version, overwrite):
  """Raises UserError if this version may not be written.

  Args:
    repository: folder of the models.
    settings: `model_config.ModelSettings` of the version.
    version: int.
    overwrite: bool, whether a version that is there may be replaced.
  """
  there = versions(repository, settings.name)
  if version in there and not overwrite:
    raise UserError(
        "--trtis_model_version=%d: %s is there already: give another version, "
        "or --trtis_model_overwrite=true to replace it"
        % (version, os.path.join(repository, settings.name, str(version))))
  if set(there) - {version}:
    _check_common(repository, settings, there)


def _check_common(repository, settings, there):
  """Returns the settings that the model's other versions have.

  There is one configuration for all versions of a model.

  Raises:
    UserError: unless they are of the same kind as `settings`.
  """
  path = os.path.join(repository, settings.name, CONFIG)
  try:
    with open(path, encoding="utf-8") as stream:
      old, _ = model_config.read(stream.read(), path)
  except OSError as error:
    raise UserError("%s: cannot read it (%s): versions %s need it; restore it, "
                    "or remove them" % (path, error.strerror, there))
  differing = ["%s is %s there, %s here" % (field, getattr(old, field),
                                            getattr(settings, field))
               for field in _COMMON
               if getattr(old, field) != getattr(settings, field)]
  names = set(old.parameters) | set(settings.parameters)
  differing += ["%s is %s there, %s here" % (
      key, old.parameters.get(key), settings.parameters.get(key))
                for key in sorted(names - {_FINGERPRINT})
                if old.parameters.get(key) != settings.parameters.get(key)]
  if differing:
    raise UserError(
        "--trtis_model_name=%s: all versions of a model share %s, and this one "
        "differs from those that are there (%s): give another name"
        % (settings.name, path, "; ".join(differing)))
  return old


def _log_changes(old, settings):
  """Tells what a configuration will say anew of a model's other versions."""
  for field in settings._fields:
    before, now = getattr(old, field), getattr(settings, field)
    if before != now and field != "parameters":
      LOGGER.warning("%s holds for all versions of %s: %s was %s, is now %s",
                     CONFIG, settings.name, field, before, now)


@contextlib.contextmanager
def _lock(path):
  """Holds file `path`, waiting for others that do."""
  with open(path, "a+") as stream:
    fcntl.flock(stream, fcntl.LOCK_EX)
    yield


def _hidden(repository, rest):
  parent, base = os.path.split(os.path.abspath(repository))
  return os.path.join(parent, ".%s%s" % (base, rest))


def _aside(folder, target, repository):
  """Returns where in a staged folder a replaced `target` is put."""
  names = os.path.relpath(target, repository).split(os.sep)
  return os.path.join(folder, "@".join([_ASIDE] + names))


def _clear(folder, repository):
  """Removes a staged folder; what was put aside in it alone goes back."""
  for path in glob.glob(os.path.join(glob.escape(folder), _ASIDE + "@*")):
    target = os.path.join(repository, *os.path.basename(path).split("@")[1:])
    if not os.path.exists(target):
      os.rename(path, target)
  shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(repository):
  """Removes what killed exporters left beside the repository."""
  for folder in glob.glob(glob.escape(_hidden(repository, ".")) + "*.tmp"):
    with contextlib.suppress(UserError, OSError):
      with files.FolderLock(folder):
        _clear(folder, repository)


@contextlib.contextmanager
def staged(repository):
  """Yields an empty folder beside the repository, on its file system.

  It is removed at the end, or by the next exporter after a kill.

  Raises:
    UserError: if it cannot be made.
  """
  with files.writing(repository, "trtis_model_repository"):
    os.makedirs(repository, exist_ok=True)
  above = os.path.dirname(os.path.abspath(repository))
  if os.stat(above).st_dev != os.stat(repository).st_dev:
    raise UserError(
        "--trtis_model_repository: %s and the folder above it are on two file "
        "systems: name a folder in %s" % (repository, repository))
  with files.writing(above, "trtis_model_repository"), _lock(
      _hidden(repository, ".lock")):
    _remove_leftovers(repository)
    folder = tempfile.mkdtemp(prefix=_hidden(repository, "."), suffix=".tmp")
    held = files.FolderLock(folder)
    held.__enter__()
  try:
    yield folder
  finally:
    _clear(folder, repository)
    held.__exit__()


def publish(repository, settings, version, overwrite, stage, description):
  """Puts what `stage`/model holds into the repository, in one step.

  A model of which there is no other version is replaced as a whole; else the
  configuration that all of them share is written, then the version appears.

  Args:
    repository: folder of the models.
    settings: `model_config.ModelSettings`, to which `export_fingerprint` is
      added: it changes with every change of any version.
    version: int.
    overwrite: see `check`, which is called again: time has passed.
    stage: folder of `staged`; its "model" becomes the version's folder.
    description: {str: value} for the version's export.json, with
      "fingerprint": str.

  Returns:
    The version's folder.
  """
  source, new = os.path.join(stage, "model"), os.path.join(stage, "new")
  files.write_json(os.path.join(source, DESCRIPTION), description)
  with files.writing(repository, "trtis_model_repository"), _lock(
      _hidden(repository, ".lock")):
    check(repository, settings, version, overwrite)
    target = os.path.join(repository, settings.name)
    others = [n for n in versions(repository, settings.name) if n != version]
    settings = _with_fingerprint(settings, target, others, version,
                                 description["fingerprint"])
    place = os.path.join(target, str(version))
    if others:
      _log_changes(_check_common(repository, settings, others), settings)
      # Before the version: a fingerprint that changes too early costs a client
      # its earlier answers, one that changes too late mixes two models'.
      _write_configs(target, settings, target)
      _swap(source, place, _aside(stage, place, repository))
    else:
      _write_configs(new, settings, target)
      os.rename(source, os.path.join(new, str(version)))
      _swap(new, target, _aside(stage, target, repository))
  return place


def _with_fingerprint(settings, target, others, version, fingerprint):
  """Returns settings with what changes with every version of the model.

  Args:
    settings: `model_config.ModelSettings`.
    target: the model's folder.
    others: the numbers of the versions that are there.
    version, fingerprint: of the new one.
  """
  prints = {str(n): _fingerprint_of(os.path.join(target, str(n)))
            for n in others}
  prints[str(version)] = fingerprint
  return settings._replace(parameters=dict(
      settings.parameters, **{_FINGERPRINT: files.stable_hash(prints)}))


def _fingerprint_of(folder):
  """Returns the fingerprint of the version in `folder`; "" if it has none."""
  path = os.path.join(folder, DESCRIPTION)
  if not os.path.exists(path):
    return ""
  found = files.read_json(path, DESCRIPTION)
  if not isinstance(found, dict):
    raise UserError("%s: not the description of an export: restore it, or "
                    "remove that version" % path)
  return found.get("fingerprint", "")


def _write_configs(folder, settings, older):
  """Writes both configurations; folder `older` may have earlier ones.

  Of those, what was changed by hand is kept beside the new one.
  """
  for name, kind in ((CPU_CONFIG, "cpu"), (CONFIG, "gpu")):
    path = os.path.join(folder, name)
    _keep_edited(os.path.join(older, name), path)
    with files.atomic_write(path) as stream:
      stream.write(model_config.text(settings, kind))


def _keep_edited(old, path):
  """Copies a configuration that no export wrote so to where it stays."""
  if not os.path.exists(old):
    return
  with open(old, encoding="utf-8", errors="replace") as stream:
    content = stream.read()
  if model_config.is_as_written(content):
    return
  kept, count = path + _EDITED, 1
  while os.path.exists(kept):
    count += 1
    kept = "%s%s%d" % (path, _EDITED, count)
  with files.atomic_write(kept) as stream:
    stream.write(content)
  LOGGER.warning("%s was changed by hand and is written anew: %s beside it "
                 "has what it was", old, os.path.basename(kept))


def _exchange(source, target):
  """Exchanges two names in one step; returns whether that could be done.

  Linux can, on most file systems (renameat2, since glibc 2.28).
  """
  exchange = getattr(ctypes.CDLL(None), "renameat2", None)
  return bool(exchange) and exchange(
      _HERE, os.fsencode(os.path.abspath(source)), _HERE,
      os.fsencode(os.path.abspath(target)), _EXCHANGE) == 0


def _swap(source, target, aside):
  """Makes folder `source` folder `target`; one that is there goes.

  There is no moment without `target` where names can be exchanged. Else it is
  put aside for that moment, from where `_clear` brings it back after a kill.
  """
  if not os.path.exists(target):
    os.rename(source, target)
  elif not _exchange(source, target):
    os.rename(target, aside)
    os.rename(source, target)
