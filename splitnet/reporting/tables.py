"""Writes tables as text: Markdown or CSV.

A table is a header and rows, all of them lists of text.
"""

import csv
import io


def markdown(header, rows):
  """Returns a table in Markdown, its columns aligned, ending with a line break."""
  widths = [max(map(len, column)) for column in zip(header, *rows)]
  lines = [[text.ljust(width) for text, width in zip(row, widths)] for row in (header, *rows)]
  lines.insert(1, ['-' * width for width in widths])
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def csv_text(header, rows):
  """Returns a table as comma-separated values, one line per row."""
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows([header, *rows])
  return text.getvalue()
