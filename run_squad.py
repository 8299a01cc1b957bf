"""Fine-tunes BERT on SQuAD v1.1 or v2.0, predicts answers, scores, exports.

--do_train trains on --train_file, --do_predict writes predictions.json,
nbest_predictions.json and (v2.0) null_odds.json for --predict_file, and
prints the official scores as the last line where that file has answers;
--export_trtis writes the model for an inference server.
"""

import time
from typing import NamedTuple
from typing import Optional

from absl import flags
import numpy as np

# Before TensorFlow, which it keeps quiet.
from utils import stack
import tensorflow.compat.v1 as tf

import modeling
import tokenization
from fused_ops import sequences as rows_of
from utils import export
from utils import export_flags
from utils import files
from utils import input_pipeline
from utils import logs
from utils import metrics
from utils import order
from utils import replica
from utils import run_folder
from utils import runner_flags
from utils import squad_flags
from utils import squad_score
from utils import squad_task
from utils import stopwatch
from utils import training
from utils.errors import run_main
from utils.errors import UserError
from utils.logs import LOGGER

# What the model gives padding where it computes nothing there: never an answer.
PADDING_LOGIT = -10000.0


class SquadConfig(NamedTuple):
  """Every setting of a SQuAD run; see the flags for their meaning."""
  vocab_file: str
  bert_config_file: str
  init_checkpoint: Optional[str]
  output_dir: str
  cache_dir: Optional[str]
  train_file: Optional[str]
  predict_file: Optional[str]
  do_lower_case: bool
  do_train: bool
  do_predict: bool
  train_batch_size: int
  predict_batch_size: int
  learning_rate: float
  num_train_epochs: float
  warmup_proportion: float
  length_grouping: bool
  max_seq_length: int
  doc_stride: int
  max_query_length: int
  max_answer_length: int
  n_best_size: int
  null_score_diff_threshold: float
  version_2_with_negative: bool
  num_eval_iterations: Optional[int]
  optimizer_type: str
  num_accumulation_steps: int
  allreduce_fp16: bool
  nan_policy: str
  save_checkpoints_steps: int
  keep_checkpoint_max: int
  eval_every_steps: int
  log_every_steps: int
  iterations_per_loop: int
  seed: int
  horovod: bool
  use_fp16: bool
  use_bf16: bool
  use_xla: bool
  remove_padding: bool
  fused_ops: str
  verbose_logging: bool
  export_trtis: bool
  export_format: str
  export_fused_ops: bool
  trtis_model_repository: Optional[str]
  trtis_model_name: str
  trtis_model_version: int
  trtis_max_batch_size: int
  trtis_dyn_batching_delay: float
  trtis_max_queue_size: int
  trtis_engine_count: int
  trtis_model_overwrite: bool


def define_flags():
  """Declares the command line."""
  runner_flags.define_common(
      learning_rate=5e-6, train_batch_size=8, max_seq_length=384)
  squad_flags.define()
  flags.DEFINE_string("train_file", None, "SQuAD JSON to train on.")
  flags.DEFINE_bool(
      "do_lower_case", True,
      "Lower-case the text; if not given, what the vocabulary is made for.")
  flags.DEFINE_bool("do_train", False, "Train.")
  flags.DEFINE_bool("do_predict", False, "Predict and score.")
  flags.DEFINE_integer("predict_batch_size", 8, "Features a batch.")
  flags.DEFINE_float("num_train_epochs", 3.0, "Passes over the questions.")
  flags.DEFINE_float(
      "warmup_proportion", 0.1, "Share of the steps with rising rate.")
  flags.DEFINE_integer(
      "num_eval_iterations", None,
      "Stop prediction after so many batches (to measure speed).")
  flags.DEFINE_bool(
      "length_grouping", False, "Train on batches of similar length.")
  export_flags.define()


