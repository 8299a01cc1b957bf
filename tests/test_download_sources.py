"""Downloads by source, from a local mirror, and the command as a whole."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from data.download import __main__ as program
from data.download import books
from data.download import get
from data.download import glue
from data.download import outcome
from data.download import plan
from data.download import sources
from download_server import Behaviour
from download_server import BODY
from download_server import client
from download_server import finished
from download_server import item
from download_server import names
from download_server import ROOT
from download_server import run
from download_server import server  # pylint: disable=unused-import
from download_server import sha1
from download_server import Sleep
from download_server import zipped
from utils.errors import UserError


# --- the catalogue -----------------------------------------------------------


def test_the_catalogue_is_what_was_published(shared_data):
  """Each URL and hash of SOURCES.tsv, and no hash beside them."""
  catalogue = sources.Catalogue()
  everything = {i.url: i for what in catalogue.names
                for i in catalogue.items(what)}
  used = set()
  lines = (shared_data / "SOURCES.tsv").read_text().splitlines()[1:]
  for name, url, file_name, kind, digest in (l.split("\t") for l in lines):
    if name in ("wiki", "books"):
      continue
    wanted = everything[url]
    if kind == "-":
      assert not wanted.digest and not wanted.members
      continue
    digest = "%s:%s" % (kind, digest)
    used.add(digest)
    assert digest == (wanted.digest or wanted.members[file_name]), url
  for wanted in everything.values():
    assert {d for d in list(wanted.members.values()) + [wanted.digest] if d} \
        <= used


def test_places():
  """As the launchers look for them."""
  catalogue = sources.Catalogue(wiki_date="20260301")
  paths = [i.path for what in catalogue.names for i in catalogue.items(what)]
  for path in ("squad/v1.1/train-v1.1.json", "squad/v2.0/dev-v2.0.json",
               "squad/v1.1/evaluate-v1.1.py", "squad/v2.0/evaluate-v2.0.py",
               "pretrained_models_google/uncased_L-24_H-1024_A-16",
               "pretrained_models_google/uncased_L-12_H-768_A-12",
               "nltk_data/tokenizers/punkt", "glue/CoLA",
               "pretrained_models_nvidia/bert_tf_ckpt_large_qa_squad2_amp_384",
               "wikipedia_corpus/download/enwiki-20260301-pages-articles-"
               "multistream.xml.bz2"):
    assert path in paths
  dump, = catalogue.items("wiki")
  assert dump.url == ("https://dumps.wikimedia.org/enwiki/20260301/"
                      "enwiki-20260301-pages-articles-multistream.xml.bz2")
  assert dump.sums == ("sha1", "https://dumps.wikimedia.org/enwiki/20260301/"
                       "enwiki-20260301-sha1sums.txt")
  assert len(paths) == len(set(paths)) == 31


def test_mirrors(tmp_path, monkeypatch):
  monkeypatch.setenv("BERT_MIRROR_SQUAD", "http://a/squad/")
  monkeypatch.setenv("BERT_MIRROR_WIKI", "http://a/wiki")
  lines = tmp_path / "mirrors"
  lines.write_text("# ours\n\nsquad = http://b/s\nngc=http://b/n/\n")
  catalogue = sources.Catalogue(str(lines), "20260301")
  assert {i.url for i in catalogue.items("squad")} == {
      "http://b/s/" + name for name in (
          "train-v1.1.json", "dev-v1.1.json", "train-v2.0.json",
          "dev-v2.0.json", "evaluate-v1.1.py", "evaluate-v2.0.py")}
  dump, = catalogue.items("wiki")
  assert dump.url == ("http://a/wiki/enwiki-20260301-pages-articles-"
                      "multistream.xml.bz2")
  assert dump.sums[1] == "http://a/wiki/enwiki-20260301-sha1sums.txt"
  assert catalogue.items("ngc")[0].url == (
      "http://b/n/bert_tf_ckpt_large_pretraining_amp_lamb.zip")
  assert catalogue.items("weights")[0].url.startswith("https://storage.google")
  for bad in ("squad http://b", "zebra=http://b", "squad=ftp://b", "squad=",
              "squad=http://[b"):
    lines.write_text("# one\n%s\n" % bad)
    with pytest.raises(UserError, match="mirrors line 2: "):
      sources.Catalogue(str(lines))
  monkeypatch.setenv("BERT_MIRROR_SQUAD", "b")
  with pytest.raises(UserError, match="BERT_MIRROR_SQUAD"):
    sources.Catalogue()


# --- wiki --------------------------------------------------------------------


@pytest.fixture
def dump(server, monkeypatch):
  """The item of a dump that the server has."""
  monkeypatch.setenv("BERT_MIRROR_WIKI", server.url)
  wanted, = sources.Catalogue(wiki_date="20260301").items("wiki")
  server.files["/" + wanted.name] = BODY
  server.files["/enwiki-20260301-sha1sums.txt"] = (
      "%s  enwiki-20260301-pages.xml.bz2\n%s  %s\n" % (
          "0" * 40, sha1(BODY)[5:], wanted.name)).encode()
  return wanted


def test_a_dump_is_checked_against_the_list_beside_it(server, tmp_path, dump):
  result = run(dump, tmp_path)
  assert (result.status, result.verified) == ("got", True)
  server.paths()
  result = run(dump, tmp_path)
  assert (result.status, result.verified) == ("had", True)
  assert not server.paths()
  (tmp_path / "wikipedia_corpus/download/.download.json").unlink()
  assert run(dump, tmp_path).status == "had"
  assert server.paths() == ["/enwiki-20260301-sha1sums.txt"]


def test_a_wrong_dump(server, tmp_path, dump):
  server.files["/" + dump.name] = BODY[::-1]
  assert "wrong hash" in run(dump, tmp_path).note
  assert names(tmp_path) == []


@pytest.mark.parametrize("listed", [None, b"0  other\n", b"<html>"])
def test_a_dump_that_is_not_listed_is_not_verified(
    server, tmp_path, dump, listed):
  server.files["/enwiki-20260301-sha1sums.txt"] = listed
  result = run(dump, tmp_path)
  assert (result.status, result.verified) == ("got", False)
  result = run(dump, tmp_path)
  assert (result.status, result.verified) == ("had", False)
  server.files["/enwiki-20260301-sha1sums.txt"] = (
      "%s *%s" % (sha1(BODY)[5:], dump.name)).encode()
  result = run(dump, tmp_path)
  assert (result.status, result.verified) == ("had", True)


def test_a_dump_that_is_gone_and_a_list_that_breaks_off(
    server, tmp_path, dump):
  sums = "/enwiki-20260301-sha1sums.txt"
  server.behaviours[sums] = [Behaviour(send=9), Behaviour()]
  result = run(dump, tmp_path)
  assert (result.status, result.verified) == ("got", True)
  server.behaviours["/" + dump.name] = [Behaviour(status=404)]
  result = run(dump, tmp_path / "elsewhere")
  assert result.status == "skipped" and "; give --wiki_date" in result.note


# --- books -------------------------------------------------------------------


def test_a_list_of_books(server, tmp_path):
  lines = tmp_path / "list"
  lines.write_text("# mine\n%(s)s/a/One%%20book.txt\n\n%(s)s/b/one_book.TXT\n"
                   "%(s)s/a/One%%20book.txt\n%(s)s/..%%2f..%%2fetc\n"
                   "%(s)s/c/two.zip?x=1\n%(s)s/\n" % {"s": server.url})
  items = books.from_list(str(lines), "texts")
  found = [i.path for i in items]
  assert re.match(r"texts/one_book-[0-9a-f]{8}\.txt$", found.pop(1))
  assert found == ["texts/One_book.txt", "texts/etc.txt", "texts/two.txt",
                   "texts/book.txt"]
  assert [i.kind for i in items] == ["file", "file", "file", "text", "file"]
  server.files["/c/two.zip"] = zipped({"two.txt": BODY, "readme.md": b""})
  assert run(items[3], tmp_path).status == "got"
  assert (tmp_path / "texts/two.txt").read_bytes() == BODY
  assert run(items[3], tmp_path).status == "had"
  assert run(items[0], tmp_path).status == "skipped"
  assert names(tmp_path) == ["list", "texts/two.txt"]


@pytest.mark.parametrize("text, expected", [
    ("a/b.txt\n", "list line 1: 'a/b.txt' is not a URL"),
    ("# none\n", "holds no URL"), ("\n\nhttp://a/b\nfile:///etc/passwd\n",
                                   "list line 4"), (b"\xff\xfe", "not UTF-8"),
    (None, "No such file")])
def test_a_wrong_list_of_books(tmp_path, text, expected):
  lines = tmp_path / "list"
  if text is not None:
    lines.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(UserError, match=re.escape(expected)):
    books.from_list(str(lines), "texts")


PAGE = "/robot/harvest?filetypes[]=txt&langs[]=en"
NEXT = "/robot/harvest?offset=9&filetypes[]=txt&langs[]=en"


@pytest.fixture
def gutenberg(server, monkeypatch):
  """The source of books of a small Project Gutenberg."""
  link = '<p><a href="%s/%%s">x</a></p>' % server.url
  page = "<html><body>%s</body></html>"
  server.files[PAGE] = (page % "".join(
      [link % name for name in ("1/12-8.zip", "1/12.zip", "1/12-0.zip",
                                "2/etext.zip", "3/13-h.epub")] +
      ['<p><a href="%s">Next Page</a></p>' % NEXT[7:].replace(
          "&", "&amp;")])).encode()
  server.files[NEXT] = (page % (link % "1/14.zip" + "No more files.")).encode()
  for name in ("1/12-0", "2/etext", "1/14"):
    server.files["/%s.zip" % name] = zipped(
        {name.split("/")[1] + ".txt": name.encode()})
  monkeypatch.setenv("BERT_MIRROR_BOOKS", server.url + "/robot/")
  return sources.Catalogue().sources["books"]


def test_a_harvest_is_slow_and_asks_nothing_twice(server, tmp_path, gutenberg):
  sleep = Sleep()
  (tmp_path / "bookcorpus/download").mkdir(parents=True)
  for expected in (["got"] * 3, ["had"] * 3):
    one = client(sleep=sleep)
    items = books.harvest(one, gutenberg, str(tmp_path), 5)
    results = [get.get(i, str(tmp_path), one) for i in items]
    assert [r.status for r in results] == expected
  assert [i.path for i in items] == [
      "bookcorpus/download/%s.txt" % name for name in ("12", "etext", "14")]
  assert server.paths() == [PAGE, NEXT, "/1/12-0.zip", "/2/etext.zip",
                            "/1/14.zip"]
  assert sleep == [2.0] * 4
  assert (tmp_path / "bookcorpus/download/12.txt").read_bytes() == b"1/12-0"


def test_a_small_harvest_reads_no_second_page(server, tmp_path, gutenberg):
  (tmp_path / "bookcorpus/download").mkdir(parents=True)
  items = books.harvest(client(), gutenberg, str(tmp_path), 1)
  assert [i.name for i in items] == ["12.txt"]
  assert server.paths() == [PAGE]
  assert len(books.harvest(client(), gutenberg, str(tmp_path), 3)) == 3
  assert server.paths() == [NEXT]


def test_a_page_that_is_gone(server, tmp_path, gutenberg):
  del server.files[PAGE]
  done = finished("books", "--backoff=0", env={
      "DATA_DIR": str(tmp_path), "BERT_MIRROR_BOOKS": server.url + "/robot"})
  assert done.returncode == 3
  assert "0 got, 0 had, 1 skipped, 0 failed" in done.stdout


def test_a_second_try_keeps_the_pace():
  options = program._parse(["--backoff=0"])
  found = sources.Catalogue().sources
  assert program._client(found["books"], options).wait_before(1) == 2
  assert program._client(found["squad"], options).wait_before(1) == 0
  mirror = found["books"]._replace(mirror=True)
  assert program._client(mirror, options).wait_before(1) == 0


def test_links_of_a_page():
  text = ('<a name="x">no</a><a href="1/2.zip">1</a><a href="ftp://x/3.zip">'
          '<a href="javascript:void(0)"><a href="harvest?offset=4&amp;a=b">')
  assert books.read_page(text, "http://g/robot/harvest?a=b") == (
      ["http://g/robot/1/2.zip"], "http://g/robot/harvest?offset=4&a=b")
  assert books.read_page("", "http://g/harvest") == ([], None)


# --- glue --------------------------------------------------------------------


def test_paraphrases_as_glue_s_own_script_makes_them(shared_data, tmp_path):
  """The folder of real data holds its input and its output."""
  real = shared_data / "glue/MRPC"
  for name in glue.PARTS:
    shutil.copy(str(real / name.replace("mrpc_dev", "dev")),
                str(tmp_path / name))
  glue.split_mrpc(str(tmp_path))
  for name in ("dev.tsv", "test.tsv"):
    assert (tmp_path / name).read_bytes() == (real / name).read_bytes(), name
  made, theirs = ((folder / "train.tsv").read_bytes().splitlines()
                  for folder in (tmp_path, real))
  # GLUE counts 3,668 examples; the copy at hand lacks one of them.
  assert len(made) == 1 + 3668
  absent, = set(made) - set(theirs)
  made.remove(absent)
  assert made == theirs


PARTS = {
    "msr_paraphrase_train.txt": "Q\t#1\t#2\tA\tB\n1\t10\t11\ta\tb\n"
                                "0\t12\t13\tc\td\n",
    "msr_paraphrase_test.txt": "Q\t#1\t#2\tA\tB\n1\t14\t15\te\tf\n",
    "mrpc_dev_ids.tsv": "#1\t#2\n12\t13\n"}


def test_parts_that_are_wrong(tmp_path):
  for name, content in PARTS.items():
    (tmp_path / name).write_text(content)
  (tmp_path / "msr_paraphrase_test.txt").write_text("h\n1\t2\n")
  with pytest.raises(outcome.Failed, match="test.txt line 2 has 2 columns"):
    glue.split_mrpc(str(tmp_path))
  (tmp_path / "mrpc_dev_ids.tsv").write_bytes(b"\xff")
  with pytest.raises(outcome.Failed, match="not UTF-8"):
    glue.split_mrpc(str(tmp_path))


# --- the command -------------------------------------------------------------


@pytest.fixture
def glue_site(server):
  for name in ("CoLA", "SST-2", "STS-B", "QQP-clean", "MNLI", "QNLIv2", "RTE",
               "WNLI"):
    task = name.split("-clean")[0].split("v2")[0]
    server.files["/%s.zip" % name] = zipped({task + "/train.tsv": name})
  server.files["/AX.tsv"] = b"index\n"
  for name, content in PARTS.items():
    server.files["/" + name] = content.encode()
  return server


def test_the_command_from_end_to_end(glue_site, tmp_path):
  """From a mirror, with a dead link, and then with it mended."""
  gone = glue_site.files.pop("/RTE.zip")
  (tmp_path / "mirrors").write_text("glue=%s\n" % glue_site.url)
  words = ["--mirrors", "mirrors", "glue", "--backoff=0"]
  more = {"cwd": str(tmp_path), "env": {"DATA_DIR": "data"}}
  done = finished(*words, **more)
  assert done.returncode == 3, done.stderr
  assert "12 got, 0 had, 1 skipped, 0 failed" in done.stdout.replace(
      "\n", " ")
  assert re.search(r"^glue +RTE.zip +skipped +- +- +the server answers 404",
                   done.stdout, re.M)
  assert sum("RTE.zip: skipped" in l for l in done.stderr.splitlines()) == 1
  task = tmp_path / "data/glue/MRPC"
  assert (task / "train.tsv").read_text().endswith("1\t10\t11\ta\tb\n")
  assert (task / "dev.tsv").read_text().endswith("0\t12\t13\tc\td\n")
  assert (task / "test.tsv").read_text().endswith("\n0\t14\t15\te\tf\n")
  assert (tmp_path / "data/glue/QQP/train.tsv").read_text() == "QQP-clean"
  glue_site.files["/RTE.zip"] = gone
  glue_site.paths()
  done = finished(*words, **more)
  assert done.returncode == 0, done.stderr
  assert glue_site.paths() == ["/RTE.zip"]
  assert "1 got, 12 had, 0 skipped, 0 failed" in done.stdout
  assert re.search(r"^glue +CoLA.zip +had +4 B +not verified$", done.stdout,
                   re.M)


def test_a_failure_is_status_1(glue_site, tmp_path):
  glue_site.files["/dev-v1.1.json"] = b"{}"
  done = finished("squad", "--data_dir", str(tmp_path), "--backoff=0",
                  env={"BERT_MIRROR_SQUAD": glue_site.url})
  assert done.returncode == 1
  assert "0 got, 0 had, 5 skipped, 1 failed" in done.stdout
  assert "wrong size: the server has 2 bytes" in done.stdout


def test_a_dry_run_uses_no_network(server, tmp_path):
  run(item(server, path="glue/AX/AX.tsv"), tmp_path)
  server.paths()
  env = {"DATA_DIR": str(tmp_path)}
  env.update({"BERT_MIRROR_" + name: server.url for name in (
      "SQUAD WEIGHTS PUNKT GLUE NGC WIKI BOOKS".split())})
  before = names(tmp_path)
  done = finished("--dry_run", env=env)
  assert done.returncode == 0 and not server.paths()
  assert names(tmp_path) == before
  rows = [line.split() for line in done.stdout.splitlines()]
  assert len(rows) == 1 + 31 + 1
  assert rows[2] == ["squad", "dev-v1.1.json", "4.9", "MB", "md5", "no",
                     server.url + "/dev-v1.1.json",
                     str(tmp_path / "squad/v1.1/dev-v1.1.json")]
  assert any(row[1:6] == ["AX.tsv", "unknown", "not", "verified", "yes"]
             for row in rows)
  assert any("harvest" in row[-2] for row in rows if row[0] == "books")
  lines = tmp_path / "list"
  lines.write_text("http://x/one.txt\n")
  done = finished("books", "--dry_run", "--book_list", "list", env=env,
                  cwd=str(tmp_path))
  assert done.stdout.splitlines()[1].split()[-2:] == [
      "http://x/one.txt", str(tmp_path / "bookcorpus/download/one.txt")]


@pytest.mark.parametrize("words, status, expected", [
    (["zebra"], 2, "there is no source 'zebra': choose of squad, weights"),
    (["squad", "--zebra"], 2, "--zebra: no such argument"),
    (["--tries", "0"], 2, "--tries: invalid number (at least 1) value: '0'"),
    (["--wiki_date=2026"], 2, "invalid date (yyyymmdd)"),
    (["--mirrors", "nowhere"], 1, "--mirrors: cannot read nowhere"),
    (["books", "squad", "--book_list=nowhere"], 1, "--book_list: cannot read"),
    (["squad", "--data_dir", "/proc/none"], 1, "--data_dir: cannot write to"),
])
def test_wrong_arguments(tmp_path, monkeypatch, capsys, words, status,
                         expected):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as caught:
    program.main(words)
  out, err = capsys.readouterr()
  assert caught.value.code == status and out == ""
  line, = err.splitlines()
  assert expected in line


def test_a_wrong_stack():
  done = finished("--stack=tf3")
  assert done.returncode == 2 and done.stdout == ""
  assert "has to be tf1 or tf2" in done.stderr


def test_help():
  done = finished("--help")
  assert done.returncode == 0 and done.stderr == ""
  options = set(re.findall(r"add\(\"(--\w+)\"", (
      ROOT / "data/download/__main__.py").read_text()))
  assert len(options) == 9
  for word in sorted(options) + sources.Catalogue().names + ["Exit status"]:
    assert re.search(r"(^|\W)%s\b" % re.escape(word), done.stdout), word


def test_a_package_that_is_missing_is_named(tmp_path):
  (tmp_path / "requests.py").write_text(
      "raise ModuleNotFoundError('no', name='requests')")
  done = finished("squad", "--data_dir", str(tmp_path),
                  env={"PYTHONPATH": str(tmp_path)})
  line, = done.stderr.splitlines()
  assert done.returncode == 1 and "package requests is not installed" in line


def test_any_python_with_the_packages_will_do(tmp_path):
  """Where nothing is set up: the caller's own."""
  done = finished("squad", "--dry_run", "--data_dir", str(tmp_path), env={
      "BERT_PYTHON": "", "BERT_VENV_DIR": str(tmp_path), "BERT_STACK": "",
      "PATH": "%s:%s" % (os.path.dirname(sys.executable), os.environ["PATH"])})
  assert done.returncode == 0, done.stderr
  assert "train-v1.1.json" in done.stdout


