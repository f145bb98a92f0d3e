"""More than a hundred odd and damaged image files: each is read or told in a sentence; a run stops or goes on."""

import collections
import json
import os
import socket
import struct
import sys
import zlib

import helpers
import numpy as np
import pictures
import pytest
import tensorflow as tf

import image_folder
import train
from splitnet.common.errors import UserError
from splitnet.data import image_files
from splitnet.data.dataset import DataSettings

IMAGE = pictures.gradient(24, 32)
JPEG, PNG = pictures.jpeg(IMAGE), pictures.png(IMAGE)
BEGIN = JPEG.index(b'\xff\xda')  # of the pixels
FRAME = JPEG.index(b'\xff\xc0') + 5  # height and width


def chunk(kind, content):
  """A chunk of a PNG."""
  return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def grey(shape, dtype=np.uint8):
  return np.full(shape, 77, dtype)


def jpeg_of_size(height, width):
  return JPEG[:FRAME] + struct.pack('>HH', height, width) + JPEG[FRAME + 4 :]


def flipped(content, place):
  return content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]


SOUND, DAMAGED, EITHER = {}, {}, {}  # contents by name; of those in EITHER only decoding tells

# Cut and flipped.
for i, part in enumerate(np.linspace(0.02, 0.97, 10)):
  DAMAGED[f'cut {i}.jpg'] = JPEG[: int(part * len(JPEG))]
  DAMAGED[f'cut {i}.png'] = PNG[: int(part * len(PNG))]
  EITHER[f'flipped {i}.jpg'] = flipped(JPEG, int(part * len(JPEG)))
  EITHER[f'flipped {i}.png'] = flipped(PNG, int(part * len(PNG)))
DAMAGED.update({'begins.jpg': JPEG[:2], 'begins.png': PNG[:8], 'shifted.jpg': b'\0' + JPEG, 'twice.png': PNG[:40] * 2})
# Something else, or nothing.
DAMAGED.update({f'empty.{ending}': b'' for ending in ('jpg', 'PNG', 'jpeg', 'gif')})
DAMAGED.update({
  'text.jpg': b'not an image\n', 'page.png': b'<!DOCTYPE html><html></html>', 'list.jpeg': b'[1, 2]',
  'zip.jpg': b'PK\3\4..', 'print.png': b'%PDF-1.7\n', 'program.jpg': b'\x7fELF\2\1\1', 'zeros.png': bytes(5000),
  'ones.jpg': b'\xff' * 5000, 'animated.gif': b'GIF89a' + bytes(99), 'photo.webp': b'RIFF\x20\0\0\0WEBPVP8 ',
  'phone.heic': b'\0\0\0\x18ftypheic',
  'phone.avif': b'\0\0\0\x18ftypavif', 'film.jpg': b'\0\0\0\x18ftypmp42', 'scan.tif': b'II*\0' + bytes(40),
  'scan.tiff': b'MM\0*' + bytes(40), 'paint.bmp': b'BM' + bytes(60), 'film.jp2': b'\0\0\0\x0cjP  ',
  'GIF as.jpg': b'GIF87a' + bytes(99), 'grey.pgm': b'P5 8 8 255\n' + bytes(64), 'utf16.png': 'text'.encode('utf-16'),
})  # fmt: skip
# Sizes.
DAMAGED.update({
  'pixel.png': pictures.png(grey((1, 1, 3))), 'pixel.jpg': pictures.jpeg(grey((1, 1, 3))),
  'small.png': pictures.png(grey((7, 8, 3))), 'line.png': pictures.png(grey((8, 161, 3))),
  'column.jpg': pictures.jpeg(grey((200, 9, 3))), 'huge.png': pictures.png_of_size(20000, 20000),
  'huger.png': pictures.png_of_size(2**31 - 1, 2**31 - 1), 'none.png': pictures.png_of_size(0, 0),
  'huge.jpg': jpeg_of_size(20000, 20000), 'largest.jpg': jpeg_of_size(65535, 65535), 'none.jpg': jpeg_of_size(0, 0),
  'wide.jpg': jpeg_of_size(8, 65535),
})  # fmt: skip
SOUND.update({'least.png': pictures.png(grey((8, 8, 3))), 'longest.png': pictures.png(grey((8, 160, 3)))})
EITHER['taller than its pixels.jpg'] = jpeg_of_size(240, 32)
# Kinds of pixels.
for name, image in {
  'grey': grey((9, 9, 1)), 'grey alpha': grey((9, 9, 2)), 'alpha': grey((9, 9, 4)),
  '16 bits': grey((9, 9, 3), np.uint16), '16 grey': grey((9, 9, 1), np.uint16), '16 alpha': grey((9, 9, 4), np.uint16),
}.items():  # fmt: skip
  SOUND[name + '.png'] = pictures.png(image)
