"""Measures how fast training, evaluation and the input pipeline are here.

Every row runs in a process of its own; those that are compared are measured in turns, again and again, so that whatever
else the machine does hits all alike; a ratio is the median of those of the turns. A first step's time begins with the
process. Beside the rows of this project:

  ceiling   the best rate of plain 3x3 convolutions and matrix products of the network's shapes: what its FLOPs
            would take at that rate (training: three times those of evaluation)
  keras     a plain Keras network of the same size, trained with model.fit (keras_wrn.py)

python -m benchmarks.speed                                everything; the better part of an hour on two cores
python -m benchmarks.speed --k 8 --only baseline,split    is the split network as fast as its FLOPs allow?
python -m benchmarks.speed --k 8 --precision bfloat16     on a GPU, which has more batch sizes: what share of its peak?
"""

# ruff: noqa: E402 - what takes seconds to import comes after the flags

import collections
import sys

from splitnet.common.flags import Parser, add, answer_early, integer, integers, number, some_of

# A row: its name for --only, what the tables call it, its workload (workloads.py), that workload's arguments.
Row = collections.namedtuple('Row', 'name text workload arguments')
TRAINING = [
  Row('baseline', 'dense', 'training', dict(mode='baseline')),
  Row('group', 'grouping, dropout as grouping has it', 'training', dict(mode='group', keep_prob=0.5)),
  Row('group_alone', 'grouping without dropout', 'training', dict(mode='group')),
  Row('split', 'split', 'training', dict(mode='split')),
  Row('split_uneven', 'split, uneven groups', 'training', dict(mode='split', uneven=True)),
  # The other way than train.py's default, which has to be the faster one.
  Row('xla', 'dense, with XLA (on a GPU without)', 'training', dict(mode='baseline', jit_compile='other')),
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


def make_parser():
  """Returns the parser of the flags."""
  parser = Parser(prog='speed.py', description=__doc__)
  add(parser, 'only', some_of(*NAMES), ','.join(NAMES), f'which rows: some of {", ".join(NAMES)} [all]')
  add(parser, 'k', integers(1, 10**6), '1,2,8', 'width multipliers')
  add(parser, 'precision', some_of('float32', 'bfloat16'), 'float32,bfloat16', 'of the convolutions')
  add(parser, 'train_batch', integers(1, 10**6), None, 'images per step [90; on a GPU 90,256,1024]')
  add(parser, 'eval_batch', integers(1, 10**6), None, 'images per evaluation [100; on a GPU 100,256,1024]')
  add(parser, 'num_residual_units', integer(1, 100), 2, 'residual blocks per stage')
  add(parser, 'split', str, '2-2-2', 'the split that is grouped for and split into, ngroups3-ngroups2-ngroups1')
  add(parser, 'branch_input', str, 'group', "group or all, as train.py's")
  add(parser, 'seconds', number('(0, 3600]'), 3.0, 'that each row is measured for in each turn, one call at least')
  add(parser, 'repeats', integer(1, 1000), 3, 'turns')
  add(parser, 'output', str, None, 'JSON file for the results, written after every table [none]')
  return parser


if __name__ == '__main__':
  answer_early('speed.py', make_parser)

import contextlib
import dataclasses
import datetime
import functools
import itertools
import json
import re
import subprocess
import tempfile
import time

import splitnet.common.quiet  # noqa: F401 - before TensorFlow

import tensorflow as tf

from resnet_split import WideResNet
from splitnet.common.errors import UserError, last_line, program
from splitnet.common.files import PROJECT, check_output_file, telling_of_output, write_json
from splitnet.reporting import tables
from splitnet.reporting.timing import interleaved, median, numbered


def parse_flags(argv):
  """Parses and checks the flags."""
  flags = make_parser().parse_args(argv)
  more = [256, 1024] if tf.config.list_physical_devices('GPU') else []
  flags.train_batch, flags.eval_batch = flags.train_batch or [90, *more], flags.eval_batch or [100, *more]
  for k in flags.k:
    config_of(flags, k)
  if flags.output is not None:
    check_output_file('--output', flags.output)
  return flags


def config_of(flags, k):
  """Returns the WideResNet of a width."""
  units, branch_input = flags.num_residual_units, flags.branch_input
  return WideResNet.of_split(flags.split, k=k, num_residual_units=units, branch_input=branch_input)


class Process:
  """Runs a workload in a process of its own.

  Attributes:
    start: what it answered when it was ready, a dict: 'first_step', 'flops', 'dense_flops', 'machine'.
    turns: list of what it measured, dicts of 'rate' and more.
    memory: the most memory that it held, by kind, once it has ended.
    failed: why it failed, or None.
  """

  def __init__(self, row, config, arguments):
    """Starts the process and waits until it is ready."""
    self.failed, self.turns, self.memory = None, [], None
    arguments = {**arguments, **row.arguments}
    request = json.dumps([row.workload, dataclasses.asdict(config), arguments, time.time()])
    self._errors = tempfile.TemporaryFile('w+', encoding='utf-8')
    self.process = subprocess.Popen(
      [sys.executable, '-m', 'benchmarks.workloads', request], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
      stderr=self._errors, text=True, bufsize=1, cwd=PROJECT,
    )  # fmt: skip
    self.start = self._read()

  def _read(self):
    """Reads the next line of the process, a dict; {} if it ended, see `failed`."""
    if line := self.process.stdout.readline():
      return json.loads(line)
    code = self.process.wait()
    self._errors.seek(0)
    errors = self._errors.read()
    self.failed = last_line(errors)[:200] if errors.strip() else f'ended with code {code}'
    return {}

  def measure(self, seconds):
    """Measures one turn."""
    if self.failed:
      return
    with contextlib.suppress(BrokenPipeError):  # it ended, and says why
      self.process.stdin.write(f'{seconds}\n')
    if turn := self._read():
      self.turns.append(turn)

  def end(self):
    """Ends the process and keeps its peak memory."""
    if not self.failed:
      self.process.stdin.close()
      self.memory = self._read().get('memory')


def measure(rows, config, arguments, flags, label):
  """Measures rows in turns, each in its own Process: a dict by row name."""
  processes = {}

  def show(text):
    print(f'{label}: {text}', file=sys.stderr, flush=True)

  with contextlib.ExitStack() as stack:
    for row in rows:
      own = {} if row.workload == 'pipeline' else {'precision': arguments['precision']}
      process = processes[row.name] = Process(row, config, {'batch_size': arguments['batch_size'], **own})
      stack.callback(process.process.kill)
      show(f'{row.name} {f"failed: {process.failed}" if process.failed else "is ready"}')
    timers = {name: functools.partial(process.measure, flags.seconds) for name, process in processes.items()}
    for turn, _ in enumerate(interleaved(timers, flags.repeats), 1):
      show(f'turn {turn} of {flags.repeats}')
    for process in processes.values():
      process.end()
  return processes


def ratio(process, other, factor=1.0):
  """Returns the median of the turns' ratios of two rows' rates; None without turns."""
  return other and median([factor * a['rate'] / b['rate'] for a, b in zip(process.turns, other.turns)])


def summarise(kind, rows, processes, settings):
  """Sums up what was measured of rows by their Processes, which have ended.

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
    flops, is_pipeline = process.start.get('flops'), row.workload == 'pipeline'
    work = 3.0 * flops if flops and kind == 'training' else flops
    rates = [turn['rate'] for turn in process.turns]
    result.append(dict(
      settings, kind='pipeline' if is_pipeline else kind, row=row.name, text=row.text, rate=median(rates), rates=rates,
      of_ceiling=ratio(process, ceiling, work) if work else None, against_dense=ratio(process, dense),
      against_keras=None if is_pipeline else ratio(process, keras), memory=process.memory,
      flops=flops, flops_allow=process.start['dense_flops'] / flops if flops else None,
      latency=median([turn['latency'] for turn in process.turns if 'latency' in turn]),
      first_step=process.start.get('first_step') if kind == 'training' else None,
      remark=f'failed: {process.failed}' if process.failed else '',
    ))  # fmt: skip
  return result


def run_all(flags):
  """Measures what the flags ask for; yields (results, machine) after each part."""
  results, machine = [], {}
  for far, (kind, rows, k, precision, batch_size) in numbered(parts_of(flags)):
    settings = {'k': k, 'precision': precision, 'batch_size': batch_size}
    wanted = [row for row in rows if row.name in flags.only]
    with_ceiling = ([CEILING] if 'ceiling' in flags.only else []) + wanted
    label = f'{far}: {kind}, k = {k}, {precision}, batch {batch_size}'
    processes = measure(with_ceiling, config_of(flags, k), settings, flags, label)
    machine.update(next((p.start['machine'] for p in processes.values() if p.start), {}))
    results += summarise(kind, wanted, processes, settings)
    if 'ceiling' in processes and (turns := processes['ceiling'].turns):
      shape = max(turns, key=lambda turn: turn['rate'])['shape']
      rate = median([turn['rate'] for turn in turns])
      results.append({**settings, 'kind': 'ceiling', 'row': 'ceiling', 'rate': rate, 'shape': shape})
    yield results, machine


def parts_of(flags):
  """Returns what is measured one after another: list of (kind, rows, k, precision, batch size)."""
  parts = []
  for k, precision in itertools.product(flags.k, flags.precision):
    # The pipeline beside what it feeds: the width whose steps are shortest.
    training = TRAINING + ([PIPELINE] if k == min(flags.k) else [])
    parts += [('training', training, k, precision, batch_size) for batch_size in flags.train_batch]
    parts += [('evaluation', EVALUATION, k, precision, batch_size) for batch_size in flags.eval_batch]
  only_ceiling = flags.only == ['ceiling']
  return [p for p in parts if {row.name for row in p[1]} & set(flags.only) or (p[0] == 'training' and only_ceiling)]


TITLES = {
  'training': 'Training', 'evaluation': 'Evaluation', 'pipeline': 'Input pipeline alone, against training',
  'ceiling': 'Ceiling',
}  # fmt: skip


COLUMNS = {
  'network': ('network', ''), 'k': ('k', 'd'), 'precision': ('precision', ''), 'batch': ('batch_size', 'd'),
  'images/s': ('images', ''), 'GFLOP/s': ('flop_rate', '.0f'), 'of the ceiling': ('of_ceiling', '.2f'),
  'against dense': ('against_dense', '.2f'), 'FLOPs allow': ('flops_allow', '.2f'),
  'against Keras': ('against_keras', '.2f'), 'one image (ms)': ('latency', '.2f'), 'memory (GB)': ('gigabytes', ''),
  'first step (s)': ('first_step', '.1f'), 'remark': ('remark', ''), 'shape': ('shape', ''),
}  # fmt: skip


def shown(line, split):
  """Adds to one of `run_all`'s dicts what the columns of its table show."""
  rate, memory = line['rate'] or 0, line.get('memory') or {}
  if line['kind'] == 'ceiling':
    return {**line, 'flop_rate': rate / 1e9}
  line = {**line, 'images': tables.number_text(line['rate'], '.0f' if rate >= 1000 else '.1f')}
  if line['kind'] == 'pipeline':
    return {**line, 'first_step': None}
  gigabytes = ' + '.join(f'{v / 1e9:.2f} {kind}'.removesuffix(' host') for kind, v in memory.items())
  return {**line, 'network': re.sub('^split', f'split {split}', line['text']), 'gigabytes': gigabytes}


def markdown(results, split):
  """Returns the tables of `run_all`'s dicts, without empty columns."""
  text = ''
  for kind, title in TITLES.items():
    if lines := [shown(line, split) for line in results if line['kind'] == kind]:
      header, rows = tables.of_dicts(COLUMNS, lines)
      filled = [column for column in zip(header, *rows) if any(column[1:])]
      header, *rows = zip(*filled)
      text += f'{title}\n\n{tables.markdown(header, rows)}\n'
  return text


def caption(flags, machine):
  """Returns what the tables are of, in one paragraph."""
  hardware = machine.get('gpu') or f'{machine.get("cpu", "unknown processor")}, {machine.get("cores", "?")} cores'
  return (
    f'WRN-{6 * flags.num_residual_units + 4}-k, split {flags.split} with branch_input {flags.branch_input}; '
    f'{hardware}; TensorFlow {machine.get("tensorflow", "?")}; {datetime.date.today().isoformat()}; medians of '
    f'{flags.repeats} turns of {flags.seconds:g} s.\n\n'
  )


@program('speed.py')
def main(argv):
  """Measures, and prints the tables; if interrupted, those of what is done."""
  flags = parse_flags(argv)
  results, machine = [], {}
  try:
    for results, machine in run_all(flags):
      if flags.output is not None:
        with telling_of_output('--output', flags.output):
          write_json(flags.output, {'settings': vars(flags), 'machine': machine, 'results': results})
  finally:  # what an interrupt or a full disk leaves, too
    if results:
      print(caption(flags, machine) + markdown(results, flags.split), end='')
  if results and not any(line['rate'] for line in results):
    raise UserError(f'nothing could be measured: {results[0]["remark"]}')


if __name__ == '__main__':
  sys.exit(main())
