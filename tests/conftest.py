"""What all tests share: the root on the path, slow tests, real data."""

import os
import pathlib
import shutil
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Files that take a minute and more, the longest first.
_LONGEST = ["tests/test_%s.py" % name for name in (
    "run_pretraining", "long_runs", "readme", "rank_kills", "ranks", "setup",
    "two_stacks", "preprocessing", "kills", "ranks_squad", "run_squad",
    "trtis_runs", "trtis_server", "trtis_answers", "onnx_export",
    "serving_sweep", "onnx_served", "layouts", "padding", "full_disk",
    "checkpoints")]


def pytest_addoption(parser):
  parser.addoption("--slow", action="store_true",
                   help="also run the tests that take minutes")


def pytest_collection_modifyitems(config, items):
  slow = pytest.mark.skip(reason="takes minutes; run with --slow")
  earlier = os.environ.get("BERT_TESTED")  # of scripts/test.sh
  again = pytest.mark.skip(
      reason="shows the same on both stacks; %s had it" % earlier)
  for item in items:
    if item.get_closest_marker("slow") and not config.getoption("--slow"):
      item.add_marker(slow)
    if item.get_closest_marker("once") and earlier:
      item.add_marker(again)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """Long files first, so that no worker is left alone with one at the end.

  By itself --dist loadfile begins with the files that have most tests.
  """
  from xdist.scheduler import LoadFileScheduling

  class LongestFirst(LoadFileScheduling):

    def _assign_work_unit(self, node):
      for name in _LONGEST:
        if name in self.workqueue:
          self.workqueue.move_to_end(name, last=False)
          break
      super(LongestFirst, self)._assign_work_unit(node)

  if config.getvalue("dist") == "loadfile":
    return LongestFirst(config, log)
  return None


@pytest.fixture(scope="session")
def root():
  """Folder of the checkout."""
  return ROOT


@pytest.fixture(scope="session")
def shared_data():
  """Folder with real data beside the checkout; skips where there is none."""
  path = ROOT.parent / "shared" / "data"
  if not path.is_dir():
    pytest.skip("no real data beside the checkout (../shared/data)")
  return path


@pytest.fixture(scope="session")
def cxx():
  """Path of the C++ compiler; skips where there is none."""
  found = os.environ.get("CXX") or shutil.which("g++")
  if not found:
    pytest.skip("no C++ compiler (g++) here")
  return found
