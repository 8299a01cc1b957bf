"""Writes the bundled sample: a small corpus, questions and their vocabulary.

The world is made up (see world.py) and so is every name in it. A paragraph
always tells several facts of the same kind, so that only the words of the
question decide which one answers it: a model has to read. The test part is
about families, places, things and years that occur nowhere else.

  python data/sample/generate.py [--seed 1] [--output_dir data/sample]

The same seed gives the same bytes with every Python from 3.6 on.
"""

import argparse
import collections
import json
import os
import random
import re

import world

CORPUS_DOCUMENTS = 160
TRAIN_PARAGRAPHS = 400
DEV_PARAGRAPHS = 60
QUESTIONS_PER_PARAGRAPH = 4
FACTS_PER_PARAGRAPH = 5
GROUPS_PER_DOCUMENT = 4
RELATIONS_PER_GROUP = 3
PARAGRAPHS_PER_ARTICLE = 5
SUBJECT_KINDS = ["person", "building", "ship", "river", "work"]
SUBJECT_WORDS = ["the of ship river"] + world.BUILDINGS + world.WORKS

Fact = collections.namedtuple("Fact", "relation subject object")
Paragraph = collections.namedtuple("Paragraph", "context facts absent")


class Dice:
  """Random choices that every Python version makes alike."""

  def __init__(self, seed):
    self._random = random.Random(seed)

  def below(self, n):
    """Returns an int in [0, n)."""
    return int(self._random.random() * n)

  def chance(self, probability):
    return self._random.random() < probability

  def pick(self, items):
    return items[self.below(len(items))]

  def sample(self, items, k):
    """Returns `k` distinct items in random order."""
    pool = list(items)
    return [pool.pop(self.below(len(pool))) for _ in range(k)]

  def shuffled(self, items):
    return self.sample(items, len(items))


class Names:
  """Hands out names and years of one part; no two parts share any.

  Args:
    dice: Dice.
    held_out: True for the names of the test part, a fifth of all.
  """

  def __init__(self, dice, held_out, reserved):
    self._dice = dice
    self._held_out = held_out
    self._reserved = reserved

  def _spell(self, ends, taken):
    while True:
      head = self._dice.below(len(world.HEADS))
      end = self._dice.below(len(ends))
      name = (world.HEADS[head] + ends[end]).capitalize()
      if ((head + end) % 5 == 0) != self._held_out:
        continue
      if world.HEADS[head] in taken or name.lower() in self._reserved:
        continue
      taken.add(world.HEADS[head])
      return name

  def make(self, kind, taken):
    """Returns a new object or subject of `kind`; heads in `taken` are out."""
    if kind == "person":
      return self._spell(world.FAMILY_ENDS, taken)
    if kind == "place":
      return self._spell(world.PLACE_ENDS, taken)
    if kind == "building":
      return "the %s of %s" % (self._dice.pick(world.BUILDINGS),
                               self._spell(world.PLACE_ENDS, taken))
    if kind == "work":
      return "the %s %s" % (self._dice.pick(world.WORKS),
                            self._spell(world.THING_ENDS, taken))
    if kind in ("ship", "river"):
      return "the %s %s" % (kind, self._spell(world.THING_ENDS, taken))
    while True:
      century = self._dice.pick(world.CENTURIES)
      year = self._dice.pick(world.YEARS)
      if ((century + year) % 5 == 0) == self._held_out and year not in taken:
        taken.add(year)
        return "%d%02d" % (century, year)


def sentence(text):
  return text[0].upper() + text[1:]


def fill(template, fact):
  return template.format(s=fact.subject, o=fact.object)


def tell(fact, dice, avoid=None):
  """Returns (sentence, template) for `fact`, not by the template `avoid`."""
  template = dice.pick([t for t in fact.relation.statements if t != avoid])
  text = fill(template, fact)
  if dice.chance(0.1):
    return dice.pick(world.OPENINGS) + " " + text, template
  return sentence(text), template


def ask(fact, dice):
  return fill(dice.pick(fact.relation.questions), fact)


def make_facts(dice, names, num_subjects, num_relations):
  """Returns facts that tell `num_relations` things of each of the subjects."""
  kind = dice.pick(SUBJECT_KINDS)
  taken = set()
  subjects = [names.make(kind, taken) for _ in range(num_subjects)]
  relations = dice.sample(
      [r for r in world.RELATIONS if r.subject == kind], num_relations)
  facts = [Fact(r, s, names.make(r.object, taken))
           for s in subjects for r in relations]
  return dice.shuffled(facts)


def make_document(dice, names):
  """Returns the sentences of one corpus document.

  Facts are told twice in different words, so that a masked name can be found
  by whoever reads the rest: as text and then as questions with their answers,
  as text twice, or as questions before the text.
  """
  lines = []
  for _ in range(GROUPS_PER_DOCUMENT):
    facts = make_facts(dice, names, 2, RELATIONS_PER_GROUP)
    for relation in dice.shuffled(set_of(f.relation for f in facts)):
      lines.extend(tell_twice(
          dice, [f for f in facts if f.relation == relation]))
  return lines


