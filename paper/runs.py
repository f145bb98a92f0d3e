"""Runs of train.py and eval.py in folders of their own: what decides a result, what is done already, doing the rest.

  FOLDER/settings.json   what the run was asked for; other settings in the same folder are refused
  FOLDER/output.txt      what the programs said
  FOLDER/cost.json       seconds and device
  FOLDER/eval.json       its being there means that the run is done

No path is stored, so a folder may be moved, together with those of the runs that it needs, and gone on with there.
"""

import dataclasses
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np

from splitnet.common.errors import UserError
from splitnet.common.files import PROJECT, write_json
from splitnet.parallel import devices
from splitnet.training import checkpoints

REPORT_SECONDS = 600  # between lines about a run that is going on

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
    hardens: whether a grouping run is evaluated hardened, too; one that another grouping run goes on from need not be
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
    """Path of what eval.py writes; its being there means that the run is done."""
    return os.path.join(self.folder, 'eval.json')

  @property
  def grouped_evaluation(self):
    """Path of what eval.py writes of a grouping network before it is hardened."""
    return os.path.join(self.folder, 'grouped.json')

  @property
  def cost(self):
    """What the run has taken so far: dict of 'seconds' and 'device'; None where nobody counted."""
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
    """The command lines, the one that writes `evaluation` last."""
    given = dict(self.train, data_dir=data_dir, train_dir=self.folder, **self.machine)
    epochs = given['max_steps'] * given['batch_size'] / train_images
    for name in SHARES.keys() & given.keys():
      given[SHARES[name]] = ','.join('%.6g' % (share * epochs) for share in np.atleast_1d(given.pop(name)))
    if self.base:
      given['basemodel'] = self.base.folder
    if self.teacher:
      given['teacher'] = os.path.join(self.teacher.folder, 'best')
    # Splitting starts from the last grouping checkpoint; the other runs count where validation was best.
    group = self.train['mode'] == 'group'
    checkpoint = self.folder if group else os.path.join(self.folder, 'best')
    evaluate = dict(checkpoint=checkpoint, data_dir=data_dir, precision=self.train['precision'])
    evaluate['output_file'] = self.evaluation
    commands = [command('train.py', given), command('eval.py', evaluate)]
    if group and self.hardens:  # as it is, then hardened
      evaluate['output_file'] = self.grouped_evaluation
      commands = [commands[0], command('eval.py', evaluate), commands[1] + ['--harden']]
    return commands


def command(program, given):
  """A command line from a dict of flags."""
  return [sys.executable, os.path.join(PROJECT, program)] + [
    text for name, value in given.items() for text in ('--' + name, str(value))
  ]


def with_needs(runs):
  """The runs and, before each, what it needs: a list without repetitions."""
  ordered = []
  for run in runs:
    for each in [*with_needs(run.needs), run]:
      if each not in ordered:
        ordered.append(each)
  return ordered


def differences(old, new, path=''):
  """Where two nested dicts differ: yields sentences."""
  for name in {**old, **new}:
    before, now = old.get(name), new.get(name)
    if isinstance(before, dict) and isinstance(now, dict):
      yield from differences(before, now, path + name + "'s ")
    elif before != now:
      both = [value if not isinstance(value, dict) else 'another run' for value in (before, now)]
      yield 'was made with %s%s %s, now it is %s' % (path, name, *both)


