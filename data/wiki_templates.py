"""The templates that stand for words of a sentence, and what they show.

Without these few, sentences lose quantities ("a distance of from the town")
and words; every other template is dropped. Names are compared in lower case
and with blanks for underscores; arguments hold text only.
"""

import re

_FIRST = frozenset((
    "abbr", "abbrlink", "angle bracket", "angbr", "big", "blockquote",
    "bquote", "cquote", "flag", "flagcountry", "flagu", "ill",
    "interlanguage link", "ipa", "italic", "keypress", "linktext", "mono",
    "mvar", "nihongo", "nobold", "nobr", "noitalic", "not a typo", "notatypo",
    "nowrap", "nts", "number", "proper name", "quote", "quotation", "rquote",
    "sc", "script", "sic", "small", "smallcaps", "smaller", "strong", "typo",
    "vanchor", "var", "visible anchor", "vr"))
_SECOND = frozenset(("color", "colour", "font color", "hover title", "lang"))
_LAST = frozenset(("transl", "transliteration"))
_FIXED = {
    "'": "'", "`": "'", "'s": "'s", "–": "–", "ndash": "–", "en dash": "–",
    "spaced ndash": " – ", "snd": " – ", "spnd": " – ", "dash": " – ",
    "—": "—", "mdash": "—", "em dash": "—", "spaced mdash": " — ",
    "nbsp": " ", "space": " ", "pi": "π", "okina": "ʻ", "hamza": "ʼ",
    "·": "·", "dot": "·", "=": "=", "ad": "AD", "bc": "BC", "bce": "BCE",
    "ce": "CE", "degree": "°", "minus": "−", "times": "×", "...": "..."}
_MUSIC = {"flat": "♭", "sharp": "♯", "natural": "♮"}
# "{{USS|Enterprise|CVN-6}}" shows "USS Enterprise (CVN-6)".
_SHIPS = {name.lower(): name for name in (
    "HMAS", "HMCS", "HMNZS", "HMS", "INS", "MS", "MV", "RMS", "SMS", "SS",
    "USCGC", "USNS", "USS")}
_UNITS = {
    "c": "°C", "°c": "°C", "f": "°F", "k": "K", "km2": "km²", "m2": "m²",
    "cm2": "cm²", "mi2": "sq mi", "sqmi": "sq mi", "sqkm": "km²",
    "sqft": "sq ft", "ft2": "sq ft", "m3": "m³", "km3": "km³", "cm3": "cm³",
    "cuft": "cu ft", "ft3": "cu ft", "cuin": "cu in", "acre": "acres",
    "foot": "feet", "lbs": "lb", "kn": "knots", "nmi": "nautical miles",
    "oilbbl": "barrels", "impgal": "imp gal", "usgal": "US gal",
    "e6acre": "million acres", "e6km2": "million km²", "kph": "km/h"}
_BETWEEN = {
    "-": "–", "–": "–", "to": " to ", "to(-)": " to ", "and": " and ",
    "and(-)": " and ", "or": " or ", "x": " × ", "×": " × ", "xx": " × ",
    "by": " by ", "+/-": " ± ", "±": " ± "}
_TWO_PARTS = (("ft", "in"), ("lb", "oz"), ("st", "lb"), ("mi", "yd"))
_MONTHS = ("January", "February", "March", "April", "May", "June", "July",
           "August", "September", "October", "November", "December")
_SUPERSCRIPTS = dict(zip("0123456789+-−n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻ⁿ"))
_NAMED = re.compile(r"\s*(\w[\w -]{0,20}?)\s*=")


def superscript(text):
  """Returns a number as superscript, other text, such as "th", as it is."""
  raised = [_SUPERSCRIPTS.get(c) for c in text]
  return text if None in raised else "".join(raised)


