"""Logits that a server has given so far, kept for a client that goes on."""

import json
import os

import numpy as np

from utils import errors
from utils import files
from utils.logs import LOGGER

FILE = "logits.npz"


class Logits(object):
  """The logits of all features, as far as they are known.

  Args:
    count: number of features.
    seq_length: word pieces of a feature.
    folder: where they are kept, None for nowhere.
    key: dict of JSON values, all that they depend on.
  """

  def __init__(self, count, seq_length, folder=None, key=None):
    self.values = np.zeros([count, 2, seq_length], np.float32)
    self.known = np.zeros([count], bool)
    self._path = os.path.join(folder, FILE) if folder else None
    self._key = json.dumps(key, sort_keys=True)

  @property
  def is_kept(self):
    return bool(self._path)

  def load(self):
    """Takes what an earlier client has kept for the same features and model.

    Anything else there is of no use, and goes with the next `save`.
    """
    if not self._path or not os.path.exists(self._path):
      return
    try:
      with np.load(self._path, allow_pickle=False) as kept:
        if str(kept["key"]) != self._key:
          LOGGER.info("%s is of other questions, settings or another model: "
                      "all are asked anew", self._path)
          return
        rows, values = kept["rows"], kept["values"]
        self.values[rows] = values
    except Exception as error:  # pylint: disable=broad-except
      # Whatever a damaged file makes numpy and zipfile raise.
      LOGGER.warning("%s is damaged (%s): all are asked anew", self._path,
                     errors.one_line(error))
      return
    self.known[rows] = True
    LOGGER.info("%s: logits of %d of %d features are kept from before",
                self._path, self.known.sum(), len(self.known))

  def take(self, rows, outputs):
    """Takes a reply: outputs as of `serving_client.Connection.infer`."""
    self.values[rows, 0] = outputs["start_logits"]
    self.values[rows, 1] = outputs["end_logits"]
    self.known[rows] = True

  def save(self):
    """Writes what is known, whole or not at all."""
    rows = np.flatnonzero(self.known)
    if not self._path or not len(rows):
      return
    with files.atomic_write(self._path, binary=True) as stream:
      np.savez(stream, key=np.array(self._key), rows=rows,
               values=self.values[rows])

  def forget(self):
    """Removes the file."""
    if self._path and os.path.exists(self._path):
      os.remove(self._path)
