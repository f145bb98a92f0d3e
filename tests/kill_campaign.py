"""Kills training runs (kill -9) while they write, and compares what is left with an undisturbed run. By hand:

  python tests/kill_campaign.py --kills 100

Runs that write a checkpoint after every step are killed at moments that take turns: when a certain file of a checkpoint
comes or goes, and after a random time. After every kill the last checkpoint must be that of the undisturbed run at the
same step, bit by bit. When a run has come to its end, so must its best checkpoint be, its log, its metrics and its
TensorBoard events, each step once; and nothing half done may be left.
"""

import argparse
import collections
import contextlib
import itertools
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..')
sys.path[:0] = [os.path.normpath(ROOT), os.path.dirname(os.path.abspath(__file__))]

import splitnet.common.quiet  # noqa: E402, F401 - before TensorFlow

import helpers  # noqa: E402
import tensorflow as tf  # noqa: E402

import train  # noqa: E402
from splitnet.training import checkpoint_files, checkpoints, log_files  # noqa: E402

# Patterns of a name that comes; the process is killed as soon as one that was not there is seen.
MOMENTS = {
  'the folder of a new one': r'ckpt-\d+_temp',
  'TensorFlow in it': r'ckpt-\d+_temp/.+',
  'all written': r'ckpt-\d+_whole',
  'its data': r'ckpt-\d+\.data-.*',
  'its index': r'ckpt-\d+\.index',
  'the list': r'checkpoint\.\d+\.tmp',
  'the best': r'best/ckpt-\d+_(temp|whole)',
  'the index of the best': r'best/ckpt-\d+\.index',
  'a random time': None,
}


def start(arguments, output):
  """Starts train.py in a fork, which has imported everything already, with its output in a file; returns its id."""
  process = os.fork()
  if process:
    return process
  code = 99
  try:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1), os.dup2(file, 2)
    code = train.main(arguments)
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stderr.flush()
    os._exit(code)


def finished(process):
  """Waits for a process; returns its exit status."""
  return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def last_lines(output):
  """Returns the last lines of a file."""
  with open(output, encoding='utf-8', errors='replace') as f:
    return ''.join(f.readlines()[-8:])


def ended(process):
  """Returns the exit status of a process, or None."""
  done, status = os.waitpid(process, os.WNOHANG)
  return os.waitstatus_to_exitcode(status) if done else None


def names(folder):
  """Returns the names in a run's folder, those in its best and in temporary folders with their folder's."""
  found = set()
  with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
    for entry in entries:
      found.add(entry.name)
      if entry.name == 'best' or entry.name.endswith('_temp'):
        with contextlib.suppress(FileNotFoundError):
          found.update(f'{entry.name}/{name}' for name in os.listdir(entry.path))
  return found


def kill_at(process, folder, pattern, draw, limit):
  """Kills a process at its moment; returns its exit status, -SIGKILL if it was killed."""
  before, first = names(folder), checkpoints.latest(folder)
  skip = draw.randrange(3)  # such files
  until = None if pattern else time.monotonic() + limit
  while True:
    status = ended(process)
    if status is not None:
      return status
    if pattern:
      now = names(folder)
      new = {name for name in now - before if re.fullmatch(pattern, name)}
      skip, before = skip - len(new), now
      due = skip < 0
    else:
      if checkpoints.latest(folder) != first:  # it writes: any time within the next steps
        first, until = None, min(until, time.monotonic() + draw.random())
      due = time.monotonic() > until
    if due:
      os.kill(process, signal.SIGKILL)
      return finished(process)
    time.sleep(0.0005)  # the run needs the processor more, and what comes and goes stays longer


def events(folder):
  """Returns the steps of TensorBoard's values by tag."""
  steps = collections.defaultdict(list)
  summaries = os.path.join(folder, log_files.SUMMARIES)
  for name in sorted(os.listdir(summaries)):
    for event in tf.compat.v1.train.summary_iterator(os.path.join(summaries, name)):
      for value in event.summary.value:
        steps[value.tag].append(event.step)
  return {tag: sorted(of_tag) for tag, of_tag in steps.items()}


