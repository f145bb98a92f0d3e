"""Tests partition.py, which changes no logits, and table5.py's times and table."""

import collections
import csv
import itertools
import json
import os
import threading

import forking
import helpers
import networks
import numpy as np
import pytest

import resnet_split
from paper import partition, published, table5
from splitnet.common.errors import UserError
from splitnet.network import counting
from splitnet.parallel import placement
from splitnet.reporting.tables import markdown


def program(*arguments):
  """Runs Python in a process of its own, on a fresh CPU; returns what it wrote."""
  done = forking.run(arguments)
  assert done.returncode == 0, done.stderr
  return done


def rows_of(markdown):
  """Returns the table in a Markdown text: list of dicts from column to text."""
  lines = [line for line in markdown.splitlines() if line.startswith('|')]
  header, _, *rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
  return [dict(zip(header, row)) for row in rows]


# --- partitions ---------------------------------------------------------------------------------------------------

PARTITIONED = """
import networks as t
from paper import partition
partitions = []
for units in (1, 2):
  dense = t.scramble(t.build(t.config_of('1-1-1', num_residual_units=units)))
  logits = dense(t.images())
  for spread in (partition.horizontal, partition.vertical):
    for count in (1, 2, 3):
      partitioned = spread(dense, devices[:count])
      program = tf.function(partitioned).get_concrete_function(t.images())
      ops = program.graph.get_operations()
      held = {inside.name: variable.device for variable, inside in program.graph.captures}
      on = {kind: [op.device[-1] for op in ops if op.type == kind]
            for kind in ('Conv2D', 'FusedBatchNormV3', 'Relu', 'AddV2', 'MatMul', 'ConcatV2')}
      partitions.append(dict(
        spread=spread.__name__, units=units, count=count, on=on,
        difference=float(tf.reduce_max(tf.abs(program(t.images()) - logits))),
        reads=[(op.device[-1], op.inputs[1].op.type, held[op.inputs[1].op.inputs[0].name][-1])
               for op in ops if op.type == 'Conv2D'],
        devices={name: [d[-1] for d in each] for name, each in partitioned.devices.items()},
        weights={name: [v.device[-1], v.shape.as_list()] for name, v in partitioned.weights.items()}))
half = t.build(t.config_of('1-1-1', num_residual_units=1), dtype=tf.bfloat16)
expected, ours = half(t.images()), partition.horizontal(half, devices[:2])(t.images())
rounding = [ours.dtype.name, float(tf.reduce_max(tf.abs(ours - expected)))]
found = [partitions, rounding]
"""


@pytest.fixture(scope='module')
def partitioned():
  """Returns what partitions were by (spread, residual units, devices), and rounding."""
  found, rounding = helpers.on_logical_devices(3, PARTITIONED)
  return {(f['spread'], f['units'], f['count']): f for f in found}, rounding


def graph_of(units):
  return resnet_split.WideResNet(k=1, num_residual_units=units, num_classes=20).graph()


