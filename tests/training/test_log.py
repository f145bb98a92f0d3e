"""What a run reports: train.log, metrics.jsonl, TensorBoard, pictures, and the tables of settings and sizes."""

import glob
import io
import json
import os
import re
import shutil

import helpers
import networks
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import resnet_split
import train
from splitnet.common.errors import UserError
from splitnet.network import counting, hardening
from splitnet.network.network import create
from splitnet.training import checkpoints, log, log_files, run_texts

ASSIGNMENTS = {'split_q1': (3, 100), 'split_p1': (3, 64), 'split_p2': (2, 32), 'split_r21': (2, 64)}  # groups, units
READ = {
  'split_q1': 'classes', 'split_p1': 'output of unit_3', 'split_p2': 'output of unit_2', 'split_r21': 'inside unit_3_0'
}  # fmt: skip


def read(*path):
  with open(os.path.join(*path), encoding='utf-8') as f:
    return f.read()


# --- text ---------------------------------------------------------------------------------------------------------


def test_settings_stand_on_a_line_each_in_the_order_of_their_names():
  assert run_texts.settings_table({'seed': 0, 'batch_size': 90}) == 'batch_size  90\nseed        0'


def test_every_layer_is_listed_with_its_size_and_they_add_up():
  network = networks.build(resnet_split.WideResNet(k=1, num_residual_units=1))
  _, *layers, total = run_texts.size_table(counting.counts(network)).split('\n')
  numbers = [[int(word.replace(',', '')) for word in line.split()[1:3]] for line in layers]
  counted = [not line.endswith('(not counted)') for line in layers]
  assert next(line.split()[0] for line, c in zip(layers, counted) if not c) == 'init_conv'
  paper = tuple(sum(n[i] for n, c in zip(numbers, counted) if c) for i in (0, 1))
  everything = tuple(sum(n[i] for n in numbers) for i in (0, 1))
  assert tuple(int(n.replace(',', '')) for n in re.findall(r'[\d,]*\d', total)) == paper + everything
  assert paper == counting.total(counting.counts(network))


def test_grouping_tells_what_it_would_harden_into_beside_the_dense_network(runs):
  last = helpers.read_checkpoint(runs['group'])
  network = create(last.graph, with_assignments=True)
  checkpoints.assign(network.weights, last.values, 'the test')
  hardened, dense = (counting.total(counting.counts(n)) for n in (hardening.harden(network), network))
  said = re.findall(r'hardened now: ([\d,]+) of ([\d,]+) \(([\d.]+) %\) parameters, ([\d,]+) of ([\d,]+) \(', read(
    runs['group'], 'train.log'))[-1]  # fmt: skip
  assert [int(said[i].replace(',', '')) for i in (0, 1, 3, 4)] == [hardened[0], dense[0], hardened[1], dense[1]]
  assert float(said[2]) == pytest.approx(100 * hardened[0] / dense[0], abs=0.06)
  dropped = hardening.dropped_weights(network.graph, hardening.present_groups(network), last.values)
  assert read(runs['group'], 'train.log').count('; drops ' + hardening.describe_dropped(dropped)) >= 1
  *_, metrics = log_files.read_metrics(runs['group'], 'groups')
  assert metrics == dict(
    step=12, kind='groups', hardened_parameters=hardened[0], parameters=dense[0], hardened_flops=hardened[1],
    flops=dense[1], dropped=dropped._asdict(),
  )  # fmt: skip
  alpha = network.weights['group/split_q1/alpha']
  alpha.assign(np.arange(alpha.shape[0])[:, None] * np.ones(alpha.shape))  # all in the last group
  assert run_texts.hardened_now(network)[1].startswith('cannot be hardened now: assignment split_q1')
  assert 'assignment split_q1' in run_texts.hardened_now(network)[0]['error']


# --- metrics ------------------------------------------------------------------------------------------------------


def test_metrics_hold_every_term_validation_and_group(runs):
  for mode, folder in runs.items():
    training = list(log_files.read_metrics(folder, 'train'))
    assert [m['step'] for m in training] == ([5, 10] if mode == 'group' else [5])
    terms = {'total', 'cross_entropy', 'l2', 'accuracy', 'learning_rate', 'images_per_second'}
    if mode == 'group':
      terms |= {'overlap', 'weight_split', 'uniform', 'confidence', 'group_sizes'}
    assert all(m.keys() == terms | {'step', 'kind'} for m in training)
    validations = [
      (m['step'], round(100 * m['accuracy'], 2), round(m['cross_entropy'], 4))
      for m in log_files.read_metrics(folder, 'val')
    ]
    assert validations == [pytest.approx(v, abs=0.006) for v in helpers.validations(read(folder, 'train.log'))]
    assert bool(list(log_files.read_metrics(folder, 'groups'))) == (mode == 'group')
  for metrics in log_files.read_metrics(runs['group'], 'train'):
    assert {n: (len(s), sum(s)) for n, s in metrics['group_sizes'].items()} == ASSIGNMENTS
    assert all(1 / groups <= metrics['confidence'][n] <= 1 for n, (groups, _) in ASSIGNMENTS.items())
  assert [m['step'] for m in log_files.read_metrics(runs['group'], 'groups')] == [0, 6, 12]
  best = [m['best'] for m in log_files.read_metrics(runs['baseline'], 'val')]
  first = next(log_files.read_metrics(runs['baseline'], 'val'))
  assert best == sorted(best) and best[0] == pytest.approx(first['accuracy'])