def _arguments(parts):
  """Returns (list of arguments by place, {name: value})."""
  places, named = [], {}
  for part in parts:
    found = _NAMED.match(part)
    if found:
      named[found.group(1)] = part[found.end():].strip()
    else:
      places.append(part.strip())
  for number in range(1, 5):
    if str(number) in named:
      places[number - 1:number] = [named[str(number)]]
  return places, named


def _convert(places, unused_named):
  """{{convert|10|to|12|km|mi}}: "10 to 12 km"; what it converts to is left."""
  words, at = places[:1], 1
  while at + 1 < len(places) and places[at] in _BETWEEN:
    words += [_BETWEEN[places[at]], places[at + 1]]
    at += 2
  unit = places[at] if at < len(places) else ""
  if at + 2 < len(places) and (unit, places[at + 2]) in _TWO_PARTS:
    return "%s %s %s %s" % ("".join(words), unit, places[at + 1],
                            places[at + 2])
  return ("".join(words) + " " + _UNITS.get(unit.lower(), unit)).strip()


def _value(places, named):
  """{{val|1.5|e=6|u=m}}: "1.5×10⁶ m"."""
  text = places[0] if places else ""
  if named.get("e"):
    text += "×10" + superscript(named["e"])
  return (text + " " + (named.get("ul") or named.get("u") or "")).strip()


def _fraction(places, unused_named):
  """{{frac|1|2}}, {{frac|3|1|2}}, {{frac|2}}: "1/2", "3 1/2", "1/2"."""
  if len(places) == 1:
    return "1/" + places[0]
  return " ".join(places[:-2] + ["/".join(places[-2:])])


def _as_of(places, named):
  """{{as of|2014|6|lc=y}}: "as of June 2014"."""
  date = places[:3]
  if len(date) > 1 and date[1].isdigit() and 1 <= int(date[1]) <= 12:
    date[1] = _MONTHS[int(date[1]) - 1]
  words = ("since " if "since" in named else "as of ") + " ".join(date[::-1])
  if "alt" in named:
    return named["alt"]
  return words if named.get("lc") else words[0].upper() + words[1:]


def _first(places, unused_named):
  return places[0] if places else ""


_FUNCTIONS = {
    "convert": _convert, "cvt": _convert, "val": _value,
    "frac": _fraction, "fraction": _fraction, "sfrac": _fraction,
    "as of": _as_of,
    "c.": lambda places, _: "c. " + " ".join(places[:1]),
    "circa": lambda places, _: "c. " + "–".join(places[:2]),
    "fl.": lambda places, _: "fl. " + "–".join(places[:2]),
    "floruit": lambda places, _: "fl. " + "–".join(places[:2]),
    "chem": lambda places, _: "".join(places),
    "music": lambda places, _: _MUSIC.get(_first(places, _), ""),
    "sup": lambda places, _: superscript(_first(places, _)),
    "sub": _first,
    "us$": lambda places, _: "US$" + _first(places, _),
    "ship": lambda places, _: " ".join(places[:2]),
}


def expand(content):
  """Returns what a template shows in running text; "" for most.

  Args:
    content: str, what stands between the braces, inner templates and links
      already replaced by what they show.
  """
  name, _, rest = content.partition("|")
  name = " ".join(name.replace("_", " ").split()).lower()
  if name in _FIXED:
    return _FIXED[name]
  if name.startswith("formatnum:"):
    return name[len("formatnum:"):]
  if not rest:
    return ""
  function = _FUNCTIONS.get(name)
  is_language = name.startswith("lang-")
  is_ship = name in _SHIPS
  if not (function or is_language or is_ship or name in _FIRST
          or name in _SECOND or name in _LAST):
    return ""
  places, named = _arguments(rest.split("|"))
  if function:
    return function(places, named)
  if name in _SECOND:
    return (places[1:2] or [named.get("text", "")])[0]
  if name in _LAST:
    return (places[-1:] or [""])[0]
  if is_ship:
    return " ".join([_SHIPS[name]] + places[:1])
  return _first(places, named) or named.get("text", named.get("quote", ""))
