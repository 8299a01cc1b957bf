"""Who may import whom, read from the sources."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUNNERS = {"run_pretraining", "run_squad", "create_pretraining_data"}
CORE = {"modeling", "optimization", "tokenization"}
LOCAL = RUNNERS | CORE | {"utils", "data", "fused_ops", "scripts", "tests",
                          "benchmarks"}
NO_TENSORFLOW = [
    "tokenization.py", "create_pretraining_data.py", "utils/records.py",
    "utils/squad_data.py", "utils/squad_answers.py", "utils/squad_score.py",
    "utils/files.py", "utils/errors.py", "utils/order.py"]


def imports(path, top_level_only=False):
  """Returns the dotted names that a source file imports."""
  tree = ast.parse(path.read_text(encoding="utf-8"))
  nodes = tree.body if top_level_only else ast.walk(tree)
  found = set()
  for node in nodes:
    if isinstance(node, ast.Import):
      found.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      found.update("%s.%s" % (node.module, a.name) for a in node.names)
  return found


def local(path, **kwargs):
  return {n for n in imports(path, **kwargs) if n.split(".")[0] in LOCAL}


@pytest.mark.parametrize("name", sorted(CORE))
def test_core_needs_tensorflow_and_the_standard_library_alone(name):
  allowed = {"utils.stack", "utils.errors.UserError", "utils.errors"}
  path = ROOT / (name + ".py")
  assert local(path) <= allowed
  for third_party in ("numpy", "six", "absl", "keras"):
    assert third_party not in {n.split(".")[0] for n in imports(path)}


def test_runners_never_import_runners():
  for name in RUNNERS:
    tops = {n.split(".")[0] for n in local(ROOT / (name + ".py"))}
    assert tops <= CORE | {"utils", "fused_ops"}, name


def test_utils_import_only_core_and_utils():
  for path in (ROOT / "utils").glob("*.py"):
    assert {n.split(".")[0] for n in local(path)} <= CORE | {"utils"}, path


def test_data_imports_only_the_tokenizer():
  for path in (ROOT / "data").rglob("*.py"):
    tops = {n.split(".")[0] for n in local(path)}
    assert tops <= {"tokenization", "data"}, path


def reaches(path, seen):
  """Returns all that a file imports at the top, through local modules."""
  found = imports(path, top_level_only=True)
  for name in list(found):
    parts = name.split(".")
    for end in (len(parts), len(parts) - 1):
      source = ROOT.joinpath(*parts[:end]).with_suffix(".py")
      if end and source.exists() and source not in seen:
        seen.add(source)
        found |= reaches(source, seen)
  return found


@pytest.mark.parametrize("name", NO_TENSORFLOW)
def test_text_work_needs_no_tensorflow(name):
  tops = {n.split(".")[0] for n in reaches(ROOT / name, set())}
  assert "tensorflow" not in tops


def test_contrib_and_horovod():
  for path in ROOT.glob("*.py"):
    assert "tf.contrib" not in path.read_text(encoding="utf-8"), path
    assert not any(n.startswith("horovod") for n in imports(path)), path
