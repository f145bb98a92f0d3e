"""Draws weights by group, confusion matrices and the paper's figures as PNG files; and pixels for TensorBoard."""

import itertools
import textwrap

import numpy as np
from matplotlib import colors
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

import utils
from splitnet.common.files import whole_file
from splitnet.network import hardening

WEIGHTS_TEXT = (
  'Rows are inputs, columns outputs, both in group order; dark is a large weight (the darkest 1 % alike), and a white '
  'block between red lines means that those two groups exchange nothing.'
)
ERRORS = colors.PowerNorm(0.45, 0, 1)  # shares of a class: a confusion of 2 % is seen as well as one of 50 %
SHADES = colors.LinearSegmentedColormap.from_list('shares', ['#ffffff', '#c3b1e1', '#7a5fa8', '#2b0a3d'])


def ordered_weights(network):
  """Returns `order_weights` by split layer, by the present groups (figure 3)."""
  graph, groups = network.graph, hardening.present_groups(network)
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
  figure = Figure((3.2 * columns, 3.2 * rows + 0.5))
  axes = figure.subplots(rows, columns, squeeze=False)
  for axis in axes.flat[len(images) :]:
    axis.axis('off')
  for axis, (name, image) in zip(axes.flat, images.items()):
    _draw_magnitudes(axis, *image)
    axis.set_title(name, fontsize=9)
    axis.set_xlabel(f'{image[0].shape[1]} outputs', fontsize=8)
    axis.set_ylabel(f'{image[0].shape[0]} inputs', fontsize=8)
  figure.suptitle(title)
  figure.supxlabel(textwrap.fill(WEIGHTS_TEXT, 52 * columns), fontsize=8)
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


# --- confusion ----------------------------------------------------------------------------------------------------


def class_order(superclasses, classes, groups=None):
  """Returns the classes ordered by superclass, and before that by group: int array.

  Both are int arrays [classes], or None.
  """
  keys = [key for key in (superclasses, groups) if key is not None]
  return np.lexsort(keys) if keys else np.arange(classes)


def _shares(matrix):
  return matrix / np.maximum(matrix.sum(1, keepdims=True), 1)


def _runs(values):
  """Returns the runs of equal values: list of (value, first, behind the last)."""
  borders = [0, *(np.flatnonzero(np.diff(values)) + 1), len(values)] if len(values) else [0]
  return [(values[first], first, last) for first, last in itertools.pairwise(borders)]


def confusion_pixels(matrix, order, least=400):
  """Returns a confusion matrix as pixels: uint8 [height, width, 3], at least `least` high."""
  shares = ERRORS(_shares(np.asarray(matrix))[np.ix_(order, order)])
  pixels = np.uint8(255 * SHADES(np.ma.getdata(shares))[..., :3])
  return _enlarged(pixels, least)


