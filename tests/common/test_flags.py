"""common/flags.py: what each type takes and refuses, in which words, and settings objects made of flags."""

import dataclasses
import signal

import pytest

from splitnet.common import errors, flags
from splitnet.common.errors import UserError

TAKEN = [
  (flags.integer(), '-3', -3), (flags.integer(1), '1', 1), (flags.integer(0, 9), '9', 9), (int, '7', 7),
  (flags.number('[0, 1)'), '0', 0.0), (flags.number('(0, 1]'), '1', 1.0), (flags.number(), '-2.5', -2.5),
  (flags.one_of('a', 'b'), 'b', 'b'), (flags.boolean, 'TRUE', True), (flags.boolean, 'no', False),
  (flags.automatic, 'auto', 'auto'), (flags.automatic, 'False', False), (flags.epochs, '100,140.5', '100,140.5'),
  (flags.epochs, '', ''), (flags.shares, '5/12,0.75', '5/12,0.75'), (flags.shares, '', ''), (str, 'x', 'x'),
]  # fmt: skip
# A value out of range is a mistake of the user's as any other; a text that is no such value ends as argparse does.
REFUSED = [
  (flags.integer(1), '0', 1, 'a whole number, at least 1'), (flags.integer(0, 9), '10', 1, 'from 0 to 9'),
  (flags.integer(1), '1.5', 2, 'a whole number, at least 1'), (int, 'x', 2, 'a whole number'),
  (flags.number('[0, 1)'), '1', 1, 'a number in [0, 1)'), (flags.number('(0, 1]'), '0', 1, 'a number in (0, 1]'),
  (flags.number('[0, inf)'), 'nan', 1, 'a number, at least 0'), (flags.number('(0, inf)'), '0', 1, 'above 0'),
  (flags.number('[0, inf)'), 'inf', 1, 'at least 0'), (flags.number(), 'x', 2, 'a number'),
  (flags.one_of('a', 'b', 'c'), 'd', 1, 'a, b or c'), (flags.boolean, 'maybe', 2, 'True or False'),
  (flags.automatic, 'maybe', 2, 'True, False or auto'), (flags.epochs, '140,100', 1, 'such as 100,140'),
  (flags.epochs, '1;2', 1, 'rising epochs'), (flags.epochs, '3,inf', 1, 'rising epochs'),
  (flags.shares, '0.5,1', 1, 'below 1'), (flags.shares, '1/0', 1, 'rising shares'), (flags.shares, '0', 1, 'above 0'),
]  # fmt: skip


def parser_of(type_, default=None, text='what it is'):
  parser = flags.Parser('What the program does.')
  flags.add(parser, 'flag', type_, default, text)
  return parser


@pytest.mark.parametrize('type_, text, value', TAKEN)
def test_what_a_type_takes(type_, text, value):
  assert parser_of(type_).parse_args([f'--flag={text}']).flag == value


@pytest.mark.parametrize('type_, text, code, words', REFUSED)
def test_what_a_type_refuses_is_told_in_one_sentence(type_, text, code, words, capsys):
  with pytest.raises(UserError if code == 1 else SystemExit) as error:
    parser_of(type_).parse_args([f'--flag={text}'])
  said = str(error.value) if code == 1 else capsys.readouterr().err
  assert f"--flag is '{text}'; it must be " in said and words in said
  assert said.count('\n') == code - 1 and (code == 1 or error.value.code == 2)


def test_the_help_shows_choices_and_the_default():
  shown = parser_of(flags.one_of('step', 'cosine'), 'step').format_help()
  assert '--flag {step,cosine}' in shown and 'what it is [step]' in shown
  assert 'what it is [all]' in parser_of(int, 0, 'what it is [all]').format_help()


def test_settings_are_taken_by_name_and_none_leaves_the_default():
  @dataclasses.dataclass(frozen=True)
  class Settings:
    speed: float
    name: str = 'none'
    count: int = 3

  values = {'speed': 0.5, 'name': None, 'count': 0, 'another': 1}
  assert flags.take(Settings, values) == Settings(0.5, 'none', 0)
  assert flags.take(Settings, values, name='mine', speed=2.0) == Settings(2.0, 'mine', 0)


# --- suggestions, flags that say the same, answers before TensorFlow ------------------------------------------------


@pytest.mark.parametrize('given, sentence', [
  (['--batchsize', '3'], 'there is no flag --batchsize; did you mean --batch_size?'),
  (['--batch-size=3'], 'there is no flag --batch-size=3; did you mean --batch_size?'),
  (['--nonsense'], 'there is no flag --nonsense (see'), (['3'], "'3' is no flag"),
])  # fmt: skip
def test_an_unknown_flag_gets_a_suggestion(capsys, given, sentence):
  parser = flags.Parser('What the program does.', prog='program.py')
  flags.add(parser, 'batch_size', flags.integer(1), 1, 'images')
  with pytest.raises(SystemExit) as e:
    parser.parse_args(given)
  error = capsys.readouterr().err
  assert e.value.code == 2 and error.startswith(f'program.py: {sentence}') and error.count('\n') == 1


def test_of_two_flags_that_say_the_same_the_last_one_counts():
  parser = flags.Parser('What the program does.')
  flags.add(parser, 'epochs', flags.number(), None, 'so long', action=flags.instead_of('steps'))
  flags.add(parser, 'steps', flags.integer(), 7, 'or so', action=flags.instead_of('epochs'))
  for given, expected in [([], (None, 7)), (['--epochs', '2', '--steps', '3'], (None, 3)),
                          (['--steps', '3', '--epochs', '2'], (2, 7))]:  # fmt: skip
    parsed = parser.parse_args(given)
    assert (parsed.epochs, parsed.steps) == expected


def test_help_and_mistakes_are_answered_early(capsys, monkeypatch):
  def answer(*arguments):
    monkeypatch.setattr('sys.argv', ['program.py', *arguments])
    flags.answer_early('program.py', lambda: parser_of(flags.integer(1), 1))

  answer('--flag', '3')  # goes on; until the program begins, an interrupt ends it without a traceback
  assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
  assert errors.run_program('program.py', lambda: None) == 0
  assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
  for arguments, code in ((['--help'], 0), (['--flg', '3'], 2), (['--flag', '0'], 1)):
    with pytest.raises(SystemExit) as e:
      answer(*arguments)
    assert e.value.code == code
  assert capsys.readouterr().err.count('\n') == 2
