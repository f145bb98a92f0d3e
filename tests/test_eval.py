"""eval.py: its numbers against naive NumPy, what it writes, hardening, placement on devices, and what it refuses."""

import errno
import json
import os
import subprocess

import helpers
import numpy as np
import pytest
from PIL import Image

import cifar100
import eval as evaluation
from splitnet.common.errors import UserError
from splitnet.data import images
from splitnet.data.dataset import of_run
from splitnet.network import counting, hardening
from splitnet.parallel import devices, executor, placement
from splitnet.reporting import metrics, plots, results
from splitnet.training import checkpoints

# --- what is written --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['baseline', 'group', 'split'])
def test_every_stages_checkpoint_evaluates_alone(tmp_path_factory, runs, data, stage):
  result = helpers.evaluated(tmp_path_factory, stage)
  stored = helpers.read_checkpoint(runs[stage])
  test = cifar100.load(data, 'test')
  logits = checkpoints.load_network(stored)(cifar100.whiten(test.images)).numpy()
  groups = checkpoints.class_groups(stored)
  expected = metrics.measure(logits, test.labels, cifar100.load_names(data), groups)
  assert (groups is None) == (stage == 'baseline')
  for name, value in expected.items():
    if name == 'cross_entropy':
      assert result[name] == pytest.approx(value, rel=1e-5)
    else:
      assert result[name] == value, name
  assert result['checkpoint'] == stored.path and result['split'] == 'test' and not result['hardened']
  assert result['network'] == json.loads(json.dumps(stored.configuration['network']))
  assert result['precision'] == 'float32' and result['images_per_second'] > 0 and result['latency'] > 0


def test_the_counts_are_the_evaluated_networks(tmp_path_factory, runs):
  baseline, split = (helpers.evaluated(tmp_path_factory, stage) for stage in ('baseline', 'split'))
  assert split['parameters'] < baseline['parameters'] and split['flops'] < baseline['flops']
  network = checkpoints.load_network(helpers.read_checkpoint(runs['split']))
  assert (split['parameters'], split['flops']) == counting.total(counting.counts(network))


def test_the_json_is_complete_and_the_picture_opens(tmp_path_factory):
  result = helpers.evaluated(tmp_path_factory, 'split')
  confusion = np.array(result['confusion'])
  assert confusion.shape == (100, 100) and confusion.sum() == 70 == result['images']
  assert np.trace(confusion) / 70 == pytest.approx(result['accuracy'])
  assert len(result['class_accuracy']) == 100 and len(result['accuracy_within_superclass']) == 20
  assert sorted(name for members in result['groups'] for name in members) == sorted(result['class_accuracy'])
  assert len(result['groups']) == 3 and result['network_text'] == 'WRN-10-1, split 1-2-3'
  with Image.open(result['confusion_picture']) as picture:
    assert picture.format == 'PNG' and picture.size == (1012, 946)  # 9.2 x 8.6 inches at 110 dots
    assert len(picture.convert('RGB').getcolors(2**20)) > 10
  folder = os.path.dirname(result['confusion_picture'])
  assert sorted(os.listdir(folder)) == ['result-confusion.png', 'result-samples.png', 'result.json']
  with Image.open(result['samples_picture']) as picture:
    assert picture.format == 'PNG' and picture.width > 8 * 96 and picture.height > 3 * 96  # 24 images, 8 in a row


def test_the_table_shows_the_numbers(tmp_path_factory, runs, data, capsys):
  result = helpers.evaluated(tmp_path_factory, 'split')
  # On the images of the folder that the run names; that CIFAR-100 is elsewhere, if it is gone.
  assert of_run({'data_dir': data}, None, None) == ('cifar100', data)
  assert of_run({'data_dir': data + '/gone'}, None, None) == of_run({}, None, None) == ('cifar100', None)
  code, stdout, stderr = helpers.call(evaluation, ['--checkpoint', runs['split']], capsys)
  assert code == 0 and stderr == ''
  assert f"accuracy, top 1            {100 * result['accuracy']:.2f} %\n" in stdout
  assert f"parameters                 {result['parameters']:,}\n" in stdout
  for name in [*result['class_accuracy'], *result['accuracy_within_superclass'], 'group 2, ']:
    assert name in stdout


