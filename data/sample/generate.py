"""Writes the bundled sample: a small corpus, questions and their vocabulary.

The world is made up (see world.py) and so is every name in it. A paragraph
tells several facts about one subject, often two of the same kind, so that the
words of the question decide which one answers it: a model has to read. The
answers of the test part are names, years and numbers that occur nowhere else.

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
TRAIN_PARAGRAPHS = 800
DEV_PARAGRAPHS = 120
QUESTIONS_PER_PARAGRAPH = 2
FACTS_PER_PARAGRAPH = 4
SECTIONS_PER_DOCUMENT = 6
FACTS_PER_SECTION = 4
PARAGRAPHS_PER_ARTICLE = 5
SUBJECT_KINDS = sorted(world.NOUNS)

Fact = collections.namedtuple("Fact", "relation subject short object")
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

  def subject(self, kind, taken):
    """Returns (full name, short name) of a new subject of `kind`."""
    short = "the " + self._dice.pick(world.NOUNS[kind])
    if kind == "building":
      return "%s of %s" % (short, self._spell(world.PLACE_ENDS, taken)), short
    ends = world.FAMILY_ENDS if kind == "person" else world.THING_ENDS
    return "%s %s" % (short, self._spell(ends, taken)), short

  def make(self, kind, taken):
    """Returns a new object of `kind`; heads in `taken` are out."""
    if kind == "person":
      return self._spell(world.FAMILY_ENDS, taken)
    if kind == "place":
      return self._spell(world.PLACE_ENDS, taken)
    while True:
      century = self._dice.pick(world.CENTURIES)
      tens, ones = 1 + self._dice.below(9), self._dice.below(10)
      if kind == "year":
        if ((century + tens + ones) % 5 == 0) == self._held_out:
          return "%d%d%d" % (century, tens, ones)
      elif (((tens + ones) % 5 == 0) == self._held_out and
            tens not in taken):
        taken.add(tens)
        return "%d%d %s" % (tens, ones, kind)


def sentence(text):
  return text[0].upper() + text[1:]


def tell(fact, dice, short):
  """Returns a sentence for `fact` that names its subject shortly or in full."""
  text = dice.pick(fact.relation.statements).format(
      s=fact.short if short else fact.subject, o=fact.object)
  if dice.chance(0.1):
    return dice.pick(world.OPENINGS) + " " + text
  return sentence(text)


def ask(fact, dice):
  return dice.pick(fact.relation.questions).format(s=fact.subject)


def make_facts(dice, names, number):
  """Returns (`number` facts about one subject, the relations not told)."""
  kind = dice.pick(SUBJECT_KINDS)
  taken = set()
  subject, short = names.subject(kind, taken)
  relations = dice.shuffled([r for r in world.RELATIONS if r.subject == kind])
  facts = [Fact(r, subject, short, names.make(r.object, taken))
           for r in relations[:number]]
  return facts, [Fact(r, subject, short, None) for r in relations[number:]]


def tell_all(facts, dice):
  """Returns the sentences of a paragraph that tells `facts`.

  The first one names the subject in full, later ones often only shortly.
  """
  lines = [tell(fact, dice, number > 0 and dice.chance(0.7))
           for number, fact in enumerate(facts)]
  if dice.chance(0.3):
    lines.insert(1 + dice.below(len(lines)), dice.pick(world.ASIDES))
  return lines


def make_document(dice, names):
  """Returns the sentences of one corpus document.

  Each section tells facts about one subject and then asks for them, with the
  answers: a masked name can be found by whoever reads the rest.
  """
  lines = []
  for _ in range(SECTIONS_PER_DOCUMENT):
    facts, _ = make_facts(dice, names, FACTS_PER_SECTION)
    lines.extend(tell_all(facts, dice))
    for fact in dice.shuffled(facts):
      lines.append("%s %s." % (ask(fact, dice), sentence(fact.object)))
  return lines


def make_paragraph(dice, names):
  """Returns a Paragraph about one subject.

  `absent` holds facts that it does not tell, for questions without an answer.
  """
  facts, absent = make_facts(dice, names, FACTS_PER_PARAGRAPH)
  return Paragraph(" ".join(tell_all(facts, dice)), facts, absent)


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
               for f in paragraph.absent[:1]]
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
  texts = world.OPENINGS + world.ASIDES + world.UNITS + ["the of"]
  for nouns in world.NOUNS.values():
    texts.extend(nouns)
  for relation in world.RELATIONS:
    texts.extend(relation.statements + relation.questions)
  words = set()
  for text in texts:
    words.update(re.findall("[a-z]+", re.sub("{.}", " ", text).lower()))
  split = set(s + e for s in world.STEMS for e in world.STEM_ENDS)
  words = (words - split) | set(world.STEMS)
  letters = "abcdefghijklmnopqrstuvwxyz0123456789"
  ends = world.FAMILY_ENDS + world.PLACE_ENDS + world.THING_ENDS
  pieces = set("##" + end for end in world.STEM_ENDS)
  pieces |= set(world.HEADS) | set(str(c) for c in world.CENTURIES)
  pieces |= set("##" + end for end in ends)
  pieces |= set("##%d" % n for n in range(10, 100))
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
