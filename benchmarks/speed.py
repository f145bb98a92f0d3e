"""Measures how fast training, evaluation and the input pipeline are on this machine, as ratios, and prints tables.

Every row runs in a process of its own; those that are compared are measured in turns, again and again, so that whatever
else the machine does hits all alike; a ratio is the median of those of the turns. A first step's time begins
with the process. Beside the rows of this project:

  ceiling   the best rate of plain 3x3 convolutions and matrix products of the network's shapes: what its FLOPs
            would take at that rate (training: three times those of evaluation)
  keras     a plain Keras network of the same size, trained with model.fit (keras_wrn.py)

python benchmark.py                                   everything; the better part of an hour on two cores
python benchmark.py --k 8 --only baseline,split       is the split network as fast as its FLOPs allow?
python benchmark.py --k 8 --precision bfloat16        on a GPU, which has more batch sizes: what share of its peak?
"""

import argparse
import collections
import dataclasses
import datetime
import json
import re
import subprocess
import sys
import tempfile
import time

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import tensorflow as tf

from paper import tables
from splitnet.common.errors import UserError, run_program
from splitnet.common.files import PROJECT, check_output_file, write_json
from splitnet.common.flags import Parser, add
from splitnet.parallel import devices

# A row: its name for --only, what the tables call it, its workload (workloads.py), that workload's arguments.
Row = collections.namedtuple('Row', 'name text workload arguments')
XLA = not devices.use_xla('auto')  # the other way than train.py's default, which has to be the faster one
TRAINING = [
  Row('baseline', 'dense', 'training', dict(mode='baseline')),
  Row('group', 'grouping, dropout as grouping has it', 'training', dict(mode='group')),
  Row('group_alone', 'grouping without dropout', 'training', dict(mode='group', more=['--dropout_keep_prob', '1'])),
  Row('split', 'split', 'training', dict(mode='split')),
  Row('split_uneven', 'split, uneven groups', 'training', dict(mode='split', uneven=True)),
  Row(
    'xla',
    'dense, with%s XLA' % ('' if XLA else 'out'),
    'training',
    dict(mode='baseline', more=['--jit_compile', str(XLA)]),
  ),
  Row('keras', 'dense, plain Keras', 'keras', {}),
]
EVALUATION = [
  Row('eval_dense', 'dense', 'evaluation', dict(mode='baseline')),
  Row('eval_split', 'split', 'evaluation', dict(mode='split')),
  Row('eval_split_uneven', 'split, uneven groups', 'evaluation', dict(mode='split', uneven=True)),
]
PIPELINE = Row('pipeline', 'input pipeline', 'pipeline', {})
CEILING = Row('ceiling', 'ceiling', 'ceiling', {})
NAMES = [row.name for row in (*TRAINING, *EVALUATION, PIPELINE, CEILING)]


# --- flags ------------------------------------------------------------------------------------------------------


def numbers(text):
  """A list of positive numbers separated by commas."""
  try:
    found = [int(part) for part in text.split(',')]
  except ValueError:
    found = [0]
  if min(found) < 1 or max(found) > 10**6:
    raise argparse.ArgumentTypeError("'%s' is no list of numbers such as 1,2,8" % text)
  return list(dict.fromkeys(found))


def one_of(known):
  """The type of a flag that lists some of the names that are known."""

  def names(text):
    found = [part.strip() for part in text.split(',') if part.strip()]
    for name in found or ['']:
      if name not in known:
        raise argparse.ArgumentTypeError("'%s' is not one of %s" % (name, ', '.join(known)))
    return list(dict.fromkeys(found))

  return names


