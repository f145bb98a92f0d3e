"""tables.py: tables as Markdown and as CSV."""

import csv
import io

from splitnet.reporting import tables

HEADER, ROWS = ['network', 'error'], [['dense', '24.3'], ['split, 2-2-2', '']]


def test_markdown_has_aligned_columns():
  lines = tables.markdown(HEADER, ROWS).splitlines()
  assert lines == [
    '| network      | error |', '| ------------ | ----- |', '| dense        | 24.3  |', '| split, 2-2-2 |       |'
  ]  # fmt: skip
  assert tables.markdown(HEADER, []) == '| network | error |\n| ------- | ----- |\n'


def test_csv_reads_back():
  text = tables.csv_text(HEADER, ROWS)
  assert text.endswith('\n') and '\r' not in text
  assert list(csv.reader(io.StringIO(text))) == [HEADER, *ROWS]
