"""Computes SplitNet's mathematics on arrays and tensors.

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
  """Returns how many consecutive groups go into each merged group, evenly.

  Source: the released code's merging (the paper's section 3.3 asks for a merge, not for which one).
  """
  if not 1 <= merged_groups <= groups:
    raise ValueError(f'cannot merge {groups} groups into {merged_groups}')
  return [(groups + merged_groups - i - 1) // merged_groups for i in range(merged_groups)]


def parents(groups, merged_groups):
  """Returns the merged group of each group: int array [groups], never decreasing."""
  return np.repeat(np.arange(merged_groups), merge_sizes(groups, merged_groups))


def parents_along(counts):
  """Returns the last merged group of each of the first, merged step by step.

  In a tree of 5, 3 and 2 branches the five go to 0 0 0 0 1, but merged from 5 to 2 at once to 0 0 0 1 1.
  """
  groups = np.arange(counts[0])
  for count, merged in itertools.pairwise(counts):
    groups = parents(count, merged)[groups]
  return groups


def merge_assignment(q, merged_groups):
  """Merges a soft assignment: [groups, units] -> [merged_groups, units].

  p_g(l) is the sum of its children p_s(l+1). Source: paper, section 3.3 (hierarchical split).
  """
  groups = q.shape[0]
  if groups == merged_groups:
    return q
  onehot = parents(groups, merged_groups)[None, :] == np.arange(merged_groups)[:, None]
  return tf.matmul(tf.constant(onehot, q.dtype), q)


# --- the three regularisers ------------------------------------------------------------------------------------


def overlaps(qs):
  """Computes R_D (disjoint assignment) of assignments to as many groups: [len(qs)].

  It is the sum of q_g . q_h over pairs g < h, divided by its value for a uniform q: 1 when q is uniform, 0 when every
  unit is in one group only. Source: paper, equation of R_D.
  """
  groups, q = qs[0].shape[0], tf.concat(qs, 1)
  # The columns of q sum to one, but summing the pairs as (sum^2 - sum of squares) / 2 does not rely on it.
  pairs = (tf.square(tf.reduce_sum(q, 0)) - tf.reduce_sum(tf.square(q), 0)) / 2
  return _sums_per_assignment(pairs, qs, [2.0 * groups / (one.shape[1] * (groups - 1)) for one in qs])


def uniforms(qs):
  """Computes R_E (balanced assignment) of assignments to as many groups: [len(qs)].

  It is the sum of (sum_i q_gi)^2 over groups g, divided by its least value: 1 when every group has the same size,
  `groups` when one group takes all. Source: paper, equation of R_E.
  """
  groups, q = qs[0].shape[0], tf.concat(qs, 1)
  shares = _sums_per_assignment(q, qs, [1.0 / one.shape[1] for one in qs])  # [groups, len(qs)]
  return groups * tf.reduce_sum(tf.square(shares), 0)


def weight_splits(kernels, ps, qs):
  """Computes R_W of layers, norms of weights between different groups: [layers].

  S = sum_g [ sum_i ||((I - P_g) W Q_g)_i*|| / (in sqrt(out)) + sum_j ||(P_g W (I - Q_g))_*j|| / (sqrt(in) out) ]
      / (2 (G - 1) std / G)

  where W^2 of a convolution is the mean of its squares over the window, and std is the deviation with which the
  layer was initialised. About 1 for fresh weights and undecided assignments; 0 when hardening would drop nothing.
  All that is as small as an assignment is computed for all layers at once; for each layer there are only the squares
  of its weights and two products with them. Source: paper, equation of R_W; normalisation of the released code.

  Args:
    kernels: list of [height, width, in, out] or [in, out].
    ps, qs: soft assignments [groups, in] and [groups, out] of each, of the same number of groups > 1.
  """
  groups, assignments = ps[0].shape[0], [*ps, *qs]
  joined = tf.concat(assignments, 1)
  squared = tf.split(tf.square(joined), [one.shape[1] for one in assignments], 1)
  squares = [mean_squares(kernel) for kernel in kernels]
  # (1 - p_gi) does not depend on j, so it leaves the row's norm: no [groups, in, out] tensor is needed.
  rows = [tf.matmul(q, s, transpose_b=True) for q, s in zip(squared[len(ps) :], squares)]  # [groups, in]
  columns = [tf.matmul(p, s) for p, s in zip(squared, squares)]  # [groups, out]
  # A block of exact zeros must not turn the root's gradient into NaN.
  norms = tf.reduce_sum((1.0 - joined) * tf.sqrt(tf.concat(rows + columns, 1) + 1e-20), 0)
  row_weights, column_weights = [], []
  for kernel in kernels:
    inputs, outputs = kernel.shape[-2:]
    std = (1.0 / np.prod(kernel.shape[:-1])) ** 0.5
    fresh = 2.0 * (groups - 1) * std / groups
    row_weights.append(1.0 / (inputs * outputs**0.5 * fresh))
    column_weights.append(1.0 / (inputs**0.5 * outputs * fresh))
  return tf.reduce_sum(tf.reshape(_sums_per_assignment(norms, assignments, row_weights + column_weights), [2, -1]), 0)


def mean_squares(kernel):
  """Averages the squared weights over the window: [..., in, out] -> [in, out]."""

  # TensorFlow's own gradient of the mean first repeats it over the window, a tensor as large as the kernel.
  @tf.custom_gradient
  def compute(weights):
    window = np.prod(weights.shape[:-2], initial=1.0)
    squares = tf.reduce_mean(tf.square(weights), list(range(len(weights.shape) - 2)))
    return squares, lambda upstream: weights * (upstream * (2.0 / window))

  return compute(tf.convert_to_tensor(kernel))


def _sums_per_assignment(values, qs, weights):
  """Sums over each assignment's units, weighted: [..., all units] -> [..., len(qs)]."""
  blocks = np.repeat(np.diag(weights), [q.shape[1] for q in qs], 0)  # [units of all, len(qs)]
  return tf.tensordot(values, tf.constant(blocks, values.dtype), 1)


