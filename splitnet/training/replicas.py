"""Trains on several devices: replicas, each with its share of every batch.

In one process the replicas are on its GPUs (tf.distribute.MirroredStrategy); on several hosts TF_CONFIG names the
workers, and each has a replica on every GPU of its own (tf.distribute.MultiWorkerMirroredStrategy). A step is that of
the whole batch, whatever the number of replicas: every worker draws the same batch, a replica takes its own run of
the images and of the random draws, batch normalisation takes the statistics of all, and gradients are summed.
"""

import contextlib
import dataclasses
import json
import os
import re
import signal
import zlib

from splitnet.common.quiet import is_task_of_slurm

import numpy as np
import tensorflow as tf

from splitnet.common import schema
from splitnet.common.errors import UserError, first_line, handling
from splitnet.data.batches import Part
from splitnet.parallel import connections, devices, waiting

# What a collective operation ends in when another worker is gone.
LOST = (
  tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError,
  tf.errors.FailedPreconditionError,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Share:
  """Marks one replica's part of a batch: `count` of its images, from `first` on."""

  first: int | tf.Tensor
  count: int | tf.Tensor
  batch: int | tf.Tensor
  worker_first: int = 0  # this worker reads the images of the batch from this one on

  @property
  def weight(self):
    """Returns the part that this replica's mean has in the mean of the batch."""
    return self.count / self.batch

  def take(self, whole):
    """Returns this replica's rows of what belongs to the whole batch."""
    return whole[self.first : self.first + self.count]

  def take_images(self, images):
    """Returns this replica's images of those that this worker has read."""
    first = self.first - self.worker_first
    return images[first : first + self.count]

  def sum(self, values):
    """Sums a structure of tensors over all replicas; all call it; differentiable."""

    @tf.custom_gradient
    def sum_of(*own):
      # To find variables in a function with a gradient of its own, TensorFlow walks back from what it returns, here
      # through all that the other replicas have computed: without an end to that, tracing took four times as long.
      ended = [tf.stop_gradient(value) for value in own]
      sums = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, ended)
      return sums, lambda *gradients: self.sum(gradients)

    return tf.nest.pack_sequence_as(values, sum_of(*tf.nest.flatten(values)))


class Replicas:
  """Runs the replicas of a run; without a strategy one, and nothing is distributed."""

  def __init__(self, strategy=None, workers=(), worker=0):
    # Workers are addresses, the first of the chief, this process number `worker`; none if there is one process only.
    self._strategy, self.workers, self.worker = strategy, list(workers), worker
    self.count = strategy.num_replicas_in_sync if strategy else 1

  @property
  def part(self):
    """Returns the Part of every batch whose images this worker reads."""
    workers = max(len(self.workers), 1)
    return Part(self.worker * self.count // workers, (self.worker + 1) * self.count // workers, self.count)

  @property
  def chief(self):
    """Tells whether this process is the one that writes."""
    return self.worker == 0

  def scope(self):
    """Returns the context in which variables get a copy for every replica."""
    return self._strategy.scope() if self._strategy else contextlib.nullcontext()

  @tf.autograph.experimental.do_not_convert
  def run(self, function, *arguments):
    """Calls a function once per replica, in a tf.function; all must return the same."""
    results = self._strategy.run(function, arguments)
    return tf.nest.map_structure(lambda result: self._strategy.experimental_local_results(result)[0], results)

  def share(self, batch):
    """Returns, in `run`, this replica's Share of a batch; None: all."""
    if self._strategy is None:
      return None
    index = tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group)
    first, last = batch * index // self.count, batch * (index + 1) // self.count
    return Share(first, last - first, batch, self.part.rows(batch)[0])

  def gather(self, values):
    """Waits for all workers; returns what each gives: [workers, values], float64."""
    if not self.workers:
      return np.array([values], np.float64)
    rows = np.zeros([len(self.workers), len(values)])
    rows[self.worker] = values
    return self._strategy.reduce(tf.distribute.ReduceOp.SUM, tf.constant(rows), axis=None).numpy()

  def of_chief(self, value):
    """Returns the chief's value of a number, such as a time, that may differ."""
    return float(self.gather([value])[0, 0])

  def must_agree(self, what, *contents):
    """Waits for all workers; UserError if contents, bytes or arrays, differ."""
    if not self.workers:
      return
    checksum = 0
    for content in contents:
      checksum = zlib.crc32(content if isinstance(content, bytes) else np.ascontiguousarray(content), checksum)
    checksums = self.gather([checksum])[:, 0]
    for other in np.flatnonzero(checksums != checksums[0]):
      raise UserError(
        f'worker {other} ({self.workers[other]}) and the chief ({self.workers[0]}) differ in {what}: start the same '
        'command on every host, with the same data and a --train_dir and --basemodel that all hosts share'
      )

  @contextlib.contextmanager
  def explaining_losses(self):
    """Opens a context that tells of a lost worker in one sentence (UserError)."""
    try:
      yield
    except LOST as e:
      if not self.workers:
        raise
      raise UserError(
        f'worker {self.worker} ({self.workers[self.worker]}) has lost {self._lost_worker(str(e))}; start the same '
        'command on every host again: it goes on from the last checkpoint'
      ) from e

  def _lost_worker(self, message):
    """Names the other worker that TensorFlow's message is about."""
    for job, task in re.findall(r'/job:(\w+)/(?:replica:\d+/)?task:(\d+)', message):
      number = _number(job, int(task), self._strategy.cluster_resolver.cluster_spec().as_dict())
      if number != self.worker:
        return f'worker {number} ({self.workers[number]})'
    return 'another worker'