def parse_flags(argv):
  """Parses and checks the flags.

  Raises:
    UserError: where a value is out of range.
  """
  parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  add(parser, 'only', one_of(NAMES), ', '.join(NAMES), 'which rows: some of %(default)s [all]')
  add(parser, 'k', numbers, '1,2,8', 'width multipliers [%(default)s]')
  add(parser, 'precision', one_of(['float32', 'bfloat16']), 'float32,bfloat16', 'of the convolutions [%(default)s]')
  more = ',256,1024' if tf.config.list_physical_devices('GPU') else ''
  add(parser, 'train_batch', numbers, '90' + more, 'images per batch in training [90; on a GPU 90,256,1024]')
  add(parser, 'eval_batch', numbers, '100' + more, 'images per batch in evaluation [100; on a GPU 100,256,1024]')
  add(parser, 'num_residual_units', int, 2, 'residual blocks per stage [%(default)s]')
  add(
    parser,
    'split',
    str,
    '2-2-2',
    'the split that is grouped for and split into, ngroups3-ngroups2-ngroups1 [%(default)s]',
  )
  add(parser, 'branch_input', str, 'group', "group or all, as train.py's [%(default)s]")
  add(parser, 'seconds', float, 3.0, 'that each row is measured for in each turn, one call at least [%(default)s]')
  add(parser, 'repeats', int, 3, 'turns [%(default)s]')
  add(parser, 'output', str, '', 'JSON file for the results, written after every table [none]')
  flags = parser.parse_args(argv)
  for name, good, what in (
    ('seconds', 0 < flags.seconds <= 3600, 'above 0, at most 3600'),
    ('repeats', 1 <= flags.repeats <= 1000, 'from 1 to 1000'),
    ('split', re.fullmatch(r'\d+-\d+-\d+', flags.split), 'three numbers of groups, such as 2-2-2'),
    ('num_residual_units', 1 <= flags.num_residual_units <= 100, 'from 1 to 100'),
  ):
    if not good:
      raise UserError('--%s is %s; it must be %s' % (name, getattr(flags, name), what))
  for k in flags.k:
    config_of(flags, k)
  if flags.output:
    check_output_file('--output', flags.output)
  return flags


def config_of(flags, k):
  """The architecture.Config of a width."""
  config = tables.split_config(flags.split, k, flags.branch_input)
  return dataclasses.replace(config, num_residual_units=flags.num_residual_units)


# --- processes ----------------------------------------------------------------------------------------------------


class Process:
  """A workload in a process of its own."""

  def __init__(self, row, config, arguments):
    self.row, self.failed = row, None
    self.turns, self.memory = [], None
    request = dict(
      workload=row.workload, config=dataclasses.asdict(config), arguments={**arguments, **row.arguments},
      started=time.time(),
    )  # fmt: skip
    self._errors = tempfile.TemporaryFile('w+')
    self._process = subprocess.Popen(
      [sys.executable, '-m', 'benchmarks.workloads', json.dumps(request)], stdin=subprocess.PIPE,
      stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=PROJECT,
    )  # fmt: skip
    self.start = self._read()

  def _read(self):
    """The next line that the process writes, a dict; where it ended instead, {} and `failed` says why."""
    line = self._process.stdout.readline()
    if line:
      return json.loads(line)
    self._process.wait()
    self._errors.seek(0)
    told = [text.strip() for text in self._errors if text.strip()]
    self.failed = told[-1][:200] if told else 'ended with code %d' % self._process.returncode
    return {}

  def measure(self, seconds):
    """One turn."""
    if self.failed:
      return
    try:
      self._process.stdin.write('measure %r\n' % seconds)
      self._process.stdin.flush()
    except BrokenPipeError:
      pass  # it ended, and tells why
    turn = self._read()
    if turn:
      self.turns.append(turn)

  def end(self):
    """Ends the process and takes its peak memory."""
    if not self.failed:
      self._process.stdin.close()
      self.memory = self._read().get('memory')
    self.kill()

  def kill(self):
    """Ends the process, whatever it is doing."""
    if self._process.poll() is None:
      self._process.kill()
      self._process.wait()


def measure(rows, config, arguments, flags, label):
  """Measures rows in turns, each in a process of its own that is there all the while.

  Args:
    rows: list of Row; config: an architecture.Config; arguments: of every row's workload, a dict.
    flags: the parsed flags; label: what the lines on stderr begin with.

  Returns:
    A dict from row name to its Process, ended.
  """
  processes = {}

  def tell(text):
    print('%s: %s' % (label, text), file=sys.stderr, flush=True)

  try:
    for row in rows:
      own = {} if row.workload == 'pipeline' else {'precision': arguments['precision']}
      processes[row.name] = Process(row, config, {'batch_size': arguments['batch_size'], **own})
      failed = processes[row.name].failed
      tell('%s %s' % (row.name, 'failed: %s' % failed if failed else 'is ready'))
    for repeat in range(flags.repeats):
      for process in processes.values():
        process.measure(flags.seconds)
      tell('turn %d of %d' % (repeat + 1, flags.repeats))
    for process in processes.values():
      process.end()
  finally:
    for process in processes.values():
      process.kill()
  return processes


