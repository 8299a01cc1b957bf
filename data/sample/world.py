"""The made-up world of the sample: names, relations and their wordings.

A relation has one subject and one object. It comes with several ways to state
it (`{s}` the subject, `{o}` the object; the start of the sentence is raised to
a capital later) and several ways to ask for its object. Every name is spelled with syllables, so that a
name nobody has seen before is still made of known word pieces.
"""

import collections

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

# First syllables of all invented names, and the endings that tell families,
# places and things apart as "-ton" and "-ford" do in English.
HEADS = (
    "bal bor bra cal cor dal dor dra fal fer fin gar gel gul hal hol jar kel "
    "kor lam lom mal mir nor pel por ral rud sal sol tal tor val vel wil zel"
    ).split()
FAMILY_ENDS = (
    "bek dan dik gan gin kan ker kot len lin mik nek rik sen tak ven").split()
PLACE_ENDS = (
    "berg bury combe dale ford ham haven moor mouth port ton worth").split()
THING_ENDS = "adia amia andra anta elia enna essa iona ova ura".split()
CENTURIES = (15, 16, 17, 18, 19)
YEARS = tuple(range(1, 100, 3))

BUILDINGS = ("bridge castle church harbour inn library market mill school "
             "theatre tower").split()
WORKS = "ballad novel opera play poem song".split()

Relation = collections.namedtuple(
    "Relation", "name subject object statements questions")

