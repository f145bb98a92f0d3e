"""Tests figures.py: its numbers by naive counting, its pictures, its refusals."""

import dataclasses
import glob
import os

import helpers
import networks
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import resnet_split
import train
from paper import figures, runs
from splitnet.network import hardening
from splitnet.reporting import plots
from splitnet.training import checkpoints
from splitnet.training.saver import Saver

CONFIG = resnet_split.WideResNet(k=1, num_residual_units=1, ngroups1=4, ngroups2=2, ngroups3=2)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return helpers.data(tmp_path_factory)


def save(folder, mode, moments, config=CONFIG, groups=None, settings=None):
  """Writes a run's folder with a checkpoint per moment: step -> values by name."""
  network = networks.build(config, groups=groups, with_assignments=mode == 'group')
  step = tf.Variable(0, dtype=tf.int64)
  configuration = checkpoints.describe(mode, dataclasses.asdict(config), network, {}, settings or {})
  saver = Saver(str(folder), configuration, 100, weights=network.weights, step=step)
  for number, values in moments.items():
    for name, value in values.items():
      network.weights[name].assign(value)
    step.assign(number)
    saver.save(number)
  return str(folder)


def alphas_of(graph, groups):
  """Returns assignments whose most probable groups are `groups`."""
  return {
    f'group/{name}/alpha': np.eye(units.groups)[groups[name]].T * 3
    for name, units in graph.units.items()
    if units.groups > 1
  }


def class_run(folder, groups, ngroups, step=7, settings=None):
  """Writes a grouping run of an FC split with these groups of the classes."""
  config = resnet_split.WideResNet(k=1, num_residual_units=1, ngroups1=ngroups, ngroups2=1, ngroups3=1)
  values = {'group/split_q1/alpha': np.eye(ngroups)[groups].T}
  return save(folder, 'group', {step: values}, config, settings=settings)


def check_picture(path, width=None, height=None):
  """Asserts that a picture is whole, not empty, and has this size in inches."""
  assert not glob.glob(glob.escape(path) + '.*')
  with Image.open(path) as image:
    pixels = np.array(image.convert('L'))
  assert pixels.min() < 100 and pixels.max() == 255
  for size, wanted in zip(pixels.shape, (height, width)):
    assert wanted is None or abs(size - wanted * 110) <= 1


def assert_sentence(answer, *words):
  """Asserts that a program failed with one sentence that has these words."""
  code, out, err = answer
  assert code in (1, 2) and out == ''
  assert err.startswith('figures.py') and err.count('\n') == 1 and 'Traceback' not in err
  for word in words:
    assert word in err, err


# --- figure 3 -----------------------------------------------------------------------------------------------------