# --- results ------------------------------------------------------------------------------------------------------


def median(values):
  """The median of a list of numbers; None of none."""
  values = sorted(values)
  middle = len(values) // 2
  return None if not values else (values[middle] + values[~middle]) / 2


def ratio(process, other, factor=1.0):
  """The median over the turns of one row's rate over another's, times a factor; None where one was not measured."""
  if process is None or other is None:
    return None
  return median([factor * a['rate'] / b['rate'] for a, b in zip(process.turns, other.turns)])


def summarise(kind, rows, processes, settings):
  """What was measured, a list of dicts that JSON can hold.

  Args:
    kind: 'training' or 'evaluation'; rows: list of Row.
    processes: dict from row name to Process, ended; the ceiling's among them where it was measured.
    settings: dict of what all rows share: 'k', 'precision', 'batch_size'.

  Returns:
    Dicts with the settings and 'kind' ('training', 'evaluation' or 'pipeline'), 'row', 'text', 'rate' (images/s,
    median), 'rates', 'of_ceiling', 'against_dense', 'flops' (of evaluating an image), 'flops_allow' (those of the dense
    network over these), 'against_keras', 'latency' (ms, evaluation), 'memory' (bytes by kind), 'first_step' (s,
    training), 'remark'; None for what was not measured.
  """
  ceiling, keras = processes.get('ceiling'), processes.get('keras')
  dense = processes.get('baseline' if kind == 'training' else 'eval_dense')
  result = []
  for row in rows:
    process = processes[row.name]
    flops, feeds = process.start.get('flops'), row.workload == 'pipeline'
    work = 3.0 * flops if flops and kind == 'training' else flops
    result.append({
      **settings,
      'kind': 'pipeline' if feeds else kind,
      'row': row.name,
      'text': row.text,
      'rate': median([turn['rate'] for turn in process.turns]),
      'rates': [turn['rate'] for turn in process.turns],
      'of_ceiling': ratio(process, ceiling, work) if work else None,
      'against_dense': ratio(process, dense),
      'flops': flops,
      'flops_allow': process.start['dense_flops'] / flops if flops else None,
      'against_keras': None if feeds else ratio(process, keras),
      'latency': median([turn['latency'] for turn in process.turns if 'latency' in turn]),
      'memory': process.memory,
      'first_step': process.start.get('first_step') if kind == 'training' else None,
      'remark': 'failed: %s' % process.failed if process.failed else '',
    })  # fmt: skip
  return result


def ceiling_of(processes, settings):
  """What the ceiling's row measured: a list of one dict with the settings, 'rate' (FLOPs/s) and 'shape', or of none."""
  process = processes.get('ceiling')
  if process is None or not process.turns:
    return []
  best = max(process.turns, key=lambda turn: turn['rate'])
  rate = median([turn['rate'] for turn in process.turns])
  return [{**settings, 'kind': 'ceiling', 'row': 'ceiling', 'rate': rate, 'shape': best['shape']}]


def run_all(flags):
  """Measures what the flags ask for; yields (results so far: a list of dicts, the machine: a dict) after each part."""
  results, machine = [], {}

  def part(kind, rows, k, precision, batch_size):
    settings = {'k': k, 'precision': precision, 'batch_size': batch_size}
    wanted = [row for row in rows if row.name in flags.only]
    if not wanted and not (kind == 'training' and flags.only == ['ceiling']):
      return
    asked = ([CEILING] if 'ceiling' in flags.only else []) + wanted
    label = '%s, k = %d, %s, batch %d' % (kind, k, precision, batch_size)
    processes = measure(asked, config_of(flags, k), settings, flags, label)
    machine.update(next((p.start['machine'] for p in processes.values() if p.start), {}))
    results.extend(summarise(kind, wanted, processes, settings) + ceiling_of(processes, settings))

  for k in flags.k:
    for precision in flags.precision:
      for kind, rows, batches in (
        ('training', TRAINING, flags.train_batch),
        ('evaluation', EVALUATION, flags.eval_batch),
      ):
        for batch_size in batches:
          # The pipeline beside what it feeds: the width whose steps are shortest.
          beside = [PIPELINE] if kind == 'training' and k == min(flags.k) else []
          part(kind, rows + beside, k, precision, batch_size)
          yield results, machine


