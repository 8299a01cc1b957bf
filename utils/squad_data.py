"""Reads SQuAD v1.1 and v2.0 files, and keeps their features in a cache.

Reading follows the published run_squad; what it would crash on or silently
mistake is one clear line here.
"""

import bisect
import glob
import logging
import os
import re
import shutil
from typing import List
from typing import NamedTuple
from typing import Optional

import numpy as np

from utils import errors
from utils import files
from utils.errors import UserError
from utils.squad_features import FEATURE_VERSION
from utils.squad_features import Features
from utils.squad_features import FeatureSettings
from utils.squad_features import featurize

__all__ = ["check_context", "Example", "Features", "FeatureSettings",
           "featurize", "load_or_make", "read_examples", "read_squad",
           "typed_example"]

_LOGGER = logging.getLogger("bert")
# What separates words, as published; other Unicode blanks do not.
_WORD = re.compile("[^ \t\r\n\u202f]+")


class Example(NamedTuple):
  """One question.

  start_position and end_position are the answer's first and last word in
  doc_tokens: None when reading for prediction, -1 where the question has no
  answer. Questions on one paragraph share one doc_tokens list.
  """
  qas_id: str
  question_text: str
  doc_tokens: List[str]
  orig_answer_text: Optional[str] = None
  start_position: Optional[int] = None
  end_position: Optional[int] = None
  is_impossible: bool = False


def _get(container, name, kind, place):
  """Returns container[name], which must be of type `kind`."""
  value = container.get(name) if isinstance(container, dict) else None
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    what = {str: "text", list: "list", int: "whole number", bool: "true/false"}
    raise UserError("%s: %r is missing or not a %s: is this a SQuAD file?"
                    % (place, name, what[kind]))
  return value


def read_squad(path):
  """Reads and checks the structure that all SQuAD files share.

  Args:
    path: JSON file in SQuAD v1.1 or v2.0 format.

  Returns:
    list of (context, qas): a paragraph's text and its list of dicts, each
    with at least "id" and "question".

  Raises:
    UserError: malformed JSON, another structure, no question, an empty
      context or question, a missing or repeated id.
  """
  paragraphs, seen = [], set()
  data = _get(files.read_json(path, "SQuAD file"), "data", list, path)
  for number, article in enumerate(data):
    place = "%s, data[%d]" % (path, number)
    for i, paragraph in enumerate(_get(article, "paragraphs", list, place)):
      inner = "%s.paragraphs[%d]" % (place, i)
      context = _get(paragraph, "context", str, inner)
      qas = _get(paragraph, "qas", list, inner)
      for j, qa in enumerate(qas):
        _check_question(qa, path, "%s.qas[%d]" % (inner, j), seen)
      if qas and not _WORD.search(context):
        raise UserError("%s: the context of question %s is empty: mend or "
                        "remove the paragraph" % (path, qas[0]["id"]))
      paragraphs.append((context, qas))
  if not seen:
    raise UserError("%s has no questions" % path)
  return paragraphs


def _check_question(qa, path, place, seen):
  """Checks one question's id and text; adds the id to the set `seen`."""
  qas_id = _get(qa, "id", str, place)
  if not qas_id:
    raise UserError("%s: the question's id is empty" % place)
  if qas_id in seen:
    raise UserError("%s: question id %s occurs twice: answers are kept by id, "
                    "so give each question its own" % (path, qas_id))
  seen.add(qas_id)
  text = _get(qa, "question", str, "%s: question %s" % (path, qas_id))
  if not text.strip():
    raise UserError("%s: question %s is empty: mend or remove it"
                    % (path, qas_id))


def _only_answer(qa, place, version_2_with_negative):
  """Returns the answer of a training question, or None if it has none."""
  answers = _get(qa, "answers", list, place)
  if version_2_with_negative:
    if "is_impossible" not in qa:
      raise UserError("%s lacks \"is_impossible\": a SQuAD v1.1 file goes "
                      "without --version_2_with_negative" % place)
    if _get(qa, "is_impossible", bool, place):
      return None
  if len(answers) != 1:
    hint = ""
    if qa.get("is_impossible") is True:
      hint = "; a SQuAD v2.0 file needs --version_2_with_negative"
    raise UserError("%s has %d answers: for training it must have exactly "
                    "one%s" % (place, len(answers), hint))
  return answers[0]


def _locate(answer, context, starts, place):
  """Returns the answer's text and its first and last word.

  Args:
    answer: dict with "text" and "answer_start".
    context: the paragraph.
    starts: list of int, where the paragraph's words begin.
    place: what messages begin with.

  Raises:
    UserError: if the answer is empty or not inside the paragraph.
  """
  text = _get(answer, "text", str, place)
  offset = _get(answer, "answer_start", int, place)
  if not text.strip():
    raise UserError("%s: its answer is empty" % place)
  if offset < 0 or offset + len(text) > len(context):
    raise UserError(
        "%s: its answer at %d to %d is outside the context, which has %d "
        "characters" % (place, offset, offset + len(text), len(context)))
  first = bisect.bisect_right(starts, offset) - 1
  last = bisect.bisect_right(starts, offset + len(text) - 1) - 1
  # An offset in white space before the first word belongs to no word.
  return text, max(first, 0), last


def _training_example(qa, context, words, starts, path,
                      version_2_with_negative):
  """Returns an Example, or None if its answer is not at its offset."""
  place = "%s: question %s" % (path, qa["id"])
  answer = _only_answer(qa, place, version_2_with_negative)
  if answer is None:
    return Example(qa["id"], qa["question"], words, "", -1, -1, True)
  text, first, last = _locate(answer, context, starts, place)
  if " ".join(text.split()) not in " ".join(words[first:last + 1]):
    return None
  return Example(qa["id"], qa["question"], words, text, first, last)