@pytest.mark.slow
def test_metrics_go_on_with_the_run_also_after_a_torn_line(runs, data, tmp_path):
  folder = str(tmp_path / 'run')
  shutil.copytree(runs['split'], folder)
  before = list(log_files.read_metrics(folder))
  with open(os.path.join(folder, log_files.METRICS), 'a', encoding='utf-8') as f:
    f.write('{"step": 6, "kind": "tr')  # killed here
  assert list(log_files.read_metrics(folder)) == before
  arguments = helpers.flags('split', data, folder, '--basemodel', runs['group'], '--max_steps', 10)
  assert train.main(arguments) == 0
  after = list(log_files.read_metrics(folder))
  assert after[: len(before)] == before
  assert [(m['step'], m['kind']) for m in after[len(before) :]] == [(10, 'train'), (10, 'val')]
  assert all(json.loads(line) for line in read(folder, log_files.METRICS).splitlines())


def test_without_metrics_there_are_none_and_damaged_ones_are_named(tmp_path):
  assert list(log_files.read_metrics(str(tmp_path))) == []
  (tmp_path / log_files.METRICS).write_text('{"step": 1, "kind": "val"}\n{"step": 2\n{"step": 3, "kind": "val"}\n')
  found = log_files.read_metrics(str(tmp_path))
  assert next(found) == {'step': 1, 'kind': 'val'}
  with pytest.raises(UserError, match=r'line 2 of .* is damaged'):
    next(found)


# --- what was reported of steps that are taken again ----------------------------------------------------------------


def reported(folder):
  """What a run has reported: lines of train.log, metrics, steps of TensorBoard's scalars by tag."""
  steps = {}
  paths = glob.glob(os.path.join(glob.escape(folder), 'summaries', '*'))
  for path in sorted(paths, key=lambda path: (len(path), path)):  # they end with a number
    for event in tf.compat.v1.train.summary_iterator(path):
      for value in event.summary.value:
        steps.setdefault(value.tag, []).append(event.step)
  return read(folder, 'train.log').splitlines(), list(log_files.read_metrics(folder)), steps


def report(folder, step, *steps):
  """Reports some steps of a run that is resumed at `step`."""
  written = log.Log(folder, step)
  terms = {'total': 1.0, 'cross_entropy': 1.0, 'accuracy': 0.5}
  network = networks.build(resnet_split.WideResNet(k=1, num_residual_units=1))
  if step >= 0:
    written.line(f"going on from step {step} ('ckpt')")
  for number in steps:
    written.train(number, terms, 0.1, 100.0, network)
    written.validation(number, 0.5, 1.0, 0.5)


@pytest.mark.parametrize('torn', [b'', b'step 99: lo'])
def test_no_step_stands_twice_after_a_kill(tmp_path, torn):
  folder, whole = str(tmp_path / 'killed'), str(tmp_path / 'whole')
  report(folder, -1, 5, 10, 15, 20)
  with open(os.path.join(folder, log_files.TEXT), 'ab') as f:
    f.write(b'step 20: groups\n  split_q1: group sizes [1]\n' + torn)
  for path in glob.glob(os.path.join(folder, 'summaries', '*')):
    with open(path, 'ab') as f:
      f.write(torn)
  report(folder, 10, 15, 20, 25)
  report(folder, 25)  # nothing is left to do
  report(whole, -1, 5, 10, 15, 20, 25)
  (lines, metrics, steps), (lines_of_whole, *rest) = reported(folder), reported(whole)
  assert [metrics, steps] == rest and steps['loss/total'] == [5, 10, 15, 20, 25]
  assert [line for line in lines if not line.startswith('going on')] == lines_of_whole
  assert len(lines) == len(lines_of_whole) + 2


def test_a_run_that_starts_anew_reports_nothing_of_before(tmp_path):
  report(str(tmp_path), -1, 0)  # killed before its first checkpoint
  report(str(tmp_path), -1, 0)
  lines, metrics, steps = reported(str(tmp_path))
  assert (len(lines), len(metrics)) == (2, 2) and steps['loss/total'] == [0]


# --- TensorBoard and pictures --------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def summaries(runs):
  """What TensorBoard finds of the grouping run: dict from plugin to tag to step to value."""
  events = EventAccumulator(os.path.join(runs['group'], 'summaries'), size_guidance={'tensors': 0})
  events.Reload()
  found = {}
  for tag in events.Tags()['tensors']:
    metadata = events.SummaryMetadata(tag)
    own = found.setdefault(metadata.plugin_data.plugin_name, {})
    own[tag] = {e.step: tf.make_ndarray(e.tensor_proto) for e in events.Tensors(tag)}
    own[tag]['description'] = metadata.summary_description
  return found


