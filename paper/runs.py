"""Runs of train.py and eval.py in folders of their own: what decides a result, what is done already, doing the rest.

  FOLDER/settings.json   what the run was asked for; other settings in the same folder are refused
  FOLDER/output.txt      what the programs printed
  FOLDER/cost.json       seconds and device
  FOLDER/grouped.json    of a grouping run: what eval.py measured before hardening
  FOLDER/eval.json       what eval.py measured; it exists once the run is done

No path is stored, so a folder may be moved, together with those of the runs that it needs, and continued there.
"""

import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np

from splitnet.common.errors import UserError
from splitnet.common.files import PROJECT, write_json
from splitnet.parallel import devices
from splitnet.training import checkpoints
from splitnet.training.log import read_metrics

REPORT_SECONDS = 600  # between lines about a run in progress

# Settings that are shares of max_steps, by the flag of train.py, which counts epochs: the shares after which the
# learning rate is multiplied by 0.1, over which gamma2 rises, and over which the learning rate does.
SHARES = {'drop_at': 'lr_step_epoch', 'ramp_at': 'gamma2_ramp_epoch', 'warmup_at': 'lr_warmup_epoch'}


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of train.py and then eval.py.

  Attributes:
    folder: out/k<k>/seed<seed>/<name>; train.py's --train_dir.
    base: the Run whose last checkpoint is the --basemodel, or None.
    train: dict of train.py's flags without the folders, with those of SHARES.
    teacher: the Run whose best checkpoint is the --teacher, or None.
    machine: dict of train.py's flags that no result depends on.
    hardens: whether a grouping run is evaluated hardened, too; one that another grouping run starts from need not be
      ready for that.
  """

  folder: str
  base: 'Run | None'
  train: dict
  teacher: 'Run | None' = None
  machine: dict = dataclasses.field(default_factory=dict)
  hardens: bool = True

  @property
  def settings(self):
    """Everything that decides the result, those of the runs that it needs too: a dict as JSON gives it back."""
    teacher = {'teacher': self.teacher.settings} if self.teacher else {}
    return json.loads(json.dumps(dict(self.train, basemodel=self.base and self.base.settings, **teacher)))

  @property
  def needs(self):
    """The runs that must be done before this one: a list."""
    return [run for run in (self.base, self.teacher) if run]

  @property
  def steps_in_all(self):
    """The training steps of the network from its first weights on: this run's, and those of the run it starts from.

    From a base that only clusters the classes (train.py's --grouping_start scratch) it takes no weights.
    """
    starts = 'grouping' not in self.train or self.train.get('grouping_start') == 'basemodel'
    return self.train['max_steps'] + (self.base.steps_in_all if self.base and starts else 0)

  @property
  def evaluation(self):
    """Path of what eval.py writes; it exists once the run is done."""
    return os.path.join(self.folder, 'eval.json')

  @property
  def grouped_evaluation(self):
    """Path of what eval.py writes of a grouping network before it is hardened."""
    return os.path.join(self.folder, 'grouped.json')

  @property
  def cost(self):
    """What the run has taken so far: dict of 'seconds' and 'device'; None if nobody counted."""
    try:
      with open(os.path.join(self.folder, 'cost.json')) as f:
        cost = json.load(f)
      return {'seconds': float(cost['seconds']), 'device': str(cost['device'])}
    except (OSError, ValueError, KeyError, TypeError):  # an account of the past, which nothing depends on
      return None

  @property
  def steps_done(self):
    """The step of the last checkpoint."""
    last = checkpoints.latest(self.folder)
    return int(last.rsplit('-', 1)[1]) if last else 0

  def commands(self, data_dir, train_images):
    """Returns the command lines, the one that writes `evaluation` last."""
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
    evaluate = dict(checkpoint=checkpoint, data_dir=data_dir, precision=self.train['precision'])
    last = command('eval.py', dict(evaluate, output_file=self.evaluation))
    if groups and self.hardens:  # as it is, then hardened
      first = command('eval.py', dict(evaluate, output_file=self.grouped_evaluation))
      return [command('train.py', flags), first, [*last, '--harden']]
    return [command('train.py', flags), last]


def command(program, flags):
  """Returns the command line of one of the project's programs with a dict of flags."""
  given = [text for name, value in flags.items() for text in (f'--{name}', str(value))]
  return [sys.executable, os.path.join(PROJECT, program), *given]


def with_needs(runs):
  """Returns the runs and, before each, what it needs: a list without repetitions."""
  ordered = []
  for run in runs:
    ordered += [other for other in [*with_needs(run.needs), run] if other not in ordered]
  return ordered


# --- what is done -------------------------------------------------------------------------------------------------


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
  """Reads what a run's folder says: a dict of what the tables show, or None if the run is not done.

  Args:
    run: a Run.
    data: dict that says which data there is now; None: not to be compared.

  Raises:
    UserError: if the folder holds a run with other settings, or a damaged file.
  """
  path = os.path.join(run.folder, 'settings.json')
  try:
    if not os.path.exists(path):
      if os.path.isdir(run.folder) and os.listdir(run.folder):
        raise UserError(f"'{run.folder}' was not made by tables.sh: remove it, or give another --out")
      return None
    with open(path) as f:
      stored = json.load(f)
    old, new = dict(stored['settings']), dict(run.settings)
    if data is not None:
      old['data'], new['data'] = stored['data'], data
    for difference in differences(old, new):
      raise UserError(f"'{run.folder}' {difference}: use the same, another --out, or remove the folder")
    path = run.evaluation
    if not os.path.exists(path):
      return None
    with open(path) as f:
      evaluated = json.load(f)
    result = {name: evaluated[name] for name in ('accuracy', 'parameters', 'flops')}
    result.update(
      agreement=evaluated.get('agreement'), group_sizes=[len(group) for group in evaluated.get('groups', [])],
      grouped_accuracy=None, data=stored['data'], folder=run.folder, base_folder=run.base and run.base.folder,
      seed=run.train['seed'], steps=run.train['max_steps'], steps_in_all=run.steps_in_all,
      batch_size=run.train['batch_size'], cost=run.cost,
    )  # fmt: skip
    path = run.grouped_evaluation
    if os.path.exists(path):
      with open(path) as f:
        result['grouped_accuracy'] = json.load(f)['accuracy']
    return result
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(f"'{path}' cannot be read ({e}): remove '{run.folder}'") from e


# --- doing the rest -----------------------------------------------------------------------------------------------


def call(arguments, log, report=lambda: None, interval=REPORT_SECONDS):
  """Runs a command, its output added to a log file; returns its exit code.

  An interrupt is passed on once, and the command's own end waited for: train.py writes a checkpoint.

  Args:
    arguments: the command line; log: path of the file.
    report: called every `interval` seconds meanwhile.

  Raises:
    UserError: if another process runs a command with the same log.
  """
  with open(log, 'a') as f:
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


def last_line(lines):
  """Returns the last line of a program's output that is not empty."""
  return ([line.strip() for line in lines if line.strip()] or ['no output'])[-1]


def add_cost(run, seconds):
  """Adds to what a run has taken."""
  before = run.cost or {'seconds': 0.0, 'device': devices.description()}
  used = dict.fromkeys([*before['device'].split(' + '), devices.description()])
  cost = {'seconds': round(before['seconds'] + seconds, 1), 'device': ' + '.join(used)}
  write_json(os.path.join(run.folder, 'cost.json'), cost)


def print_progress(run, first, seconds):
  """Prints a line about a run that train.py is at: its last step, and the time that is left.

  Args:
    run: a Run; first: the step from which it is being trained now; seconds: since then.
  """
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
  return '{} h {:02} min'.format(*divmod(round(seconds / 60), 60))


def execute(run, arguments, interval=REPORT_SECONDS):
  """Runs one of a run's commands, prints its progress now and then, and adds to the run's cost.

  Args:
    run: a Run; arguments: the command line; interval: seconds between lines about it.

  Raises:
    UserError: if the command fails, with the last line of its output.
  """
  first, started = run.steps_done, time.monotonic()
  log = os.path.join(run.folder, 'output.txt')
  try:
    code = call(arguments, log, lambda: print_progress(run, first, time.monotonic() - started), interval)
  finally:
    add_cost(run, time.monotonic() - started)
  if code:
    with open(log, errors='replace') as f:
      said = last_line(f)
    raise UserError(f"the run in '{run.folder}' failed (exit code {code}: {said}); its log is '{log}'")


def complete(run, data_dir, data):
  """Trains and evaluates a run, or what is left of it.

  Args:
    run: a Run; data_dir: folder of the images; data: dict that says which data these are.

  Raises:
    UserError: if a program fails, or the folder cannot be written.
  """
  try:
    write_json(os.path.join(run.folder, 'settings.json'), {'settings': run.settings, 'data': data})
  except OSError as e:
    raise UserError(f"cannot write to the folder '{run.folder}' ({e.strerror}): give another --out") from e
  for arguments in run.commands(data_dir, data['train_images']):
    execute(run, arguments)
  if not os.path.exists(run.evaluation):
    raise UserError(f"the run in '{run.folder}' failed: eval.py did not write '{run.evaluation}'")
