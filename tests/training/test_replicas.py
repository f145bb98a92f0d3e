"""Training on several devices and in several processes against training on one, and what is refused and how.

Everything runs in processes of its own, as TensorFlow sets its devices up once. They sum in another order than one
device does, and where an activation is within rounding of zero, its gradient comes or goes: losses agree to 1e-4,
weights to 1e-4 taken together and to 1e-3 one by one, the momentum, which is all gradient, to 1e-2.
"""

import json
import os
import re
import signal
import socket

import forking
import helpers
import numpy as np
import pytest
import tensorflow as tf

import train
from splitnet.common.errors import UserError
from splitnet.parallel import devices
from splitnet.training import replicas

pytestmark = pytest.mark.slow

RUNS = 'import json, sys, train; sys.exit(any(train.main(arguments) for arguments in json.loads(sys.argv[1])))'
STEPS = 4
SEVERAL, BATCH = 2, 21  # replicas, which do not divide the batch


@pytest.fixture(scope='module')
def start():
  """A function that starts a process; whatever is left of it is killed in the end."""
  started = []

  def begin(command, task=None, anew=False):
    # Without oneDNN the processes use the same kernels for shares of any size. A task that starts anew sets its log
    # level itself.
    environment = {'TF_ENABLE_ONEDNN_OPTS': '0', **({'TF_CPP_MIN_LOG_LEVEL': '3', **task} if task else {})}
    started.append((helpers.start_anew if anew else forking.Program)(command, **environment))
    return started[-1]

  yield begin
  for process in started:
    process.kill()
    process.communicate()


def free_addresses(count):
  """Addresses on loopback whose ports are free."""
  sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(count)]
  addresses = [f'127.0.0.1:{s.getsockname()[1]}' for s in sockets]
  for s in sockets:
    s.close()
  return addresses


def task_of(workers, index):
  """The environment of one of several workers."""
  task = {'type': 'worker', 'index': index}
  return {'TF_CONFIG': json.dumps({'cluster': {'worker': workers}, 'task': task})}


def slurm_tasks():
  """The environments of the two tasks of a job on this host, as srun sets them; its ports are free."""
  for job in range(os.getpid(), os.getpid() + 1000):
    try:
      for port in (12000 + job % 20000, 12001 + job % 20000):
        socket.create_server(('127.0.0.1', port)).close()
    except OSError:
      continue
    same = {
      'SLURM_JOB_ID': str(job), 'SLURM_STEP_NUM_TASKS': '2', 'SLURM_STEP_NODELIST': 'localhost',
      'SLURM_STEP_TASKS_PER_NODE': '2', 'SLURMD_NODENAME': 'localhost',
    }  # fmt: skip
    return [{**same, 'SLURM_PROCID': task, 'SLURM_LOCALID': task} for task in '01']
  raise AssertionError('no job has free ports')


def flags(mode, data, folder, *more):
  """A run with random crops, dropout and regularisers that weigh as much as the cross-entropy."""
  given = ['--display', 1, '--val_interval', 2, '--initial_lr', 0.01, '--dropout_keep_prob', 0.5, '--l2_weight', 0.05]
  given += ['--max_steps', STEPS, '--seed', 1, '--batch_size', BATCH]
  if mode == 'split':
    given += ['--basemodel', helpers.RELEASED]
  else:
    given += helpers.NETWORK + ['--ngroups1', 3, '--ngroups2', 2, '--ngroups3', 2]
  return helpers.flags(mode, data, str(folder), *given, *more)


def script(arguments):
  return [os.path.join(helpers.PROJECT, 'train.py'), *arguments]


def finished(process):
  """The output of a process that must end well and complain of nothing: its stdout."""
  stdout, stderr = process.communicate(timeout=300)
  assert (process.returncode, stderr) == (0, ''), stdout + stderr
  return stdout


