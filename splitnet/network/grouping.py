"""Makes groupings that are not learned, and a start for those that are.

A grouping of the classes is an int array [classes] of groups at the logits; consecutive groups belong together further
down the tree (utils.parents). `even_features` makes it a grouping of all units, as the paper's S, C and R have it.
"""

from typing import Any

import numpy as np

import utils
from splitnet.common import schema
from splitnet.common.errors import UserError

DIRECTIONS = 8  # directions of the last weights that the class clustering looks at
SHARPNESS = 4.0  # how fast the affinity of two classes falls with the angle between their weights
START_CONFIDENCE = 0.75  # probability of its own group with which a unit starts in `spectral_start`

# CIFAR-100's superclasses in an order in which neighbours are alike, animals first, so that groups of whole
# superclasses are runs of it. Its own taxonomy has only the one level.
SUPERCLASS_ORDER = [
  'aquatic_mammals', 'fish', 'reptiles', 'non-insect_invertebrates', 'insects', 'small_mammals', 'medium_mammals',
  'large_carnivores', 'large_omnivores_and_herbivores', 'people', 'trees', 'flowers', 'fruit_and_vegetables',
  'large_natural_outdoor_scenes', 'large_man-made_outdoor_things', 'vehicles_1', 'vehicles_2',
  'household_electrical_devices', 'household_furniture', 'food_containers',
]  # fmt: skip


def semantic(names, groups):
  """Groups classes by whole superclasses, evenly (Table 1's column S).

  A group has superclasses that follow each other, and as nearly as can be as many classes as the others. Raises
  UserError if there are more groups than superclasses; `names` is a ClassNames.
  """
  if names.coarse is None:
    raise UserError(
      '--grouping semantic divides superclasses, and the data has none: write superclasses.json (docs/data.md), or '
      'give clustering, random or a file'
    )
  if groups > len(names.coarse):
    raise UserError(
      f'{groups} groups of whole superclasses were asked for, but there are only {len(names.coarse)} superclasses; '
      'lower --ngroups1'
    )
  position = {name: i for i, name in enumerate(SUPERCLASS_ORDER)}
  order = sorted(range(len(names.coarse)), key=lambda i: position.get(names.coarse[i], i))
  group_of_superclass = np.empty(len(order), np.int64)
  group_of_superclass[order] = _even_runs(np.bincount(names.fine_to_coarse, minlength=len(order))[order], groups)
  return group_of_superclass[names.fine_to_coarse]


def _even_runs(sizes, groups):
  """Divides a row of sizes into runs of the most even sums: int array, each one's run.

  That is of the least sum of squares; of several divisions `utils.parents` comes first, then that of the last borders.
  """
  ends = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
  costs, starts = np.full(len(ends), np.inf), []  # least cost of the first i in so many runs; where the last begins
  costs[0] = 0
  for _ in range(groups):
    table = costs[:, None] + np.square(ends[None] - ends[:, None])
    table[np.tril_indices(len(ends))] = np.inf  # no run is empty
    starts.append(table.argmin(0))
    costs = table.min(0)
  even = utils.parents(len(sizes), groups)
  if np.square(np.bincount(even, sizes)).sum() == costs[-1]:
    return even
  runs, end = np.empty(len(sizes), np.int64), len(sizes)
  for run in reversed(range(groups)):
    runs[starts[run][end] : end] = run
    end = starts[run][end]
  return runs


def random(classes, groups, seed):
  """Groups classes at random, even sizes (column R): int array [classes]."""
  return np.random.default_rng(seed).permutation(utils.parents(classes, groups))


def clustering(graph, values, seed=0):
  """Groups classes by spectral clustering of a trained network's last weights.

  This is column C; sizes are even. The tree is followed from its root, so that classes that part last are the most
  alike. `values` are the dense network's arrays by variable name; returns an int array [classes].
  """
  weights = values[graph.layers[-1].weights].reshape(-1, graph.classes.size)  # [features, classes]
  points = weights - weights.mean(1, keepdims=True)
  points = (points / np.linalg.norm(points, axis=0)).T
  affinity = np.exp(SHARPNESS * (points @ points.T - 1.0))  # cosine similarity, made positive
  degree = affinity.sum(1) ** -0.5
  values, vectors = np.linalg.eigh(affinity * degree[:, None] * degree[None])
  values, vectors = values[::-1], vectors[:, ::-1]
  # The first direction is constant. Each other one counts by its eigenvalue: were all of one scale, the differences
  # inside branches would drown those between them.
  points = (vectors / vectors[:, :1] * values)[:, 1 : DIRECTIONS + 1]
  return _divide(points, list(graph.depths.values()), seed)


def _divide(points, depths, seed):
  """Clusters points evenly down the tree: int array [points], groups at the logits."""
  leaf_sizes = utils.merge_sizes(len(points), depths[-1])
  groups, count = np.zeros(len(points), np.int64), 1
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
  """Runs k-means on [points, dimensions] with clusters of given sizes: int array [points]."""
  if len(sizes) == 1:
    return np.zeros(len(points), np.int64)
  from sklearn.cluster import KMeans  # takes most of a second, and few programs need it

  centres = KMeans(len(sizes), n_init=20, random_state=seed).fit(points).cluster_centers_
  slots, before = np.repeat(np.arange(len(sizes)), sizes), None
  for _ in range(100):
    distance = np.square(points[:, None] - centres[None]).sum(2)
    clusters = slots[_assign(distance[:, slots])]
    if before is not None and np.array_equal(clusters, before):
      break
    before = clusters
    centres = np.stack([points[clusters == c].mean(0) for c in range(len(sizes))])
  return clusters