SOUND.update({
  'cmyk.jpg': pictures.CMYK_JPEG, 'palette.png': pictures.PALETTE_PNG, 'grey.jpg': pictures.jpeg(grey((9, 9, 1))),
  'progressive.jpg': tf.io.encode_jpeg(IMAGE, progressive=True).numpy(),
  'coarse.jpg': tf.io.encode_jpeg(IMAGE, quality=1).numpy(),
  'notes.jpg': tf.io.encode_jpeg(IMAGE, xmp_metadata='<x/>').numpy(),
  'more behind.jpg': JPEG + b'more', 'more behind.png': PNG + PNG,
  'several frames.png': PNG[:33] + chunk(b'acTL', struct.pack('>II', 2, 0)) + PNG[33:],
  'note.png': PNG[:33] + chunk(b'tEXt', b'Title\0text') + PNG[33:],
  'filled.jpg': JPEG[:2] + b'\xff' * 5 + JPEG[2:], 'comment.jpg': JPEG[:2] + b'\xff\xfe\0\x06text' + JPEG[2:],
})  # fmt: skip
DAMAGED['wrong sum.png'] = flipped(PNG, 29)
# Names.
SOUND.update(dict.fromkeys([
  'png as.jpg', 'UPPER.PNG', 'a b  c.png', '🐱.png', 'é.png', 'line\nfeed.png', 'tab\t.png', '[a]*?.png', '-dash.png',
  '%s%d.png', '{x}.png', "quote's\".png", 'back\\slash.png', 'two.png.png', 'שלום.png', '$HOME.png', '~.png', '#;&.png',
  'x' * 251 + '.png',
  '\udcff\udcfe.png',
], PNG))  # fmt: skip
SOUND['jpeg as.png'] = JPEG
COUNT = len(SOUND) + len(DAMAGED) + len(EITHER)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """All of them in one of two classes, with links and devices; the other class has thirty plain images."""
  root = tmp_path_factory.mktemp('odd')
  pictures.folder(root, ['plain'], 30)
  os.mkdir(root / 'odd')
  for name, contents in {**SOUND, **DAMAGED, **EITHER}.items():
    pictures.write(os.path.join(root, 'odd', name), contents)
  os.symlink('circle.jpg', root / 'odd' / 'circle.jpg')
  os.symlink('nowhere', root / 'odd' / 'broken.jpg')
  os.symlink('../plain', root / 'odd' / 'folder.jpg')  # a folder, whatever it is called
  os.symlink('/dev/zero', root / 'odd' / 'endless.jpg')
  os.symlink('../plain/00.jpg', root / 'odd' / 'link.jpg')
  os.mkfifo(root / 'odd' / 'pipe.png')
  with socket.socket(socket.AF_UNIX) as server:
    os.chdir(root / 'odd')  # a socket's path must be short
    server.bind('socket.jpg')
    os.chdir(helpers.PROJECT)
  pictures.write(root / 'odd' / 'secret.jpg', JPEG)
  os.chmod(root / 'odd' / 'secret.jpg', 0)
  return root


LINKS = {'circle.jpg', 'broken.jpg', 'endless.jpg', 'pipe.png', 'socket.jpg'}


def test_there_are_a_hundred():
  assert COUNT + len(LINKS) > 100 and len(DAMAGED) > 50


@pytest.mark.parametrize('kind', ['damaged', 'sound', 'either'])
def test_each_is_read_or_told_in_the_end_of_a_sentence(kind, folder):
  for name in {'damaged': {*DAMAGED, *LINKS}, 'sound': {*SOUND, 'link.jpg'}, 'either': EITHER}[kind]:
    reason = image_files.fault(os.path.join(folder, 'odd', name))
    assert reason is None if kind == 'sound' else reason or kind == 'either', (name, reason)
    assert reason is None or (reason.isprintable() and 5 < len(reason) < 120), (name, reason)


@pytest.mark.slow
def test_a_run_stops_or_goes_on_as_the_flag_says(folder, tmp_path, capsys):
  more = ['--dataset', 'image_folder', '--image_size', '16', *helpers.NETWORK, '--max_steps', 12, '--val_interval', 6]
  arguments = helpers.flags('baseline', str(folder), str(tmp_path / 'run'), *more)
  code, _, err = helpers.call(train, arguments, capsys)
  assert code == 1 and err.count('\n') == 1 and '--skip_damaged True' in err and not os.path.exists(tmp_path / 'run')
  code, out, err = helpers.call(train, [*arguments, '--skip_damaged', 'True'], capsys)
  assert code == 0, err
  assert 'they are left out' in out and 'done at step 12' in out
  with open(folder / '.splitnet' / 'damaged.json', encoding='utf-8') as f:
    told = {os.path.basename(name) for name in json.load(f)}
  assert told >= {*DAMAGED, *LINKS} and not told & SOUND.keys()


@pytest.mark.slow
def test_every_image_that_is_not_left_out_is_read(folder):
  opened = image_folder.open_dataset(DataSettings(str(folder), image_size=16, skip_damaged=True))
  with pytest.raises(UserError, match=r'images in .* cannot be used'):
    image_folder.open_dataset(DataSettings(str(folder), image_size=16))
  counts = collections.Counter()
  for subset in ('train', 'val', 'test'):
    data = opened.load(subset)
    for images, labels in data.evaluation_batches(7, crops=10):
      counts.update(labels.numpy().tolist())
      assert images.shape[0] == 10 * len(labels)
    for images, _, _ in data.training_batches(7, 0).take(1 + len(data.labels) // 7):
      assert images.shape == (7, 16, 16, 3)
  secret = os.access(folder / 'odd' / 'secret.jpg', os.R_OK)
  assert counts[1] == 30 and len(SOUND) + 1 + secret <= counts[0] <= len(SOUND) + len(EITHER) + 2


def test_names_that_are_not_utf8_are_divided_alike_again(folder):
  subsets = [
    sorted(image_folder.open_dataset(DataSettings(str(folder), image_size=16, skip_damaged=True)).load('train').files)
    for _ in range(2)
  ]
  assert subsets[0] == subsets[1] and sys.getfilesystemencoding() == 'utf-8'
