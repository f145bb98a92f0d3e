"""Attacks the programs with random flags, damaged files and archives, for as long as it is told to. Run by hand.

  python tests/fuzz.py --minutes 10 [--seed 1]

Each attack calls a program's main() in this process. It must end in time, with exit code 0, or 1 and one sentence, or 2
and the sentence of the command line; an exception that leaves main() is a failure, and so is what takes too long. What
failed can be tried again: the attack of a number is a function of seed and number (--only NUMBER).
"""

import argparse
import collections
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback

TESTS = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.dirname(TESTS), TESTS]

import splitnet.common.quiet  # noqa: E402, F401 - before TensorFlow

import archives  # noqa: E402
import helpers  # noqa: E402
import pictures  # noqa: E402

import download_cifar100  # noqa: E402
import eval as evaluation  # noqa: E402
import train  # noqa: E402
from paper import tables  # noqa: E402
from serving import export, infer  # noqa: E402
from splitnet.reporting import compare  # noqa: E402

SECONDS = 120  # an attack may take
# Paths stay in the folder of the attacks: whoever runs this may be allowed to write anywhere.
VALUES = [
  '', ' ', '0', '-1', '1', '2', '3', '7', '100', '1000000', '20000', str(2**31), str(2**63), '1' * 30, '1e999', 'nan',
  'inf', '-0.5', '0.5', '1e-9', 'True', 'no', 'auto', 'x' * 300, 'a\nb', 'pipe', 'zeros', 'folder', 'missing/deeper',
  'image_folder', 'imagenet', 'resnet18', 'alexnet', '2-4-8',
  '.', '[a]*?', 'ä', '\udcff', '1,2,3', ',', '2-2-2', '0-0-0', '9-8-7', '--help', ':', 'group', 'float16', 'learned',
]  # fmt: skip
# Left out: flags of the machine, which TensorFlow takes once in a process, and those that may ask for years.
LEFT_OUT = {
  'help', 'max_steps', 'num_logical_devices', 'gpu_fraction', 'log_device_placement', 'workers', 'worker_timeout',
}  # fmt: skip
PIECES = ['', '0', '-1', '1e999', 'NaN', 'null', '"x"', '[]', '{}', '[' * 100_000, '9' * 5000, '"\\ud800"', 'true']


class TooLong(BaseException):
  """An attack took longer than SECONDS."""


def set_up(folder):
  """Makes what is attacked: data, a run of each stage, an export, results, an archive; returns the paths by name."""
  paths = {name: os.path.join(folder, name) for name in ('data', 'baseline', 'group', 'split', 'out')}
  helpers.write(paths['data'], {'train': 30, 'val': 20, 'test': 20})
  small = [*helpers.NETWORK, '--max_steps', '1']
  stages = {'baseline': small, 'group': [*helpers.GROUPS, '--max_steps', '1', '--basemodel', paths['baseline']],
            'split': ['--max_steps', '1', '--basemodel', paths['group']]}  # fmt: skip
  for mode, more in stages.items():
    assert train.main(helpers.flags(mode, paths['data'], paths[mode], *more)) == 0
  evaluate = ['--checkpoint', paths['split'], '--data_dir', paths['data']]
  assert evaluation.main([*evaluate, '--output_file', os.path.join(folder, 'eval.json')]) == 0
  assert export.main([*evaluate, '--out', os.path.join(folder, 'export')]) == 0
  with open(os.path.join(folder, 'groups.json'), 'w', encoding='utf-8') as f:
    json.dump([[f'class_{i:02d}' for i in range(100) if i % 3 == g] for g in range(3)], f)
  archives.pack(os.path.join(folder, 'archive.tar.gz'), archives.pickled(archives.content()), 'w:gz')
  pictures.write(os.path.join(folder, 'image.png'), pictures.png(pictures.gradient(32, 32)))
  pictures.folder(os.path.join(folder, 'images'), ['cat', 'dog'], 12)
  with open(os.path.join(folder, 'images', 'superclasses.json'), 'w', encoding='utf-8') as f:
    json.dump({'animal': ['cat', 'dog']}, f)
  assert train.main(image_flags(folder, 'own')) == 0
  return paths


