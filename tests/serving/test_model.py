"""model.py, publish.py and infer.py on checkpoints: the same answers wherever the network lies; the README's lines."""

import json
import os
import re
import shutil

import helpers
import numpy as np
import pytest
from PIL import Image

import cifar100
import eval as evaluation
import train
from paper import figures
from serving import export, infer, publish, report
from serving.model import Model
from splitnet.common.errors import UserError
from splitnet.training import checkpoints


@pytest.fixture(scope='module')
def published(tmp_path_factory, runs):
  """A published folder of the split run's last checkpoint."""
  folder = tmp_path_factory.mktemp('published')
  result = helpers.evaluated(tmp_path_factory, 'split')
  (folder / 'eval.json').write_text(json.dumps(result))
  out = str(folder / 'wrn-10-1')
  assert publish.main([runs['split'], out, '--result', str(folder / 'eval.json')]) == 0
  return out


@pytest.fixture
def picture(data, tmp_path):
  """The path of a test image as PNG, and its pixels."""
  pixels = cifar100.load(data, 'test').images[0]
  path = str(tmp_path / 'photo.png')
  Image.fromarray(pixels).save(path)
  return path, pixels


@pytest.mark.parametrize('stage', ['baseline', 'group', 'split'])
def test_a_model_answers_as_its_network(runs, data, picture, stage):
  model, path = Model(runs[stage], data), picture[0]
  logits = checkpoints.load_network(helpers.read_checkpoint(runs[stage]))(cifar100.whiten(picture[1][None])).numpy()[0]
  best = np.argsort(-logits)[:5]
  answers = model.predict(path)
  assert [name for name, _, _ in answers] == [f'class_{c:02d}' for c in best]
  shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
  np.testing.assert_allclose([share for _, share, _ in answers], shares[best], rtol=1e-4)
  if stage == 'baseline':
    assert model.groups is None and {group for _, _, group in answers} == {None}
  else:
    assert sorted(name for group in model.groups for name in group) == sorted(model.class_names)
    assert all(name in model.groups[group] for name, _, group in answers)


@pytest.mark.parametrize('dataset, words', [('mnist', "trained on 'mnist', which this"), (['x'], 'config.json')])
def test_a_data_set_that_is_not_there_is_told_by_every_program(runs, data, tmp_path, capsys, dataset, words):
  run = str(tmp_path / 'run')
  shutil.copytree(runs['split'], run)
  with open(os.path.join(run, 'config.json'), encoding='utf-8') as f:
    content = json.load(f)
  content['settings']['dataset'] = dataset
  with open(os.path.join(run, 'config.json'), 'w', encoding='utf-8') as f:
    json.dump(content, f)
  with pytest.raises(UserError, match=words):
    Model(run, data)
  for program, more in (
    (evaluation, ['--checkpoint', run]), (export, ['--checkpoint', run, '--out', str(tmp_path / 'out')]),
    (figures, ['5', '--checkpoint', run]), (report, [run, '--out', str(tmp_path / 'report.html')]),
  ):  # fmt: skip
    code, _, err = helpers.call(program, more, capsys)
    assert code == 1 and words in err and err.count('\n') == 1, err


@pytest.mark.slow
def test_what_is_published_needs_no_data(runs, data, published, picture, capsys, monkeypatch, tmp_path):
  assert sorted(os.listdir(published))[:2] == ['MODEL_CARD.md', 'checkpoint']
  before, after = helpers.read_checkpoint(runs['split']), helpers.read_checkpoint(published)
  helpers.assert_same(before.values, after.values)
  helpers.assert_same(before.groups, after.groups)
  assert not [name for name in helpers.weights(published) if name.startswith('momentum')]
  assert after.configuration['settings']['train_dir'] is None
  assert str(tmp_path.parent) not in json.dumps(after.configuration)
  monkeypatch.chdir(tmp_path)  # where there is no CIFAR-100
  assert Model(published).predict(picture[0]) == Model(runs['split'], data).predict(picture[0])
  assert figures.main(['5', '--checkpoint', published, '--output', 'fig5.png']) == 0 and os.path.getsize('fig5.png')
  capsys.readouterr()
  code, out, err = helpers.call(infer, ['--checkpoint', published, picture[0], '--top', 2], capsys)
  assert (code, err) == (0, '') and len(out.splitlines()) == 3 and Model(published).predict(picture[0])[0][0] in out


