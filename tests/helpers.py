"""A tiny data set in the format of download_cifar100.py, tiny runs on it, and how to call the programs; for the tests.

Each class is a pattern of its own under noise; a superclass's five classes have numbers 20 apart. There are images of
20 of the 100 classes, one of each superclass, so that a dozen steps learn something.
"""

import fcntl
import json
import os
import re
import subprocess
import sys

import forking
import numpy as np
import tensorflow as tf

import eval as evaluation
import resnet_split
import train
from splitnet.training import checkpoints

# A GPU adds up in any order, so runs there repeat to rounding only. Everything here is compared bit by bit.
tf.config.set_visible_devices([], 'GPU')

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RELEASED = os.path.join(PROJECT, 'tests', 'reference', 'original_checkpoint', 'model.ckpt-0')
SIZES = {'train': 90, 'val': 60, 'test': 70}
BATCH = 20
NETWORK = ['--k', '1', '--num_residual_units', '1']
GROUPS = ['--ngroups1', '3', '--ngroups2', '2', '--ngroups3', '1']
LAST = {'baseline': 6, 'group': 12, 'split': 6}  # steps


def read_checkpoint(path):
  """Reads a checkpoint as the programs do."""
  return checkpoints.read(str(path), resnet_split.read_older)


def write(folder, sizes=None, seed=0):
  """Writes train, val, train_val and test (.npz) and names.json; returns the folder's path as text."""
  os.makedirs(folder, exist_ok=True)
  rng = np.random.default_rng(seed)
  patterns = np.repeat(np.repeat(rng.integers(0, 200, (100, 4, 4, 3)), 8, 1), 8, 2)
  fine_to_coarse = np.arange(100) % 20
  splits = {}
  for name, size in (sizes or SIZES).items():
    labels = (rng.permutation(np.arange(size)) % 20 * 7 % 100).astype(np.uint8)
    images = (patterns[labels] + rng.integers(0, 56, (size, 32, 32, 3))).astype(np.uint8)
    splits[name] = dict(images=images, labels=labels, coarse_labels=fine_to_coarse[labels].astype(np.uint8))
  splits['train_val'] = {key: np.concatenate([splits['train'][key], splits['val'][key]]) for key in splits['train']}
  for name, arrays in splits.items():
    np.savez(os.path.join(folder, name + '.npz'), **arrays)
  names = {
    'fine': [f'class_{i:02}' for i in range(100)],
    'coarse': [f'superclass_{i:02}' for i in range(20)],
    'fine_to_coarse': fine_to_coarse.tolist(),
    'source': 'synthetic',
    'seed': seed,
    'num_val_instance': len(splits['val']['labels']),
    'images_per_class': 1,
  }
  with open(os.path.join(folder, 'names.json'), 'w', encoding='utf-8') as f:
    json.dump(names, f)
  return str(folder)


def flags(mode, data_dir, train_dir, *more):
  """A tiny run's command line."""
  given = ['--mode', mode, '--data_dir', data_dir, '--train_dir', train_dir, '--batch_size', BATCH, '--initial_lr', 0.1]
  given += ['--lr_step_epoch', '', '--display', 5, '--val_interval', 1000, '--checkpoint_interval', 1000]
  given += ['--group_summary_interval', 1000]
  return [str(flag) for flag in given + list(more)]


def call(program, arguments, capsys):
  """Runs train or eval in this process: (exit code, stdout, stderr)."""
  capsys.readouterr()
  try:
    code = program.main([str(a) for a in arguments])
  except SystemExit as e:  # argparse
    code = e.code
  return code, *capsys.readouterr()


def start(program, arguments):
  """Starts train.py, eval.py or a module: a forking.Program."""
  return forking.Program([*([] if '.py' in program else ['-m']), program, *arguments])


def start_anew(command, **environment):
  """Starts a Python that imports all by itself, if it matters how: a subprocess.Popen with pipes of text."""
  environment = {**os.environ, 'CUDA_VISIBLE_DEVICES': '-1', 'PYTHONPATH': PROJECT, **environment}
  environment.pop('TF_CPP_MIN_LOG_LEVEL', None)  # the programs set it themselves
  pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  return subprocess.Popen([sys.executable, *map(str, command)], env=environment, cwd=PROJECT, **pipes)