def set_of(items):
  """Returns the distinct `items` as a list in the order of their coming."""
  distinct = []
  for item in items:
    if item not in distinct:
      distinct.append(item)
  return distinct


def tell_twice(dice, facts):
  told = [tell(f, dice) for f in facts]
  texts = [text for text, _ in told]
  again = []
  style = dice.below(3)
  for fact, (_, template) in dice.shuffled(list(zip(facts, told))):
    if style == 0:
      again.append(tell(fact, dice, avoid=template)[0])
    elif style == 1:
      again.append("%s %s." % (ask(fact, dice), sentence(fact.object)))
    else:
      again.append(ask(fact, dice))
  if dice.chance(0.2):
    texts.insert(dice.below(len(texts) + 1), dice.pick(world.ASIDES))
  return again + texts if style == 2 else texts + again


def make_paragraph(dice, names):
  """Returns a Paragraph about one subject.

  `absent` holds facts that it does not tell: a relation that another subject
  of this kind might have, for questions without an answer.
  """
  facts = make_facts(dice, names, 1, FACTS_PER_PARAGRAPH)
  told = [f.relation for f in facts]
  untold = [r for r in world.RELATIONS
            if r.subject == told[0].subject and r not in told]
  absent = [Fact(relation, facts[0].subject, None)
            for relation in dice.sample(untold, min(2, len(untold)))]
  sentences = [tell(f, dice)[0] for f in facts]
  if dice.chance(0.3):
    sentences.insert(dice.below(len(sentences) + 1), dice.pick(world.ASIDES))
  return Paragraph(" ".join(sentences), facts, absent)


def answered(fact, context, dice):
  """Returns the question about `fact` as SQuAD writes it, but its id."""
  return {"question": ask(fact, dice),
          "answers": [{"text": fact.object,
                       "answer_start": context.index(fact.object)}]}


def make_articles(dice, names, part, num_paragraphs):
  """Returns (v1.1 articles, v2.0 articles) with the same paragraphs."""
  articles = ([], [])
  for i in range(num_paragraphs):
    if i % PARAGRAPHS_PER_ARTICLE == 0:
      title = "%s article %d" % (part, i // PARAGRAPHS_PER_ARTICLE + 1)
      for version in articles:
        version.append({"title": title, "paragraphs": []})
    paragraph = make_paragraph(dice, names)
    context = paragraph.context
    known = [answered(f, context, dice) for f in dice.sample(
        paragraph.facts, QUESTIONS_PER_PARAGRAPH)]
    unknown = [{"question": ask(f, dice), "answers": []}
               for f in paragraph.absent]
    for number, qa in enumerate(known + unknown):
      qa["id"] = "%s-%03d-%d" % (part, i + 1, number + 1)
    articles[0][-1]["paragraphs"].append({"context": context, "qas": known})
    articles[1][-1]["paragraphs"].append({
        "context": context,
        "qas": [dict(qa, is_impossible=not qa["answers"])
                for qa in known + unknown]})
  return articles


def make_vocab():
  """Returns the vocabulary: marks, words, syllables, digits and letters."""
  texts = world.OPENINGS + world.ASIDES + SUBJECT_WORDS
  for relation in world.RELATIONS:
    texts.extend(relation.statements + relation.questions)
  words = set()
  for text in texts:
    words.update(re.findall("[a-z]+", re.sub("{.}", " ", text).lower()))
  letters = "abcdefghijklmnopqrstuvwxyz0123456789"
  ends = world.FAMILY_ENDS + world.PLACE_ENDS + world.THING_ENDS
  pieces = set(world.HEADS) | set(str(c) for c in world.CENTURIES)
  pieces |= set("##" + end for end in ends)
  pieces |= set("##%02d" % year for year in world.YEARS)
  pieces |= set(letters) | set("##" + letter for letter in letters)
  return world.SPECIAL + sorted(set(".,?!'-") | words | pieces)


def make_sample(seed):
  """Returns {file name: text} of the whole sample."""
  dice = Dice(seed)
  vocab = make_vocab()
  train, dev = [Names(dice, held_out, vocab) for held_out in (False, True)]
  documents = [make_document(dice, train) for _ in range(CORPUS_DOCUMENTS)]
  files = {
      "vocab.txt": "\n".join(vocab) + "\n",
      "corpus.txt": "\n\n".join("\n".join(d) for d in documents) + "\n"}
  for part, names, size in [("train", train, TRAIN_PARAGRAPHS),
                            ("dev", dev, DEV_PARAGRAPHS)]:
    versions = make_articles(dice, names, part, size)
    for version, articles in zip(["1.1", "2.0"], versions):
      files["%s-v%s.json" % (part, version)] = json.dumps(
          {"version": version, "data": articles}, indent=1,
          sort_keys=True) + "\n"
  return files


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--seed", type=int, default=1)
  parser.add_argument("--output_dir",
                      default=os.path.dirname(os.path.abspath(__file__)))
  args = parser.parse_args()
  for name, text in sorted(make_sample(args.seed).items()):
    with open(os.path.join(args.output_dir, name), "w", encoding="utf-8",
              newline="\n") as f:
      f.write(text)
    print("%8d bytes  %s" % (len(text), name))


if __name__ == "__main__":
  main()
