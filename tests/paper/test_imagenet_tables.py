"""Tests Tables 3 and 4, and figures 4 and 5, on folders of images."""

import contextlib
import io
import json
import os
import re

import helpers
import pictures
import pytest
from made_runs import finish, parse, rows_of

import eval as evaluation
import train
from alexnet_split import AlexNet
from paper import data, experiments, figures, published, tables
from paper import runs as runs_module
from splitnet.network import counting
from splitnet.network.graph import Tree

SPLIT = '2-2-2-2-2'
CLASSES = ['ant', 'bee', 'cat', 'dog']
TABLE_3 = ['3', '--dataset', 'image_folder', '--cache', '--width', 0.02, '--image_size', 64, '--batch_size', 8]
TABLE_3 += ['--baseline_steps', 2, '--group_steps', 2, '--split_steps', 1, '--scratch_steps', 1]


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """Writes a folder of images of four classes in two superclasses: its path."""
  folder = pictures.folder(tmp_path_factory.mktemp('images') / 'mine', CLASSES, 12)
  with open(os.path.join(folder, 'superclasses.json'), 'w', encoding='utf-8') as f:
    json.dump({'insect': CLASSES[:2], 'pet': CLASSES[2:]}, f)
  return folder


@pytest.fixture(scope='module')
def program():
  """Calls tables.py and, in this process, all it calls: (exit code, stdout, calls)."""

  def run(*arguments):
    called, out = [], io.StringIO()

    def call(command, log, report=None, interval=None):
      name = os.path.basename(command[1])
      called.append((name, os.path.basename(os.path.dirname(log))))
      return {'train.py': train, 'eval.py': evaluation}[name].main(command[2:])

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
      patch.setattr(runs_module, 'call', call)
      code = tables.main([str(a) for a in arguments])
    return code, out.getvalue(), called

  return run


@pytest.fixture(scope='module')
def table_3(program, images, tmp_path_factory):
  """Runs some of Table 3, and makes the rest of its deep row look done: (folder of the runs, calls)."""
  out = tmp_path_factory.mktemp('out')
  code, printed, called = program(
    *TABLE_3, '--data_dir', images, '--out', out, '--only', f'baseline,{SPLIT}/random', '--skip_damaged'
  )
  assert code == 0, printed
  made = experiments.make_runs(parse(*TABLE_3, '--out', out).experiment, 0)
  with open(os.path.join(made['baseline'].folder, 'settings.json'), encoding='utf-8') as f:
    described = json.load(f)['data']
  finish(made[f'group-{SPLIT}'], 0.5, data=described)
  measured = dict(parameters=12000, flops=3 * 10**6, agreement=0.9, chance_agreement=0.7, groups=[CLASSES[:2]] * 2)
  finish(made[f'split-{SPLIT}'], 0.25, data=described, **measured)
  return out, called


@pytest.mark.slow
def test_table_3_of_ones_own_images_is_run_shown_and_not_repeated(program, table_3, images, capsys):
  out, called = table_3
  order = ['baseline', f'scratch-{SPLIT}-random']
  assert called == [(name, folder) for folder in order for name in ('train.py', 'eval.py')]
  code, printed, called = program(*TABLE_3, '--data_dir', images, '--out', out, '--only', SPLIT)
  assert (code, called) == (0, [])
  assert 'on the test images (data: image_folder): AlexNet x0.02, recipe cpu' in printed
  rows = rows_of(printed)
  shown = {row[0]: dict(zip(rows[0], row)) for row in rows[1:]}
  assert list(shown) == ['dense', '1-1-3', '1-2-5', '2-4-8', SPLIT] and shown['1-1-3']['error (%)'] == ''
  # The sizes are those of four classes at 64 pixels.
  config = {'width': 0.02, 'num_classes': 4, 'image_size': 64}
  parameters, flops = counting.total(counting.counts(Tree(AlexNet.of_split('1-1-1', **config).graph())))
  dense, split = shown['dense'], shown[SPLIT]
  assert dense['parameters (10^6)'] == f'{parameters / 1e6:.3f}' and dense['FLOPs (10^9)'] == f'{flops / 1e9:.3f}'
  assert dense['% reduced'] == '0.00' and split['% reduced'] == f'{100 - 100 * 12000 / parameters:.2f}'
  assert split['error (%)'] == '75.00' and dense['error of random groups (%)'] == ''
  assert split['error (%) (paper)'] == '44.60' and split['error of random groups (%) (paper)'] == '44.99'
  folder = out / 'alexnet-x0.02'
  with open(folder / 'seed0' / order[1] / 'eval.json', encoding='utf-8') as f:
    assert split['error of random groups (%)'] == f'{100 - 100 * json.load(f)["accuracy"]:.2f}'
  # The table needs no images to be printed.
  code, printed, called = program(*TABLE_3, '--out', out, '--print')
  assert (code, called) == (0, []) and rows_of(printed) == rows
  assert {'table3.md', 'table3.csv'} <= set(os.listdir(folder))
  # Images of another size are refused.
  capsys.readouterr()
  code, _, called = program(*TABLE_3, '--out', out, '--data_dir', images, '--image_size', 72)
  err = capsys.readouterr().err
  assert (code, called) == (1, []) and 'image_size' in err and err.count('\n') == 1


