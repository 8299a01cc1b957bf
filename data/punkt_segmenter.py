"""Sentences exactly as NLTK's PunktSentenceTokenizer finds them, but fast.

Punkt (Kiss and Strunk 2006) asks of each place that could end a sentence, a
period, question or exclamation mark, what the word before it and the token
after it say. NLTK tokenizes and annotates both anew every time. But the answer
depends on these few characters alone, so here each is asked once and kept, and
most never are: a question or exclamation mark always ends a sentence, and so
does the period of a word that is no abbreviation, initial, number or first
half of a collocation, whatever comes next.

Longer texts come in pieces: see `Segmenter.split`.
"""

import re

from nltk.tokenize import punkt

# The only white space that NLTK takes for the start of a word.
_WORD_STARTS = "\t\n\r\x0b\x0c"
# What NLTK moves to the end of the sentence before.
_CLOSING = frozenset("\"')]}")
# Answers kept: some 20 MB; longer words and contexts are asked every time.
_MOST_KEPT = 1 << 17
_LONGEST_KEPT = 80


class Segmenter(object):
  """Cuts texts into sentences.

  Args:
    parameters: nltk.tokenize.punkt.PunktParameters.
  """

  def __init__(self, parameters):
    language = punkt.PunktLanguageVars()
    self._punkt = punkt.PunktSentenceTokenizer(parameters)
    self._abbreviations = frozenset(parameters.abbrev_types)
    self._first_halves = frozenset(a for a, _ in parameters.collocations)
    self._tokens_of = language.word_tokenize
    # Group 1 is what follows (a sign, or white space and a token), group 2
    # the token without the white space.
    self._ends = language.period_context_re().finditer
    self._realigned = language.re_boundary_realignment.match
    self._space = re.compile(r"\s").search
    self._sure = {}
    self._answers = {}

  def sentences(self, text):
    """Returns the list of sentences of a text."""
    return self._cut(text, self._breaks(text), len(text.rstrip()))

  def split(self, text):
    """Returns the sentences that no further text can change, and the rest.

    What `sentences` gives for a long text is what `split` gives for its start
    and then, again and again, for the rest with more text behind it, and
    `sentences` for the last rest. A rest never starts with white space.

    Returns:
      (list of sentences, rest of the text).
    """
    breaks = self._breaks(text)
    for i in range(len(breaks) - 1, -1, -1):
      end, start = breaks[i]
      # The next token has to be whole, and nothing may look back over the
      # break: neither the search for the start of a word nor the signs that
      # move to the sentence before.
      if (text[start - 1] in " " + _WORD_STARTS
          and text[start] not in _CLOSING and self._space(text, start)):
        return self._cut(text, breaks[:i], end), text[start:]
    return [], text

  def _breaks(self, text):
    """Returns (end of a sentence, start of the next) of all but the last."""
    blanks = text
    for white in _WORD_STARTS:
      if white in blanks:
        blanks = blanks.replace(white, " ")
    last_blank = blanks.rfind
    found = []
    match, place, word = None, 0, 0
    for following in self._ends(text):
      next_place = following.start()
      # From `place` on: the sign there is no blank; nor does NLTK count a
      # blank at the start of the text.
      next_word = last_blank(" ", place + 1, next_place) + 1 or word
      # Of several signs in one word the last is asked, as in NLTK, whose
      # overlap of nothing is none.
      if match is not None and place <= next_word:
        if text[place] != "." or self._ends_sentence(text, word, match):
          found.append(_gap(match))
      match, place, word = following, next_place, next_word
    if match is not None:
      if text[place] != "." or self._ends_sentence(text, word, match):
        found.append(_gap(match))
    return found

  def _ends_sentence(self, text, start, match):
    """Says whether a period ends a sentence; `start` is its word's."""
    word = text[start:match.start()]
    sure = self._sure.get(word)
    if sure is None:
      sure = self._keep(self._sure, word, self._is_sure(word))
    if sure:
      return True
    context = text[start:match.end(1)]
    answer = self._answers.get(context)
    if answer is None:
      answer = self._keep(self._answers, context,
                          self._punkt.text_contains_sentbreak(context))
    return answer

  def _keep(self, answers, key, answer):
    if len(key) <= _LONGEST_KEPT:
      if len(answers) >= _MOST_KEPT:
        answers.clear()
      answers[key] = answer
    return answer

  def _is_sure(self, word):
    """Says whether `word` and a period end a sentence, whatever comes next.

    False means that it depends. Only white space inside of the word, such as
    a no-break space, could make its tokens depend on what comes next.
    """
    if len(word.split()) > 1 or word.strip() != word:
      return False
    return any(self._is_sure_token(punkt.PunktToken(token))
               for token in self._tokens_of(word + "."))

  def _is_sure_token(self, token):
    """Punkt's first pass, and what its second pass could take back."""
    text = token.tok
    if text in ("?", "!"):
      return True
    if text != "." and (not token.period_final or text.endswith("..")):
      return False
    stem = text[:-1].lower()
    if text != "." and (stem in self._abbreviations
                        or stem.split("-")[-1] in self._abbreviations):
      return False
    kind = token.type_no_period
    return not (kind in self._first_halves or kind == "##number##"
                or token.is_initial)

  def _cut(self, text, breaks, end):
    """Returns the sentences between breaks; closing signs go to the first.

    Args:
      text: str.
      breaks: list of (end, start of the next).
      end: of the last sentence.
    """
    sentences = []
    start = 0
    for i, (stop, following) in enumerate(breaks):
      signs = None
      if text[following] in _CLOSING:
        limit = breaks[i + 1][0] if i + 1 < len(breaks) else end
        signs = self._realigned(text, following, limit)
      if signs:
        sentences.append(
            text[start:following + len(signs.group().rstrip())])
        start = signs.end()
      else:
        if start < stop:
          sentences.append(text[start:stop])
        start = following
    if start < end:
      sentences.append(text[start:end])
    return sentences


def _gap(match):
  """Returns the end of a sentence and the start of the next."""
  following = match.start(2)
  return match.end(), match.end() if following < 0 else following
