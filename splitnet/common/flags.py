"""Reads command lines: types know their range, mistakes are told in one sentence."""

import argparse
import dataclasses
import difflib
import functools
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

from splitnet.common.errors import UserError, run_program


@dataclasses.dataclass(frozen=True)
class Type:
  """Says what a flag's value may be."""

  metavar: str  # stands for the value in the help
  parse: Callable[[str], Any]  # from text to value; ValueError if it is none
  must_be: str  # the end of the sentence that refuses another value
  accepts: Callable[[Any], bool] = lambda value: True  # whether a value is in range

  def __call__(self, text):
    """Parses as argparse wants it of a `type`."""
    try:
      value = self.parse(text)
      if self.accepts(value):
        return value
    except ValueError:
      pass
    raise argparse.ArgumentTypeError(f"it is '{text}'; it must be {self.must_be}")


def integer(low=None, high=None):
  """Returns the type of whole numbers from `low` to `high`, if given."""
  what = 'a whole number'
  if low is not None:
    what += f', at least {low}' if high is None else f', from {low} to {high}'
  return Type('INT', int, what, lambda v: (low is None or v >= low) and (high is None or v <= high))


def number(interval='(-inf, inf)'):
  """Returns the type of the numbers in an interval, such as '[0, 1)' without the 1."""
  low, high = (float(end) for end in interval[1:-1].split(','))

  def inside(value):  # not a number is in none
    above = value >= low if interval[0] == '[' else value > low
    return above and (value <= high if interval[-1] == ']' else value < high)

  what = f'a number in {interval}'
  if high == float('inf'):
    what = 'a number' if low == -high else f'a number, {"at least" if interval[0] == "[" else "above"} {low:g}'
  return Type('FLOAT', float, what, inside)


def one_of(*choices, file=None):
  """Returns the type of texts that are one of some choices, or name a file that ends as `file` says."""
  shown = (*choices, f'MODEL{file}') if file else choices
  return Type(f'{{{",".join(shown)}}}', str, ' or '.join(filter(None, [', '.join(shown[:-1]), shown[-1]])),
              lambda text: text in choices or bool(file and text.endswith(file)))  # fmt: skip


def some_of(*choices):
  """Returns the type of lists of choices, separated by commas."""
  return Type('NAME,...', _separated, f'some of {", ".join(choices)}, separated by commas',
              lambda names: names and set(names) <= set(choices))  # fmt: skip


def integers(low, high):
  """Returns the type of lists of whole numbers in a range, separated by commas."""
  return Type('INT,...', lambda text: [int(part) for part in _separated(text)],
              f'whole numbers from {low} to {high}, separated by commas',
              lambda values: values and all(low <= value <= high for value in values))  # fmt: skip


def _separated(text):
  return list(dict.fromkeys(part.strip() for part in text.split(',') if part.strip()))


def _truth(text):
  for value, texts in ((True, ('true', '1', 'yes')), (False, ('false', '0', 'no'))):
    if text.lower() in texts:
      return value
  raise ValueError(text)


# The released scripts write --bn_no_scale True.
boolean = Type('BOOLEAN', _truth, 'True or False')
automatic = Type('{True,False,auto}', lambda text: 'auto' if text.lower() == 'auto' else _truth(text),
                 'True, False or auto')  # fmt: skip


def parse_epochs(text):
  """Returns the rising epochs that a text separates by commas, or raises ValueError."""
  return _rising(text, float('inf'))


def parse_shares(text):
  """Returns the rising shares, below 1, that a text separates by commas; 5/12 is one."""
  return _rising(text, 1)


def _number(text):
  above, bar, below = text.partition('/')
  try:
    return float(above) / float(below) if bar else float(above)
  except ZeroDivisionError as e:
    raise ValueError(text) from e


def _rising(text, limit):
  values = [_number(part) for part in text.split(',') if part.strip()]
  if not all(0 < value < limit for value in values) or values != sorted(values):
    raise ValueError(text)
  return values