@pytest.mark.slow
def test_figures_4_and_5_take_a_folder_of_images(table_3, tmp_path, capsys):
  baseline, out = str(table_3[0] / 'alexnet-x0.02' / 'seed0' / 'baseline'), str(tmp_path / 'figure4')
  figure = ['4', '--basemodel', baseline, '--out', out, '--steps', '1', '--balances', '9', '--batch_size', '8']
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(runs_module, 'call', lambda command, *_: train.main(command[2:]))
    assert figures.main(figure) == 0
  printed = capsys.readouterr().out
  assert 'balance 9 ' in printed and os.path.exists(os.path.join(out, 'fig4.png'))
  # The groups against the superclasses of the folder that the run was trained on.
  picture = str(tmp_path / 'a.png')
  flags = figures.make_parser().parse_args(['5', '--checkpoint', os.path.join(out, 'balance-9'), '--output', picture])
  table, agreement = figures.figure_5(flags)
  assert table.shape == (3, 2) and table.sum() == 4 and 0.5 <= agreement <= 1
  assert os.path.exists(picture)


@pytest.mark.slow
def test_without_superclasses_s_is_left_out_and_figure_5_says_so(program, table_3, images, tmp_path, capsys):
  out, given = table_3[0], ['groups', '--network', 'alexnet', *TABLE_3[1:], '--data_dir', images]
  os.rename(os.path.join(images, 'superclasses.json'), tmp_path / 'away')
  try:
    code, printed, called = program(*given, '--out', out, '--only', f'baseline,{SPLIT}/splitnet,{SPLIT}/semantic')
    assert (code, called) == (0, [])
    assert 'has no superclasses: the semantic groups (S) are left out' in printed
    checkpoint = out / 'alexnet-x0.02' / 'seed0' / f'scratch-{SPLIT}-random'
    code, _, err = helpers.call(figures, ['5', '--checkpoint', checkpoint, '--output', tmp_path / 'a.png'], capsys)
    assert code == 1 and err.count('\n') == 1 and 'no superclasses' in err and 'superclasses.json' in err
  finally:
    os.rename(tmp_path / 'away', os.path.join(images, 'superclasses.json'))
  rows = rows_of(printed)
  [row] = [row for row in rows[1:] if row[:3] == [SPLIT, 'learned', '0']]
  assert row[rows[0].index('agreement') :][:2] == ['0.90', '0.70']


def test_images_without_test_are_evaluated_on_val(tmp_path):
  for subset, count in (('train', 10), ('val', 5)):
    pictures.folder(tmp_path / subset, CLASSES[:2], count)
  opened = data.open_data('image_folder', str(tmp_path))
  described = data.describe('image_folder', opened)
  assert described.pop('digest') == opened.load('train').digest()
  expected = {'source': 'image_folder', 'train_images': 20, 'classes': 2, 'image_size': 64, 'evaluated': 'val'}
  assert described == expected


