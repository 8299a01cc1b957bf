"""What of a book's file is its text.

Left out are Project Gutenberg's header and licence; what stands in brackets
for pictures, music and notes; page numbers and rules; lists of chapters and
indexes; and headings, as they are left out of Wikipedia's articles. Marks of
italics go, the words stay.
"""

import re

from data import paragraphs

_GUTENBERG = (b"Project Gutenberg", b"PROJECT GUTENBERG")
_START = re.compile(rb"[\s*]*START OF (?:THE |THIS )?PROJECT GUTENBERG")
_END = re.compile(rb"[\s*]*END OF (?:THE |THIS )?PROJECT GUTENBERG")
# Until 2003, "*END*THE SMALL PRINT!" ended the header.
_SMALL_PRINT = b"THE SMALL PRINT!"
_MARKER_BYTES = 80
_HEADER_BYTES = 64 << 10

_BRACKETED = re.compile(
    r"\[(?:Illustration|Footnote|Sidenote|Music|Musical|Blank Page|Note|"
    r"Transcriber|Editor|Project Gutenberg|Decoration|Map|Frontispiece)\b:? ?",
    re.IGNORECASE)
_BRACKETS = re.compile(r"[\[\]]")
_LONGEST_NOTE = 5000
# A mark at a word, such as [1] or [A], and the numbers of pages in the text.
_ANCHOR = re.compile(r"\[(?:\d{1,3}|[A-Z*])\]")
_PAGE_MARK = re.compile(r"\[(?:[Pp]g|[Pp]age|[Pp]\.) ?\w{1,5}\] ?")
_PAGE_BRACES = re.compile(r"\{(?:[Pp]g |[Pp]\. )?\d{1,4}\} ?")
_PAGE_LINE = re.compile(
    r"\n[\[({-]*(?:[Pp](?:age|g)?\.? ?)?\d{1,4}[\])}-]*"
    r"(?=\n[^\n])")
_UNDERSCORES = re.compile(r"_+")
_BOLD = re.compile(r"=([^=\n]{1,80})=")
_SPACED = re.compile(r"~([^~]{1,200})~")

_NUMBER = (r"(?:[IVXLCDM]+\b|\d{1,3}\b|(?:THE|The|the) \w+|ONE|TWO|THREE|FOUR|"
           r"FIVE|SIX|SEVEN|EIGHT|NINE|TEN|ELEVEN|TWELVE|[A-Z]+TEEN|TWENTY)")
_DIVISION = re.compile(
    r"(?:CHAPTER|Chapter|BOOK|Book|PART|Part|VOLUME|Volume|VOL\.|Vol\.|SCENE|"
    r"Scene|ACT|Act|CANTO|Canto|STAVE|Stave|SECTION|Section|LETTER|Letter)"
    r"\s+" + _NUMBER + r"(?:\s*(?:$|[.:—–-])|\s+[A-Z\"“‘'(])")
_DIVISION_INITIALS = frozenset("CBPVSAL")
_NUMERAL_INITIALS = frozenset("IVXLCDM0123456789")
_LIST_INITIALS = _DIVISION_INITIALS | _NUMERAL_INITIALS
_LONGEST_HEADING = 100
_LABEL_CHARACTERS = 60
_NUMERAL = re.compile(r"[\[(—–-]*\s*[IVXLCDM]+\s*[\])—–-]*\.?")
_NAMED = re.compile(
    r"(?:(?:table of )?contents|(?:list of )?illustrations|index|footnotes?|"
    r"notes|errata|the end|finis|by)[.:]$", re.IGNORECASE)
_LONGEST_NAMED = 30
_ENDS = frozenset(".!?…:;,—-")
_SENTENCE_ENDS = frozenset(".!?…:")
_CLOSING = "\"'”’»)]"
_NUMBERED = re.compile(r"(?:[IVXLCDM]+|\d{1,3})[.)]\s")
_PAGES_AT_END = re.compile(
    r"(?:\.\.|\. \.|,)\s*\d{1,4}(?:\s*[,;–-]\s*\d{1,4})*[;,.]?$|"
    r"[A-Za-z] +\d{1,4}$")