def report(folder):
  """Returns what a run has reported, without speeds and without the lines that tell of a resume."""
  with open(os.path.join(folder, log_files.TEXT), encoding='utf-8') as f:
    lines = [re.sub(r'[\d.]+ images/s|; last checkpoint .*', '', line) for line in f]
  metrics = [{n: v for n, v in m.items() if n != 'images_per_second'} for m in log_files.read_metrics(folder)]
  lines = itertools.dropwhile(lambda line: not line.startswith('step '), lines)  # what is said of settings and folders
  return [line for line in lines if not line.startswith('going on')], metrics, events(folder)


def differing(one, other):
  """Returns the names of the arrays of two checkpoints that differ in a bit."""
  one, other = helpers.weights(one), helpers.weights(other)
  return [n for n in one.keys() | other.keys() if n not in one or n not in other or (one[n] != other[n]).any()]


def compare_end(folder, whole):
  """Returns in words what differs at the end of a run from the undisturbed one: a list."""
  wrong = []
  if differing(checkpoints.find(os.path.join(folder, 'best')), checkpoints.find(os.path.join(whole, 'best'))):
    wrong.append('the best checkpoint')
  for kind, one, other in zip(('train.log', 'metrics.jsonl', 'TensorBoard'), report(folder), report(whole)):
    if one != other:
      apart = [pair for pair in itertools.zip_longest(one, other) if pair[0] != pair[1]][:1]
      wrong.append(f'{kind} {apart}')
  odd = [n for n in names(folder) if re.search(r'_temp|_whole|\.tmp|^lock$', n)]
  return wrong + [f"'{name}' is left" for name in sorted(odd)]


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--kills', type=int, default=100)
  parser.add_argument('--steps', type=int, default=40, help='of a run; when it is done, another begins')
  parser.add_argument('--seed', type=int, default=0, help='of the moments')
  flags = parser.parse_args()
  draw, began = random.Random(flags.seed), time.monotonic()
  with tempfile.TemporaryDirectory() as out:
    data, output = helpers.write(os.path.join(out, 'data')), os.path.join(out, 'output.txt')

    def arguments(folder, keep):
      more = [*helpers.NETWORK, *helpers.GROUPS, '--max_steps', flags.steps, '--display', 1, '--checkpoint_interval', 1]
      more += ['--val_interval', 2, '--val_iter', 1, '--group_summary_interval', 5, '--max_to_keep', keep]
      given = helpers.flags('group', data, folder, *more)
      return given

    whole = os.path.join(out, 'whole')
    status = finished(start(arguments(whole, flags.steps + 1), output))
    if status:
      sys.exit(f'kill_campaign.py: the undisturbed run ended with {status}: {last_lines(output)}')
    killed, wrong, ends = collections.Counter(), [], 0
    moments = itertools.cycle(MOMENTS)
    for run in itertools.count():
      folder, status = os.path.join(out, f'run{run}'), None
      while status != 0 and killed.total() < flags.kills:
        moment = next(moments)
        status = kill_at(start(arguments(folder, 2), output), folder, MOMENTS[moment], draw, limit=600)
        if status not in (0, -signal.SIGKILL):
          wrong.append(f'run {run} ended with {status}: {last_lines(output)}')
          break
        killed[moment] += status != 0
        path = checkpoints.latest(folder)
        if path and differing(path, os.path.join(whole, os.path.basename(path))):
          wrong.append(f'{path} differs after a kill at {moment}')
        step = path and path.rsplit('-', 1)[1]
        print(f'{killed.total()} kills, run {run} at step {step}: {moment}, {len(wrong)} wrong', flush=True)
      if status != 0 and status is not None and not wrong:  # the last kills: let it come to its end
        status = finished(start(arguments(folder, 2), output))
      if status == 0:
        ends += 1
        wrong += [f'run {run}: {what}' for what in compare_end(folder, whole)]
        steps = checkpoint_files.saved_steps(folder)
        wrong += [] if steps == [flags.steps - 1, flags.steps] else [f'run {run} has the checkpoints {steps}']
      if killed.total() >= flags.kills or wrong:
        break
  print('\n'.join(f'{count:4} kills at: {moment}' for moment, count in killed.items()))
  seconds = time.monotonic() - began
  print(f'{killed.total()} kills, {ends} runs to their end, {seconds:.0f} s; wrong: {wrong or "nothing"}')
  sys.exit(bool(wrong))


if __name__ == '__main__':
  main()
