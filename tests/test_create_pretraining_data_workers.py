"""create_pretraining_data: several processes, ranks, and long texts."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

import create_pretraining_data as cpd
from record_making import GOLDEN
from record_making import STALL
from record_making import config
from record_making import error_of
from record_making import flags_of
from record_making import make
from record_making import names
from record_making import sha
from record_making import start
from record_making import text_of
from record_making import write
from utils import files
from utils import records


class TestWorkers(object):
  """Several processes: the same bytes, and none is waited for in vain."""

  @pytest.fixture
  def folder(self, config, tmp_path):
    """A DataConfig from five files to a folder that is yet to be made."""
    (tmp_path / "text").mkdir()
    for i in range(5):
      write(tmp_path / "text" / ("%d.txt" % i), text_of(i, 4 + i))
    return config._replace(input_file=str(tmp_path / "text" / "*.txt"),
                           output_file=str(tmp_path / "made") + "/")

  @pytest.fixture
  def whole(self, folder, tmp_path):
    """Name and hash of each file that one process makes."""
    made = tmp_path / "whole"
    make(folder._replace(output_file=str(made) + "/"))
    return {name: sha(str(made / name)) for name in names(made)}

  @staticmethod
  def found(folder):
    return {name: sha(os.path.join(folder.output_file, name))
            for name in names(folder.output_file)}

  @pytest.mark.parametrize("num_workers", [2, 3, 8])
  def test_same_bytes(self, root, folder, whole, num_workers):
    process = start(root, folder._replace(num_workers=num_workers))
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert "all 5 files are there" in errors.decode()
    assert self.found(folder) == whole

  def test_parts(self, folder, whole):
    """Each part alone, in any order, and one of them twice."""
    for part, count in ((2, 1), (0, 2), (1, 2), (1, 2)):
      make(folder._replace(num_shards=3, shard_index=part))
      if (part, count) == (2, 1):
        assert names(folder.output_file) == [
            "2.tfrecord", "2.tfrecord.settings.json"]
    assert self.found(folder) == whole

  def test_waiting_for_others(self, folder):
    """Records of other settings are not those that are waited for."""
    make(folder)
    part = lambda index: folder._replace(
        num_shards=2, shard_index=index, dupe_factor=2, wait_minutes=0.0001)
    message = error_of(part(0))
    assert "2 of 5 record files are still missing, the first is" in message
    assert "/1.tfrecord" in message
    make(part(1))
    make(part(0))

  def test_mpirun(self, root, folder, whole):
    """Three ranks of Open MPI, which do not know of each other."""
    if not shutil.which("mpirun"):
      pytest.skip("no mpirun: Open MPI is not installed")
    process = subprocess.Popen(
        ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "3",
         sys.executable, "create_pretraining_data.py"] + flags_of(folder),
        cwd=str(root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = process.communicate()[0].decode()
    assert process.returncode == 0, output
    for part in (1, 2, 3):
      assert "part %d of 3 (OMPI_COMM_WORLD_RANK)" % part in output
    assert self.found(folder) == whole

  def stalled(self, root, folder):
    """Starts two workers of which one stops in 3; returns its id, too."""
    process = start(root, folder._replace(num_workers=2),
                    STALL % "3.tfrecord")
    word, worker = process.stdout.readline().split()
    assert word == b"stalled" and int(worker) != process.pid
    return process, int(worker)

  def test_killed_worker(self, root, folder, whole):
    process, worker = self.stalled(root, folder)
    # The other worker goes on: what it finishes has to outlive the kill.
    deadline = time.time() + 60
    while not any(name.endswith(records.SETTINGS_SUFFIX)
                  for name in names(folder.output_file)):
      assert time.time() < deadline, "the other worker finishes no file"
      time.sleep(0.01)
    os.kill(worker, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    lines = errors.decode().strip().split("\n")
    assert process.returncode == 1
    assert ("ERROR: worker process %d was killed by signal 9" % worker
            in lines[-1])
    assert "Traceback" not in errors.decode()
    # What was finished is kept; the rest follows.
    finished = {name: os.stat(folder.output_file + name).st_mtime_ns
                for name in names(folder.output_file)
                if name + records.SETTINGS_SUFFIX in names(folder.output_file)}
    assert finished and "3.tfrecord" not in finished
    make(folder)
    for name, before in finished.items():
      assert os.stat(folder.output_file + name).st_mtime_ns == before
    assert self.found(folder) == whole

  def test_killed_parent(self, root, folder, whole):
    """Its workers end with it."""
    process, worker = self.stalled(root, folder)
    with open("/proc/%d/task/%d/children" % (2 * (process.pid,))) as stream:
      children = stream.read().split()
    assert str(worker) in children and len(children) == 2
    process.kill()
    process.communicate(timeout=60)
    deadline = time.time() + 60
    while any(map(files._is_running, children)):
      assert time.time() < deadline, "a worker outlives its parent"
      time.sleep(0.01)
    make(folder)
    assert self.found(folder) == whole

  def test_bad_input_of_a_worker(self, root, folder, tmp_path):
    (tmp_path / "text" / "3.txt").write_bytes(b"\xff\xfe junk \x00")
    process = start(root, folder._replace(num_workers=2))
    _, errors = process.communicate(timeout=60)
    lines = errors.decode().strip().split("\n")
    assert process.returncode == 1 and "Traceback" not in errors.decode()
    assert "3.txt is not UTF-8 text (line 1)" in lines[-1]


class TestBlocks(object):
  """Texts that are too long to be held at once."""

  @pytest.fixture(autouse=True)
  def small(self, monkeypatch):
    monkeypatch.setattr(cpd, "BLOCK_BYTES", 2000)
    monkeypatch.setattr(cpd, "LONGEST_LINE", 400)

  @staticmethod
  def texts(config):
    tokenizer = cpd.tokenization.FullTokenizer(config.vocab_file)
    return list(cpd.read_texts(config.input_file.split(","), tokenizer))

  def test_all_documents_in_equal_blocks(self, config, monkeypatch):
    blocks = self.texts(config)
    monkeypatch.setattr(cpd, "BLOCK_BYTES", 1 << 20)
    whole, = self.texts(config)
    assert 5 <= len(blocks) <= -(-os.path.getsize(config.input_file) // 2000)
    assert [i for text in blocks for i in text.tokens] == whole.tokens.tolist()
    lengths = [b - a for text in blocks + [whole]
               for a, b in zip(text.firsts, text.firsts[1:])]
    assert lengths == 24 * [30]
    sizes = [len(text.tokens) for text in blocks]
    assert max(sizes) < 2 * min(sizes)

  def test_records(self, config):
    make(config)
    first = sha(config.output_file)
    make(config)
    assert sha(config.output_file) == first != GOLDEN
    assert records.count_records(config.output_file) > 100

  def test_several_files_and_empty_ones(self, config, tmp_path):
    paths = [write(tmp_path / ("%d.txt" % i), text)
             for i, text in enumerate(["\n\n", text_of(5), "", text_of(6)])]
    texts = self.texts(config._replace(input_file=",".join(paths)))
    assert sum(len(text.firsts) - 1 for text in texts) == 24

  def test_long_document_is_divided(self, config, tmp_path, caplog,
                                    monkeypatch):
    monkeypatch.setattr(cpd.LOGGER, "propagate", True)
    path = write(tmp_path / "long.txt", text_of(4, 1, 300))
    texts = self.texts(config._replace(input_file=path))
    assert sum(len(text.starts) - 1 for text in texts) == 300
    assert max(len(text.starts) for text in texts) < 110
    assert "is divided" in caplog.text

  def test_endless_line(self, config, tmp_path):
    path = write(tmp_path / "line.txt", "w1 w2\n" + 100 * "w1 w2 ")
    message = error_of(config._replace(input_file=path))
    assert "line 2 of %s has more than" % path in message
    assert "data/segment.py" in message