_INDEXED = re.compile(r"(?:,\s|\s{2,})\d{1,4}(?:[–-]\d{1,4})?[;,]?$")
_CREDIT = re.compile(
    r"(?:This )?(?:E-?(?:text|book) (?:was )?)?(?:Produced|Prepared|"
    r"Transcribed|Scanned|Digitized) (?:by|from)\b|HTML version by",
    re.IGNORECASE)
_CREDITS_WITHIN = 20
_TRANSCRIBER = re.compile(
    r"[\[(]?(?:original |etext |e-text )?transcriber(?:['’]?s?['’]?) notes?\b",
    re.IGNORECASE)
_NOTE_INITIALS = frozenset("[(eEoOtT")
_NOTE_BODY = re.compile(r"\[(?:\d{1,3}|[A-Z])\]\s")
_LETTER = re.compile("[A-Za-z\u00c0-\u1fff\u3040-\U0010ffff]")


def _places(raw, words):
  """Returns the sorted places of any of the words."""
  found = []
  for word in words:
    at = raw.find(word)
    while at >= 0:
      found.append(at)
      at = raw.find(word, at + 1)
  return sorted(found)


def _markers(raw, words):
  """Yields (first byte, place of the words, end) of lines that may be markers.

  A marker has the words near its beginning.
  """
  for at in _places(raw, words):
    before = raw.rfind(b"\n", max(0, at - _MARKER_BYTES), at)
    if before >= 0 or at <= _MARKER_BYTES:
      end = raw.find(b"\n", at)
      yield before + 1, at, len(raw) if end < 0 else end


def _after_marker(raw, at, line_end):
  """Returns where a start marker ends, which may go on in the next line."""
  paragraph_end = raw.find(b"\n\n", at)
  stars = raw.find(b"***", at, paragraph_end if paragraph_end >= 0 else None)
  return stars + 3 if stars >= 0 else line_end


def body(raw):
  """Returns a book's bytes without Project Gutenberg's header and licence.

  Returns:
    (bytes, whether Project Gutenberg is named at the beginning, whether a
    header or licence was found).
  """
  start, end, found = 0, len(raw), False
  for first, at, last in _markers(raw, _GUTENBERG):
    line = raw[first:first + 2 * _MARKER_BYTES].upper()
    if _START.match(line):
      start, found = _after_marker(raw, at, last), True
    elif _END.match(line) and first >= start:
      end, found = first, True
      break
  for first, at, last in _markers(raw, (_SMALL_PRINT,)):
    if not start <= first < end:
      continue
    if b"END" in raw[first:at]:
      start, found = last, True
    elif first > len(raw) // 2:
      end, found = first, True
  named = any(word in raw[:_HEADER_BYTES] for word in _GUTENBERG)
  return raw[start:end], named, found


def _bracket_ends(text):
  """Returns {place of an opening bracket: end of the one that closes it}."""
  ends, waiting = {}, []
  for found in _BRACKETS.finditer(text):
    if found.group() == "[":
      waiting.append(found.start())
    elif waiting:
      ends[waiting.pop()] = found.end()
  return ends


def _without_bracketed(text):
  """Returns `text` without notes and pictures in brackets.

  Where the end is missing, or too far away, only the opening words go.
  """
  out, at, ends = [], 0, None
  for found in _BRACKETED.finditer(text):
    ends = _bracket_ends(text) if ends is None else ends
    start = found.start()
    if start < at:
      continue
    end = ends.get(start, len(text) + _LONGEST_NOTE)
    out.append(text[at:start])
    at = end if end - start <= _LONGEST_NOTE else found.end()
  return "".join(out) + text[at:]


def _unless_after(characters):
  """Returns what to replace a match by: nothing, itself after any of these.

  A look-behind in the pattern would say the same many times slower.
  """
  def put(found):
    before = found.string[found.start() - 1:found.start()]
    return found.group() if before in characters else ""
  return put


