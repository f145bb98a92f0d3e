"""Says in text what a run is, and how its groups stand."""

import os

import numpy as np

import utils
from splitnet.common.errors import UserError
from splitnet.network import counting, hardening
from splitnet.network.graph import Tree
from splitnet.parallel import devices
from splitnet.reporting.names import STATES, network_name
from splitnet.training.log_files import TEXT


def settings_table(settings):
  """Returns every setting on a line of its own, in the order of the names: text."""
  width = max(map(len, settings))
  return '\n'.join(f'{name:<{width}}  {value}' for name, value in sorted(settings.items()))


def size_table(counts):
  """Returns a network's parameters and FLOPs layer by layer, and in all: text.

  The totals are those of the paper's tables, and with everything.
  """
  lines = [f'{"layer":<28} {"parameters":>12} {"FLOPs per image":>18}']
  for count in counts:
    note = '' if any(count.counted) else '  (not counted)'
    lines.append(f'{count.name:<28} {count.parameters:>12,} {count.flops:>18,}{note}')
  (parameters, flops), (every_parameter, every_flop) = counting.total(counts), counting.total(counts, True)
  lines.append(
    f'{parameters:,} parameters, {flops:,} FLOPs per image (as the paper counts; with what it leaves '
    f'out {every_parameter:,} and {every_flop:,})'
  )
  return '\n'.join(lines)


def run_text(network, configuration, validation_images):
  """Returns what is said of a run with this configuration (see checkpoints.describe).

  Returns:
    (three lines: which network, which images, how long and where; the tables of settings and layers).
  """
  data, settings = configuration['data'], configuration['settings']
  counts, where = counting.counts(network), os.path.join(settings['train_dir'], TEXT)
  parameters, flops = counting.total(counts)
  epochs = settings['max_steps'] * settings['batch_size'] / data['train_images']
  source = 'CIFAR-100' if settings['dataset'] == 'cifar100' else settings['dataset']
  source += f' ({data["source"]})' if data.get('source', source) != source else ''
  name = network_name(network.graph, STATES[configuration['mode']])
  lines = [
    f'{name}: {parameters:,} parameters, {flops:,} FLOPs per image',
    f"{source} in '{settings['data_dir']}': {data['train_images']:,} images to train on, "
    f'{validation_images:,} to validate, {data["classes"]} classes',
    f'{settings["max_steps"]:,} steps of {settings["batch_size"]} images, {epochs:.4g} epochs, on '
    f"{devices.description()}; settings and layers: '{where}'",
  ]
  rows = {**settings, **configuration['network'], 'mode': configuration['mode']}
  rows.update({} if configuration['mode'] == 'baseline' else {'groups': network.graph.split})
  rows.update({f'data {name}': value for name, value in data.items() if name != 'class_names'})
  return lines, [settings_table({**rows, 'computes on': devices.description()}), size_table(counts)]


def hardened_now(network):
  """Returns what the present assignments would harden into, and a line that says it.

  The first are the metrics of kind 'groups'; the line has the counts beside the dense ones, and what is lost.
  """
  try:
    tree = Tree(network.graph, hardening.present_groups(network))
  except UserError as e:
    return {'error': str(e)}, f'cannot be hardened now: {e}'
  parameters, flops = counting.total(counting.counts(tree))
  dense_parameters, dense_flops = counting.total(counting.counts(network))
  values = {name: variable.numpy() for name, variable in network.weights.items()}
  dropped = hardening.dropped_weights(network.graph, tree.groups, values)
  metrics = dict(
    hardened_parameters=parameters, parameters=dense_parameters, hardened_flops=flops, flops=dense_flops,
    dropped=dropped._asdict(),
  )  # fmt: skip
  return metrics, (
    f'hardened now: {parameters:,} of {dense_parameters:,} ({100 * parameters / dense_parameters:.1f} %) parameters, '
    f'{flops:,} of {dense_flops:,} ({100 * flops / dense_flops:.1f} %) FLOPs per image; drops '
    + hardening.describe_dropped(dropped)
  )


def assignment_states(network):
  """Returns dict from assignment name to (mean confidence, group sizes int array)."""
  states = {}
  for name, q in network.soft_assignments().items():
    sizes = utils.group_sizes(utils.hard_groups(q), len(q))
    states[name] = (float(utils.confidence(q)), sizes)
  return states


def least_confidence(network):
  """Returns the mean confidence of the least decided assignment, in (0, 1]."""
  return min(confidence for confidence, _ in assignment_states(network).values())


def groups_markdown(groups, names):
  """Returns a Markdown table of the classes of each group, by superclass if there are any."""
  lines = ['| group | classes |', '|---|---|']
  for g in range(groups.max() + 1):
    members = np.flatnonzero(groups == g)
    inside = ', '.join(names.fine[c] for c in members)
    if names.coarse:
      of = {s: [names.fine[c] for c in members if names.fine_to_coarse[c] == s] for s in range(len(names.coarse))}
      inside = '; '.join(f'**{names.coarse[s]}**: {", ".join(classes)}' for s, classes in of.items() if classes)
    lines.append(f'| {g} ({len(members)}) | {inside} |')
  return '\n'.join(lines)
