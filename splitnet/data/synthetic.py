"""Draws images to try the programs on: 100 classes in 20 superclasses.

They form a tree in which nothing cuts across the branches, so that a grouping by meaning exists and can be checked:

  2 families           `night`: golden things on a dark ground; `day`: blue things on a bright ground
  2 x 2 surroundings   the ground's pattern, a slight cast of the colours, shapes that are akin
  4 x 5 superclasses   the thing's shape, as in `night_rainy_moons`; each shape is one superclass's alone
  20 x 5 classes       `..._a` to `..._e`: the emblem on the thing, a small symmetric pattern that no other class has

The letters mean nothing: the emblems of `_a` in two superclasses have nothing in common. A network groups classes that
it cannot always tell apart, so every level is hidden in some images: a quarter of the things are far away and show
neither emblem nor shape, a third of the grounds have no pattern; only the family can always be seen. As in CIFAR-100
the numbers of the classes say nothing about their superclass.
"""

import numpy as np

SIDE = 32  # pixels
FAR, PLAIN = np.float32(0.25), np.float32(0.35)  # shares of the images: the thing is far away; the ground is plain
LETTERS = 'abcde'
DESIGN_SEED = 100  # the classes' numbers and emblems are part of the data set and do not change with `seed`
CELLS = 5  # an emblem has as many rows and columns
EMBLEM = 0.62  # half its side, in units of the thing's radius

SURROUNDINGS = {  # the thing's colour, RGB 0-1, and the shapes
  ('night', 'starry'): ((1.00, 0.74, 0.35), ('bars', 'ovals', 'domes', 'hearts', 'clouds')),
  ('night', 'rainy'): ((1.00, 0.66, 0.35), ('arrows', 'hourglasses', 'leaves', 'moons', 'bottles')),
  ('day', 'checked'): ((0.05, 0.19, 0.56), ('flowers', 'gears', 'hexagons', 'saltires', 'squares')),
  ('day', 'wavy'): ((0.05, 0.25, 0.52), ('diamonds', 'drops', 'houses', 'pillars', 'triangles')),
}
SUPERCLASSES = [(*place, shape) for place, (_, shapes) in SURROUNDINGS.items() for shape in shapes]