def test_a_precision_that_is_slow_here_is_told(runs, data, capsys, monkeypatch):
  monkeypatch.setattr(devices, 'precision_note', lambda precision, training: f'note: {precision}, {training}')
  arguments = ['--checkpoint', runs['split'], '--data_dir', data, '--test_iter', 1]
  for precision in ('float32', 'bfloat16'):
    code, _, stderr = helpers.call(evaluation, [*arguments, '--precision', precision], capsys)
    assert (code, stderr) == (0, f'note: {precision}, False\n')


def test_fewer_batches_and_other_sizes_evaluate_the_first_images(runs, data):
  stored = helpers.read_checkpoint(runs['split'])
  network, test = checkpoints.load_network(stored), cifar100.load(data, 'test')
  whole, _ = executor.predict(network, test.images, cifar100.whiten, 70)
  some, _ = executor.predict(network, test.images, cifar100.whiten, 9, max_batches=3)
  rest, _ = executor.predict(network, test.images, cifar100.whiten, 32)
  assert whole.shape == rest.shape == (70, 100) and some.shape == (27, 100)
  np.testing.assert_allclose(some, whole[:27], atol=1e-5)
  np.testing.assert_allclose(rest, whole, atol=1e-5)


@pytest.mark.parametrize('stage', ['baseline', 'group', 'split'])
def test_the_validation_accuracy_is_the_one_that_train_reported(runs, data, tmp_path, stage):
  path = str(tmp_path / 'made' / 'result.json')
  arguments = ['--checkpoint', runs[stage], '--data_dir', data, '--split', 'val', '--output_file', path]
  assert evaluation.main(arguments) == 0
  with open(path, encoding='utf-8') as f, open(os.path.join(runs[stage], 'train.log'), encoding='utf-8') as log:
    result, lines = json.load(f), log.read()
  step = helpers.LAST[stage]
  reported = 'step %d: validation accuracy %.2f %%, cross-entropy %.4f,'
  assert reported % (step, 100 * result['accuracy'], result['cross_entropy']) in lines


@pytest.mark.slow
def test_bfloat16_evaluates_to_about_the_same(tmp_path_factory):
  exact = helpers.evaluated(tmp_path_factory, 'split')
  rounded = helpers.evaluated(tmp_path_factory, 'split', '--precision', 'bfloat16')
  assert rounded['precision'] == 'bfloat16'
  assert rounded['cross_entropy'] != exact['cross_entropy']
  assert rounded['cross_entropy'] == pytest.approx(exact['cross_entropy'], rel=0.02)


