"""Draws weights by group, confusion matrices and the paper's figures: PNG files."""

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

import utils
from splitnet.common.files import whole_file


def ordered_weights(network):
  """Returns `order_weights` by split layer, by the present groups (figure 3)."""
  graph, groups = network.graph, {}
  for name, units in graph.units.items():
    alpha = network.weights.get(units.alpha)
    groups[name] = np.zeros(units.size, np.int64) if alpha is None else utils.hard_groups(alpha)
  return {
    layer.name: order_weights(graph, layer, network.weights[layer.weights].numpy(), groups)
    for layer in graph.split_layers
  }


def order_weights(graph, layer, kernel, groups):
  """Returns a layer's magnitudes, rows and columns ordered by their hard groups.

  Returns:
    (magnitudes [in, out]: root mean square over a convolution's window; the positions between rows, and between
    columns, at which another group begins).
  """
  size = np.sqrt(np.square(kernel).mean(tuple(range(kernel.ndim - 2))))
  merged = [
    utils.parents(*graph.merges(layer, units)[:2])[groups[units.name]] for units in (graph.read(layer), layer.units)
  ]
  borders = [np.cumsum(np.bincount(groups))[:-1] for groups in merged]
  return size[np.ix_(*map(utils.group_order, merged))], *borders


def draw_weights(images, title, path):
  """Draws what `ordered_weights` returns, one panel per layer."""
  columns = min(4, len(images))
  rows = -(-len(images) // columns)
  figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 3.2 * rows + 0.5), squeeze=False)
  for axis in axes.flat[len(images) :]:
    axis.axis('off')
  for axis, (name, image) in zip(axes.flat, images.items()):
    _draw_magnitudes(axis, *image)
    axis.set_title(name, fontsize=9)
    axis.set_xlabel(f'{image[0].shape[1]} outputs', fontsize=8)
    axis.set_ylabel(f'{image[0].shape[0]} inputs', fontsize=8)
  figure.suptitle(title)
  _save(figure, path)


def _draw_magnitudes(axis, image, row_borders, column_borders):
  """Fills one panel with a layer's magnitudes, and lines between the groups."""
  # A few large weights must not make the rest look empty.
  axis.imshow(image, cmap='gray_r', vmin=0, vmax=np.percentile(image, 99) or 1, aspect='auto', interpolation='nearest')
  _draw_borders(axis, row_borders, column_borders, color='tab:red', linewidth=0.8)
  axis.set(xticks=[], yticks=[])


def _draw_borders(axis, rows, columns, **style):
  """Draws lines before these rows and columns of an image."""
  for border in rows:
    axis.axhline(border - 0.5, **style)
  for border in columns:
    axis.axvline(border - 0.5, **style)


def draw_confusion(matrix, order, borders, title, path):
  """Draws a confusion matrix [true, predicted], without borders by label."""
  share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
  figure, axis = plt.subplots(figsize=(8, 7.4))
  drawn = axis.imshow(share[order][:, order], cmap='magma_r', vmin=0, vmax=1, interpolation='nearest')
  _draw_borders(axis, borders, borders, color='tab:blue', linewidth=1)
  ordered = 'ordered by group' if len(borders) else 'ordered by label'
  axis.set(xlabel=f'predicted class, {ordered}', ylabel=f'true class, {ordered}')
  axis.set_title(title, fontsize=10)
  figure.colorbar(drawn, ax=axis, label='share of the true class', fraction=0.046, pad=0.03)
  _save(figure, path)


def draw_moments(rows, moments, title, path):
  """Draws layers' weights, a row per layer and a column per moment (figure 3).

  Each panel has its own scale: a layer's weights also shrink together, which batch normalisation undoes. A row is
  (label, list of one (magnitudes, row borders, column borders) per moment, their captions).
  """
  figure, axes = plt.subplots(
    len(rows), len(moments), figsize=(1.9 * len(moments) + 0.7, 2.15 * len(rows) + 0.6), squeeze=False
  )
  for line, (label, images, captions) in zip(axes, rows):
    for axis, image, caption in zip(line, images, captions):
      _draw_magnitudes(axis, *image)
      axis.set_xlabel(caption, fontsize=8)
    line[0].set_ylabel(label, fontsize=9)
  for axis, moment in zip(axes[0], moments):
    axis.set_title(moment, fontsize=9)
  figure.suptitle(title, fontsize=11)
  _save(figure, path)


def draw_sizes(sizes, classes, title, path):
  """Draws the groups' numbers of classes against the balance weight (figure 4)."""
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
  axis.set(xlabel='weight of the balance, gamma3', ylabel='classes in the group')
  axis.set_ylim(0, 1.2 * classes)  # the legend stands above the tallest bar
  axis.legend(loc='upper right', fontsize=9)
  axis.set_title(title, fontsize=10)
  _save(figure, path)


def draw_superclasses(table, group_names, superclass_names, title, path):
  """Draws the table [groups, superclasses] of numbers of classes (figure 5)."""
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
