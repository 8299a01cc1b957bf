"""Turns text into TFRecords for masked-LM and next-sentence pre-training.

The text has one sentence a line and blank lines between documents. The
instances are made by `utils/instances.py`; this is the shell that reads and
writes, in as many processes as there are cores. The same text, seed and
settings give the same bytes everywhere, however many processes there are.
"""

import hashlib
import os
import random as random_module
import time
from typing import List, NamedTuple, Optional

from absl import flags
import numpy as np

import tokenization
from utils import files
from utils import instances
from utils import logs
from utils import record_encoder
from utils import records
from utils import shares
from utils import stages
from utils import workers
from utils.errors import UserError
from utils.errors import run_main
from utils.logs import LOGGER

# The shortest sequence: [CLS] a [SEP] b [SEP]. The longest: 16 times BERT's
# own, and what a key of `instances` has room for.
SHORTEST, LONGEST = 5, 8192
# Text of which the instances are mixed with each other, at most; more is done
# block by block, so that memory does not grow with the text.
BLOCK_BYTES = 16 << 20
# A longer line is no sentence; as words it would take thirty times as much.
LONGEST_LINE = 2 << 20
# Tokens, padding included, that are masked and written at a time.
BATCH_TOKENS = 1 << 18
_BUFFER = 1 << 20
_ID_BYTES = 4
# A text of which so large a share is [UNK] is not what the vocabulary is for.
UNKNOWN_SHARE = 0.5


class DataConfig(NamedTuple):
  """The command line; see `define_flags`."""
  input_file: str
  output_file: str
  vocab_file: str
  do_lower_case: bool
  do_whole_word_mask: bool
  max_seq_length: int
  max_predictions_per_seq: int
  random_seed: int
  dupe_factor: int
  masked_lm_prob: float
  short_seq_prob: float
  num_workers: int
  num_shards: Optional[int]
  shard_index: Optional[int]
  wait_minutes: float


# What does not change the records.
_NOT_CONTENT = ("input_file", "output_file", "vocab_file", "num_workers",
                "num_shards", "shard_index", "wait_minutes")
# Another number: other records from the same text and settings.
_ALGORITHM = 2


class Job(NamedTuple):
  """Inputs that are mixed with each other and the files they end in."""
  inputs: List[str]
  outputs: List[str]
  seed: int


# ------------------------------------------------------- reading and writing


class _Lines(object):
  """Reads lines of text files in turn; every complaint names the place."""

  def __init__(self, paths):
    self._paths = paths

  def __iter__(self):
    """Yields (line without its end, bytes read), and "" after each file."""
    for path in self._paths:
      number = 0
      try:
        with open(path, "rb", _BUFFER) as stream:
          while True:
            number += 1
            line = stream.readline(LONGEST_LINE + 1)
            if len(line) > LONGEST_LINE:
              raise UserError(
                  "--input_file: line %d of %s has more than %d MB, but a line "
                  "should be a sentence: data/segment.py divides text so"
                  % (number, path, LONGEST_LINE >> 20))
            if not line:
              break
            yield line.decode("utf-8").strip(), len(line)
      except OSError as error:
        raise UserError("--input_file: cannot read %s (%s)"
                        % (path, error.strerror))
      except UnicodeDecodeError:
        raise UserError("--input_file: %s is not UTF-8 text (line %d): convert "
                        "it first" % (path, number))
      yield "", 0


