"""compare.py: results of eval.py side by side, and what it refuses."""

import json

import pytest

from splitnet.reporting import compare


def test_stages_stand_side_by_side_and_groups_by_class_name(tmp_path, capsys):
  def write(name, accuracy, parameters, **more):
    result = dict(accuracy=accuracy, top5_accuracy=0.9, parameters=parameters, flops=10 * parameters)
    result.update(dict(images=10000, split='test'), **more)
    (tmp_path / name).write_text(json.dumps(result))
    return f'{name}={tmp_path / name}'

  of = {'ant': 'insects', 'bee': 'insects', 'oak': 'trees', 'elm': 'trees'}
  groups = dict(
    groups=[['ant', 'oak'], ['bee', 'elm']], agreement=0.5, superclass_of_class=of, confusion_picture='x.png'
  )
  assert compare.main([write('dense', 0.5, 1000), write('split', 0.25, 500, **groups)]) == 0
  output = capsys.readouterr().out
  assert '\n10,000 images (test)\n' in output
  assert '50.00 %' in output and '500 ( 50 %)' in output and '5,000 ( 50 %)' in output
  assert 'group 1: 2 classes, 0 whole superclasses\n  1 of 2 insects: bee\n  1 of 2 trees: elm\n' in output
  assert 'agreement with the superclasses: 0.50' in output and 'confusion matrices:\n  x.png\n' in output
  assert output.index('agreement') < output.index('dense '), 'the table comes last'
  whole = dict(groups, groups=[['ant', 'bee'], ['oak', 'elm']])
  assert compare.main([write('split', 0.25, 500, **whole)]) == 0
  output_of_whole = capsys.readouterr().out
  assert 'group 0: 2 classes, 1 whole superclasses\n  insects\n\ngroup 1' in output_of_whole
  # Accuracies on other images do not stand beside each other as if they were on the same.
  assert compare.main([write('dense', 0.5, 1000), write('other', 0.25, 500, images=5000, split='val')]) == 0
  other = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('other'))
  assert other.endswith('of 5,000 images (val)')


@pytest.mark.parametrize('content', [None, 'nonsense', '[]', '{}'])
def test_a_file_of_something_else_is_one_sentence(content, tmp_path, capsys):
  path = tmp_path / 'result.json'
  if content is not None:
    path.write_text(content)
  assert compare.main([f'dense={path}']) == 1
  error = capsys.readouterr().err
  assert error.startswith('compare.py: ') and str(path) in error and error.count('\n') == 1
