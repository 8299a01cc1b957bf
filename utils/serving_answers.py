"""Questions answered through a server: asked, kept, reported, scored."""

import contextlib
import os
import time
from typing import NamedTuple

import numpy as np

from utils import benchmarks
from utils import files
from utils import logs
from utils import metrics
from utils import serving_client
from utils import serving_logits
from utils import serving_model
from utils import serving_requests
from utils import squad_data
from utils import squad_features
from utils import squad_task
from utils import stopwatch
from utils.errors import PeerError
from utils.logs import LOGGER

UNANSWERED_FILE = "unanswered.json"
# A client that is killed loses what it got in this time.
SAVE_SECONDS = 30
_CHECK_SECONDS = 5


class Session(NamedTuple):
  """What questions are answered with.

  config: the client's NamedTuple of settings.
  target: serving_client.Target.
  model: serving_model.Model.
  tokenizer: tokenization.FullTokenizer.
  """
  config: tuple
  target: tuple
  model: tuple
  tokenizer: object


def inputs_of(model, features, rows):
  """Returns {name: int32 array [k, ...]} that a served model takes.

  Args:
    model: serving_model.Model.
    features: squad_data.Features.
    rows: int64 [k] row numbers.
  """
  batch = squad_task.batch_of(features, rows, False)
  # A number a feature is [k, 1] for some models and [k] for others.
  return {name: array.reshape([len(rows)] + model.shapes[name])
          for name, array in batch.items()}


class _Asking(object):
  """Asks for the logits that are not known yet.

  Args:
    session: Session.
    features: squad_data.Features.
    logits: serving_logits.Logits, which gets them.
  """

  def __init__(self, session, features, logits):
    self._session = session
    self._features = features
    self._logits = logits
    size = session.config.batch_size
    # The longest first, as run_squad.py predicts: batches with little padding.
    todo = np.argsort(-features.length, kind="stable")
    todo = todo[~logits.known[todo]]
    self.batches = [todo[i:i + size] for i in range(0, len(todo), size)]
    self._count = len(todo)
    self._saved = time.monotonic()
    # The first reply is one of many that are waited for at the same time.
    self.watch = stopwatch.Stopwatch(size, has_startup=False)

  def ask(self):
    """Returns the `serving_requests.Outcome`."""
    config = self._session.config
    requests = serving_requests.Requests(
        lambda: serving_client.Connection(self._session.target),
        serving_requests.RequestSettings(
            min(config.concurrency, max(len(self.batches), 1)),
            config.max_retries, config.timeout), self._take, self._tick)
    with logs.progress(self._count, "feature", "asking") as self._bar:
      return requests.run(inputs_of(self._session.model, self._features, rows)
                          for rows in self.batches)

  def _take(self, number, outputs):
    rows = self.batches[number]
    self._logits.take(rows, outputs)
    self.watch.step(len(rows))
    self._bar.update(len(rows))
    done = self.watch.sentences
    if self._bar.disable and done // 2000 > (done - len(rows)) // 2000:
      LOGGER.info("answered %d/%d  sentences per sec %.1f", done, self._count,
                  self.watch.rate)

  def _tick(self):
    if time.monotonic() - self._saved > SAVE_SECONDS:
      self._logits.save()
      self._saved = time.monotonic()


def _report(session, asking, outcome):
  """Logs how fast it was, and returns the same as values of a metrics row."""
  watch, config = asking.watch, session.config
  row = dict(
      seconds=round(watch.total, 3), sentences=watch.sentences,
      requests=len(outcome.seconds), retries=outcome.retries,
      batch_size=config.batch_size, concurrency=config.concurrency,
      protocol=config.protocol)
  if not outcome.seconds:
    return row
  watch.log("Inference")
  latencies = benchmarks.latencies(outcome.seconds)
  LOGGER.info(
      "latency of %d requests in ms: %s; %d sent again", len(outcome.seconds),
      ", ".join("%s %.2f" % (name if name != "100%" else "longest", value)
                for name, value in latencies.items()), outcome.retries)
  row.update(sentences_per_sec=round(watch.rate, 3), latency_ms={
      name: round(value, 3) for name, value in latencies.items()})
  return row


def _key(session, path):
  """Returns what the logits of a file's questions depend on."""
  return dict(
      squad_task.feature_settings(session.config)._asdict(),
      content=files.sha256_of_file(path),
      features=squad_features.FEATURE_VERSION,
      model=session.model.name, version=session.model.version,
      fingerprint=session.model.fingerprint)