@pytest.fixture(scope='module')
def runs(start, tmp_path_factory):
  """Runs on one device, on several, with branches placed, as two tasks of Slurm: their folder, and stdouts."""
  data, folder = helpers.data(tmp_path_factory), tmp_path_factory.mktemp('distributed')
  several = ['--num_logical_devices', SEVERAL]
  of_group = ['--basemodel', folder / 'one' / 'group']
  one = [flags('group', data, folder / 'one' / 'group'), flags('split', data, folder / 'one' / 'split', *of_group)]
  one.append(flags('group', data, folder / 'resumed', '--max_steps', 2))
  many = [flags('group', data, folder / 'many' / 'group', *several)]
  many.append(flags('split', data, folder / 'many' / 'split', *of_group, *several))
  placed = flags(
    'split', data, folder / 'placed' / 'split', *of_group, '--num_logical_devices', 2, '--devices', '/CPU:0,/CPU:1',
    '--log_device_placement', 'True',
  )  # fmt: skip
  out = {key: finished(start(['-c', RUNS, json.dumps(runs)])) for key, runs in (('one', one), ('many', many))}
  out['placed'] = finished(start(script(placed)))
  tasks = slurm_tasks()
  chief = start(script(flags('group', data, folder / 'workers' / 'group')), tasks[0], anew=True)
  other = start(script(flags('group', data, folder / 'elsewhere')), tasks[1], anew=True)
  out['chief'], out['other'] = finished(chief), finished(other)
  return folder, out


def losses(path):
  """The losses of all steps, and the validations' cross-entropies, in a run's log."""
  with open(os.path.join(path, 'train.log'), encoding='utf-8') as f:
    log = f.read()
  return [float(x) for x in re.findall(r'^step \d+: (?:loss|validation.*cross-entropy) ([\d.]+)', log, re.MULTILINE)]


def norm(arrays):
  return np.sqrt(sum(np.square(a.astype(np.float64)).sum() for a in arrays))


def assert_alike(one, other):
  """Asserts that two runs have the same losses, weights and momentum but for rounding."""
  # A split starts from a basemodel, so it has a validation more.
  assert len(losses(one)) == STEPS + STEPS // 2 + (one.name == 'split')
  assert losses(other) == pytest.approx(losses(one), rel=1e-4, abs=1e-4)  # the log has four digits
  a, b = helpers.weights(str(one)), helpers.weights(str(other))
  assert a.keys() == b.keys() and a['step/.ATTRIBUTES/VARIABLE_VALUE'] == b['step/.ATTRIBUTES/VARIABLE_VALUE'] == STEPS
  weights, slots = ([k for k in a if k.startswith(kind)] for kind in ('weights/', 'momentum/'))
  assert all(norm([a[k]]) > 0 for k in slots)
  for keys, together in ((weights, 1e-4), (slots, 1e-2)):
    assert norm([a[k] - b[k] for k in keys]) <= together * norm([a[k] for k in keys])
  apart = {k: norm([a[k] - b[k]]) / norm([a[k]]) for k in weights}
  worst = max(apart, key=apart.get)
  assert apart[worst] <= 1e-3, worst


# --- the same as on one device ------------------------------------------------------------------------------------


VALIDATIONS = """
import json, splitnet.common.quiet, numpy as np, cifar100
from splitnet.data.batches import Images
from resnet_split import WideResNet
from splitnet.network import network as networks
from splitnet.parallel import devices
from splitnet.training import replicas
from splitnet.training.step import make_step
devices.configure(1.0, 4)
rng = np.random.default_rng(0)
images = Images(rng.integers(0, 256, (17, 32, 32, 3)).astype(np.uint8), np.arange(17, dtype=np.int32) % 2)
found = []
for copies in (replicas.Replicas(), replicas.on_devices(devices.names(), 4)):
  with copies.scope():
    network = networks.create(WideResNet(k=1, num_residual_units=1).graph(), seed=0)
  step = make_step(network, cifar100, dict(batch_size=4), 4.0, copies)
  sizes = (1, 2, 3, 4, 5, 6, 7, 17)
  found.append([step.validate(Images(images.images[:size], images.labels[:size])) for size in sizes])
print(json.dumps(found))
"""


def test_a_last_batch_with_fewer_images_than_replicas_is_validated(start):
  one, many = json.loads(finished(start(['-c', VALIDATIONS])).splitlines()[-1])
  np.testing.assert_allclose(many, one, rtol=1e-5)


@pytest.mark.parametrize('mode', ['group', 'split'])
def test_replicas_train_as_one_device_does(runs, mode):
  folder, _ = runs
  assert_alike(folder / 'one' / mode, folder / 'many' / mode)


def test_branches_on_two_devices_train_as_on_one(runs):
  folder, _ = runs
  assert_alike(folder / 'one' / 'split', folder / 'placed' / 'split')


