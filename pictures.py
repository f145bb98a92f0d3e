"""Pictures: the weights of split layers ordered by group, and confusion matrices. PNG files, drawn by matplotlib."""

import os

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

import resnet_split
import utils


def ordered_weights(network):
  """The magnitude of every split layer's weights, rows and columns ordered by their present groups (figure 3).

  Args:
    network: a dense resnet_split.Network with assignments.

  Returns:
    Dict from layer name to (magnitudes [in, out]: root mean square over a convolution's window; the positions between
    rows, and between columns, where another group begins).
  """
  plan = network.plan
  hard = {}
  for name, units in plan.units.items():
    alpha = network.weights.get('group/%s/alpha' % name)
    hard[name] = np.zeros(units.size, np.int64) if alpha is None else utils.hard_groups(alpha)
  images = {}
  for layer in plan.layers:
    if layer.kind == 'batch_norm' or layer.branches == 1:
      continue
    kernel = network.weights[resnet_split.layer_weights(layer)].numpy()
    size = np.sqrt(np.square(kernel).mean(tuple(range(kernel.ndim - 2))))
    merged = [
      utils.parents(units.groups, min(layer.branches, units.groups))[hard[units.name]]
      for units in (layer.input, layer.output)
    ]
    rows, columns = (utils.group_order(groups) for groups in merged)
    borders = [np.cumsum(np.bincount(groups))[:-1] for groups in merged]
    images[layer.name] = (size[rows][:, columns], borders[0], borders[1])
  return images


def draw_weights(images, title, path):
  """Draws what `ordered_weights` gives, one panel a layer, with lines between the groups.

  Args:
    images: dict from layer name to (magnitudes, row borders, column borders).
    title: text above; path: PNG file, its folder is made if missing.
  """
  columns = min(4, len(images))
  rows = -(-len(images) // columns)
  figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 3.2 * rows + 0.5), squeeze=False)
  for axis in axes.flat[len(images) :]:
    axis.axis('off')
  for axis, (name, (image, row_borders, column_borders)) in zip(axes.flat, images.items()):
    # A few large weights must not make the rest look empty.
    axis.imshow(
      image, cmap='gray_r', vmin=0, vmax=np.percentile(image, 99) or 1, aspect='auto', interpolation='nearest'
    )
    for border in row_borders:
      axis.axhline(border - 0.5, color='tab:red', linewidth=0.8)
    for border in column_borders:
      axis.axvline(border - 0.5, color='tab:red', linewidth=0.8)
    axis.set_title(name, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel('%d outputs' % image.shape[1], fontsize=8)
    axis.set_ylabel('%d inputs' % image.shape[0], fontsize=8)
  figure.suptitle(title)
  _save(figure, path)


def draw_confusion(matrix, order, borders, title, path):
  """Draws a confusion matrix with the classes ordered by group.

  Args:
    matrix: int array [classes, classes], true class by row, predicted by column.
    order: the classes in the order to draw; borders: positions where another group begins.
    title: text above; path: PNG file.
  """
  share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
  figure, axis = plt.subplots(figsize=(8, 7.4))
  drawn = axis.imshow(share[order][:, order], cmap='magma_r', vmin=0, vmax=1, interpolation='nearest')
  for border in borders:
    axis.axhline(border - 0.5, color='tab:blue', linewidth=1)
    axis.axvline(border - 0.5, color='tab:blue', linewidth=1)
  axis.set_xlabel('predicted class, ordered by group')
  axis.set_ylabel('true class, ordered by group')
  axis.set_title(title, fontsize=10)
  figure.colorbar(drawn, ax=axis, label='share of the true class')
  _save(figure, path)


def _save(figure, path):
  """Writes a figure whole or not at all."""
  os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
  figure.tight_layout()
  figure.savefig(path + '.tmp', format='png', dpi=110)
  plt.close(figure)
  os.replace(path + '.tmp', path)