def _number(job, task, jobs):
  """Returns a task's number among the workers; a chief comes first."""
  return task + (len(jobs.get('chief', [])) if job == 'worker' else 0)


@schema.record
class Task(schema.TypedDict):
  """Says which worker of TF_CONFIG this one is."""

  type: schema.NotRequired[schema.Text]
  index: schema.NotRequired[schema.Count]


@schema.record
class Cluster(schema.TypedDict):
  """Describes TF_CONFIG."""

  cluster: schema.NotRequired[dict[str, list[schema.Text]]]
  task: schema.NotRequired[Task]


def read_cluster(text):
  """Reads the workers in TF_CONFIG: (addresses, number of this); ([], 0) if alone.

  Raises UserError if it is no such JSON.
  """
  if not text:
    return [], 0
  try:
    content = schema.parse_json(os.fsencode(text), Cluster)
    jobs, task = content.get('cluster', {}), content.get('task', {})
    other = sorted(set(jobs) - {'chief', 'worker'})
    if other:
      raise ValueError(f"only 'chief' and 'worker' take part in training, not '{other[0]}'")
    workers = list(jobs.get('chief', [])) + list(jobs.get('worker', []))
    for address in workers:
      if not re.fullmatch(r'\S+:\d{1,5}', address):
        raise ValueError(f"'{address}' is no host:port")
    if len(set(workers)) < len(workers) or len(jobs.get('chief', [])) > 1:
      raise ValueError('a worker is named twice, or there are two chiefs')
    if len(workers) < 2:
      return [], 0
    job, index = task.get('type'), task.get('index')
    if job not in jobs or index is None or index >= len(jobs[job]):
      raise ValueError(f'its task is {json.dumps(task)}, which is none of the cluster')
  except ValueError as e:
    raise UserError(
      f'TF_CONFIG cannot be used ({e}); it must be such as {{"cluster": {{"worker": ["host1:2222", "host2:2222"]}}, '
      '"task": {"type": "worker", "index": 0}}'
    ) from e
  return workers, _number(job, index, jobs)


def on_devices(names, count):
  """Makes replicas on the first `count` of some devices (0: all)."""
  if count > len(names):
    raise UserError(
      f'--num_replicas is {count}, but there is only {", ".join(names)} (--num_logical_devices N cuts one device '
      'into N)'
    )
  chosen = names[: count or len(names)]
  if len(chosen) < 2:
    return Replicas()
  # Parts of one CPU share its memory: nothing is gained by the rings of messages that TensorFlow would send.
  reduction = None if 'GPU' in chosen[0] else tf.distribute.ReductionToOneDevice()
  return Replicas(tf.distribute.MirroredStrategy(chosen, cross_device_ops=reduction))


def on_hosts(workers, worker):
  """Makes replicas on all GPUs of several hosts, or on CPUs if a host has none.

  Waits until all are there; before TensorFlow has initialised its devices. Raises UserError if this worker's port is
  taken.
  """
  others = ', '.join(address for i, address in enumerate(workers) if i != worker)
  print(f'worker {worker} ({workers[worker]}): waiting for {others}', flush=True)
  connections.ignore_proxies()
  asked = waiting.telling_of_missing([address for i, address in enumerate(workers) if i != worker])
  try:
    # Python's own handlers would wait for the others too.
    with handling(signal.SIG_DFL, (signal.SIGINT, signal.SIGTERM)), asked:
      return Replicas(tf.distribute.MultiWorkerMirroredStrategy(), workers, worker)
  except tf.errors.OpError as e:
    raise UserError(
      f"worker {worker} cannot start at '{workers[worker]}' ({first_line(e)}): is its port free, and does every host "
      'have the same TF_CONFIG but for the index?'
    ) from e