@pytest.mark.parametrize('operation', ['Conv2D', 'Conv2DBackpropFilter', 'ResourceApplyMomentum', 'L2Loss'])
def test_a_branch_has_its_whole_step_on_its_device(runs, operation):
  lines = [line for line in runs[1]['placed'].splitlines() if f'({operation})' in line]
  counts = [sum(line.endswith(f'device:CPU:{i}') for line in lines) for i in (0, 1)]
  # The first device has the trunk too, the second only its branch, which is as deep as the other.
  assert 0 < counts[1] < counts[0] < 3 * counts[1]


def test_two_tasks_of_slurm_train_as_one_and_only_the_chief_writes(runs):
  folder, out = runs
  assert_alike(folder / 'one' / 'group', folder / 'workers' / 'group')
  assert not os.path.exists(folder / 'elsewhere')
  assert re.fullmatch(r'worker 1 \(localhost:\d+\): waiting for localhost:\d+\n', out['other'])
  assert f'done at step {STEPS}' in out['chief']
  kept = [sorted(os.listdir(folder / where / 'group')) for where in ('one', 'workers')]
  assert kept[0] == kept[1]


def test_a_run_on_one_device_goes_on_on_two(runs, start, tmp_path_factory):
  folder, _ = runs
  more = ['--num_logical_devices', 2, '--num_replicas', 2]
  arguments = flags('group', helpers.data(tmp_path_factory), folder / 'resumed', *more)
  assert 'going on from step 2 ' in finished(start(script(arguments)))
  with open(folder / 'resumed' / 'train.log', encoding='utf-8') as f:
    log = f.read()
  with open(folder / 'resumed' / 'train.log', 'w', encoding='utf-8') as f:
    f.write(log.replace('done at', ''))  # step 2 was also the first run's last: once is enough
  assert_alike(folder / 'one' / 'group', folder / 'resumed')


# --- a worker that is lost ----------------------------------------------------------------------------------------


def test_a_lost_worker_is_told_in_one_sentence_and_the_same_command_goes_on(start, tmp_path_factory, tmp_path):
  data, folder = helpers.data(tmp_path_factory), tmp_path / 'run'

  def begin(steps):
    workers = free_addresses(2)
    more = ['--max_steps', steps, '--checkpoint_interval', 5, '--val_iter', 1]
    return workers, [start(script(flags('baseline', data, folder, *more)), task_of(workers, i)) for i in (0, 1)]

  workers, (chief, other) = begin(100000)
  helpers.read_until(chief, 'step 10:')
  other.kill()
  stdout, stderr = chief.communicate(timeout=300)
  assert chief.returncode == 1 and other.wait() == -signal.SIGKILL
  assert len(stderr.splitlines()) == 1, stderr
  assert stderr.startswith(f'train.py: worker 0 ({workers[0]}) has lost worker 1 ({workers[1]}); ')
  last = int(helpers.weights(str(folder))['step/.ATTRIBUTES/VARIABLE_VALUE'])
  assert last >= 5 and last % 5 == 0
  _, (chief, other) = begin(last + 2)
  stdout = finished(chief)
  finished(other)
  assert f'going on from step {last} ' in stdout and f'done at step {last + 2}' in stdout


def test_workers_that_start_differently_are_told(monkeypatch):
  workers = replicas.Replicas(workers=['a:1', 'b:2'], worker=1)
  monkeypatch.setattr(workers, 'gather', lambda values: np.array([[1.0], values]))
  with pytest.raises(UserError, match=r'worker 1 \(b:2\) and the chief \(a:1\) differ in their data: .*--train_dir'):
    workers.must_agree('their data', np.arange(3))
  monkeypatch.setattr(workers, 'gather', lambda values: np.array([values, values]))
  workers.must_agree('their data', np.arange(3), b'and more')


# --- what is refused ----------------------------------------------------------------------------------------------

