"""report.py: what its one file holds, what is left out, and what is refused."""

import html.parser
import json
import os
import re

import helpers
import pytest

from serving import report


class Page(html.parser.HTMLParser):
  """What a page refers to and shows."""

  def __init__(self, text):
    super().__init__()
    self.links, self.text, self.open = [], '', []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.links += [value for name, value in attributes if name in ('src', 'href')]
    if tag not in ('meta', 'img', 'br'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


@pytest.fixture(scope='module')
def written(tmp_path_factory, runs, data):
  """A report of a dense network, from eval.py's file, and of a split one, from its checkpoint: its path."""
  folder = tmp_path_factory.mktemp('report')
  result = helpers.evaluated(tmp_path_factory, 'baseline')
  (folder / 'dense.json').write_text(json.dumps(result))
  path = str(folder / 'report.html')
  arguments = [f'dense={folder}/dense.json', f'split={runs["split"]}', '--data_dir', data, '--out', path]
  assert report.main([*arguments, '--title', 'Two <networks>', '--samples', '6']) == 0
  return path


def read(path):
  with open(path, encoding='utf-8') as f:
    return f.read()


@pytest.mark.slow
def test_a_report_is_one_file_that_says_everything(tmp_path_factory, runs, written):
  page = Page(read(written))
  assert not page.open, 'every element is closed'
  assert page.links and all(link.startswith('data:image/') for link in page.links), 'nothing is read from elsewhere'
  kinds = [link.split(';')[0] for link in page.links]
  assert kinds.count('data:image/svg+xml') == 1 and kinds.count('data:image/png') == 2 + 2 + 6
  text = ' '.join(page.text.split())
  assert 'Two <networks>' in text
  for stage, name in (('baseline', 'dense'), ('split', 'split')):
    result = helpers.evaluated(tmp_path_factory, stage)
    for value in (f'{100 * result["accuracy"]:.2f} %', f'{result["parameters"]:,}', f'{result["flops"]:,}'):
      assert value in text, (name, value)
  assert 'WRN-10-1, split 1-2-3' in text and 'unit_3, branch 1' in text and 'logits, branch 2' in text
  assert 'python train.py --mode split' in text and 'lr_schedule' in text
  classes = helpers.evaluated(tmp_path_factory, 'split')['class_accuracy']
  assert all(name in text for name in classes)
  assert len(re.findall('<small>branch [012]</small>', read(written))) == 6 * 5, 'of every answer'


def test_the_branches_add_up_to_the_network(tmp_path_factory, runs, data):
  result = helpers.evaluated(tmp_path_factory, 'split')
  model = report.Model(runs['split'], data)
  tree = report.tree_of(model.network, model.class_names, result)['root']

  def every(node):
    return [node, *(below for child in node['children'] for below in every(child))]

  nodes = every(tree)
  assert sum(node['parameters'] for node in nodes) == result['parameters']
  assert sum(node['flops'] for node in nodes) == result['flops']
  assert [len(node['children']) for node in nodes] == [1, 2, 2, 0, 0, 1, 0]
  listed = [', '.join(node['classes']) for node in nodes if node['classes']]
  assert len(listed) == 3


def test_what_is_gone_is_left_out(tmp_path_factory, tmp_path):
  result = dict(helpers.evaluated(tmp_path_factory, 'split'), checkpoint='gone/ckpt-6')
  (tmp_path / 'split.json').write_text(json.dumps(result))
  assert report.main([str(tmp_path / 'split.json'), '--out', str(tmp_path / 'report.html')]) == 0
  page = Page(read(tmp_path / 'report.html'))
  assert len(page.links) == 1 and 'not there any more' in page.text  # the confusion matrix


REFUSED = {
  'nothing': (['NEW/none'], 'NEW/none'),
  'no result': (['NEW/none.json'], 'NEW/none.json'),
  'another split': (['RESULT', 'OTHER'], 'evaluate them alike'),
  'images': (['RUN', '--data_dir', 'NEW/none'], 'NEW/none'),
  'out': (['RESULT', '--out', 'NEW/none.json/x/report.html'], 'none.json'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_a_mistake_is_one_sentence(tmp_path_factory, runs, tmp_path, capsys, case):
  arguments, words = REFUSED[case]
  result = helpers.evaluated(tmp_path_factory, 'split')
  (tmp_path / 'result.json').write_text(json.dumps(result))
  (tmp_path / 'other.json').write_text(json.dumps(dict(result, split='val')))
  if case == 'out':
    (tmp_path / 'none.json').write_text('')

  def filled(text):
    for short, long in (('NEW', ''), ('RESULT', 'result.json'), ('OTHER', 'other.json')):
      text = text.replace(short, str(tmp_path / long))
    return text.replace('RUN', runs['split'])

  given = [filled(argument) for argument in ['--out', 'NEW/report.html', *arguments]]
  code, _, stderr = helpers.call(report, given, capsys)
  assert code == 1 and stderr.startswith('report.py: ') and stderr.count('\n') == 1 and filled(words) in stderr
  assert not (tmp_path / 'report.html').exists()


def test_the_report_is_whole_or_not_there(written):
  assert os.listdir(os.path.dirname(written)).count('report.html') == 1
  assert read(written).startswith('<!doctype html>') and read(written).rstrip().endswith('</html>')
