"""Which device computes which part of a tree of branches.

A node of the tree is a branch at a depth, (depth, branch): ('trunk', 0) is its root, the branches of the last depth are
its leaves. Leaves are dealt to devices; what several leaves share is computed on each of their devices (trunk
'replicate': only images go out and only logits come back) or on one of them, which sends the others what it computed
('first'). Nothing here knows what a node computes, only what it costs.
"""

import collections
import functools

import numpy as np

import utils

TRUNKS = ('replicate', 'first')

# What one device computes in one go. `device`: its name; `source`: the node whose output it reads, None for images;
# `nodes`: those that it computes, bottom up, as a dict from depth to a list of branches. Its output is that of its
# highest nodes: logits of leaves, or features that other parts read.
Part = collections.namedtuple('Part', 'device source nodes')

SEARCHED = 100000  # leaves put on a device until the search for a better deal gives up


def paths(depths):
  """The nodes from the root to each leaf: a list, by leaf, of lists of (depth, branch).

  Args:
    depths: ordered dict from depth name to number of branches, trunk first.
  """
  names = list(depths)
  branch = np.arange(depths[names[-1]])
  found = [[(names[-1], int(b))] for b in branch]
  for above, below in zip(names[::-1], names[-2::-1]):
    branch = utils.parents(depths[above], depths[below])[branch]
    for path, b in zip(found, branch):
      path.insert(0, (below, int(b)))
  return found


def loads(depths, costs, dealt):
  """What lies on each device's way from the images to its leaves: list of numbers, as many as devices in `dealt`.

  With trunk 'replicate' that is what it computes. With 'first' it waits for what another computes of it, so that its
  logits are there after as much, and the same deal is best.

  Args:
    depths: as for `paths`; costs: dict from node to number.
    dealt: list of each leaf's device, ints from 0.
  """
  nodes = [set() for _ in range(max(dealt) + 1)]
  for path, device in zip(paths(depths), dealt):
    nodes[device].update(path)
  return [sum(costs[node] for node in held) for held in nodes]


def deal(depths, costs, devices):
  """Deals the leaves to devices so that the busiest has as little as possible, and then so that subtrees stay together.

  Every device gets a leaf where there are enough of them. The search starts from the best deal in which each device has
  consecutive leaves, and goes through all others; in trees of dozens of leaves it stops early, with the best so far.

  Args:
    depths, costs: as for `loads`.
    devices: how many there are.

  Returns:
    List of each leaf's device, ints from 0; the first leaf is on device 0.
  """
  leaves = [frozenset(path) for path in paths(depths)]
  devices, visits = min(devices, len(leaves)), 0
  best = _consecutive(leaves, costs, devices)
  together = [{node for leaf, d in zip(leaves, best) if d == device for node in leaf} for device in range(devices)]
  # What is minimised: the highest load; on how many devices the nodes are, all together.
  least = max(loads(depths, costs, best)), sum(map(len, together))

  def search(dealt, total, held):
    nonlocal best, least, visits
    visits += 1
    # Neither number shrinks when more leaves are dealt.
    reached = max(total), sum(map(len, held))
    idle = devices - len(set(dealt))
    if reached >= least or visits > SEARCHED or len(leaves) - len(dealt) < idle:
      return
    if len(dealt) == len(leaves):
      best, least = dealt, reached
      return
    leaf, options = leaves[len(dealt)], []
    for device in range(min(devices - idle + 1, devices)):  # they are alike, so only the first idle one is tried
      options.append((total[device] + sum(costs[node] for node in leaf - held[device]), device))
    for load, device in sorted(options):
      more = [load if d == device else t for d, t in enumerate(total)]
      search([*dealt, device], more, [h | leaf if d == device else h for d, h in enumerate(held)])

  search([], [0] * devices, [frozenset()] * devices)
  return best


def _consecutive(leaves, costs, devices):
  """The best deal in which each device has consecutive leaves (sets of nodes)."""

  @functools.cache
  def best(first, parts):
    """(the highest load, how many leaves each has) of leaves[first:] on so many devices."""
    lasts = [len(leaves)] if parts == 1 else range(first + 1, len(leaves) - parts + 2)
    found = []
    for last in lasts:
      load = sum(costs[node] for node in frozenset().union(*leaves[first:last]))
      above, sizes = best(last, parts - 1) if parts > 1 else (0, ())
      found.append((max(load, above), (last - first, *sizes)))
    return min(found)

  return [device for device, size in enumerate(best(0, devices)[1]) for _ in range(size)]


def place(depths, costs, devices):
  """The device of every node where each node is computed once: dict from depth to a list of device names (or None).

  A node is on the device of its first leaf, so the trunk is on the first device.

  Args:
    depths, costs: as for `loads`.
    devices: list of device names, or None.
  """
  if not devices:
    return {depth: [None] * branches for depth, branches in depths.items()}
  owners = {}
  for path, device in zip(paths(depths), deal(depths, costs, len(devices))):
    for node in path:
      owners.setdefault(node, devices[device])
  return {depth: [owners[depth, branch] for branch in range(count)] for depth, count in depths.items()}


def parts(depths, costs, devices, trunk):
  """Cuts the tree into what its devices compute.

  With 'replicate' each device has one part, from the images to its leaves. With 'first' a node whose leaves are on
  several devices is (with the nodes below it, as far as it is their only child) a part that ends there, so that nobody
  waits for what is above it; each of these devices has a part that reads it.

  Args:
    depths, costs: as for `loads`.
    devices: list of device names.
    trunk: one of TRUNKS.

  Returns:
    List of Part; a part's source is in a part before it.
  """
  leaves = paths(depths)
  on, children = collections.defaultdict(list), collections.defaultdict(list)
  for path, device in zip(leaves, deal(depths, costs, len(devices))):
    for below, node in zip([None, *path], path):
      on[node].append(device)
      if node not in children[below]:
        children[below].append(node)
  found = []

  def new_part(device, source):
    found.append(Part(devices[device], source, {}))
    return found[-1]

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
  return found


def part_load(part, costs):
  """What a part costs."""
  return sum(costs[depth, branch] for depth, branches in part.nodes.items() for branch in branches)
