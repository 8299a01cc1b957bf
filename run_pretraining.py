"""Pre-trains BERT: masked language model and next sentence prediction.

Reads the TFRecords of create_pretraining_data.py, trains with --do_train,
scores held-out (or the training) records with --do_eval. Killed at any
moment, the same command goes on from the last checkpoint and ends with the
weights of an undisturbed run.
"""

import itertools
import os
from typing import NamedTuple
from typing import Optional

from absl import flags

# Before TensorFlow, which it keeps quiet.
from utils import stack
import tensorflow.compat.v1 as tf

from fused_ops import ops as kernels
import modeling
from utils import files
from utils import input_pipeline
from utils import metrics
from utils import order
from utils import record_checks
from utils import records
from utils import replica
from utils import run_folder
from utils import runner_flags
from utils import training
from utils.errors import run_main
from utils.errors import UserError
from utils.logs import LOGGER


class PretrainingConfig(NamedTuple):
  """Every setting of a pre-training run; see the flags for their meaning."""
  bert_config_file: str
  input_file: str
  eval_input_file: Optional[str]
  output_dir: str
  batch_sources: str
  init_checkpoint: Optional[str]
  do_train: bool
  do_eval: bool
  train_batch_size: int
  eval_batch_size: int
  learning_rate: float
  num_train_steps: int
  num_warmup_steps: int
  max_seq_length: int
  max_predictions_per_seq: int
  optimizer_type: str
  num_accumulation_steps: int
  allreduce_fp16: bool
  nan_policy: str
  save_checkpoints_steps: int
  keep_checkpoint_max: int
  eval_every_steps: int
  max_eval_steps: int
  log_every_steps: int
  seed: int
  report_loss: bool
  iterations_per_loop: int
  horovod: bool
  use_fp16: bool
  use_bf16: bool
  use_xla: bool
  remove_padding: bool
  fused_ops: str


def define_flags():
  """Declares the command line."""
  runner_flags.define_common(
      learning_rate=5e-5, train_batch_size=32, max_seq_length=512)
  flags.DEFINE_string(
      "input_file", None, "TFRecords to train on: globs, commas between; each "
      "of them is a source of its own.")
  flags.DEFINE_enum(
      "batch_sources", "mixed", ["mixed", "single"], "Where there are several "
      "sources: records of all in each batch, or of one; in both cases each "
      "source has its share of the records.")
  flags.DEFINE_string(
      "eval_input_file", None,
      "Held-out TFRecords for --do_eval; default: those of --input_file.")
  flags.DEFINE_bool("do_train", False, "Train.")
  flags.DEFINE_bool("do_eval", False, "Evaluate the newest checkpoint.")
  flags.DEFINE_integer("eval_batch_size", 8, "Sequences a batch in eval.")
  flags.DEFINE_integer("num_train_steps", 100000, "Optimizer steps.")
  flags.DEFINE_integer("num_warmup_steps", 10000, "Steps of rising rate.")
  flags.DEFINE_integer(
      "max_predictions_per_seq", 80,
      "Masked positions a sequence; that of the records.")
  flags.DEFINE_integer("max_eval_steps", 100, "Most batches of --do_eval.")
  flags.DEFINE_bool(
      "report_loss", True,
      "Log the losses every --log_every_steps; metrics.jsonl has them anyway.")


def config_from_flags():
  """Returns the validated PretrainingConfig of the command line."""
  values = flags.FLAGS.flag_values_dict()
  config = runner_flags.checked(PretrainingConfig(
      **{name: values[name] for name in PretrainingConfig._fields}))
  if not config.do_train and not config.do_eval:
    raise UserError("nothing to do: give --do_train, --do_eval or both")
  if config.do_train:
    runner_flags.check_warmup(config.num_warmup_steps, config.num_train_steps)
  for name in ("eval_batch_size", "max_predictions_per_seq",
               "max_eval_steps"):
    runner_flags.check_positive(name, getattr(config, name))
  return config


class Outputs(NamedTuple):
  """What a head computes, a row a prediction (`n` of them).

  `losses` float32 [n], `log_probs` float32 [n, classes], `weights` float32
  [n], 0 where a position only fills the record up.
  """
  losses: tf.Tensor
  log_probs: tf.Tensor
  labels: tf.Tensor
  weights: tf.Tensor


def weighted_sum(outputs):
  """Returns the sum of the losses of real predictions, a float32 scalar."""
  return tf.reduce_sum(outputs.losses * outputs.weights)


