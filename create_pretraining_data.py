"""Turns text into TFRecords for masked-LM and next-sentence pre-training.

The text has one sentence a line and blank lines between documents. The
instances are made as published (Devlin et al. 2018, section 3.1 and the
reference's script of this name): pure functions of documents, rules and a
stream of random numbers, in a thin shell that reads and writes.

The only source of chance is `random.Random.random`, whose sequence Python
promises never to change: the same seed gives the same bytes everywhere.
"""

import hashlib
import itertools
import os
import random as random_module
import time
from typing import FrozenSet, List, NamedTuple

from absl import flags

import tokenization
from utils import files
from utils import logs
from utils import records
from utils.errors import UserError
from utils.errors import run_main
from utils.logs import LOGGER

# Seconds between lines of progress.
PROGRESS_SECONDS = 5.0
# The shortest sequence: [CLS] a [SEP] b [SEP]. The longest: 16 times BERT's
# own, since the record encoder's tables grow with its square (here 70 MB).
SHORTEST, LONGEST = 5, 8192
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


class Rules(NamedTuple):
  """What the builders of instances must know.

  `cls_id`, `sep_id`, `mask_id` are ids of the vocabulary;
  `continuations` holds the ids of the pieces that go on a word ("##...").
  """
  max_seq_length: int
  max_predictions_per_seq: int
  masked_lm_prob: float
  short_seq_prob: float
  do_whole_word_mask: bool
  vocab_size: int
  cls_id: int
  sep_id: int
  mask_id: int
  continuations: FrozenSet[int]


class Instance(NamedTuple):
  """One pair of segments with its masks, in the order of the encoder.

  `first_length` counts the tokens of segment 0: [CLS], A and [SEP].
  """
  input_ids: List[int]
  first_length: int
  is_random_next: bool
  masked_lm_positions: List[int]
  masked_lm_ids: List[int]


class Job(NamedTuple):
  """Inputs that are mixed with each other and the files they end in."""
  inputs: List[str]
  outputs: List[str]
  seed: int


# ------------------------------------------------- instances, pure functions


def between(random, low, high):
  """Returns an int drawn evenly from low..high, both included.

  Args:
    random: function that returns floats of [0, 1).
    low: int.
    high: int.
  """
  return low + int(random() * (high - low + 1))


def shuffle(items, random):
  """Permutes a list in place (Fisher and Yates)."""
  for i in range(len(items) - 1, 0, -1):
    j = int(random() * (i + 1))
    items[i], items[j] = items[j], items[i]


def _chain(sentences):
  return list(itertools.chain.from_iterable(sentences))


def create_instances_from_document(documents, index, rules, random):
  """Makes the instances of one document, as published.

  Sentences are gathered until they reach the target length, then divided at
  a random sentence into A and B. In half of the cases, and always if there
  is but one sentence, B is replaced by text of another document, and the
  sentences that were to be B are used again.

  Args:
    documents: list of documents; a document is a list of sentences, a
      sentence a list of ids, none of them empty.
    index: which of them.
    rules: Rules.
    random: function that returns floats of [0, 1).

  Returns:
    List of Instance.
  """
  document = documents[index]
  max_tokens = rules.max_seq_length - 3
  target = max_tokens
  # Short sequences are wasteful, but what comes after pre-training has them.
  if random() < rules.short_seq_prob:
    target = between(random, 2, max_tokens)
  instances = []
  start = 0
  while start < len(document):
    end = _chunk_end(document, start, target)
    middle = start + 1
    if end > middle:
      middle = between(random, start + 1, end - 1)
    first = _chain(document[start:middle])
    is_random_next = end - start == 1 or random() < 0.5
    if is_random_next:
      second = _random_next(documents, index, target - len(first), random)
      start = middle
    else:
      second = _chain(document[middle:end])
      start = end
    first, second = truncate_seq_pair(first, second, max_tokens, random)
    instances.append(
        _masked_instance(first, second, is_random_next, rules, random))
  return instances


def _chunk_end(document, start, target):
  """Returns the end of the sentences from `start` that reach `target`."""
  length = 0
  for end in range(start, len(document)):
    length += len(document[end])
    if length >= target:
      return end + 1
  return len(document)


def _random_next(documents, index, target, random):
  """Returns `target` or more tokens (one sentence at least) from elsewhere.

  "Elsewhere" is another document, unless ten draws all hit this one.
  """
  for _ in range(10):
    other = between(random, 0, len(documents) - 1)
    if other != index:
      break
  document = documents[other]
  tokens = []
  for i in range(between(random, 0, len(document) - 1), len(document)):
    tokens.extend(document[i])
    if len(tokens) >= target:
      break
  return tokens