def config_from_flags():
  """Returns the validated SquadConfig of the command line."""
  values = flags.FLAGS.flag_values_dict()
  vocab_file = files.require_file(values["vocab_file"], "vocab_file")
  if not flags.FLAGS["do_lower_case"].present:
    values["do_lower_case"] = tokenization.infer_lower_case(vocab_file)
  values["cache_dir"] = squad_task.cache_dir(values)
  config = runner_flags.checked(SquadConfig(
      **{name: values[name] for name in SquadConfig._fields}))
  if not (config.do_train or config.do_predict or config.export_trtis):
    raise UserError("nothing to do: give --do_train, --do_predict, "
                    "--export_trtis or some of them")
  if config.do_train:
    files.require_file(config.train_file, "train_file")
    runner_flags.check_positive("num_train_epochs", config.num_train_epochs)
  if config.do_predict or config.eval_every_steps:
    files.require_file(config.predict_file, "predict_file")
  for name in ("predict_batch_size", "doc_stride", "max_query_length",
               "max_answer_length", "n_best_size"):
    runner_flags.check_positive(name, getattr(config, name))
  if config.num_eval_iterations is not None:
    runner_flags.check_positive(
        "num_eval_iterations", config.num_eval_iterations)
  if not 0 <= config.warmup_proportion < 1:
    raise UserError("--warmup_proportion=%g: give a number from 0 to below 1"
                    % config.warmup_proportion)
  if config.do_train or config.do_predict:
    squad_task.check_room(config.max_seq_length, config.max_query_length)
  return export_flags.checked(config)


def span_logits(token_output, sequences):
  """Scores each position as the answer's start and end.

  A linear layer with two outputs (Devlin et al. 2018, section 4.2).

  Args:
    token_output: float32 [tokens, hidden].
    sequences: `Sequences` of its rows.

  Returns:
    (start, end) logits, float32 [batch, seq] each; `PADDING_LOGIT` where there
    is no row.
  """
  width = modeling.get_shape_list(token_output, expected_rank=2)[1]
  with tf.variable_scope("cls/squad"):
    kernel = tf.get_variable(
        "output_weights", [2, width],
        initializer=tf.truncated_normal_initializer(stddev=0.02))
    bias = tf.get_variable("output_bias", [2],
                           initializer=tf.zeros_initializer())
  logits = tf.nn.bias_add(tf.matmul(token_output, kernel, transpose_b=True),
                          bias)
  start, end = tf.unstack(rows_of.pad(sequences, logits), axis=2)
  if not sequences.packed:
    return start, end
  padding = tf.fill(tf.shape(start), PADDING_LOGIT)
  return (tf.where(sequences.mask > 0, start, padding),
          tf.where(sequences.mask > 0, end, padding))


def span_loss_sum(start_logits, end_logits, features):
  """Returns the sum over the batch of a feature's mean loss of start and end.

  Cross-entropy over all positions, a float32 scalar.

  Args:
    start_logits: float32 [batch, seq].
    end_logits: float32 [batch, seq].
    features: dict with int32 [batch] `start_positions`, `end_positions`.
  """
  def loss_sum(logits, positions):
    return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=positions, logits=logits))
  return (loss_sum(start_logits, features["start_positions"])
          + loss_sum(end_logits, features["end_positions"])) / 2.0


def logits_of(features, bert_config, is_training, options):
  """Returns `span_logits` of a batch; arguments as of `training.encoder`."""
  model = training.encoder(features, bert_config, is_training, options)
  return span_logits(model.token_output, model.sequences)


def model_fn(features, labels, mode, params):
  """Estimator's model function.

  Args:
    features: dict of what `logits_of` and, in training, `span_loss_sum`
      need, [batch, ...]; with k > 1 micro-batches [k, batch, ...].
    labels: None; they are among the features.
    mode: a tf.estimator.ModeKeys.
    params: dict of `training.estimator`.
  """
  del labels
  bert_config = params["bert_config"]

  def totals_of(micro, options):
    return {"span_loss": span_loss_sum(
        *logits_of(micro, bert_config, True, options), features=micro)}

  if mode == tf.estimator.ModeKeys.TRAIN:
    return training.train_spec(params, features, totals_of, {
        "span_loss": tf.size(features["start_positions"])})
  start_logits, end_logits = logits_of(features, bert_config, False,
                                       training.inference_options(params))
  return tf.estimator.EstimatorSpec(
      mode=mode, predictions={
          "unique_ids": features["unique_ids"],
          "start_logits": start_logits, "end_logits": end_logits},
      scaffold=training.restoring(params),
      prediction_hooks=training.inference_hooks())


