"""Running text of Wikipedia dumps: markup, ranges, kills, bad input."""

import argparse
import bz2
import json
import os
import re
import subprocess
import sys
import time
from xml.etree import ElementTree
from xml.sax import saxutils

import processes
import pytest

pytest.importorskip("mwparserfromhell")

# pylint: disable=wrong-import-position
from data import documents
from data import extract_wikipedia
from data import wiki_dump
from data import wiki_markup
from data import wiki_templates
from utils.errors import UserError

LEFT_OVERS = ("{{", "}}", "[[", "]]", "|-", "{|", "|}", "<ref", "==")
HEAD = """<mediawiki xml:lang="en">
  <siteinfo><namespaces>
    <namespace key="0" case="first-letter" />
    <namespace key="6" case="first-letter">Datei</namespace>
    <namespace key="14" case="first-letter">Kategorie</namespace>
  </namespaces></siteinfo>
"""
TAIL = "</mediawiki>\n"


def page(title, text, namespace=0, redirect=False):
  return ("  <page>\n    <title>%s</title>\n    <ns>%d</ns>\n%s"
          "    <revision><text>%s</text></revision>\n  </page>\n"
          % (saxutils.escape(title), namespace,
             '    <redirect title="A" />\n' if redirect else "",
             saxutils.escape(text)))


def many_pages(num=60):
  found = []
  for number in range(num):
    found.append(page("Page %d" % number, "'''Page %d''' is [[a|one]] of %s"
                      "and has 'ünïcode'." % (number, "many words " * number)))
  found.insert(7, page("Old", "#REDIRECT [[New]]", redirect=True))
  found.insert(9, page("Talk:Old", "Some talk goes here.", namespace=1))
  found.insert(11, page("Only a list", "== A ==\n* one\n* two\n"))
  return found


def multistream(parts):
  return b"".join(bz2.compress(part) for part in parts)


def in_pieces(raw, size):
  return [raw[at:at + size] for at in range(0, len(raw), size)]


def dumps(folder):
  """Returns {name: path} of one dump, packed in all ways."""
  found = many_pages()
  xml = (HEAD + "".join(found) + TAIL).encode("utf-8")
  groups = ["".join(found[at:at + 7]) for at in range(0, len(found), 7)]
  packed = {
      "plain.xml": xml,
      "single.xml.bz2": bz2.compress(xml),
      "multi.xml.bz2": multistream(
          [part.encode("utf-8") for part in [HEAD] + groups + [TAIL]]),
      # As pbzip2 does: streams end anywhere, within tags and characters.
      "cut.xml.bz2": multistream(in_pieces(xml, 997)),
      "fine.xml.bz2": multistream(in_pieces(xml, 61))}
  for name, raw in packed.items():
    (folder / name).write_bytes(raw)
  return {name: str(folder / name) for name in packed}


def run(*arguments, **kwargs):
  return subprocess.run(
      [sys.executable, "data/extract_wikipedia.py"] + list(arguments),
      cwd=str(documents_root()), stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT, universal_newlines=True, timeout=100,
      env=clean_environment(), **kwargs)


def documents_root():
  return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def clean_environment():
  return {name: value for name, value in os.environ.items()
          if not name.startswith(("SLURM_", "OMPI_", "PMI_"))}


def text_of(folder, name="wikipedia"):
  names = sorted(n for n in os.listdir(str(folder))
                 if re.fullmatch(name + r"-\d{5}\.txt", n))
  return b"".join((folder / n).read_bytes() for n in names)


def plain(text, dropped=("datei", "kategorie")):
  return wiki_markup.paragraphs(text, set(dropped))[0]


# -- markup


