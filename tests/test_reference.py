"""Tests against recorded outputs of the authors' released code, and of the check itself."""

import os
import subprocess
import sys

import check_reference
import numpy as np
import pytest
import tensorflow as tf
from helpers import PROJECT as ROOT

from splitnet.training import objective

HERE = os.path.dirname(os.path.abspath(__file__))
FILES = [os.path.join(HERE, 'reference', name) for name in ('group_k1_1-2-2.npz', 'group_k1_2-4-4.npz')]


def check(*files):
  """Runs the check as a user would: (exit code, stdout, stderr)."""
  script = os.path.join(HERE, 'check_reference.py')
  done = subprocess.run([sys.executable, script, *map(str, files)], capture_output=True, text=True, cwd=ROOT)
  return done.returncode, done.stdout, done.stderr


def test_this_network_computes_what_the_released_code_computed():
  code, out, err = check(*FILES)
  assert code == 0, out + err
  sections, found, lines = {}, None, out.splitlines()
  for line in lines[:-1]:
    if line.startswith('  '):
      name, difference = line.split()
      found[name] = float(difference)
    else:
      found = sections[line] = {}
  assert list(sections) == FILES
  for path, found in sections.items():
    with np.load(path) as archive:
      names = set(archive.files)
    expected = {n for n in names if not n.startswith('var/')} - {'x', 'y'}
    assert set(found) == expected and len(expected) > 20
    assert max(found.values()) <= 1e-4
  # What the counters print is exact.
  assert all(found[name] == 0 for found in sections.values() for name in ('weights', 'flops'))
  assert lines[-1].startswith('largest: ')


@pytest.mark.slow
def test_a_difference_is_found(tmp_path):
  with np.load(FILES[0]) as archive:
    arrays = {key: archive[key] for key in archive.files}
  arrays['weight_split'][2] *= 1.001  # one layer's term
  arrays['after/group/split_p1/alpha/Momentum'][0, 0] = np.nan  # neither more nor less than any tolerance
  np.savez(tmp_path / 'altered.npz', **arrays)
  code, out, _ = check(tmp_path / 'altered.npz')
  assert code == 1
  wrong = {line.split()[0] for line in out.splitlines() if 'TOO LARGE' in line}
  assert wrong == {'weight_split', 'after/group/split_p1/alpha/Momentum'}


def garbage(folder):
  path = folder / 'garbage.npz'
  path.write_bytes(bytes(range(256)) * 10)
  return path, 'damaged'


def cut(folder):
  path = folder / 'cut.npz'
  with open(FILES[0], 'rb') as f:
    path.write_bytes(f.read(100000))
  return path, 'damaged'


def another(folder):
  path = folder / 'another.npz'
  np.savez(path, x=np.zeros(3))
  return path, "it has no 'y'"


def renamed(folder):
  with np.load(FILES[0]) as archive:
    arrays = {key.replace('var/unit_3_1/conv_2', 'var/unit_3_1/conv_9'): archive[key] for key in archive.files}
  np.savez(folder / 'renamed.npz', **arrays)
  return folder / 'renamed.npz', "no variable 'unit_3_1/conv_9/kernel'"


def a_list(folder):
  np.save(folder / 'list.npy', np.zeros(3))
  return folder / 'list.npy', 'no reference file'


def empty(folder):
  (folder / 'empty.npz').write_bytes(b'')
  return folder / 'empty.npz', 'damaged'


@pytest.mark.parametrize('make', [garbage, cut, another, renamed, a_list, empty])
def test_a_file_that_is_no_reference_is_one_sentence(tmp_path, capsys, make):
  path, words = make(tmp_path)
  assert check_reference.main([str(path)]) == 1
  err = capsys.readouterr().err
  assert len(err.splitlines()) == 1 and err.startswith('check_reference.py: '), err
  assert words in err


def test_a_missing_file_is_one_sentence_and_no_traceback(tmp_path, capsys):
  path = str(tmp_path / 'nowhere.npz')
  assert check_reference.main([path]) == 1
  sentence = f"check_reference.py: '{path}' cannot be read (No such file or directory)\n"
  assert capsys.readouterr() == (path + '\n', sentence)


# --- the optimiser, over more steps than the files record ----------------------------------------------------------


def test_momentum_is_tensorflow_1s():
  """slot = momentum slot + gradient; v -= rate slot: the rate is outside the slot, which shows where it changes."""
  rng = np.random.RandomState(0)
  start = {'a': rng.normal(size=(3, 2)), 'b': rng.normal(size=4)}
  variables = {name: tf.Variable(value, dtype=tf.float32) for name, value in start.items()}
  optimizer = objective.Momentum(variables, 0.9, scales={'b': 10.0})
  values, slots = dict(start), {name: 0.0 * value for name, value in start.items()}
  rate_inside, inside = start['a'], np.zeros((3, 2))
  for rate in (0.1, 0.1, 0.01, 0.01):
    gradients = {name: rng.normal(size=value.shape) for name, value in start.items()}
    optimizer.apply([tf.constant(g, tf.float32) for g in gradients.values()], rate)
    for name, scale in (('a', 1.0), ('b', 10.0)):
      slots[name] = 0.9 * slots[name] + gradients[name]
      values[name] = values[name] - rate * scale * slots[name]
    inside = 0.9 * inside - rate * gradients['a']
    rate_inside = rate_inside + inside
  for name, variable in variables.items():
    np.testing.assert_allclose(variable, values[name], atol=1e-5)
    np.testing.assert_allclose(optimizer.slots[name], slots[name], atol=1e-5)
  assert np.abs(rate_inside - values['a']).max() > 0.01  # Keras's rule would have shown