def weighted_mean(outputs):
  """Returns the mean loss of the real predictions, a float32 scalar.

  Sum over sum, as published; 1e-5 keeps a batch without predictions finite.
  """
  return weighted_sum(outputs) / (tf.reduce_sum(outputs.weights) + 1e-5)


def _softmax_head(hidden, kernel, bias, labels, weights, fused_ops=False):
  """Scores `hidden` [n, width] against `kernel` [classes, width]."""
  scores = tf.matmul(hidden, kernel, transpose_b=True)
  logits = tf.nn.bias_add(scores, bias)
  if fused_ops:
    losses = kernels.cross_entropy(scores, bias, labels)
  else:
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=labels, logits=logits)
  return Outputs(losses=losses, log_probs=tf.nn.log_softmax(logits),
                 labels=labels, weights=weights)


def masked_lm_outputs(bert_config, hidden, embedding_table, features,
                      fused_ops=False):
  """Predicts the masked tokens (Devlin et al. 2018, section 3.1).

  Args:
    bert_config: BertConfig.
    hidden: float32 [batch * predictions, hidden], the encoder's vectors of the
      masked tokens.
    embedding_table: float32 [vocab, hidden], shared with the input.
    features: dict with `masked_lm_ids` int32 and `masked_lm_weights` float32,
      both [batch, predictions].
    fused_ops: bool, see `modeling.ModelOptions`.

  Returns:
    Outputs with n = batch * predictions and vocab classes.
  """
  with tf.variable_scope("cls/predictions"):
    initializer = modeling.create_initializer(bert_config.initializer_range)
    with tf.variable_scope("transform"):
      hidden = modeling.dense(
          hidden, bert_config.hidden_size, name="dense",
          activation=modeling.get_activation(bert_config.hidden_act),
          initializer=initializer)
      hidden = modeling.layer_norm(hidden)
    bias = tf.get_variable("output_bias", [bert_config.vocab_size],
                           initializer=tf.zeros_initializer())
    return _softmax_head(
        hidden, embedding_table, bias,
        tf.reshape(features["masked_lm_ids"], [-1]),
        tf.reshape(features["masked_lm_weights"], [-1]), fused_ops)


def next_sentence_outputs(bert_config, pooled_output, features):
  """Predicts whether the second segment follows the first (0) or not (1).

  Args:
    bert_config: BertConfig.
    pooled_output: float32 [batch, hidden].
    features: dict with `next_sentence_labels` int32 [batch, 1].

  Returns:
    Outputs with n = batch and 2 classes.
  """
  with tf.variable_scope("cls/seq_relationship"):
    kernel = tf.get_variable(
        "output_weights", [2, bert_config.hidden_size],
        initializer=modeling.create_initializer(bert_config.initializer_range))
    bias = tf.get_variable("output_bias", [2],
                           initializer=tf.zeros_initializer())
  labels = tf.reshape(features["next_sentence_labels"], [-1])
  return _softmax_head(pooled_output, kernel, bias, labels,
                       tf.ones_like(labels, tf.float32))


def outputs_of(features, bert_config, is_training, options):
  """Returns the `Outputs` of both heads, masked LM and next sentence.

  Args:
    features: dict of the records' tensors, int32 but for the weights.
    bert_config: modeling.BertConfig.
    is_training: bool, whether dropout is on.
    options: modeling.ModelOptions.
  """
  model = training.encoder(features, bert_config, is_training, options)
  hidden = model.vectors_at(features["masked_lm_positions"])
  return (masked_lm_outputs(bert_config, hidden, model.get_embedding_table(),
                            features, options.fused_ops),
          next_sentence_outputs(bert_config, model.get_pooled_output(),
                                features))


def loss_weights(features):
  """Returns what a rank's window adds to the divisors of the two losses.

  Args:
    features: dict with `masked_lm_weights` [..., predictions] and
      `next_sentence_labels` [..., 1].
  """
  # The constant of `weighted_mean`, once for all ranks.
  constant = 1e-5 if replica.is_chief() else 0.0
  return {
      "mlm_loss": tf.reduce_sum(features["masked_lm_weights"]) + constant,
      "nsp_loss": tf.size(features["next_sentence_labels"])}