def _per_group_count(term, *arguments):
  """Computes a term, such as `overlaps`, at once for all with as many groups.

  Args:
    term: function of lists to a tensor [length of the lists].
    *arguments: lists for it, the last of assignments.
  """
  places = {}  # in the lists, by number of groups
  for i, q in enumerate(arguments[-1]):
    places.setdefault(q.shape[0], []).append(i)
  values = tf.concat([term(*([given[i] for i in chosen] for given in arguments)) for chosen in places.values()], 0)
  return values if len(places) == 1 else tf.gather(values, np.argsort(np.concatenate(list(places.values()))))


# What one layer adds to the objective. `kernel`: its weights; `p`, `q`: its input and output assignment at the
# number of groups between which hardening drops weights (None: it drops none); `counted`: the assignments whose
# overlap and balance this layer answers for, so that each is counted once.
SplitLayer = collections.namedtuple('SplitLayer', 'name kernel p q counted')


def regularisers(split_layers, weighted_group_loss=True):
  """Computes the three regularisers of a network, each about 1 at the start.

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
  kernels, ps, qs = ([getattr(layer, part) for layer in split] for part in ('kernel', 'p', 'q'))
  split_terms = _per_group_count(weight_splits, kernels, ps, qs)
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
    values = _per_group_count(term, [q for layer in counting for q in layer.counted])
    values = tf.tensordot(values, tf.constant(means, values.dtype), 1)
    terms[name], terms[name + '_terms'] = tf.reduce_mean(values), _named(counting, values)
  return terms


def _named(layers, values):
  """Returns a dict from the layers' names to the scalars in a tensor [layers]."""
  return dict(zip([layer.name for layer in layers], tf.unstack(values)))


# --- hard groups -----------------------------------------------------------------------------------------------


def confidence(q):
  """Averages the units' greatest probabilities: 1 / groups undecided, 1 decided."""
  return tf.reduce_mean(tf.reduce_max(q, 0))


def hard_groups(alpha):
  """Returns each unit's most probable group: [groups, units] -> int array [units].

  Source: paper, Algorithm 1.
  """
  return np.argmax(np.asarray(alpha), 0).astype(np.int64)


def group_sizes(groups_of_units, groups):
  """Counts the units of each group: int array [groups]."""
  return np.bincount(groups_of_units, minlength=groups)


def group_order(groups_of_units):
  """Sorts the units by group, stably: int array [units]."""
  return np.argsort(groups_of_units, kind='stable')


def superclass_agreement(groups_of_classes, superclass_of_classes):
  """Returns the share of classes in the group with most of their superclass.

  1 when no superclass is divided between groups; both are int arrays [classes]. Source: paper, figure 5.
  """
  table = superclass_table(groups_of_classes, superclass_of_classes)
  return float(table.max(0).sum()) / len(groups_of_classes)


def superclass_table(groups_of_classes, superclass_of_classes):
  """Counts classes: int array [groups, superclasses], the table of figure 5."""
  table = np.zeros((max(groups_of_classes) + 1, max(superclass_of_classes) + 1), np.int64)
  np.add.at(table, (np.asarray(groups_of_classes), np.asarray(superclass_of_classes)), 1)
  return table