STEPS = [0, 5, 10, 100]  # 100 after 10: ordered as numbers


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Writes a run whose weights between groups vanish: (folder, values, groups)."""
  graph, rng = CONFIG.graph(), np.random.default_rng(0)
  final, first = (
    {name: rng.permutation(np.arange(units.size) % units.groups) for name, units in graph.units.items()} for _ in 'ab'
  )
  fresh = networks.build(CONFIG, with_assignments=True)
  values = {}
  for step, rest in zip(STEPS, (1, 0.5, 0.1, 0)):
    values[step] = alphas_of(graph, final if step == 100 else first)
    for layer in graph.weighted:
      if graph.cut(layer) > 1:
        name = layer.weights
        kept = hardening.kept_weights(graph, layer, final)
        values[step][name] = fresh.weights[name].numpy() * np.where(kept, 1, rest)
  return save(tmp_path_factory.mktemp('run'), 'group', values), values, final


def test_figure_3_orders_every_moment_by_the_final_groups(run, tmp_path, monkeypatch, capsys):
  folder, values, final = run
  drawn = []
  monkeypatch.setattr(plots, 'draw_moments', lambda *arguments: drawn.append(arguments))
  code, out, _ = helpers.call(figures, ['3', '--run', folder, '--output', tmp_path / 'a.png'], capsys)
  (rows, moments, title, _), = drawn  # fmt: skip
  assert code == 0 and out.count('\n') == 1 and 'step 0 to 100: unit_2_0/conv_1 ' in out
  assert moments == ['step 0', 'step 5', 'step 10', 'step 100'] and '2-2-4' in title and '100' in title
  assert [label.split('\n')[0] for label, _, _ in rows] == ['unit_2_0/conv_1', 'unit_3_0/conv_1', 'logits/fc']
  for step, (image, row_borders, column_borders) in zip(STEPS, rows[2][1]):  # logits/fc: 64 features, 100 classes
    weights = np.abs(values[step]['logits/fc/weights'])
    inputs, outputs = (
      [u for g in range(4) for u in range(size) if final[name][u] == g]
      for name, size in (('split_p1', 64), ('split_q1', 100))
    )
    np.testing.assert_allclose(image, [[weights[i, o] for o in outputs] for i in inputs], rtol=1e-6)
    assert row_borders.tolist() == [16, 32, 48] and column_borders.tolist() == [25, 50, 75]
  for _, images, captions in rows:
    image, row_borders, column_borders = images[-1]
    blocks = [np.split(part, column_borders, 1) for part in np.split(image, row_borders)]
    assert all((block.max() > 0) == (i == j) for i, line in enumerate(blocks) for j, block in enumerate(line))
    assert captions[-1] == '100 % within groups'


def test_figure_3_measures_the_weight_within_the_groups(run, tmp_path, capsys):
  folder, values, final = run
  flags = figures.make_parser().parse_args(['3', '--run', folder, '--output', str(tmp_path / 'a.png')])
  shares = figures.figure_3(flags)
  assert list(shares) == ['unit_2_0/conv_1', 'unit_3_0/conv_1', 'logits/fc']
  squares = np.square(values[5]['unit_3_0/conv_1/kernel']).sum((0, 1))
  together = [(i, o) for i, o in np.ndindex(squares.shape) if final['split_p2'][i] == final['split_r21'][o]]
  kept = sum(squares[i, o] for i, o in together)
  assert shares['unit_3_0/conv_1'][1] == pytest.approx(kept / squares.sum(), rel=1e-5)
  assert all(s == sorted(s) and s[-1] == pytest.approx(1) for s in shares.values())
  check_picture(str(tmp_path / 'a.png'), 1.9 * 4 + 0.7, 2.15 * 3 + 0.6)


def test_figure_3_draws_chosen_layers_and_few_moments(run, tmp_path, capsys):
  path = str(tmp_path / 'new' / 'a.png')
  arguments = ['3', '--run', run[0], '--layers', 'logits/fc, unit_2_0/conv_2', '--moments', 2, '--output', path]
  code, out, _ = helpers.call(figures, arguments, capsys)
  assert code == 0 and 'step 0 to 100: logits/fc' in out and 'unit_2_0/conv_2' in out
  check_picture(path, 1.9 * 2 + 0.7, 2.15 * 2 + 0.6)


@pytest.mark.parametrize(
  'config, layers',
  [
    ({}, ['unit_2_1/conv_1', 'unit_3_1/conv_1', 'logits/fc']),
    ({'ngroups3': 1}, ['unit_3_1/conv_1', 'logits/fc']),
    ({'ngroups1': 4, 'ngroups2': 1, 'ngroups3': 1}, ['logits/fc']),
    ({'num_residual_units': 3, 'k': 1}, ['unit_2_2/conv_1', 'unit_3_2/conv_1', 'logits/fc']),
    # The first convolution of unit_3 reads all of its parent, so it is not split.
    ({'num_residual_units': 1, 'ngroups3': 1, 'branch_input': 'all'}, ['unit_3_0/conv_2', 'logits/fc']),
  ],
)
def test_one_representative_layer_a_depth(config, layers):
  graph = resnet_split.WideResNet(**config).graph()
  assert [layer.name for layer in figures.representative_layers(graph)] == layers


def test_moments_are_spread_over_the_steps():
  assert figures.evenly([0, 10, 20], 6) == [0, 10, 20]
  assert figures.evenly(list(range(0, 101, 10)), 3) == [0, 50, 100]
  assert figures.evenly([0, 1, 2, 3, 100], 3) == [0, 3, 100]  # nearest to 50: 3 is 47 away, 100 is 50


def test_figure_3_refuses_with_a_sentence(run, tmp_path, capsys):
  def answer(*arguments):
    return helpers.call(figures, ['3', *arguments, '--output', tmp_path / 'a.png'], capsys)

  graph = CONFIG.graph()
  groups = {name: np.arange(units.size) % units.groups for name, units in graph.units.items()}
  one = save(tmp_path / 'one', 'group', {30: {}})
  assert_sentence(answer('--run', one), 'only the checkpoint of step 30', '--max_to_keep 100')
  assert_sentence(answer('--run', save(tmp_path / 'none', 'group', {})), 'no checkpoint', '--max_to_keep 100')
  assert_sentence(answer('--run', save(tmp_path / 'split', 'split', {1: {}, 2: {}}, groups=groups)), 'split run')
  assert_sentence(answer('--run', tmp_path / 'missing'), 'missing', 'train.py')
  assert_sentence(answer('--run', run[0], '--layers', 'unit_1_0/conv_1'), 'unit_1_0/conv_1', 'logits/fc')
  assert_sentence(answer('--run', run[0], '--moments', 1), "--moments is '1'")
  assert_sentence(answer('--run', run[0], '--colour'), '--colour')
  assert_sentence(helpers.call(figures, ['3', '--run', run[0], '--output', tmp_path], capsys), 'is a folder')
  assert not os.path.exists(tmp_path / 'a.png')


# --- figure 4 -----------------------------------------------------------------------------------------------------

MORE = ['--batch_size', '20', '--display', '1']


@pytest.mark.slow
def test_figure_4_trains_what_is_missing_and_counts_the_classes(data, tmp_path, capsys):
  baseline = save(tmp_path / 'baseline', 'baseline', {3: {}}, CONFIG.dense())
  out = str(tmp_path / 'out')
  arguments = ['4', '--basemodel', baseline, '--data_dir', data, '--ngroups', '3', '--out', out]
  # One run is done, of the other there is nothing yet.
  flags, further = figures.make_parser().parse_args([*arguments, '--steps', '2']), figures.parse_train_flags(MORE)
  settings = vars(train.parse_flags(runs.command('train.py', figures.train_flags(flags, further, 0.5))[2:]))
  del settings['network']  # train.py stores it with the network
  class_run(os.path.join(out, 'balance-0.5'), np.repeat([0, 2, 1], [31, 40, 29]), 3, 2, settings)
  done = helpers.files(os.path.join(out, 'balance-0.5'))
  code, printed, err = helpers.call(figures, [*arguments, '--balances', '100,.5', '--steps', 2, *MORE], capsys)
  assert (code, err) == (0, '')
  assert 'balance 100: 2 steps' in printed and 'balance 0.5: ' not in printed
  assert helpers.files(os.path.join(out, 'balance-0.5')) == done
  counts = {}
  for balance in ('0.5', '100'):
    folder = os.path.join(out, 'balance-' + balance)
    alpha = helpers.read_checkpoint(os.path.join(folder, 'ckpt-2')).values['group/split_q1/alpha']
    counts[balance] = sorted((alpha.argmax(0).tolist().count(g) for g in range(3)), reverse=True)
    assert str(counts[balance]) in printed
  configuration = checkpoints.read_configuration(os.path.join(out, 'balance-100'), resnet_split.read_older)
  assert configuration['settings']['gamma3'] == 100 and configuration['settings']['batch_size'] == 20
  assert [configuration['network'][f'ngroups{i}'] for i in (1, 2, 3)] == [3, 1, 1]
  assert counts['0.5'] == [40, 31, 29]
  picture = os.path.join(out, 'fig4.png')
  assert f'{picture}: largest group {counts["0.5"][0]} at 0.5, {counts["100"][0]} at 100 classes' in printed
  check_picture(picture)
  # With more steps it would go on.
  folder = os.path.join(out, 'balance-100')
  assert figures.is_done(figures.train_flags(flags, further, 100))
  flags.steps = 3
  assert not figures.is_done(figures.train_flags(flags, further, 100))
  # Other settings, and fewer steps than there are, are told before anything is trained.
  answer = helpers.call(figures, [*arguments, '--balances', '100', '--steps', 2, *MORE, '--gamma2', 5], capsys)
  assert_sentence(answer, '--gamma2 1.0', 'now it is 5', 'another --out')
  answer = helpers.call(figures, [*arguments, '--balances', '100', '--steps', 1, *MORE], capsys)
  assert_sentence(answer, 'step 2 already', '--steps 2')


def test_figure_4_prints_what_exists_with_empty_groups(tmp_path, capsys):
  out = tmp_path / 'out'
  class_run(out / 'balance-10', np.repeat([0, 1, 2], [20, 45, 35]), 3)
  class_run(out / 'balance-0', np.full(100, 1), 3)
  class_run(out / 'balance-1e-05', np.repeat([0, 2], [30, 70]), 3)
  save(out / 'balance-7', 'group', {})  # stopped before its first checkpoint
  flags = figures.make_parser().parse_args(['4', '--out', str(out), '--print'])
  assert figures.figure_4(flags, []) == {0: [100, 0, 0], 1e-5: [70, 30, 0], 10: [45, 35, 20]}
  assert '100 at 0, 70 at 1e-05, 45 at 10' in capsys.readouterr().out
  check_picture(str(out / 'fig4.png'), height=4)
  class_run(out / 'balance-20', np.arange(100) % 2, 2)
  code, _, err = helpers.call(figures, ['4', '--out', out, '--print'], capsys)
  assert code == 1 and '--ngroups1 2, that of balance 0 with 3: use the same, or another --out' in err


@pytest.mark.slow
def test_figure_4_refuses_with_a_sentence(data, tmp_path, capsys):
  out = tmp_path / 'out'

  def answer(*arguments):
    return helpers.call(figures, ['4', '--out', out, '--data_dir', data, *arguments], capsys)

  assert_sentence(answer('--print'), 'no run yet')
  assert_sentence(answer('--print', '--gamma2', 5), '--gamma2')
  assert_sentence(answer(), '--basemodel')
  for wrong in ('1,x', '', '-1', '1,1', 'inf'):
    assert_sentence(answer('--basemodel', 'b', '--balances=' + wrong), '--balances', f"'{wrong}'")
  assert_sentence(answer('--basemodel', 'b', '--ngroups', 1), '--ngroups')
  assert_sentence(answer('--basemodel', 'b', 'colour'), "'colour' cannot be passed on")
  assert not out.exists()
  # What only train.py can know is its own sentence.
  for arguments, words in ((['--momentum', 2], 'train.py: --momentum'), ([], 'train.py: there is no checkpoint')):
    code, _, err = answer('--basemodel', tmp_path / 'b', '--balances', 3, *arguments)
    assert code == 1 and err.count('\n') == 1 and words in err and 'balance-3' in err


# --- figure 5 -----------------------------------------------------------------------------------------------------


def test_figure_5_counts_classes_of_superclasses(data, tmp_path, capsys):
  # Class c is of superclass c % 20. Whole superclasses but for two classes of superclass 19, and an empty group.
  groups = np.array([1 if c % 20 % 2 else 0 for c in range(100)])
  groups[[19, 39]] = 0
  folder, path = class_run(tmp_path / 'run', groups, 3), str(tmp_path / 'a.png')
  flags = figures.make_parser().parse_args(['5', '--checkpoint', folder, '--data_dir', data, '--output', path])
  table, agreement = figures.figure_5(flags)
  assert agreement == pytest.approx(0.98)
  assert table.tolist() == [[5] * 10 + [2] + [0] * 9, [0] * 10 + [3] + [5] * 9, [0] * 20]
  assert f'{path}: agreement 0.98, random groups of the same sizes 0.6' in capsys.readouterr().out
  check_picture(path, 0.5 * 20 + 2.0, 0.5 * 3 + 2.2)


def test_figure_5_takes_split_networks(data, tmp_path, capsys):
  graph, rng = CONFIG.graph(), np.random.default_rng(1)
  groups = {name: rng.permutation(np.arange(units.size) % units.groups) for name, units in graph.units.items()}
  folder, path = save(tmp_path / 'run', 'split', {1: {}}, groups=groups), str(tmp_path / 'a.png')
  flags = figures.make_parser().parse_args(['5', '--checkpoint', folder, '--data_dir', data, '--output', path])
  table, agreement = figures.figure_5(flags)
  classes = groups['split_q1']
  count = [[sum(classes[s::20] == g) for s in range(20)] for g in range(4)]  # by hand, in the superclasses' own order
  assert sorted(table.T.tolist()) == sorted(np.transpose(count).tolist())
  assert agreement == pytest.approx(sum(max(column) for column in zip(*count)) / 100)
  main = table.argmax(0)
  assert main.tolist() == sorted(main)  # the blocks go down from left to right
  check_picture(path)


def test_superclasses_stand_below_their_group_and_shared_ones_beside_the_other():
  table = np.array([[0, 5, 1, 3], [1, 0, 0, 2], [4, 0, 4, 0]])
  assert figures.superclass_order(table).tolist() == [1, 3, 2, 0]


def test_figure_5_refuses_with_a_sentence(data, tmp_path, capsys):
  def answer(checkpoint, folder=data):
    arguments = ['5', '--checkpoint', checkpoint, '--data_dir', folder, '--output', tmp_path / 'a.png']
    return helpers.call(figures, arguments, capsys)

  baseline = save(tmp_path / 'baseline', 'baseline', {3: {}}, CONFIG.dense())
  few = resnet_split.WideResNet(k=1, num_residual_units=1, num_classes=10)
  assert_sentence(answer(baseline), 'baseline checkpoint, without groups')
  assert_sentence(answer(tmp_path / 'missing'), 'there is no checkpoint')
  assert_sentence(answer(baseline, tmp_path / 'missing'), 'there is no CIFAR-100')
  assert_sentence(answer(save(tmp_path / 'few', 'group', {3: {}}, few)), '10 classes', '100')
  assert not os.path.exists(tmp_path / 'a.png')


def test_figure_is_needed_and_one_of_the_three(capsys):
  assert_sentence(helpers.call(figures, [], capsys), 'required')
  assert_sentence(helpers.call(figures, ['6'], capsys), "'6'")