def model_fn(features, labels, mode, params):
  """Estimator's model function.

  Args:
    features: dict of the records' tensors [batch, ...], int32 but for the
      weights; in training with k > 1 micro-batches [k, batch, ...].
    labels: None; the records hold them as features.
    mode: a tf.estimator.ModeKeys.
    params: dict of `training.estimator`.
  """
  del labels
  config, bert_config = params["config"], params["bert_config"]

  def totals_of(micro, options):
    mlm, nsp = outputs_of(micro, bert_config, True, options)
    return {"mlm_loss": weighted_sum(mlm), "nsp_loss": weighted_sum(nsp)}

  if mode == tf.estimator.ModeKeys.TRAIN:
    return training.train_spec(params, features, totals_of,
                               loss_weights(features),
                               log_losses=config.report_loss)
  mlm, nsp = outputs_of(features, bert_config, False,
                        training.inference_options(params))
  return tf.estimator.EstimatorSpec(
      mode=mode, loss=weighted_mean(mlm) + weighted_mean(nsp),
      eval_metric_ops=eval_metrics(mlm, nsp),
      scaffold=training.restoring(params),
      evaluation_hooks=training.inference_hooks())


def eval_metrics(mlm, nsp):
  """Returns the accuracies and losses of all ranks' batches together.

  By the reference's names: {name: (mean, operation that takes a batch in)}.
  """
  named = {}
  for name, outputs in (("masked_lm", mlm), ("next_sentence", nsp)):
    guesses = tf.argmax(outputs.log_probs, axis=-1, output_type=tf.int32)
    hits = tf.cast(tf.equal(guesses, outputs.labels), tf.float32)
    for kind, values in (("accuracy", hits), ("loss", outputs.losses)):
      named["%s_%s" % (name, kind)] = replica.mean_over_ranks(
          values, outputs.weights, "%s_%s" % (name, kind))
  return named


def features_of(config, bert_config):
  """Returns what the run's records hold; see `record_checks.features_of`."""
  return record_checks.features_of(
      config.max_seq_length, config.max_predictions_per_seq,
      bert_config.vocab_size, bert_config.type_vocab_size)


def parse(serialized, features):
  """Returns the tensors of serialized records, int32 but for the weights.

  Values out of bounds are an error of the graph. Left to the model they would
  not be one everywhere: on a GPU a gather gives zeros for an id that the table
  lacks.

  Args:
    serialized: string tensor [batch].
    features: dict of `record_checks.features_of`.
  """
  parsed = tf.io.parse_example(serialized, {
      name: tf.FixedLenFeature([size], tf.float32 if name.endswith("_weights")
                               else tf.int64)
      for name, (size, _) in features.items()})
  usable = tf.reduce_all(tf.stack([
      tf.reduce_all((parsed[name] >= 0) & (parsed[name] < bound))
      for name, (_, bound) in features.items()]))
  with tf.control_dependencies([tf.debugging.Assert(usable, ["bad record"])]):
    return {name: tf.cast(value, tf.int32) if value.dtype == tf.int64
                  else tf.identity(value) for name, value in parsed.items()}


def inspector(features):
  """Returns the function that tells what is wrong with a batch of records."""
  def inspect(batch):
    for payload, path in zip(*batch):
      record_checks.check_record(payload, features, path)
  return inspect


def input_fn(source, features, batch_size, batches_a_step=1):
  """Returns the dataset of parsed batches.

  Args:
    source: `input_pipeline.Source` of `_in_batches`.
    features: dict of `record_checks.features_of`.
    batch_size: records a batch, or None if the last one may be smaller.
    batches_a_step: see `input_pipeline.in_steps`.
  """
  shape = tf.TensorShape([batch_size])
  batches = tf.data.Dataset.from_generator(
      source, (tf.string, tf.string), (shape, shape))
  return input_pipeline.in_steps(batches.map(
      lambda serialized, unused_paths: parse(serialized, features)),
                                 batches_a_step)


def _read(path, skip=0):
  """Yields (serialized record, path), since complaints must name the file."""
  for payload in records.read_records(path, skip):
    if not input_pipeline.is_example(payload):
      raise UserError("%s: a record is not a serialized tf.train.Example: make "
                      "the file again" % path)
    yield payload, path


def _in_batches(read, batch_size):
  """Yields (serialized records, their paths), two lists, of `_read`'s pairs."""
  while True:
    batch = list(itertools.islice(read, batch_size))
    if not batch:
      return
    yield tuple(list(column) for column in zip(*batch))


def record_files(config, bert_config, flag):
  """Returns the record files of a flag, checked against the settings."""
  found = records.record_files(getattr(config, flag), flag)
  record_checks.check_settings(
      found, max_seq_length=config.max_seq_length,
      max_predictions_per_seq=config.max_predictions_per_seq,
      vocab_size=bert_config.vocab_size,
      type_vocab_size=bert_config.type_vocab_size)
  return found