def _assign(costs):
  """Assigns a column to each row of [rows, columns] at the least cost in all: int array [rows]."""
  from scipy.optimize import linear_sum_assignment  # takes a third of a second, and few programs need it

  return linear_sum_assignment(costs)[1]


def read_file(path, names, graph):
  """Reads a user's grouping: JSON, a list of groups of class names, nested.

  For 1-2-2 or 2-2-2: [["apple", ...], ["bed", ...]]; for 2-4-4: [[["apple", ...], ["bed", ...]], [[...], [...]]].
  Returns an int array [classes]; raises UserError if the file is not such a tree, or a class is missing, unknown or in
  two groups. `names` is a ClassNames.
  """
  advice = 'give learned, semantic, clustering, random or a file of nested lists of class names'
  tree = schema.read_json(path, list[Any], advice)
  # The numbers of branches where there are more of them than before, from the root.
  counts = sorted(set(graph.depths.values()) - {1})
  leaves, below = [tree], 1
  for count in counts:
    expected = utils.merge_sizes(count, below)
    if any(not isinstance(node, list) or len(node) != size for node, size in zip(leaves, expected)):
      raise UserError(
        f"the grouping '{path}' does not have the tree of {graph.split}: a list of "
        f'{", then of ".join(f"{c} groups" for c in counts)}, each level nested in the one above'
      )
    leaves, below = [child for node in leaves for child in node], count
  groups = np.full(len(names.fine), -1)
  number = {**{key: i for i, key in enumerate(names.ids or [])}, **{name: i for i, name in enumerate(names.fine)}}
  for g, leaf in enumerate(leaves):
    for name in leaf if isinstance(leaf, list) else [leaf]:
      if not isinstance(name, str) or name not in number:
        raise UserError(f"the grouping '{path}' names a class {schema.show(name)} that the data does not have")
      if groups[number[name]] >= 0:
        raise UserError(f"the grouping '{path}' names the class '{name}' twice")
      groups[number[name]] = g
  missing = [names.fine[c] for c in np.flatnonzero(groups < 0)]
  if missing:
    raise UserError(f"the grouping '{path}' leaves out {', '.join(missing)}")
  return groups


def even_features(graph, class_groups):
  """Groups all units, by name: the classes as given, all others evenly."""
  groups = {name: utils.parents(units.size, units.groups) for name, units in graph.units.items()}
  groups[graph.classes.name] = np.asarray(class_groups, np.int64)
  return groups


def even_groups(graph, seed=0):
  """Groups an untrained network's units; None if nothing is divided."""
  classes = graph.classes
  return even_features(graph, random(classes.size, classes.groups, seed)) if classes.groups > 1 else None


def carried_down(graph, values, class_groups):
  """Groups all units by a trained dense network's weights, from the classes down.

  From the last layer down, each set of units goes to the groups that take most of its squared weight, with even sizes.
  `values` are the dense network's arrays by variable name; returns a dict from units name to int array.
  """
  groups = {graph.classes.name: np.asarray(class_groups, np.int64)}
  for reader in reversed(graph.weighted):  # whatever reads units stands above them, so its outputs are known
    units = graph.read(reader)
    if units.groups == 1 or units.name in groups or reader.depth != units.depth:
      continue
    share = np.zeros([units.size, units.groups])
    for layer in graph.weighted:
      if graph.read(layer) != units or layer.depth != units.depth:
        continue
      kernel = values[layer.weights]
      squares = np.square(kernel).sum(tuple(range(kernel.ndim - 2)))
      # A depth's own layers see the output merged to their branches first.
      counts = [layer.units.groups, min(layer.units.groups, graph.branches(layer)), units.groups]
      target = utils.parents_along(counts)[groups[layer.units.name]]
      for g in range(units.groups):
        share[:, g] += squares[:, target == g].mean(1)
    share /= share.sum(1, keepdims=True)
    slots = utils.parents(units.size, units.groups)
    groups[units.name] = slots[_assign(-share[:, slots])]
  return {name: groups.get(name, np.zeros(units.size, np.int64)) for name, units in graph.units.items()}


def spectral_start(graph, values, seed=0):
  """Returns the alphas, by units name, that a dense network's `values` suggest."""
  alphas = {}
  for name, groups in carried_down(graph, values, clustering(graph, values, seed)).items():
    count = graph.units[name].groups
    if count > 1:
      height = np.log(START_CONFIDENCE / (1.0 - START_CONFIDENCE) * (count - 1))
      alphas[name] = height * (groups[None] == np.arange(count)[:, None])
  return alphas


def moved(graph, before, after):
  """Returns the shares of grouped classes and of features that changed groups."""
  changed = {name: before[name] != after[name] for name, units in graph.units.items() if units.groups > 1}
  classes = changed.pop(graph.classes.name)
  return float(np.mean(classes)), float(np.mean(np.concatenate(list(changed.values()))))