def input_fn(source, batch_size, seq_length, is_training, batches_a_step=1):
  """Returns the dataset of batches.

  Args:
    source: `input_pipeline.Source` of `batch_of` dicts.
    batch_size: features a batch, or None if the last may be smaller.
    seq_length: word pieces of a feature.
    is_training: whether the batches hold the answer's positions.
    batches_a_step: see `input_pipeline.in_steps`.
  """
  names = ["unique_ids"] + (
      ["start_positions", "end_positions"] if is_training else [])
  shapes = {name: tf.TensorShape([batch_size]) for name in names}
  for name in ("input_ids", "input_mask", "segment_ids"):
    shapes[name] = tf.TensorShape([batch_size, seq_length])
  dtypes = {name: tf.int32 for name in shapes}
  return input_pipeline.in_steps(tf.data.Dataset.from_generator(
      source, dtypes, shapes), batches_a_step)


def load_features(config, tokenizer, path, is_training):
  """Returns (examples, features) of a SQuAD file, made by rank 0 first."""
  examples, features = replica.chief_first(lambda: squad_task.load_features(
      config, tokenizer, path, is_training))
  LOGGER.info("%s: %d questions, %d features", path, len(examples),
              len(features.unique_ids))
  return examples, features


def train(config, bert_config, tokenizer):
  """Trains for --num_train_epochs over the questions."""
  examples, features = load_features(
      config, tokenizer, config.train_file, True)
  size = training.global_batch(config)
  runner_flags.check_enough("train_batch_size", size, len(examples),
                            "usable questions in --train_file")
  steps = int(len(examples) / size * config.num_train_epochs)
  if steps < 1:
    raise UserError("--num_train_epochs=%g is less than one batch of %d"
                    % (config.num_train_epochs, size))

  def batches(consumed):
    for rows in order.index_batches(
        len(features.unique_ids), config.seed, size, consumed,
        features.length if config.length_grouping else None):
      mine = np.split(rows, replica.size())[replica.rank()]
      for part in np.split(mine, config.num_accumulation_steps):
        yield squad_task.batch_of(features, part, True)

  training.train(
      config, bert_config, model_fn, steps,
      int(steps * config.warmup_proportion), batches,
      lambda source: input_fn(source, config.train_batch_size,
                              config.max_seq_length, True,
                              config.num_accumulation_steps),
      evaluate=lambda: _dev_score(config, bert_config, tokenizer))


def _dev_score(config, bert_config, tokenizer):
  """Returns what the best checkpoint is chosen by; None but on rank 0."""
  scores = predict(config, bert_config, tokenizer)
  return ("f1", scores["f1"]) if scores else None