LOGICAL_DEVICES = """
import json, sys
import splitnet.common.quiet, tensorflow as tf
cpu, count = tf.config.list_physical_devices('CPU')[0], int(sys.argv[1])
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
devices = [f'/CPU:{i}' for i in range(count)]
"""


def on_logical_devices(count, text):
  """What a program finds, its variable `found`, that has so many `devices`; the CPU must be divided before its use."""
  done = forking.run(['-c', LOGICAL_DEVICES + text + '\nprint(json.dumps(found))', count])
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def read_until(process, beginning):
  """Reads a process's stdout until a line begins so; returns the lines."""
  lines = []
  for line in process.stdout:
    lines.append(line)
    if line.startswith(beginning):
      return lines
  raise AssertionError(f"no line begins with {beginning!r} in:\n{''.join(lines)}\n{process.stderr.read()}")


def validations(text):
  """The validations in a log: list of (step, accuracy %, cross-entropy)."""
  found = re.findall(r'^step (\d+): validation accuracy ([\d.]+) %, cross-entropy ([\d.]+),', text, re.MULTILINE)
  return [(int(step), float(accuracy), float(loss)) for step, accuracy, loss in found]


def weights(path):
  """All arrays in a checkpoint, those of the optimiser too: dict by key."""
  prefix = tf.train.latest_checkpoint(path) if os.path.isdir(path) else path
  reader = tf.train.load_checkpoint(prefix)
  return {
    key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()
    if key.startswith(('weights/', 'momentum/', 'step'))
  }  # fmt: skip


def assert_same(one, other):
  """Asserts that two dicts of arrays are equal, bit by bit."""
  assert one.keys() == other.keys()
  different = [name for name in one if not np.array_equal(one[name], other[name])]
  assert not different


def files(folder):
  """Every file under a folder with its content: dict from path to bytes."""
  found = {}
  for path, _, names in os.walk(folder):
    found[path] = None
    for name in names:
      with open(os.path.join(path, name), 'rb') as f:
        found[os.path.join(path, name)] = f.read()
  return found


_made = {}  # what this process has made or read of what a session's tests share


def shared(function):
  """Calls a function once a session, in one of its processes, for the arguments behind pytest's tmp_path_factory.

  The others wait, and read what it returned, which JSON can hold.
  """

  def once(factory, *arguments):
    key = '-'.join([function.__name__, *arguments])
    if key not in _made:
      folder = factory.getbasetemp()
      if 'PYTEST_XDIST_WORKER' in os.environ:  # it has a folder in that of all
        folder = folder.parent
      with open(folder / f'{key}.json', 'a+', encoding='utf-8') as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        f.seek(0)
        text = f.read()
        if not text:
          text = json.dumps(function(factory, *arguments))
          f.write(text)
      _made[key] = json.loads(text)
    return _made[key]

  return once


@shared
def data(factory):
  """The data set that most tests share: its folder (factory: pytest's tmp_path_factory)."""
  return write(factory.mktemp('data'))


@shared
def stages(factory):
  """Trains baseline, group from it, and split from that, once a session: dict from stage to folder."""
  folder, runs = factory.mktemp('stages'), {}
  more = {
    'baseline': NETWORK + ['--checkpoint_interval', 2, '--max_to_keep', 2, '--val_interval', 3],
    'group': GROUPS + ['--group_summary_interval', 6, '--dropout_keep_prob', 0.9],
    'split': [],
  }
  base = None
  for mode in ('baseline', 'group', 'split'):
    runs[mode] = str(folder / mode)
    arguments = more[mode] + ['--max_steps', LAST[mode]] + (['--basemodel', base] if base else [])
    assert train.main(flags(mode, data(factory), runs[mode], *arguments)) == 0
    base = runs[mode]
  return runs


@shared
def evaluated(factory, stage, *more):
  """What eval.py writes about a stage's last checkpoint: its JSON, read."""
  path = str(factory.mktemp('evaluated') / 'result.json')
  arguments = ['--checkpoint', stages(factory)[stage], '--data_dir', data(factory), '--output_file', path, *more]
  assert evaluation.main(arguments) == 0
  with open(path, encoding='utf-8') as f:
    return json.load(f)
