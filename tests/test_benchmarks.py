"""The comparisons of benchmarks/: arithmetic, batches, small runs."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from benchmarks.peers import contenders
from benchmarks.peers import sections
from benchmarks.peers import tf_graph
from benchmarks.peers import work
from fused_ops import library
from test_run_squad import dataset
from test_run_squad import VOCAB
from utils import benchmarks
from utils import stack
from utils.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent


# Tables and fits -------------------------------------------------------------


def test_table_has_aligned_columns():
  assert benchmarks.markdown_table(
      ["a", "long"], [["x", "1"], ["yyyyy", "2"]]) == (
          "| a     | long |\n"
          "|-------|------|\n"
          "| x     | 1    |\n"
          "| yyyyy | 2    |")


def test_least_squares_finds_a_line_that_is_there():
  terms = [[1, tokens, tokens ** 2] for tokens in (32, 64, 128, 512)]
  values = np.dot(terms, [0.5, 2e-3, 1e-6])
  found, quality = benchmarks.least_squares(terms, values)
  np.testing.assert_allclose(found, [0.5, 2e-3, 1e-6], rtol=1e-9)
  assert quality == pytest.approx(1.0)


def test_least_squares_by_hand():
  # y = 1, 2, 4 at x = 0, 1, 2: slope 3/2, intercept 5/6, residuals
  # 1/6, -1/3, 1/6, their squares 1/6 of a total of 14/3.
  found, quality = benchmarks.least_squares([[1, 0], [1, 1], [1, 2]],
                                            [1, 2, 4])
  np.testing.assert_allclose(found, [5 / 6.0, 1.5])
  assert quality == pytest.approx(1 - (1 / 6.0) / (14 / 3.0))


def test_flops_by_hand():
  sizes = work.Sizes(layers=1, hidden=64, vocab=100, batch=2, length=8)
  # Eight predictions a sequence at most, since there are eight positions.
  dense = 4 * 16 * 64 * 64 + 2 * 16 * 64 * 256 + 16 * 64 * 64 + 16 * 64 * 100
  assert work.flops_of(work.products_of_pretraining(sizes)) == 6 * dense


@pytest.mark.parametrize("name, operation, kind", [
    ("bert/encoder/layer_0/attention/self/query/MatMul", "MatMul",
     "matrix products"),
    ("gradients/bert/encoder/layer_0/attention/self/key/einsum/Einsum_grad",
     "Einsum", "matrix products"),
    ("bert/encoder/layer_0/attention/self/einsum/Einsum", "Einsum",
     "attention"),
    ("bert/encoder/layer_0/attention/self/Softmax", "Softmax", "attention"),
    ("bert/encoder/layer_0/attention/self/BertAttention", "BertAttention",
     "attention"),
    ("bert/encoder/layer_0/intermediate/BertBiasGelu", "BertBiasGelu",
     "element-wise"),
    ("gradients/bert/encoder/layer_0/output/Tile", "Tile", "element-wise"),
    ("cond/BertAdam", "BertAdam", "optimizer"),
    ("Mul_12", "Mul", "optimizer"),
    ("IteratorGetNext", "IteratorGetNext", "input")])
def test_kinds_of_operations(name, operation, kind):
  assert tf_graph.kind_of(name, operation) == kind


def test_targets_are_measured_in_turn():
  for section, targets in contenders.TARGETS.items():
    for target in targets:
      assert any({target.ours, target.theirs} <= set(group)
                 for group in contenders.GROUPS[section]), target
  assert set(contenders.SHARES) <= set(contenders.CONTENDERS)


@pytest.mark.parametrize("values, percent, expected", [
    # 20 values: 95 % of them are 19, and no more than 50 % are the lower 10.
    (range(20, 0, -1), 50, 10), (range(1, 21), 90, 18), (range(1, 21), 95, 19),
    (range(1, 21), 99, 20), (range(1, 21), 100, 20),
    ([3, 1, 2], 50, 2), ([3, 1, 2], 90, 3), ([7], 50, 7), ([4, 2], 50, 2)])
def test_percentiles_by_hand(values, percent, expected):
  assert benchmarks.percentile(values, percent) == expected


def test_latencies_by_hand():
  assert benchmarks.latencies([0.25, 0.5, 0.125, 0.125]) == {
      "average": 250, "50%": 125, "90%": 500, "95%": 500, "99%": 500,
      "100%": 500}


def products_run(product, number):
  """Returns how many matrix products a session really computes."""
  with tf.Graph().as_default() as graph:
    every = tf_graph.products_graph(product, number, tf.float32)
    with tf.Session(graph=graph) as session:
      session.run(tf.global_variables_initializer())
      found = tf.RunMetadata()
      session.run(every, run_metadata=found, options=tf.RunOptions(
          trace_level=tf.RunOptions.FULL_TRACE))
  return sum("MatMul(" in node.timeline_label
             for device in found.step_stats.dev_stats
             for node in device.node_stats)


def test_every_product_is_computed():
  assert products_run((8, 16, 4), 1) == 3
  assert products_run((8, 16, 4), 4) == 12


def test_pairs_of_unequal_work_are_compared_as_a_whole():
  # Two rounds of 8 sentences: 1 s and 3 s.
  rounds = [dict(sentences=8, seconds=[1.0]), dict(sentences=8, seconds=[3.0])]
  grouped = contenders.Target("tf2-bf16", "torch-bf16-grouped")
  alike = contenders.Target("tf2-bf16", "torch-bf16")
  assert sections._rate(grouped)(rounds) == 4
  assert sections._rate(alike)(rounds) == pytest.approx((8 + 8 / 3.0) / 2)


# Batches ---------------------------------------------------------------------


class Lengths(object):
  """Features of which only the lengths matter."""

  def __init__(self, count):
    random = np.random.RandomState(0)
    self.length = random.randint(20, 385, count)
    self.unique_ids = np.arange(count)
    self.input_ids = np.zeros([count, 384], np.int32)
    self.start_positions = self.end_positions = None

  def __len__(self):
    return len(self.length)

  def input_mask(self, rows):
    return np.arange(384) < self.length[rows][:, None]

  segment_ids = input_mask


@pytest.mark.parametrize("order, near", [("random", 12), ("sorted", 30),
                                         ("grouped", 30)])
def test_rounds_are_alike_and_as_long_as_the_whole(order, near):
  features = Lengths(2000)
  for number in range(5):
    batches = work.squad_batches(features, order, 6, 8, number)
    lengths = np.stack([batch["input_mask"].sum(1) for batch in batches])
    assert lengths.shape == (6, 8)
    assert abs(lengths.mean() - features.length.mean()) < near
    assert (np.ptp(lengths, axis=1).max() > 150) == (order == "random")


def test_batches_follow_the_round_alone():
  features = Lengths(200)
  ids = [[batch["unique_ids"].tolist() for batch in
          work.squad_batches(features, "random", 2, 8, number)]
         for number in (1, 1, 2)]
  assert ids[0] == ids[1] != ids[2]
  assert len(set(sum(ids[0], []))) == 16


def test_too_few_features_are_told():
  with pytest.raises(UserError, match="there are only 10 features"):
    work.squad_batches(Lengths(10), "random", 2, 8, 1)


def test_pretraining_sequences_are_full():
  sizes = work.Sizes(layers=1, hidden=64, vocab=50, batch=3, length=32)
  batch = work.pretraining_batch(sizes, 1)
  assert batch["input_mask"].all() and batch["masked_lm_weights"].all()
  assert batch["masked_lm_positions"].shape == (3, 20)
  assert (np.diff(batch["masked_lm_positions"], axis=1) > 0).all()
  assert batch["input_ids"].max() < 50


# Runs ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  folder = tmp_path_factory.mktemp("benchmarks")
  (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
  (folder / "train.json").write_text(json.dumps(dataset(40)))
  (folder / "dev.json").write_text(json.dumps(dataset(20)))
  (folder / "empty.npz").write_bytes(b"")
  return folder


def run(place, *arguments, **settings):
  """Runs bench_peers.py on a tiny model; returns (status, out, err)."""
  values = dict(
      features="features.npz", output="rounds.jsonl",
      layers=1, hidden=64, batch=2, length=32, stride=8, rounds=1, steps=1,
      predict_steps=1, memory_steps=1, threads=1, most_tokens=128,
      tf1_python="no_python", tf2_python="no_python", peer_python="no_python")
  values["%s_python" % stack.NAME] = sys.executable
  values.update(settings)
  done = subprocess.run(
      [sys.executable, str(ROOT / "benchmarks" / "bench_peers.py")]
      + ["--%s=%s" % item for item in values.items()] + list(arguments),
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
      cwd=str(place), check=False, timeout=600)
  return done.returncode, done.stdout, done.stderr


FILES = dict(train_file="train.json", predict_file="dev.json",
             vocab_file="vocab.txt")


@pytest.fixture(scope="module")
def report(place):
  """What one run of all sections printed."""
  names = ["google", "reference" if library.fault() else "fused"]
  status, out, err = run(
      place, "--profile", "--only=step,predict,pretrain,memory",
      "--contenders=" + ",".join("%s-%s" % (stack.NAME, name)
                                 for name in names), **FILES)
  assert status == 0, err
  assert "Traceback" not in err
  return out


def cells_of(report, *words):
  """Returns the cells of the first row that has the words."""
  for line in report.splitlines():
    if line.startswith("|") and all(word in line for word in words):
      return [cell.strip() for cell in line.strip("|").split("|")]
  raise AssertionError("no row of %s in\n%s" % (words, report))


def test_table_compares_steps(report):
  cells = cells_of(report, "SQuAD fine-tuning", "| own, ", "| Google")
  ours, theirs = (float(cells[i].split()[0]) for i in (2, 4))
  assert float(cells[5]) == pytest.approx(ours / theirs, abs=0.02)


@pytest.mark.skipif(library.fault() is not None, reason="kernels not built")
def test_table_has_all_sections(report):
  own = "| own, %s " % stack.NAME
  for title in ("SQuAD fine-tuning", "SQuAD prediction", "pre-training",
                "of the process", "what steps add", "products' rate",
                "input of a step"):
    cells_of(report, title, own)
  shares = cells_of(report, "step ", own, " %")[2:]
  assert sum(int(re.sub(r"\D", "", share)) for share in shares
             ) == pytest.approx(100, abs=3)


def test_raw_rounds_are_kept(place, report):
  lines = [json.loads(line) for line in
           (place / "rounds.jsonl").read_text().splitlines()]
  assert lines[0]["layers"] == 1 and lines[0]["cpu"]
  steps = [line for line in lines if line.get("what") == "steps"]
  assert {line["section"] for line in steps} == {"step", "predict", "pretrain"}
  for line in steps:
    assert len(line["seconds"]) == 1 and line["seconds"][0] > 0
    assert line["sentences"] == 2 and 2 < line["tokens"] <= 64
  assert (place / "rounds.md").read_text() == report
  assert not (place / "rounds.jsonl.partial").exists()


@pytest.mark.skipif(library.fault() is not None, reason="kernels not built")
def test_fit_reports_its_terms(place, report):
  status, out, err = run(place, "--only=fit", output="fit.jsonl",
                         most_tokens=256)
  assert status == 0, err
  cells = cells_of(out, "step over work", stack.NAME)
  assert re.match(r"a = \S+ s, b = \S+ ms, c = \S+ us$", cells[2])
  assert cells[4].startswith("R^2 = ")


def test_what_cannot_run_is_left_out_with_a_line(place, report):
  status, out, err = run(place, "--only=step", "--contenders=torch",
                         output="none.jsonl")
  assert status == 0
  assert "there is no no_python: bash benchmarks/peers.sh makes it" in err
  assert "no_python" in cells_of(out, "PyTorch")[-1]


@pytest.mark.parametrize("settings, message", [
    (dict(features="missing.npz"), "missing.npz"),
    (dict(length=64), "--length=64, but --features"),
    (dict(features=__file__), "holds no features of this program"),
    (dict(features="empty.npz"), "holds no features of this program"),
    (dict(FILES, train_file="nowhere.json"), "nowhere.json"),
    (dict(train_file="train.json"), "--vocab_file"),
    (dict(FILES, vocab_file="train.json"), "train.json"),
    (dict(only="stp"), "no 'stp': known are step, predict"),
    (dict(contenders="google"), "no 'google': known are tf1-google"),
    (dict(rounds=0), "0 is not above 0"),
    (dict(cpus=4096), "there is no CPU 4096")])
def test_bad_input_is_one_line(place, report, settings, message):
  status, out, err = run(place, **settings)
  assert status in (1, 2) and not out
  assert "Traceback" not in err
  assert message in err.splitlines()[-1]
