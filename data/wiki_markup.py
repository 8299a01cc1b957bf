"""Running text of a page's wikitext.

Cheap passes, each linear in the page, take away what is no running text:
comments, notes, tables, templates, files, headings, lists. Of what they leave,
mwparserfromhell reads the paragraphs that still hold markup. It never sees
tables or nested templates, on which it is slow, nor a paragraph that is large
or dense in markup: those go to a simple stripper, as do paragraphs that make
it fail. The choice depends on the text alone, never on a clock, so that the
same page always gives the same text.
"""

import html
import re

import mwparserfromhell

from data import documents
from data import wiki_templates

# Stands where something between two paragraphs was: a line that is no text.
_NO_TEXT = "|"
_GAP = "\n%s\n" % _NO_TEXT
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)((?:\s[^<>]*|/)?)>")
# Tags that go with all that is between them: these within a paragraph, and
# those that stand between paragraphs.
_NOTES = frozenset(("ref", "references", "math", "ce", "chem", "hiero",
                    "indicator", "templatestyles", "includeonly", "score"))
_BLOCKS = frozenset((
    "gallery", "timeline", "source", "syntaxhighlight", "pre", "imagemap",
    "graph", "mapframe", "maplink", "templatedata", "inputbox", "table", "ol",
    "ul", "dl", "categorytree", "h1", "h2", "h3", "h4", "h5", "h6"))
# Tags of which the content stays; these end a paragraph.
_BREAKS = frozenset(("p", "blockquote", "div", "center", "poem", "hr", "li",
                     "tr", "td", "th", "dd", "dt"))
_WITH_CONTENT = _NOTES | _BLOCKS | {"nowiki", "sup"}
_NOWIKI = {ord(c): "&#%d;" % ord(c) for c in "[]{}|<>=*#:;'_!"}
_RAISED = re.compile(r"[0-9+−-]+$")
_BRACKET = re.compile(r"\{[{|]|\}\}|\|\}(?!\})|\[\[|\]\]")
_CLOSES = {"}}": "{{", "]]": "[[", "|}": "{|"}
# MediaWiki stops at 40, too.
_DEEPEST = 40
_FILE_NAMES = frozenset(("file", "image", "media", "category", "bild",
                         "datei", "fichier", "imagem", "imagen", "archivo"))
_LANGUAGE = re.compile(r"(?:[a-z]{2,3}(?:-[a-z]+)*|simple):")
# Beyond these, a paragraph is not given to the parser.
_PARSER_CHARACTERS = 20000
_PARSER_MARKS = 400
_MARK = re.compile(r"[\[\]{}<>]")
_EXTERNAL = re.compile(
    r"\[(?:[a-zA-Z][a-zA-Z+.-]*:|//)[^\s\[\]]*\s*([^\[\]]*)\]")