RELATIONS = [Relation(*row) for row in [
    ("born_in", "person", "place",
     ["{s} was born in {o}.", "{o} was the birthplace of {s}.",
      "the birthplace of {s} was {o}."],
     ["Where was {s} born?", "In which place was {s} born?",
      "What was the birthplace of {s}?"]),
    ("died_in", "person", "place",
     ["{s} died in {o}.", "it was in {o} that {s} died.",
      "death came to {s} in {o}."],
     ["Where did {s} die?", "In which place did {s} die?"]),
    ("worked_in", "person", "place",
     ["{s} worked in {o}.", "{s} had a workshop in {o}.",
      "the workshop of {s} was in {o}."],
     ["Where did {s} work?", "Where was the workshop of {s}?",
      "In which place did {s} work?"]),
    ("studied_in", "person", "place",
     ["{s} studied in {o}.", "{s} was a student in {o}.",
      "it was in {o} that {s} studied."],
     ["Where did {s} study?", "In which place was {s} a student?"]),
    ("birth_year", "person", "year",
     ["{s} was born in {o}.", "the birth of {s} was in {o}."],
     ["When was {s} born?", "In which year was {s} born?",
      "What was the year of the birth of {s}?"]),
    ("death_year", "person", "year",
     ["{s} died in {o}.", "the death of {s} was in {o}."],
     ["When did {s} die?", "In which year did {s} die?",
      "What was the year of the death of {s}?"]),
    ("married", "person", "person",
     ["{s} married {o}.", "{s} was married to {o}."],
     ["Whom did {s} marry?", "To whom was {s} married?"]),
    ("taught_by", "person", "person",
     ["{s} was taught by {o}.", "{o} was the teacher of {s}.",
      "the teacher of {s} was {o}."],
     ["Who taught {s}?", "Who was the teacher of {s}?",
      "By whom was {s} taught?"]),
    ("hired_by", "person", "person",
     ["{s} was hired by {o}.", "{o} hired {s}.",
      "the master of {s} was {o}."],
     ["Who hired {s}?", "By whom was {s} hired?",
      "Who was the master of {s}?"]),
    ("rival", "person", "person",
     ["the rival of {s} was {o}.", "{o} was the rival of {s}."],
     ["Who was the rival of {s}?", "Which person was the rival of {s}?"]),

    ("built_by", "building", "person",
     ["{s} was built by {o}.", "{o} built {s}.",
      "the builder of {s} was {o}."],
     ["Who built {s}?", "By whom was {s} built?",
      "Who was the builder of {s}?"]),
    ("owned_by", "building", "person",
     ["{s} was owned by {o}.", "{o} was the owner of {s}.",
      "{s} belonged to {o}."],
     ["Who owned {s}?", "Who was the owner of {s}?",
      "To whom did {s} belong?"]),
    ("painted_by", "building", "person",
     ["{s} was painted by {o}.", "{o} painted {s}."],
     ["Who painted {s}?", "By whom was {s} painted?"]),
    ("built_year", "building", "year",
     ["{s} was built in {o}.", "in {o} the people built {s}."],
     ["When was {s} built?", "In which year was {s} built?"]),
    ("burned_year", "building", "year",
     ["{s} burned down in {o}.", "in {o} a fire burned down {s}."],
     ["When did {s} burn down?", "In which year did {s} burn down?"]),
    ("opened_year", "building", "year",
     ["{s} was opened in {o}.", "in {o} the mayor opened {s}."],
     ["When was {s} opened?", "In which year was {s} opened?"]),

    ("captain", "ship", "person",
     ["the captain of {s} was {o}.", "{o} was the captain of {s}.",
      "{s} sailed under captain {o}."],
     ["Who was the captain of {s}?", "Under which captain did {s} sail?"]),
    ("designer", "ship", "person",
     ["{s} was designed by {o}.", "{o} designed {s}.",
      "the designer of {s} was {o}."],
     ["Who designed {s}?", "By whom was {s} designed?",
      "Who was the designer of {s}?"]),
    ("sailed_from", "ship", "place",
     ["{s} sailed from {o}.", "the home port of {s} was {o}."],
     ["From which place did {s} sail?", "What was the home port of {s}?"]),
    ("sank_near", "ship", "place",
     ["{s} sank near {o}.", "it was near {o} that {s} sank."],
     ["Where did {s} sink?", "Near which place did {s} sink?"]),
    ("launched_year", "ship", "year",
     ["{s} was launched in {o}.", "the launch of {s} was in {o}."],
     ["When was {s} launched?", "In which year was {s} launched?"]),
    ("sank_year", "ship", "year",
     ["{s} sank in {o}.", "in {o} a storm sank {s}."],
     ["When did {s} sink?", "In which year did {s} sink?"]),

    ("rises", "river", "place",
     ["{s} rises near {o}.", "the source of {s} lies near {o}."],
     ["Where does {s} rise?", "Where does the source of {s} lie?",
      "Near which place does {s} rise?"]),
    ("reaches_sea", "river", "place",
     ["{s} reaches the sea at {o}.", "it is at {o} that {s} meets the sea."],
     ["Where does {s} reach the sea?", "Where does {s} meet the sea?"]),
    ("mapped_by", "river", "person",
     ["{s} was mapped by {o}.", "{o} drew the first map of {s}."],
     ["Who mapped {s}?", "Who drew the first map of {s}?"]),
    ("crossed_by", "river", "person",
     ["{s} was first crossed by {o}.", "{o} was the first to cross {s}."],
     ["Who first crossed {s}?", "Who was the first to cross {s}?"]),
    ("flood_year", "river", "year",
     ["{s} flooded the land in {o}.", "in {o} there was a flood of {s}."],
     ["When did {s} flood the land?", "In which year was the flood of {s}?"]),
    ("froze_year", "river", "year",
     ["{s} was frozen in {o}.", "in {o} ice covered {s}."],
     ["When was {s} frozen?", "In which year did ice cover {s}?"]),

    ("written_by", "work", "person",
     ["{s} was written by {o}.", "{o} wrote {s}.", "the author of {s} was {o}."],
     ["Who wrote {s}?", "By whom was {s} written?",
      "Who was the author of {s}?"]),
    ("hero", "work", "person",
     ["the hero of {s} is {o}.", "{o} is the hero of {s}."],
     ["Who is the hero of {s}?", "Which person is the hero of {s}?"]),
    ("printed_in", "work", "place",
     ["{s} was printed in {o}.", "it was in {o} that {s} was printed."],
     ["Where was {s} printed?", "In which place was {s} printed?"]),
    ("set_in", "work", "place",
     ["{s} takes place in {o}.", "the story of {s} is set in {o}."],
     ["Where does {s} take place?", "Where is the story of {s} set?"]),
    ("finished_year", "work", "year",
     ["{s} was finished in {o}.", "the last page of {s} was finished in {o}."],
     ["When was {s} finished?", "In which year was {s} finished?"]),
    ("banned_year", "work", "year",
     ["{s} was banned in {o}.", "in {o} the king banned {s}."],
     ["When was {s} banned?", "In which year was {s} banned?"]),
]]

# Put before or behind a statement, they move the answers about and change
# nothing else.
OPENINGS = ["It is said that", "We read that", "We know that",
            "They say that"]
ASIDES = ["Nobody knows why.", "This is well known.", "Many books say so.",
          "It was a time of peace.", "The old papers are lost.",
          "People still talk about it.", "That winter was cold."]
