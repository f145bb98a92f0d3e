"""SplitNet's mathematics: assignments of units to groups, their merging, the three regularisers, hard groups, counting.

Nothing here knows a network, a data set or a flag. Symbols are the paper's (Kim et al., "SplitNet: Learning to
Semantically Split Deep Networks for Parameter Reduction and Model Parallelization", ICML 2017):

  q, p   a soft assignment, [groups, units]: one probability per group and unit, each column sums to 1
  W      a layer's weights, [in, out]; a convolution counts each in-out channel pair once
  P, Q   the assignments of a layer's inputs and outputs

The normalisations are those of the authors' released code, which makes every term about 1 for an assignment
that has not decided anything yet and for freshly initialised weights; the paper leaves them out.
"""

import collections
import itertools

import numpy as np
import tensorflow as tf

# --- merging groups --------------------------------------------------------------------------------------------


def merge_sizes(groups, merged_groups):
  """How many of `groups` consecutive groups each of `merged_groups` takes: group i takes (N + M - i - 1) // M.

  Source: the released code's merging (the paper's section 3.3 asks for a merge, not for which one).

  Raises:
    ValueError: unless 1 <= merged_groups <= groups.
  """
  if not 1 <= merged_groups <= groups:
    raise ValueError('cannot merge %d groups into %d' % (groups, merged_groups))
  return [(groups + merged_groups - i - 1) // merged_groups for i in range(merged_groups)]


def parents(groups, merged_groups):
  """The merged group that each group goes to: int array [groups], never decreasing."""
  return np.repeat(np.arange(merged_groups), merge_sizes(groups, merged_groups))


def parents_along(counts):
  """The last merged group that each of the first groups goes to, merged step by step: int array [counts[0]].

  Down a tree of 5, 3 and 2 branches the five go to 0 0 0 0 1, but merged from 5 to 2 at once to 0 0 0 1 1.
  """
  groups = np.arange(counts[0])
  for count, merged in itertools.pairwise(counts):
    groups = parents(count, merged)[groups]
  return groups


def merge_assignment(q, merged_groups):
  """Merges a soft assignment: [groups, units] -> [merged_groups, units], p_g(l) = sum of its children p_s(l+1).

  Source: paper, section 3.3 (hierarchical split).
  """
  groups = q.shape[0]
  if groups == merged_groups:
    return q
  onehot = parents(groups, merged_groups)[None, :] == np.arange(merged_groups)[:, None]
  return tf.matmul(tf.constant(onehot, q.dtype), q)


# --- the three regularisers ------------------------------------------------------------------------------------


def overlap(q):
  """R_D, disjoint assignment: sum over pairs g < h of q_g . q_h, divided by its value for a uniform q.

  Args:
    q: soft assignment [groups, units], groups > 1.

  Returns:
    Scalar; 1 when q is uniform, 0 when every unit is in one group only. Source: paper, equation of R_D.
  """
  return overlaps([q])[0]


def overlaps(qs):
  """R_D of soft assignments [groups, units of each] of the same number of groups, in few operations: [len(qs)]."""
  groups, q = qs[0].shape[0], tf.concat(qs, 1)
  # The columns of q sum to one, but summing the pairs as (sum^2 - sum of squares) / 2 does not rely on it.
  pairs = (tf.square(tf.reduce_sum(q, 0)) - tf.reduce_sum(tf.square(q), 0)) / 2
  return _sums(pairs, qs, [2.0 * groups / (each.shape[1] * (groups - 1)) for each in qs])


def uniform(q):
  """R_E, balanced assignment: sum over g of (sum_i q_gi)^2, divided by its least value.

  Args:
    q: soft assignment [groups, units].

  Returns:
    Scalar; 1 when every group has the same size, `groups` when one group takes all. Source: paper, equation of R_E.
  """
  return uniforms([q])[0]


def uniforms(qs):
  """R_E of soft assignments [groups, units of each] of the same number of groups, in few operations: [len(qs)]."""
  groups, q = qs[0].shape[0], tf.concat(qs, 1)
  shares = _sums(q, qs, [1.0 / each.shape[1] for each in qs])  # [groups, len(qs)]
  return groups * tf.reduce_sum(tf.square(shares), 0)


def weight_split(kernel, p, q):
  """R_W, group weight regularisation of one layer: the norms of the weights that lie between different groups.

  S = sum_g [ sum_i ||((I - P_g) W Q_g)_i*|| / (in sqrt(out)) + sum_j ||(P_g W (I - Q_g))_*j|| / (sqrt(in) out) ]
      / (2 (G - 1) std / G)

  where W^2 of a convolution is the mean of its squares over the window, and std is the deviation with which the
  layer was initialised. About 1 for fresh weights and undecided assignments; 0 when hardening would drop nothing.

  Args:
    kernel: [height, width, in, out] or [in, out].
    p, q: soft assignments [groups, in] and [groups, out] of the same number of groups > 1.

  Returns:
    Scalar. Source: paper, equation of R_W; normalisation of the released code.
  """
  return weight_splits([kernel], [p], [q])[0]


def weight_splits(kernels, ps, qs):
  """R_W of layers whose assignments have the same number of groups, in few operations: [layers].

  All that is as small as an assignment is computed for all layers at once; a layer's own are the squares of its
  weights and two products with them.
  """
  groups, units = ps[0].shape[0], [*ps, *qs]
  assignments = tf.concat(units, 1)
  squared = tf.split(tf.square(assignments), [each.shape[1] for each in units], 1)
  squares = [mean_squares(kernel) for kernel in kernels]
  # (1 - p_gi) does not depend on j, so it leaves the row's norm: no [groups, in, out] tensor is needed.
  rows = [tf.matmul(q, s, transpose_b=True) for q, s in zip(squared[len(ps) :], squares)]  # [groups, in]
  columns = [tf.matmul(p, s) for p, s in zip(squared, squares)]  # [groups, out]
  norms = tf.reduce_sum((1.0 - assignments) * _safe_sqrt(tf.concat(rows + columns, 1)), 0)
  of_rows, of_columns = [], []
  for kernel in kernels:
    inputs, outputs = kernel.shape[-2:]
    std = (1.0 / np.prod(kernel.shape[:-1])) ** 0.5
    fresh = 2.0 * (groups - 1) * std / groups
    of_rows.append(1.0 / (inputs * outputs**0.5 * fresh))
    of_columns.append(1.0 / (inputs**0.5 * outputs * fresh))
  return tf.reduce_sum(tf.reshape(_sums(norms, units, of_rows + of_columns), [2, -1]), 0)


def mean_squares(kernel):
  """The mean square of each channel pair's weights over the window: [..., in, out] -> [in, out]."""

  # TensorFlow's own gradient of the mean first repeats it over the window, a tensor as large as the kernel.
  @tf.custom_gradient
  def compute(weights):
    window = np.prod(weights.shape[:-2], initial=1.0)
    squares = tf.reduce_mean(tf.square(weights), list(range(len(weights.shape) - 2)))
    return squares, lambda upstream: weights * (upstream * (2.0 / window))

  return compute(tf.convert_to_tensor(kernel))


def _sums(values, qs, weights):
  """Sums over the units of each assignment, weighted: [..., units of all] -> [..., len(qs)]."""
  blocks = np.repeat(np.diag(weights), [q.shape[1] for q in qs], 0)  # [units of all, len(qs)]
  return tf.tensordot(values, tf.constant(blocks, values.dtype), 1)


def _by_groups(term, *lists):
  """A term of layers or assignments, those with the same number of groups at once: tensor in the lists' order."""
  chosen = {}
  for i, q in enumerate(lists[-1]):
    chosen.setdefault(q.shape[0], []).append(i)
  values = tf.concat([term(*([each[i] for i in some] for each in lists)) for some in chosen.values()], 0)
  return values if len(chosen) == 1 else tf.gather(values, np.argsort(np.concatenate(list(chosen.values()))))


def _safe_sqrt(x):
  """sqrt whose slope at 0 is large but finite: a block of exact zeros must not turn the gradient into NaN."""
  return tf.sqrt(x + 1e-20)


# What one layer adds to the objective. `kernel`: its weights; `p`, `q`: its input and output assignment at the
# number of groups between which hardening drops weights (None: it drops none); `counted`: the assignments whose
# overlap and balance this layer answers for, so that each is counted once.
SplitLayer = collections.namedtuple('SplitLayer', 'name kernel p q counted')


def regularisers(split_layers, weighted_group_loss=True):
  """The three regularisers of a network, each about 1 at the start.

  Args:
    split_layers: list of SplitLayer, bottom up.
    weighted_group_loss: weigh each layer's weight split by its own size, sum(sg(S) S) / sum(sg(S)), so that layers
      that have not split yet get more of the gradient; else their mean (both as the released code).

  Returns:
    A dict: 'overlap', 'weight_split', 'uniform', scalars; and 'overlap_terms', 'weight_split_terms',
    'uniform_terms', dicts from layer name to that layer's scalar.
  """
  counting = [layer for layer in split_layers if layer.counted]
  split = [layer for layer in split_layers if layer.p is not None]
  split_terms = _by_groups(weight_splits, *([getattr(layer, part) for layer in split] for part in ('kernel', 'p', 'q')))
  if weighted_group_loss:
    weights = tf.stop_gradient(split_terms)
    total_split = tf.reduce_sum(weights * split_terms) / tf.maximum(tf.reduce_sum(weights), 1e-20)
  else:
    total_split = tf.reduce_mean(split_terms)
  terms = {'weight_split': total_split, 'weight_split_terms': _named(split, split_terms)}
  # A layer's overlap and balance are the means of those of the assignments that it answers for.
  counts = [len(layer.counted) for layer in counting]
  means = np.repeat(np.diag(1.0 / np.array(counts)), counts, 0)  # [assignments, layers]
  for name, term in (('overlap', overlaps), ('uniform', uniforms)):
    values = _by_groups(term, [q for layer in counting for q in layer.counted])
    values = tf.tensordot(values, tf.constant(means, values.dtype), 1)
    terms[name], terms[name + '_terms'] = tf.reduce_mean(values), _named(counting, values)
  return terms


def _named(layers, values):
  return dict(zip([layer.name for layer in layers], tf.unstack(values)))


# --- hard groups -----------------------------------------------------------------------------------------------


def confidence(q):
  """Mean over the units of the probability of their most probable group: 1 / groups undecided, 1 decided."""
  return tf.reduce_mean(tf.reduce_max(q, 0))


def hard_groups(alpha):
  """The most probable group of each unit (Algorithm 1 of the paper): alpha [groups, units] -> int array [units]."""
  return np.argmax(np.asarray(alpha), 0).astype(np.int64)


def group_sizes(groups_of_units, groups):
  """How many units each group has: int array [groups]."""
  return np.bincount(groups_of_units, minlength=groups)


def group_order(groups_of_units):
  """The units ordered by group, in their own order inside a group: int array [units]."""
  return np.argsort(groups_of_units, kind='stable')


def superclass_agreement(groups_of_classes, superclass_of_classes):
  """The share of the classes that are in the group which holds most of their superclass (paper, figure 5).

  Args:
    groups_of_classes, superclass_of_classes: int arrays [classes].

  Returns:
    Number in (0, 1]; 1 when no superclass is divided between groups.
  """
  table = superclass_table(groups_of_classes, superclass_of_classes)
  return float(table.max(0).sum()) / len(groups_of_classes)


def superclass_table(groups_of_classes, superclass_of_classes):
  """How many classes of each superclass are in each group: int array [groups, superclasses] (paper, figure 5)."""
  table = np.zeros((max(groups_of_classes) + 1, max(superclass_of_classes) + 1), np.int64)
  np.add.at(table, (np.asarray(groups_of_classes), np.asarray(superclass_of_classes)), 1)
  return table


# --- counting --------------------------------------------------------------------------------------------------

# One layer's size. `counted`: whether the paper's tables count it (they leave out the first convolution and the
# batch normalisations).
LayerCount = collections.namedtuple('LayerCount', 'name parameters flops counted')


def count_convolution(name, kernel_size, inputs, outputs, output_size, counted=True):
  """Parameters, and FLOPs for one image at 2 per multiply-add, of a convolution without bias.

  Args:
    kernel_size, output_size: height (= width) of the window and of the output, pixels.
    inputs, outputs: channels.
  """
  parameters = kernel_size * kernel_size * inputs * outputs
  return LayerCount(name, parameters, 2 * parameters * output_size * output_size, counted)


def count_linear(name, inputs, outputs):
  """Parameters (weights and biases) and FLOPs for one image of a fully connected layer, a bias counted as a weight."""
  parameters = inputs * outputs + outputs
  return LayerCount(name, parameters, 2 * parameters, True)


def count_batch_norm(name, channels, output_size, scaled):
  """Learned parameters (offset, and scale if there is one) and FLOPs (2 per value) of a batch normalisation."""
  return LayerCount(name, channels * (2 if scaled else 1), 2 * channels * output_size * output_size, False)


def total_count(counts, everything=False):
  """Sums a list of LayerCount to (parameters, FLOPs per image); `everything` adds what the paper leaves out."""
  chosen = [c for c in counts if c.counted or everything]
  return sum(c.parameters for c in chosen), sum(c.flops for c in chosen)
