"""plots.py: orders, what confusion matrices show of few and of many classes, pixels."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from splitnet.reporting import plots

SUPERCLASSES = np.arange(100) % 20
NAMES = [f'superclass {s}' for s in range(20)]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
  """Draws a confusion matrix; returns its axes, and the path of the picture."""
  figures, save = [], Figure.savefig

  def keeping(figure, *arguments, **keywords):
    figures.append(figure)
    return save(figure, *arguments, **keywords)

  monkeypatch.setattr(Figure, 'savefig', keeping)

  def draw(*arguments):
    path = str(tmp_path / 'confusion.png')
    plots.draw_confusion(*arguments, 'A title', path)
    return figures[-1].axes[0], path

  return draw


def labels(axis):
  return [text.get_text() for text in axis.get_yticklabels()]


def test_classes_are_ordered_by_group_and_inside_by_superclass():
  groups = (SUPERCLASSES >= 10).astype(int)
  order = plots.class_order(SUPERCLASSES, 100, groups)
  assert groups[order].tolist() == sorted(groups) and SUPERCLASSES[order].tolist() == sorted(SUPERCLASSES)
  assert plots.class_order(None, 5).tolist() == [0, 1, 2, 3, 4]


def test_a_confusion_matrix_names_superclasses_and_shows_errors_of_a_few_percent(drawn):
  matrix = 96 * np.eye(100, dtype=int)
  matrix[0, 1] = 4
  dense, path = drawn(matrix, list(map(str, range(100))), (NAMES, SUPERCLASSES), None)
  assert sorted(labels(dense)) == sorted(NAMES)
  with Image.open(path) as picture:
    colours = picture.convert('RGB').getcolors(1 << 20)
  assert max(colours)[1] == (255, 255, 255), 'on white'
  image = dense.images[0]
  white, few = (image.to_rgba(np.array([share]))[0, :3] for share in (0.0, 0.04))
  assert np.abs(white - few).max() > 0.15
  # A split network has the same scale, and red lines between its groups.
  split, _ = drawn(matrix, list(map(str, range(100))), (NAMES, SUPERCLASSES), (SUPERCLASSES >= 7).astype(int))
  assert split.images[0].get_clim() == image.get_clim() and sorted(labels(split)) == sorted(NAMES)
  lines = [line.get_ydata()[0] for line in split.lines if line.get_color() == 'tab:red' and line.get_xdata()[0] == 0]
  assert lines == [34.5]  # seven superclasses of five


def test_a_thousand_classes_are_added_up_to_their_superclasses(drawn):
  of = np.arange(1000) % 34
  superclasses = [f's{i}' for i in range(34)], of
  axis, _ = drawn(2 * np.eye(1000, dtype=int), list(map(str, range(1000))), superclasses, of // 17)
  assert axis.images[0].get_array().shape == (34, 34) and len(labels(axis)) == 34
  np.testing.assert_array_equal(axis.images[0].get_array(), np.eye(34))


def test_without_superclasses_classes_are_named_as_far_as_there_is_room(drawn):
  axis, _ = drawn(np.eye(10, dtype=int), list('abcdefghij'), None, np.arange(10) % 2)
  assert labels(axis) == list('acegibdfhj')
  axis, _ = drawn(np.eye(300, dtype=int), list(map(str, range(300))), None, None)
  assert axis.images[0].get_array().shape == (300, 300) and 0 < len(labels(axis)) <= 62


def test_pixels_are_large_enough_and_dark_is_large():
  image = np.zeros([4, 8])
  image[0, 0] = 1
  pixels = plots.weight_pixels(image, [2], [4])
  assert pixels.shape == (200, 200, 3) and pixels.dtype == np.uint8
  assert pixels[0, 0].tolist() == [0, 0, 0] and pixels[-1, -1].tolist() == [255, 255, 255]
  assert pixels[99, 0].tolist() == pixels[0, 99].tolist() == [214, 39, 40]
  confusion = plots.confusion_pixels(np.array([[9, 1], [0, 10]]), [1, 0])
  assert confusion.shape == (400, 400, 3) and confusion[0, 0].sum() < confusion[-1, 0].sum() < confusion[0, -1].sum()


def test_a_sheet_has_every_image_and_what_is_wrong_in_red(tmp_path):
  images = np.full([10, 32, 32, 3], 90, np.uint8)
  probabilities = np.eye(3)[[0] * 10]
  sheet = plots.answer_sheet(images, probabilities, [0] * 9 + [2], ['right', 'other', 'wrong ' * 9])
  assert (sheet == 90).all(2).sum() >= 10 * 96 * 96
  red = (sheet[..., 0] > 150) & (sheet[..., 1:].max(2) < 100)
  assert red.any() and not red[:110].any(), 'the last one, in the second row'
  path = str(tmp_path / 'folder' / 'sheet.png')
  plots.save_pixels(sheet, path)
  with Image.open(path) as picture:
    assert picture.size == sheet.shape[1::-1]
