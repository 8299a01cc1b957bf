"""Answers SQuAD questions through a Triton server, and scores the answers.

Asks for a file of questions (--predict_file), one question and passage typed
on the command line (--question, --context), or as they are typed at a prompt
(--interactive). The same features, answers and scores as run_squad.py, without
TensorFlow: it runs on what requirements-client.txt holds.
"""

import codecs
import contextlib
import json
import os
import signal
import sys
from typing import NamedTuple
from typing import Optional

from absl import flags

import tokenization
from utils import files
from utils import logs
from utils import serving_answers
from utils import serving_client
from utils import serving_logits
from utils import serving_model
from utils import serving_prompt
from utils import squad_data
from utils import squad_flags
from utils import squad_score
from utils import squad_task
from utils.errors import run_main
from utils.errors import UserError
from utils.logs import LOGGER

_BATCH_SIZE = 8
# gRPC takes a deadline that it cannot express for one that is over.
_LONGEST_REQUEST = 86400


class ClientConfig(NamedTuple):
  """Every setting of the client; see the flags for their meaning."""
  trtis_server_url: str
  protocol: str
  trtis_model_name: str
  trtis_model_version: int
  vocab_file: str
  do_lower_case: Optional[bool]
  predict_file: Optional[str]
  question: Optional[str]
  context: Optional[str]
  interactive: bool
  output_dir: Optional[str]
  cache_dir: Optional[str]
  max_seq_length: Optional[int]
  doc_stride: int
  max_query_length: int
  max_answer_length: int
  n_best_size: int
  null_score_diff_threshold: float
  version_2_with_negative: bool
  batch_size: Optional[int]
  concurrency: int
  max_retries: int
  request_timeout: float
  timeout: float
  verbose_logging: bool


def define_flags():
  """Declares the command line."""
  _define_server_flags()
  squad_flags.define()
  flags.DEFINE_bool(
      "do_lower_case", None, "Lower-case the text; if not given, as the model "
      "was exported, else what the vocabulary is made for.")
  flags.DEFINE_string("question", None, "One question, with --context.")
  flags.DEFINE_string(
      "context", None, "The passage that answers --question, or, with "
      "--interactive, those that are typed.")
  flags.DEFINE_bool("interactive", False, "Answer what is typed.")
  flags.DEFINE_string("output_dir", None, "Folder of the answers.")
  flags.DEFINE_integer(
      "max_seq_length", None, "Word pieces of a feature, with [CLS] and [SEP]; "
      "if not given, what the model takes, else 384.")
  flags.DEFINE_string("log_file", None, "File that gets all log lines.")


def _define_server_flags():
  """Declares who is asked, and how."""
  flags.DEFINE_string(
      "trtis_server_url", None, "host:port of the server; default: 127.0.0.1 "
      "and the protocol's own port, 8001 for grpc, 8000 for http.")
  flags.DEFINE_enum("protocol", "grpc", ["grpc", "http"], "How to ask.")
  flags.DEFINE_string("trtis_model_name", "bert", "Name of the model.")
  flags.DEFINE_integer("trtis_model_version", 1, "Version of the model.")
  flags.DEFINE_integer(
      "batch_size", None, "Features a request, at most; if not given, %d, or "
      "what the model takes if that is less." % _BATCH_SIZE)
  flags.DEFINE_alias("predict_batch_size", "batch_size")
  flags.DEFINE_integer("concurrency", 8, "Requests in flight, at most.")
  flags.DEFINE_integer(
      "max_retries", 8, "How often a request is sent again where that may help "
      "(no connection, overload, a deadline), after pauses that double.")
  flags.DEFINE_float(
      "request_timeout", 60.0, "Seconds that one request may take.")
  flags.DEFINE_float(
      "timeout", 0.0, "Seconds that all requests together may take; 0: any.")


def _check_what_is_asked(config):
  """Raises UserError unless there is exactly one thing to answer."""
  given = [name for name, value in (
      ("predict_file", config.predict_file is not None),
      ("question", config.question is not None),
      ("interactive", config.interactive)) if value]
  if len(given) != 1:
    raise UserError(
        "%s: give one of --predict_file, --question with --context, and "
        "--interactive" % (" and ".join("--" + name for name in given)
                           or "nothing to answer"))
  if config.predict_file is not None:
    if config.context is not None:
      raise UserError("--context goes with --question or --interactive, not "
                      "with --predict_file")
    files.require_file(config.predict_file, "predict_file")
    if not config.output_dir:
      raise UserError("--output_dir is required")
    squad_task.check_questions(config.predict_file)
  elif config.question is not None:
    if config.context is None:
      raise UserError("--question needs --context, the passage to look in")
    squad_data.typed_example(config.question, config.context)
  elif config.context is not None:
    squad_data.check_context(config.context)