CLUSTER = {'worker': ['a:1', 'b:2']}
TASK = {'type': 'worker', 'index': 0}
CLUSTERS = {
  # name: (TF_CONFIG, words that the sentence has)
  'no JSON': ('{"cluster"', ['TF_CONFIG cannot be used']),
  'a list': ('[1]', ['TF_CONFIG cannot be used']),
  'another job': (json.dumps({'cluster': {**CLUSTER, 'ps': ['c:3']}, 'task': TASK}), ["'ps'", 'chief']),
  'no port': (json.dumps({'cluster': {'worker': ['a:1', 'b']}, 'task': TASK}), ["'b'", 'host:port']),
  'named twice': (json.dumps({'cluster': {'worker': ['a:1', 'a:1']}, 'task': TASK}), ['twice']),
  'no task': (json.dumps({'cluster': CLUSTER}), ['task']),
  'no such index': (json.dumps({'cluster': CLUSTER, 'task': {'type': 'worker', 'index': 2}}), ['"index": 2']),
}
REFUSED = {
  # name: (mode, flags, TF_CONFIG, words that the sentence has)
  'too many replicas': ('group', ['--num_replicas', 2], '', ['--num_replicas is 2', '/CPU:0', '--num_logical_devices']),
  'negative replicas': ('group', ['--num_replicas', -1], '', ['--num_replicas', "'-1'"]),
  'branches of a baseline': ('baseline', ['--devices', '/CPU:0'], '', ["'/CPU:0'", '--mode split']),
  'branches and replicas': ('split', ['--devices', '/CPU:0', '--num_replicas', 2], '', ['--num_replicas 2']),
  'no such device': ('split', ['--devices', '/CPU:0,/GPU:7'], '', ["'/GPU:7'", '/CPU:0']),
  'branches and workers': (
    'split', ['--devices', '/CPU:0'], json.dumps({'cluster': CLUSTER, 'task': TASK}), ['--devices /CPU:0', '2 workers']
  ),
}  # fmt: skip
for name, (text, words) in CLUSTERS.items():
  REFUSED['TF_CONFIG: ' + name] = ('group', [], text, ['"cluster": {"worker": ', *words])


@pytest.mark.parametrize('case', REFUSED)
def test_a_mistake_is_told_in_one_sentence(tmp_path_factory, tmp_path, monkeypatch, capsys, case):
  mode, more, text, words = REFUSED[case]
  monkeypatch.setenv('TF_CONFIG', text)
  arguments = flags(mode, helpers.data(tmp_path_factory), tmp_path / 'run', *more)
  code, stdout, stderr = helpers.call(train, arguments, capsys)
  assert code == 1 and stdout == '' and len(stderr.splitlines()) == 1, stdout + stderr
  for word in words:
    assert word in stderr
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
  'more, word', [(['--batch_size', 20], '21 devices'), (['--batch_size', 21, '--jit_compile', 'True'], '--jit_compile')]
)
def test_what_replicas_cannot_do_is_told(tmp_path_factory, tmp_path, monkeypatch, capsys, more, word):
  class Many(replicas.Replicas):
    def __init__(self):
      super().__init__()
      self.count = 21

  monkeypatch.setattr(replicas, 'on_devices', lambda names, count: Many())
  arguments = flags('group', helpers.data(tmp_path_factory), tmp_path / 'run', *more)
  code, _, stderr = helpers.call(train, arguments, capsys)
  assert code == 1 and len(stderr.splitlines()) == 1 and word in stderr


def test_one_worker_alone_is_no_cluster_and_a_chief_comes_first():
  one = {'cluster': {'worker': ['a:1']}, 'task': TASK}
  assert replicas.read_cluster(json.dumps(one)) == replicas.read_cluster('') == ([], 0)
  both = {'cluster': {'worker': ['b:2', 'c:3'], 'chief': ['a:1']}, 'task': {'type': 'worker', 'index': 1}}
  assert replicas.read_cluster(json.dumps(both)) == (['a:1', 'b:2', 'c:3'], 2)


@pytest.mark.parametrize('batch, count', [(20, 3), (7, 7), (90, 4), (2, 3)])
def test_shares_make_up_the_batch(monkeypatch, batch, count):
  taken, weight = [], 0.0
  for index in range(count):
    context = type('Context', (), {'replica_id_in_sync_group': index})
    monkeypatch.setattr(replicas.tf.distribute, 'get_replica_context', lambda context=context: context)
    several = replicas.Replicas(type('Strategy', (), {'num_replicas_in_sync': count}))
    share = several.share(batch)
    taken.append(share.take(np.arange(batch)))
    weight += share.weight
  np.testing.assert_array_equal(np.concatenate(taken), np.arange(batch))
  assert max(map(len, taken)) - min(map(len, taken)) <= 1 and weight == pytest.approx(1)


# --- XLA --------------------------------------------------------------------------------------------------------


