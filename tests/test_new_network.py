"""docs/networks.md: the network that it writes goes through all stages, evaluation and export."""

import json
import os
import re

import helpers
import numpy as np
import pytest
import tensorflow as tf
from networks import assert_close

import cifar100
import eval as evaluation
import train
from serving import export
from splitnet.training import checkpoints

pytestmark = pytest.mark.slow


@pytest.fixture
def small():
  """The class that the page defines."""
  with open(os.path.join(helpers.PROJECT, 'docs', 'networks.md'), encoding='utf-8') as f:
    (code,) = re.findall(r'^```python\n(.*?)^```$', f.read(), re.DOTALL | re.MULTILINE)
  assert len([line for line in code.splitlines() if line]) <= 32
  names = {'__name__': 'example'}
  exec(compile(code, 'docs/networks.md', 'exec'), names)
  return names['SmallNet']


def test_the_example_goes_through_all_stages_evaluation_and_export(small, data, tmp_path, monkeypatch, capsys):
  def succeed(program, *arguments):
    code, _, stderr = helpers.call(program, arguments, capsys)
    assert code == 0, stderr

  given = {
    'baseline': ['--network', 'small'],
    'group': ['--basemodel', tmp_path / 'baseline', '--groups', '1-2-3', '--assignment_start', 'spectral'],
    'split': ['--basemodel', tmp_path / 'group'],
  }
  with monkeypatch.context() as patch:
    patch.setitem(train.networks, 'small', small)
    patch.setattr(train, 'NETWORKS', [*train.NETWORKS, 'small'])
    for mode, more in given.items():
      succeed(train, *helpers.flags(mode, data, str(tmp_path / mode), '--max_steps', 2, *more))
  stored = checkpoints.read(str(tmp_path / 'split'), None)  # its graph is beside it: no network's code is needed
  assert stored.network == small.of_split('1-2-3').to_dict()

  split = ['--checkpoint', tmp_path / 'split', '--data_dir', data]
  succeed(evaluation, *split, '--output_file', tmp_path / 'result.json')
  with open(tmp_path / 'result.json', encoding='utf-8') as f:
    assert json.load(f)['images'] == helpers.SIZES['test']
  succeed(export, *split, '--branches', '--out', tmp_path / 'exported')
  with open(tmp_path / 'exported' / 'manifest.json', encoding='utf-8') as f:
    (path,) = [model['path'] for model in json.load(f)['models'] if model['name'] == 'whole']
  images = cifar100.load(data, 'test').images[:5]
  signature = tf.saved_model.load(str(tmp_path / 'exported' / path)).signatures['serving_default']
  expected = checkpoints.load_network(stored)(cifar100.whiten(tf.constant(images)))
  assert_close(signature(images=tf.constant(images))['logits'], np.asarray(expected), 1e-4)
