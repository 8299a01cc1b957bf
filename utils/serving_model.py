"""What a server says of its model, checked before the first question."""

from typing import NamedTuple
from typing import Optional

from utils import serving_client
from utils import signature
from utils.errors import UserError


class Model(NamedTuple):
  """A served model.

  seq_length: word pieces of a feature, None for any.
  shapes: {input's name: list of int, what follows the batch's size; -1: any}.
  vocab_sha256, do_lower_case: of the vocabulary, None where it does not say.
  fingerprint: text that another model has not, None where it does not say.
  """
  name: str
  version: int
  max_batch_size: int
  seq_length: Optional[int]
  shapes: dict
  vocab_sha256: Optional[str]
  do_lower_case: Optional[bool]
  fingerprint: Optional[str]


def _tensors(config, part):
  """Returns {name: (type, list of int)} of a config's input or output."""
  return {tensor["name"]: (tensor.get("data_type"),
                           [int(size) for size in tensor.get("dims", [])])
          for tensor in config.get(part, [])}


def _check_signature(config, place):
  """Returns (the inputs' shapes, seq or None); UserError for another model."""
  found = {}
  lengths = set()
  for part, wanted, kind in (("input", signature.INPUTS, "TYPE_INT32"),
                             ("output", signature.OUTPUTS, "TYPE_FP32")):
    tensors = _tensors(config, part)
    if set(tensors) != set(wanted):
      raise UserError(
          "%s has the %ss %s, but a model that answers questions has %s: name "
          "another" % (place, part, ", ".join(sorted(tensors)) or "-",
                       ", ".join(sorted(wanted))))
    for name, shape in wanted.items():
      data_type, dims = tensors[name]
      if data_type != kind or (signature.SEQUENCE in shape and len(dims) != 1):
        raise UserError("%s: its %s %s is %s %s, expected %s [seq]: name "
                        "another" % (place, part, name, data_type, dims, kind))
      if signature.SEQUENCE in shape:
        lengths.update(size for size in dims if size > 0)
      found[name] = dims
  if len(lengths) > 1:
    raise UserError("%s: its tensors have different lengths (%s): name another"
                    % (place, ", ".join(map(str, sorted(lengths)))))
  return found, lengths.pop() if lengths else None


def _config(connection, target):
  """Returns the model's config; UserError where it cannot be asked."""
  try:
    config = connection.config()
    if connection.is_ready():
      return config
    reason = "it is not ready"
  except serving_client.Passing as error:
    raise UserError(
        "--trtis_server_url=%s: no server answers there over %s (%s): start "
        "one with scripts/trtis/launch_server.sh, or name its address and "
        "--protocol" % (target.url, target.protocol, error))
  except serving_client.BadReply as error:
    raise UserError("--trtis_server_url=%s: this is no Triton server (%s)"
                    % (target.url, error))
  except serving_client.Refused as error:
    reason = error
  try:
    others = ", ".join(connection.models()) or "none"
  except (serving_client.Passing, serving_client.Refused,
          serving_client.BadReply):
    others = "not known"
  raise UserError(
      "--trtis_model_name=%s --trtis_model_version=%d: the server at %s does "
      "not serve it (%s); its models: %s" % (
          target.model_name, target.model_version, target.url, reason, others))


def _parameters(config):
  """Returns {name: text} of a config's parameters."""
  return {name: value.get("string_value")
          for name, value in config.get("parameters", {}).items()}


def fingerprint(config):
  """Returns what no other model's config has, None where there is nothing."""
  return _parameters(config).get("export_fingerprint")


def model_of(config, name, version, url):
  """Returns the Model that a server at `url` tells the config of.

  Raises:
    UserError: it is one of another signature, or takes no batches.
  """
  place = "model %s of the server at %s" % (name, url)
  try:
    shapes, seq_length = _check_signature(config, place)
    largest = int(config.get("max_batch_size", 0))
    said = _parameters(config)
  except (AttributeError, KeyError, TypeError, ValueError):
    raise UserError("%s is no Triton server: what it says of %s is no "
                    "configuration of a model" % (url, name))
  if largest < 1:
    raise UserError("%s takes no batches (max_batch_size is 0): export it with "
                    "--trtis_max_batch_size=1 or more" % place)
  return Model(
      name, version, largest, seq_length, shapes, said.get("vocab_sha256"),
      {"true": True, "false": False}.get(said.get("do_lower_case")),
      fingerprint(config))


def describe(connection, target):
  """Returns the Model of a `serving_client.Target`.

  Raises:
    UserError: no server, no such model, or as `model_of` does.
  """
  return model_of(_config(connection, target), target.model_name,
                  target.model_version, target.url)


def check(model, config, vocab_sha256):
  """Raises UserError if a client's settings are not the model's.

  Args:
    model: Model.
    config: NamedTuple with the client's flags.
    vocab_sha256: of --vocab_file, 64 hexadecimal digits.
  """
  place = "the model %s %d" % (model.name, model.version)
  if model.seq_length not in (None, config.max_seq_length):
    raise UserError("--max_seq_length=%d: %s takes features of %d: give that, "
                    "or leave the flag out"
                    % (config.max_seq_length, place, model.seq_length))
  if model.vocab_sha256 not in (None, vocab_sha256):
    raise UserError("--vocab_file: %s is not the vocabulary that %s was "
                    "exported with" % (config.vocab_file, place))
  if model.do_lower_case not in (None, config.do_lower_case):
    raise UserError("--do_lower_case=%s: %s was exported with %s: leave the "
                    "flag out" % (str(config.do_lower_case).lower(), place,
                                  str(model.do_lower_case).lower()))
  if config.batch_size > model.max_batch_size:
    raise UserError("--batch_size=%d: %s takes at most %d features a request"
                    % (config.batch_size, place, model.max_batch_size))
