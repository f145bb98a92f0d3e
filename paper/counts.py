"""Counts parameters and FLOPs of the paper's splits, beside its own numbers."""

import dataclasses

from paper.experiments import Experiment
from paper.published import DENSE, TABLE_2, TABLES, row_name
from splitnet.network import counting, grouping
from splitnet.network.graph import Tree
from splitnet.reporting.tables import markdown

BRANCH_INPUTS = {
  'group': "a child reads its own group of its parent's channels",
  'all': 'a child reads all channels of its parent',
}
# What the paper counts in Tables 3 and 4, by network.
IMAGENET = {
  'alexnet': 'Table 3: AlexNet on ILSVRC 2012, without biases',
  'resnet18': 'Table 4: ResNet-18x2 on ILSVRC 2012, without batch norms',
}
NOTE = """
The dense rows are the paper's to the last digit. The others cannot be: the paper counts the networks that it trained,
whose learned groups were nearly, not exactly, even, and it counts the biases' FLOPs in AlexNet's split rows only."""


def layer_counts(config):
  """Returns the LayerCount of every layer and branch, with even groups."""
  graph = config.graph()
  return counting.counts(Tree(graph, grouping.even_groups(graph)))


def total(config, everything=False):
  """Returns (parameters, FLOPs per image) as the paper counts, or of everything."""
  return counting.total(layer_counts(config), everything)


def beside_paper(texts, sizes, dense, paper):
  """Returns the texts of a size, each with the % reduced, beside the paper's."""
  reduced = [f'{100 - 100 * size / of_dense:.2f}' for size, of_dense in zip(sizes, dense)]
  return [text for pair in zip((texts[0], reduced[0], texts[1], reduced[1]), paper) for text in pair]


def counts_table(config_of, published=TABLE_2, everything=False):
  """Makes a network's table beside the paper's TABLE_2 to 4: (header, rows) of text."""
  header = ['network', 'parameters', '10^6 (paper)', '% reduced', '% reduced (paper)']
  header += ['FLOPs per image', '10^9 (paper)', '% FLOPs reduced', '% FLOPs reduced (paper)']
  dense, rows = total(config_of(DENSE), everything), []
  for split, paper in published.items():
    sizes = total(config_of(split), everything)
    rows.append([row_name(split, published), *beside_paper([f'{size:,}' for size in sizes], sizes, dense, paper)])
  return header, rows


def layers_table(counts, everything=False):
  """Makes the table of each layer's parameters and FLOPs: (header, rows) of text."""
  rows = [(count.name, count.parameters, count.flops) for count in counts if any(count.counted) or everything]
  rows.append(('all', *counting.total(counts, everything)))
  header = ['layer', 'parameters', 'FLOPs per image']
  return header, [[name, f'{parameters:,}', f'{flops:,}'] for name, parameters, flops in rows]


def print_counts(experiment, split=None, everything=False):
  """Prints the counts of all splits, or those of each layer of one split."""
  leaves_out = 'with' if everything else 'without'
  note = f'WRN-16-{experiment.k}, 2 FLOPs per multiply-add, {leaves_out} init_conv and batch norms'
  if split:
    counts = layer_counts(experiment.config(DENSE if split == 'dense' else split))
    print(f'{split} of {note}, branch_input {experiment.branch_input}\n')
    print(markdown(*layers_table(counts, everything)), end='')
    return
  print(f'{note}, groups of even size; paper: WRN-16-8 without them.')
  for branch_input, meaning in BRANCH_INPUTS.items():
    print(f'\nbranch_input {branch_input}: where the tree branches, {meaning}.\n')
    config_of = dataclasses.replace(experiment, branch_input=branch_input).config
    print(markdown(*counts_table(config_of, everything=everything)), end='')
  for network, published in TABLES.values():
    if what := IMAGENET.get(network):
      print(f'\n{what if not everything else what.split(",")[0]}, groups of even size.\n')
      print(markdown(*counts_table(Experiment('paper', network).config, published, everything)), end='')
  print(NOTE)
