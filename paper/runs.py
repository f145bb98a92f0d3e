"""Runs train.py and eval.py in folders of their own, as far as it is not done.

  FOLDER/making.lock     held by the process that makes the run
  FOLDER/settings.json   what the run was asked for; other settings in the same folder are refused
  FOLDER/output.txt      what the programs printed
  FOLDER/cost.json       seconds and device
  FOLDER/grouped.json    of a grouping run: what eval.py measured before hardening
  FOLDER/eval.json       what eval.py measured; it exists once the run is done

No path is stored, so a folder may be moved, together with those of the runs that it needs, and continued there.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from splitnet.common import schema
from splitnet.common.errors import UserError, last_line
from splitnet.common.files import PROJECT, locked, remove_leftovers, write_json
from splitnet.parallel import devices
from splitnet.reporting import results
from splitnet.training import checkpoints
from splitnet.training.log_files import read_metrics

LOCK = 'making.lock'
REPORT_SECONDS = 600  # between lines about a run in progress

# Settings that are shares of max_steps, by the flag of train.py, which counts epochs: the shares after which the
# learning rate is multiplied by 0.1, over which gamma2 rises, and over which the learning rate does.
SHARES = {'drop_at': 'lr_step_epoch', 'ramp_at': 'gamma2_ramp_epoch', 'warmup_at': 'lr_warmup_epoch'}


@schema.record
class Source(schema.TypedDict):
  """Says which data a run was trained on, among other things."""

  source: schema.Text
  evaluated: schema.NotRequired[schema.Text]  # the subset, if it is not test


@schema.record
class Stored(schema.TypedDict):
  """Types settings.json."""

  settings: dict[str, Any]
  data: Source


@schema.record
class Cost(schema.TypedDict):
  """Types cost.json."""

  seconds: Annotated[float, Field(ge=0, le=1e12)]
  device: schema.Text


@dataclasses.dataclass(frozen=True)
class Run:
  """Describes one run of train.py and then eval.py."""

  folder: str  # out/k<k>/seed<seed>/<name>; train.py's --train_dir
  base: 'Run | None'  # its last checkpoint is the --basemodel
  train: dict  # train.py's flags without the folders, with those of SHARES
  teacher: 'Run | None' = None  # its best checkpoint is the --teacher
  machine: dict = dataclasses.field(default_factory=dict)  # train.py's flags that no result depends on
  # Whether a grouping run is evaluated hardened, too; one that another grouping run starts from need not be ready.
  hardens: bool = True

  @property
  def settings(self):
    """Returns all that decides the result, also of the runs it needs, as JSON has it."""
    teacher = {'teacher': self.teacher.settings} if self.teacher else {}
    return json.loads(json.dumps(dict(self.train, basemodel=self.base and self.base.settings, **teacher)))

  @property
  def needs(self):
    """Returns the runs that must be done before this one: a list."""
    return [run for run in (self.base, self.teacher) if run]

  @property
  def steps_in_all(self):
    """Returns the network's training steps from its first weights on, its base's too.

    From a base that only clusters the classes (train.py's --grouping_start scratch) it takes no weights.
    """
    starts = 'grouping' not in self.train or self.train.get('grouping_start') == 'basemodel'
    return self.train['max_steps'] + (self.base.steps_in_all if self.base and starts else 0)

  @property
  def evaluation(self):
    """Returns the path of what eval.py writes; it exists once the run is done."""
    return os.path.join(self.folder, 'eval.json')

  @property
  def grouped_evaluation(self):
    """Returns the path of what eval.py writes of a grouping network as it is."""
    return os.path.join(self.folder, 'grouped.json')

  @property
  def cost(self):
    """Returns what it took so far, 'seconds' and 'device'; None if nobody counted."""
    try:
      return schema.read_json(os.path.join(self.folder, 'cost.json'), Cost, '')
    except UserError:  # an account of the past, which nothing depends on
      return None

  @property
  def steps_done(self):
    """Returns the step of the last checkpoint."""
    last = checkpoints.latest(self.folder)
    return int(last.rsplit('-', 1)[1]) if last else 0

  def commands(self, data_dir, train_images, subset='test'):
    """Returns the command lines; the last one writes `evaluation`, of a subset."""
    flags = dict(self.train, data_dir=data_dir, train_dir=self.folder, **self.machine)
    epochs = flags['max_steps'] * flags['batch_size'] / train_images
    for name in SHARES.keys() & flags.keys():
      flags[SHARES[name]] = ','.join(f'{share * epochs:.6g}' for share in np.atleast_1d(flags.pop(name)))
    if self.base:
      flags['basemodel'] = self.base.folder
    if self.teacher:
      flags['teacher'] = os.path.join(self.teacher.folder, 'best')
    # Splitting starts from the last grouping checkpoint; of the other runs the best validation counts.
    groups = self.train['mode'] == 'group'
    checkpoint = self.folder if groups else os.path.join(self.folder, 'best')
    shown = dict(checkpoint=checkpoint, data_dir=data_dir, precision=flags['precision'])
    if subset != 'test':
      shown['split'] = subset
    if 'skip_damaged' in self.machine:
      shown['skip_damaged'] = True
    last = command('eval.py', dict(shown, output_file=self.evaluation))
    if not groups or not self.hardens:
      return [command('train.py', flags), last]
    as_it_is = command('eval.py', dict(shown, output_file=self.grouped_evaluation))
    return [command('train.py', flags), as_it_is, [*last, '--harden']]


def command(program, flags):
  """Returns the command line of one of the project's programs with these flags."""
  given = [text for name, value in flags.items() for text in (f'--{name}', str(value))]
  return [sys.executable, os.path.join(PROJECT, program), *given]


def with_needs(runs):
  """Returns the runs and, before each, what it needs, without repetitions."""
  ordered = []
  for run in runs:
    ordered += [other for other in [*with_needs(run.needs), run] if other not in ordered]
  return ordered


def differences(old, new, path=''):
  """Yields a sentence for each value in which two nested dicts differ."""
  for name in {**old, **new}:
    before, now = old.get(name), new.get(name)
    if isinstance(before, dict) and isinstance(now, dict):
      yield from differences(before, now, f"{path}{name}'s ")
    elif before != now:
      before, now = ('another run' if isinstance(value, dict) else value for value in (before, now))
      yield f'was made with {path}{name} {before}, now it is {now}'


def read_result(run, data):
  """Reads what the tables show of a run: a dict, or None if it is not done.

  `data` says which data there is now; None: not to be compared.

  Raises:
    UserError: if the folder holds a run with other settings, or a damaged file.
  """
  path, advice = os.path.join(run.folder, 'settings.json'), f"remove '{run.folder}'"
  if not os.path.lexists(path):
    # Another process may have begun with it, and just be writing settings.json.
    others = os.listdir(run.folder) if os.path.isdir(run.folder) else []
    if any(name != LOCK and not re.fullmatch(r'settings\.json\.\d+\.tmp', name) for name in others):
      raise UserError(f"'{run.folder}' was not made by tables.sh: remove it, or give another --out")
    return None
  stored = schema.read_json(path, Stored, advice)
  old, new = dict(stored['settings']), dict(run.settings)
  if data is not None:
    old['data'], new['data'] = stored['data'], data
  for difference in differences(old, new):
    raise UserError(f"'{run.folder}' {difference}: use the same, another --out, or remove the folder")
  if not os.path.lexists(run.evaluation):
    return None
  evaluated = schema.read_json(run.evaluation, results.Size, advice)
  result = {name: evaluated[name] for name in ('accuracy', 'parameters', 'flops')}
  result.update(
    agreement=evaluated.get('agreement'), chance=evaluated.get('chance_agreement'),
    group_sizes=[len(group) for group in evaluated.get('groups', [])],
    grouped_accuracy=None, data=stored['data'], folder=run.folder, base_folder=run.base and run.base.folder,
    seed=run.train['seed'], steps=run.train['max_steps'], steps_in_all=run.steps_in_all,
    batch_size=run.train['batch_size'], cost=run.cost,
  )  # fmt: skip
  if os.path.lexists(run.grouped_evaluation):
    grouped = schema.read_json(run.grouped_evaluation, results.Accuracy, advice)
    result['grouped_accuracy'] = grouped['accuracy']
  return result


def call(arguments, log, report=lambda: None, interval=REPORT_SECONDS):
  """Runs a command, its output added to a log file; returns its exit code.

  Meanwhile `report` is called every `interval` seconds. An interrupt is passed on once, and the command's own end
  waited for: train.py writes a checkpoint.
  """
  with open(log, 'a', encoding='utf-8') as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the command inherits it, so it holds as long as that lives
    except BlockingIOError as e:
      raise UserError(f"'{os.path.dirname(log)}' is being run already") from e
    process = subprocess.Popen(
      arguments, stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
      while True:
        try:
          return process.wait(interval)
        except subprocess.TimeoutExpired:
          report()
    except KeyboardInterrupt:
      process.send_signal(signal.SIGINT)
      process.wait()
      raise


def add_cost(run, seconds):
  """Adds to what a run has taken."""
  before = run.cost or {'seconds': 0.0, 'device': devices.description()}
  used = dict.fromkeys([*before['device'].split(' + '), devices.description()])
  cost = {'seconds': round(before['seconds'] + seconds, 1), 'device': ' + '.join(used)}
  write_json(os.path.join(run.folder, 'cost.json'), cost)


def print_progress(run, first, seconds):
  """Prints a line about a run at train.py, since `seconds` from step `first` on."""
  *_, last = [None, *read_metrics(run.folder, 'train')]
  steps = run.train['max_steps']
  if last and first < last['step'] < steps:
    left = seconds * (steps - last['step']) / (last['step'] - first)
    print(
      f'  step {last["step"]}: loss {last["total"]:.4f}, accuracy {last["accuracy"]:.4f}, '
      f'{last["images_per_second"]:.0f} images/s; about {hours(left)} left of {steps} steps',
      flush=True,
    )


def hours(seconds):
  """Returns a time as text, such as '1 h 05 min'."""
  whole, minutes = divmod(round(seconds / 60), 60)
  return f'{whole} h {minutes:02} min'


def execute(run, arguments, interval=REPORT_SECONDS):
  """Runs a command of a run, with its progress, and adds to its cost."""
  first, started = run.steps_done, time.monotonic()
  log = os.path.join(run.folder, 'output.txt')
  try:
    code = call(arguments, log, lambda: print_progress(run, first, time.monotonic() - started), interval)
  finally:
    add_cost(run, time.monotonic() - started)
  if code:
    with open(log, encoding='utf-8', errors='replace') as f:
      said = last_line(f.read())
    raise UserError(f"the run in '{run.folder}' failed (exit code {code}: {said}); its log is '{log}'")


def complete(run, data_dir, data):
  """Trains and evaluates a run, or what is left of it."""
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(locked(run.folder, f"'{run.folder}' is being run already", LOCK))
      if read_result(run, data):  # by the process that had it until now; what does not fit is refused
        return
      remove_leftovers(run.folder, {'settings.json', 'cost.json', 'eval.json', 'grouped.json'})
      write_json(os.path.join(run.folder, 'settings.json'), {'settings': run.settings, 'data': data})
    except OSError as e:
      raise UserError(f"cannot write to the folder '{run.folder}' ({e.strerror}): give another --out") from e
    for arguments in run.commands(data_dir, data['train_images'], data.get('evaluated', 'test')):
      execute(run, arguments)
    if not os.path.exists(run.evaluation):
      raise UserError(f"the run in '{run.folder}' failed: eval.py did not write '{run.evaluation}'")
