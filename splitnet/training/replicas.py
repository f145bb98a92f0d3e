"""Training on several devices: copies of the network (replicas), each of which takes its share of every batch.

In one process the replicas are on its GPUs (tf.distribute.MirroredStrategy); on several hosts TF_CONFIG names the
workers, and each has a replica on every GPU of its own (tf.distribute.MultiWorkerMirroredStrategy). A step is that of
the whole batch, whatever the number of replicas: every worker draws the same batch, a replica takes its own run of
the images and of the random draws, batch normalisation takes the statistics of all, and gradients are summed.
"""

import contextlib
import json
import os
import re
import signal
import zlib

import numpy as np
import tensorflow as tf

from splitnet.common.errors import UserError

# What a collective operation ends in when another worker is gone.
LOST = (
  tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError,
  tf.errors.FailedPreconditionError,
)  # fmt: skip


class Share:
  """One replica's part of a batch: images `first` to `first + count - 1` of `batch`; ints or int32 scalars."""

  def __init__(self, first, count, batch):
    self.first, self.count, self.batch = first, count, batch

  @property
  def weight(self):
    """What this replica's mean counts for in the mean of the batch."""
    return self.count / self.batch

  def take(self, whole):
    """This replica's rows of what belongs to the whole batch."""
    return whole[self.first : self.first + self.count]

  def sum(self, values):
    """The sums of a structure of tensors over all replicas; differentiable. Every replica must call it alike."""
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


class Replicas:
  """The replicas of a run: one without a strategy, and then nothing is distributed.

  Attributes:
    count: replicas in all.
    workers: addresses of the workers, one of them this process; the first is the chief. Empty for one process.
    worker: this worker's number.
  """

  def __init__(self, strategy=None, workers=(), worker=0):
    self._strategy, self.workers, self.worker = strategy, list(workers), worker
    self.count = strategy.num_replicas_in_sync if strategy else 1

  @property
  def chief(self):
    """Whether this process is the one that writes."""
    return self.worker == 0

  def scope(self):
    """The context in which variables are made: each with a copy for every replica."""
    return self._strategy.scope() if self._strategy else contextlib.nullcontext()

  def run(self, function, *arguments):
    """Calls a function once a replica, in a tf.function; returns what it returns, which must be alike on all."""
    results = self._strategy.run(function, arguments)
    return tf.nest.map_structure(lambda result: self._strategy.experimental_local_results(result)[0], results)

  def share(self, batch):
    """Called in `run`: this replica's Share of a batch of so many images, None where it has all; shares may differ
    by one image."""
    if self._strategy is None:
      return None
    index = tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group)
    first, last = batch * index // self.count, batch * (index + 1) // self.count
    return Share(first, last - first, batch)

  def gather(self, values):
    """The values of every worker, given by each: float64 array [workers, values]. It waits for all of them."""
    if not self.workers:
      return np.array([values], np.float64)
    rows = np.zeros([len(self.workers), len(values)])
    rows[self.worker] = values
    return self._strategy.reduce(tf.distribute.ReduceOp.SUM, tf.constant(rows), axis=None).numpy()

  def chiefs(self, value):
    """The chief's value of a number that may differ between workers, such as a time."""
    return float(self.gather([value])[0, 0])

  def must_agree(self, what, *contents):
    """Waits for all workers; contents (bytes or arrays) must be the same on each.

    Raises:
      UserError: on every worker, where they are not.
    """
    if not self.workers:
      return
    crc = 0
    for content in contents:
      crc = zlib.crc32(content if isinstance(content, bytes) else np.ascontiguousarray(content), crc)
    found = self.gather([crc])[:, 0]
    for other in np.flatnonzero(found != found[0]):
      raise UserError(
        'worker %d (%s) and the chief (%s) differ in %s: start the same command on every host, with the same data and '
        'a --train_dir and --basemodel that all hosts share' % (other, self.workers[other], self.workers[0], what)
      )

  @contextlib.contextmanager
  def watched(self):
    """A context that tells of a lost worker in one sentence (UserError)."""
    try:
      yield
    except LOST as e:
      if not self.workers:
        raise
      raise UserError(
        'worker %d (%s) has lost %s; start the same command on every host again: it goes on from the last checkpoint'
        % (self.worker, self.workers[self.worker], self._lost(str(e)))
      ) from e

  def _lost(self, message):
    """Which other worker TensorFlow's message is about."""
    for job, task in re.findall(r'/job:(\w+)/(?:replica:\d+/)?task:(\d+)', message):
      number = _number(job, int(task), self._strategy.cluster_resolver.cluster_spec().as_dict())
      if number != self.worker:
        return 'worker %d (%s)' % (number, self.workers[number])
    return 'another worker'


