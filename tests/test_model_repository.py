"""The repository on disk: versions side by side, each whole or not there."""

import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from utils import model_config
from utils import model_repository
from utils.errors import UserError

pytestmark = pytest.mark.once


def settings(**changes):
  return model_config.ModelSettings(
      name="bert", platform=model_config.SAVED_MODEL, seq_length=48,
      max_batch_size=8, delay_ms=0.0, max_queue_size=0, engine_count=1,
      mixed_precision=False, xla=False,
      parameters={"vocab_sha256": "a1"})._replace(**changes)


def put(repository, version=1, content="weights", overwrite=False, **changes):
  """Publishes a version with one file; returns its folder."""
  with model_repository.staged(str(repository)) as stage:
    model = pathlib.Path(stage) / "model" / "model.savedmodel"
    model.mkdir(parents=True)
    for part in ("one", "two"):
      (model / part).write_text(content)
    return pathlib.Path(model_repository.publish(
        str(repository), settings(**changes), version, overwrite, stage,
        {"fingerprint": content}))


def config(repository, name="config.pbtxt"):
  path = repository / "bert" / name
  return model_config.read(path.read_text(), str(path))


def contents(folder):
  """Returns {path: text} of all files of a version's model."""
  return {str(path.relative_to(folder)): path.read_text()
          for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def repository(tmp_path):
  return tmp_path / "out" / "models"


@pytest.fixture
def warnings(caplog, monkeypatch):
  """pytest's `caplog` with the warnings of the suite's log.

  A test before may have set up the log of a program, or of a rank above 0.
  """
  monkeypatch.setattr(model_repository.LOGGER, "propagate", True)
  caplog.set_level("WARNING", logger=model_repository.LOGGER.name)
  return caplog


def test_a_model_and_nothing_else(repository):
  folder = put(repository)
  assert folder == repository / "bert" / "1"
  assert sorted(contents(repository)) == [
      "bert/1/export.json", "bert/1/model.savedmodel/one",
      "bert/1/model.savedmodel/two", "bert/config.pbtxt",
      "bert/configs/cpu.pbtxt"]
  assert config(repository)[1] == "gpu"
  assert config(repository, "configs/cpu.pbtxt")[1] == "cpu"
  assert [path.name for path in repository.parent.iterdir()
          if path.is_dir()] == ["models"]
  # Servers run as other users.
  for path in repository.rglob("*"):
    assert path.stat().st_mode & 0o044 == 0o044


def test_versions_side_by_side_and_overwriting(repository):
  put(repository, 1, "first")
  put(repository, 12, "second")
  assert model_repository.versions(str(repository), "bert") == [1, 12]
  for version in (1, 12):
    with pytest.raises(UserError) as caught:
      put(repository, version, "third")
    assert "--trtis_model_version=%d" % version in str(caught.value)
    assert "--trtis_model_overwrite" in str(caught.value)
  before = contents(repository / "bert" / "1")
  put(repository, 12, "third", overwrite=True)
  assert contents(repository / "bert" / "1") == before
  assert set(contents(repository / "bert" / "12" / "model.savedmodel")
             .values()) == {"third"}


def test_fingerprint_changes_with_every_version(repository):
  seen = []
  for version, content in ((1, "a"), (2, "b"), (1, "c"), (2, "c")):
    put(repository, version, content, overwrite=True)
    seen.append(config(repository)[0].parameters["export_fingerprint"])
  assert len(set(seen)) == 4
  put(repository, 2, "b", overwrite=True)
  put(repository, 1, "a", overwrite=True)
  again = config(repository)[0].parameters["export_fingerprint"]
  assert again == seen[1]


def test_one_configuration_for_all_versions(repository, warnings):
  put(repository, 1)
  for changes in (dict(seq_length=64), dict(platform=model_config.ONNX),
                  dict(parameters={"vocab_sha256": "b2"}),
                  dict(parameters={"vocab_sha256": "a1", "more": "1"})):
    with pytest.raises(UserError) as caught:
      put(repository, 2, **changes)
    assert "--trtis_model_name=bert" in str(caught.value)
    assert "config.pbtxt" in str(caught.value)
  assert model_repository.versions(str(repository), "bert") == [1]
  put(repository, 2, max_batch_size=16)
  assert config(repository)[0].max_batch_size == 16
  assert "max_batch_size was 8, is now 16" in warnings.text


def test_the_only_version_may_become_another_model(repository):
  put(repository, 1)
  put(repository, 1, overwrite=True, seq_length=64,
      parameters={"vocab_sha256": "b2"})
  found, _ = config(repository)
  assert found.seq_length == 64 and found.parameters["vocab_sha256"] == "b2"


def can_exchange(folder):
  """Whether names can be exchanged on this file system."""
  for name in "ab":
    (folder / name).mkdir()
  return model_repository._exchange(str(folder / "a"), str(folder / "b"))


# Looks at a version all the time, as a server may.
OBSERVER = """
import sys
print("looking", flush=True)
seen = set()
while "last" not in seen:
  for part in ("one", "two"):
    with open(sys.argv[1] + "/" + part) as stream:
      seen.add(stream.read())
print(*sorted(seen))
"""


@pytest.mark.parametrize("others", [False, True])
def test_overwriting_without_a_moment_of_nothing(repository, tmp_path, others):
  if not can_exchange(tmp_path):
    pytest.skip("this file system cannot exchange names")
  for version in [1, 2] if others else [1]:
    put(repository, version, "0")
  observer = subprocess.Popen(
      [sys.executable, "-c", OBSERVER,
       str(repository / "bert" / "1" / "model.savedmodel")],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
  assert observer.stdout.readline() == "looking\n"
  for content in list(map(str, range(1, 100))) + ["last"]:
    put(repository, 1, content, overwrite=True)
  out, err = observer.communicate(timeout=60)
  assert observer.returncode == 0, err
  assert set(out.split()) <= set(map(str, range(100))) | {"last"}


@pytest.fixture
def no_exchange(monkeypatch):
  """A file system that cannot exchange names."""
  monkeypatch.setattr(model_repository, "_EXCHANGE", 1 << 20)


@pytest.mark.parametrize("others", [False, True])
def test_overwriting_where_names_cannot_be_exchanged(
    repository, no_exchange, others):
  for version in [1, 2] if others else [1]:
    put(repository, version, "old")
  put(repository, 1, "new", overwrite=True)
  assert (repository / "bert" / "1" / "model.savedmodel" / "one"
         ).read_text() == "new"
  assert not list(repository.parent.glob(".models.*.tmp"))


@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.parametrize("others", [False, True])
def test_what_was_put_aside_comes_back(repository, monkeypatch, no_exchange,
                                       others, is_killed):
  """The worst moment: the old one is away, the new one not yet there."""
  for version in [1, 2] if others else [1]:
    put(repository, version, "old")
  rename = os.rename

  def cut_short(source, target):
    rename(source, target)
    if os.path.basename(str(target)).startswith("aside"):
      if is_killed:
        os.kill(os.getpid(), signal.SIGKILL)
      raise OSError("the disk is gone")

  def overwrite():
    monkeypatch.setattr(os, "rename", cut_short)
    with pytest.raises(UserError):
      put(repository, 1, "new", overwrite=True)
  process = multiprocessing.get_context("fork").Process(target=overwrite)
  process.start()
  process.join(60)
  assert process.exitcode == (-signal.SIGKILL if is_killed else 0)
  one = repository / "bert" / "1" / "model.savedmodel" / "one"
  if is_killed:
    assert not one.exists()
    with model_repository.staged(str(repository)):
      pass
  assert one.read_text() == "old"
  assert not list(repository.parent.glob(".models.*.tmp"))


@pytest.mark.parametrize("others", [False, True])
def test_a_configuration_changed_by_hand_is_kept_beside(
    repository, warnings, others):
  for version in [1, 2] if others else [1]:
    put(repository, version)
  path = repository / "bert" / "config.pbtxt"
  edited = path.read_text() + (
      "model_operations { op_library_filename: '/models/lib.so' }\n")
  path.write_text(edited)
  put(repository, 1, overwrite=True)
  assert "config.pbtxt was changed by hand" in warnings.text
  assert "config.pbtxt.before beside it" in warnings.text
  kept = path.parent / "config.pbtxt.before"
  assert kept.read_text() == edited
  assert "model_operations" not in path.read_text()
  assert not (path.parent / "configs" / "cpu.pbtxt.before").exists()
  warnings.clear()
  put(repository, 1, overwrite=True)
  assert "by hand" not in warnings.text
  if others:  # the next one does not replace the first
    path.write_text("# mine\n" + edited)
    put(repository, 1, overwrite=True)
    assert kept.read_text() == edited
    assert (path.parent / "config.pbtxt.before2").read_text().startswith("# ")


@pytest.mark.parametrize("content", ["[]", "{", "7"])
def test_a_damaged_description_is_one_line(repository, content):
  path = put(repository, 1) / "export.json"
  path.write_text(content)
  with pytest.raises(UserError) as caught:
    put(repository, 2)
  assert str(path) in str(caught.value)


def test_missing_configuration_of_other_versions(repository):
  put(repository, 1)
  (repository / "bert" / "config.pbtxt").unlink()
  with pytest.raises(UserError) as caught:
    put(repository, 2)
  assert "config.pbtxt" in str(caught.value)


def _killed_at(place, repository, version):
  """Publishes in a process that is killed when it comes to `place`."""
  def stop(*unused, **unused_too):
    os.kill(os.getpid(), signal.SIGKILL)
  setattr(model_repository, place, stop)
  put(repository, version, "killed", overwrite=True)


@pytest.mark.parametrize("place", ["_write_configs", "_swap", "check",
                                   "_fingerprint_of"])
def test_killed_exporter_leaves_what_was_there(repository, place):
  put(repository, 1)
  put(repository, 2)
  before = contents(repository)
  process = multiprocessing.get_context("fork").Process(
      target=_killed_at, args=(place, repository, 3))
  process.start()
  process.join(60)
  assert process.exitcode == -signal.SIGKILL
  after = contents(repository)
  if place == "_swap":  # the configuration is that of all versions
    for name in ("bert/config.pbtxt", "bert/configs/cpu.pbtxt"):
      assert after.pop(name) != before.pop(name)
  assert after == before
  assert len(list(repository.parent.glob(".models.*.tmp"))) == 1
  put(repository, 4)
  assert not list(repository.parent.glob(".models.*.tmp"))


def test_first_version_killed_is_no_model(repository):
  process = multiprocessing.get_context("fork").Process(
      target=_killed_at, args=("_swap", repository, 1))
  process.start()
  process.join(60)
  assert process.exitcode == -signal.SIGKILL
  assert not list(repository.iterdir())


def test_concurrent_exporters_do_not_mix(repository):
  """Those of one version: the first wins, or the last, never parts of two."""
  refused = []

  def export(number):
    try:
      put(repository, 1, "content %d" % number)
    except UserError as error:
      refused.append(str(error))
  threads = [threading.Thread(target=export, args=(n,)) for n in range(6)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  assert len(refused) == 5
  found = set(contents(repository / "bert" / "1" / "model.savedmodel").values())
  assert len(found) == 1
  description = json.loads(
      (repository / "bert" / "1" / "export.json").read_text())
  assert found == {description["fingerprint"]}


def test_a_living_exporter_keeps_its_folder(repository):
  with model_repository.staged(str(repository)) as stage:
    put(repository, 1)
    assert os.path.isdir(stage)


def test_failed_export_leaves_nothing(repository):
  with pytest.raises(ZeroDivisionError):
    with model_repository.staged(str(repository)):
      raise ZeroDivisionError
  assert not list(repository.iterdir())
  assert not list(repository.parent.glob(".models.*.tmp"))


def test_place_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError) as caught:
    put(tmp_path / "file" / "models")
  assert "--trtis_model_repository" in str(caught.value)
  assert str(tmp_path / "file" / "models") in str(caught.value)
