"""timing.py: what is timed is timed in interleaved rounds."""

import pytest

from splitnet.reporting import timing


def test_rounds_are_interleaved(capsys):
  order = []
  timers = {name: lambda name=name: order.append(name) or float(len(order)) for name in 'abc'}
  rounds = timing.interleaved(timers, 3, timing.show_seconds)
  copies = [{name: list(seconds) for name, seconds in results.items()} for results in rounds]
  assert ''.join(order) == 'abcabcabc'
  assert copies[0] == {'a': [1], 'b': [2], 'c': [3]}
  assert copies[-1] == {'a': [1, 4, 7], 'b': [2, 5, 8], 'c': [3, 6, 9]}
  captured = capsys.readouterr()
  assert captured.out == '' and captured.err.splitlines()[-1] == 'repeat 3 of 3: c 9.000 s'


def test_nothing_is_shown_unless_asked_for(capsys):
  assert list(timing.interleaved({'a': lambda: 1.0}, 2)) == [{'a': [1.0, 1.0]}] * 2
  assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize('values, expected', [([], None), ([3], 3), ([5, 1, 2], 2), ([4, 1, 2, 3], 2.5)])
def test_the_median_is_the_middle(values, expected):
  assert timing.median(values) == expected


def test_items_are_numbered_with_the_time_that_is_left():
  times = iter([0, 30, 60, 120])
  texts = [text for text, _ in timing.numbered('abcd', lambda: next(times))]
  assert texts == ['1 of 4', '2 of 4, about 2 min left', '3 of 4, about 60 s left', '4 of 4, about 40 s left']
  assert [item for _, item in timing.numbered('ab')] == ['a', 'b']