@pytest.mark.parametrize('network', ['alexnet', 'resnet18'])
@pytest.mark.parametrize('recipe', ['paper', 'cpu'])
def test_every_command_is_one_that_the_programs_take(network, recipe, tmp_path):
  arguments = ['groups', '--network', network, '--recipe', recipe, '--dataset', 'image_folder', '--width', 0.25]
  runs = experiments.make_runs(parse(*arguments, '--skip_damaged', '--out', tmp_path).experiment, 3)
  table = {'alexnet': published.TABLE_3, 'resnet18': published.TABLE_4}[network]
  assert set(experiments.cells({'alexnet': '3', 'resnet18': '4'}[network]).values()) < set(runs)
  for name, run in runs.items():
    trained, *evaluated = run.commands('mine', 1000, 'val')
    flags = train.parse_flags(trained[2:])
    assert (flags.network, flags.width, flags.dataset, flags.seed) == (network, 0.25, 'image_folder', 3)
    assert flags.skip_damaged and flags.image_size is None
    split = re.search(r'\d(-\d)+', name)
    assert flags.groups == (split and split.group()) and (split is None or flags.groups in table)
    if flags.mode != 'group' or network == 'alexnet':  # what AlexNet drops does not depend on splits
      assert flags.dropout_keep_prob == {'alexnet': 0.5, 'resnet18': 1}[network]
    for command in evaluated:
      checked = evaluation.parse_flags(command[2:])
      assert checked.split == 'val' and checked.skip_damaged


def test_the_papers_steps_are_those_of_the_authors_checkpoints(tmp_path):
  runs = experiments.make_runs(parse('3', '--recipe', 'paper', '--out', tmp_path).experiment, 0)
  steps = [runs[name].train['max_steps'] for name in ('baseline', 'group-1-1-3', 'split-1-1-3')]
  assert steps == [400000, 60000, 150000] and runs['group-1-1-3'].base is runs['baseline']
  assert {run.train['batch_size'] for run in runs.values()} == {256}
  assert {run.train['dataset'] for run in runs.values()} == {'imagenet'}
  trained, *_ = runs['baseline'].commands('imagenet', 1281167)
  epochs = 400000 * 256 / 1281167
  drops = train.parse_flags(trained[2:]).lr_step_epoch.split(',')
  assert [float(drop) for drop in drops] == pytest.approx([epochs / 4, epochs / 2, 3 * epochs / 4], rel=1e-4)
  assert runs[f'split-{SPLIT}'].train['groups'] == SPLIT


@pytest.mark.parametrize('arguments, words', [
  (['3', '--recipe', 'short'], ['--recipe short', 'alexnet has paper and cpu']),
  (['1', '--network', 'alexnet'], ['--network is alexnet', 'table 1 is of wrn']),
  (['4'], ['--data_dir is missing']),
  (['4', '--dataset', 'image_folder'], ['--data_dir is missing']),
  (['3', '--width', '0'], ["--width is '0'"]),
  (['3', '--only', '2-4-4'], ["--only names '2-4-4'", '2-4-8/random']),
])  # fmt: skip
def test_mistakes_are_one_sentence(arguments, words, tmp_path, capsys):
  code, _, err = helpers.call(tables, [*arguments, '--out', tmp_path], capsys)
  assert code == 1 and err.startswith('tables.py: ') and err.count('\n') == 1
  assert all(word in err for word in words), err


def test_data_are_those_that_flags_name_or_the_checkpoint_was_trained_on():
  stored = {'settings': {'dataset': 'image_folder', 'data_dir': 'mine'}}
  assert data.of_checkpoint(stored, None, None) == ('image_folder', 'mine')
  assert data.of_checkpoint(stored, 'image_folder', 'yours') == ('image_folder', 'yours')
  assert data.of_checkpoint(stored, 'imagenet', None) == ('imagenet', None)
  for older in (None, {'settings': {'data_dir': 'elsewhere'}}):
    assert data.of_checkpoint(older, None, None) == ('cifar100', 'cifar100/train_val_split')
