"""Groupings that are not learned: Table 1's other columns, a user's own, and a start for the learned ones.

A grouping of the classes is an int array [classes] of groups at the logits; consecutive groups belong together further
down the tree (utils.parents). `even_features` makes it a grouping of all units, as the paper's S, C and R have it.
"""

import json

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

import utils
from splitnet.common.errors import UserError

DIRECTIONS = 8  # directions of the last weights that the class clustering looks at
SHARPNESS = 4.0  # how fast the affinity of two classes falls with the angle between their weights
START_CONFIDENCE = 0.75  # probability of its own group with which a unit starts in `spectral_start`

# CIFAR-100's superclasses in an order in which neighbours are alike, animals first, so that groups of whole
# superclasses are runs of it. Its own taxonomy has only the one level.
SUPERCLASS_ORDER = [
  'aquatic_mammals',
  'fish',
  'reptiles',
  'non-insect_invertebrates',
  'insects',
  'small_mammals',
  'medium_mammals',
  'large_carnivores',
  'large_omnivores_and_herbivores',
  'people',
  'trees',
  'flowers',
  'fruit_and_vegetables',
  'large_natural_outdoor_scenes',
  'large_man-made_outdoor_things',
  'vehicles_1',
  'vehicles_2',
  'household_electrical_devices',
  'household_furniture',
  'food_containers',
]


def even_sizes(units, groups):
  """`units` divided into `groups` sizes that differ by at most one: list of ints."""
  return [len(part) for part in np.array_split(np.arange(units), groups)]


def semantic(names, groups):
  """Classes grouped by superclass: whole superclasses, as even as these allow (Table 1's column S).

  Args:
    names: a ClassNames.
    groups: number of groups.

  Raises:
    UserError: where there are more groups than superclasses.
  """
  if groups > len(names.coarse):
    raise UserError('%d groups of whole superclasses were asked for, but there are only %d superclasses; lower '
                    '--ngroups1' % (groups, len(names.coarse)))  # fmt: skip
  position = {name: i for i, name in enumerate(SUPERCLASS_ORDER)}
  order = sorted(range(len(names.coarse)), key=lambda i: position.get(names.coarse[i], i))
  group_of_superclass = np.empty(len(order), np.int64)
  group_of_superclass[order] = np.repeat(np.arange(groups), even_sizes(len(order), groups))
  return group_of_superclass[names.fine_to_coarse]


def random(classes, groups, seed):
  """Classes grouped at random, even sizes (column R): int array [classes]."""
  return np.random.default_rng(seed).permutation(np.repeat(np.arange(groups), even_sizes(classes, groups)))


def clustering(weights, plan, seed=0):
  """Classes grouped by spectral clustering of a trained network's last weights, even sizes (column C).

  The tree is followed from its root, so that classes that part last are the most alike.

  Args:
    weights: [features, classes].
    plan: an architecture.Plan.
    seed: of the clustering.

  Returns:
    int array [classes].
  """
  points = weights - weights.mean(1, keepdims=True)
  points = (points / np.linalg.norm(points, axis=0)).T
  affinity = np.exp(SHARPNESS * (points @ points.T - 1.0))  # cosine similarity, made positive
  degree = affinity.sum(1) ** -0.5
  values, vectors = np.linalg.eigh(affinity * degree[:, None] * degree[None])
  values, vectors = values[::-1], vectors[:, ::-1]
  # The first direction is constant. Each other one counts by its eigenvalue: were all of one scale, the differences
  # inside branches would drown those between them.
  points = (vectors / vectors[:, :1] * values)[:, 1 : DIRECTIONS + 1]
  return _divide(points, plan, seed)


def _divide(points, plan, seed):
  """Clusters points down the tree: int array [points] of groups at the logits, of even sizes."""
  leaves = plan.depths['logits']
  leaf_sizes = np.array(even_sizes(len(points), leaves))
  groups, count = np.zeros(len(points), np.int64), 1
  depths = list(plan.depths.values())
  for depth, branches in enumerate(depths):
    parent = utils.parents(branches, count)
    branch_of_leaf = utils.parents_along(depths[depth:][::-1])
    sizes = np.bincount(branch_of_leaf, weights=leaf_sizes, minlength=branches).astype(int)
    divided = np.empty_like(groups)
    for g in range(count):
      inside, children = np.flatnonzero(groups == g), np.flatnonzero(parent == g)
      divided[inside] = children[balanced_clusters(points[inside], sizes[children], seed)]
    groups, count = divided, branches
  return groups


def balanced_clusters(points, sizes, seed=0):
  """k-means with clusters of given sizes.

  Args:
    points: [points, dimensions]; sizes: ints, their sum is the number of points.
    seed: of the start.

  Returns:
    int array [points].
  """
  if len(sizes) == 1:
    return np.zeros(len(points), np.int64)
  centres = KMeans(len(sizes), n_init=20, random_state=seed).fit(points).cluster_centers_
  slots, before = np.repeat(np.arange(len(sizes)), sizes), None
  for _ in range(100):
    distance = np.square(points[:, None] - centres[None]).sum(2)
    clusters = slots[linear_sum_assignment(distance[:, slots])[1]]
    if before is not None and np.array_equal(clusters, before):
      break
    before = clusters
    centres = np.stack([points[clusters == c].mean(0) for c in range(len(sizes))])
  return clusters


