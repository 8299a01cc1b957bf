"""Texts and instances for the tests of instances."""

import itertools
import random
import re
from array import array
from typing import List, NamedTuple

import numpy as np
import pytest

import tokenization
from utils import instances as making

CLS, SEP, MASK = 1, 2, 3


def rules_for(vocab_size, **changes):
  """Returns Rules with the published defaults, but for `changes`."""
  rules = making.Rules(
      max_seq_length=128, max_predictions_per_seq=20, masked_lm_prob=0.15,
      short_seq_prob=0.1, do_whole_word_mask=False, vocab_size=vocab_size,
      cls_id=CLS, sep_id=SEP, mask_id=MASK, continuations=frozenset())
  return rules._replace(**changes)


def numbered_documents(count, sentences, sentence_length):
  """Documents in which no id occurs twice: from 1000 on, in reading order."""
  ids = iter(range(1000, 1000 + count * sentences * sentence_length))
  return [[[next(ids) for _ in range(sentence_length)]
           for _ in range(sentences)] for _ in range(count)]


class Instance(NamedTuple):
  """One row of a batch, without its padding."""
  input_ids: List[int]
  first_length: int
  is_random_next: bool
  masked_lm_positions: List[int]
  masked_lm_ids: List[int]


def text_of(documents):
  """Returns the Text of documents, which are lists of lists of ids."""
  sentences = [s for d in documents for s in d]
  return making.Text(
      np.array([i for s in sentences for i in s], np.int32),
      [0] + list(itertools.accumulate(map(len, sentences))),
      [0] + list(itertools.accumulate(map(len, documents))))


def rows_of(batch):
  """Returns the instances (list of Instance) of a batch; checks the padding."""
  found = []
  for i, count in enumerate(batch.counts.tolist()):
    length = int(batch.lengths[i])
    assert not batch.input_ids[i, length:].any()
    assert not batch.positions[i, count:].any()
    assert not batch.labels[i, count:].any()
    found.append(Instance(
        batch.input_ids[i, :length].tolist(), int(batch.first_lengths[i]),
        bool(batch.is_random_next[i]), batch.positions[i, :count].tolist(),
        batch.labels[i, :count].tolist()))
  return found


def make(text, plan, rules, seed):
  return rows_of(making.make_batch(
      text, plan, rules, np.random.RandomState(seed)))


def all_instances(documents, rules, seed=1):
  """Returns the instances of one pass, in the order of the documents."""
  text = text_of(documents)
  plan = making.plan_instances(text, rules, 1, random.Random(seed).random)
  return make(text, plan, rules, seed)


def planned(text, index, rules, chance):
  """Returns the plan of one document: rows of five numbers."""
  plan = array("i")
  making.plan_document(text, index, rules, chance, plan)
  return np.array(plan, np.int32).reshape(-1, 5)


def unmasked(instance):
  """Returns segments A and B as they were, without [CLS] and [SEP]."""
  ids = list(instance.input_ids)
  for position, label in zip(instance.masked_lm_positions,
                             instance.masked_lm_ids):
    ids[position] = label
  assert ids[0] == CLS and ids[-1] == SEP
  assert ids[instance.first_length - 1] == SEP
  return ids[1:instance.first_length - 1], ids[instance.first_length:-1]


@pytest.fixture(scope="module")
def vocab(shared_data):
  return tokenization.load_vocab(
      str(shared_data / "vocab" / "uncased_vocab.txt"))


@pytest.fixture(scope="module")
def book(shared_data, vocab):
  """Documents (lists of sentences, lists of tokens) of real books."""
  tokenizer = tokenization.FullTokenizer(vocab)
  documents = []
  for name in ("11_Alice-s-Adventures-in-Wonderland.txt",
               "120_Treasure-Island.txt"):
    text = (shared_data / "books" / name).read_text(encoding="utf-8")
    for chapter in re.split(r"\n\s*\n\s*\n\s*\n", text):
      sentences = re.split(r"(?<=[.!?;])\W*\s", chapter)
      tokens = [tokenizer.tokenize(s) for s in sentences]
      tokens = [t for t in tokens if t]
      if tokens:
        documents.append(tokens)
  assert len(documents) > 40
  return documents


@pytest.fixture(scope="module")
def book_ids(book, vocab):
  return [[[vocab[t] for t in s] for s in d] for d in book]


@pytest.fixture(scope="module")
def real_rules(vocab):
  return rules_for(
      len(vocab), cls_id=vocab["[CLS]"], sep_id=vocab["[SEP]"],
      mask_id=vocab["[MASK]"],
      continuations=frozenset(i for t, i in vocab.items() if t[:2] == "##"))