def train_sources(config, bert_config):
  """Returns [(record files, their numbers of records)] of --input_file.

  Each of its patterns is a source.

  Raises:
    UserError: as `record_files`, and where two have a file in common.
  """
  record_files(config, bert_config, "input_file")
  found, seen = [], set()
  for pattern in config.input_file.split(","):
    if not pattern.strip():
      continue
    paths = records.record_files(pattern, "input_file")
    twice = seen.intersection(map(os.path.realpath, paths))
    if twice:
      raise UserError("--input_file: %s is in two of its sources: name it once"
                      % sorted(twice)[0])
    seen.update(map(os.path.realpath, paths))
    found.append((paths, [records.count_records(path) for path in paths]))
  return found


def train(config, bert_config):
  """Trains to --num_train_steps from wherever the folder stands."""
  sources = train_sources(config, bert_config)
  features = features_of(config, bert_config)
  total = sum(sum(counts) for _, counts in sources)
  runner_flags.check_enough(
      "train_batch_size", training.global_batch(config), total,
      "records in --input_file")
  LOGGER.info("training on %d records in %d files%s", total,
              sum(len(paths) for paths, _ in sources), "" if len(sources) == 1
              else " of %d sources, batches %s" % (len(sources),
                                                   config.batch_sources))
  unit = 1 if config.batch_sources == "mixed" else config.train_batch_size
  part = order.Part(replica.rank(), replica.size(),
                    config.train_batch_size * config.num_accumulation_steps)
  if part.size > 1:
    LOGGER.info("%s", order.division(sources, part))

  def batches(consumed):
    return _in_batches(
        order.rank_records(sources, config.seed, part, consumed, unit, _read),
        config.train_batch_size)

  training.train(
      config, bert_config, model_fn, config.num_train_steps,
      config.num_warmup_steps, batches,
      lambda source: input_fn(source, features, config.train_batch_size,
                              config.num_accumulation_steps),
      inspector(features),
      evaluate=lambda: _score(evaluate(config, bert_config)))


def _score(result):
  """Returns what the best checkpoint is chosen by, the higher the better."""
  return "-(masked_lm_loss + next_sentence_loss)", -(
      result["masked_lm_loss"] + result["next_sentence_loss"])


def evaluate(config, bert_config):
  """Scores the newest checkpoint and writes eval_results.txt.

  The ranks take the batches in turn; the result is that of one rank.

  Returns:
    {name: value}.
  """
  flag = "eval_input_file" if config.eval_input_file else "input_file"
  eval_files = record_files(config, bert_config, flag)
  features = features_of(config, bert_config)
  prefix = training.checkpoint_to_use(config)
  LOGGER.info("evaluating %s on %s", prefix, ", ".join(eval_files))

  def batches():
    every = _in_batches(itertools.chain.from_iterable(map(_read, eval_files)),
                        config.eval_batch_size)
    mine = itertools.islice(every, replica.rank(), config.max_eval_steps,
                            replica.size())
    # A rank without any still has to meet the others.
    yield from itertools.chain([next(mine, ([], []))], mine)

  source = input_pipeline.Source(batches, inspector(features))
  estimator = training.estimator(
      config, bert_config, model_fn, checkpoint=prefix)
  with replica.peers(), input_pipeline.surfaced(source):
    result = estimator.evaluate(
        lambda: input_fn(source, features, None), checkpoint_path=prefix)
  result = {k: float(v) for k, v in result.items()}
  # Estimator's is the mean of this rank's batches.
  result["loss"] = result["masked_lm_loss"] + result["next_sentence_loss"]
  if replica.is_chief():
    _write_results(config, result)
  return result


def _write_results(config, result):
  step = int(result["global_step"])
  path = os.path.join(config.output_dir, "eval_results.txt")
  with files.atomic_write(path) as stream:
    for name, value in sorted(dict(result, global_step=step).items()):
      LOGGER.info("%s = %s", name, value)
      stream.write("%s = %s\n" % (name, value))
  writer = metrics.MetricsWriter(config.output_dir)
  writer.write("eval", step=step, **{
      name: value for name, value in result.items() if name != "global_step"})
  writer.close()


def main(unused_argv):
  """Runs what the flags ask for."""
  config = config_from_flags()
  stack.configure(config.use_xla)
  bert_config = modeling.BertConfig.from_json_file(
      files.require_file(config.bert_config_file, "bert_config_file"))
  runner_flags.check_length(config.max_seq_length, bert_config)
  with run_folder.opened(config.output_dir, "run_pretraining.py", config,
                         bert_config.to_dict(), flags.FLAGS.log_file):
    if config.do_train:
      train(config, bert_config)
    if config.do_eval:
      evaluate(config, bert_config)


if __name__ == "__main__":
  define_flags()
  run_main(main)