# --- tables -------------------------------------------------------------------------------------------------------

SHARED = ['k', 'precision', 'batch']
COMPARED = ['network', *SHARED, 'images/s', 'of the ceiling', 'against dense', 'FLOPs allow']
TABLES = {
  'training': ('Training', [*COMPARED, 'against Keras', 'memory (GB)', 'first step (s)', 'remark']),
  'evaluation': ('Evaluation', [*COMPARED, 'one image (ms)', 'memory (GB)', 'remark']),
  'pipeline': ('Input pipeline alone, against training', [*SHARED, 'images/s', 'against dense', 'remark']),
  'ceiling': ('Ceiling', [*SHARED, 'GFLOP/s', 'shape']),
}


def cells(line, split):
  """The texts of one of `run_all`'s dicts by column."""

  def number(name, form):
    value = line.get(name)
    return '' if value is None else form % value

  memory = [
    '%.2f%s' % (size / 1e9, '' if kind == 'host' else ' ' + kind) for kind, size in (line.get('memory') or {}).items()
  ]
  return {
    'network': re.sub('^split', 'split ' + split, line.get('text', '')),
    'k': '%d' % line['k'],
    'precision': line['precision'],
    'batch': '%d' % line['batch_size'],
    'images/s': number('rate', '%.0f' if (line['rate'] or 0) >= 1000 else '%.1f'),
    'of the ceiling': number('of_ceiling', '%.2f'),
    'against dense': number('against_dense', '%.2f'),
    'FLOPs allow': number('flops_allow', '%.2f'),
    'against Keras': number('against_keras', '%.2f'),
    'one image (ms)': number('latency', '%.2f'),
    'memory (GB)': ' + '.join(memory),
    'first step (s)': number('first_step', '%.1f'),
    'remark': line.get('remark', ''),
    'GFLOP/s': '%.0f' % ((line['rate'] or 0) / 1e9),
    'shape': line.get('shape', ''),
  }


def markdown(results, split):
  """The tables of `run_all`'s dicts, without columns in which nothing was measured."""
  text = ''
  for kind, (title, columns) in TABLES.items():
    rows = [cells(line, split) for line in results if line['kind'] == kind]
    header = [column for column in columns if any(row[column] for row in rows)]
    if rows:
      text += title + '\n\n' + tables.markdown(header, [[row[column] for column in header] for row in rows]) + '\n'
  return text


def caption(flags, machine):
  """What the tables are of, in one paragraph."""
  hardware = machine.get('gpu') or '%s, %s cores' % (machine.get('cpu', 'unknown processor'), machine.get('cores', '?'))
  return 'WRN-%d-k, split %s with branch_input %s; %s; TensorFlow %s; %s; medians of %d turns of %g s.\n\n' % (
    6 * flags.num_residual_units + 4, flags.split, flags.branch_input, hardware, machine.get('tensorflow', '?'),
    datetime.date.today().isoformat(), flags.repeats, flags.seconds,
  )  # fmt: skip


def run(flags):
  """Measures, writes --output after every part, and prints the tables."""
  results, machine = [], {}
  for results, machine in run_all(flags):
    if flags.output:
      write_json(flags.output, {'settings': vars(flags), 'machine': machine, 'results': results})
  print(caption(flags, machine) + markdown(results, flags.split), end='')
  if results and not any(line['rate'] for line in results):
    raise UserError('nothing could be measured: %s' % results[0]['remark'])


def main(argv=None):
  """Runs the program; returns its exit code."""
  return run_program('speed.py', lambda: run(parse_flags(argv)))


if __name__ == '__main__':
  sys.exit(main())