def read_file(path, names, config):
  """Reads a user's grouping: JSON, a list of groups of class names, nested where the tree branches more than once.

  For 1-2-2 or 2-2-2: [["apple", ...], ["bed", ...]]; for 2-4-4: [[["apple", ...], ["bed", ...]], [[...], [...]]].

  Args:
    path: of the file; names: a ClassNames; config: an architecture.Config.

  Returns:
    int array [classes].

  Raises:
    UserError: where the file is not such a tree, or a class is missing, unknown or in two groups.
  """
  try:
    with open(path) as f:
      tree = json.load(f)
  except OSError as e:
    raise UserError(
      "--grouping '%s': %s; give learned, semantic, clustering, random or a file" % (path, e.strerror)
    ) from e
  except ValueError as e:
    raise UserError("the grouping '%s' is not JSON (%s)" % (path, e)) from e
  # The numbers of branches where there are more of them than before, from the root.
  counts = sorted({config.ngroups3, config.ngroups2, config.ngroups1} - {1})
  leaves = [tree]
  below = 1
  for count in counts:
    expected = utils.merge_sizes(count, below)
    if any(not isinstance(node, list) or len(node) != size for node, size in zip(leaves, expected)):
      raise UserError(
        "the grouping '%s' does not have the tree of %s: a list of %s, each level nested in the one above"
        % (path, config.split, ', then of '.join('%d groups' % c for c in counts))
      )
    leaves, below = [child for node in leaves for child in node], count
  groups = np.full(len(names.fine), -1)
  for g, leaf in enumerate(leaves):
    for name in leaf if isinstance(leaf, list) else [leaf]:
      if name not in names.fine:
        raise UserError("the grouping '%s' names a class %r that the data does not have" % (path, name))
      if groups[names.fine.index(name)] >= 0:
        raise UserError("the grouping '%s' names the class '%s' twice" % (path, name))
      groups[names.fine.index(name)] = g
  missing = [names.fine[c] for c in np.flatnonzero(groups < 0)]
  if missing:
    raise UserError("the grouping '%s' leaves out %s" % (path, ', '.join(missing)))
  return groups


def even_features(plan, class_groups):
  """A grouping of all units: the classes as given, every other set of units divided evenly.

  Args:
    plan: an architecture.Plan; class_groups: int array [classes].

  Returns:
    Dict from units name to int array.
  """
  groups = {
    name: np.repeat(np.arange(units.groups), even_sizes(units.size, units.groups)) for name, units in plan.units.items()
  }
  groups['split_q1'] = np.asarray(class_groups, np.int64)
  return groups


def carried_down(plan, values, class_groups):
  """A grouping of all units that follows a trained dense network's weights down from a grouping of its classes.

  From the logits down, each set of units goes to the groups that take most of its squared weight, with even sizes.

  Args:
    plan: an architecture.Plan.
    values: dict from the dense network's variable names to arrays.
    class_groups: int array [classes].

  Returns:
    Dict from units name to int array.
  """
  groups = {'split_q1': np.asarray(class_groups, np.int64)}
  for reader in reversed(plan.layers):  # whatever reads a set of units stands above it, so its outputs are known
    units = reader.input
    if units.groups == 1 or units.name in groups or reader.depth != units.depth:
      continue
    share = np.zeros([units.size, units.groups])
    for layer in plan.layers:
      if layer.input.name != units.name or layer.depth != units.depth or layer.kind == 'batch_norm':
        continue
      kernel = values[layer.name + ('/weights' if layer.kind == 'linear' else '/kernel')]
      squares = np.square(kernel).sum(tuple(range(kernel.ndim - 2)))
      # The logits and a stage's own layers see the output merged to their branches first.
      counts = [layer.output.groups, min(layer.output.groups, layer.branches), units.groups]
      target = utils.parents_along(counts)[groups[layer.output.name]]
      for g in range(units.groups):
        share[:, g] += squares[:, target == g].mean(1)
    share /= share.sum(1, keepdims=True)
    slots = np.repeat(np.arange(units.groups), even_sizes(units.size, units.groups))
    groups[units.name] = slots[linear_sum_assignment(share[:, slots], maximize=True)[1]]
  return {name: groups.get(name, np.zeros(units.size, np.int64)) for name, units in plan.units.items()}


def spectral_start(plan, values, seed=0):
  """Where grouping can start from a trained dense network: the structure of its weights, carried down level by level.

  Args:
    plan: an architecture.Plan.
    values: dict from the dense network's variable names to arrays.
    seed: of the clustering.

  Returns:
    Dict from assignment name to alpha [groups, units], of confidence START_CONFIDENCE.
  """
  alphas = {}
  for name, groups in carried_down(plan, values, clustering(values['logits/fc/weights'], plan, seed)).items():
    count = plan.units[name].groups
    if count > 1:
      height = np.log(START_CONFIDENCE / (1.0 - START_CONFIDENCE) * (count - 1))
      alphas[name] = height * (groups[None] == np.arange(count)[:, None])
  return alphas


def moved(plan, before, after):
  """How much of what is assigned has changed its group: (share of the classes, share of the features), in [0, 1].

  Args:
    plan: an architecture.Plan.
    before, after: dicts from units name to int array.

  Returns:
    Shares of all those units of the plan that are in several groups.
  """
  changed = {name: before[name] != after[name] for name, units in plan.units.items() if units.groups > 1}
  classes = changed.pop('split_q1')
  return float(np.mean(classes)), float(np.mean(np.concatenate(list(changed.values()))))