def _number(job, task, jobs):
  """A task's number among the workers: the chief, where there is one, before all."""
  return task + (len(jobs.get('chief', [])) if job == 'worker' else 0)


def read_cluster(text):
  """The workers in TF_CONFIG: (addresses, number of this one); ([], 0) where it is empty or names one only.

  Raises:
    UserError: where it is no such JSON.
  """
  if not text:
    return [], 0
  try:
    content = json.loads(text)
    jobs, task = content.get('cluster', {}), content.get('task', {})
    other = sorted(set(jobs) - {'chief', 'worker'})
    if other:
      raise ValueError("only 'chief' and 'worker' take part in training, not '%s'" % other[0])
    workers = list(jobs.get('chief', [])) + list(jobs.get('worker', []))
    for address in workers:
      if not re.fullmatch(r'\S+:\d{1,5}', address):
        raise ValueError("'%s' is no host:port" % address)
    if len(set(workers)) < len(workers) or len(jobs.get('chief', [])) > 1:
      raise ValueError('a worker is named twice, or there are two chiefs')
    if len(workers) < 2:
      return [], 0
    job, index = task.get('type'), task.get('index')
    if job not in jobs or not isinstance(index, int) or not 0 <= index < len(jobs[job]):
      raise ValueError('its task is %s, which is none of the cluster' % json.dumps(task))
  except (ValueError, AttributeError, TypeError) as e:
    raise UserError(
      'TF_CONFIG cannot be used (%s); it must be such as {"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
      '"task": {"type": "worker", "index": 0}}' % e
    ) from e
  return workers, _number(job, index, jobs)


def on_devices(names, count):
  """Replicas on the first `count` of some devices, 0 for all; nothing is distributed where that is one.

  Raises:
    UserError: where there are not so many.
  """
  if count > len(names):
    raise UserError(
      '--num_replicas is %d, but there is only %s (--num_logical_devices N cuts one device into N)'
      % (count, ', '.join(names))
    )
  chosen = names[: count or len(names)]
  if len(chosen) < 2:
    return Replicas()
  # Parts of one CPU share its memory: nothing is gained by the rings of messages that TensorFlow would send.
  reduction = None if 'GPU' in chosen[0] else tf.distribute.ReductionToOneDevice()
  return Replicas(tf.distribute.MirroredStrategy(chosen, cross_device_ops=reduction))


def on_hosts(workers, worker):
  """Replicas on all GPUs of several hosts, or on their CPUs where they have none; waits until all are there.

  To be called before TensorFlow has initialised its devices.

  Raises:
    UserError: where this worker's port is taken.
  """
  print('worker %d (%s): waiting for %s' % (
    worker, workers[worker], ', '.join(address for i, address in enumerate(workers) if i != worker),
  ), flush=True)  # fmt: skip
  before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own would wait for the others too
  try:
    return Replicas(tf.distribute.MultiWorkerMirroredStrategy(), workers, worker)
  except tf.errors.OpError as e:
    raise UserError(
      "worker %d cannot start at '%s' (%s): is its port free, and does every host have the same TF_CONFIG but for the "
      'index?' % (worker, workers[worker], str(e).split('\n')[0])
    ) from e
  finally:
    signal.signal(signal.SIGINT, before)


def cluster():
  """The workers that TF_CONFIG in the environment names; see `read_cluster`."""
  return read_cluster(os.environ.get('TF_CONFIG'))
