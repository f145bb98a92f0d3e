"""Tests that the benchmark of image files measures every row."""

import json

import helpers
import pictures
import pytest

from benchmarks import input as benchmark


@pytest.mark.slow
def test_every_row_is_measured_and_written(tmp_path, capsys):
  folder = pictures.folder(tmp_path / 'images', ['cat', 'dog'], 12)
  arguments = ['--data_dir', folder, '--image_size', 16, '--batch_size', 4, '--seconds', 0.01, '--repeats', 2]
  arguments += ['--memory_images', 20, '--cache', '--output', tmp_path / 'result.json']
  code, out, err = helpers.call(benchmark, arguments, capsys)
  assert code == 0, err
  for name in ('decode', 'train', 'evaluate', 'cached'):
    assert f'| {name} ' in out
  with open(tmp_path / 'result.json', encoding='utf-8') as f:
    result = json.load(f)
  assert result['images'] == 20 and [len(turns) for turns in result['turns'].values()] == [2] * 4


def test_a_folder_without_images_is_a_sentence(tmp_path, capsys):
  code, _, err = helpers.call(benchmark, ['--data_dir', tmp_path], capsys)
  assert code == 1 and err.startswith('benchmarks.input: ') and 'holds images of 0 classes' in err