def read_examples(path, is_training, version_2_with_negative):
  """Reads the questions of a SQuAD file.

  As published, training leaves out questions whose answer's text is not what
  the context has at the answer's offset (odd Unicode blanks do that); a line
  says how many. Answers are not looked at for prediction.

  Args:
    path: JSON file.
    is_training: whether to read the answers.
    version_2_with_negative: whether questions may have no answer.

  Returns:
    list of Example, in the file's order.

  Raises:
    UserError: the file is not SQuAD, or a question cannot be used; the
      message names the file and the question's id.
  """
  examples, lost = [], []
  for context, qas in read_squad(path):
    matches = list(_WORD.finditer(context))
    words = [match.group() for match in matches]
    starts = [match.start() for match in matches]
    for qa in qas:
      if is_training:
        example = _training_example(qa, context, words, starts, path,
                                    version_2_with_negative)
      else:
        example = Example(qa["id"], qa["question"], words)
      if example is None:
        lost.append(qa["id"])
      else:
        examples.append(example)
  if lost:
    _LOGGER.warning(
        "%s: left out %d of %d questions whose answer is not found at its "
        "offset in the context, %s the first", path, len(lost),
        len(lost) + len(examples), lost[0])
  if not examples:
    raise UserError("%s: no question's answer is found at its offset in its "
                    "context" % path)
  return examples


def check_context(context):
  """Raises UserError for a typed passage without a word."""
  if not _WORD.search(context):
    raise UserError("--context is empty: give the passage to look in")


def typed_example(question, context):
  """Returns the Example of a question and passage that somebody typed.

  Raises:
    UserError: if one of them is empty.
  """
  if not question.strip():
    raise UserError("--question is empty: give one")
  check_context(context)
  return Example("typed", question, _WORD.findall(context))


def _save(features, folder):
  """Writes the columns as .npy files, and last what proves them whole."""
  arrays = {}
  for name, array in features.columns().items():
    path = os.path.join(folder, name + ".npy")
    np.save(path, array)
    arrays[name] = {"sha256": files.sha256_of_file(path),
                    "shape": list(array.shape), "dtype": str(array.dtype)}
  files.write_json(os.path.join(folder, "features.json"), {"arrays": arrays})


def _load(folder):
  """Returns the memory-mapped Features of a cache folder.

  Raises:
    UserError, OSError, ValueError, KeyError: if anything is missing or
      damaged.
  """
  meta = files.read_json(os.path.join(folder, "features.json"), "cache")
  columns = {}
  for name, expected in meta["arrays"].items():
    path = os.path.join(folder, name + ".npy")
    if files.sha256_of_file(path) != expected["sha256"]:
      raise ValueError("%s is damaged" % path)
    columns[name] = np.load(path, mmap_mode="r")
  return Features(**columns)


def _reuse(folder, path):
  """Returns the Features kept in `folder`, or None; a line tells which."""
  if not os.path.isdir(folder):
    return None
  try:
    features = _load(folder)
  except (UserError, OSError, ValueError, KeyError, TypeError,
          AttributeError) as error:
    _LOGGER.warning("features of %s: the cache %s is damaged (%s), so it is "
                    "made anew", path, folder, errors.one_line(error))
    return None
  _LOGGER.info("features of %s: reused %d windows from %s", path,
               len(features), folder)
  return features


def _keep(features, folder, path):
  """Writes the cache; where that fails the run goes on without."""
  # What a killed run left half written.
  for leftover in glob.glob(os.path.join(
      glob.escape(os.path.dirname(folder)),
      ".%s.*.tmp" % os.path.basename(folder))):
    shutil.rmtree(leftover, ignore_errors=True)
  try:
    with files.atomic_folder(folder) as temporary:
      _save(features, temporary)
  except OSError as error:
    _LOGGER.warning("features of %s: made %d windows but cannot keep them in "
                    "%s (%s)", path, len(features), folder,
                    errors.one_line(error))
    return
  _LOGGER.info("features of %s: made %d windows, kept in %s", path,
               len(features), folder)


def _cache_folder(path, settings, is_training, version_2_with_negative,
                  cache_dir):
  key = dict(settings._asdict(), is_training=is_training,
             version_2_with_negative=version_2_with_negative,
             content=files.sha256_of_file(path), version=FEATURE_VERSION)
  return os.path.join(cache_dir, files.stable_hash(key))


def load_or_make(path, tokenizer, settings, is_training,
                 version_2_with_negative, cache_dir):
  """Reads questions and gets their features from the cache or makes them.

  The cache is found by the file's content and all that shapes features. One
  that is damaged or half written is made anew; one that cannot be written
  costs a line, not the run.

  Args:
    path: SQuAD JSON file.
    tokenizer: `tokenization.FullTokenizer`.
    settings: FeatureSettings.
    is_training: whether answers are needed.
    version_2_with_negative: whether questions may have no answer.
    cache_dir: folder of caches, or None for none.

  Returns:
    (list of Example, Features, whether the features came from the cache).

  Raises:
    UserError: as `read_examples` and `featurize`.
  """
  examples = read_examples(path, is_training, version_2_with_negative)
  if not cache_dir:
    return examples, featurize(examples, tokenizer, settings,
                               is_training), False
  folder = _cache_folder(path, settings, is_training,
                         version_2_with_negative, cache_dir)
  features = _reuse(folder, path)
  if features is not None:
    return examples, features, True
  features = featurize(examples, tokenizer, settings, is_training)
  _keep(features, folder, path)
  return examples, features, False
