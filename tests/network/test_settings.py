"""settings.py: what flags and checkpoints say of a network, and the sentences if they contradict one another."""

import pytest
from graphs import TINY

from alexnet_split import AlexNet
from resnet_split import ResNet18, WideResNet
from splitnet.common.errors import UserError
from splitnet.network import settings

NETWORKS = {kind.network: kind for kind in (WideResNet, ResNet18, AlexNet)}


def resolve(stored=None, **asked):
  return settings.resolve(NETWORKS, asked, stored, "the basemodel 'runs/x'", 'start from another checkpoint')


def test_the_notation_of_groups():
  fields = settings.group_fields
  assert fields(WideResNet, '2-4-8') == {'ngroups1': 8, 'ngroups2': 4, 'ngroups3': 2}
  assert fields(AlexNet, '1-1-3') == {'ngroups1': 3, 'ngroups2': 1, 'ngroups3': 1, 'ngroups4': 1, 'ngroups5': 1}
  assert fields(AlexNet, '2-2-2-2-2') == {f'ngroups{i}': 2 for i in range(1, 6)}
  for split in ('1-1-1', '1-1-3', '2-4-8', '2-2-2-3', '1-2-2-2', '2-2-2-2-2'):
    short = split.removeprefix('1-') if len(split) > 5 else split  # depths that are not split are left out
    assert AlexNet.of_split(split).split == short
    assert AlexNet.of_split(split).graph().split == short


@pytest.mark.parametrize('text', ['', '2-2', '2-2-', '2--2-2', '2-0-2', '-2-2-2', '2x5', '2,2,2', 'two'])
def test_no_groups_are_one_sentence(text):
  with pytest.raises(UserError, match=f"^'{text}' is no split: it must be three numbers of groups or more"):
    settings.group_fields(AlexNet, text)


def test_the_default_is_the_first_network():
  assert resolve() == WideResNet()
  assert resolve(k=1, ngroups3=1).split == '1-2-2'
  assert resolve(network='alexnet', groups='2-4-8', num_classes=20) == AlexNet(
    num_classes=20, ngroups1=8, ngroups2=4, ngroups3=2
  )


def test_a_checkpoint_comes_before_flags_and_defaults():
  stored = ResNet18(width=2, ngroups1=4, num_classes=20).to_dict()
  assert resolve(stored) == resolve(stored, width=2, groups='2-2-4') == ResNet18(width=2, ngroups1=4, num_classes=20)
  for name in ('ngroups1', 'ngroups2', 'ngroups3', 'ngroups4', 'ngroups5'):  # a baseline's do not matter
    del stored[name]
  assert resolve(stored, groups='2-2-2-3').split == '2-2-2-3'


@pytest.mark.parametrize('kind', TINY)
def test_settings_are_plain_data(kind):
  made = kind.of_split('2-3-5', **TINY[kind])
  assert settings.from_dict(NETWORKS, made.to_dict()) == made
  assert made.dense().split == '1-1-1' and made.dense() == made.dense().dense() != made


def test_a_configuration_of_a_version_before_is_a_wide_residual_network():
  stored = dict(k=1, num_residual_units=1, num_classes=20, ngroups1=4, ngroups2=2, ngroups3=1, branch_input='all',
                bn_no_scale=False)  # fmt: skip
  assert settings.from_dict(NETWORKS, stored) == WideResNet(**stored)
  assert resolve(stored) == WideResNet(**stored)
  with pytest.raises(UserError, match="--network is alexnet, but the basemodel 'runs/x' was made with --network wrn"):
    resolve(stored, network='alexnet')


@pytest.mark.parametrize('asked, words', [
  (dict(network='vgg'), ["--network is 'vgg'", 'wrn, resnet18 or alexnet']),
  (dict(groups='2-2-2-2'), ['the split 2-2-2-2 has 4 depths', 'wrn', 'only 3', 'unit_2, unit_3, logits']),
  (dict(network='alexnet', groups='1-1-1-1-2-2'), ['has 6 depths', 'alexnet', 'only 5']),
  (dict(network='alexnet', k=2), ['--k is of --network wrn', '--network alexnet has', '--width']),
  (dict(width=2), ['--width is of --network resnet18 or alexnet', '--network wrn has']),
  (dict(groups='2-2-4', ngroups1=2), ['--ngroups1 is 2', '--groups 2-2-4 says 4']),
  (dict(groups='4-2-2', network='resnet18'), ['--ngroups3 is 4', '--ngroups2', 'only 2', 'conv4']),
  (dict(groups='2-2-101'), ['--ngroups1 is 101', '100 classes']),
  (dict(branch_input='some'), ["'some'", 'group or all']),
  (dict(num_classes=0), ['--num_classes is 0']),
  (dict(image_size=0), ['--image_size is 0']),
  (dict(k=0), ['--k is 0']),
])  # fmt: skip
def test_what_cannot_be_asked_for_is_one_sentence(asked, words):
  with pytest.raises(UserError) as error:
    resolve(**asked)
  assert all(word in str(error.value) for word in words) and '\n' not in str(error.value), error.value


@pytest.mark.parametrize('asked, words', [
  (dict(network='resnet18'), ['--network is resnet18', "'runs/x' was made with --network alexnet", 'leave the flag']),
  (dict(width=0.5), ['--width is 0.5', '--width 1.0', 'start from another checkpoint']),
  (dict(ngroups2=8), ['--ngroups2 is 8', '--ngroups2 4']),
  (dict(groups='2-8-8'), ['--ngroups2 (of --groups 2-8-8) is 8', '--ngroups2 4']),
  (dict(k=8), ['--k is of --network wrn', '--network alexnet has']),
])  # fmt: skip
def test_what_contradicts_a_checkpoint_is_one_sentence(asked, words):
  with pytest.raises(UserError) as error:
    resolve(AlexNet(ngroups1=8, ngroups2=4).to_dict(), **asked)
  assert all(word in str(error.value) for word in words), error.value


def test_a_checkpoint_of_a_network_that_there_is_not_is_one_sentence():
  with pytest.raises(UserError, match="'vgg'; it must be wrn, resnet18 or alexnet"):
    settings.from_dict(NETWORKS, {'network': 'vgg'})
  with pytest.raises(UserError, match='--depth is of no network of this version'):
    settings.from_dict(NETWORKS, {'network': 'wrn', 'depth': 3})