_ENTITY = re.compile(
    r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_QUOTES = re.compile(r"'{2,}")
_SWITCH = re.compile(r"__[A-Z]{3,}__")
_LEFT_OVER = re.compile(
    r"\{\{+|\}\}+|\[\[+|\]\]+|\{\||\|\}|\|-+|={2,}|</?ref\b[^<>]*>?|"
    r"<(?:br|nowiki) ?/?>")
_INVISIBLE = re.compile("[\ufeff\u200b\u200e\u200f\u00ad]")
# What to look for, and the rule; most paragraphs hold none of it.
_TIDYING = (
    (("( ", "(,", "(;", "(:"), re.compile(r"\([ ,;:]+"), "("),
    ((" )", ",)", ";)", ":)"), re.compile(r"(?<![ ,;:])[ ,;:]+\)"), ")"),
    (("()",), re.compile(r" ?\(\)"), ""),
    ((" ,", " .", " ;"), re.compile(r" ([,.;])(?= |$)"), r"\1"),
    ((",,", ", ,", ",;", ";,", ";;", "; ;"),
     re.compile(r"([,;])(?: ?[,;])+"), r"\1"))
_SENTENCE_END = re.compile(r"[.!?…。！？]")
# The end of a paragraph that is more than a label.
_ENDED = re.compile(r"[.!?…。！？:;][\"'”’»)\]]*$")
_LABEL_CHARACTERS = 60
# Two letters; r"\w" is not the same in all versions of Python.
_LETTERS = re.compile("[A-Za-z\u00c0-\u1fff\u3040-\U0010ffff]{2}")


def _matches(tags):
  """Returns {place in `tags` of an opening tag: place of its closing one}."""
  waiting, pairs = {}, {}
  for place, tag in enumerate(tags):
    slash, name, rest = tag.groups()
    stack = waiting.setdefault(name.lower(), [])
    if not slash and not rest.endswith("/"):
      stack.append(place)
    elif slash and stack:
      pairs[stack.pop()] = place
  return pairs


def _shown(name, inner):
  """Returns what an element shows; None: its content, as any other text."""
  if name == "nowiki":
    return inner.translate(_NOWIKI)
  if name == "sup":
    inner = inner.strip()
    return wiki_templates.superscript(inner) if _RAISED.match(inner) else None
  return _GAP if name in _BLOCKS else ""


def without_tags(text):
  """Returns `text` without tags, and without the content of some of them.

  A tag that is never closed goes alone, its content stays. Raised numbers
  become superscripts: 10<sup>6</sup> is not 106.
  """
  tags = list(_TAG.finditer(text))
  pairs = _matches(tags)
  out, at = [], 0
  for place, tag in enumerate(tags):
    if tag.start() < at:
      continue
    out.append(text[at:tag.start()])
    at = tag.end()
    name = tag.group(2).lower()
    if name in _WITH_CONTENT:
      shown = None
      if place in pairs:
        closing = tags[pairs[place]]
        shown = _shown(name, text[at:closing.start()])
        at = at if shown is None else closing.end()
      if shown or name in _BLOCKS:
        out.append(shown or _GAP)
    elif name in _BREAKS:
      out.append("\n\n")
    elif name == "br":
      out.append(" ")
  out.append(text[at:])
  return "".join(out)


def _starts_line(text, at):
  return not text[text.rfind("\n", 0, at) + 1:at].strip(" \t:")


def _link(content, dropped):
  """Returns what a link shows."""
  target, bar, label = content.partition("|")
  if not target.startswith(":"):
    prefix = target.partition(":")[0].strip().lower()
    if ":" in target and (prefix in dropped or prefix in _FILE_NAMES):
      return ""
    if not bar and _LANGUAGE.match(target):
      return ""
  # A file's description may have more bars; a link's label has none.
  return label.rpartition("|")[2] if bar else target.lstrip(":")


def _opened_at(stack, token):
  """Takes from the stack what `token` closes; returns its place, or None.

  What was opened inside and never closed goes with it. A link ends nothing
  but a link.
  """
  openers = [opener for opener, _ in stack]
  opener = _CLOSES[token]
  if opener not in openers or token == "]]" and openers[-1] != opener:
    return None
  last = len(openers) - 1 - openers[::-1].index(opener)
  place = stack[last][1]
  del stack[last:]
  return place


def without_brackets(text, dropped):
  """Returns `text` with links as their labels, without templates and tables.

  Args:
    text: str, wikitext without comments and notes.
    dropped: set of lower-case names of the namespaces whose links show no
      text: files and categories.
  """
  out, stack, at = [], [], 0
  for found in _BRACKET.finditer(text):
    token = found.group()
    if "|" in token and not _starts_line(text, found.start()):
      continue
    out.append(text[at:found.start()])
    at = found.end()
    if token not in _CLOSES:
      if len(stack) < _DEEPEST:
        stack.append((token, len(out)))
      continue
    place = _opened_at(stack, token)
    if place is not None:
      content = "".join(out[place:])
      del out[place:]
      out.append(wiki_templates.expand(content) if token == "}}" else
                 _link(content, dropped) if token == "]]" else
                 _GAP)
  out.append(text[at:])
  return "".join(out)


def _without_quotes(line):
  """Returns a line without the apostrophes that mark italics and bold.

  As in MediaWiki: of four one is text, of more than five all but five; and if
  both marks are odd in number, one bold mark is an apostrophe and an italic
  one, the first that follows a word of one letter, else of more.
  """
  runs = list(_QUOTES.finditer(line))
  spare = {}
  bold, italic = [], 0
  for run in runs:
    length = len(run.group())
    if length == 4 or length > 5:
      spare[run.start()] = 1 if length == 4 else length - 5
    if length >= 3:
      bold.append(run.start())
    italic += length == 2 or length >= 5
  if len(bold) % 2 and italic % 2:
    after_word = [s for s in bold if s and line[s - 1] != " "]
    single = [s for s in after_word if s == 1 or line[s - 2] == " "]
    chosen = (single or after_word or bold)[0]
    spare[chosen] = spare.get(chosen, 0) + 1
  out, at = [], 0
  for run in runs:
    out += [line[at:run.start()], "'" * spare.get(run.start(), 0)]
    at = run.end()
  return "".join(out) + line[at:]


def _simple(text):
  """Returns `text` without external links and tags, by our own rules."""
  return _TAG.sub("", _EXTERNAL.sub(r"\1", text))


def _parsed(text):
  """Returns (text without markup, whether the parser was of no use)."""
  if (len(text) > _PARSER_CHARACTERS
      or len(_MARK.findall(text)) > _PARSER_MARKS):
    return _simple(text), True
  try:
    code = mwparserfromhell.parse(text, skip_style_tags=True)
    return code.strip_code(normalize=False, collapse=False), False
  except Exception:  # pylint: disable=broad-except
    # Whatever it stumbles over, a page must not stop a dump.
    return _simple(text), True


def _decoded(text):
  return _ENTITY.sub(lambda found: html.unescape(found.group()), text)


def _tidy(text):
  """Returns a flat paragraph without what removed markup leaves behind."""
  text = _SWITCH.sub("", _LEFT_OVER.sub(" ", _decoded(text)))
  text = documents.flat(_INVISIBLE.sub("", text))
  for signs, pattern, put in _TIDYING:
    if any(sign in text for sign in signs):
      text = pattern.sub(put, text)
  return documents.flat(text).lstrip(",;. ")


def _raw_paragraphs(text):
  """Returns the paragraphs among headings, lists and rests of tables.

  A line that only leads to a list or table ("They are:") goes with it.
  """
  found, lines = [], []
  leads = False
  for line in text.split("\n") + [_NO_TEXT]:
    line = line.strip()
    if line and line[0] not in "*#;:|!=" and not line.startswith("----"):
      lines.append(_without_quotes(line))
      continue
    if lines:
      found.append(" ".join(lines))
      leads = lines[-1].endswith(":") and not _SENTENCE_END.search(found[-1])
      lines = []
    if leads and line:
      found.pop()
    if line:
      leads = False
  return found


def paragraphs(text, dropped):
  """Returns the running text of a page.

  Short paragraphs without an end, such as labels and captions, are left out;
  if a page has no others, it keeps them.

  Args:
    text: str, wikitext.
    dropped: set of lower-case names of the namespaces whose links show no
      text: files and categories, in the dump's language.

  Returns:
    (list of flat paragraphs, how many of them the parser was of no use for).
  """
  text = without_tags(_COMMENT.sub("", text))
  found, fallbacks = [], 0
  for paragraph in _raw_paragraphs(without_brackets(text, dropped)):
    if _MARK.search(paragraph):
      paragraph, failed = _parsed(paragraph)
      fallbacks += failed
    paragraph = _tidy(paragraph)
    if _LETTERS.search(paragraph):
      found.append(paragraph)
  sentences = [p for p in found
               if len(p) >= _LABEL_CHARACTERS or _ENDED.search(p)]
  return sentences or found, fallbacks
