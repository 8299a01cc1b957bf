"""The made-up world of the sample: names, relations and their wordings.

A relation has one subject and one object. It comes with several ways to state
it (`{s}` the subject, `{o}` the object; the start of the sentence is raised to
a capital later) and several ways to ask for its object. A subject is told of
by its full name ("the ship Veladia") or shortly ("the ship"). Every name is
spelled with syllables, so that a name nobody has seen before is still made of
known word pieces.
"""

import collections

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

# First syllables of all invented names, and the endings that tell families,
# places and things apart as "-ton" and "-ford" do in English.
HEADS = (
    "bal cor dal fen gul hol jar kel lom mir nor pel rud sol tor val").split()
FAMILY_ENDS = "bek dan gin kot len mik rik sen".split()
PLACE_ENDS = "bury dale ford ham moor ton worth".split()
THING_ENDS = "adia anta elia ona ura".split()
CENTURIES = (15, 16, 17, 18, 19)
# What is counted; "41 feet".
UNITS = "children crowns feet men miles".split()

# Words that share a stem are spelled with it, as WordPiece would: "designer" is
# "design ##er".
STEMS = "build cross design launch open own teach".split()
STEM_ENDS = "ed er ing".split()

# What a subject is, by kind: "the mill", "the painter".
NOUNS = {
    "person": "sculptor baker singer doctor printer poet".split(),
    "building": "castle church library mill school theatre tower".split(),
    "ship": "ship".split(),
    "river": "river".split(),
}

Relation = collections.namedtuple(
    "Relation", "name subject object statements questions")

RELATIONS = [Relation(*row) for row in [
    ("born_in", "person", "place",
     ["{s} was born in {o}.", "the birthplace of {s} was {o}.",
      "{o} was the birthplace of {s}."],
     ["Where was {s} born?", "What was the birthplace of {s}?"]),
    ("death_year", "person", "year",
     ["{s} died in {o}.", "the death of {s} was in {o}."],
     ["When did {s} die?", "In which year did {s} die?"]),
    ("rival", "person", "person",
     ["the rival of {s} was {o}.", "{o} was the rival of {s}.",
      "{s} lost a prize to the rival {o}."],
     ["Who was the rival of {s}?", "Which rival did {s} have?"]),
    ("teacher", "person", "person",
     ["the teacher of {s} was {o}.", "{o} was the teacher of {s}.",
      "{s} went to the teacher {o}."],
     ["Who was the teacher of {s}?", "Which teacher did {s} have?"]),
    ("paid", "person", "crowns",
     ["{s} was paid {o} a year.", "the wages of {s} were {o}."],
     ["How much was {s} paid?", "What were the wages of {s}?"]),
    ("children", "person", "children",
     ["{s} had {o}.", "the house of {s} was full of {o}."],
     ["How many children did {s} have?", "How many children had {s}?"]),

    ("builder", "building", "person",
     ["the builder of {s} was {o}.", "{o} was the builder of {s}.",
      "{s} was the work of the builder {o}."],
     ["Who was the builder of {s}?", "Which builder made {s}?"]),
    ("owner", "building", "person",
     ["the owner of {s} was {o}.", "{o} was the owner of {s}.",
      "{s} belonged to the owner {o}."],
     ["Who was the owner of {s}?", "Who owned {s}?"]),
    ("stands_near", "building", "place",
     ["{s} stands near {o}.", "{s} can be seen near {o}."],
     ["Where does {s} stand?", "Where can {s} be seen?"]),
    ("opened_year", "building", "year",
     ["{s} was opened in {o}.", "the opening of {s} was in {o}."],
     ["When was {s} opened?", "In which year was the opening of {s}?"]),
    ("height", "building", "feet",
     ["{s} is {o} high.", "the height of {s} is {o}."],
     ["How high is {s}?", "What is the height of {s}?"]),
    ("cost", "building", "crowns",
     ["{s} cost {o}.", "the price of {s} was {o}."],
     ["How much did {s} cost?", "What was the price of {s}?"]),

    ("captain", "ship", "person",
     ["the captain of {s} was {o}.", "{o} was the captain of {s}.",
      "{s} sailed under captain {o}."],
     ["Who was the captain of {s}?", "Under which captain did {s} sail?"]),
    ("designer", "ship", "person",
     ["the designer of {s} was {o}.", "{o} was the designer of {s}.",
      "{s} was drawn by the designer {o}."],
     ["Who was the designer of {s}?", "Who designed {s}?"]),
    ("home_port", "ship", "place",
     ["the home port of {s} was {o}.", "{s} had its home port in {o}."],
     ["What was the home port of {s}?", "Where was the home port of {s}?"]),
    ("launched_year", "ship", "year",
     ["{s} was launched in {o}.", "the launch of {s} was in {o}."],
     ["When was {s} launched?", "In which year was the launch of {s}?"]),
    ("length", "ship", "feet",
     ["{s} was {o} long.", "the length of {s} was {o}."],
     ["How long was {s}?", "What was the length of {s}?"]),
    ("crew", "ship", "men",
     ["{s} had a crew of {o}.", "the crew of {s} were {o}."],
     ["How large was the crew of {s}?", "How many men had {s}?"]),

    ("source", "river", "place",
     ["{s} has its source near {o}.", "the source of {s} is near {o}."],
     ["Where is the source of {s}?", "Near which place is the source of {s}?"]),
    ("guide", "river", "person",
     ["the first guide on {s} was {o}.", "{o} was the first guide on {s}.",
      "travellers on {s} trust the guide {o}."],
     ["Who was the first guide on {s}?", "Which guide was on {s}?"]),
    ("ferryman", "river", "person",
     ["the ferryman on {s} was {o}.", "{o} was the ferryman on {s}.",
      "{s} is crossed with the ferryman {o}."],
     ["Who was the ferryman on {s}?", "Which ferryman worked on {s}?"]),
    ("flood_year", "river", "year",
     ["the great flood of {s} was in {o}.", "in {o} there was a flood of {s}."],
     ["When was the flood of {s}?", "In which year was the flood of {s}?"]),
    ("river_length", "river", "miles",
     ["{s} is {o} long.", "the length of {s} is {o}."],
     ["How long is {s}?", "What is the length of {s}?"]),
    ("depth", "river", "feet",
     ["{s} is {o} deep.", "the depth of {s} is {o}."],
     ["How deep is {s}?", "What is the depth of {s}?"]),
]]

# Put before or behind a statement, they move the answers about and change
# nothing else.
OPENINGS = ["It is said that", "We read that", "We know that",
            "They say that"]
ASIDES = ["Nobody knows why.", "This is well known.", "Many books say so.",
          "It was a time of peace.", "The old papers are lost.",
          "People still talk about it.", "That winter was cold."]
