"""Says what a set of units is, as a person calls it; the code's names are those of the released checkpoints."""

from splitnet.network.graph import WEIGHTED

STATES = {'baseline': 'dense', 'group': 'grouping', 'split': 'split'}  # of a network, by the stage that trained it


def unit_names(graph):
  """Returns a name to read for each set of units that may be divided: dict by the code's name.

  Such as 'classes', 'output of unit_3' (what that depth hands on) and 'inside unit_3_0' (within a block). It follows
  from the graph, so it holds for any network; two that would be alike are told by the layer that writes them.
  """
  handed_on = {layer.units.name: layer.depth for layer in graph.borders.values() if layer}
  writers = {}
  for layer in graph.layers:
    if layer.op in WEIGHTED:
      writers.setdefault(layer.units.name, layer)
  names = {}
  for name, layer in writers.items():
    names[name] = f'inside {layer.block}' if layer.block != layer.name else f'output of {layer.name}'
    if name in handed_on:
      names[name] = f'output of {handed_on[name]}'
  names[graph.classes.name] = 'classes'
  alike = {name for name in names if list(names.values()).count(names[name]) > 1}
  return {name: f'output of {writers[name].name}' if name in alike else text for name, text in names.items()}


def with_code_name(name, text):
  """Returns a name to read with the code's behind it, if that helps."""
  return text if text == 'classes' else f'{text} ({name})'


def network_name(graph, state):
  """Returns a network's name and state: 'dense', 'grouping' or 'split'."""
  return f'{graph.name}, {state if state == "dense" else f"{state} {graph.split}"}'


def evaluated_name(network, groups):
  """Returns an evaluated network's name and state, such as 'WRN-16-8, split 2-2-2'.

  `groups` are the hard groups of its classes, None if it is dense.
  """
  state = 'dense' if groups is None else 'split' if network.groups is not None else 'grouping, not hardened'
  return network_name(network.graph, state)