def _predict_logits(config, bert_config, features):
  """Returns (start, end) logits float32 [k, seq], a watch, batches' seconds.

  k < n if stopped early; the seconds are those of this rank's batches.

  The longest come first, so that a batch has little padding, and too large a
  batch is known at once. The ranks take the batches in turn, so that each batch
  is what it is with one rank; all of them get all logits.
  """
  prefix = training.checkpoint_to_use(config)
  count, size = len(features.unique_ids), config.predict_batch_size
  if config.num_eval_iterations:
    count = min(count, size * config.num_eval_iterations)
  begins = range(size * replica.rank(), count, size * replica.size())
  by_length = np.argsort(-features.length[:count], kind="stable")
  mine = np.concatenate([by_length[i:i + size] for i in begins]
                        + [by_length[:0]])
  source = input_pipeline.Source(lambda: (
      squad_task.batch_of(features, mine[i:i + size], False)
      for i in range(0, len(mine), size)))
  estimator = training.estimator(
      config, bert_config, model_fn, checkpoint=prefix)
  logits = np.empty([len(mine), 2, config.max_seq_length], np.float32)
  watch, seconds = stopwatch.Stopwatch(size), []
  with input_pipeline.surfaced(source), logs.progress(
      len(mine), "feature", "predicting") as bar:
    done, begin = 0, time.perf_counter()
    for batch in estimator.predict(
        lambda: input_fn(source, None, config.max_seq_length, False),
        checkpoint_path=prefix, yield_single_examples=False):
      rows = len(batch["unique_ids"])
      logits[done:done + rows, 0] = batch["start_logits"]
      logits[done:done + rows, 1] = batch["end_logits"]
      done += rows
      watch.step(rows)
      seconds.append(round(time.perf_counter() - begin, 6))
      begin += seconds[-1]
      bar.update(rows)
      if bar.disable and done // 2000 > (done - rows) // 2000:
        LOGGER.info("predicted %d/%d  sentences per sec %.1f", done, len(mine),
                    watch.rate)
  logits = replica.gather_arrays(logits)[np.argsort(
      replica.gather_arrays(mine), kind="stable")]
  watch.add_ranks(replica.gather(watch.sentences))
  return logits[:, 0], logits[:, 1], watch, seconds


def predict(config, bert_config, tokenizer):
  """Answers --predict_file; returns the scores, or None without any.

  All ranks predict; rank 0 alone writes and scores.
  """
  examples, features = load_features(
      config, tokenizer, config.predict_file, False)
  start, end, watch, batch_seconds = _predict_logits(
      config, bert_config, features)
  if not replica.is_chief():
    return None
  watch.log("Inference")
  writer = metrics.MetricsWriter(config.output_dir)
  writer.write("predict", seconds=round(watch.total, 3),
               sentences=watch.sentences,
               sentences_per_sec=round(watch.rate, 3),
               batch_seconds=batch_seconds)
  scores = None
  if len(start) < len(features.unique_ids):
    LOGGER.info("stopped by --num_eval_iterations after %d of %d features: "
                "no predictions written", len(start),
                len(features.unique_ids))
    squad_task.remove_older(
        config.output_dir, squad_task.ANSWER_FILES + squad_task.SCORE_FILES)
  else:
    answers = squad_task.answer(
        config, examples, features, (start, end), tokenizer)
    scores = squad_task.score(config, answers)
    squad_task.write_answers(config, answers)
    squad_task.write_scores(config, scores, writer)
  writer.close()
  return scores


def load_tokenizer(config, bert_config):
  """Returns the tokenizer, whose vocabulary is checked against the rest."""
  tokenizer = squad_task.load_tokenizer(
      config.vocab_file, config.do_lower_case)
  tokenization.check_vocab_size(tokenizer.vocab, bert_config.vocab_size,
                                config.vocab_file, config.bert_config_file)
  try:
    tokenization.validate_case_matches_checkpoint(
        config.do_lower_case, config.init_checkpoint)
  except ValueError as error:
    raise UserError(str(error))
  return tokenizer


def main(unused_argv):
  """Runs what the flags ask for."""
  config = config_from_flags()
  stack.configure(config.use_xla)
  bert_config = modeling.BertConfig.from_json_file(config.bert_config_file)
  runner_flags.check_length(config.max_seq_length, bert_config)
  tokenizer = load_tokenizer(config, bert_config)
  if config.do_predict or config.eval_every_steps:
    squad_task.check_questions(config.predict_file)
  if config.export_trtis and replica.is_chief():
    export.check(config, bert_config)
  scores = None
  with run_folder.opened(config.output_dir, "run_squad.py", config,
                         bert_config.to_dict(), flags.FLAGS.log_file):
    if config.do_train:
      train(config, bert_config, tokenizer)
    if config.do_predict:
      scores = predict(config, bert_config, tokenizer)
    if config.export_trtis and replica.is_chief():
      export.export(config, bert_config, logits_of)
  if scores:
    line = squad_score.final_line(scores)
    LOGGER.info("%s", line, extra=logs.FILE_ONLY)
    print(line, flush=True)


if __name__ == "__main__":
  define_flags()
  run_main(main)
