"""GLUE's paraphrases (MRPC): train, dev and test files from three parts."""

import os

from data.download import outcome
from utils import files

PARTS = ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt",
         "mrpc_dev_ids.tsv")
MADE = ("train.tsv", "dev.tsv", "test.tsv")


def _rows(path):
  """Returns the header line of a part and its rows of five columns."""
  with open(path, encoding="utf-8") as stream:
    header = stream.readline()
    rows = [line.strip().split("\t") for line in stream]
  for number, row in enumerate(rows, 2):
    if len(row) != 5:
      raise outcome.Failed("%s line %d has %d columns, not 5"
                           % (path, number, len(row)))
  return header, rows


def _write(path, header, rows):
  with files.atomic_write(path) as stream:
    stream.write(header)
    for row in rows:
      stream.write("\t".join(row) + "\n")


def split_mrpc(folder):
  """Makes MRPC's train.tsv, dev.tsv and test.tsv as GLUE's own script does.

  Args:
    folder: where the three parts are.

  Raises:
    Failed: if one of them is not of its form.
  """
  train, test, ids = (os.path.join(folder, name) for name in PARTS)
  try:
    with open(ids, encoding="utf-8-sig") as stream:
      dev_ids = {tuple(line.strip().split("\t")) for line in stream}
    header, rows = _rows(train)
    test_rows = _rows(test)[1]
  except UnicodeDecodeError as error:
    raise outcome.Failed("a part of MRPC is not UTF-8 (%s)" % error)
  is_dev = lambda row: (row[1], row[2]) in dev_ids
  _write(os.path.join(folder, "train.tsv"), header,
         [row for row in rows if not is_dev(row)])
  _write(os.path.join(folder, "dev.tsv"), header,
         [row for row in rows if is_dev(row)])
  _write(os.path.join(folder, "test.tsv"),
         "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n",
         [[str(number)] + row[1:] for number, row in enumerate(test_rows)])