def make(images_per_class, seed):
  """Draws the whole data set; the same arguments give the same bytes.

  There are at least one training image per class, and a fifth as many test images, at least one. Returns a dict:
  `train_images`, `test_images` uint8 [N, 32, 32, 3], RGB, in random order; `train_labels`, `test_labels` uint8 [N],
  0-99; `fine`, `coarse` lists of 100 and 20 names; `fine_to_coarse` list of 100 ints.
  """
  fine, coarse, fine_to_coarse, number = classes()
  patterns = emblems()
  rng = np.random.default_rng(seed)
  data = {'fine': fine, 'coarse': coarse, 'fine_to_coarse': fine_to_coarse}
  for part, per_class in (('train', images_per_class), ('test', max(1, images_per_class // 5))):
    order = rng.permutation(100 * per_class)
    images = np.empty((len(order), SIDE, SIDE, 3), np.uint8)
    labels = np.empty(len(order), np.uint8)
    for s in range(20):
      members = np.repeat(np.arange(5), per_class)
      here = order[s * len(members) : (s + 1) * len(members)]
      labels[here] = number[s, members]
      for chunk in np.array_split(np.arange(len(here)), max(1, len(here) // 500)):  # 500 images stay in the cache
        images[here[chunk]] = draw(*SUPERCLASSES[s], patterns[s, members[chunk]], rng)
    data[part + '_images'], data[part + '_labels'] = images, labels
  return data


def random_images(count, size, classes=1, seed=0):
  """Draws meaningless uint8 [count, size, size, 3] and labels, to measure time with."""
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (count, size, size, 3), np.uint8)
  return images, rng.integers(0, classes, count).astype(np.int32)


def classes():
  """Returns class names, superclass names, fine_to_coarse, and the classes' numbers.

  The numbers are an int array [20, 5], by place in SUPERCLASSES and LETTERS; the names are in their order.
  """
  names = ['_'.join(parts) for parts in SUPERCLASSES]
  coarse = sorted(names)
  number = np.random.RandomState(DESIGN_SEED).permutation(100)
  places = [divmod(place, 5) for place in np.argsort(number)]
  fine = [f'{names[s]}_{LETTERS[c]}' for s, c in places]
  return fine, coarse, [coarse.index(names[s]) for s, _ in places], number.reshape(20, 5)


def emblems():
  """Draws the classes' emblems, symmetric, no two alike: bool [20, 5, CELLS, CELLS]."""
  random, half, patterns = np.random.RandomState(DESIGN_SEED), (CELLS + 1) // 2, {}
  while len(patterns) < 100:
    left = random.rand(CELLS, half) < 0.55
    pattern = np.concatenate([left, left[:, : CELLS - half][:, ::-1]], axis=1)
    if 0.4 < pattern.mean() < 0.75:
      patterns[pattern.tobytes()] = pattern
  return np.stack(list(patterns.values())).reshape(20, 5, CELLS, CELLS)


def draw(family, ground, shape, emblem, rng):
  """Draws uint8 [N, 32, 32, 3] of one superclass with emblems [N, CELLS, CELLS]."""
  n = len(emblem)

  def uniform(low, high, *size):
    return rng.uniform(low, high, (n, *size)).astype(np.float32)

  marks = MARKS[ground](uniform) * _wide(np.where(uniform(0, 1) < PLAIN, 0, uniform(0.4, 0.9)))
  image = background(family, marks, uniform)
  radius = uniform(2, 4)  # the stray blob
  u, v = turned_grid(uniform(-16, 16), uniform(-16, 16), uniform(0, np.pi), radius)
  image = _blend(image, _pixels(uniform(0, 1, 3)), _edge((np.hypot(u, 2 * v) - 1) * _wide(radius)))

  radius = np.where(uniform(0, 1) < FAR, uniform(2.2, 4.5), uniform(7.5, 11.5))
  reach = np.maximum(15.5 - 0.9 * radius, 1)
  u, v = turned_grid(uniform(-1, 1) * reach, uniform(-1, 1) * reach, uniform(-0.45, 0.45), radius)
  colour = np.asarray(SURROUNDINGS[family, ground][0], np.float32)
  colour = colour * uniform(0.85, 1.05, 1) + uniform(-0.1, 0.1, 3)
  roundness = _wide(uniform(0, 0.35))
  distance = DISTANCES[shape](u, v) * (1 - roundness) + (np.hypot(u, v) - 0.85) * roundness
  image = _blend(image, _pixels(colour), _edge(distance * _wide(radius)))
  strength = uniform(0.3, 0.7, 1)  # an emblem is a darker shade of a bright thing, a paler one of a dark thing
  ink = colour * (1 - strength) + strength * (family == 'day')
  image = _blend(image, _pixels(ink), _emblem_share(emblem, u, v))

  image = (image - 0.5) * _pixels(uniform(0.75, 1.0, 1)) + 0.5 + _pixels(uniform(-0.08, 0.08, 1))
  image += rng.standard_normal(image.shape, np.float32) * _pixels(uniform(0.03, 0.10, 1))
  return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _emblem_share(emblem, u, v):
  """Returns which pixels the emblem's ink covers: bool [N, 32, 32]."""
  column, row = (np.floor((x / EMBLEM + 1) * (CELLS / 2)).astype(int) for x in (u, v))
  inside = (column >= 0) & (column < CELLS) & (row >= 0) & (row < CELLS)
  image = np.arange(len(emblem))[:, None, None]
  return emblem[image, np.clip(row, 0, CELLS - 1), np.clip(column, 0, CELLS - 1)] & inside


def background(family, marks, uniform):
  """Draws a ramp between two dull colours under marks [N, 32, 32]: [N, 32, 32, 3].

  A day is the negative of a night; uniform(low, high, *size) draws [N, *size].
  """
  zero = np.float32(0)
  u, _ = turned_grid(zero, zero, uniform(0, 2 * np.pi), np.float32(22))
  one, other = (uniform(0.05, 0.25, 1) + uniform(-0.05, 0.05, 3) for _ in range(2))
  image = _blend(_pixels(one), _pixels(other), np.clip(0.5 + 0.5 * u, 0, 1))
  light = np.asarray((1, 0.75, 0.5) if family == 'night' else (1, 0.7, 0.4), np.float32)
  light = light * uniform(0.75, 1.0, 1) + uniform(-0.1, 0.1, 3)
  image = _blend(image, _pixels(light), marks)
  return 1 - image if family == 'day' else image


def _starry(uniform):
  specks = (uniform(0, 1, SIDE, SIDE) < 0.03) * uniform(0.5, 1, SIDE, SIDE)
  near = sum(np.roll(specks, shift, axis) for shift in (-1, 1) for axis in (1, 2))
  return 0.55 * np.minimum(specks + 0.4 * near, 1)


def _rainy(uniform):
  u, v = turned_grid(uniform(-8, 8), uniform(-8, 8), uniform(-0.4, 0.4), uniform(3.5, 5.0))
  lane = np.floor(u)
  dashes = np.sin(2 * np.pi * (0.45 * v + 0.37 * lane)) > -0.2
  return 0.35 * dashes * np.clip(2 - 6 * np.abs(u - lane - 0.5), 0, 1)


def _checked(uniform):
  u, v = turned_grid(uniform(-8, 8), uniform(-8, 8), uniform(-0.15, 0.15), uniform(3.5, 5.0))
  return 0.40 * np.clip(0.5 + 3 * np.sin(np.pi * u) * np.sin(np.pi * v), 0, 1)


def _wavy(uniform):
  u, v = turned_grid(uniform(-8, 8), uniform(-8, 8), uniform(-0.3, 0.3), uniform(5, 7))
  return 0.40 * np.clip(0.5 + 0.8 * np.sin(2 * np.pi * (v + 0.25 * np.sin(3.5 * u))), 0, 1)


MARKS = {'starry': _starry, 'rainy': _rainy, 'checked': _checked, 'wavy': _wavy}


def turned_grid(x, y, angle, radius):
  """Returns the pixels' coordinates u, v [N, 32, 32], seen from N shapes, v down.

  A shape is at x, y (pixels from the middle), turned by an angle in radians; its radius, in pixels, is the unit.
  """
  axis = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
  dx, dy = axis[None, None, :] - _wide(x), axis[None, :, None] - _wide(y)
  cos, sin = _wide(np.cos(angle) / radius), _wide(np.sin(angle) / radius)
  return dx * cos + dy * sin, dy * cos - dx * sin


def _heart(u, v):
  u = np.abs(u)
  lobes = np.hypot(u - 0.46, v + 0.30) - 0.52
  return np.minimum(lobes, np.maximum(0.70 * u + 0.70 * v - 0.52, -0.42 - v + 0.9 * (u - 0.45)))


def _drop(u, v):
  return np.minimum(np.hypot(u, v - 0.3) - 0.68, np.maximum(0.83 * np.abs(u) - 0.55 * v - 0.52, v - 0.05))


def _arrow(u, v):
  head = np.maximum(0.72 * np.abs(u) - 0.69 * v - 0.72, v - 0.15)
  return np.minimum(head, np.maximum(np.abs(u) - 0.45, np.abs(v - 0.4) - 0.6))


DISTANCES = {  # about the distance to the outline in units of the radius, negative inside
  'ovals': lambda u, v: np.hypot(0.8 * u, 1.3 * v) - 0.9,
  'moons': lambda u, v: np.maximum(np.hypot(u, v) - 1.05, 0.75 - np.hypot(u - 0.75, v)),
  'arrows': _arrow,
  'leaves': lambda u, v: np.maximum(np.hypot(u - 0.6, v), np.hypot(u + 0.6, v)) - 1.12,
  'drops': _drop,
  'domes': lambda u, v: np.maximum(np.hypot(u, v - 0.55) - 1.15, v - 0.55),
  'flowers': lambda u, v: np.hypot(u, v) - (0.80 + 0.24 * np.cos(6 * np.arctan2(u, v))),
  'houses': lambda u, v: np.maximum(np.maximum(np.abs(u) - 0.75, v - 0.85), 0.7 * (np.abs(u) - v) - 0.75),
  'hearts': _heart,
  'squares': lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.82,
  'triangles': lambda u, v: np.maximum(v - 0.75, 0.88 * np.abs(u) - 0.48 * v - 0.58),
  'gears': lambda u, v: np.hypot(u, v) - (0.86 + 0.14 * np.clip(3 * np.cos(8 * np.arctan2(u, v)), -1, 1)),
  'diamonds': lambda u, v: 0.75 * np.abs(u) + 0.6 * np.abs(v) - 0.68,
  'bars': lambda u, v: np.maximum(np.abs(u) - 1.2, np.abs(v) - 0.55),
  'clouds': lambda u, v: np.minimum(np.hypot(u, v + 0.15) - 0.62, np.hypot(np.abs(u) - 0.6, v - 0.12) - 0.5),
  'bottles': lambda u, v: np.minimum(
    np.maximum(np.abs(u) - 0.52, np.abs(v - 0.35) - 0.7), np.maximum(np.abs(u) - 0.24, np.abs(v + 0.6) - 0.5)
  ),
  'pillars': lambda u, v: np.maximum(np.abs(u) - 0.5, np.abs(v) - 1.15),
  'hourglasses': lambda u, v: np.maximum(np.abs(v) - 0.95, 0.8 * (np.abs(u) - 0.22 - 0.7 * np.abs(v))),
  'hexagons': lambda u, v: np.maximum(0.5 * np.abs(u) + 0.87 * np.abs(v), np.abs(u)) - 0.88,
  'saltires': lambda u, v: np.maximum(
    0.7 * np.minimum(np.abs(u + v), np.abs(u - v)) - 0.34, np.maximum(np.abs(u), np.abs(v)) - 0.9
  ),
}


def _edge(distance):
  """Returns the share of each pixel inside an outline, by distance in pixels."""
  return np.clip(0.5 - distance, 0, 1)


def _blend(below, above, share):
  """Blends colours [..., C], by the share [...] of the one above."""
  return below + (above - below) * share[..., None].astype(np.float32)


def _wide(x):
  """Reshapes [N] to [N, 1, 1], to go with [N, 32, 32]."""
  return np.reshape(x, (-1, 1, 1))


def _pixels(x):
  """Reshapes [N, C] to [N, 1, 1, C], to go with [N, 32, 32, 3]."""
  return x[:, None, None, :]