def _check_same_model(session, logits):
  """Raises PeerError if the model has been replaced since it was looked at.

  Where the server is gone that cannot be told, but a client that goes on looks
  at the model before it takes what this one keeps.
  """
  connection = serving_client.Connection(session.target._replace(
      request_timeout=min(session.target.request_timeout, _CHECK_SECONDS)))
  try:
    now = serving_model.fingerprint(connection.config())
  except (serving_client.Passing, serving_client.Refused,
          serving_client.BadReply) as error:
    LOGGER.warning("the model cannot be looked at once more: %s", error)
    return
  finally:
    connection.close()
  if now != session.model.fingerprint:
    logits.forget()
    _remove_older(session.config)
    raise PeerError(
        "model %s %d was replaced while it was asked, so no answer of it is "
        "kept: the same command asks the new one"
        % (session.model.name, session.model.version))


def _remove_older(config):
  """Removes what an earlier run left, which is no longer so."""
  squad_task.remove_older(
      config.output_dir, squad_task.ANSWER_FILES + squad_task.SCORE_FILES
      + (UNANSWERED_FILE,))


def _tell_unanswered(session, examples, features, logits, outcome):
  """Writes and tells which questions have no answer; never returns.

  Raises:
    KeyboardInterrupt: after Ctrl-C.
    PeerError: else.
  """
  config = session.config
  missing = np.unique(features.example_index[~logits.known])
  reason = outcome.stopped or sorted(set(outcome.failed.values()))[0]
  _remove_older(config)
  path = os.path.join(config.output_dir, UNANSWERED_FILE)
  files.write_json(path, {"reason": reason, "questions": [
      {"id": examples[i].qas_id, "question": examples[i].question_text}
      for i in missing]})
  kept = ("the logits of %d features are kept: the same command asks for the "
          "others alone" % logits.known.sum())
  if not logits.is_kept:
    kept = ("no logits are kept, since the server does not tell this model "
            "from another (it has no export_fingerprint)")
  line = "%d of %d questions are unanswered (see %s): %s; %s" % (
      len(missing), len(examples), path, reason, kept)
  if outcome.is_interrupted:
    LOGGER.warning("%s", line)
    raise KeyboardInterrupt
  raise PeerError(line)


def answer_file(session):
  """Answers --predict_file; returns the scores, or None without any.

  Raises:
    PeerError: if questions are left unanswered; the logits of the others are
      kept for a client with the same questions, settings and model.
  """
  config = session.config
  examples, features = squad_task.load_features(
      config, session.tokenizer, config.predict_file, False)
  LOGGER.info("%s: %d questions, %d features", config.predict_file,
              len(examples), len(features))
  logits = serving_logits.Logits(
      len(features), config.max_seq_length,
      config.output_dir if session.model.fingerprint else None,
      _key(session, config.predict_file))
  logits.load()
  asking = _Asking(session, features, logits)
  try:
    outcome = asking.ask()
  except BaseException:
    with contextlib.suppress(Exception):  # the first fault is what counts
      logits.save()
    raise
  logits.save()
  if not outcome.is_interrupted:
    _check_same_model(session, logits)
  writer = metrics.MetricsWriter(config.output_dir)
  writer.write("predict", **_report(session, asking, outcome))
  if not logits.known.all():
    _tell_unanswered(session, examples, features, logits, outcome)
  answers = squad_task.answer(
      config, examples, features,
      (logits.values[:, 0], logits.values[:, 1]), session.tokenizer)
  scores = squad_task.score(config, answers)
  squad_task.write_answers(config, answers)
  squad_task.write_scores(config, scores, writer)
  writer.close()
  logits.forget()
  path = os.path.join(config.output_dir, UNANSWERED_FILE)
  if os.path.exists(path):
    os.remove(path)
  return scores


def answer_typed(session, question, context, tell=True):
  """Returns the `squad_answers.Answers` of one question.

  Args:
    session: Session.
    question, context: text.
    tell: whether to log how fast it was, and to write to --output_dir.

  Raises:
    UserError: if question or context is empty.
    PeerError: if there is no answer.
  """
  config = session.config
  examples = [squad_data.typed_example(question, context)]
  features = squad_data.featurize(
      examples, session.tokenizer, squad_task.feature_settings(config), False)
  logits = serving_logits.Logits(len(features), config.max_seq_length)
  asking = _Asking(session, features, logits)
  outcome = asking.ask()
  if outcome.is_interrupted:
    raise KeyboardInterrupt
  if not logits.known.all():
    raise PeerError("no answer: %s" % (
        outcome.stopped or list(outcome.failed.values())[0]))
  answers = squad_task.answer(
      config, examples, features,
      (logits.values[:, 0], logits.values[:, 1]), session.tokenizer)
  if tell:
    _report(session, asking, outcome)
    if config.output_dir:
      squad_task.write_answers(config, answers)
  return answers


def described(answers):
  """Returns {"answer", "probability"} of one question, for v2.0 "null_odds".

  "" is no answer.
  """
  [(name, text)] = answers.predictions.items()
  found = {"answer": text, "probability": round(next(
      entry["probability"] for entry in answers.nbest[name]
      if entry["text"] == text), 4)}
  if answers.null_odds:
    found["null_odds"] = answers.null_odds[name]
  return found