def test_no_tensorflow():
  code = ("import sys; import data.download.__main__; "
          "sys.exit('tensorflow' in sys.modules)")
  assert subprocess.call([sys.executable, "-c", code], cwd=str(ROOT)) == 0


def test_the_launcher_is_clean():
  program_ = shutil.which("shellcheck") or os.path.join(
      os.path.dirname(sys.executable), "shellcheck")
  if not os.path.exists(program_):
    pytest.skip("shellcheck is not installed")
  done = subprocess.run([program_, "-x", "scripts/data_download.sh"],
                        cwd=str(ROOT), stdout=subprocess.PIPE,
                        universal_newlines=True)
  assert done.returncode == 0, done.stdout


def test_sizes_in_words():
  assert [outcome.size_text(n) for n in (None, 0, 999, 1000, 4854279, 2e10)] \
      == ["unknown", "0 B", "999 B", "1.0 kB", "4.9 MB", "20.0 GB"]


def test_many_texts_are_one_row_a_result(capsys):
  results = [outcome.Result("books", "%d.txt" % n, "got", 5) for n in range(9)]
  results.append(outcome.Result("books", "x.txt", "failed", note="no"))
  plan.show_results(results)
  out = capsys.readouterr().out
  assert len(out.splitlines()) == 4
  assert re.search(r"^books +9 texts +got +45 B +not verified$", out, re.M)
  assert re.search(r"^books +1 texts +failed +- +- +each has a line", out,
                   re.M)
