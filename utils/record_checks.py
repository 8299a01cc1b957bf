"""Whether record files are what a pre-training run takes.

The settings beside each file are compared; where there are none, as beside
files of Google's script, the first record is looked at.
"""

import contextlib
import math
import os

from utils import records
from utils.errors import UserError

# Rows that a model's table may have beyond its vocabulary.
_SPARE_ROWS = 1024


def features_of(max_seq_length, max_predictions_per_seq, vocab_size=None,
                type_vocab_size=None):
  """Returns {name: (number of values, bound)} of a record's seven features.

  All values are from 0 to below the bound (None: any). masked_lm_weights are
  float32, the others int64.
  """
  ids, segments = vocab_size or math.inf, type_vocab_size or math.inf
  return {"input_ids": (max_seq_length, ids),
          "input_mask": (max_seq_length, 2),
          "segment_ids": (max_seq_length, segments),
          "masked_lm_positions": (max_predictions_per_seq, max_seq_length),
          "masked_lm_ids": (max_predictions_per_seq, ids),
          "masked_lm_weights": (max_predictions_per_seq, math.inf),
          "next_sentence_labels": (1, 2)}


def check_record(payload, features, path, which="a record"):
  """Raises UserError, naming file and feature, if a run cannot use a record.

  Args:
    payload: the serialized record.
    features: dict of `features_of`.
    path: the file that it is from.
    which: what messages call it.
  """
  def fail(what, *values):
    raise UserError("%s: %s %s: make the file again, for this model's "
                    "vocabulary and config" % (path, which, what % values))
  try:
    found = records.decode_example(payload)
  except ValueError as error:
    fail("is %s", error)
  for name, (size, bound) in features.items():
    kind = float if name == "masked_lm_weights" else int
    if name not in found:
      fail("lacks the feature %r", name)
    if len(found[name]) != size:
      fail("has %d values in %s, not %d", len(found[name]), name, size)
    for value in found[name]:
      if not (isinstance(value, kind) and 0 <= value < bound):
        fail("has %r in %s, which takes %s values from 0 to below %s",
             value, name, kind.__name__, bound)


def _check_first_record(path, features, wanted):
  payload = next(records.read_records(path), None)
  if payload is None:
    raise UserError("%s holds no records" % path)
  # Other lengths are most often a flag that was forgotten.
  with contextlib.suppress(ValueError, KeyError):
    found = records.decode_example(payload)
    _check_lengths(path, {
        "max_seq_length": len(found["input_ids"]),
        "max_predictions_per_seq": len(found["masked_lm_positions"])}, wanted)
  check_record(payload, features, path, "the first record")


def _check_lengths(path, made_with, wanted):
  for name in ("max_seq_length", "max_predictions_per_seq"):
    if made_with.get(name) != wanted[name]:
      raise UserError(
          "%s was made with %s %s, not %s: pass --%s=%s, or make the records "
          "again" % (path, name, made_with.get(name), wanted[name], name,
                     made_with.get(name)))


def _check_alike(path, settings, first_path, first):
  for name, what in (("vocab_sha256", "vocabularies"),
                     ("do_lower_case", "values of --do_lower_case")):
    if settings.get(name) != first.get(name):
      raise UserError("%s and %s were made with different %s: their ids do not "
                      "mean the same tokens" % (first_path, path, what))


def check_settings(paths, max_seq_length, max_predictions_per_seq,
                   vocab_size=None, type_vocab_size=None):
  """Checks that record files were made for a run's settings.

  The settings beside each file are compared; where there are none, what the
  first record shows.

  Args:
    paths: list of record files.
    max_seq_length: tokens a sequence.
    max_predictions_per_seq: predictions a sequence.
    vocab_size: of the model; None is not compared.
    type_vocab_size: likewise, the number of segments.

  Raises:
    UserError: on the first file that differs, is truncated or is empty, or was
      made with another vocabulary or casing than one before it.
  """
  features = features_of(max_seq_length, max_predictions_per_seq, vocab_size,
                         type_vocab_size)
  wanted = {"max_seq_length": max_seq_length,
            "max_predictions_per_seq": max_predictions_per_seq}
  first = None
  for path in paths:
    settings = records.read_settings(path)
    if settings is None:
      _check_first_record(path, features, wanted)
      continue
    size = os.path.getsize(path)
    if size != settings["num_bytes"]:
      raise UserError("%s has %d bytes instead of %d: it is truncated or was "
                      "replaced; make it again"
                      % (path, size, settings["num_bytes"]))
    if not settings["num_records"]:
      raise UserError("%s holds no records" % path)
    _check_lengths(path, settings, wanted)
    if (vocab_size is not None
        and not 0 <= vocab_size - settings["vocab_size"] < _SPARE_ROWS):
      raise UserError("%s was made with a vocabulary of %d tokens, but the "
                      "model's vocab_size is %d"
                      % (path, settings["vocab_size"], vocab_size))
    first = first or (path, settings)
    _check_alike(path, settings, *first)