def image_flags(folder, run):
  """Returns a tiny run's command line on a folder of images."""
  own = ['--dataset', 'image_folder', '--image_size', '16', *helpers.NETWORK, '--max_steps', '1', '--batch_size', '4']
  return helpers.flags('baseline', os.path.join(folder, 'images'), os.path.join(folder, run), *own)


def commands(folder):
  """Returns command lines that are right: dict from name to (program, arguments, files that it reads)."""
  at = lambda *names: os.path.join(folder, *names)  # noqa: E731
  data = ['names.json', 'train.npz', 'val.npz', 'test.npz']
  of_run = ['config.json', 'checkpoint', 'ckpt-1.index', 'ckpt-1.data-00000-of-00001', 'metrics.jsonl', 'train.log']
  files = [at('data', name) for name in data]
  use = ['--checkpoint', at('split'), '--data_dir', at('data')]
  return {
    'train': (train, helpers.flags('baseline', at('data'), at('new'), *helpers.NETWORK, '--max_steps', 1), files),
    'resume': (
      train, helpers.flags('split', at('data'), at('split'), '--basemodel', at('group'), '--max_steps', 1),
      files + [at('split', name) for name in of_run],
    ),
    'group': (
      train,
      helpers.flags('group', at('data'), at('new'), '--basemodel', at('baseline'), *helpers.GROUPS, '--max_steps', 1),
      [at('baseline', name) for name in of_run],
    ),
    'own groups': (
      train,
      helpers.flags('split', at('data'), at('new'), *helpers.NETWORK, *helpers.GROUPS, '--ngroups2', 1, '--grouping',
                    at('groups.json'), '--max_steps', 1),
      [at('groups.json')],
    ),
    'eval': (evaluation, [*use, '--output_file', at('new.json')], files + [at('split', name) for name in of_run]),
    'export': (export, [*use, '--out', at('new')], [at('split', name) for name in of_run]),
    'infer': (
      infer, [at('image.png'), '--export', at('export')],
      [at('image.png'), at('export', 'manifest.json'), at('export', 'whole', '1', 'saved_model.pb')],
    ),
    'images': (
      train, image_flags(folder, 'new'),
      [at('images', *name) for name in (('cat', '03.jpg'), ('.splitnet', 'subsets.json'), ('.splitnet', 'checked.json'),
                                        ('superclasses.json',))],
    ),
    'eval images': (evaluation, ['--checkpoint', at('own')], [at('images', 'dog', '05.jpg'), at('own', 'config.json')]),
    'compare': (compare, [f'a={at("eval.json")}', f'b={at("eval.json")}'], [at('eval.json')]),
    'download': (
      download_cifar100, ['--archive', at('archive.tar.gz'), '--data_dir', at('new')], [at('archive.tar.gz')] * 3,
    ),
    'data there': (
      download_cifar100, ['--synthetic', '--images_per_class', '1', '--data_dir', at('data')], files,
    ),
    'tables': (tables, ['1', '--print', '--out', at('tables'), '--data_dir', at('data')], files[:1]),
  }  # fmt: skip


def flags_of(program):
  """Returns the names of a program's flags."""
  if hasattr(program, 'make_parser'):
    names = [action.dest for action in program.make_parser()._actions]
  else:
    names = {
      export: ['checkpoint', 'out', 'precision', 'data_dir', 'branches', 'harden', 'force'],
      infer: ['export', 'top', 'branches'], compare: ['x'],
      download_cifar100: ['archive', 'data_dir', 'num_val_instance', 'seed', 'synthetic', 'images_per_class', 'force'],
    }.get(program, ['out', 'k', 'seeds', 'recipe', 'data_dir', 'batch_size'])  # fmt: skip
  return sorted(set(names) - LEFT_OUT)


def damage(rng, content):
  """Returns bytes damaged at random: bits, places, ends, or in JSON a value."""
  choice, place = rng.randrange(6), rng.randrange(len(content) + 1)
  if choice == 0:
    return content[:place]
  if choice == 1:
    return content[:place] + rng.randbytes(rng.randrange(1, 64)) + content[place:]
  if choice == 2:
    return b''.join([content[:place], bytes(rng.randrange(1, 600)), content[place + 600 :]])
  if choice == 3:
    return rng.randbytes(rng.randrange(100))
  if content[:1] in (b'{', b'['):
    with contextlib.suppress(ValueError):
      return damage_json(rng, content)
  changed = bytearray(content)
  for _ in range(rng.randrange(1, 4)):
    if changed:
      changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
  return bytes(changed)