def truncate_seq_pair(first, second, max_tokens, random):
  """Cuts tokens off the longer of two lists until both fit together.

  Each token goes from the front or the back with equal chance, so that
  neither sentence starts nor sentence ends are favoured.

  Returns:
    (first, second), their lengths adding up to `max_tokens` at most.
  """
  first_start, first_end = 0, len(first)
  second_start, second_end = 0, len(second)
  for _ in range(len(first) + len(second) - max_tokens):
    at_front = random() < 0.5
    if first_end - first_start > second_end - second_start:
      if at_front:
        first_start += 1
      else:
        first_end -= 1
    elif at_front:
      second_start += 1
    else:
      second_end -= 1
  return first[first_start:first_end], second[second_start:second_end]


def _masked_instance(first, second, is_random_next, rules, random):
  """Returns the Instance of segments A and B (lists of ids)."""
  separator = [rules.sep_id]
  input_ids = [rules.cls_id] + first + separator + second + separator
  first_length = len(first) + 2
  positions, labels = create_masked_lm_predictions(
      input_ids, first_length, rules, random)
  return Instance(input_ids, first_length, is_random_next, positions, labels)


def create_masked_lm_predictions(input_ids, first_length, rules, random):
  """Masks tokens in place: 80 % [MASK], 10 % as they are, 10 % any token.

  Args:
    input_ids: list of ids with [CLS], [SEP] and [SEP], which stay.
    first_length: number of tokens in segment 0.
    rules: Rules.
    random: function that returns floats of [0, 1).

  Returns:
    (positions, labels): lists of int, sorted by position; the labels are the
    ids that were there.
  """
  count = min(rules.max_predictions_per_seq,
              max(1, int(round(len(input_ids) * rules.masked_lm_prob))))
  candidates = list(range(1, first_length - 1))
  candidates.extend(range(first_length, len(input_ids) - 1))
  if rules.do_whole_word_mask:
    chosen = _choose_words(candidates, input_ids, count, rules, random)
  else:
    chosen = _choose_pieces(candidates, count, random)
  original = input_ids[:]
  for position in chosen:
    if random() < 0.8:
      input_ids[position] = rules.mask_id
    elif random() >= 0.5:
      input_ids[position] = int(random() * rules.vocab_size)
  chosen.sort()
  return chosen, [original[position] for position in chosen]


def _choose_pieces(candidates, count, random):
  """Returns `count` of `candidates`: the head of a random permutation."""
  size = len(candidates)
  count = min(count, size)
  for i in range(count):
    j = i + int(random() * (size - i))
    candidates[i], candidates[j] = candidates[j], candidates[i]
  return candidates[:count]


def _choose_words(candidates, input_ids, count, rules, random):
  """Returns the positions of whole words, at most `count` in all.

  As published: words are taken in random order; one that would exceed
  `count` is passed over. A "##" piece belongs to the word before it, even
  where that word ends segment A (the start of B's word was cut off).
  """
  words = []
  for position in candidates:
    if words and input_ids[position] in rules.continuations:
      words[-1].append(position)
    else:
      words.append([position])
  shuffle(words, random)
  chosen = []
  for word in words:
    if len(chosen) + len(word) <= count:
      chosen.extend(word)
    if len(chosen) == count:
      break
  return chosen


# ------------------------------------------------------- reading and writing


def read_documents(path, tokenizer):
  """Reads a text file.

  Args:
    path: UTF-8 text, one sentence a line, blank lines between documents.
    tokenizer: FullTokenizer.

  Returns:
    List of documents: lists of sentences, which are lists of ids.

  Raises:
    UserError: if the file cannot be read, is not UTF-8 or holds no text.
  """
  documents = [[]]
  number = 0
  try:
    with open(path, "rb") as stream:
      for number, line in enumerate(stream, 1):
        line = line.decode("utf-8").strip()
        if line:
          ids = tokenizer.tokenize_to_ids(line)
          if ids:
            documents[-1].append(ids)
        elif documents[-1]:
          documents.append([])
  except OSError as error:
    raise UserError("--input_file: cannot read %s (%s)"
                    % (path, error.strerror))
  except UnicodeDecodeError:
    raise UserError("--input_file: %s is not UTF-8 text (line %d): convert "
                    "it first" % (path, number))
  if not documents[-1]:
    documents.pop()
  if not documents:
    raise UserError("--input_file: %s holds no text" % path)
  return documents


class _Progress(object):
  """Writes a line every few seconds."""

  def __init__(self):
    self._next = time.time() + PROGRESS_SECONDS

  def tell(self, *message):
    if time.time() >= self._next:
      LOGGER.info(*message)
      self._next = time.time() + PROGRESS_SECONDS


