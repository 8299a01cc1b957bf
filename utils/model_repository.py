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
_FINGERPRINT = "export_fingerprint"
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
                if re.match(r"[1-9]\d*$", entry)
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


def _remove_leftovers(repository):
  """Removes what killed exporters left beside the repository."""
  for folder in glob.glob(glob.escape(_hidden(repository, ".")) + "*.tmp"):
    with contextlib.suppress(UserError, OSError):
      with files.FolderLock(folder):
        shutil.rmtree(folder)


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
    shutil.rmtree(folder, ignore_errors=True)
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
    prints = {str(n): _fingerprint_of(os.path.join(target, str(n)))
              for n in others}
    prints[str(version)] = description["fingerprint"]
    settings = settings._replace(parameters=dict(
        settings.parameters, **{_FINGERPRINT: files.stable_hash(prints)}))
    if others:
      _log_changes(_check_common(repository, settings, others), settings)
      # Before the version: a fingerprint that changes too early costs a client
      # its earlier answers, one that changes too late mixes two models'.
      _write_configs(target, settings)
      _swap(source, os.path.join(target, str(version)))
    else:
      _write_configs(new, settings)
      os.rename(source, os.path.join(new, str(version)))
      _swap(new, target)
  return os.path.join(target, str(version))


def _fingerprint_of(folder):
  """Returns the fingerprint of the version in `folder`; "" if it has none."""
  path = os.path.join(folder, DESCRIPTION)
  if not os.path.exists(path):
    return ""
  return files.read_json(path, DESCRIPTION).get("fingerprint", "")


def _write_configs(folder, settings):
  for name, kind in ((CPU_CONFIG, "cpu"), (CONFIG, "gpu")):
    with files.atomic_write(os.path.join(folder, name)) as stream:
      stream.write(model_config.text(settings, kind))


def _swap(source, target):
  """Makes folder `source` folder `target`; one that is there becomes `source`.

  There is no moment without `target` where Linux and the file system can
  exchange two names (renameat2, since glibc 2.28).
  """
  if not os.path.exists(target):
    os.rename(source, target)
    return
  exchange = getattr(ctypes.CDLL(None), "renameat2", None)
  if exchange and exchange(_HERE, os.fsencode(os.path.abspath(source)), _HERE,
                           os.fsencode(os.path.abspath(target)),
                           _EXCHANGE) == 0:
    return
  os.rename(target, source + ".old")
  os.rename(source, target)
