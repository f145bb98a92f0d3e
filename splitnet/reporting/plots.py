"""Draws weights by group, confusion matrices and the paper's figures: PNG files."""


import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

import utils
from splitnet.common.files import whole_file
from splitnet.network.variables import alpha_name


def ordered_weights(network):
  """Returns split layers' magnitudes, ordered by the present groups (figure 3).

  Args:
    network: a dense Network with assignments.

  Returns:
    Dict from layer name to what `order_weights` returns.
  """
  graph, groups = network.graph, {}
  for name, units in graph.units.items():
    alpha = network.weights.get(alpha_name(units))
    groups[name] = np.zeros(units.size, np.int64) if alpha is None else utils.hard_groups(alpha)
  return {
    layer.name: order_weights(graph, layer, network.weights[layer.weights].numpy(), groups)
    for layer in graph.split_layers
  }


def order_weights(graph, layer, kernel, groups):
  """Returns a layer's magnitudes, rows and columns ordered by their groups.

  Args:
    graph: a Graph.
    layer: one of its weighted layers.
    kernel: its weights in the dense network, array.
    groups: the hard groups to order by, dict from units name to int array.

  Returns:
    (magnitudes [in, out]: root mean square over a convolution's window; the positions between rows, and between
    columns, at which another group begins).
  """
  size = np.sqrt(np.square(kernel).mean(tuple(range(kernel.ndim - 2))))
  merged = [
    utils.parents(*graph.merges(layer, units)[:2])[groups[units.name]] for units in (graph.read(layer), layer.units)
  ]
  rows, columns = (utils.group_order(groups) for groups in merged)
  borders = [np.cumsum(np.bincount(groups))[:-1] for groups in merged]
  return size[rows][:, columns], borders[0], borders[1]


def draw_weights(images, title, path):
  """Draws what `ordered_weights` returns, one panel per layer.

  Args:
    images: dict from layer name to (magnitudes, row borders, column borders).
    title: text above.
    path: PNG file, its folder is made if missing.
  """
  columns = min(4, len(images))
  rows = -(-len(images) // columns)
  figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 3.2 * rows + 0.5), squeeze=False)
  for axis in axes.flat[len(images) :]:
    axis.axis('off')
  for axis, (name, (image, row_borders, column_borders)) in zip(axes.flat, images.items()):
    _draw_magnitudes(axis, image, row_borders, column_borders)
    axis.set_title(name, fontsize=9)
    axis.set_xlabel(f'{image.shape[1]} outputs', fontsize=8)
    axis.set_ylabel(f'{image.shape[0]} inputs', fontsize=8)
  figure.suptitle(title)
  _save(figure, path)


def _draw_magnitudes(axis, image, row_borders, column_borders):
  """Fills one panel with a layer's magnitudes, and lines between the groups."""
  # A few large weights must not make the rest look empty.
  axis.imshow(image, cmap='gray_r', vmin=0, vmax=np.percentile(image, 99) or 1, aspect='auto', interpolation='nearest')
  for border in row_borders:
    axis.axhline(border - 0.5, color='tab:red', linewidth=0.8)
  for border in column_borders:
    axis.axvline(border - 0.5, color='tab:red', linewidth=0.8)
  axis.set_xticks([])
  axis.set_yticks([])


def draw_confusion(matrix, order, borders, title, path):
  """Draws a confusion matrix, with groups the classes ordered by them.

  Args:
    matrix: int array [classes, classes], true class by row, predicted by column.
    order: the classes in the order to draw.
    borders: positions at which another group begins; none: there are no groups, and the order is that of the labels.
    title: text above.
    path: PNG file.
  """
  share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
  figure, axis = plt.subplots(figsize=(8, 7.4))
  drawn = axis.imshow(share[order][:, order], cmap='magma_r', vmin=0, vmax=1, interpolation='nearest')
  for border in borders:
    axis.axhline(border - 0.5, color='tab:blue', linewidth=1)
    axis.axvline(border - 0.5, color='tab:blue', linewidth=1)
  ordered = 'ordered by group' if len(borders) else 'ordered by label'
  axis.set_xlabel(f'predicted class, {ordered}')
  axis.set_ylabel(f'true class, {ordered}')
  axis.set_title(title, fontsize=10)
  figure.colorbar(drawn, ax=axis, label='share of the true class', fraction=0.046, pad=0.03)
  _save(figure, path)