def _readable(text):
  """Returns a word of the command line as text that can be written again.

  Bytes of another encoding are in it as halves of characters, which are none.
  """
  return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def config_from_flags():
  """Returns the validated ClientConfig of the command line."""
  values = flags.FLAGS.flag_values_dict()
  for name in ("question", "context"):
    if values[name] is not None:
      values[name] = _readable(values[name])
  values["cache_dir"] = squad_task.cache_dir(values)
  values["trtis_server_url"] = serving_client.address(
      values["trtis_server_url"], values["protocol"])
  config = ClientConfig(
      **{name: values[name] for name in ClientConfig._fields})
  for name in ("trtis_model_version", "doc_stride", "max_query_length",
               "max_answer_length", "n_best_size", "batch_size", "concurrency",
               "request_timeout", "max_seq_length"):
    value = getattr(config, name)
    if value is not None and not 0 < value < float("inf"):
      raise UserError("--%s=%s: give a number above 0" % (name, value))
  if config.request_timeout > _LONGEST_REQUEST:
    raise UserError("--request_timeout=%g: give at most %d, a day"
                    % (config.request_timeout, _LONGEST_REQUEST))
  for name in ("max_retries", "timeout"):
    if not getattr(config, name) >= 0:
      raise UserError("--%s=%s: give 0 or more" % (name, getattr(config, name)))
  if not config.trtis_model_name:
    raise UserError("--trtis_model_name is required")
  files.require_file(config.vocab_file, "vocab_file")
  _check_what_is_asked(config)
  return config


def settled(config, model):
  """Returns the config with what the flags leave to the model.

  Args:
    config: ClientConfig.
    model: serving_model.Model.

  Raises:
    UserError: where the flags and the model do not go together.
  """
  lower_case = config.do_lower_case
  if lower_case is None:
    lower_case = model.do_lower_case
  if lower_case is None:
    lower_case = tokenization.infer_lower_case(config.vocab_file)
  config = config._replace(
      do_lower_case=lower_case,
      batch_size=config.batch_size or min(_BATCH_SIZE, model.max_batch_size),
      max_seq_length=config.max_seq_length or model.seq_length or 384)
  serving_model.check(model, config, files.sha256_of_file(config.vocab_file))
  squad_task.check_room(config.max_seq_length, config.max_query_length)
  return config


def connect(config):
  """Returns (Target, Model) of the server's model, which is looked at."""
  target = serving_client.Target(
      config.trtis_server_url, config.protocol, config.trtis_model_name,
      config.trtis_model_version, config.request_timeout)
  connection = serving_client.Connection(target)
  try:
    return target, serving_model.describe(connection, target)
  finally:
    connection.close()


@contextlib.contextmanager
def _output(config):
  """Holds --output_dir, if there is one, and describes the run in it."""
  if not config.output_dir:
    yield
    return
  files.require_output_dir(config.output_dir, "output_dir")
  with files.FolderLock(config.output_dir):
    files.remove_leftovers(os.path.join(
        config.output_dir, serving_logits.FILE))
    files.write_json(os.path.join(config.output_dir, "client_config.json"), {
        "runner": "run_squad_trtis_client.py",
        "settings": dict(config._asdict()),
        "command": [_readable(word) for word in sys.argv]})
    yield


class _Interrupt(object):
  """Ends the asking at a signal; what there is is then kept, in seconds.

  A second signal, such as timeout(1) sends at once, does not cut that short.
  """

  def __init__(self):
    self._came = False

  def __call__(self, *unused):
    if not self._came:
      self._came = True
      raise KeyboardInterrupt


def _answer(session):
  """Answers what is asked; returns the last line of output, None for none."""
  config = session.config
  if config.interactive:
    serving_prompt.converse(session)
    return None
  if config.question is not None:
    answers = serving_answers.answer_typed(
        session, config.question, config.context)
    is_plain = codecs.lookup(sys.stdout.encoding).name != "utf-8"
    return json.dumps(
        serving_answers.described(answers), ensure_ascii=is_plain)
  scores = serving_answers.answer_file(session)
  return squad_score.final_line(scores) if scores else None


def main(unused_argv):
  """Does what the flags ask for."""
  config = config_from_flags()
  logs.set_up(flags.FLAGS.log_file)
  interrupt = _Interrupt()
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, interrupt)
  target, model = connect(config)
  config = settled(config, model)
  tokenizer = squad_task.load_tokenizer(
      config.vocab_file, config.do_lower_case)
  with _output(config):
    LOGGER.info("asking model %s %d at %s over %s", model.name, model.version,
                target.url, target.protocol)
    LOGGER.info("settings: %s", ", ".join(
        "%s=%s" % item for item in sorted(config._asdict().items())))
    line = _answer(serving_answers.Session(config, target, model, tokenizer))
  if line:
    LOGGER.info("%s", line, extra=logs.FILE_ONLY)
    print(line, flush=True)


if __name__ == "__main__":
  define_flags()
  run_main(main)
