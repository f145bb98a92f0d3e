"""Images to try the programs on without CIFAR-100: 100 classes in 20 superclasses, drawn with NumPy alone.

A superclass is a shape, a texture and a colour, as in `striped_crimson_discs`; no two superclasses share both shape and
colour. Its five classes differ less: `small_`, `large_`, `twin_` (two of them), `framed_` (a bright outline) and
`cored_` (a bright spot within). So a network finds the superclass sooner than the class, and a grouping of the classes
by meaning exists that can be checked. Place, size, turn, shade, background, a stray blob and noise vary from image to
image. As in CIFAR-100 the numbers of the classes say nothing about their superclass.
"""

import numpy as np

SIDE = 32  # pixels
VARIANTS = ('small', 'large', 'twin', 'framed', 'cored')
NUMBERING_SEED = 100  # which class has which number is part of the data set and does not change with `seed`

COLOURS = {  # RGB 0-1 of the shape and of its texture
  'crimson': ((0.80, 0.08, 0.16), (0.98, 0.55, 0.55)),
  'orange': ((0.95, 0.50, 0.06), (0.55, 0.22, 0.02)),
  'golden': ((0.95, 0.82, 0.12), (0.55, 0.42, 0.05)),
  'green': ((0.14, 0.58, 0.16), (0.62, 0.90, 0.45)),
  'teal': ((0.04, 0.58, 0.58), (0.50, 0.95, 0.90)),
  'blue': ((0.12, 0.26, 0.82), (0.50, 0.72, 1.00)),
  'violet': ((0.48, 0.16, 0.68), (0.80, 0.60, 0.98)),
  'pink': ((0.98, 0.52, 0.74), (0.66, 0.12, 0.40)),
  'brown': ((0.42, 0.25, 0.12), (0.80, 0.62, 0.42)),
  'white': ((0.95, 0.95, 0.95), (0.45, 0.45, 0.50)),
}

SUPERCLASSES = (  # texture, colour, shape: each texture four times, each colour and each shape twice
  ('striped', 'crimson', 'discs'),
  ('plain', 'teal', 'discs'),
  ('dotted', 'blue', 'squares'),
  ('checked', 'golden', 'squares'),
  ('plain', 'orange', 'triangles'),
  ('shaded', 'violet', 'triangles'),
  ('plain', 'golden', 'stars'),
  ('shaded', 'pink', 'stars'),
  ('dotted', 'green', 'crosses'),
  ('striped', 'white', 'crosses'),
  ('shaded', 'blue', 'rings'),
  ('checked', 'brown', 'rings'),
  ('striped', 'violet', 'crescents'),
  ('dotted', 'orange', 'crescents'),
  ('plain', 'white', 'hearts'),
  ('checked', 'crimson', 'hearts'),
  ('striped', 'green', 'bars'),
  ('dotted', 'pink', 'bars'),
  ('shaded', 'brown', 'flowers'),
  ('checked', 'teal', 'flowers'),
)


