"""Makes a tree of any graph: its layers stay, and branch above layers that are named.

A tree may branch above a layer that everything which is computed below passes through, such as the end of a residual
block. Which units are one set (those that sums join) is known from the graph; which depth they serve, and by how many
groups they are divided, follows from where they are written and read.
"""

import bisect
import dataclasses
import itertools

from splitnet.common.errors import UserError
from splitnet.network.graph import Graph
from splitnet.network.graph_checks import WEIGHTED


def borders(graph):
  """Returns the layers above which a tree of the graph may branch, bottom up.

  They are a dict by how many weighted layers stand below; of layers with equally many only the last is in it.
  """
  place = _places(graph)
  reach = [max((place[reader.name] for reader in graph.readers[layer.name]), default=0) for layer in graph.layers]
  open_until = itertools.accumulate([0, *reach], max)  # the last layer that reads something from before this one
  found, weighted = {}, 0
  for i, (layer, last) in enumerate(zip(graph.layers[:-1], open_until)):
    weighted += layer.op in WEIGHTED
    if weighted and last <= i:
      found[weighted] = layer
  return found


def _places(graph):
  return {layer.name: i for i, layer in enumerate(graph.layers)}


def default_borders(graph):
  """Returns two layers above which a tree may branch, or fewer if there are not so many.

  Above them stand the last third of the weighted layers, as nearly as it goes, and the last sixth.
  """
  found, count = borders(graph), len(graph.weighted)
  left = list(found)[:-1]  # above the last one only the classes branch, as they do in any case
  chosen = []
  for share in (2 / 3, 5 / 6):
    if left:
      chosen.append(min(left, key=lambda below: abs(below - share * count)))
      left.remove(chosen[-1])
  return [found[below] for below in sorted(chosen)]


def find_borders(graph, names):
  """Returns the layers of the graph that a user names to branch above.

  A name may be a block's, which stands for its last layer. What follows up to the next weighted layer stays below the
  branches, too. Raises UserError if a tree cannot branch there.
  """
  found, place = borders(graph), _places(graph)
  possible = {below: layer for below, layer in found.items() if below != max(found)}
  advice = f'it can branch above: {", ".join(layer.name for layer in possible.values()) or "no layer but the last"}'
  chosen = []
  for name in names:
    named = [layer for layer in graph.layers if name in (layer.name, layer.block)]
    if not named:
      raise UserError(f"--split_at: {graph.name} has no layer '{name}'; {advice}")
    border = possible.get(sum(place[layer.name] <= place[named[-1].name] for layer in graph.weighted))
    if border is None or place[border.name] < place[named[-1].name]:
      raise UserError(f"--split_at: a tree cannot branch above '{name}', since more than one tensor passes; {advice}")
    if chosen and place[chosen[-1].name] >= place[border.name]:
      raise UserError(f"--split_at: '{name}' does not stand above '{names[len(chosen) - 1]}'; {advice}")
    chosen.append(border)
  return chosen


def branched(graph, below, counts, branch_input='group'):
  """Returns the Graph that branches above some layers.

  Args:
    graph: a Graph, which may itself have branches; these go.
    below: the layers above which it branches, bottom up, some of `borders`.
    counts: how many branches there are above each, and at the last layer, that of the classes.
    branch_input: as of graph.Builder.

  Raises:
    UserError: if the groups fall going up the tree, or there are more of them than units.
  """
  below = [*below, graph.source(graph.layers[-1])]
  place = _places(graph)
  ends = [place[layer.name] for layer in below]
  counts = [1, *counts]

  def depth_of(layer):
    return bisect.bisect_left(ends, place[layer.name])

  names = ['trunk']
  for depth in range(1, len(counts)):
    first = next(layer for layer in graph.weighted if depth_of(layer) == depth)
    names.append(first.name if first.name not in names else f'{first.name}_')

  made = {}  # the new Units by the names of the old ones
  for old in graph.units.values():
    writers = [layer for layer in graph.layers if layer.units == old]
    written = max(map(depth_of, writers))
    top = max([written, *(depth_of(reader) for layer in writers for reader in graph.readers[layer.name])])
    groups = counts[top]
    if branch_input == 'all' and written < top < len(counts) - 1:  # as in Builder.border
      groups = min(groups, counts[top - 1])
    if writers[0].op == 'image':
      name, groups = 'image', 1
    elif top == written == len(counts) - 1:
      name = 'split_q1'
    elif written < top:
      name = f'split_p{len(counts) - top}'
    else:
      name = f'split_{writers[0].name.replace("/", "_")}'
    while name in (units.name for units in made.values()):
      name += '_'
    made[old.name] = dataclasses.replace(old, name=name, groups=groups, depth=names[top])
  layers = (
    dataclasses.replace(layer, units=made[layer.units.name], depth=names[depth_of(layer)]) for layer in graph.layers
  )
  return Graph(graph.name, dict(zip(names, counts)), tuple(layers))
