"""Answers questions without reading: what any real score stands beside.

  python data/sample/baselines.py TRAIN.json DEV.json OUTPUT_FOLDER

Writes `baseline_position.json` (always the place in the paragraph, counted in
words, where training answers stand most often) and `baseline_entity.json`
(always the first name or year of the paragraph), for utils/squad_score.py.
"""

import argparse
import collections
import json
import os
import re

ENTITY = re.compile(r"\b(?:[A-Z][a-z]+|\d{4})\b")
# Words that start a sentence are no names.
COMMON = ("The It We They In Nobody This Many People That Travellers").split()


def questions(path):
  """Yields (question, paragraph) of a SQuAD file."""
  with open(path, encoding="utf-8") as stream:
    for article in json.load(stream)["data"]:
      for paragraph in article["paragraphs"]:
        for question in paragraph["qas"]:
          yield question, paragraph["context"]


def frequent_position(path):
  """Returns the most frequent number of words before an answer."""
  places = collections.Counter(
      len(context[:answer["answer_start"]].split())
      for question, context in questions(path)
      for answer in question["answers"])
  return places.most_common(1)[0][0]


def first_entity(context):
  """Returns the first name or year, or "" where there is none."""
  found = [name for name in ENTITY.findall(context) if name not in COMMON]
  return found[0] if found else ""


def main():
  """Runs the command line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("train")
  parser.add_argument("dev")
  parser.add_argument("output")
  options = parser.parse_args()
  place = frequent_position(options.train)
  position, entity = {}, {}
  for question, context in questions(options.dev):
    words = context.split()
    position[question["id"]] = words[min(place, len(words) - 1)].rstrip(".")
    entity[question["id"]] = first_entity(context)
  for name, answers in (("position", position), ("entity", entity)):
    path = os.path.join(options.output, "baseline_%s.json" % name)
    with open(path, "w", encoding="utf-8") as stream:
      json.dump(answers, stream)


if __name__ == "__main__":
  main()
