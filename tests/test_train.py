"""train.py: the three stages one after another, its learning rates and settings, and what is refused and how."""

import glob
import json
import os
import re
import shutil
import subprocess
import sys

import helpers
import numpy as np
import pytest

import cifar100
import keras_split
import resnet_split
import train
from splitnet.network import hardening
from splitnet.network.network import create
from splitnet.parallel import devices
from splitnet.training import checkpoints, log_files, schedule


def read(*path):
  with open(os.path.join(*path), encoding='utf-8') as f:
    return f.read()


# --- the three stages -------------------------------------------------------------------------------------------


def test_each_folder_describes_its_run(runs):
  stored = {mode: json.loads(read(folder, 'config.json')) for mode, folder in runs.items()}
  for mode, folder in runs.items():
    assert stored[mode]['mode'] == mode
    assert json.loads(read(folder, 'best', 'config.json')) == stored[mode]
    assert stored[mode]['network']['k'] == 1 and stored[mode]['network']['num_residual_units'] == 1
    assert stored[mode]['data']['train_images'] == 90 and stored[mode]['data']['source'] == 'synthetic'
    assert stored[mode]['settings']['max_steps'] == helpers.LAST[mode]
  for mode in ('group', 'split'):
    assert [stored[mode]['network'][f'ngroups{i}'] for i in (1, 2, 3)] == [3, 2, 1]
  assert stored['baseline']['groups'] is None and stored['group']['groups'] is None
  assert stored['split']['settings']['basemodel'] == runs['group']
  assert [stored[m]['settings']['l2_weight'] for m in ('baseline', 'group', 'split')] == [0.0005, 0.0001, 0.0005]


def test_each_folder_keeps_its_last_and_its_best_checkpoints(runs):
  kept = {m: sorted(os.path.basename(p) for p in glob.glob(os.path.join(runs[m], 'ckpt-*.index'))) for m in runs}
  assert kept['baseline'] == ['ckpt-4.index', 'ckpt-6.index']  # --max_to_keep 2 of 0, 2, 4, 6
  assert kept['group'] == ['ckpt-0.index', 'ckpt-12.index']
  assert kept['split'] == ['ckpt-0.index', 'ckpt-6.index']
  for folder in runs.values():
    best = helpers.read_checkpoint(os.path.join(folder, 'best'))
    steps, accuracies, _ = zip(*helpers.validations(read(folder, 'train.log')))
    assert best.path.endswith(f'-{steps[accuracies.index(max(accuracies))]}')
    assert len(glob.glob(os.path.join(folder, 'best', '*.index'))) == 1


def test_each_stage_starts_from_the_weights_of_the_one_before(runs):
  baseline = helpers.read_checkpoint(runs['baseline'])
  group = helpers.read_checkpoint(os.path.join(runs['group'], 'ckpt-0'))
  helpers.assert_same({n: group.values[n] for n in baseline.values}, baseline.values)
  assert sum(n.startswith('group/') for n in group.values) == 4
  last = helpers.read_checkpoint(runs['group'])
  network = create(last.graph, with_assignments=True)
  checkpoints.assign(network.weights, last.values, 'the test')
  hardened = hardening.harden(network)
  split = helpers.read_checkpoint(os.path.join(runs['split'], 'ckpt-0'))
  helpers.assert_same({n: v.numpy() for n, v in hardened.weights.items()}, split.values)


def test_the_log_tells_each_stages_start_and_end(runs, data):
  val = cifar100.load(data, 'val')
  for mode, folder in runs.items():
    log = read(folder, 'train.log')
    reported = [line for line in log.splitlines() if line.startswith('step ')]
    assert reported[0].startswith('step 0: validation accuracy ') == (mode != 'baseline')  # that has random weights
    assert f'done at step {helpers.LAST[mode]}: ' in log
    assert f'step {helpers.LAST[mode]}: validation accuracy' in log
  split = checkpoints.load_network(helpers.read_checkpoint(os.path.join(runs['split'], 'ckpt-0')))
  accuracy = (split(cifar100.whiten(val.images)).numpy().argmax(1) == val.labels).mean()
  assert f'\nstep 0: validation accuracy {100 * accuracy:.2f} %' in read(runs['split'], 'train.log')


