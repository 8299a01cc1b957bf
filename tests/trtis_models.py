"""Tiny models for tests of serving, through run_squad.py as users make them."""

import json
from typing import NamedTuple

import numpy as np

import runners
from test_run_pretraining import CONFIG
from test_run_squad import dataset
from test_run_squad import settings
from test_run_squad import VOCAB

SEQ_LENGTH = 32


class Models(NamedTuple):
  """Where things lie, as pathlib paths.

  place: folder of config.json, vocab.txt, train.json, dev.json.
  run: folder of the run that has trained, with its checkpoint.
  repository: the models, as a server reads them: "bert", version 1.
  """
  place: object
  run: object
  repository: object


def make(folder, **flags):
  """Trains a tiny model for a moment and exports it; returns `Models`.

  Args:
    folder: pathlib path, which exists.
    **flags: of run_squad.py, such as trtis_max_batch_size.
  """
  place = folder / "squad"
  place.mkdir()
  (place / "config.json").write_text(
      json.dumps(dict(CONFIG, vocab_size=len(VOCAB))))
  (place / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
  (place / "train.json").write_text(json.dumps(dataset(40)))
  (place / "dev.json").write_text(json.dumps(dataset(11)))
  models = Models(place, folder / "run", folder / "models")
  result = runners.call("run_squad", _export_settings(
      models, models.run, dict(dict(do_train=True, num_train_epochs=2),
                               **flags)))
  assert result.status == 0, result.err
  return models


def _export_settings(models, output, changes):
  return settings(models.place, output, **dict(
      dict(do_train=None, do_predict=None, export_trtis=True,
           max_seq_length=SEQ_LENGTH,
           trtis_model_repository=models.repository), **changes))


def export(models, output, **flags):
  """Exports the same weights again, with other flags; returns the result.

  Args:
    models: `Models`.
    output: folder for the run.
    **flags: of run_squad.py, such as trtis_model_version.
  """
  return runners.call("run_squad", _export_settings(
      models, output, dict(dict(init_checkpoint=models.run), **flags)))


def arrays(rows, seed=0, seq_length=SEQ_LENGTH):
  """Returns inputs of `rows` made-up sequences, of all lengths."""
  random = np.random.RandomState(seed)
  lengths = random.randint(3, seq_length + 1, [rows, 1])
  there = np.arange(seq_length)[None] < lengths
  first = np.arange(seq_length)[None] < lengths // 2
  ids = random.randint(5, len(VOCAB), [rows, seq_length])
  return {"unique_ids": np.arange(rows)[:, None],
          "input_ids": np.where(there, ids, 0),
          "input_mask": there.astype(np.int32),
          "segment_ids": np.where(there & ~first, 1, 0)}
