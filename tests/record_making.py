"""Small texts and calls of create_pretraining_data for its tests."""

import hashlib
import os
import random
import subprocess
import sys
import textwrap

import pytest

import create_pretraining_data as cpd
from utils.errors import UserError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["w%d" % i for i in range(200)]
# What the text, vocabulary and settings of `config` give, on every Python.
GOLDEN = "21b93c9f845013678ca032319a72fbda1583164923d833a75bfc950ee347940d"


def write(path, text):
  path.write_bytes(text.encode("utf-8"))
  return str(path)


def text_of(seed, documents=12, sentences=30):
  """Returns random sentences, one a line, and blank lines between texts."""
  chance = random.Random(seed)
  return "\n\n".join(
      "\n".join(
          " ".join(WORDS[int(chance.random() ** 2 * 200)]
                   for _ in range(3 + int(chance.random() * 12)))
          for _ in range(sentences))
      for _ in range(documents)) + "\n"


@pytest.fixture
def config(tmp_path):
  """A DataConfig for one small text file, to tmp_path/out.tfrecord."""
  # Every other word has two pieces.
  pieces = ["w"] + ["##%d" % i for i in range(200)] + WORDS[::2]
  return cpd.DataConfig(
      input_file=write(tmp_path / "text.txt", text_of(1)),
      output_file=str(tmp_path / "out.tfrecord"),
      vocab_file=write(tmp_path / "vocab.txt", "\n".join(SPECIAL + pieces)),
      do_lower_case=True, do_whole_word_mask=False, max_seq_length=64,
      max_predictions_per_seq=10, random_seed=12345, dupe_factor=3,
      masked_lm_prob=0.15, short_seq_prob=0.1, num_workers=1,
      num_shards=None, shard_index=None, wait_minutes=0.0)


def sha(path):
  with open(path, "rb") as stream:
    return hashlib.sha256(stream.read()).hexdigest()


def make(config):
  """Runs a DataConfig as the command line would."""
  cpd.run(cpd.checked(config))


def error_of(config):
  """Returns the one line of the UserError that `config` must raise."""
  with pytest.raises(UserError) as caught:
    make(config)
  message = str(caught.value)
  assert "\n" not in message
  return message


def flags_of(config):
  return ["--%s=%s" % (name, value)
          for name, value in config._asdict().items() if value is not None]


def start(root, config, prelude=""):
  """Starts the command in a process of its own, after `prelude` code."""
  code = textwrap.dedent(prelude) + textwrap.dedent("""
      import sys
      import create_pretraining_data as cpd
      from utils.errors import run_main
      sys.argv[0] = "create_pretraining_data.py"
      cpd.define_flags()
      run_main(cpd.main)
      """)
  return subprocess.Popen(
      [sys.executable, "-c", code] + flags_of(config), cwd=str(root),
      stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def names(folder):
  return sorted(os.listdir(str(folder)))


# Stops for ever in the middle of one file's records.
STALL = """
    import os, time
    from utils import records
    class Stalling(records.RecordWriter):
      def write_framed(self, data, num_records):
        if %r not in str(self._stream.name):
          return super(Stalling, self).write_framed(data, num_records)
        self._stream.write(data[:len(data) // 2])
        self._stream.flush()
        print("stalled", os.getpid(), flush=True)
        time.sleep(1000)
    records.RecordWriter = Stalling
    """
