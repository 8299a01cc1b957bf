"""What all contenders compute on: batches of real SQuAD features, or made up.

Each process draws its batches itself, from the same file and the same seeds, so
that all contenders get the same ones. Imports no framework.
"""

import typing
import zipfile

import numpy as np

from utils import files
from utils import squad_features
from utils.errors import UserError

# Batches among which features of similar length find each other: Hugging Face's
# Trainer and utils/order.py have the same number.
GROUPING = 50
_PARTS = ("train", "dev")


class Sizes(typing.NamedTuple):
  """The model and its batches.

  Attributes:
    layers, hidden, vocab: int, of the model; heads have 64 numbers.
    batch: int, sequences of a step.
    length: int, positions of a sequence.
  """
  layers: int
  hidden: int
  vocab: int
  batch: int
  length: int

  def config(self):
    """Returns the content of bert_config.json."""
    return dict(
        vocab_size=self.vocab, hidden_size=self.hidden,
        num_hidden_layers=self.layers,
        num_attention_heads=max(1, self.hidden // 64),
        intermediate_size=4 * self.hidden, hidden_act="gelu",
        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
        max_position_embeddings=512, type_vocab_size=2, initializer_range=0.02)


def save_features(path, train, dev, vocab_size):
  """Writes the Features of both parts to an npz file."""
  columns = {"vocab_size": np.int64(vocab_size)}
  for part, features in zip(_PARTS, (train, dev)):
    for name, value in features.columns().items():
      columns["%s/%s" % (part, name)] = value
  with files.writing(path, "features"), \
      files.atomic_write(path, binary=True) as stream:
    np.savez_compressed(stream, **columns)


def load_features(path):
  """Returns ({"train": Features, "dev": Features}, vocab_size)."""
  try:
    with np.load(path) as stored:
      columns = {name: stored[name] for name in stored.files}
    parts = {part: squad_features.Features(**{
        name.split("/")[1]: value for name, value in columns.items()
        if name.startswith(part + "/")}) for part in _PARTS}
    return parts, int(columns["vocab_size"])
  except (OSError, EOFError, ValueError, KeyError, TypeError,
          zipfile.BadZipFile) as error:
    raise UserError(
        "--features: %s holds no features of this program (%s): give "
        "--train_file, --predict_file and --vocab_file to make them anew"
        % (path, error))


def batch_of(features, rows, is_training=True):
  """Returns {name: int32 array} of a batch of Features."""
  batch = dict(unique_ids=features.unique_ids[rows],
               input_ids=features.input_ids[rows],
               input_mask=features.input_mask(rows),
               segment_ids=features.segment_ids(rows))
  if is_training:
    batch.update(start_positions=features.start_positions[rows],
                 end_positions=features.end_positions[rows])
  return {name: np.ascontiguousarray(value, np.int32)
          for name, value in batch.items()}


def _one_of_each_part(count, parts, random):
  """Returns one number of each of `parts` equal parts of range(count).

  All draws have the same mixture of short and long then, where what is drawn
  from is sorted by length: rounds can be compared.
  """
  edges = np.linspace(0, count, parts + 1)
  return np.minimum((edges[:-1] + random.rand(parts) * np.diff(edges)
                    ).astype(np.int64), count - 1)


def _cut(rows, size):
  whole = len(rows) // size * size
  return rows[:whole].reshape(-1, size)


def _random(lengths, steps, batch, random):
  by_length = np.argsort(lengths, kind="stable")
  rows = by_length[_one_of_each_part(len(lengths), steps * batch, random)]
  return _cut(random.permutation(rows), batch)


def _grouped(lengths, steps, batch, random):
  by_length = np.argsort(lengths, kind="stable")
  # Taken from sorted rows part by part, the window is sorted as well.
  window = by_length[_one_of_each_part(len(lengths), GROUPING * batch, random)]
  batches = _cut(window, batch)
  return random.permutation(
      batches[_one_of_each_part(len(batches), steps, random)])


def _sorted(lengths, steps, batch, random):
  batches = _cut(np.argsort(-lengths, kind="stable"), batch)
  return batches[_one_of_each_part(len(batches), steps, random)]


_ORDERS = {"random": _random, "grouped": _grouped, "sorted": _sorted}


def squad_batches(features, order, steps, batch, number):
  """Returns a list of `steps` batches of SQuAD, those of round `number`.

  Args:
    features: Features.
    order: "random"; "grouped", by length within windows of 50 batches; or
      "sorted", by length as a whole.
    steps: int.
    batch: int, features a batch.
    number: int.
  """
  if len(features) < batch * steps:
    raise UserError("--batch=%d --steps=%d: there are only %d features"
                    % (batch, steps, len(features)))
  random = np.random.RandomState(number)
  chosen = _ORDERS[order](features.length, steps, batch, random)
  return [batch_of(features, rows, features.start_positions is not None)
          for rows in chosen]


def predictions_of(length):
  """Returns how many words of a sequence are masked, as BERT was trained."""
  return min(length, 20 if length <= 128 else 80)


def pretraining_batch(sizes, number):
  """Returns {name: array} of a batch of full sequences, made up."""
  random = np.random.RandomState(number)
  shape = [sizes.batch, sizes.length]
  predicted = predictions_of(sizes.length)
  positions = np.stack([np.sort(random.permutation(sizes.length)[:predicted])
                        for _ in range(sizes.batch)])
  halves = np.arange(sizes.length) >= sizes.length // 2
  batch = dict(
      input_ids=random.randint(0, sizes.vocab, shape),
      input_mask=np.ones(shape), segment_ids=np.broadcast_to(halves, shape),
      masked_lm_positions=positions,
      masked_lm_ids=random.randint(0, sizes.vocab, positions.shape),
      masked_lm_weights=np.ones(positions.shape),
      next_sentence_labels=random.randint(0, 2, [sizes.batch, 1]))
  return {name: value.astype(np.float32 if name.endswith("_weights")
                             else np.int32) for name, value in batch.items()}


def full_batch(batch, length, vocab, number):
  """Returns a SQuAD training batch of full sequences, made up."""
  random = np.random.RandomState(number)
  shape = [batch, length]
  columns = dict(
      unique_ids=np.arange(batch), input_ids=random.randint(0, vocab, shape),
      input_mask=np.ones(shape), segment_ids=np.zeros(shape),
      start_positions=random.randint(0, length, batch),
      end_positions=random.randint(0, length, batch))
  return {name: value.astype(np.int32) for name, value in columns.items()}


def products_of_pretraining(sizes):
  """Returns [(count, rows, inner, columns)] of a step's dense layers.

  A forward product is [rows, inner] * [inner, columns]; the backward pass has
  two of the same size for each.
  """
  rows, hidden = sizes.batch * sizes.length, sizes.hidden
  predicted = sizes.batch * predictions_of(sizes.length)
  return [(4 * sizes.layers, rows, hidden, hidden),
          (sizes.layers, rows, hidden, 4 * hidden),
          (sizes.layers, rows, 4 * hidden, hidden),
          (1, predicted, hidden, hidden),
          (1, predicted, hidden, sizes.vocab)]


def flops_of(products):
  """Returns the operations of such products, both passes."""
  return sum(6 * count * rows * inner * columns
             for count, rows, inner, columns in products)