class _TextBuilder(object):
  """Gathers sentences into a Text."""

  def __init__(self):
    self._tokens = bytearray()
    self._starts = [0]
    self._firsts = [0]

  @property
  def num_documents(self):
    return len(self._firsts) - 1

  def add_sentence(self, packed):
    """Adds the ids of a sentence, bytes of int32; none is no sentence."""
    if packed:
      self._tokens += packed
      self._starts.append(len(self._tokens) // _ID_BYTES)

  def end_document(self):
    """Ends the document; without sentences it is none."""
    if len(self._starts) - 1 > self._firsts[-1]:
      self._firsts.append(len(self._starts) - 1)

  def text(self):
    tokens = np.frombuffer(bytes(self._tokens), np.int32)
    return instances.Text(tokens, self._starts, self._firsts)


def read_texts(paths, tokenizer):
  """Reads text files, some 16 MB at a time.

  Args:
    paths: UTF-8 text, one sentence a line, blank lines between documents.
    tokenizer: FullTokenizer.

  Yields:
    `instances.Text`, several of about equal size where the files have more
    than BLOCK_BYTES. A longer document than that is divided.

  Raises:
    UserError: if a file cannot be read, is not UTF-8 or has an endless line,
      or if there is no text at all.
  """
  total = sum(map(_size_of, paths))
  block = total // max(1, -(-total // BLOCK_BYTES)) + 1
  builder, size, document = _TextBuilder(), 0, 0
  empty = True
  for line, num_bytes in _Lines(paths):
    size, document = size + num_bytes, document + num_bytes
    if line:
      builder.add_sentence(tokenizer.tokenize_to_packed(line))
      if document < BLOCK_BYTES:
        continue
      LOGGER.warning("a document of more than %d MB is divided: it is as long "
                     "as a shelf of books", BLOCK_BYTES >> 20)
    document = 0
    builder.end_document()
    if size >= block and builder.num_documents:
      yield builder.text()
      builder, size, empty = _TextBuilder(), 0, False
  if builder.num_documents:
    yield builder.text()
  elif empty:
    raise UserError("--input_file: %s holds no text" % ", ".join(paths))


def _size_of(path):
  try:
    return os.path.getsize(path)
  except OSError as error:
    raise UserError("--input_file: cannot read %s (%s)"
                    % (path, error.strerror))


def _warn_of_text(text, unknown, job, vocab_file):
  """Tells of what makes poor records of a Text."""
  if len(text.firsts) == 2:
    LOGGER.warning(
        "%s is a single document, so its \"random\" next sentences come from "
        "itself: put blank lines between documents", ", ".join(job.inputs))
  share = np.count_nonzero(text.tokens == unknown) / len(text.tokens)
  if share > UNKNOWN_SHARE:
    LOGGER.warning(
        "%.0f %% of the tokens of %s are [UNK]: is %s a vocabulary of that "
        "language?", 100 * share, ", ".join(job.inputs), vocab_file)


def records_of(text, config, rules, encoder, seed):
  """Yields the framed records of a Text, in random order, and their ends.

  Args:
    text: `instances.Text`.
    config: DataConfig.
    rules: `instances.Rules`.
    encoder: `record_encoder.BatchEncoder`.
    seed: int of 64 bits.
  """
  plan = instances.plan_instances(
      text, rules, config.dupe_factor, random_module.Random(seed).random)
  chance = np.random.RandomState([seed & 0xffffffff, seed >> 32])
  order = chance.permutation(len(plan))
  size = max(1, BATCH_TOKENS // rules.max_seq_length)
  for start in range(0, len(order), size):
    batch = instances.make_batch(
        text, plan[order[start:start + size]], rules, chance)
    yield encoder.encode(batch)


def _records_of_job(job, config, rules, tokenizer, counts):
  """Yields all records of a Job; `counts` (dict) gets its "documents"."""
  encoder = record_encoder.BatchEncoder(
      rules.max_seq_length, rules.max_predictions_per_seq, rules.vocab_size)
  for number, text in enumerate(read_texts(job.inputs, tokenizer)):
    counts["documents"] += len(text.firsts) - 1
    _warn_of_text(text, tokenizer.vocab["[UNK]"], job, config.vocab_file)
    seed = job.seed if not number else _seed_of(job.seed, str(number))
    for block in records_of(text, config, rules, encoder, seed):
      yield block


def settings_of(job, config, vocab_size):
  """Returns what decides the content of a job's files, as a dict."""
  values = config._asdict()
  for name in _NOT_CONTENT:
    del values[name]
  return dict(
      values, algorithm=_ALGORITHM, vocab_size=vocab_size,
      outputs=len(job.outputs),
      vocab_sha256=files.sha256_of_file(config.vocab_file),
      inputs=[os.path.basename(path) for path in job.inputs],
      inputs_sha256=[files.sha256_of_file(path) for path in job.inputs])


def run_job(job, config, rules, tokenizer, keep_done):
  """Makes the record files of one job.

  Args:
    job: Job.
    config: DataConfig.
    rules: Rules.
    tokenizer: FullTokenizer.
    keep_done: leave whole files of equal settings as they are.

  Returns:
    The number of instances written, 0 where the files were kept.
  """
  settings = settings_of(job, config, rules.vocab_size)
  for path in job.outputs:
    files.remove_leftovers(path)
    files.remove_leftovers(records.settings_path(path))
  if keep_done and all(records.made_with(p, settings) for p in job.outputs):
    LOGGER.info("kept %s: made from the same text with the same settings",
                ", ".join(job.outputs))
    return 0
  start = time.time()
  counts = {"documents": 0}
  written = records.write_in_turn(
      job.outputs, _records_of_job(job, config, rules, tokenizer, counts),
      settings)
  seconds = time.time() - start
  LOGGER.info("wrote %d instances of %d documents to %s in %.1f s (%.0f/s)",
              written, counts["documents"], ", ".join(job.outputs), seconds,
              written / max(seconds, 1e-9))
  return written


# -------------------------------------------------------------- command line


def define_flags():
  """Declares the command line."""
  flags.DEFINE_string(
      "input_file", None, "Text files: globs, commas between.")
  flags.DEFINE_string(
      "output_file", None,
      "Record files, commas between; the instances go to them in turn. Or a "
      "folder (one that exists, or a name that ends in /): then each x.txt "
      "gives an x.tfrecord of its own, and finished ones are kept.")
  flags.DEFINE_string("vocab_file", None, "Vocabulary, one token a line.")
  flags.DEFINE_bool(
      "do_lower_case", None, "Lower-case the text and strip accents. Default: "
      "as the vocabulary has it.")
  flags.DEFINE_bool(
      "do_whole_word_mask", False, "Mask all pieces of a word, or none.")
  flags.DEFINE_integer(
      "max_seq_length", 128, "Word pieces of a sequence, with [CLS], [SEP].")
  flags.DEFINE_integer(
      "max_predictions_per_seq", 20, "Most masked positions of a sequence.")
  flags.DEFINE_integer("random_seed", 12345, "Seed of all that is random.")
  flags.DEFINE_integer(
      "dupe_factor", 10, "Passes over the text, with different masks.")
  flags.DEFINE_float("masked_lm_prob", 0.15, "Share of masked tokens.")
  flags.DEFINE_float("short_seq_prob", 0.1, "Share of shortened sequences.")
  flags.DEFINE_integer(
      "num_workers", None, "Processes, each at a file of its own where "
      "--output_file is a folder. Default: as many as there are cores.")
  flags.DEFINE_integer(
      "num_shards", None, "Number of processes, on any machines, that share "
      "the files out. Default: what mpirun, srun or a job array says, else 1.")
  flags.DEFINE_integer(
      "shard_index", None, "Which of them this is, from 0.")
  flags.DEFINE_float(
      "wait_minutes", 0.0, "Then wait until the other processes have made their "
      "files, too, at most so long without a new one. 0: do not wait.")


def _check_numbers(config):
  most = config.max_seq_length - 3
  for name, low, high, hint in (
      ("max_seq_length", SHORTEST, LONGEST, "%d to %d" % (SHORTEST, LONGEST)),
      ("max_predictions_per_seq", 1, most,
       "1 to %d at a --max_seq_length of %d" % (most, most + 3)),
      ("dupe_factor", 1, float("inf"), "1 or more"),
      ("num_workers", 1, float("inf"), "1 or more")):
    value = getattr(config, name)
    if not low <= value <= high:
      raise UserError("--%s=%s: give %s" % (name, value, hint))
  if not 0 < config.masked_lm_prob < 1:
    raise UserError("--masked_lm_prob=%s: give a number between 0 and 1"
                    % config.masked_lm_prob)
  if not 0 <= config.short_seq_prob <= 1:
    raise UserError("--short_seq_prob=%s: give a number from 0 to 1"
                    % config.short_seq_prob)
  wanted = int(round(config.max_seq_length * config.masked_lm_prob))
  if config.max_predictions_per_seq < wanted:
    LOGGER.warning(
        "--max_predictions_per_seq=%d caps the masks of a full sequence, "
        "which would have %d", config.max_predictions_per_seq, wanted)


def checked(config):
  """Returns a DataConfig if it can be used, else raises UserError."""
  for name in ("input_file", "output_file"):
    if not getattr(config, name):
      raise UserError("--%s is required" % name)
  files.require_file(config.vocab_file, "vocab_file")
  _check_numbers(config)
  return config


def config_from_flags():
  """Returns the validated DataConfig of the command line."""
  values = flags.FLAGS.flag_values_dict()
  if values["num_workers"] is None:
    values["num_workers"] = workers.default_num_workers()
  return checked(
      DataConfig(**{name: values[name] for name in DataConfig._fields}))


def rules_of(config, vocab):
  """Returns the Rules for a DataConfig and a vocabulary (token to id).

  Raises:
    UserError: if the vocabulary lacks a token that the records need.
  """
  for token in ("[CLS]", "[SEP]", "[MASK]", "[UNK]"):
    if token not in vocab:
      raise UserError("--vocab_file: %s has no token %s"
                      % (config.vocab_file, token))
  shared = {name: value for name, value in config._asdict().items()
            if name in instances.Rules._fields}
  return instances.Rules(
      vocab_size=len(vocab), cls_id=vocab["[CLS]"], sep_id=vocab["[SEP]"],
      mask_id=vocab["[MASK]"],
      continuations=frozenset(index for token, index in vocab.items()
                              if token.startswith("##")), **shared)


def _seed_of(random_seed, name):
  """Returns the seed (64 bits) of one file or block, whatever lies beside."""
  digest = hashlib.sha256(("%d/%s" % (random_seed, name)).encode("utf-8"))
  return int(digest.hexdigest()[:16], 16)


def _jobs_to_folder(inputs, config):
  """Returns a Job for each input: its own records, whatever lies beside."""
  jobs = []
  for path in inputs:
    name = os.path.basename(path)
    output = os.path.join(
        config.output_file, os.path.splitext(name)[0] + ".tfrecord")
    jobs.append(Job([path], [output], _seed_of(config.random_seed, name)))
  return jobs


def jobs_of(config):
  """Returns (list of Job, whether the output is a folder).

  Raises:
    UserError: if the inputs or outputs cannot be used.
  """
  inputs = files.expand_globs(config.input_file, "input_file")
  to_folder = (os.path.isdir(config.output_file)
               or config.output_file.endswith(os.sep))
  if to_folder:
    jobs = _jobs_to_folder(inputs, config)
  else:
    outputs = [p.strip() for p in config.output_file.split(",") if p.strip()]
    jobs = [Job(inputs, outputs, config.random_seed & (1 << 64) - 1)]
  outputs = [path for job in jobs for path in job.outputs]
  if not outputs:
    raise UserError("--output_file names no file")
  real_inputs = {os.path.realpath(path) for path in inputs}
  seen = set()
  for path in outputs:
    if path in seen:
      raise UserError("--output_file: %s would be written twice: rename an "
                      "input or an output" % path)
    seen.add(path)
    if path.endswith(records.SETTINGS_SUFFIX):
      raise UserError("--output_file: %s: names that end in %s are for the "
                      "settings beside a record file: choose another"
                      % (path, records.SETTINGS_SUFFIX))
    if os.path.isdir(path):
      raise UserError("--output_file: %s is a folder" % path)
    if os.path.realpath(path) in real_inputs:
      raise UserError("--output_file: %s is an input, too" % path)
  for folder in sorted({os.path.dirname(path) or "." for path in outputs}):
    files.require_output_dir(folder, "output_file")
  return jobs, to_folder


def run(config):
  """Makes the record files that a DataConfig asks for."""
  vocab = tokenization.load_vocab(config.vocab_file)
  if config.do_lower_case is None:
    config = config._replace(
        do_lower_case=tokenization.infer_lower_case(vocab))
  tokenization.check_case(vocab, config.do_lower_case)
  rules = rules_of(config, vocab)
  tokenizer = tokenization.FullTokenizer(vocab, config.do_lower_case)
  jobs, to_folder = jobs_of(config)
  share = shares.share_of(config.shard_index, config.num_shards)
  # Large files first: at the end all processes are busy with small ones.
  mine = sorted(share.mine(jobs), key=lambda job: -sum(
      map(os.path.getsize, job.inputs)))
  if len(jobs) > 1 or share.count > 1:
    LOGGER.info("%s: %d of %d record files, up to %d at a time", share,
                len(mine), len(jobs), config.num_workers)
  results = workers.run_all(
      lambda job: run_job(job, config, rules, tokenizer, to_folder), mine,
      config.num_workers)
  written = sum(results)
  if len(mine) > 1:
    LOGGER.info("all %d files are there: %d instances written now", len(mine),
                written)
  if config.wait_minutes > 0 and share.count > 1:
    wait_for_others(jobs, config, rules)


def wait_for_others(jobs, config, rules):
  """Waits until all record files are there and made of their present text.

  Raises:
    UserError: if none has come for --wait_minutes.
  """
  wanted = [settings_of(job, config, rules.vocab_size) for job in jobs]

  def look(item):
    job, settings = item
    done = all(records.made_with(path, settings) for path in job.outputs)
    return True if done else None

  stages.wait_until(look, list(zip(jobs, wanted)), config.wait_minutes,
                    "record files", lambda item: item[0].outputs[0])


def main(unused_argv):
  """Runs what the flags ask for."""
  logs.set_up()
  run(config_from_flags())


if __name__ == "__main__":
  define_flags()
  run_main(main)