def make(images_per_class, seed):
  """Draws the whole data set; the same arguments give the same bytes.

  Args:
    images_per_class: training images per class, at least 1; there are a fifth as many test images, at least 1.
    seed: int, at least 0.
  Returns:
    dict: `train_images`, `test_images` uint8 [N, 32, 32, 3], RGB, in random order; `train_labels`, `test_labels`
    uint8 [N], 0-99; `fine`, `coarse` lists of 100 and 20 names; `fine_to_coarse` list of 100 ints.
  """
  fine, coarse, fine_to_coarse, number = classes()
  rng = np.random.default_rng(seed)
  data = {'fine': fine, 'coarse': coarse, 'fine_to_coarse': fine_to_coarse}
  for part, per_class in (('train', images_per_class), ('test', max(1, images_per_class // 5))):
    order = rng.permutation(100 * per_class)
    images = np.empty((len(order), SIDE, SIDE, 3), np.uint8)
    labels = np.empty(len(order), np.uint8)
    for s in range(20):
      variants = np.repeat(np.arange(5), per_class)
      here = order[s * len(variants) : (s + 1) * len(variants)]
      labels[here] = number[s, variants]
      for chunk in np.array_split(np.arange(len(here)), max(1, len(here) // 500)):  # 500 images stay in the cache
        images[here[chunk]] = draw(SUPERCLASSES[s], variants[chunk], rng)
    data[part + '_images'], data[part + '_labels'] = images, labels
  return data


def classes():
  """Names and numbers: 100 class names, 20 superclass names (both in the order of their numbers), the list
  fine_to_coarse, and the int array [20, 5] of class numbers by place in SUPERCLASSES and VARIANTS."""
  coarse = sorted('_'.join(parts) for parts in SUPERCLASSES)
  number = np.random.RandomState(NUMBERING_SEED).permutation(100).reshape(20, 5)
  fine, fine_to_coarse = [None] * 100, [None] * 100
  for s, parts in enumerate(SUPERCLASSES):
    for v, variant in enumerate(VARIANTS):
      fine[number[s, v]] = '_'.join((variant, *parts))
      fine_to_coarse[number[s, v]] = coarse.index('_'.join(parts))
  return fine, coarse, fine_to_coarse, number


def draw(superclass, variants, rng):
  """Draws images of one superclass: uint8 [N, 32, 32, 3] for `variants`, int [N], places in VARIANTS."""
  texture, colour, shape = superclass
  n = len(variants)
  small, large, twin, framed, cored = (variants == v for v in range(5))

  def uniform(low, high, *size):
    return rng.uniform(low, high, (n, *size)).astype(np.float32)

  radius = np.select([small | twin, large], [uniform(4.0, 6.3), uniform(8.7, 12.0)], uniform(5.5, 10.5))
  reach = np.maximum(15.5 - 0.8 * radius, 1)
  centre = np.stack([uniform(-1, 1), uniform(-1, 1)]) * reach  # pixels from the middle
  angle = uniform(0, 2 * np.pi)
  offset = np.stack([np.cos(angle), np.sin(angle)]) * (radius * uniform(1.1, 1.4))
  centre = np.where(twin, np.clip(centre, -3, 3) + offset, centre)

  main, second = (np.asarray(c, np.float32) * uniform(0.75, 1.1, 1) + uniform(-0.10, 0.10, 3) for c in COLOURS[colour])
  accent = np.asarray([1, 1, 0.35], np.float32) - main * np.float32(0.6)  # bright, and unlike the shape
  image = background(uniform)
  for x, y, present in (
    (centre[0], centre[1], np.ones(n, bool)),
    (centre[0] - 2 * offset[0], centre[1] - 2 * offset[1], twin),
  ):
    u, v = turned_grid(x, y, uniform(-0.45, 0.45), radius)
    distance = DISTANCES[shape](u, v) * _wide(radius)  # pixels, negative inside
    surface = _blend(_pixels(main), _pixels(second), _mix(texture, u, v, uniform))
    image = _blend(image, surface, _edge(distance) * _wide(present))
    rim = _edge(np.abs(distance) - 1.0) * _wide(framed)
    spot = _edge((np.hypot(u, v) - 0.36) * _wide(radius)) * _wide(cored)
    image = _blend(image, _pixels(accent), np.maximum(rim, spot) * _wide(present))
  image = (image - 0.5) * _pixels(uniform(0.7, 1.1, 1)) + 0.5 + _pixels(uniform(-0.12, 0.12, 1))
  image += rng.standard_normal(image.shape, np.float32) * _pixels(uniform(0.02, 0.09, 1))
  return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def background(uniform):
  """A soft ramp between two dull colours with a stray blob of any colour: float32 [N, 32, 32, 3]."""
  zero = np.float32(0)
  u, _ = turned_grid(zero, zero, uniform(0, 2 * np.pi), np.float32(22))
  one, other = (uniform(0.15, 0.85, 1) + uniform(-0.12, 0.12, 3) for _ in range(2))
  image = _blend(_pixels(one), _pixels(other), np.clip(0.5 + 0.5 * u, 0, 1))
  radius = uniform(2, 5)
  u, v = turned_grid(uniform(-16, 16), uniform(-16, 16), uniform(0, np.pi), radius)
  return _blend(image, _pixels(uniform(0, 1, 3)), _edge((np.hypot(u, 2 * v) - 1) * _wide(radius)))


def turned_grid(x, y, angle, radius):
  """Coordinates u, v [N, 32, 32] of each pixel seen from shapes at x, y (pixels from the middle), turned by `angle`
  (radians), in units of their `radius` (pixels); v points down."""
  axis = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
  dx, dy = axis[None, None, :] - _wide(x), axis[None, :, None] - _wide(y)
  cos, sin = _wide(np.cos(angle) / radius), _wide(np.sin(angle) / radius)
  return dx * cos + dy * sin, dy * cos - dx * sin


def _mix(texture, u, v, uniform):
  """Share of the second colour, 0-1, at each pixel; the pattern is fixed to the shape but for its phase."""
  phase = _wide(uniform(0, 1))
  if texture == 'plain':
    return np.zeros_like(u)
  if texture == 'shaded':
    return np.clip(0.5 + 0.75 * v, 0, 1)
  if texture == 'striped':
    return np.clip(0.5 + 2 * np.sin(2 * np.pi * (1.5 * v + phase)), 0, 1)
  waves = np.sin(2 * np.pi * (1.2 * u + phase)) * np.sin(2 * np.pi * (1.2 * v + phase))
  return np.clip(0.5 + 4 * waves, 0, 1) if texture == 'checked' else np.clip(4 * np.abs(waves) - 1.6, 0, 1)


def _star(u, v):
  turn = np.arctan2(u, -v) * np.float32(5 / (2 * np.pi))
  return np.hypot(u, v) - (0.42 + 0.68 * 2 * np.abs(turn - np.floor(turn) - 0.5))


def _heart(u, v):
  u = np.abs(u)
  lobes = np.hypot(u - 0.46, v + 0.30) - 0.52
  return np.minimum(lobes, np.maximum(0.70 * u + 0.70 * v - 0.52, -0.42 - v + 0.9 * (u - 0.45)))


DISTANCES = {  # about the distance to the outline in units of the radius, negative inside
  'discs': lambda u, v: np.hypot(u, v) - 0.95,
  'squares': lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.82,
  'triangles': lambda u, v: np.maximum(v - 0.62, 0.88 * np.abs(u) - 0.48 * v - 0.48),
  'stars': _star,
  'crosses': lambda u, v: np.maximum(np.minimum(np.abs(u), np.abs(v)) - 0.30, np.maximum(np.abs(u), np.abs(v)) - 1),
  'rings': lambda u, v: np.abs(np.hypot(u, v) - 0.76) - 0.25,
  'crescents': lambda u, v: np.maximum(np.hypot(u, v) - 1, 0.80 - np.hypot(u - 0.52, v)),
  'hearts': _heart,
  'bars': lambda u, v: np.maximum(np.abs(u) - 1.2, np.abs(v) - 0.42),
  'flowers': lambda u, v: np.hypot(u, v) - (0.74 + 0.28 * np.cos(6 * np.arctan2(u, v))),
}


def _edge(distance):
  return np.clip(0.5 - distance, 0, 1)  # over one pixel, so that edges are not jagged


def _blend(below, above, share):
  return below + (above - below) * share[..., None].astype(np.float32)


def _wide(x):
  """[N] as [N, 1, 1], to go with [N, 32, 32]."""
  return np.reshape(x, (-1, 1, 1))


def _pixels(x):
  """[N, C] as [N, 1, 1, C], to go with [N, 32, 32, 3]."""
  return x[:, None, None, :]