def _unless_many(found):
  """Keeps a blank to fill in ("Mr. ____"), not a mark of italics."""
  return found.group() if len(found.group()) > 1 else ""


def without_marks(text):
  """Returns a stripped block of a book without marks inside paragraphs."""
  if "[" in text:
    text = _ANCHOR.sub(_unless_after(" \n[("), _without_bracketed(text))
    text = _PAGE_MARK.sub("", text)
  if "{" in text:
    text = _PAGE_BRACES.sub("", text)
  text = _PAGE_LINE.sub(_unless_after("\n"), text)
  if "__" in text:
    text = _UNDERSCORES.sub(_unless_many, text)
  else:
    text = text.replace("_", "")
  if "=" in text:
    text = _BOLD.sub(r"\1", text)
  if "~" in text:
    text = _SPACED.sub(r"\1", text)
  return text


def _ends_with(paragraph, ends):
  """Says whether a paragraph ends so, quotation marks and the like aside."""
  return paragraph.rstrip(_CLOSING)[-1:] in ends


def _is_listed(line):
  """Says whether a line may be of a list of chapters or an index."""
  # The first characters are looked at before the slower patterns.
  return bool(
      line[:1] in _NUMERAL_INITIALS and _NUMBERED.match(line)
      or line[-2:].strip(";,.").isdigit() and _PAGES_AT_END.search(line)
      or line[:1] in _DIVISION_INITIALS and _DIVISION.match(line))


def _is_list(paragraph):
  lines = paragraph.split("\n")
  if len(lines) < 3:
    return (all(_INDEXED.search(line) for line in lines)
            or paragraph.isupper() and _DIVISION.match(paragraph) is not None)
  return (max(map(len, lines)) <= _LONGEST_HEADING
          and sum(map(_is_listed, lines)) >= 0.8 * len(lines))


def _is_heading(paragraph):
  if paragraph.isupper():
    return (paragraph[-1] not in "!?\"”’'"
            or _NUMERAL.fullmatch(paragraph) is not None)
  if paragraph[0] in _DIVISION_INITIALS and _DIVISION.match(paragraph):
    return True
  if len(paragraph) >= _LABEL_CHARACTERS or "\n" in paragraph:
    return False
  return (not _ends_with(paragraph, _ENDS) or len(paragraph) < _LONGEST_NAMED
          and _NAMED.match(paragraph) is not None)


def is_furniture(paragraph):
  """Says whether a paragraph, its lines not joined, is no running text."""
  initial = paragraph[0]
  if not (initial.isalpha() or paragraph[1:2].isalpha()
          or _LETTER.search(paragraph)):
    return True
  if initial in _NOTE_INITIALS and (_NOTE_BODY.match(paragraph)
                                    or _TRANSCRIBER.match(paragraph)):
    return True
  if len(paragraph) <= _LONGEST_HEADING and _is_heading(paragraph):
    return True
  # A list shows at its beginning or at its end.
  return ((paragraph[-1].isdigit() or paragraph[-2:-1].isdigit()
           or initial in _LIST_INITIALS
           and _is_listed(paragraph.partition("\n")[0]))
          and _is_list(paragraph))


def running_text(found, num_before):
  """Yields the flat paragraphs that are running text.

  A paragraph that a page number cut in two is one again.

  Args:
    found: list of paragraphs, their lines not joined.
    num_before: how many came before them in the book; credits stand among
      the first.
  """
  waiting, cut = None, False
  for number, paragraph in enumerate(found, num_before):
    if is_furniture(paragraph) or (number < _CREDITS_WITHIN
                                   and _CREDIT.match(paragraph)):
      cut = paragraph.strip("[](){}- ").isdigit()
      continue
    paragraph = paragraphs.flat(paragraph)
    if cut and waiting and paragraph[0].islower() and not _ends_with(
        waiting, _SENTENCE_ENDS):
      waiting += " " + paragraph
    else:
      if waiting:
        yield waiting
      waiting = paragraph
    cut = False
  if waiting:
    yield waiting
