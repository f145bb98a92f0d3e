"""Writes tables as text, Markdown or CSV; a table is a header and rows, all of them lists of text."""

import csv
import io
import statistics


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


def of_dicts(columns, lines):
  """Makes a table of dicts: (header, rows) of text.

  Args:
    columns: dict from a heading to (key, how the value is written), of a text ''; what a line lacks stays empty.
    lines: the dicts, one per row.
  """
  return list(columns), [[number_text(line.get(key), form) for key, form in columns.values()] for line in lines]


def number_text(value, form):
  """Returns a number as text; '' for None."""
  return '' if value is None else format(value, form)


def mean_text(values, form):
  """Returns mean ± deviation of the sample; one number alone; '' if one is missing."""
  if not values or None in values:
    return ''
  mean = format(statistics.fmean(values), form)
  return f'{mean} ± {statistics.stdev(values):{form}}' if len(values) > 1 else mean