def test_a_dozen_steps_learn_something(runs):
  reported = helpers.validations(read(runs['group'], 'train.log'))
  assert reported[-1][2] < reported[0][2] - 0.2  # cross-entropy


@pytest.mark.parametrize('mode', ['baseline', 'group', 'split'])
def test_a_run_begins_with_three_lines_and_its_log_has_the_rest(runs, mode):
  lines = read(runs[mode], 'train.log').splitlines()
  state = {'baseline': 'dense', 'group': 'grouping 1-2-3', 'split': 'split 1-2-3'}[mode]
  assert lines[0].startswith(f'WRN-10-1, {state}: ') and lines[0].endswith(' FLOPs per image')
  assert ': 90 images to train on, 60 to validate, 100 classes' in lines[1]
  last = helpers.LAST[mode]
  assert lines[2].startswith(f'{last} steps of 20 images, {last * 20 / 90:.4g} epochs, on ')
  assert any(re.fullmatch(r'l2_weight +0\.000[15]', line) for line in lines)
  assert any(re.search(r'logits/fc +[\d,]+ +[\d,]+$', line) for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize('flag', ['--brief', '--verbose'])
def test_the_console_shows_as_much_as_is_asked_for(data, tmp_path, capsys, flag):
  more = [*helpers.GROUPS, '--max_steps', 5, flag]
  arguments = helpers.flags('group', data, str(tmp_path / 'run'), *helpers.NETWORK, *more)
  code, out, err = helpers.call(train, arguments, capsys)
  assert (code, err) == (0, '')
  lines = out.splitlines()
  assert ('WRN-10-1, grouping 1-2-3' in lines[0]) == (flag != '--brief')
  assert any(re.fullmatch(r'gamma3 +10\.0', line) for line in lines) == (flag == '--verbose')
  assert any('classes' in line and 'group' in line for line in lines)
  assert sum(line.startswith('step 5: ') and ', epoch 1.11' in line for line in lines) >= 1
  if flag == '--brief':
    assert all(len(line) <= 100 for line in lines) and len(lines) == 5
  log = read(tmp_path, 'run', 'train.log')
  assert re.search(r'^gamma3 +10\.0$', log, re.MULTILINE) and '  classes: group sizes [' in log
  assert '  output of unit_3 (split_p1): group sizes [' in log


# --- how long -------------------------------------------------------------------------------------------------------


def parsed(*arguments, mode='group'):
  return train.parse_flags(['--mode', mode, *map(str, arguments)])


def test_the_released_schedule_is_the_default_and_epochs_scale_it():
  flags = parsed()
  assert (flags.max_steps, flags.lr_step_epoch, flags.lr_step) == (200000, '240.0,300.0', None)
  flags = parsed('--max_steps', 1000)
  assert (flags.max_steps, flags.lr_step_epoch, flags.lr_step, flags.epochs) == (1000, '240.0,300.0', None, None)
  flags = parsed('--epochs', 40)
  assert (flags.max_steps, flags.lr_step_epoch, flags.lr_step, flags.epochs) == (None, None, '0.6,0.75', 40)
  for mode in ('baseline', 'group', 'split'):  # the defaults are the same steps said twice
    released, shares = parsed(mode=mode), parsed('--epochs', parsed(mode=mode).max_steps / 500, mode=mode)
    shares.max_steps = released.max_steps
    drops = [schedule.of_settings(vars(flags), 500).drops for flags in (released, shares)]
    assert drops[0] == drops[1] and len(drops[0]) == 2


def test_of_two_flags_that_say_the_same_the_last_one_counts():
  flags = parsed('--epochs', 3, '--max_steps', 7, '--lr_step', '0.5', '--lr_step_epoch', '2', '--gamma2_ramp_epoch', 4)
  assert (flags.epochs, flags.max_steps, flags.lr_step, flags.lr_step_epoch) == (None, 7, None, '2')
  assert (flags.gamma2_ramp_epoch, flags.gamma2_ramp) == (4, 0)
  flags = parsed('--max_steps', 7, '--epochs', 3, '--lr_step_epoch', '2', '--lr_step', '', '--lr_warmup', 0.1)
  assert (flags.epochs, flags.max_steps, flags.lr_step, flags.lr_step_epoch) == (3, None, '', None)


@pytest.mark.slow
def test_epochs_are_so_many_steps_and_a_run_that_counts_steps_is_the_same(data, tmp_path, capsys):
  folder = str(tmp_path / 'run')
  more = ['--epochs', 2, '--lr_step', '1/2', '--lr_warmup', 0.25, *helpers.NETWORK]
  assert train.main(helpers.flags('baseline', data, folder, *more)) == 0  # 90 images, 20 a step
  assert json.loads(read(folder, 'config.json'))['settings']['max_steps'] == 9
  rates = {m['step']: m['learning_rate'] for m in log_files.read_metrics(folder, 'train')}
  assert rates == {5: pytest.approx(0.01)}  # step 4 is the first after half of 9, and the warm-up is over
  # A longer run would have other shares; the same steps said in epochs go on, also further.
  longer = ['--epochs', 4, *more[2:]]
  code, _, err = helpers.call(train, helpers.flags('baseline', data, folder, *longer), capsys)
  assert code == 1 and err.count('\n') == 1 and '--epochs 2.0, now it is 4.0' in err
  same = ['--max_steps', 9, '--lr_step_epoch', 4 / 4.5, '--lr_warmup_epoch', 0.5, *helpers.NETWORK]
  code, out, _ = helpers.call(train, helpers.flags('baseline', data, folder, *same), capsys)
  assert code == 0 and 'going on from step 9' in out
  in_steps = ['--max_steps', 11, *same[2:]]
  assert train.main(helpers.flags('baseline', data, folder, *in_steps)) == 0


# --- help -----------------------------------------------------------------------------------------------------------


def test_the_help_names_the_defaults_and_choices_of_the_networks_and_data():
  """They are written out there, since the modules that have them take seconds to import."""
  text = ' '.join(train.make_parser().format_help().split())
  wide = resnet_split.WideResNet
  for name in ('k', 'num_residual_units', 'ngroups1', 'ngroups2', 'ngroups3', 'bn_no_scale'):
    assert re.search(rf'--{name} [A-Z]+ [^\[]*\[{getattr(wide, name)}\]', text), name
  *networks, keras = train.networks
  assert f'--network {{{",".join(networks)},MODEL.{keras}}}' in text and '[wrn]' in text
  assert f'--preprocess {{{",".join(keras_split.PREPROCESS)}}}' in text
  assert f'--dataset {{{",".join(train.datasets)}}}' in text and cifar100.DATA_DIR in text


@pytest.mark.parametrize('arguments, code, words', [
  (['train.py', '--help'], 0, '--lr_step SHARES'),
  (['train.py', '--mode', 'group', '--test_interval', '5'], 2, '--val_interval'),
  (['train.py', '--mode', 'group', '--k', '0'], 1, "--k is '0'"), (['eval.py', '--help'], 0, '--trunk'),
  (['eval.py', '--checkpoint', 'x', '--batchsize', '5'], 2, '--batch_size'),
  (['-m', 'splitnet.reporting.compare', '--help'], 0, 'NAME=FILE'), (['-m', 'paper.figures', '5'], 2, '--checkpoint'),
  (['-m', 'serving.report', '--help'], 0, '--out'), (['-m', 'serving.infer', '--help'], 0, '--top'),
  (['-m', 'paper.tables', '--help'], 0, '--scratch_steps'), (['-m', 'paper.tables', '3', '--widht', '1'], 2, '--width'),
  (['-m', 'paper.table5', '--help'], 0, '--in_flight'), (['-m', 'paper.estimate', '--tflops', '0'], 1, '--tflops'),
  (['-m', 'benchmarks.speed', '--only', 'fast'], 1, 'baseline, '), (['-m', 'benchmarks.workers', '--help'], 0, '--k'),
  (['-m', 'benchmarks.input'], 2, '--data_dir'), (['keras_split.py', '--help'], 0, 'MODEL.keras'),
  (['imagenet.py', 'prepare', '--tar', 'x'], 2, 'no flag --tar'),
])  # fmt: skip
def test_help_and_typos_are_answered_before_tensorflow_is_imported(tmp_path, arguments, code, words):
  (tmp_path / 'tensorflow.py').write_text('raise SystemExit("TensorFlow was imported")')
  path = os.pathsep.join([str(tmp_path), helpers.PROJECT])
  environment = {**os.environ, 'PYTHONPATH': path}
  command = [sys.executable, *arguments]
  done = subprocess.run(command, capture_output=True, text=True, cwd=helpers.PROJECT, env=environment)
  assert (done.returncode, words in done.stdout + done.stderr) == (code, True), done.stderr
  assert code == 0 or done.stderr.count('\n') == 1


# --- released checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['group', 'split'])
def test_a_released_checkpoint_is_gone_on_from(data, tmp_path, mode):
  folder = str(tmp_path / mode)
  assert train.main(helpers.flags(mode, data, folder, '--basemodel', helpers.RELEASED, '--max_steps', 1)) == 0
  first, released = helpers.read_checkpoint(os.path.join(folder, 'ckpt-0')), helpers.read_checkpoint(helpers.RELEASED)
  assert first.network == resnet_split.WideResNet(k=1, num_residual_units=2).to_dict()  # 2-2-2
  if mode == 'group':
    helpers.assert_same({n: first.values[n] for n in released.values}, released.values)
  else:
    assert first.groups.keys() >= {'split_q1', 'split_p1', 'split_p2', 'split_p3', 'split_r21', 'split_r32'}
    for name in ('split_q1', 'split_r31'):
      expected = released.values[f'group/{name}/alpha'].argmax(0)
      np.testing.assert_array_equal(first.groups[name], expected)
    classes = np.flatnonzero(first.groups['split_q1'] == 1)
    np.testing.assert_array_equal(
      first.values['branch_1/logits/fc/biases'], released.values['logits/fc/biases'][classes]
    )


# --- other settings ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bfloat16_trains_with_float32_weights(runs, data, tmp_path, monkeypatch):
  monkeypatch.setattr(devices, 'precision_note', lambda precision, training: f'note: {precision}, {training}')
  more = ['--basemodel', runs['group'], '--max_steps', 3, '--precision', 'bfloat16', '--train_split', 'train_val']
  more += ['--initial_lr', 0.01]
  assert train.main(helpers.flags('split', data, str(tmp_path), *more)) == 0
  stored = helpers.read_checkpoint(str(tmp_path))
  assert all(v.dtype == np.float32 and np.isfinite(v).all() for v in stored.values.values())
  first = helpers.read_checkpoint(str(tmp_path / 'ckpt-0'))
  moved = [n for n in stored.values if n.endswith('/kernel') and not np.array_equal(stored.values[n], first.values[n])]
  assert len(moved) == sum(n.endswith('/kernel') for n in stored.values)
  assert json.loads(read(tmp_path, 'config.json'))['data']['train_images'] == 150
  # Near what float32 gives, and no kernel the same: every convolution was computed in bfloat16.
  exact = str(tmp_path / 'float32')
  assert train.main(helpers.flags('split', data, exact, *more, '--precision', 'float32')) == 0
  for name, value in helpers.read_checkpoint(exact).values.items():
    if name.endswith('/kernel'):
      change, exact_change = (v - first.values[name] for v in (stored.values[name], value))
      apart = np.linalg.norm(change - exact_change) / np.linalg.norm(exact_change)
      assert 1e-4 < apart < 0.3, (name, apart)
  # A run that is gone on with computes as it began.
  broken = str(tmp_path / 'broken')
  for steps in (1, 3):
    assert train.main(helpers.flags('split', data, broken, *more, '--max_steps', steps)) == 0
  helpers.assert_same(helpers.weights(broken), helpers.weights(str(tmp_path)))
  assert read(broken, 'train.log').count('note: bfloat16, True\n') == 1, 'told when it can still be changed'


# --- what is refused --------------------------------------------------------------------------------------------

NEW = 'NEW/run'  # a folder that does not exist
NUMBERS = {
  'batch_size': 0, 'max_steps': -1, 'num_train_instance': 0, 'num_val_instance': -3, 'display': 0, 'val_interval': 0,
  'val_iter': -1, 'checkpoint_interval': 0, 'group_summary_interval': -5, 'max_to_keep': 0, 'patience': -1,
  'seed': -1, 'l2_weight': -0.1, 'gamma1': -1.0, 'gamma2': 'nan', 'gamma3': -2.5, 'initial_lr': -0.1, 'lr_decay': 0.0,
  'momentum': 1.0, 'dropout_keep_prob': 0.0, 'gpu_fraction': 0.0, 'stop_when_converged': 1.0, 'k': 0,
  'num_residual_units': 0, 'ngroups1': 0, 'assignment_lr_scale': 'inf', 'num_classes': -1,
}  # fmt: skip
REFUSED = {
  # name: (mode, train_dir, flags, exit code, words that the sentence has)
  'no mode': (None, NEW, [], 2, ['--mode']),
  'mode': ('grouping', NEW, [], 2, ["'grouping'"]),
  'unknown flag': ('group', NEW, ['--test_interval', '5'], 2, ['--test_interval', 'did you mean --val_interval?']),
  'abbreviation': ('group', NEW, ['--max_step', '5'], 2, ['--max_step', 'did you mean --max_steps?']),
  'epochs': ('group', NEW, ['--epochs', '0'], 1, ["--epochs is '0'"]),
  'lr_step': ('group', NEW, ['--lr_step', '0.5,1.5'], 1, ["'0.5,1.5'", 'such as 0.6,0.85']),
  'lr_step of nothing': ('group', NEW, ['--lr_step', '1/0'], 1, ["'1/0'"]),
  'gamma2_ramp': ('group', NEW, ['--gamma2_ramp', '2'], 1, ["--gamma2_ramp is '2'", '[0, 1]']),
  'no number': ('group', NEW, ['--k', 'wide'], 2, ["'wide'", '--k']),
  'no boolean': ('group', NEW, ['--finetune', 'maybe'], 2, ["'maybe'"]),
  'large seed': ('group', NEW, ['--seed', '2147483647'], 1, ["--seed is '2147483647'", '2147483646']),
  'ngroups order 2 1': ('group', NEW, ['--ngroups1', '2', '--ngroups2', '3'], 1, ['--ngroups2 is 3', '--ngroups1']),
  'ngroups order 3 2': ('group', NEW, ['--ngroups2', '2', '--ngroups3', '4'], 1, ['--ngroups3 is 4', '--ngroups2']),
  'ngroups1 above classes': ('group', NEW, ['--ngroups1', '101'], 1, ['101', '100 classes']),
  'ngroups3 above channels': (
    'group', NEW, ['--k', '1', '--ngroups1', '20', '--ngroups2', '20', '--ngroups3', '20'], 1, ['20', 'only 16 units']
  ),
  'patience without images': (
    'group', NEW, ['--patience', '3', '--train_split', 'train_val'], 1, ['--patience 3', '--train_split train_val']
  ),
  'nothing to group': ('group', NEW, ['--ngroups1', '1', '--ngroups2', '1', '--ngroups3', '1'], 1, ['--ngroups1 is 1']),
  'branch_input': ('group', NEW, ['--branch_input', 'both'], 1, ["'both'"]),
  'classes': ('group', NEW, ['--num_classes', '10'], 1, ['--num_classes is 10', '100 classes']),
  'lr_step_epoch words': ('group', NEW, ['--lr_step_epoch', '100;140'], 1, ["'100;140'"]),
  'lr_step_epoch falls': ('group', NEW, ['--lr_step_epoch', '140,100'], 1, ["'140,100'"]),
  'lr_step_epoch negative': ('group', NEW, ['--lr_step_epoch=-3'], 1, ["'-3'"]),
  'lr_step_epoch nan': ('group', NEW, ['--lr_step_epoch', 'nan'], 1, ["'nan'"]),
  'lr_step_epoch inf': ('group', NEW, ['--lr_step_epoch', '3,inf'], 1, ["'3,inf'"]),
  'lr_schedule': ('group', NEW, ['--lr_schedule', 'linear'], 1, ["'linear'", 'step or cosine']),
  'precision': ('group', NEW, ['--precision', 'float16'], 1, ["'float16'", 'bfloat16']),
  'train_split': ('group', NEW, ['--train_split', 'test'], 1, ["'test'", 'train_val']),
  'batch above data': ('group', NEW, ['--num_train_instance', '19'], 1, ['--batch_size is 20', '19']),
  'more than the data': ('group', NEW, ['--num_train_instance', '91'], 1, ['91', 'only 90']),
  'more validation': ('group', NEW, ['--num_val_instance', '61'], 1, ['61', 'only 60']),
  'converged baseline': ('baseline', NEW, ['--stop_when_converged', '0.9'], 1, ['--stop_when_converged', 'group']),
  'learned start': ('split', NEW, ['--grouping_start', 'basemodel'], 1, ['--grouping_start', '--grouping']),
  'start from nothing': (
    'split', NEW, ['--grouping', 'random', '--grouping_start', 'basemodel'], 1, ['--grouping_start', '--basemodel'],
  ),
  'start': ('split', NEW, ['--grouping', 'random', '--grouping_start', 'x'], 1, ["'x'", 'scratch or basemodel']),
  'no data': ('group', NEW, ['--data_dir', 'NEW/data'], 1, ['NEW/data', 'download_cifar100.py']),
  'split from nothing': ('split', NEW, [], 1, ['--basemodel']),
  'split from an empty folder': ('split', 'NEW', [], 1, ['--basemodel']),
  'missing basemodel': ('split', NEW, ['--basemodel', 'NEW/base'], 1, ['NEW/base']),
  'basemodel without checkpoint': ('split', NEW, ['--basemodel', 'DATA'], 1, ['DATA', 'no checkpoint']),
  'split from a baseline': (
    'split', NEW, ['--basemodel', 'RUNS/baseline'], 1, ['RUNS/baseline', 'is a baseline checkpoint']
  ),
  'group from a split': ('group', NEW, ['--basemodel', 'RUNS/split'], 1, ['RUNS/split', 'split checkpoint']),
  'baseline from a group': ('baseline', NEW, ['--basemodel', 'RUNS/group'], 1, ['RUNS/group', 'group checkpoint']),
  'basemodel of another k': ('split', NEW, ['--basemodel', 'RUNS/group', '--k', '2'], 1, ['--k is 2', '--k 1']),
  'basemodel of other groups': (
    'split', NEW, ['--basemodel', 'RUNS/group', '--ngroups1', '4'], 1, ['--ngroups1 is 4', '--ngroups1 3']
  ),
  'released of another k': ('group', NEW, ['--basemodel', 'RELEASED', '--k', '8'], 1, ['--k is 8', '--k 1']),
  'train_dir is a file': ('group', 'RUNS/group/config.json', [], 1, ['RUNS/group/config.json', '--train_dir']),
  'train_dir in a file': ('group', 'RUNS/group/train.log/x', [], 1, ['RUNS/group/train.log/x', '--train_dir']),
  'grouping of a group': ('group', NEW, ['--grouping', 'random'], 1, ["'random'", '--mode split']),
  'grouping and basemodel': (
    'split', NEW, ['--grouping', 'semantic', '--basemodel', 'RUNS/group'], 1, ["'semantic'", 'RUNS/group']
  ),
  'clustering of a group': (
    'split', NEW, ['--grouping', 'clustering', '--basemodel', 'RUNS/group'], 1, ['RUNS/group', 'group checkpoint']
  ),
  'spectral start of nothing': ('group', NEW, ['--assignment_start', 'spectral'], 1, ['spectral', '--basemodel']),
  'spectral split': (
    'split', NEW, ['--assignment_start', 'spectral', '--basemodel', 'RUNS/group'], 1, ['spectral', '--mode group']
  ),
  'assignment_start': ('group', NEW, ['--assignment_start', 'even'], 1, ["'even'", 'noise or spectral']),
  # Going on with other settings.
  'other mode': ('baseline', 'RUNS/group', [], 1, ['RUNS/group', '--mode group', 'baseline']),
  'group in a split': ('group', 'RUNS/split', [], 1, ['RUNS/split', '--mode split', 'group']),
  'other batch_size': ('group', 'RUNS/group', ['--batch_size', '30'], 1, ['--batch_size 20', 'now it is 30']),
  'other seed': ('group', 'RUNS/group', ['--seed', '9'], 1, ['--seed 0', 'now it is 9']),
  'other k': ('group', 'RUNS/group', ['--k', '2'], 1, ['--k is 2', '--k 1']),
  'other groups': ('group', 'RUNS/group', ['--ngroups1', '4'], 1, ['--ngroups1 is 4', '--ngroups1 3']),
  'other precision': ('group', 'RUNS/group', ['--precision', 'bfloat16'], 1, ['--precision float32', 'bfloat16']),
  'other amount': ('group', 'RUNS/group', ['--num_train_instance', '80'], 1, ['--num_train_instance None', '80']),
  'other dropout': ('group', 'RUNS/group', ['--dropout_keep_prob', '0.5'], 1, ['--dropout_keep_prob 0.9', '0.5']),
  'other basemodel': ('group', 'RUNS/group', ['--basemodel', 'RELEASED'], 1, ['--basemodel', 'RELEASED']),
}  # fmt: skip
for name, value in NUMBERS.items():
  REFUSED[name] = ('group', NEW, [f'--{name}={value}'], 1, [f'--{name} is', str(value)])


@pytest.mark.parametrize('case', REFUSED)
def test_a_mistake_is_told_in_one_sentence_and_leaves_no_trace(runs, data, tmp_path, capsys, case):
  mode, train_dir, more, expected_code, words = REFUSED[case]
  folder = os.path.dirname(runs['group'])

  def filled(text):
    for short, long in (('NEW', str(tmp_path)), ('RUNS', folder), ('DATA', data), ('RELEASED', helpers.RELEASED)):
      text = text.replace(short, long)
    return text

  before = helpers.files(folder)
  arguments = helpers.flags(mode, data, filled(train_dir), '--max_steps', 20)
  if mode is None:
    arguments = arguments[2:]
  if train_dir == 'RUNS/group':  # the rest as it was begun
    arguments += ['--dropout_keep_prob', '0.9', '--group_summary_interval', '6']
  code, _, stderr = helpers.call(train, arguments + [filled(m) for m in more], capsys)
  assert code == expected_code, stderr
  assert stderr.count('\n') == 1 and stderr.startswith('train.py: ' if code == 1 else ''), stderr
  for word in words:
    assert filled(word) in stderr
  assert helpers.files(folder) == before
  assert not os.listdir(tmp_path)


def test_a_folder_with_a_released_checkpoint_is_not_trained_in(data, tmp_path, capsys):
  folder = str(tmp_path / 'released')
  shutil.copytree(os.path.dirname(helpers.RELEASED), folder)
  with open(os.path.join(folder, 'checkpoint'), 'w', encoding='utf-8') as f:
    f.write('model_checkpoint_path: "model.ckpt-0"\nall_model_checkpoint_paths: "model.ckpt-0"\n')
  before = helpers.files(folder)
  arguments = helpers.flags('group', data, folder, '--basemodel', folder, '--max_steps', 2)
  code, _, stderr = helpers.call(train, arguments, capsys)
  assert code == 1 and stderr.count('\n') == 1 and folder in stderr and '--train_dir' in stderr
  assert helpers.files(folder) == before


@pytest.mark.slow
def test_a_mistake_on_the_command_line_shows_the_sentence_and_nothing_else(data, tmp_path):
  arguments = helpers.flags('group', data, str(tmp_path / 'run'), '--num_train_instance', 7)
  process = helpers.start('train.py', arguments)
  stdout, stderr = process.communicate()
  assert process.returncode == 1 and stdout == ''
  assert stderr == 'train.py: --batch_size is 20, but there are only 7 training images\n'