def steps_of(values):
  return sorted(set(values) - {'description'})


def test_summaries_hold_every_scalar_with_a_description(summaries, runs):
  scalars = summaries['scalars']
  terms = {
    'accuracy/train': 'accuracy', 'loss/total': 'total', 'loss/cross_entropy': 'cross_entropy', 'loss/l2': 'l2',
    'groups/overlap': 'overlap', 'groups/weight_split': 'weight_split', 'groups/uniform': 'uniform',
    'speed/learning_rate': 'learning_rate', 'speed/images_per_second': 'images_per_second',
  }  # fmt: skip
  metrics = {m['step']: m for m in log_files.read_metrics(runs['group'], 'train')}
  for tag, name in terms.items():
    assert steps_of(scalars[tag]) == [5, 10] and scalars[tag]['description'], tag
    assert all(float(scalars[tag][step]) == pytest.approx(metrics[step][name], rel=1e-6) for step in (5, 10))
  assert scalars['speed/learning_rate'][5] == np.float32(0.1)
  for step in (5, 10):
    of = {name: float(scalars[tag][step]) for tag, name in terms.items()}
    total = of['cross_entropy'] + 0.0001 * of['l2'] + of['overlap'] + of['weight_split'] + 10 * of['uniform']
    assert of['total'] == pytest.approx(total, rel=1e-5)
  assert steps_of(scalars['accuracy/val']) == steps_of(scalars['loss/val_cross_entropy']) == [0, 12]
  for name, (groups, units) in ASSIGNMENTS.items():
    tag = f'units/{READ[name]}'
    assert 1 / groups <= scalars[f'{tag}/confidence'][10] <= 1 and name in scalars[f'{tag}/confidence']['description']
    assert sum(scalars[f'{tag}/size of group {g}'][10] for g in range(groups)) == units
  least = min(scalars[f'units/{READ[name]}/confidence'][10] for name in ASSIGNMENTS)
  assert scalars['groups/least_confidence'][10] == least
  assert len(scalars) == 9 + 2 + 1 + 4 + (3 + 3 + 2 + 2)


def test_summaries_hold_histograms_and_what_one_looks_at(summaries, data):
  layers = {'unit_3_0/shortcut', 'unit_3_0/conv_1', 'unit_3_0/conv_2', 'logits/fc'}
  histograms, images, texts = (summaries[kind] for kind in ('histograms', 'images', 'text'))
  assert histograms.keys() == {f'weights/{n}' for n in layers} | {f'units/{READ[n]}/assignment' for n in ASSIGNMENTS}
  pictures = {f'weights by group/{name}' for name in layers}
  assert images.keys() == pictures | {'classes/confusion', 'classes/samples'}
  assert all(steps_of(steps) == [0, 6, 12] for steps in [*histograms.values(), *(images[tag] for tag in pictures)])
  assert steps_of(images['classes/confusion']) == [0, 12] and steps_of(images['classes/samples']) == [12]
  for tag, steps in images.items():
    width, height, content = steps[12]
    with Image.open(io.BytesIO(content)) as picture:
      assert picture.size == (int(width), int(height)) and picture.width >= 200 and steps['description'], tag
  # Red lines between groups.
  with Image.open(io.BytesIO(images['weights by group/logits/fc'][12][2])) as picture:
    colours = {colour for _, colour in picture.convert('RGB').getcolors(1 << 20)}
  assert {(214, 39, 40), (0, 0, 0)} <= colours
  assert steps_of(texts['groups/classes']) == [0, 6, 12]
  said = texts['groups/classes'][12].item().decode()
  assert said.startswith('| group | classes |') and '**superclass_' in said
  assert len(re.findall(r'\bclass_', said)) == 100


def test_tensorboard_compares_runs_by_their_settings(runs):
  found = {}
  for path in glob.glob(os.path.join(glob.escape(runs['group']), 'summaries', '*')):
    for event in tf.compat.v1.train.summary_iterator(path):
      for value in event.summary.value:
        if value.metadata.plugin_data.plugin_name == 'hparams':
          found[value.tag] = HParamsPluginData.FromString(value.metadata.plugin_data.content)
  [start] = [content.session_start_info for content in found.values() if content.HasField('session_start_info')]
  assert start.hparams['gamma3'].number_value == 10 and start.hparams['network'].string_value == 'WRN-10-1'


def test_pictures_are_drawn_and_open(runs):
  paths = sorted(glob.glob(os.path.join(runs['group'], 'pictures', '*')))
  assert [os.path.basename(p) for p in paths] == [f'weights-{step:06d}.png' for step in (0, 6, 12)]
  for path in paths:
    with Image.open(path) as picture:
      assert picture.format == 'PNG' and min(picture.size) > 300
      assert len(picture.convert('L').getcolors()) > 10
  assert not os.path.exists(os.path.join(runs['split'], 'pictures'))