def test_xla_is_for_a_gpu_unless_asked_for(monkeypatch):
  def chosen(count, **asked):
    several = replicas.Replicas()
    several.count = count
    monkeypatch.setattr(replicas, 'on_devices', lambda names, count: several)
    return replicas.set_up(replicas.Machine(**asked), 90)[2]

  monkeypatch.setattr(devices, 'configure', lambda *arguments: None)
  # One GPU cut into logical devices, or one on each of several hosts, is several devices.
  for gpus, count, auto in (([], 1, False), (['GPU:0'], 1, True), (['GPU:0'], 2, False), (['GPU:0'] * 2, 1, True)):
    monkeypatch.setattr(tf.config, 'get_visible_devices', lambda kind, gpus=gpus: gpus)
    assert chosen(count) is auto and chosen(count, jit_compile='auto') is auto
    assert chosen(count, jit_compile=False) is False
    if count == 1:
      assert chosen(count, jit_compile=True) is True
      assert bool(devices.use_xla('auto')) is auto


def test_a_gpu_without_what_xla_needs_trains_without_it_and_says_so(monkeypatch, capsys):
  def broken(function, jit_compile):
    def call(*arguments):
      raise tf.errors.InternalError(None, None, 'libdevice not found at ./libdevice.10.bc [Op:call]\nmore')

    return call

  devices.check_xla()  # here it works
  devices.check_xla.cache_clear()
  monkeypatch.setattr(devices, 'configure', lambda *arguments: None)
  monkeypatch.setattr(tf.config, 'get_visible_devices', lambda kind: ['GPU:0'])
  monkeypatch.setattr(tf, 'function', broken)
  assert replicas.set_up(replicas.Machine(), 90)[2] is False
  told = capsys.readouterr().err
  assert told.startswith('without XLA, so slower: XLA cannot compile here (libdevice not found at ')
  assert told.count('\n') == 1 and 'more' not in told and '--xla_gpu_cuda_data_dir' in told
  with pytest.raises(UserError, match=r'tensorflow\[and-cuda\].*with --jit_compile False it goes without'):
    replicas.set_up(replicas.Machine(jit_compile=True), 90)


# --- Slurm -------------------------------------------------------------------------------------------------------

SLURM = {
  'SLURM_JOB_ID': '40007', 'SLURM_PROCID': '1', 'SLURM_STEP_NUM_TASKS': '3', 'SLURM_STEP_NODELIST': 'n[2,10],gpu7',
  'SLURM_STEP_TASKS_PER_NODE': '1(x3)', 'SLURMD_NODENAME': 'n10', 'SLURM_LOCALID': '0',
}  # fmt: skip


def slurm(monkeypatch, **changed):
  """What replicas.slurm_config makes of Slurm's variables, read; some changed, or missing if None."""
  environment = {name: value for name, value in {**SLURM, **changed}.items() if value is not None}
  for name in SLURM:
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():  # TensorFlow's resolver reads the environment itself
    monkeypatch.setenv(name, value)
  config = replicas.slurm_config(os.environ)
  return config and replicas.read_cluster(config)


def test_tasks_of_slurm_are_workers(monkeypatch):
  assert slurm(monkeypatch) == (['gpu7:12007', 'n10:12007', 'n2:12007'], 1)
  assert slurm(monkeypatch, SLURM_PROCID='0', SLURMD_NODENAME='n2')[1] == 2  # Slurm's first host, by text the last
  assert slurm(monkeypatch, SLURMD_NODENAME=None)[1] == 1


def test_two_tasks_on_a_host_have_two_ports(monkeypatch):
  two = dict(SLURM_STEP_NODELIST='localhost', SLURM_STEP_NUM_TASKS='2', SLURM_STEP_TASKS_PER_NODE='2')
  workers, index = slurm(monkeypatch, **two, SLURMD_NODENAME='localhost', SLURM_LOCALID='1')
  assert (workers, index) == (['localhost:12007', 'localhost:12008'], 1)


def test_one_task_and_a_batch_script_are_alone(monkeypatch):
  assert slurm(monkeypatch, SLURM_STEP_NUM_TASKS='1') is None
  assert slurm(monkeypatch, SLURM_STEP_NUM_TASKS=None) is None


def test_variables_that_do_not_fit_are_told(monkeypatch):
  with pytest.raises(UserError, match=r'the variables of Slurm cannot be understood .*set TF_CONFIG'):
    slurm(monkeypatch, SLURM_STEP_NODELIST=None)
  with pytest.raises(UserError, match='the variables of Slurm cannot be understood'):
    slurm(monkeypatch, SLURMD_NODENAME='elsewhere')