def draw_moments(rows, moments, title, path):
  """Draws layers' weights at several moments (figure 3).

  There is one row per layer and one column per moment. Each panel has its own scale: a layer's weights also shrink
  together, which batch normalisation undoes.

  Args:
    rows: list of (label, list of one (magnitudes, row borders, column borders) per moment, their captions).
    moments: the columns' titles.
    title: text above.
    path: PNG file.
  """
  figure, axes = plt.subplots(
    len(rows), len(moments), figsize=(1.9 * len(moments) + 0.7, 2.15 * len(rows) + 0.6), squeeze=False
  )
  for line, (label, images, captions) in zip(axes, rows):
    for axis, (image, row_borders, column_borders), caption in zip(line, images, captions):
      _draw_magnitudes(axis, image, row_borders, column_borders)
      axis.set_xlabel(caption, fontsize=8)
    line[0].set_ylabel(label, fontsize=9)
  for axis, moment in zip(axes[0], moments):
    axis.set_title(moment, fontsize=9)
  figure.suptitle(title, fontsize=11)
  _save(figure, path)


def draw_sizes(sizes, classes, title, path):
  """Draws the groups' numbers of classes against the balance weight (figure 4).

  The largest group comes first.

  Args:
    sizes: dict from the weight, as text, to a list of ints.
    classes: how many there are.
    title: text above.
    path: PNG file.
  """
  groups = max(len(values) for values in sizes.values())
  width = 0.8 / groups
  figure, axis = plt.subplots(figsize=(max(5.0, 0.42 * groups * len(sizes) + 1.5), 4))
  for g in range(groups):
    heights = [sorted(values, reverse=True)[g] for values in sizes.values()]
    shade = str(0.2 + 0.6 * g / max(groups - 1, 1))
    bars = axis.bar(np.arange(len(sizes)) + (g - (groups - 1) / 2) * width, heights, width, color=shade)
    axis.bar_label(bars, fontsize=8, padding=2, bbox=dict(facecolor='white', edgecolor='none', pad=0.5))
  axis.axhline(classes / groups, color='tab:red', linewidth=1, linestyle='--', zorder=0, label='even groups')
  axis.set_xticks(range(len(sizes)), list(sizes))
  axis.set_ylim(0, 1.2 * classes)  # the legend stands above the tallest bar
  axis.set_xlabel('weight of the balance, gamma3')
  axis.set_ylabel('classes in the group')
  axis.legend(loc='upper right', fontsize=9)
  axis.set_title(title, fontsize=10)
  _save(figure, path)


def draw_superclasses(table, group_names, superclass_names, title, path):
  """Draws how many classes of each superclass are in each group (figure 5).

  Args:
    table: int array [groups, superclasses], in the order to draw.
    group_names, superclass_names: lists of text.
    title: text above.
    path: PNG file.
  """
  groups, superclasses = table.shape
  figure, axis = plt.subplots(figsize=(0.5 * superclasses + 2.0, 0.5 * groups + 2.2))
  axis.imshow(table, cmap='gray_r', vmin=0, vmax=1.2 * max(table.sum(0).max(), 1), aspect='auto')
  for g, s in np.ndindex(groups, superclasses):
    dark = table[g, s] > table.sum(0).max() / 2
    axis.text(s, g, str(table[g, s]), ha='center', va='center', fontsize=10, color='white' if dark else '0.25')
  axis.set_xticks(range(superclasses), superclass_names, rotation=45, ha='right', rotation_mode='anchor', fontsize=9)
  axis.set_yticks(range(groups), group_names, fontsize=9)
  # Lines between the cells: pale ones are seen as cells, not as background.
  axis.set_xticks(np.arange(superclasses + 1) - 0.5, minor=True)
  axis.set_yticks(np.arange(groups + 1) - 0.5, minor=True)
  axis.grid(which='minor', color='0.8', linewidth=0.8)
  axis.tick_params(which='minor', length=0)
  axis.set_title(title, fontsize=10)
  _save(figure, path)


def _save(figure, path):
  """Writes a figure whole or not at all."""
  figure.tight_layout()
  with whole_file(path, 'wb') as f:
    figure.savefig(f, format='png', dpi=110)
  plt.close(figure)
