"""The bundled sample: made by its generator, whole, and without leaks."""

import json
import re
import subprocess
import sys

import tokenization

from runners import ROOT

SAMPLE = ROOT / "data" / "sample"


def paragraphs(name):
  data = json.loads((SAMPLE / name).read_text(encoding="utf-8"))
  return [p for article in data["data"] for p in article["paragraphs"]]


def answers(name):
  return {a["text"] for p in paragraphs(name) for q in p["qas"]
          for a in q["answers"]}


def test_generator_writes_the_same_bytes(tmp_path):
  subprocess.run(
      [sys.executable, str(SAMPLE / "generate.py"), "--output_dir",
       str(tmp_path)], check=True, stdout=subprocess.DEVNULL)
  made = sorted(p.name for p in tmp_path.iterdir())
  assert len(made) == 6
  for name in made:
    assert (tmp_path / name).read_bytes() == (SAMPLE / name).read_bytes(), name


def test_answers_stand_where_they_are_said_to():
  for name in ("train-v1.1.json", "dev-v1.1.json", "train-v2.0.json",
               "dev-v2.0.json"):
    for paragraph in paragraphs(name):
      for question in paragraph["qas"]:
        for answer in question["answers"]:
          start = answer["answer_start"]
          assert paragraph["context"][start:].startswith(answer["text"])
          assert paragraph["context"].count(answer["text"]) == 1


def test_nothing_leaks_from_the_test_part():
  held_out = answers("dev-v1.1.json")
  assert not held_out & answers("train-v1.1.json")
  contexts = {p["context"] for p in paragraphs("dev-v1.1.json")}
  assert not contexts & {p["context"] for p in paragraphs("train-v1.1.json")}
  text = (SAMPLE / "corpus.txt").read_text(encoding="utf-8")
  text += "".join(p["context"] for p in paragraphs("train-v1.1.json"))
  text += "".join(q["question"] for p in paragraphs("train-v2.0.json")
                  for q in p["qas"])
  assert not [a for a in held_out
              if re.search(r"\b%s\b" % re.escape(a), text)]


def test_sizes():
  text = (SAMPLE / "corpus.txt").read_text(encoding="utf-8")
  assert len(text.strip().split("\n\n")) >= 100
  assert len(answers("dev-v1.1.json")) > 100
  impossible = [q["is_impossible"] for p in paragraphs("dev-v2.0.json")
                for q in p["qas"]]
  assert 0.1 < sum(impossible) / len(impossible) < 0.5


def test_vocabulary_spells_everything():
  tokenizer = tokenization.FullTokenizer(
      str(SAMPLE / "vocab.txt"), do_lower_case=True)
  texts = [(SAMPLE / "corpus.txt").read_text(encoding="utf-8")]
  for part in ("train", "dev"):
    for paragraph in paragraphs(part + "-v2.0.json"):
      texts.append(paragraph["context"])
      texts.extend(q["question"] for q in paragraph["qas"])
  assert "[UNK]" not in {t for text in texts for t in tokenizer.tokenize(text)}
  config = json.loads((SAMPLE / "bert_config.json").read_text())
  assert config["vocab_size"] == len(tokenizer.vocab)


def test_baselines_that_do_not_read_score_low(tmp_path):
  subprocess.run(
      [sys.executable, str(SAMPLE / "baselines.py"),
       str(SAMPLE / "train-v1.1.json"), str(SAMPLE / "dev-v1.1.json"),
       str(tmp_path)], check=True)
  for name in ("position", "entity"):
    done = subprocess.run(
        [sys.executable, str(ROOT / "utils" / "squad_score.py"),
         str(SAMPLE / "dev-v1.1.json"),
         str(tmp_path / ("baseline_%s.json" % name))],
        check=True, stdout=subprocess.PIPE)
    assert json.loads(done.stdout.decode())["f1"] < 30, name