@pytest.mark.parametrize("markup, text", [
    ("'''Bold''' and ''italic'' words end.", "Bold and italic words end."),
    ("The ''Time'''s cover is '''not''' red.",
     "The Time's cover is not red."),
    ("A [[link]], a [[target|label]] and [[:Category:X|shown]] stand here.",
     "A link, a label and shown stand here."),
    ("Text.[[File:A.jpg|thumb|A [[nested|inner]] {{caption}}]] More text.",
     "Text. More text."),
    ("Text.[[Datei:A.jpg|mini|x]][[Kategorie:Y]][[fr:Texte]][[Category:Z]]",
     "Text."),
    ("It is {{convert|10|km|mi}} away, {{convert|3|to|4|km2|sqmi}} large.",
     "It is 10 km away, 3 to 4 km² large."),
    ("The {{lang|fr|[[mot]] juste}} ({{IPAc-en|m|o}}; {{circa|1900}}).",
     "The mot juste (c. 1900)."),
    ("A word ( {{IPA-xx|a}}, {{foo}} ; ) stands here.",
     "A word stands here."),
    ("{{Infobox\n| a = {{b|{{c}}}}\n| d = [[e]]\n}}\nText begins here.",
     "Text begins here."),
    ("Text.<ref name=a>{{cite|x}}</ref><ref name=\"b\" /> More<!-- no --> of "
     "it.<ref>y", "Text. More of it.y"),
    ("Energy is 10<sup>6</sup> of H<sub>2</sub>O on the 4<sup>th</sup>.",
     "Energy is 10⁶ of H2O on the 4th."),
    ("An [http://a.org/b external link], [http://c.org] and&nbsp;more &amp; "
     "more.", "An external link, and more & more."),
    ("Write <nowiki>[[x]] ''y''</nowiki> so.", "Write x ''y'' so."),
    ("One<br />two.<math>x^{{2}}</math> __NOTOC__ Three.",
     "One two. Three."),
    ("Line one\nline two of it.", "Line one line two of it."),
    ("A stray }} and {{ brace and ]] bracket [[ here.",
     "A stray and brace and bracket here."),
    ("In U+2028 \u2028 and \u0085 lines end.", "In U+2028 and lines end."),
])
def test_one_paragraph(markup, text):
  assert plain(markup) == [text]


@pytest.mark.parametrize("markup", [
    "== Heading ==\n", "=Top=\n", "* item\n** item\n", "# item\n",
    "; term : definition\n", ": indented\n", "----\n",
    "{| class=x\n! a\n|-\n| b || {{c}}\n{|\n| inner\n|}\n|}\n",
    "{| class=unclosed\n|-\n| cell || cell\n", "| rest of a table\n|}\n",
    "<gallery>\nFile:A.jpg|A caption here.\n</gallery>",
    "<table><tr><td>A cell.<table><tr><td>B.</td></tr></table></td></tr>"
    "</table>", "<ul><li>One item.</li><li>Another item.</li></ul>",
    "{{unclosed template\n| a = b\n", "<syntaxhighlight>x = [[1]]\n\n"
    "y</syntaxhighlight>", "A label", "There are:\n* one\n",
])
def test_no_running_text(markup):
  text = plain("Before it.\n\n%s\n\nAfter it." % markup)
  assert text == ["Before it.", "After it."]


def test_a_page_of_labels_keeps_them():
  assert plain("'''Short''' article") == ["Short article"]


def test_lines_of_its_own_are_paragraphs():
  text = plain("One.\n\nTwo.\n== H ==\nThree.<blockquote>Four.</blockquote>")
  assert text == ["One.", "Two.", "Three.", "Four."]


@pytest.mark.parametrize("template, shown", [
    ("convert|5|ft|11|in", "5 ft 11 in"), ("convert|−27|C|F", "−27 °C"),
    ("val|1.5|e=-6|ul=m", "1.5×10⁻⁶ m"), ("frac|3|1|2", "3 1/2"),
    ("As of|2014|6", "As of June 2014"), ("as of|2011|lc=y", "as of 2011"),
    ("nowrap|a b", "a b"), ("Lang-de|Wort", "Wort"), ("snd", " – "),
    ("USS|Enterprise|CVN-6", "USS Enterprise"), ("formatnum:1,000", "1,000"),
    ("quote|text=Said.|by", "by"), ("quote|1=Said. a=b|by", "Said. a=b"),
    ("transl|ar|DIN|kitab", "kitab"), ("sfn|Davis|2000", ""), ("cite web", ""),
    ("convert", ""), ("lang|fr", ""), ("music|flat", "♭"),
    ("chem|H|2|O", "H2O"),
])
def test_templates(template, shown):
  assert wiki_templates.expand(template) == shown


@pytest.mark.parametrize("text", [
    "{{" * 20000, "[[" * 20000, "{|\n" * 20000, "<ref>" * 20000,
    "[[a|" * 10000 + "]]" * 10000, "{{a|" * 10000 + "}}" * 10000,
    "<!--" * 20000, "'" * 50000, "''a'''b" * 8000, "(" * 30000 + ")" * 30000,
    "[http://a " * 8000, "<b <i " * 10000, "{{{" * 9000 + "}}}" * 9000,
    "&amp;" * 20000, "== a " * 20000, "<span>" * 9000 + "x" + "</span>" * 9000,
], ids=lambda text: text[:9])
def test_hostile_pages_take_linear_time(text):
  started = time.process_time()
  plain("Text before. " + text + " Text after.")
  assert time.process_time() - started < 5


