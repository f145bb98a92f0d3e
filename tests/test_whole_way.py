"""The whole way as a user goes it: the shell scripts, from another folder, and the demo."""

import json
import os
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

PROJECT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..')


def script(name, *arguments, folder, **variables):
  """Runs a script in a folder; returns what it printed. The scripts find this Python where there is no .venv."""
  variables = {'TF_ENABLE_ONEDNN_OPTS': '1', **variables}  # as users have it; check_reference.py turns it off
  path = os.path.dirname(sys.executable) + os.pathsep + os.environ['PATH']
  result = subprocess.run(
    [os.path.join(PROJECT, name), *map(str, arguments)],
    cwd=folder,
    env={**os.environ, 'PATH': path, **variables},
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
  return result.stdout


@pytest.fixture(scope='module')
def workplace(tmp_path_factory):
  """A folder with a small data set, far from the project."""
  folder = tmp_path_factory.mktemp('work place')  # with a space, as users' folders have
  subprocess.run(
    [sys.executable, os.path.join(PROJECT, 'download_cifar100.py'), '--synthetic', '--images_per_class', '4',
     '--data_dir', 'data'],
    cwd=folder, check=True, capture_output=True,
  )  # fmt: skip
  return folder


def test_the_four_scripts_in_a_row(workplace):
  few = ['--data_dir', 'data', '--max_steps', 4, '--batch_size', 20, '--display', 2, '--precision', 'float32']
  script('baseline.sh', '--train_dir', 'b', '--k', 1, '--num_residual_units', 1, *few, folder=workplace)
  more = ['--train_dir', 'g', '--basemodel', 'b', '--assignment_start', 'spectral', *few, '--verbose']
  output = script('group.sh', *more, folder=workplace)
  assert re.search(r'^gamma3 +30\.0$', output, re.M), 'the settings of group.sh are printed'
  assert re.search(r'^ngroups3 +2$', output, re.M)
  script('split.sh', '--train_dir', 's', '--basemodel', 'g', *few, folder=workplace)
  output = script(
    'eval.sh', '--data_dir', 'data', '--checkpoint', 's/best', '--output_file', 'out/eval.json', '--batch_size', 20,
    folder=workplace,
  )  # fmt: skip
  result = json.loads((workplace / 'out' / 'eval.json').read_text())
  assert 'split 2-2-2' in output and '%.2f %%' % (100 * result['accuracy']) in output
  assert result['images'] == 100 and len(result['groups']) == 2
  assert sorted(name for group in result['groups'] for name in group) == sorted(result['class_accuracy'])
  dense = json.loads((workplace / 's' / 'config.json').read_text())
  assert dense['network']['k'] == 1 and dense['network']['num_residual_units'] == 1, 'split.sh takes them from g'
  script('eval.sh', '--data_dir', 'data', '--checkpoint', 'b/best', '--batch_size', 20, folder=workplace)
  assert not any(os.path.exists(workplace / name) for name in ('runs', 'cifar100')), 'nothing but what was named'


def test_the_demo_finds_the_planted_superclasses(tmp_path):
  output = script('demo.sh', folder=tmp_path, DEMO_DIR=str(tmp_path))
  rows = {
    m[1]: m for m in re.finditer(r'^(dense|grouped|hardened|fine-tuned) +([\d.]+) % +[\d.]+ % +([\d,]+)', output, re.M)
  }
  assert set(rows) == {'dense', 'grouped', 'hardened', 'fine-tuned'}
  accuracy = {name: float(m[2]) for name, m in rows.items()}
  assert accuracy['fine-tuned'] > 50, 'chance is 1 %'
  assert abs(accuracy['grouped'] - accuracy['hardened']) < 3, 'hardening drops weights that are zero by then'
  parameters = {name: int(m[3].replace(',', '')) for name, m in rows.items()}
  assert parameters['fine-tuned'] == parameters['hardened'] < 0.6 * parameters['dense']
  assert 'agreement with the superclasses: 1.00' in output
  assert sum(map(int, re.findall(r'^group \d: \d+ classes, (\d+) whole superclasses\n  \w', output, re.M))) == 20
  assert output.endswith(' images (test)\n'), 'the table comes last'
  made = re.findall(r'synthetic/[\w.-]+\.(?:png|html)', output)
  assert len(made) == 6 and all(os.path.getsize(tmp_path / path) > 1000 for path in made)
  assert str(tmp_path) not in output, 'paths are relative'
  stages = output[output.index('--- baseline') :]
  assert max(map(len, stages.splitlines())) <= 100
  assert os.listdir(tmp_path / 'synthetic' / 'group' / 'pictures')
