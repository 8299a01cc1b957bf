"""Punkt's parameters: the published English model, or learned from a corpus.

Both become one JSON-able dict, sorted, so that equal parameters are equal
bytes on every machine.
"""

import pickle
import zipfile

import nltk.data
from nltk.tokenize import punkt

from utils.errors import UserError

# NLTK calls it tokenizers/punkt/english.pickle; this is its Python 3 form.
PUBLISHED = "tokenizers/punkt/PY3/english.pickle"
# Punkt's authors' own English model was learned from half a million tokens;
# this is more than three times as much, and takes 20 seconds.
SAMPLE_BYTES = 10 << 20
# What the trainer gets at a time: it keeps every token of it in memory.
_TRAINED_AT_ONCE = 1 << 20

_KNOWN = {
    ("nltk.tokenize.punkt", "PunktSentenceTokenizer"),
    ("nltk.tokenize.punkt", "PunktLanguageVars"),
    ("nltk.tokenize.punkt", "PunktParameters"),
    ("nltk.tokenize.punkt", "PunktToken"),
    ("collections", "defaultdict"),
    ("builtins", "int"),
    ("builtins", "set"),
}


class _Unpickler(pickle.Unpickler):
  """Reads NLTK's pickle and nothing else.

  A pickle may call anything that it names; this one may name only the few
  classes that NLTK's own model consists of, none of which does anything.
  """

  def find_class(self, module, name):
    if (module, name) not in _KNOWN:
      raise pickle.UnpicklingError("it asks for %s.%s" % (module, name))
    return super().find_class(module, name)


def _as_dict(parameters):
  # Training leaves zeros for words that were only looked up.
  return {
      "abbreviations": sorted(parameters.abbrev_types),
      "collocations": sorted(list(pair) for pair in parameters.collocations),
      "sentence_starters": sorted(parameters.sent_starters),
      "orthographic_context": {
          word: flags for word, flags in sorted(
              parameters.ortho_context.items()) if flags}}


def parameters_of(model):
  """Returns the PunktParameters that a dict of this module stands for."""
  parameters = punkt.PunktParameters()
  parameters.abbrev_types.update(model["abbreviations"])
  parameters.collocations.update(tuple(p) for p in model["collocations"])
  parameters.sent_starters.update(model["sentence_starters"])
  parameters.ortho_context.update(model["orthographic_context"])
  return parameters


def published(folder=None):
  """Returns NLTK's English model and where it is.

  Args:
    folder: searched before NLTK_DATA and NLTK's own places; or None.

  Returns:
    (dict, path); (None, None) where the model is not installed.

  Raises:
    UserError: if there is a file that is not this model.
  """
  places = ([folder] if folder else []) + nltk.data.path
  try:
    found = nltk.data.find(PUBLISHED, places)
  except (LookupError, zipfile.BadZipFile):
    return None, None
  try:
    with found.open() as stream:
      tokenizer = _Unpickler(stream).load()
    # pylint: disable=protected-access
    return _as_dict(tokenizer._params), str(found)
  except Exception as error:  # pylint: disable=broad-except
    # Broken pickles raise whatever their bytes happen to lead to.
    if isinstance(error, MemoryError):
      raise
    raise UserError("%s is not NLTK's English Punkt model (%s): install it "
                    "again, or give --punkt corpus" % (found, error))


def trained(texts):
  """Returns the model that texts teach, and whether they were enough.

  Args:
    texts: iterable of str.

  Returns:
    (dict, bool); where they were not enough the dict holds nothing, and each
    period ends a sentence.
  """
  trainer = punkt.PunktTrainer()
  waiting, size = [], 0
  try:
    for text in texts:
      waiting.append(text)
      size += len(text)
      if size >= _TRAINED_AT_ONCE:
        trainer.train("\n".join(waiting), finalize=False)
        waiting, size = [], 0
    trainer.train("\n".join(waiting), finalize=False)
    return _as_dict(trainer.get_params()), True
  except (ValueError, ZeroDivisionError):
    # The logarithm of nothing: a text that has too few words of any kind.
    return _as_dict(punkt.PunktParameters()), False
