"""Google's own run_squad (PyPI bert-tensorflow) without TensorFlow.

Its modules are loaded as private copies with stand-ins for TensorFlow and
absl's flags: what SQuAD needs of them is files, logging and four flags. So
the comparison runs on both stacks, costs no TensorFlow import, and does not
define flags that collide with ours.
"""

import importlib.util
import logging
import os
import sys
import types
from unittest import mock


def _open(path, mode="r"):
  return open(path, mode, encoding="utf-8")


def _stand_ins():
  ignore = lambda *unused, **unused_too: None
  flags = types.SimpleNamespace(
      FLAGS=types.SimpleNamespace(
          preserve_unused_tokens=False, version_2_with_negative=False,
          null_score_diff_threshold=0.0, verbose_logging=False),
      DEFINE_string=ignore, DEFINE_bool=ignore, DEFINE_integer=ignore,
      DEFINE_float=ignore)
  quiet = logging.getLogger("google_run_squad")
  quiet.disabled = True
  v1 = types.ModuleType("tensorflow.compat.v1")
  v1.flags = flags
  v1.logging = quiet
  v1.gfile = types.SimpleNamespace(GFile=_open, Open=_open)
  compat = types.ModuleType("tensorflow.compat")
  compat.v1 = v1
  tensorflow = types.ModuleType("tensorflow")
  tensorflow.compat = compat
  absl = types.ModuleType("absl")
  absl.flags = flags
  bert = types.ModuleType("bert")
  bert.modeling = bert.optimization = None
  return {"tensorflow": tensorflow, "tensorflow.compat": compat,
          "tensorflow.compat.v1": v1, "absl": absl, "bert": bert}


def _execute(folder, name):
  spec = importlib.util.spec_from_file_location(
      "google_" + name, os.path.join(folder, name + ".py"))
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def load():
  """Returns Google's (run_squad, tokenization).

  Raises:
    ImportError: if bert-tensorflow is not installed.
  """
  spec = importlib.util.find_spec("bert")
  if spec is None or not spec.submodule_search_locations:
    raise ImportError("bert-tensorflow is not installed")
  folder = list(spec.submodule_search_locations)[0]
  fakes = _stand_ins()
  with mock.patch.dict(sys.modules, fakes):
    tokenization = _execute(folder, "tokenization")
    fakes["bert"].tokenization = tokenization
    run_squad = _execute(folder, "run_squad")
  return run_squad, tokenization