def test_a_card_says_how_it_was_made_and_how_good_it_is(tmp_path_factory, published):
  result = helpers.evaluated(tmp_path_factory, 'split')
  with open(os.path.join(published, 'MODEL_CARD.md'), encoding='utf-8') as f:
    card = f.read()
  assert f'{100 * result["accuracy"]:.2f} % of 70 images (test)' in card and f'{result["parameters"]:,}' in card
  stages = re.findall(r'^ {4}python train.py --mode (\w+)', card, re.MULTILINE)
  assert stages == ['baseline', 'group', 'split'] and '--data_dir' not in card
  assert 'Licence' in card and 'Group 2: class_' in card


def test_a_command_is_shown_as_it_counted():
  words = ['--mode', 'split', '--data_dir', '/a/b', '--train_dir=/runs/x', '--epochs', '3', '--brief', '--train_dir',
           'mine', '--k=1', '--epochs=5', '--data_dir=/c']  # fmt: skip
  assert publish.shown(words) == ['--mode', 'split', '--brief', '--train_dir', 'mine', '--k', '1', '--epochs', '5']


@pytest.mark.slow
def test_what_is_published_is_evaluated_and_gone_on_from(data, published, tmp_path, tmp_path_factory):
  path = str(tmp_path / 'eval.json')
  assert evaluation.main(['--checkpoint', published, '--data_dir', data, '--output_file', path]) == 0
  with open(path, encoding='utf-8') as f:
    assert json.load(f)['confusion'] == helpers.evaluated(tmp_path_factory, 'split')['confusion']
  folder = str(tmp_path / 'run')
  assert train.main(helpers.flags('split', data, folder, '--basemodel', published, '--max_steps', 1)) == 0


@pytest.mark.slow
def test_what_is_published_is_exported_without_the_data(published, picture, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # where there is no CIFAR-100
  assert export.main(['--checkpoint', published, '--branches', '--out', 'exported']) == 0
  exported, model = infer.Export('exported', branches=True), Model(published)
  assert sorted(exported.class_names) == sorted(model.class_names)
  best = exported(picture[1][None])[0].argmax()
  assert exported.class_names[best] == model.predict(picture[0])[0][0]


def test_publishing_replaces_only_its_own_and_takes_only_a_result_of_it(runs, published, tmp_path, capsys):
  result = os.path.join(os.path.dirname(published), 'eval.json')
  own = str(tmp_path / 'own')
  shutil.copytree(published, own)
  assert publish.main([runs['split'], own, '--result', result]) == 0
  for arguments, words in [
    ([runs['split'], str(tmp_path), '--result', result], 'MODEL_CARD.md'),
    ([runs['group'], str(tmp_path / 'new'), '--result', result], 'is about'),
    ([helpers.RELEASED, str(tmp_path / 'new'), '--result', result], 'released'),
    ([runs['split'], str(tmp_path / 'new'), '--result', 'none.json'], 'none.json'),
  ]:
    code, _, stderr = helpers.call(publish, arguments, capsys)
    assert code == 1 and words in stderr and stderr.count('\n') == 1, stderr
  assert not (tmp_path / 'new').exists()


def test_infer_takes_the_first_of_the_networks_in_the_box(published, picture, capsys, monkeypatch, tmp_path):
  monkeypatch.setattr(infer, 'PROJECT', str(tmp_path))
  code, _, err = helpers.call(infer, [picture[0]], capsys)
  assert code == 1 and err.count('\n') == 1 and '--checkpoint or --export' in err
  shutil.copytree(published, tmp_path / 'pretrained' / 'a network')
  code, out, _ = helpers.call(infer, [picture[0]], capsys)
  assert code == 0 and Model(published).predict(picture[0])[0][0] in out.splitlines()[1]
  code, _, err = helpers.call(infer, ['--checkpoint', published, '--export', 'x', picture[0]], capsys)
  assert code == 1 and 'give one' in err


def test_the_readmes_lines_of_python(picture, tmp_path, monkeypatch, capsys):
  with open(os.path.join(helpers.PROJECT, 'README.md'), encoding='utf-8') as f:
    [block] = re.findall(r'```python\n(.*?)```', f.read(), re.DOTALL)
  os.symlink(os.path.join(helpers.PROJECT, 'pretrained'), tmp_path / 'pretrained')
  os.symlink(picture[0], tmp_path / 'photo.jpg')
  monkeypatch.chdir(tmp_path)
  exec(compile(block, 'README.md', 'exec'), {})
  assert 'apple' in capsys.readouterr().out


@pytest.mark.parametrize('of', [[0, 1], [20] * 100])
def test_names_that_are_not_the_networks_are_refused(published, of):
  stored = helpers.read_checkpoint(published)
  assert checkpoints.published_names(stored).coarse[3] == 'superclass_03'
  stored.configuration['data']['superclass_of_class'] = of
  with pytest.raises(UserError, match=r'names of the classes .* are damaged'):
    checkpoints.published_names(stored)