def _parses(parse, text):
  try:
    return parse(text) is not None
  except ValueError:
    return False


# These stay texts.
epochs = Type('EPOCHS', str, 'rising epochs separated by commas, such as 100,140',
              functools.partial(_parses, parse_epochs))  # fmt: skip
shares = Type('SHARES', str, 'rising shares of the run, above 0 and below 1, separated by commas, such as 0.6,0.85',
              functools.partial(_parses, parse_shares))  # fmt: skip


class _Instead(argparse.Action):
  """Stores a value, and takes back that of another flag, which says the same otherwise."""

  def __init__(self, *arguments, other, **keywords):
    super().__init__(*arguments, **keywords)
    self._other = other

  def __call__(self, parser, namespace, values, option_string=None):
    setattr(namespace, self.dest, values)
    setattr(namespace, self._other, parser.get_default(self._other))


def instead_of(other):
  """Returns the action of a flag that another one stands beside: the last one given counts."""
  return functools.partial(_Instead, other=other)


class Parser(argparse.ArgumentParser):
  """Parses flags; its errors are the one sentence, without the whole usage above it."""

  def __init__(self, description, **keywords):
    given = {'formatter_class': argparse.RawDescriptionHelpFormatter, 'allow_abbrev': False, **keywords}
    super().__init__(description=description, **given)

  def error(self, message):
    message = re.sub('^argument [^:]*: (?=--)', '', message)
    self.exit(2, f'{self.prog}: {message} (see --help)\n')

  def parse_args(self, args=None, namespace=None):
    """Parses the arguments; an unknown flag gets a suggestion."""
    flags, unknown = self.parse_known_args(args, namespace)
    for argument in unknown:
      near = difflib.get_close_matches(argument.partition('=')[0], self._option_string_actions, 1)
      meant = f'; did you mean {near[0]}?' if near else ''
      self.error(f"there is no flag {argument}{meant}" if argument.startswith('-') else f"'{argument}' is no flag")
    return flags


def answer_early(name, make_parser, more=False):
  """Answers --help and mistakes on the command line, and ends the program then.

  A program that is started calls it before it imports TensorFlow, which takes seconds. With `more` there may be flags
  that the parser does not know. Ctrl-C ends the program at once from here to its beginning: there is nothing to keep.
  """
  parser = make_parser()
  if code := run_program(name, parser.parse_known_args if more else parser.parse_args):
    sys.exit(code)
  if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def add(section, name, type_, default, text, **keywords):
  """Adds the flag --name to a parser or a section of it.

  A value out of range is a UserError; a text that is no such value at all ends the program as argparse does.

  Args:
    type_: a Type, or int, float or str.
    default: None if something else decides, which the help then says in brackets.
    text: the help; the default is put behind it.
    **keywords: of add_argument.
  """
  if not isinstance(type_, Type):
    what = {int: 'a whole number', float: 'a number'}.get(type_, 'a text')
    type_ = Type(type_.__name__.upper(), type_, what)

  def parse(given):
    sentence = f"--{name} is '{given}'; it must be {type_.must_be}"
    try:
      value = type_.parse(given)
    except ValueError as e:
      raise argparse.ArgumentTypeError(sentence) from e
    if not type_.accepts(value):
      raise UserError(sentence)
    return value

  if default is not None and not text.endswith(']'):
    text += ' [%(default)s]'
  section.add_argument(f'--{name}', type=parse, default=default, metavar=type_.metavar, help=text, **keywords)


def switch(section, name, text, **keywords):
  """Adds the flag --name, which is given or not."""
  section.add_argument(f'--{name}', action='store_true', help=text, **keywords)


def take(kind, values, **more):
  """Makes a dataclass of the values of its fields' names; None means the default."""
  chosen = {**values, **more}
  names = [field.name for field in dataclasses.fields(kind)]
  return kind(**{name: chosen[name] for name in names if chosen.get(name) is not None})