def _enlarged(pixels, least):
  factor = -(-least // len(pixels))
  return pixels.repeat(factor, 0).repeat(factor, 1)


def draw_confusion(matrix, names, superclasses, groups, title, path):
  """Draws a confusion matrix [true, predicted] in the order of `class_order`.

  With superclasses their names stand at the axes; more than 200 classes are added up to them. Any two of such pictures
  of the same classes have the same scale.

  Args:
    names: names of the classes.
    superclasses: None, or (names of the superclasses, int array [classes]).
    groups: hard groups of the classes, int array, or None.
  """
  matrix, of, kind = np.asarray(matrix), superclasses and np.asarray(superclasses[1]), 'class'
  if superclasses and len(matrix) > 200:
    inside = np.eye(len(superclasses[0]), dtype=np.int64)[of]
    if groups is not None:  # a superclass belongs where most of its classes are
      groups = np.array([np.bincount(groups[of == s], minlength=1).argmax() for s in range(len(superclasses[0]))])
    matrix, names, superclasses, of, kind = inside.T @ matrix @ inside, superclasses[0], None, None, 'superclass'
  order = class_order(of, len(matrix), groups)
  figure = Figure((9.2, 8.6))
  axis = figure.subplots()
  drawn = axis.imshow(_shares(matrix)[np.ix_(order, order)], cmap=SHADES, norm=ERRORS, interpolation='nearest')
  rows = [(names[c], i, i + 1) for i, c in enumerate(order)]
  if superclasses:
    both = of if groups is None else of + len(superclasses[0]) * np.asarray(groups)
    rows = [(superclasses[0][value % len(superclasses[0])], *run) for value, *run in _runs(both[order])]
    borders = [first for _, first, _ in rows[1:]]
    _draw_borders(axis, borders, borders, color='0.85', linewidth=0.5)
  if groups is not None:
    borders = [first for _, first, _ in _runs(np.asarray(groups)[order])[1:]]
    _draw_borders(axis, borders, borders, color='tab:red', linewidth=1)
  # Names that would stand upon each other are left out, the shortest runs first.
  shown, apart = [], len(order) / 62
  for name, first, last in sorted(rows, key=lambda row: row[1] - row[2]):
    middle = (first + last - 1) / 2
    if all(abs(middle - other) >= apart for _, other in shown):
      shown.append((name, middle))
  for set_ticks, more in ((axis.set_yticks, {}), (axis.set_xticks, dict(rotation=90))):
    set_ticks([middle for _, middle in shown], [name for name, _ in shown], fontsize=7, **more)
  by = (['superclass'] if superclasses else []) + (['group (red lines)'] if groups is not None else [])
  ordered = f'{kind}{", by " if by else ""}{" and ".join(by)}'
  axis.set(xlabel=f'predicted {ordered}', ylabel=f'true {ordered}')
  axis.set_title(title, fontsize=10)
  bar = figure.colorbar(drawn, ax=axis, label=f'share of the true {kind}', fraction=0.04, pad=0.02)
  bar.set_ticks([0, 0.01, 0.03, 0.1, 0.3, 1], labels=['0', '1 %', '3 %', '10 %', '30 %', '100 %'])
  _save(figure, path)


# --- pixels -------------------------------------------------------------------------------------------------------


def weight_pixels(image, row_borders, column_borders, least=200):
  """Returns what `order_weights` returns as pixels, as `draw_weights` draws it: uint8 [height, width, 3]."""
  grey = np.uint8(255 * (1 - np.minimum(image / (np.percentile(image, 99) or 1), 1)))
  rows, columns = (-(-least // size) for size in image.shape)
  pixels = np.repeat(grey.repeat(rows, 0).repeat(columns, 1)[..., None], 3, 2)
  red = (214, 39, 40)
  for border in row_borders:
    pixels[rows * border - 1] = red
  for border in column_borders:
    pixels[:, columns * border - 1] = red
  return pixels


def image_sheet(images, captions, columns=8, size=96):
  """Returns images, uint8 [count, height, width, 3], on a white sheet with captions.

  A caption is a list of (text, colour); a text that is too long goes on in further lines. Returns uint8 pixels [height,
  width, 3].
  """
  font, line, edge = ImageFont.load_default(11), 14, 8

  def lines_of(text):
    end = len(text)
    while font.getlength(text[:end]) > size + edge - 2:
      end -= 1
    return [text] if end == len(text) else [text[:end], *lines_of(text[end:])]

  captions = [[(part, colour) for text, colour in caption for part in lines_of(text)] for caption in captions]
  lines = max(map(len, captions))
  columns = min(columns, len(images))
  width, height = size + edge, size + edge + line * lines
  sheet = Image.new('RGB', (columns * width + edge, -(-len(images) // columns) * height + edge), 'white')
  draw = ImageDraw.Draw(sheet)
  for i, (pixels, caption) in enumerate(zip(images, captions)):
    left, top = edge + i % columns * width, edge + i // columns * height
    smooth = Image.Resampling.NEAREST if len(pixels) < size else Image.Resampling.LANCZOS
    sheet.paste(Image.fromarray(np.asarray(pixels)).resize((size, size), smooth), (left, top))
    for j, (text, colour) in enumerate(caption):
      draw.text((left, top + size + 1 + line * j), text, colour, font)
  return np.asarray(sheet)


def answer_sheet(images, probabilities, labels, names):
  """Returns a sheet of images with their classes, and what a network says if it is wrong."""
  captions = []
  for label, row in zip(labels, probabilities):
    said = int(row.argmax())
    wrong = [(f'{names[said]} {100 * row[said]:.0f} %', '#c0392b')] if said != label else []
    captions.append([(names[label], 'black'), *wrong])
  return image_sheet(images, captions)


def save_pixels(pixels, path):
  """Writes pixels, uint8 [height, width, 3], as a PNG file."""
  with whole_file(path, 'wb') as f:
    Image.fromarray(pixels).save(f, 'PNG')


# --- the paper's figures ------------------------------------------------------------------------------------------


def draw_curves(runs, path):
  """Draws how runs went: an SVG file with accuracy and loss by step.

  A run is (name, list of its metrics of kinds 'train' and 'val'); full lines are validation, pale ones training.
  """
  figure = Figure((10, 3.6))
  axes = figure.subplots(1, 2)
  for i, (name, metrics) in enumerate(runs):
    for kind, style in (('train', dict(alpha=0.35, linewidth=1)), ('val', dict(marker='.', label=name))):
      own = [m for m in metrics if m['kind'] == kind]
      for axis, key, scale in zip(axes, ('accuracy', 'cross_entropy'), (100, 1)):
        axis.plot([m['step'] for m in own], [scale * m[key] for m in own], color=f'C{i}', **style)
  for axis, title in zip(axes, ('accuracy, %', 'cross-entropy')):
    axis.set(xlabel='step', title=title)
    axis.set_ylim(bottom=0)
    axis.grid(color='0.9')
  axes[0].legend(fontsize=9)
  _save(figure, path, 'svg')


def draw_moments(rows, moments, title, path):
  """Draws layers' weights, a row per layer and a column per moment (figure 3).

  Each panel has its own scale: a layer's weights also shrink together, which batch normalisation undoes. A row is
  (label, list of one (magnitudes, row borders, column borders) per moment, their captions).
  """
  figure = Figure((1.9 * len(moments) + 0.7, 2.15 * len(rows) + 0.6))
  axes = figure.subplots(len(rows), len(moments), squeeze=False)
  for line, (label, images, captions) in zip(axes, rows):
    for axis, image, caption in zip(line, images, captions):
      _draw_magnitudes(axis, *image)
      axis.set_xlabel(caption, fontsize=8)
    line[0].set_ylabel(label, fontsize=9)
  for axis, moment in zip(axes[0], moments):
    axis.set_title(moment, fontsize=9)
  figure.supxlabel(textwrap.fill(WEIGHTS_TEXT, 30 * len(moments)), fontsize=8)
  figure.suptitle(title, fontsize=11)
  _save(figure, path)


def draw_sizes(sizes, classes, title, path):
  """Draws the groups' numbers of classes against the balance weight (figure 4)."""
  groups = max(len(values) for values in sizes.values())
  width = 0.8 / groups
  figure = Figure((max(5.0, 0.42 * groups * len(sizes) + 1.5), 4))
  axis = figure.subplots()
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
  figure = Figure((0.5 * superclasses + 2.0, 0.5 * groups + 2.2))
  axis = figure.subplots()
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


def _save(figure, path, kind='png'):
  """Writes a figure whole or not at all."""
  figure.tight_layout()
  with whole_file(path, 'wb') as f:
    figure.savefig(f, format=kind, dpi=110)
