"""Decides which device computes which part of a tree of branches.

A node of the tree is a branch at a depth, (depth, branch): ('trunk', 0) is its root, the branches of the last depth are
its leaves. Leaves are dealt to devices; what several leaves share is computed on each of their devices (trunk
'replicate': only images go out and only logits come back) or on one of them, which sends the others what it computed
('first'). Nothing here knows what a node computes, only what it costs.
"""

import collections
import functools

import utils
from splitnet.network import counting

TRUNKS = ('replicate', 'first')

# What one device computes in one go. `device`: its name; `source`: the node whose output it reads, None for images;
# `nodes`: those that it computes, bottom up, as a dict from depth to a list of branches. Its output is that of its
# highest nodes: logits of leaves, or features that other parts read.
Part = collections.namedtuple('Part', 'device source nodes')

MOST_VISITS = 100000  # leaves put on a device until the search for a better deal stops


def paths(depths):
  """Returns the path from the root to each leaf: lists of (depth, branch), by leaf.

  `depths` maps the depths to their numbers of branches, trunk first.
  """
  counts = list(depths.values())
  branches = [utils.parents_along(counts[i:][::-1]).tolist() for i in range(len(counts))]  # by depth: each leaf's
  return [list(zip(depths, path)) for path in zip(*branches)]


def deal(depths, costs, devices):
  """Deals the leaves to devices so that the busiest one has the lowest load.

  A device's load is the cost of what it computes; if it waits for what another one computes of that (trunk 'first'),
  its logits are there after as much, so the same deal is best. Of deals with the same load the best is the one that
  keeps subtrees together. Every device gets a leaf if there are enough of them. The search starts from the best deal in
  which each device has consecutive leaves, and goes through all others; in trees of dozens of leaves it stops early,
  with the best so far. `costs` are those of the nodes, `devices` how many there are. Returns a list of each leaf's
  device, ints from 0; the first leaf is on device 0.
  """
  leaves = [frozenset(path) for path in paths(depths)]
  devices, visits = min(devices, len(leaves)), 0
  sizes = cut(leaves, devices, lambda row: sum(costs[node] for node in frozenset().union(*row)))
  best = [device for device, size in enumerate(sizes) for _ in range(size)]
  nodes = [{node for leaf, d in zip(leaves, best) if d == device for node in leaf} for device in range(devices)]
  # What is minimised: the highest load; then how many nodes the devices have, all together.
  least = max(sum(costs[node] for node in on_device) for on_device in nodes), sum(map(len, nodes))

  def search(start, load, nodes):
    """Tries all deals that begin with `start`; load, nodes: of each device so far."""
    nonlocal best, least, visits
    visits += 1
    # Neither number shrinks when more leaves are dealt.
    reached = max(load), sum(map(len, nodes))
    idle = devices - len(set(start))
    if reached >= least or visits > MOST_VISITS or len(leaves) - len(start) < idle:
      return
    if len(start) == len(leaves):
      best, least = start, reached
      return
    leaf, options = leaves[len(start)], []
    for device in range(min(devices - idle + 1, devices)):  # idle ones are alike, so only the first of them is tried
      options.append((load[device] + sum(costs[node] for node in leaf - nodes[device]), device))
    for load_with_leaf, device in sorted(options):
      new_load, new_nodes = list(load), list(nodes)
      new_load[device], new_nodes[device] = load_with_leaf, nodes[device] | leaf
      search([*start, device], new_load, new_nodes)

  search([], [0] * devices, [frozenset()] * devices)
  return best


def cut(pieces, parts, cost):
  """Returns how many of a row of pieces each of consecutive parts takes.

  No part is empty, and the costliest costs as little as possible; of several best cuts it is the one with the earliest
  borders. `cost` is a function of a list of pieces. Raises ValueError if there are more parts than pieces, or none.
  """
  if not 1 <= parts <= len(pieces):
    raise ValueError(f'cannot cut {len(pieces)} pieces into {parts} parts')

  @functools.cache
  def best(first, parts):
    """Returns (the highest cost, the sizes) of pieces[first:] in so many parts."""
    if parts == 1:
      return cost(pieces[first:]), (len(pieces) - first,)
    found = []
    for size in range(1, len(pieces) - first - parts + 2):
      highest, sizes = best(first + size, parts - 1)
      found.append((max(cost(pieces[first : first + size]), highest), (size, *sizes)))
    return min(found)

  return best(0, parts)[1]


def place(depths, costs, devices):
  """Returns the device of every node if each is computed once: lists by depth.

  A node is on the device of its first leaf, so the trunk is on the first of the devices.
  """
  owners = {}
  for path, device in zip(paths(depths), deal(depths, costs, len(devices))):
    for node in path:
      owners.setdefault(node, devices[device])
  return {depth: [owners[depth, branch] for branch in range(count)] for depth, count in depths.items()}


def placer(devices):
  """Returns the function that `place`s a Tree on devices, or None without devices."""
  if not devices:
    return None
  return lambda tree: place(tree.depths, counting.node_flops(tree), devices)


def parts(depths, costs, devices, trunk):
  """Cuts the tree into what its devices compute: list of Part, sources first.

  With 'replicate' each device has one part, from the images to its leaves. With 'first' a node whose leaves are on
  several devices is (with the nodes below it, as far as it is their only child) a part that ends there, so that nobody
  waits for what is above it; each of these devices has a part that reads it.
  """
  leaves = paths(depths)
  on, children = collections.defaultdict(list), collections.defaultdict(list)  # by node: devices, nodes above it
  for path, device in zip(leaves, deal(depths, costs, len(devices))):
    for below, node in zip([None, *path], path):
      on[node].append(device)
      if node not in children[below]:
        children[below].append(node)
  result = []

  def new_part(device, source):
    result.append(Part(devices[device], source, {}))
    return result[-1]

  def grow(part, node, device=None):
    """Adds to a part a node and what is above it; with a device only what is on that."""
    part.nodes.setdefault(node[0], []).append(node[1])
    above = [child for child in children[node] if device is None or device in on[child]]
    if device is not None or len(set(on[node])) == 1 or len(above) == 1:
      for child in above:
        grow(part, child, device)
      return
    by_device = {}
    for child in above:
      if len(set(on[child])) > 1:
        grow(new_part(on[child][0], node), child)
      else:
        owner = on[child][0]
        if owner not in by_device:
          by_device[owner] = new_part(owner, node)
        grow(by_device[owner], child)

  root = leaves[0][0]
  if trunk == 'first':
    grow(new_part(on[root][0], None), root)
  else:
    for device in sorted(set(on[root])):
      grow(new_part(device, None), root, device)
  return result


def part_load(part, costs):
  """Returns what a part costs."""
  return sum(costs[depth, branch] for depth, branches in part.nodes.items() for branch in branches)