def read_run(run, data):
  """What a run's folder says: its eval.json, or None where it is not done; with 'data' that it was trained on.

  Args:
    run: a Run.
    data: dict that says which data there is now; None: not to be compared.

  Raises:
    UserError: where the folder holds a run with other settings, or a damaged file.
  """
  path = os.path.join(run.folder, 'settings.json')
  try:
    if not os.path.exists(path):
      if os.path.isdir(run.folder) and os.listdir(run.folder):
        raise UserError("'%s' was not made by tables.py: remove it, or give another --out" % run.folder)
      return None
    with open(path) as f:
      stored = json.load(f)
    old, new = dict(stored['settings']), dict(run.settings)
    if data is not None:
      old['data'], new['data'] = stored['data'], data
    for difference in differences(old, new):
      raise UserError("'%s' %s: use the same, another --out, or remove the folder" % (run.folder, difference))
    path = run.evaluation
    if not os.path.exists(path):
      return None
    with open(path) as f:
      result = json.load(f)
    kept = {name: result[name] for name in ('accuracy', 'parameters', 'flops')}
    kept.update(agreement=result.get('agreement'), group_sizes=[len(group) for group in result.get('groups', [])])
    kept.update(data=stored['data'], folder=run.folder, base_folder=run.base and run.base.folder)
    kept.update(seed=run.train['seed'], grouped_accuracy=None)
    kept.update(
      steps=run.train['max_steps'], steps_in_all=run.steps_in_all, batch_size=run.train['batch_size'], cost=run.cost
    )
    if os.path.exists(run.grouped_evaluation):
      path = run.grouped_evaluation
      with open(path) as f:
        kept['grouped_accuracy'] = json.load(f)['accuracy']
    return kept
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError("'%s' cannot be read (%s): remove '%s'" % (path, e, run.folder)) from e


def call(arguments, log, tell=lambda: None):
  """Runs a command, its output added to a log file, calling `tell` now and then; returns its exit code.

  An interrupt is passed on once, and the command's own ending waited for: train.py writes a checkpoint.
  """
  with open(log, 'a') as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the command inherits it, so it holds as long as that lives
    except BlockingIOError as e:
      raise UserError("'%s' is being run already" % os.path.dirname(log)) from e
    process = subprocess.Popen(
      arguments, stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
      while True:
        try:
          return process.wait(REPORT_SECONDS)
        except subprocess.TimeoutExpired:
          tell()
    except KeyboardInterrupt:
      process.send_signal(signal.SIGINT)
      process.wait()
      raise


def add_cost(run, seconds):
  """Adds to what a run has taken."""
  before = run.cost or {'seconds': 0.0, 'device': devices.description()}
  used = before['device'].split(' + ')
  used += [devices.description()] if devices.description() not in used else []
  cost = {'seconds': round(before['seconds'] + seconds, 1), 'device': ' + '.join(used)}
  write_json(os.path.join(run.folder, 'cost.json'), cost)


def print_progress(run, begun, seconds):
  """Prints a line about a run that train.py is at: the last line of its log, and the time that is left.

  Args:
    run: a Run; begun: the step that this session began from; seconds: since then.
  """
  try:
    with open(os.path.join(run.folder, 'train.log'), errors='replace') as f:
      line, step = [(line.strip(), int(m.group(1))) for line in f if (m := re.match(r'step (\d+): loss', line))][-1]
  except (OSError, IndexError):  # not there yet
    return
  last = run.train['max_steps']
  if begun < step < last:
    left = seconds * (last - step) / (step - begun)
    line += '; about %d h %02d min left of %d steps' % (*divmod(round(left / 60), 60), last)
    print('  ' + line, flush=True)


def do(run, data_dir, data):
  """Trains and evaluates a run.

  Raises:
    UserError: where one of the two fails.
  """
  try:
    write_json(os.path.join(run.folder, 'settings.json'), {'settings': run.settings, 'data': data})
  except OSError as e:
    raise UserError("cannot write to the folder '%s' (%s): give another --out" % (run.folder, e.strerror)) from e
  log = os.path.join(run.folder, 'output.txt')
  commands = run.commands(data_dir, data['train_images'])
  begun = run.steps_done
  for arguments in commands:
    started = time.monotonic()
    try:
      code = call(arguments, log, lambda since=started: print_progress(run, begun, time.monotonic() - since))
    finally:
      add_cost(run, time.monotonic() - started)
    if code or (arguments is commands[-1] and not os.path.exists(run.evaluation)):
      with open(log, errors='replace') as f:
        last = ([line.strip() for line in f if line.strip()] or ['no output'])[-1]
      raise UserError("the run in '%s' failed (exit code %d: %s); its log is '%s'" % (run.folder, code, last, log))