# --- what cannot be written ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('fails', ['write_json', 'draw_confusion'])
def test_a_result_that_cannot_be_written_is_shown(runs, data, tmp_path, capsys, monkeypatch, fails):
  def fail(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(results if fails == 'write_json' else plots, fails, fail)
  path = str(tmp_path / 'result.json')
  arguments = ['--checkpoint', runs['split'], '--data_dir', data, '--test_iter', 1, '--output_file', path]
  code, stdout, stderr = helpers.call(evaluation, arguments, capsys)
  assert (code, stderr) == (1, f"eval.py: --output_file: '{path}' cannot be written (No space left on device)\n")
  assert 'accuracy, top 1 ' in stdout and 'written:' not in stdout
  assert os.listdir(tmp_path) == ([] if fails == 'write_json' else ['result.json'])


def test_a_pipe_gets_the_result_and_no_picture_beside_it(runs, data, tmp_path, capsys):
  pipe = str(tmp_path / 'pipe')
  os.mkfifo(pipe)
  arguments = ['--checkpoint', runs['baseline'], '--data_dir', data, '--test_iter', 1, '--output_file', pipe]
  with subprocess.Popen(['cat', pipe], stdout=subprocess.PIPE, text=True) as reader:
    code, stdout, stderr = helpers.call(evaluation, arguments, capsys)
    result = json.loads(reader.communicate()[0])
  assert (code, stderr, os.listdir(tmp_path)) == (0, '', ['pipe'])
  assert stdout.endswith(f'\nwritten: {pipe}\n') and result['images'] == 70 and 'confusion_picture' not in result


# --- hardening --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_hardening_while_evaluating_is_what_split_mode_starts_from(tmp_path_factory, runs, data):
  grouping = helpers.read_checkpoint(runs['group'])
  first = helpers.read_checkpoint(os.path.join(runs['split'], 'ckpt-0'))
  whitened = cifar100.whiten(cifar100.load(data, 'test').images)
  hardened = checkpoints.load_network(grouping, harden=True)
  helpers.assert_same({n: v.numpy() for n, v in hardened.weights.items()}, first.values)
  helpers.assert_same(hardened.groups, first.groups)
  logits = checkpoints.load_network(first)(whitened).numpy()
  np.testing.assert_array_equal(hardened(whitened).numpy(), logits)

  result = helpers.evaluated(tmp_path_factory, 'group', '--harden')
  plain = helpers.evaluated(tmp_path_factory, 'group')
  labels = cifar100.load(data, 'test').labels
  assert result['hardened'] and result['network_text'] == 'WRN-10-1, split 1-2-3'
  assert result['accuracy'] == (logits.argmax(1) == labels).mean()
  assert result['groups'] == plain['groups']
  assert result['parameters'] < plain['parameters']
  assert result['cross_entropy'] != plain['cross_entropy']
  assert 'dropped' not in plain
  assert result['dropped'] == hardening.dropped_weights(hardened.graph, first.groups, grouping.values)._asdict()


@pytest.mark.slow
def test_a_released_checkpoint_evaluates_dense_and_hardened(data, tmp_path):
  results = []
  for more in ([], ['--harden']):
    path = str(tmp_path / 'result.json')
    arguments = ['--checkpoint', helpers.RELEASED, '--data_dir', data, '--output_file', path]
    assert evaluation.main(arguments + more) == 0
    with open(path, encoding='utf-8') as f:
      results.append(json.load(f))
  assert [r['network_text'] for r in results] == ['WRN-16-1, grouping, not hardened 2-2-2', 'WRN-16-1, split 2-2-2']
  assert results[0]['groups'] == results[1]['groups'] and len(results[0]['groups']) == 2


def test_hardening_an_empty_group_is_refused_by_its_name(runs):
  stored = helpers.read_checkpoint(runs['group'])
  stored.values['group/split_r21/alpha'][1] -= 100
  with pytest.raises(UserError, match='split_r21'):
    checkpoints.load_network(stored, harden=True)


# --- placement --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('count, trunk', [(2, 'first'), (3, 'replicate')])
def test_logits_do_not_depend_on_the_placement(tmp_path_factory, runs, data, tmp_path, count, trunk):
  alone = helpers.evaluated(tmp_path_factory, 'split')
  path = str(tmp_path / 'result.json')
  arguments = ['--checkpoint', runs['split'], '--data_dir', data, '--num_logical_devices', count, '--trunk', trunk]
  process = helpers.start('eval.py', arguments + ['--output_file', path])
  stdout, stderr = process.communicate()
  assert (process.returncode, stderr) == (0, '')
  with open(path, encoding='utf-8') as f:
    result = json.load(f)
  assert result['devices'] == [f'/CPU:{i}' for i in range(count)]
  assert result['trunk'] == trunk and {part['device'] for part in result['placement']} == set(result['devices'])
  assert ', '.join(result['devices']) in stdout
  assert result['cross_entropy'] == pytest.approx(alone['cross_entropy'], rel=1e-6)
  for name in ('accuracy', 'top5_accuracy', 'confusion', 'groups', 'parameters', 'flops', 'errors_across_groups'):
    assert result[name] == alone[name], name


def test_the_help_has_the_defaults_and_choices_of_the_library():
  """They are written out there, since the modules that have them take seconds to import."""
  flags = evaluation.make_parser().parse_args(['--checkpoint', 'x'])
  assert (flags.in_flight, flags.trunk) == (executor.IN_FLIGHT, placement.TRUNKS[0])
  text = ' '.join(evaluation.make_parser().format_help().split())
  assert f'--trunk {{{",".join(placement.TRUNKS)}}}' in text
  assert f'--crops {{{",".join(map(str, images.CROPS))}}}' in text
  assert f'--dataset {{{",".join(evaluation.datasets)}}}' in text and cifar100.DATA_DIR in text


# --- what is refused --------------------------------------------------------------------------------------------


REFUSED = {
  'no checkpoint': (['--checkpoint', 'RUNS/nothing'], 1, ['RUNS/nothing', 'no checkpoint']),
  'folder without checkpoint': (['--checkpoint', 'DATA'], 1, ['DATA', 'no checkpoint']),
  'no such step': (['--checkpoint', 'RUNS/split/ckpt-77'], 1, ['RUNS/split/ckpt-77']),
  'not a checkpoint': (['--checkpoint', 'RUNS/split/config.json'], 1, ['config.json', 'no checkpoint']),
  'no flag': ([], 2, ['--checkpoint']),
  'unknown flag': (['--checkpoint', 'RUNS/split', '--batchsize', '3'], 2, ['--batchsize', 'mean --batch_size?']),
  'no number': (['--checkpoint', 'RUNS/split', '--batch_size', 'many'], 2, ['many', '--batch_size']),
  'unknown device': (['--checkpoint', 'RUNS/split', '--devices', '/CPU:0,/CPU:7'], 1, ["'/CPU:7'", '/CPU:0']),
  'no device': (['--checkpoint', 'RUNS/split', '--devices', ' , '], 1, ['--devices']),
  'too many devices': (['--checkpoint', 'RUNS/split', '--num_logical_devices', '65'], 1, ["'65'"]),
  'devices in use': (['--checkpoint', 'RUNS/split', '--num_logical_devices', '2'], 1, ['in use']),
  'split': (['--checkpoint', 'RUNS/split', '--split', 'tests'], 1, ["'tests'", 'test, val or train']),
  'batch_size': (['--checkpoint', 'RUNS/split', '--batch_size', '0'], 1, ["--batch_size is '0'"]),
  'test_iter': (['--checkpoint', 'RUNS/split', '--test_iter', '-1'], 1, ["--test_iter is '-1'"]),
  'precision': (['--checkpoint', 'RUNS/split', '--precision', 'float16'], 1, ["'float16'", 'bfloat16']),
  'gpu_fraction': (['--checkpoint', 'RUNS/split', '--gpu_fraction', '1.5'], 1, ["'1.5'"]),
  'trunk': (['--checkpoint', 'RUNS/split', '--trunk', 'last'], 1, ["'last'", 'replicate or first']),
  'in_flight': (['--checkpoint', 'RUNS/split', '--in_flight', '0'], 1, ["'0'", 'from 1 to 64']),
  'worker_timeout': (['--checkpoint', 'RUNS/split', '--worker_timeout', '0'], 1, ["'0'", '(0, 86400]']),
  'no worker': (['--checkpoint', 'RUNS/split', '--workers', ' , '], 1, ['--workers', 'host:port']),
  'worker without port': (['--checkpoint', 'RUNS/split', '--workers', 'a:1,b'], 1, ["'b'", 'host:port']),
  'no such port': (['--checkpoint', 'RUNS/split', '--workers', 'a:65536'], 1, ["'a:65536'", 'host:port']),
  'worker twice': (['--checkpoint', 'RUNS/split', '--workers', 'a:1,b:2,a:1'], 1, ["'a:1' twice"]),
  'workers and devices': (
    ['--checkpoint', 'RUNS/split', '--workers', 'a:1', '--devices', '/CPU:0'], 1, ['--devices', '--workers']
  ),
  'workers and XLA': (
    ['--checkpoint', 'RUNS/split', '--workers', 'a:1', '--jit_compile', 'True'], 1, ['--jit_compile', '--workers']
  ),
  'retry alone': (['--checkpoint', 'RUNS/split', '--retry'], 1, ['--retry', '--workers']),
  'harden baseline': (['--checkpoint', 'RUNS/baseline', '--harden'], 1, ['RUNS/baseline', 'baseline checkpoint']),
  'harden split': (['--checkpoint', 'RUNS/split', '--harden'], 1, ['RUNS/split', 'split checkpoint']),
  'no data': (['--checkpoint', 'RUNS/split', '--data_dir', 'RUNS/none'], 1, ['RUNS/none', 'download_cifar100.py']),
  'output in a file': (
    ['--checkpoint', 'RUNS/split', '--output_file', 'RUNS/split/config.json/x.json'], 1, ['RUNS/split/config.json']
  ),
  'output is nothing': (['--checkpoint', 'RUNS/split', '--output_file', ''], 1, ['--output_file is empty']),
  'workers are nothing': (['--checkpoint', 'RUNS/split', '--workers', ''], 1, ["--workers ''", 'host:port']),
  'output is a folder': (['--checkpoint', 'RUNS/split', '--output_file', 'RUNS/split'], 1, ['RUNS/split', 'folder']),
}  # fmt: skip


@pytest.mark.parametrize('case', REFUSED)
def test_a_mistake_is_told_in_one_sentence_and_leaves_no_trace(runs, data, capsys, case):
  arguments, expected_code, words = REFUSED[case]
  folder = os.path.dirname(runs['split'])

  def filled(text):
    return text.replace('RUNS', folder).replace('DATA', data)

  before = helpers.files(folder)
  arguments = [filled(a) for a in arguments]
  if '--data_dir' not in arguments:
    arguments += ['--data_dir', data]
  code, _, stderr = helpers.call(evaluation, arguments, capsys)
  assert code == expected_code
  assert stderr.startswith('eval.py: ' if code == 1 else '') and stderr.count('\n') == 1, stderr
  for word in words:
    assert filled(word) in stderr
  assert helpers.files(folder) == before


def test_data_with_other_classes_is_refused(runs, tmp_path, capsys):
  folder = helpers.write(tmp_path)
  path = os.path.join(folder, 'names.json')
  with open(path, encoding='utf-8') as f:
    names = json.load(f)
  names.update(fine=names['fine'][:10], fine_to_coarse=names['fine_to_coarse'][:10])
  with open(path, 'w', encoding='utf-8') as f:
    json.dump(names, f)
  subset = os.path.join(folder, 'test.npz')
  with np.load(subset) as archive:
    arrays = dict(archive, labels=archive['labels'] % 10)
  np.savez(subset, **arrays)
  code, _, stderr = helpers.call(evaluation, ['--checkpoint', runs['split'], '--data_dir', folder], capsys)
  assert code == 1 and '100 classes' in stderr and 'has 10' in stderr and stderr.count('\n') == 1


def test_other_data_than_in_training_is_pointed_out(runs, tmp_path, capsys):
  folder = helpers.write(tmp_path)
  path = os.path.join(folder, 'names.json')
  with open(path, encoding='utf-8') as f:
    names = json.load(f)
  with open(path, 'w', encoding='utf-8') as f:
    json.dump(dict(names, source='official'), f)
  code, _, stderr = helpers.call(evaluation, ['--checkpoint', runs['split'], '--data_dir', folder], capsys)
  assert code == 0 and 'synthetic' in stderr and 'official' in stderr and stderr.count('\n') == 1


@pytest.mark.parametrize('what', ['data', 'index'])
def test_a_damaged_checkpoint_is_told_in_one_sentence(runs, data, tmp_path, capsys, what):
  for name in os.listdir(runs['split']):
    path = os.path.join(runs['split'], name)
    if os.path.isfile(path):
      with open(path, 'rb') as f:
        content = f.read()
      if name.startswith('ckpt-6.' + what):
        content = content[: len(content) // 2]
      (tmp_path / name).write_bytes(content)
  arguments = ['--checkpoint', str(tmp_path / 'ckpt-6'), '--data_dir', data]
  code, _, stderr = helpers.call(evaluation, arguments, capsys)
  assert code == 1 and str(tmp_path / 'ckpt-6') in stderr and stderr.count('\n') == 1