def slurm_config(environment):
  """Returns the TF_CONFIG of a task that `srun` started beside others, or None.

  The ports follow from the job's number, so that two jobs on a host do not meet. Raises UserError if Slurm's variables,
  which are in the environment, cannot be understood.
  """
  if not is_task_of_slurm(environment):
    return None
  try:
    # It is asked for addresses only: which GPUs a task sees is srun's business (--gpus-per-task).
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
      port_base=12000 + int(environment.get('SLURM_JOB_ID', 0)) % 20000,
      gpus_per_node=int(environment['SLURM_STEP_NUM_TASKS']), gpus_per_task=1, auto_set_gpu=False,
    )  # fmt: skip
    workers = resolver.cluster_spec().as_dict()['worker']
    _, index = resolver.get_task_info()
    if 'SLURMD_NODENAME' in environment:  # it sorts hosts by text, n10 before n2, but Slurm numbers them otherwise
      own = [address for address in workers if address.rpartition(':')[0] == environment['SLURMD_NODENAME']]
      index = workers.index(own[int(environment.get('SLURM_LOCALID', 0))])
  except (RuntimeError, ValueError, IndexError, KeyError, AssertionError) as e:
    raise UserError(
      f'the variables of Slurm cannot be understood ({e}): set TF_CONFIG, or unset SLURM_STEP_NUM_TASKS to train alone'
    ) from e
  return json.dumps({'cluster': {'worker': workers}, 'task': {'type': 'worker', 'index': index}})


@dataclasses.dataclass(frozen=True)
class Machine:
  """Says what a run computes on; the names are those of train.py's flags."""

  num_replicas: int = 0  # devices that share each batch; 0: all GPUs, or all parts of the CPU
  devices: str | None = None  # for the branches instead, names separated by commas
  num_logical_devices: int = 1  # parts into which the one CPU or GPU is cut
  gpu_fraction: float = 1.0  # share of each GPU's memory to take, in (0, 1]
  log_device_placement: bool = False  # log where every operation runs
  jit_compile: bool | str = 'auto'  # compile the step with XLA: True, False or 'auto'

  def __post_init__(self):
    if self.devices is not None and self.num_replicas > 1:
      raise UserError(
        f"--devices '{self.devices}' places the branches of one network and --num_replicas {self.num_replicas} copies "
        'it: give one of the two'
      )


def set_up(machine, batch_size):
  """Sets up the devices of a run.

  Waits for the other workers if TF_CONFIG in the environment names some, or Slurm has started several tasks. Returns
  (the Replicas; the devices for the branches, a list of names or None; whether to compile the step with XLA).
  Raises UserError if the settings or TF_CONFIG ask for what cannot be.
  """
  config = os.environ.get('TF_CONFIG') or slurm_config(os.environ)
  if config:
    os.environ['TF_CONFIG'] = config  # TensorFlow reads it there
  workers, worker = read_cluster(config)
  placed = None
  if workers:
    for name in ('devices', 'num_replicas', 'num_logical_devices'):
      value = getattr(machine, name)
      if value != getattr(Machine(), name):
        raise UserError(
          f'--{name} {value} is for one process, but TF_CONFIG names {len(workers)} workers: leave it out; a worker '
          'takes all GPUs that its CUDA_VISIBLE_DEVICES shows'
        )
    devices.configure(machine.gpu_fraction, log_device_placement=machine.log_device_placement)
    replicas = on_hosts(workers, worker)
  else:
    devices.configure(machine.gpu_fraction, machine.num_logical_devices, machine.log_device_placement)
    placed = None if machine.devices is None else devices.parse(machine.devices)
    replicas = Replicas() if placed else on_devices(devices.names(), machine.num_replicas)
  count = max(replicas.count, len(placed or []))
  if machine.jit_compile is True and count > 1:
    raise UserError(f'--jit_compile True compiles for one device, but there are {count}: leave it out')
  jit_compile = devices.compile_with_xla(machine.jit_compile, count)
  if batch_size < replicas.count:
    raise UserError(
      f'--batch_size is {batch_size}, but there are {replicas.count} devices to share it: give at least one image to '
      'each, or --num_replicas'
    )
  return replicas, placed, jit_compile
