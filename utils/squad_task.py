"""What answers SQuAD's questions before and after the model computes.

For `run_squad.py` and for the client of a server alike, so that the same
questions have the same features, and the same logits the same answers and
files. No TensorFlow.
"""

import os

import tokenization
from utils import files
from utils import squad_answers
from utils import squad_data
from utils import squad_score
from utils.errors import UserError
from utils.logs import LOGGER

# What a prediction writes; the last of the answers for v2.0 alone.
ANSWER_FILES = ("predictions.json", "nbest_predictions.json", "null_odds.json")
SCORE_FILES = ("scores.json", "eval_results.txt")


def cache_dir(values):
  """Returns the folder of cached features; `values` are those of flags."""
  if values["cache_dir"]:
    return values["cache_dir"]
  results = os.environ.get("RESULTS_DIR") or values["output_dir"] or "."
  return os.path.join(results, "cache")


def check_room(max_seq_length, max_query_length):
  """Raises UserError if a feature has no room for its paragraph."""
  if max_seq_length <= max_query_length + 3:
    raise UserError(
        "--max_seq_length=%d leaves no room for the paragraph: it must be "
        "above --max_query_length=%d plus 3"
        % (max_seq_length, max_query_length))


def load_tokenizer(vocab_file, do_lower_case):
  """Returns the tokenizer; UserError for a vocabulary of another kind."""
  tokenizer = tokenization.FullTokenizer(
      vocab_file, do_lower_case=do_lower_case)
  for token in ("[CLS]", "[SEP]", "[UNK]"):
    if token not in tokenizer.vocab:
      raise UserError("--vocab_file: %s has no token %s: use the vocabulary "
                      "of the model" % (vocab_file, token))
  tokenization.check_case(tokenizer.vocab, do_lower_case, "do_lower_case")
  return tokenizer


def check_questions(path):
  """Raises UserError, before any computing, for a bad --predict_file."""
  squad_data.read_squad(path)
  squad_score.check(files.read_json(path, "--predict_file"), path)


def feature_settings(config):
  """Returns the FeatureSettings of a runner's settings."""
  return squad_data.FeatureSettings(
      max_seq_length=config.max_seq_length, doc_stride=config.doc_stride,
      max_query_length=config.max_query_length,
      do_lower_case=config.do_lower_case,
      vocab_sha256=files.sha256_of_file(config.vocab_file))


def load_features(config, tokenizer, path, is_training):
  """Returns (examples, features) of a SQuAD file, cached where possible."""
  examples, features, _ = squad_data.load_or_make(
      path, tokenizer, feature_settings(config), is_training=is_training,
      version_2_with_negative=config.version_2_with_negative,
      cache_dir=config.cache_dir)
  return examples, features


def batch_of(features, rows, is_training):
  """Returns the dict of numpy int32 arrays that the model takes.

  Args:
    features: squad_data.Features.
    rows: int64 [k] row numbers.
    is_training: whether to add the answer's positions.
  """
  batch = {
      "unique_ids": features.unique_ids[rows],
      "input_ids": features.input_ids[rows],
      "input_mask": features.input_mask(rows),
      "segment_ids": features.segment_ids(rows),
  }
  if is_training:
    batch["start_positions"] = features.start_positions[rows]
    batch["end_positions"] = features.end_positions[rows]
  return batch


def answer(config, examples, features, logits, tokenizer):
  """Returns `squad_answers.Answers` from (start, end) logits."""
  settings = squad_answers.AnswerSettings(
      **{name: getattr(config, name)
         for name in squad_answers.AnswerSettings._fields})
  return squad_answers.predict_answers(
      examples, features, *logits, settings, tokenizer)


def score(config, answers):
  """Returns the scores of answers to --predict_file, or None without any."""
  return squad_score.score(
      files.read_json(config.predict_file, "--predict_file"),
      answers.predictions,
      answers.null_odds if config.version_2_with_negative else None,
      name=config.predict_file)


def remove_older(output_dir, names):
  """Removes an earlier prediction's files, so that old and new never mix."""
  older = [name for name in names
           if os.path.exists(os.path.join(output_dir, name))]
  for name in older:
    os.remove(os.path.join(output_dir, name))
  if older:
    LOGGER.info("removed of an earlier prediction: %s", ", ".join(older))


def write_answers(config, answers):
  """Writes the answers' files in place of older ones.

  predictions.json is written first, in place of its older one: neither a kill
  nor a full disk leaves it with what belongs to other answers.
  """
  remove_older(config.output_dir, ANSWER_FILES[1:] + SCORE_FILES)
  squad_answers.write_answers(
      config.output_dir, *answers,
      version_2_with_negative=config.version_2_with_negative)


def write_scores(config, scores, writer):
  """Writes scores.json, eval_results.txt and a row of metrics.

  Args:
    config: the runner's NamedTuple of settings.
    scores: as `squad_score.score` gives them, or None.
    writer: `metrics.MetricsWriter`.
  """
  if scores is None:
    LOGGER.info("%s has no answers to score against", config.predict_file)
    return
  files.write_json(os.path.join(config.output_dir, "scores.json"), scores)
  path = os.path.join(config.output_dir, "eval_results.txt")
  with files.atomic_write(path) as stream:
    for name, value in scores.items():
      stream.write("%s = %s\n" % (name, value))
  writer.write("eval", **scores)
  thresholds = squad_score.threshold_line(scores)
  if thresholds:
    LOGGER.info("%s", thresholds)
