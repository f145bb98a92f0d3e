"""Tests that damaged and odd image files are named, once, and that what is known of a folder has a place."""

import json
import os

import numpy as np
import pictures
import pytest

from splitnet.common.errors import UserError
from splitnet.data import image_files

JPEG, PNG = pictures.jpeg(pictures.gradient(24, 32)), pictures.png(pictures.gradient(24, 32))
DAMAGED = {
  'empty.jpg': (b'', 'is empty'),
  'text.jpg': (b'this is no image\n', 'is a text, and only JPEG and PNG are read'),
  'cut.jpg': (JPEG[: len(JPEG) // 2], 'is cut short or damaged'),
  'cut.png': (PNG[: len(PNG) // 2], 'is cut short or damaged'),
  'header.jpg': (JPEG[:4], 'is cut short or damaged'),
  'header.png': (PNG[:20], 'is cut short or damaged'),
  'animated.gif': (b'GIF89a' + bytes(50), 'is a GIF'),
  'photo.webp': (b'RIFF\x00\x10\x00\x00WEBPVP8 ', 'is a WebP'),
  'phone.heic': (b'\0\0\0\x18ftypheic', 'is a HEIC'),
  'noise.png': (bytes(range(128, 256)), 'is no image'),
  'large.png': (pictures.png_of_size(20000, 20000), 'has 20000 x 20000 pixels, and at most 100 million'),
  'pixel.png': (pictures.png(np.zeros((1, 1, 3), np.uint8)), 'has 1 x 1 pixels, and at least 8'),
  'line.png': (pictures.png(np.zeros((8, 200, 3), np.uint8)), 'more than 20 times'),
}
SOUND = {
  'a.jpg': JPEG, 'a.png': PNG, 'png as.jpg': PNG, 'jpeg as.PNG': JPEG, 'cmyk.jpeg': pictures.CMYK_JPEG,
  'palette.png': pictures.PALETTE_PNG, 'name with spaces.jpg': JPEG, 'émoji 🐱.jpg': JPEG, 'new\nline.jpg': JPEG,
  'grey.jpg': pictures.jpeg(np.full((9, 9, 1), 3, np.uint8)), 'behind.jpg': JPEG + b'more',
  '16bit.png': pictures.png(np.full((9, 9, 3), 999, np.uint16)),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
  for name, (contents, _) in DAMAGED.items():
    pictures.write(tmp_path / name, contents)
  for name, contents in SOUND.items():
    pictures.write(tmp_path / name, contents)
  os.symlink('circle.jpg', tmp_path / 'circle.jpg')
  os.symlink('nowhere', tmp_path / 'broken.jpg')
  os.mkfifo(tmp_path / 'pipe.jpg')
  return str(tmp_path)


@pytest.mark.parametrize('name', DAMAGED)
def test_a_damaged_image_is_told(name, folder):
  assert DAMAGED[name][1] in image_files.fault(os.path.join(folder, name))


@pytest.mark.parametrize('name', SOUND)
def test_odd_but_sound_images_are_read(name, folder):
  assert image_files.fault(os.path.join(folder, name)) is None


@pytest.mark.parametrize('name, reason', [
  ('circle.jpg', 'cannot be read (Too many levels of symbolic links)'), ('pipe.jpg', 'is no file'),
  ('broken.jpg', 'cannot be read (No such file or directory)'),
])  # fmt: skip
def test_what_is_no_file_is_told(name, reason, folder):
  assert image_files.fault(os.path.join(folder, name)) == reason


def test_a_part_of_a_file_may_be_an_image(tmp_path):
  path = pictures.write(tmp_path / 'several', b'xxx' + JPEG + PNG)
  assert image_files.fault(path, (3, len(JPEG))) is None
  assert image_files.fault(path, (3 + len(JPEG), len(PNG))) is None
  assert image_files.fault(path, (3, len(JPEG) // 2)) == 'is cut short or damaged'


def test_images_and_folders_are_listed_without_what_is_hidden_or_no_image(folder):
  for name in ('.hidden.jpg', 'Thumbs.db', 'readme.txt'):
    pictures.write(os.path.join(folder, name), b'x')
  os.mkdir(os.path.join(folder, 'folder.jpg'))
  os.mkdir(os.path.join(folder, '.cache'))
  listed = image_files.images_in(folder)
  assert listed == sorted(os.fsencode(n) for n in [*DAMAGED, *SOUND, 'circle.jpg', 'broken.jpg', 'pipe.jpg'])
  assert image_files.folders_in(folder) == ['folder.jpg']
  with pytest.raises(UserError, match=r"the folder '.*none' cannot be read"):
    image_files.images_in(os.path.join(folder, 'none'))


def test_every_damaged_image_is_named_or_left_out(folder):
  files = np.array(image_files.images_in(folder), object)
  bad = {*DAMAGED, 'circle.jpg', 'broken.jpg', 'pipe.jpg'}
  with pytest.raises(UserError) as e:
    image_files.leave_out(folder, files, False)
  assert f'{len(bad)} of the {len(files)} images' in str(e.value) and 'and 6 more' in str(e.value)
  assert '--skip_damaged' in str(e.value)
  with open(os.path.join(folder, '.splitnet', 'damaged.json'), encoding='utf-8') as f:
    assert set(json.load(f)) == bad
  kept, note = image_files.leave_out(folder, files, True)
  assert {os.fsdecode(file) for file in files[kept]} == set(SOUND)
  assert note.endswith('they are left out')
  kept, note = image_files.leave_out(folder, files[kept], False)
  assert kept.all() and note is None


def test_a_file_is_checked_once_unless_it_changes(folder, monkeypatch):
  files = [b'a.jpg', b'cut.jpg', b'broken.jpg']
  first = image_files.find_faults(folder, files)
  assert [fault.index for fault in first] == [1, 2]
  checked, real = [], image_files.fault
  monkeypatch.setattr(image_files, 'fault', lambda path, place: checked.append(os.path.basename(path)) or real(path))
  assert image_files.find_faults(folder, files) == first
  assert checked == [b'broken.jpg']  # it may be mended without a change of its own
  pictures.write(os.path.join(folder, 'cut.jpg'), JPEG)
  assert [fault.name for fault in image_files.find_faults(folder, files)] == ['broken.jpg']


def test_a_damaged_record_of_checks_is_made_anew(folder):
  pictures.write(os.path.join(folder, '.splitnet', 'checked.json'), b'[1, ')
  assert image_files.find_faults(folder, [b'a.jpg']) == []


def test_a_folder_that_cannot_be_written_has_its_notes_in_the_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  pictures.write(tmp_path / 'data' / '.splitnet', b'a file where a folder should be')
  path = image_files.notebook(str(tmp_path / 'data'), 'x.json')
  assert path.startswith(str(tmp_path / 'cache' / 'splitnet')) and os.path.isdir(os.path.dirname(path))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'data' / '.splitnet'))
  with pytest.raises(UserError, match='set XDG_CACHE_HOME'):
    image_files.notebook(str(tmp_path / 'data'), 'x.json')


@pytest.mark.parametrize('path, expected', [
  ('a b.jpg', "'a b.jpg'"), ('new\nline', "'new\\nline'"), (b'\xff.jpg', "'\\udcff.jpg'"),
])  # fmt: skip
def test_names_are_quoted_so_that_a_terminal_shows_them(path, expected):
  assert image_files.quoted(path) == expected