def damage_json(rng, content):
  """Returns JSON in which a value somewhere is another."""
  value = json.loads(content)
  node, key = {'': value}, ''
  while isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.8:
    node = node[key]
    key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
  node[key] = 'PLACE'
  whole = value if node is not value and key != '' else node.get('', value) if isinstance(node, dict) else value
  return json.dumps(whole).replace('"PLACE"', rng.choice(PIECES)).encode()


def attack(rng, folder):
  """Makes one attack in a folder with what `set_up` made: (kind, name, program, arguments)."""
  name, (program, arguments, files) = rng.choice(list(commands(folder).items()))
  arguments = [str(argument) for argument in arguments]
  kind = rng.choice(['flags', 'files'])
  if kind == 'files':
    path = rng.choice(files)
    kind = 'archives' if path.endswith('.gz') else kind
    with open(path, 'rb') as f:
      content = f.read()
    with open(path, 'wb') as f:
      f.write(damage(rng, content))
    return kind, f'{name} {os.path.basename(path)}', program, arguments
  for _ in range(rng.randrange(1, 4)):
    arguments += [f'--{rng.choice(flags_of(program))}', rng.choice(VALUES)][: rng.choice([1, 2, 2, 2])]
  return kind, name, program, arguments


def outcome(program, arguments):
  """Runs an attack: 'done', 'sentence', 'usage', or what is wrong."""
  output, error = io.StringIO(), io.StringIO()

  def stop(number, frame):
    raise TooLong

  signal.signal(signal.SIGALRM, stop)
  signal.alarm(SECONDS)
  try:
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
      code = program.main(arguments)
  except SystemExit as e:
    code = e.code
  except TooLong:
    return f'took more than {SECONDS} s'
  except BaseException:
    return traceback.format_exc()
  finally:
    signal.alarm(0)
  said = [line for line in error.getvalue().splitlines() if line.strip()]
  if code == 0:
    return 'done'
  if code in (1, 2) and said and 'Traceback' not in error.getvalue():
    return 'sentence' if code == 1 else 'usage'
  return f'exit code {code}, and {said[-3:]}'


def main():
  """Attacks, prints what came of it; returns 1 if something failed."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--minutes', type=float, default=1.0, help='how long')
  parser.add_argument('--seed', type=int, default=0, help='of the attacks')
  parser.add_argument('--only', type=int, help='the one attack of this number')
  flags = parser.parse_args()
  counts, failed = collections.Counter(), 0
  download_cifar100.TRAIN_IMAGES, download_cifar100.TEST_IMAGES = archives.TRAIN, archives.TEST
  with tempfile.TemporaryDirectory() as home:
    folder = os.path.join(home, 'work', 'here')
    os.environ.update(HOME=home, XDG_CACHE_HOME=os.path.join(home, 'cache'))  # nothing goes elsewhere
    with contextlib.redirect_stdout(io.StringIO()):
      set_up(folder)
    shutil.copytree(folder, os.path.join(home, 'kept'))
    numbers = iter(range(10**9)) if flags.only is None else iter([flags.only])
    end = time.monotonic() + 60 * flags.minutes
    for number in numbers:
      if time.monotonic() > end:
        break
      os.chdir(home)
      shutil.rmtree(folder)
      shutil.copytree(os.path.join(home, 'kept'), folder)
      os.chdir(folder)  # a path without a folder goes here
      os.mkfifo('pipe'), os.mkdir('folder'), os.symlink('/dev/zero', 'zeros')
      kind, name, program, arguments = attack(random.Random(f'{flags.seed} {number}'), folder)
      came = outcome(program, arguments)
      if came not in ('done', 'sentence', 'usage'):
        failed += 1
        print(f'--- {number}: {kind}, {name}: {program.__name__} {arguments}\n{came}', flush=True)
        came = 'failed'
      counts[kind, came] += 1
    os.chdir('/')
  for (kind, came), count in sorted(counts.items()):
    print(f'{kind:10} {came:10} {count:6}')
  print(f'{sum(counts.values())} attacks, {failed} failed')
  return int(failed > 0)


if __name__ == '__main__':
  sys.exit(main())