def _read_all(paths, tokenizer):
  documents = []
  progress = _Progress()
  for number, path in enumerate(paths, 1):
    documents.extend(read_documents(path, tokenizer))
    progress.tell("read %d of %d files, %d documents so far",
                  number, len(paths), len(documents))
  if len(documents) == 1:
    LOGGER.warning(
        "%s is a single document, so its \"random\" next sentences come from "
        "itself: put blank lines between documents", ", ".join(paths))
  return documents


def _warn_of_unknown(documents, unknown, job, vocab_file):
  sentences = [s for document in documents for s in document]
  share = sum(s.count(unknown) for s in sentences) / sum(map(len, sentences))
  if share > UNKNOWN_SHARE:
    LOGGER.warning(
        "%.0f %% of the tokens of %s are [UNK]: is %s a vocabulary of that "
        "language?", 100 * share, ", ".join(job.inputs), vocab_file)


def create_payloads(documents, config, rules, seed):
  """Returns the serialized instances (list of bytes), in random order.

  Args:
    documents: list of documents, put into another order here.
    config: DataConfig.
    rules: Rules.
    seed: int.
  """
  random = random_module.Random(seed).random
  encoder = records.InstanceEncoder(
      rules.max_seq_length, rules.max_predictions_per_seq, rules.vocab_size)
  shuffle(documents, random)
  progress = _Progress()
  payloads = []
  for copy in range(1, config.dupe_factor + 1):
    for index in range(len(documents)):
      for instance in create_instances_from_document(
          documents, index, rules, random):
        payloads.append(encoder.encode(*instance))
      progress.tell("copy %d of %d, document %d of %d: %d instances", copy,
                    config.dupe_factor, index + 1, len(documents),
                    len(payloads))
  shuffle(payloads, random)
  return payloads


def settings_of(job, config, vocab_size):
  """Returns what decides the content of a job's files, as a dict."""
  values = config._asdict()
  for place in ("input_file", "output_file", "vocab_file"):
    del values[place]
  return dict(
      values, vocab_size=vocab_size, outputs=len(job.outputs),
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
    records.remove_leftovers(path)
  if keep_done and all(records.made_with(p, settings) for p in job.outputs):
    LOGGER.info("kept %s: made from the same text with the same settings",
                ", ".join(job.outputs))
    return 0
  start = time.time()
  documents = _read_all(job.inputs, tokenizer)
  _warn_of_unknown(documents, tokenizer.vocab["[UNK]"], job, config.vocab_file)
  payloads = create_payloads(documents, config, rules, job.seed)
  records.write_in_turn(job.outputs, payloads, settings)
  seconds = time.time() - start
  LOGGER.info("wrote %d instances of %d documents to %s in %.1f s (%.0f/s)",
              len(payloads), len(documents), ", ".join(job.outputs), seconds,
              len(payloads) / max(seconds, 1e-9))
  return len(payloads)


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


def _check_numbers(config):
  most = config.max_seq_length - 3
  for name, low, high, hint in (
      ("max_seq_length", SHORTEST, LONGEST, "%d to %d" % (SHORTEST, LONGEST)),
      ("max_predictions_per_seq", 1, most,
       "1 to %d at a --max_seq_length of %d" % (most, most + 3)),
      ("dupe_factor", 1, float("inf"), "1 or more")):
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
            if name in Rules._fields}
  return Rules(
      vocab_size=len(vocab), cls_id=vocab["[CLS]"], sep_id=vocab["[SEP]"],
      mask_id=vocab["[MASK]"],
      continuations=frozenset(index for token, index in vocab.items()
                              if token.startswith("##")), **shared)


def _shard_seed(random_seed, name):
  """Returns the seed of one file of a folder, whatever files lie beside."""
  digest = hashlib.sha256(("%d/%s" % (random_seed, name)).encode("utf-8"))
  return int(digest.hexdigest()[:16], 16)


def _jobs_to_folder(inputs, config):
  """Returns a Job for each input: its own records, whatever lies beside."""
  jobs = []
  for path in inputs:
    name = os.path.basename(path)
    output = os.path.join(
        config.output_file, os.path.splitext(name)[0] + ".tfrecord")
    jobs.append(Job([path], [output], _shard_seed(config.random_seed, name)))
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
    jobs = [Job(inputs, outputs, config.random_seed)]
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
  for number, job in enumerate(jobs, 1):
    if len(jobs) > 1:
      LOGGER.info("file %d of %d: %s", number, len(jobs), job.inputs[0])
    run_job(job, config, rules, tokenizer, keep_done=to_folder)


def main(unused_argv):
  """Runs what the flags ask for."""
  logs.set_up()
  run(config_from_flags())


if __name__ == "__main__":
  define_flags()
  run_main(main)