def test_parser_failure_is_no_failure(monkeypatch):
  def fail(*unused, **unused_too):
    raise ValueError("parser")

  monkeypatch.setattr(wiki_markup.mwparserfromhell, "parse", fail)
  text = "An [http://a.org external link] of a page."
  assert wiki_markup.paragraphs(text, set()) == (
      ["An external link of a page."], 1)


def test_dense_paragraphs_do_without_the_parser(monkeypatch):
  monkeypatch.setattr(wiki_markup.mwparserfromhell, "parse", None)
  text = "Words [http://a.org link] here. " * 300
  paragraphs, fallbacks = wiki_markup.paragraphs(text, set())
  assert paragraphs == [("Words link here. " * 300).strip()]
  assert fallbacks == 1


# -- ranges of a dump


def test_all_ranges_give_the_same_pages(tmp_path):
  """Whatever the packing, and wherever ranges begin."""
  found = dumps(tmp_path)
  titles = re.findall("<title>(.*)</title>", "".join(many_pages()))
  for name, path in found.items():
    size = os.path.getsize(path)
    sizes = [size, size // 2 + 1, 333, 100] + ([17] if "fine" in name else [])
    for piece_bytes in sizes:
      pages = [p for first, end in wiki_dump.ranges(path, piece_bytes)
               for p in wiki_dump.pages(path, first, end)]
      assert [p.title for p in pages] == titles, (name, piece_bytes)


def test_every_boundary(tmp_path):
  """Two ranges with the border at each byte of a small plain dump."""
  xml = HEAD + page("A", "Text of a.") + page("B", "Text of b.") + TAIL
  path = tmp_path / "a.xml"
  path.write_text(xml, encoding="utf-8")
  for border in range(1, len(xml)):
    pages = [p.title for first, end in ((0, border), (border, len(xml)))
             for p in wiki_dump.pages(str(path), first, end)]
    assert pages == ["A", "B"], border


def test_single_stream_is_one_piece(tmp_path):
  found = dumps(tmp_path)
  assert len(wiki_dump.ranges(found["single.xml.bz2"], 100)) == 1
  assert len(wiki_dump.ranges(found["multi.xml.bz2"], 100)) > 5


def test_namespaces_in_the_dumps_language(tmp_path):
  for path in dumps(tmp_path).values():
    assert wiki_dump.namespace_names(path) == {6: "Datei", 14: "Kategorie"}


# -- the program


def extract(path, out, **flags):
  """Runs the stage in this process; its workers are processes, as always."""
  options = dict(input=path, output_dir=str(out), name="wikipedia",
                 piece_bytes=400, num_workers=1, shard_index=0, num_shards=1,
                 wait_minutes=0)
  options.update(flags)
  return extract_wikipedia.extract(argparse.Namespace(**options))


def test_same_bytes_however_it_is_done(tmp_path):
  path = dumps(tmp_path)["multi.xml.bz2"]
  done = run("--input", path, "--output_dir", str(tmp_path / "whole"))
  assert done.returncode == 0, done.stdout
  expected = text_of(tmp_path / "whole")
  lines = expected.decode("utf-8").split("\n")
  assert len(lines) == 61 and lines[-1] == ""
  assert lines[0] == "Page 0 is one of and has 'ünïcode'."
  for num_workers in (1, 2):
    out = tmp_path / str(num_workers)
    extract(path, out, num_workers=num_workers)
    assert text_of(out) == expected
  assert len(os.listdir(str(tmp_path / "2"))) > 10
  for index in (2, 0):
    with pytest.raises(UserError, match="outputs are still missing"):
      extract(path, tmp_path / "parts", shard_index=index, num_shards=3)
  extract(path, tmp_path / "parts", shard_index=1, num_shards=3)
  for name in os.listdir(str(tmp_path / "parts")):
    assert (tmp_path / "parts" / name).read_bytes() == (
        tmp_path / "1" / name).read_bytes()


def test_a_run_of_commas_takes_no_time():
  """Where a rule looked back at each of them, a page took hours."""
  text = "Rain falls in the north (" + "," * 200000 + ") and in the south."
  start = time.process_time()
  found, _ = wiki_markup.paragraphs(text, set())
  assert time.process_time() - start < 20
  assert found and "," * 10 not in found[0]


def test_counts_and_titles(tmp_path):
  path = dumps(tmp_path)["multi.xml.bz2"]
  done = run("--input", path, "--output_dir", str(tmp_path / "out"), "--name",
             "w")
  record = json.loads(
      (tmp_path / "out" / "w-00000.txt.made.json").read_text("utf-8"))
  counts = record["counts"]
  assert {k: counts[k] for k in ("pages", "redirects", "other_namespaces",
                                 "articles", "empty", "empty_titles")} == {
                                     "pages": 63, "redirects": 1,
                                     "other_namespaces": 1, "articles": 60,
                                     "empty": 1,
                                     "empty_titles": ["Only a list"]}
  assert "no running text in 1 articles: Only a list" in done.stdout
  assert "articles 60" in done.stdout


def test_kept_and_made_anew(tmp_path):
  path = dumps(tmp_path)["multi.xml.bz2"]
  out = tmp_path / "out"
  extract(path, out)
  first = text_of(out)
  before = {n: os.stat(str(out / n)).st_mtime_ns for n in os.listdir(str(out))}
  extract(path, out)
  assert before == {n: os.stat(str(out / n)).st_mtime_ns
                    for n in os.listdir(str(out))}
  # Fewer outputs: those of the earlier division go; other files stay.
  (out / "wikipedia-notes.txt").write_text("mine")
  (out / "wikipedia-00099.txt").write_text("mine, too: it has no record")
  extract(path, out, piece_bytes=1 << 20)
  assert sorted(os.listdir(str(out))) == [
      "wikipedia-00000.txt", "wikipedia-00000.txt.made.json",
      "wikipedia-00099.txt", "wikipedia-notes.txt"]
  assert (out / "wikipedia-00000.txt").read_bytes() == first
  newer = os.stat(path).st_mtime_ns + 10**10
  os.utime(path, ns=(newer, newer))
  made = os.stat(str(out / "wikipedia-00000.txt")).st_ino
  extract(path, out, piece_bytes=1 << 20)
  assert os.stat(str(out / "wikipedia-00000.txt")).st_ino != made


def test_killed_at_any_moment(tmp_path):
  path = dumps(tmp_path)["cut.xml.bz2"]
  flags = ["--input", path, "--piece_bytes", "200", "--num_workers", "2"]
  whole = tmp_path / "whole"
  started = time.time()
  assert run(*flags, "--output_dir", str(whole)).returncode == 0
  lasts = time.time() - started
  out = tmp_path / "out"
  for part in (0.5, 0.7, 0.9):
    process = subprocess.Popen(
        [sys.executable, "data/extract_wikipedia.py"] + flags
        + ["--output_dir", str(out)], cwd=documents_root(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=clean_environment(), start_new_session=True)
    time.sleep(lasts * part)
    processes.kill(process)
  assert run(*flags, "--output_dir", str(out)).returncode == 0
  assert sorted(os.listdir(str(out))) == sorted(os.listdir(str(whole)))
  for name in os.listdir(str(out)):
    assert (out / name).read_bytes() == (whole / name).read_bytes()


def bad_dumps():
  found = many_pages()
  xml = (HEAD + "".join(found) + TAIL).encode("utf-8")
  packed = multistream(in_pieces(xml, 997))
  damaged = bytearray(packed)
  damaged[len(damaged) // 2] ^= 0xFF
  return {
      "empty.xml": (b"", "is empty: download it again"),
      "text.xml": (b"Some text.\n", "is not a MediaWiki dump"),
      "other.xml": (b"<?xml version='1.0'?><rss></rss>",
                    "is not a MediaWiki dump"),
      "zip.xml.bz2": (b"PK\x03\x04" + b"x" * 99, "is not a MediaWiki dump"),
      "text.xml.bz2": (bz2.compress(b"Some text."), "is not a MediaWiki dump"),
      "cut.xml": (xml[:-900], "</mediawiki>, is missing: download it again"),
      "cut.xml.bz2": (packed[:-40], "is cut off: the end of its bzip2 data "
                      "is missing: download it again"),
      "head.xml.bz2": (packed[:30], "is cut off"),
      "short.xml.bz2": (multistream(in_pieces(xml[:-900], 997)),
                        "</mediawiki>, is missing: download it again"),
      "damaged.xml.bz2": (bytes(damaged), "bzip2 cannot read on: download it "
                          "again"),
      "page.xml": (xml.replace(b"</ns>", b"</nsx>", 20),
                   "a page is no valid XML"),
  }


@pytest.mark.parametrize("name", sorted(bad_dumps()))
def test_bad_dumps(tmp_path, name):
  raw, words = bad_dumps()[name]
  path = tmp_path / name
  path.write_bytes(raw)
  with pytest.raises(UserError) as error:
    found = extract_wikipedia.pieces(str(path), str(tmp_path), "w", 400)
    for piece in found:
      extract_wikipedia.make_piece(piece)
  assert words in str(error.value) and str(path) in str(error.value)


def test_whole_outputs_outlast_a_damaged_dump(tmp_path):
  path = tmp_path / "damaged.xml.bz2"
  path.write_bytes(bad_dumps()["damaged.xml.bz2"][0])
  done = run("--input", str(path), "--output_dir", str(tmp_path / "out"),
             "--piece_bytes", "400", "--num_workers", "1")
  assert done.returncode == 1
  last = done.stdout.strip().split("\n")[-1]
  assert last.startswith("ERROR: ") and "download it again" in last
  assert "Traceback" not in done.stdout
  assert text_of(tmp_path / "out").startswith(b"Page 0 is one")


@pytest.mark.parametrize("flags, words", [
    (["--input", "/nowhere/x.xml"], "no file matches /nowhere/x.xml"),
    (["--input", "{folder}"], "no dump (.xml or .xml.bz2) in"),
    (["--input", "{dump}", "--name", "a/b"], "cannot begin the name"),
    (["--input", "{dump}", "--piece_bytes", "0"], "take at least 1"),
    (["--input", "{dump}", "--shard_index", "3", "--num_shards", "3"],
     "does not exist"),
])
def test_bad_flags(tmp_path, flags, words):
  dump = dumps(tmp_path)["plain.xml"]
  empty = tmp_path / "empty"
  empty.mkdir()
  flags = [f.format(folder=str(empty), dump=dump) for f in flags]
  done = run("--output_dir", str(tmp_path / "out"), *flags)
  assert done.returncode == 1
  assert words in done.stdout.strip().split("\n")[-1]


def test_dump_without_articles(tmp_path):
  path = tmp_path / "a.xml"
  path.write_text(HEAD + page("Talk:A", "Text.", namespace=1) + TAIL)
  done = run("--input", str(path), "--output_dir", str(tmp_path / "out"))
  assert done.returncode == 1 and "no article with running text" in done.stdout


# -- real dumps


def independent_articles(path):
  """Returns the titles of non-redirect pages with text in namespace 0."""
  titles = []
  with bz2.open(path) as stream:
    for _, element in ElementTree.iterparse(stream):
      if element.tag.rpartition("}")[2] == "page":
        space = element.tag.rpartition("page")[0]
        text = element.findtext("%srevision/%stext" % (space, space))
        if (element.findtext(space + "ns") == "0" and (text or "").strip()
            and element.find(space + "redirect") is None):
          titles.append(element.findtext(space + "title"))
        element.clear()
  return titles


def test_real_dumps_lose_no_article_and_keep_no_markup(shared_data, tmp_path):
  folder = shared_data / "wiki"
  found = extract_wikipedia.pieces(str(folder), str(tmp_path))
  assert len(found) == 2
  counts = [extract_wikipedia.make_piece(piece) for piece in found]
  titles = [t for piece in found for t in independent_articles(piece.inputs[0])]
  assert len(titles) == sum(c["articles"] + c["empty"] for c in counts) == 111
  empty = [title for c in counts for title in c["empty_titles"]]
  # Two pages of links to pages of that name, and one list.
  assert empty == ["Alien", "Ada", "List of anthropologists"]
  text = text_of(tmp_path).decode("utf-8")
  assert {mark: text.count(mark) for mark in LEFT_OVERS} == dict.fromkeys(
      LEFT_OVERS, 0)
  lines = text.split("\n")[:-1]
  assert len(lines) == 108 and text.splitlines() == lines
  for line in lines:
    for paragraph in documents.paragraphs_of(line):
      assert paragraph == documents.flat(paragraph) != ""
  assert lines[0].startswith("Anarchism is a political philosophy that ")


def test_links_as_the_parser_reads_them(shared_data, tmp_path):
  """The shortcut for links agrees with mwparserfromhell on real text."""
  del tmp_path
  path, = [str(p) for p in (shared_data / "wiki").glob("*shortened.bz2")]
  checked = 0
  for found in wiki_dump.pages(path, 0, os.path.getsize(path)):
    for line in found.text.split("\n"):
      if "[[" in line and not re.search(r"[{}<>:;&*#|=']", line):
        code = wiki_markup.mwparserfromhell.parse(line)
        assert wiki_markup.without_brackets(line, set()) == code.strip_code(
            normalize=False, collapse=False)
        checked += 1
  assert checked > 100