CASES = list(itertools.product((1, 2), (1, 2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize('spread', ['horizontal', 'vertical'])
@pytest.mark.parametrize('units, count', CASES)
def test_partitions_compute_the_dense_logits(partitioned, spread, units, count):
  assert partitioned[0][spread, units, count]['difference'] <= 1e-5


def test_partitions_compute_in_the_networks_precision(partitioned):
  dtype, difference = partitioned[1]
  assert dtype == 'float32' and difference < 0.05


@pytest.mark.parametrize('units, count', CASES)
def test_horizontal_divides_every_layer_over_all_devices(partitioned, units, count):
  found = partitioned[0]['horizontal', units, count]
  everywhere = {str(i) for i in range(count)}
  kinds = collections.Counter(layer.op for layer in graph_of(units).layers)
  for op, expected in (
    ('Conv2D', kinds['conv']),
    ('FusedBatchNormV3', kinds['batch_norm']),
    ('Relu', kinds['batch_norm']),
    ('MatMul', 1),
  ):
    assert collections.Counter(found['on'][op]) == dict.fromkeys(everywhere, expected), op
  for layer in graph_of(units).layers:
    for name in [name for name in found['weights'] if name.startswith(layer.name + '/') and name.endswith('part_0')]:
      parts = [found['weights'][name[:-1] + str(i)] for i in range(count)]
      assert [device for device, _ in parts] == sorted(everywhere)
      outputs = [shape[-1] for _, shape in parts]
      assert sum(outputs) == layer.units.size and max(outputs) - min(outputs) <= 1, name
  # All parts are put together on each device before both convolutions of a block and before the logits, whose own
  # parts meet on the first device only; on one device there is nothing to put together.
  gathers = collections.Counter(found['on']['ConcatV2'])
  every = 2 * kinds['add'] + 1
  assert gathers == ({} if count == 1 else {d: every + (d == '0') for d in everywhere})


@pytest.mark.parametrize('spread', ['horizontal', 'vertical'])
@pytest.mark.parametrize('units, count', CASES)
def test_weights_are_where_they_are_used(partitioned, spread, units, count):
  found = partitioned[0][spread, units, count]
  for device, kind, source in found['reads']:
    assert kind == 'ReadVariableOp' and source == device
  for name, (device, _) in found['weights'].items():
    layer, part = name.rsplit('/', 2)[0], int(name[-1])
    assert device == found['devices'][layer][part], name


@pytest.mark.parametrize('units, count', CASES)
def test_vertical_cuts_where_the_busiest_device_has_least(partitioned, units, count):
  found = partitioned[0]['vertical', units, count]
  graph = graph_of(units)
  network = networks.build(resnet_split.WideResNet(k=1, num_residual_units=units, num_classes=20))
  counts = counting.counts(network)
  where = [int(device) for c in counts for device in found['devices'][c.name]]
  assert len(where) == len(counts) and list(found['devices']) == [layer.name for layer in graph.layers[1:]]
  assert where == sorted(where) and set(where) == set(range(count))
  flops = collections.Counter()
  for device, layer_count in zip(where, counts):
    flops[device] += layer_count.flops
  # Every other cut between blocks: what is before the first block goes with it, what is after the last with that.
  block_starts = [i for i, c in enumerate(counts) if c.name.endswith('/bn_1')][1:]
  costs = [c.flops for c in counts]
  cuts = [(0, *cut, len(costs)) for cut in itertools.combinations(block_starts, count - 1)]
  best = min(max(sum(costs[a:b]) for a, b in itertools.pairwise(cut)) for cut in cuts)
  assert max(flops.values()) == best
  # What was traced is where the layers are said to be, and only there.
  for op, kind in (('Conv2D', 'conv'), ('FusedBatchNormV3', 'batch_norm'), ('MatMul', 'linear')):
    expected = [device for device, c in zip(where, counts) if c.op == kind]
    assert sorted(map(int, found['on'][op])) == expected, op


def test_blocks_stay_whole():
  graph = graph_of(2)
  pieces = partition.pieces(graph)
  assert [name for piece in pieces for name in piece] == [layer.name for layer in graph.layers[1:]]
  blocks = [['init_conv', 'unit_1_0'], ['unit_1_1'], ['unit_2_0'], ['unit_2_1'], ['unit_3_0'],
            ['unit_3_1', 'unit_last', 'logits']]  # fmt: skip
  assert [list(dict.fromkeys(name.split('/')[0] for name in piece)) for piece in pieces] == blocks


@pytest.mark.parametrize('seed', range(20))
def test_the_balanced_cut_is_the_best_of_all(seed):
  rng = np.random.RandomState(seed)
  costs = rng.randint(1, 30, size=rng.randint(1, 9)).tolist()
  for parts in range(1, len(costs) + 1):
    sizes = placement.cut(costs, parts, sum)
    assert len(sizes) == parts and sum(sizes) == len(costs) and min(sizes) >= 1
    borders = [0, *itertools.accumulate(sizes)]
    cuts = [(0, *cut, len(costs)) for cut in itertools.combinations(range(1, len(costs)), parts - 1)]
    cost = {cut: max(sum(costs[a:b]) for a, b in itertools.pairwise(cut)) for cut in cuts}
    assert cost[tuple(borders)] == min(cost.values())
    assert tuple(borders) == min(cut for cut in cuts if cost[cut] == min(cost.values()))


def test_what_cannot_be_partitioned():
  for costs, parts in (([1, 2], 3), ([1, 2], 0)):
    with pytest.raises(ValueError, match=f'cannot cut 2 pieces into {parts} parts'):
      placement.cut(costs, parts, sum)
  config = resnet_split.WideResNet(k=1, num_residual_units=1, num_classes=20)
  groups = {name: np.arange(u.size) * u.groups // u.size for name, u in config.graph().units.items()}
  with pytest.raises(ValueError, match='only a dense network'):
    partition.horizontal(networks.build(config, groups=groups), ['/CPU:0'])


# --- timing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('in_flight', [1, 3])
def test_so_many_batches_are_in_flight_and_no_more(in_flight):
  lock, running, most, seen = threading.Lock(), [0], [0], []
  together = threading.Barrier(in_flight, timeout=30)  # opens only to as many batches at once

  class Logits:
    def __init__(self, batch):
      self.batch = batch

    def numpy(self):
      with lock:
        running[0] += 1
        most[0] = max(most[0], running[0])
      together.wait()
      with lock:
        running[0] -= 1
        seen.append(self.batch)

  assert table5.time_once(Logits, list(range(4 * in_flight)), in_flight) > 0
  assert sorted(seen) == list(range(4 * in_flight))
  assert most[0] == in_flight


def test_random_batches_are_all_images_and_the_same_every_time():
  batches = table5.random_batches(25, 10)
  assert [batch.shape.as_list() for batch in batches] == [[10, 32, 32, 3], [10, 32, 32, 3], [5, 32, 32, 3]]
  assert {batch.dtype.name for batch in batches} == {'uint8'}
  for batch, again in zip(batches, table5.random_batches(25, 10)):
    np.testing.assert_array_equal(batch, again)
  assert len(np.unique(batches[0])) > 200


# --- the table ----------------------------------------------------------------------------------------------------


def test_rows_are_the_papers():
  papers = [
    ('baseline', 1, 24.27, 1.00), ('baseline, horizontal', 2, 46.70, 0.52), ('baseline, vertical', 2, 20.15, 1.20),
    ('baseline, vertical', 3, 22.45, 1.08), ('shallow', 2, 17.78, 1.37), ('deep', 2, 14.03, 1.73),
    ('hierarchical', 2, 14.22, 1.71), ('deep, 3-way', 3, 10.92, 2.22),
  ]  # fmt: skip
  assert [(r.network, r.devices, r.seconds, r.speed_up) for r in published.TABLE_5] == papers
  for row in published.TABLE_5:
    assert row.speed_up == pytest.approx(24.27 / row.seconds, abs=0.006)
  assert [row.split for row in published.TABLE_5] == ['1-1-1'] * 4 + ['1-2-2', '2-2-2', '2-4-4', '3-3-3']


def test_the_table_has_means_deviations_and_speed_ups():
  seconds = {'baseline': [4.0, 5.0, 6.0], 'horizontal': [10.0, 10.0, 10.0], 'deep': [2.0, 2.0, 3.5]}
  summary = table5.summarise(published.TABLE_5, seconds, 2)
  lines = rows_of(markdown(*table5.table(summary)))
  assert len(lines) == 8
  by_name = {row.name: line for row, line in zip(published.TABLE_5, lines)}
  columns = ('time (s)', 'deviation (s)', 'speed-up', 'time (paper, s)', 'speed-up (paper)', 'remark')
  for name, expected in {
    'baseline': ['5.000', '1.000', '1.00', '24.27', '1.00', ''],
    'horizontal': ['10.000', '0.000', '0.50', '46.70', '0.52', ''],
    'deep': ['2.500', '0.866', '2.00', '14.03', '1.73', ''],  # 2, 2, 3.5: squares about 2.5 sum to 1.5; sqrt(1.5 / 2)
    'shallow': ['', '', '', '17.78', '1.37', ''],
    'deep-3': ['', '', '', '10.92', '2.22', 'needs 3 devices, there are 2'],
    'vertical-3': ['', '', '', '22.45', '1.08', 'needs 3 devices, there are 2'],
  }.items():
    assert [by_name[name][column] for column in columns] == expected, name
  assert by_name['hierarchical']['split'] == '2-4-4' and by_name['baseline']['split'] == ''


def test_speed_ups_are_against_the_first_row_that_was_run():
  rows = [row for row in published.TABLE_5 if row.name in ('vertical-3', 'shallow', 'deep')]
  summary = table5.summarise(rows, {'shallow': [3.0], 'deep': [2.0]}, 2)
  assert [line['speed_up'] for line in summary] == [None, 1.0, 1.5]
  assert [line['deviation'] for line in summary] == [None] * 3  # of one repeat there is none
  assert table5.summarise(rows, {}, 1)[0]['remark'] == 'needs 3 devices, there is 1'


def test_only_devices_that_share_their_hardware_are_said_to():
  cores, gpu = table5.SHARED['CPU'], table5.SHARED['GPU']
  owners = {
    '/CPU:0': ('CPU', 0),
    '/CPU:1': ('CPU', 0),
    '/GPU:0': ('GPU', 0),
    '/GPU:1': ('GPU', 0),
    '/GPU:2': ('GPU', 1),
  }
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(table5, 'physical', owners.get)
    assert table5.shared_note(['/CPU:0', '/CPU:1']) == cores
    assert table5.shared_note(['/GPU:0', '/GPU:1', '/CPU:0']) == gpu
    assert table5.shared_note(['/GPU:0', '/GPU:2', '/CPU:0']) == ''
  for words in ('placement works', 'what partitioning costs', 'not the speed-up of separate devices'):
    assert words in cores and words in gpu


# --- flags ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--k', '0'], ['--k is 0', 'at least 1']),
    (['--branch_input', 'some'], ['--branch_input', "'some'"]),
    (['--images', '0'], ["--images is '0'", 'from 1 to']),
    (['--batch_size', '-1'], ["--batch_size is '-1'"]),
    (['--repeats', '0'], ["--repeats is '0'"]),
    (['--in_flight', '65'], ["--in_flight is '65'", '64']),
    (['--num_logical_devices', '0'], ["--num_logical_devices is '0'"]),
    (['--rows', 'baseline,deeper'], ["'baseline,deeper'", 'hierarchical', 'deep-3']),
    (['--output', 'table5.txt'], ['--output', '.csv or .json']),
    (['--output', '/dev/null/table5.csv'], ['--output', "'/dev/null'"]),
  ],
)
def test_bad_flags_are_one_sentence(arguments, words, capsys):
  assert table5.main(arguments) == 1
  error = capsys.readouterr().err
  assert error.startswith('table5.py: ') and error.count('\n') == 1
  assert all(word in error for word in words), error


def test_devices_that_are_not_there_are_one_sentence(monkeypatch):
  monkeypatch.setattr(table5.devices, 'configure', lambda **_: ['/CPU:0'])
  for given, words in (('/CPU:0,/CPU:0', "names '/CPU:0' twice"), ('/TPU:0', "no device '/TPU:0'")):
    with pytest.raises(UserError, match=words):
      table5.set_up_devices(table5.parse_flags(['--devices', given]))


def test_several_gpus_are_not_cut(monkeypatch):
  asked = []
  monkeypatch.setattr(table5.devices, 'configure', lambda num_logical_devices: asked.append(num_logical_devices))
  monkeypatch.setattr(table5.devices, 'parse', lambda text: [])
  for gpus, arguments in ((0, []), (1, []), (2, []), (4, []), (2, ['--num_logical_devices', '2'])):
    monkeypatch.setattr(table5.tf.config, 'list_physical_devices', lambda kind, gpus=gpus: ['gpu'] * gpus)
    table5.set_up_devices(table5.parse_flags(arguments))
  assert asked == [3, 3, 1, 1, 2]


# --- the whole program ----------------------------------------------------------------------------------------------


def test_a_row_for_which_there_are_too_few_devices_stays_empty(monkeypatch, capsys, tmp_path):
  monkeypatch.setattr(table5.devices, 'configure', lambda **_: ['/CPU:0'])
  path = str(tmp_path / 'new' / 'table5.csv')
  arguments = ['--k', '1', '--images', '15', '--batch_size', '10', '--repeats', '1', '--rows', 'deep-3,baseline']
  assert table5.main([*arguments, '--output', path]) == 0
  out = capsys.readouterr().out
  baseline, deep = rows_of(out)  # in the paper's order
  assert float(baseline['time (s)']) > 0 and baseline['speed-up'] == '1.00'
  assert deep['time (s)'] == '' and deep['remark'] == 'needs 3 devices, there is 1'
  assert 'logical devices' not in out and 'one repeat' in out
  with open(path, encoding='utf-8', newline='') as f:
    assert list(csv.DictReader(f)) == [baseline, deep]
  assert os.listdir(tmp_path / 'new') == ['table5.csv']


TIMED = """
import json, sys
from paper import table5
steps, compiled = [], table5.compiled
table5.compiled = lambda *arguments: steps.append(compiled(*arguments)) or steps[-1]
assert table5.main(sys.argv[1:]) == 0
print(json.dumps([sorted({op.device[-1] for op in step.graph.get_operations() if op.type == 'Conv2D'})
                  for step in steps]))
"""


@pytest.mark.slow
def test_the_program_times_every_row_on_its_devices(tmp_path):
  path = str(tmp_path / 'table5.json')
  arguments = ['--k', '1', '--images', '50', '--batch_size', '20', '--repeats', '2', '--output', path]
  done = program('-c', TIMED, *arguments)
  on = json.loads(done.stdout.splitlines()[-1])
  assert on == [['0', '1', '2'][: row.devices] for row in published.TABLE_5]
  assert table5.SHARED['CPU'] in done.stdout
  assert 'random images and untrained weights' in done.stdout and 'WARNING' not in done.stderr
  lines = rows_of(done.stdout)
  with open(path, encoding='utf-8') as f:
    stored = json.load(f)
  assert stored['devices'] == ['/CPU:0', '/CPU:1', '/CPU:2'] and stored['images'] == 50
  assert [row['row'] for row in stored['rows']] == [row.name for row in published.TABLE_5]
  timed = [line.split()[4] for line in done.stderr.splitlines() if line.startswith('repeat ')]
  assert timed == [row.name for row in published.TABLE_5] * 2
  first = np.mean(stored['rows'][0]['seconds'])
  for row, line in zip(stored['rows'], lines):
    assert len(row['seconds']) == 2 and min(row['seconds']) > 0 and row['remark'] == ''
    assert row['mean'] == pytest.approx(np.mean(row['seconds']))
    assert row['deviation'] == pytest.approx(np.std(row['seconds'], ddof=1))
    assert line['speed-up'] == f'{first / np.mean(row["seconds"]):.2f}'
