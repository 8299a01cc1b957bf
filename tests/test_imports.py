"""Who may import whom, read from the sources."""

import ast
import os
import pathlib
import subprocess
import sys
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUNNERS = {"run_pretraining", "run_squad", "create_pretraining_data",
           "run_squad_trtis_client"}
CORE = {"modeling", "optimization", "tokenization"}
LOCAL = RUNNERS | CORE | {"encoder", "utils", "data", "fused_ops", "scripts",
                          "tests", "benchmarks"}
NO_TENSORFLOW = [
    "tokenization.py", "create_pretraining_data.py",
    "run_squad_trtis_client.py", "utils/records.py",
    "utils/squad_data.py", "utils/squad_features.py",
    "utils/squad_answers.py", "utils/squad_score.py", "utils/squad_task.py",
    "utils/stopwatch.py", "utils/files.py",
    "utils/errors.py", "utils/order.py", "utils/workers.py",
    "utils/stages.py", "utils/instances.py", "utils/model_config.py",
    "utils/model_repository.py",
    "utils/record_encoder.py", "data/check_records.py",
    "data/download/__main__.py", "data/extract_wikipedia.py",
    "data/clean_text.py", "data/segment.py", "data/shard.py"]
# What a serving client takes along: nothing to install.
STANDARD_LIBRARY_ALONE = ["tokenization", "utils.errors", "utils.files",
                          "utils.squad_score", "utils.signature"]
# Python's own folders; what is installed lies in site-packages below them.
_OWN = tuple(os.path.realpath(sysconfig.get_path(name)) + os.sep
             for name in ("stdlib", "platstdlib"))


def sources():
  """Returns all Python files but those of set-up, which look at Horovod."""
  found = list(ROOT.glob("*.py"))
  for folder in ("encoder", "utils", "data", "fused_ops", "tests",
                 "benchmarks"):
    found.extend((ROOT / folder).rglob("*.py"))
  return sorted(found)


def nodes_of(tree, top_level_only):
  """Yields the tree's nodes; at the top level alone none that wait for a call.

  What an `if`, `try` or `with` at the top imports is imported at the start.
  """
  waiting = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
  todo = [tree]
  while todo:
    node = todo.pop()
    yield node
    if not (top_level_only and isinstance(node, waiting)):
      todo.extend(ast.iter_child_nodes(node))


def imports(path, top_level_only=False):
  """Returns the dotted names that a source file imports."""
  tree = ast.parse(path.read_text(encoding="utf-8"))
  found = set()
  for node in nodes_of(tree, top_level_only):
    if isinstance(node, ast.Import):
      found.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      found.update("%s.%s" % (node.module, a.name) for a in node.names)
  return found


def local(path, **kwargs):
  return {n for n in imports(path, **kwargs) if n.split(".")[0] in LOCAL}


@pytest.mark.parametrize(
    "path", sorted([ROOT / (name + ".py") for name in CORE]
                   + list((ROOT / "encoder").glob("*.py"))),
    ids=lambda path: path.stem)
def test_core_needs_tensorflow_and_the_standard_library_alone(path):
  allowed = {"utils.stack", "utils.errors.UserError", "utils.errors"}
  for name in local(path) - allowed:
    assert name.split(".")[0] in ("encoder", "fused_ops"), name
  for third_party in ("numpy", "six", "absl", "keras"):
    assert third_party not in {n.split(".")[0] for n in reaches(path)}


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ALONE)
def test_standard_library_alone(name):
  """Read from what a fresh process has loaded, however it came there."""
  code = ("import sys; before = set(sys.modules); import %s; "
          "print('\\n'.join('%%s %%s' %% (n, getattr(m, '__file__', None)) "
          "for n, m in sys.modules.items() if n not in before))" % name)
  out = subprocess.check_output([sys.executable, "-c", code], cwd=str(ROOT))
  loaded = [line.split(" ", 1) for line in out.decode().splitlines()]
  assert name in {module for module, _ in loaded}
  for module, place in loaded:
    if place == "None" or module.split(".")[0] in LOCAL:
      continue
    place = os.path.realpath(place)
    assert place.startswith(_OWN) and "site-packages" not in place, module


def test_runners_never_import_runners():
  for name in RUNNERS:
    tops = {n.split(".")[0] for n in local(ROOT / (name + ".py"))}
    assert tops <= CORE | {"utils", "fused_ops"}, name


def test_utils_import_only_core_and_utils():
  for path in (ROOT / "utils").rglob("*.py"):
    # What decides whether a run takes the kernels has to ask for them.
    allowed = {"fused_ops"} if path.name == "kernels.py" else set()
    tops = {n.split(".")[0] for n in local(path)}
    assert tops <= CORE | {"utils"} | allowed, path


def test_serving_takes_nothing_of_the_suite():
  """The server's Python has its own environment and no checkout."""
  paths = sorted((ROOT / "serving").rglob("*.py"))
  assert paths
  for path in paths:
    assert not local(path), path


def test_encoder_is_taken_through_modeling():
  users = [path for path in sources() if path.parent.name != "encoder"
           and any(n.split(".")[0] == "encoder" for n in local(path))]
  assert [path.name for path in users] == ["modeling.py"]


def test_data_imports_only_the_tokenizer_and_utils():
  for path in (ROOT / "data").rglob("*.py"):
    tops = {n.split(".")[0] for n in local(path)}
    assert tops <= {"tokenization", "data", "utils"}, path


def reaches(path, seen=None):
  """Returns all that a file imports at the top, through local modules."""
  seen = {path} if seen is None else seen
  found = imports(path, top_level_only=True)
  for name in list(found):
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
      place = ROOT.joinpath(*parts[:end])
      for source in (place.with_suffix(".py"), place / "__init__.py"):
        if source.exists() and source not in seen:
          seen.add(source)
          found |= reaches(source, seen)
  return found


@pytest.mark.parametrize("name", NO_TENSORFLOW)
def test_text_work_needs_no_tensorflow(name):
  tops = {n.split(".")[0] for n in reaches(ROOT / name)}
  assert "tensorflow" not in tops


def test_imports_are_followed():
  """The walk above sees through modules, `if` and `try`."""
  found = reaches(ROOT / "run_squad.py")
  assert "tqdm" in found  # by way of utils/logs.py
  assert "tensorflow.compat.v1" in reaches(ROOT / "utils" / "hooks.py")
  tree = ast.parse("if a:\n  import b\ntry:\n  import c\nexcept E:\n"
                   "  import d\ndef f():\n  import g\n")
  names = {n.names[0].name for n in nodes_of(tree, True)
           if isinstance(n, ast.Import)}
  assert names == {"b", "c", "d"}


def test_no_contrib():
  """The word alone may stand in a comment, or in a stand-in of a test."""
  for path in sources():
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not any(n.startswith("tensorflow.contrib")
                   for n in imports(path)), path
    assert not any(isinstance(node, ast.Attribute) and node.attr == "contrib"
                   and isinstance(node.value, ast.Name)
                   for node in ast.walk(tree)), path


def test_horovod_is_imported_in_one_place_and_lazily():
  users = [path for path in sources()
           if any(n.split(".")[0] == "horovod" for n in imports(path))]
  assert {path.parent.name for path in users} <= {"utils"}, users
  assert len(users) <= 1, users
  for path in users:
    assert not any(n.split(".")[0] == "horovod"
                   for n in imports(path, top_level_only=True)), path


def test_all_folders_are_looked_at():
  folders = {path.relative_to(ROOT).parts[0] for path in sources()}
  assert {"utils", "data", "tests", "benchmarks", "modeling.py"} <= folders
