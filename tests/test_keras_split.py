"""keras_split.py: Keras models as graphs, with their weights; what is refused; the whole way to Keras and back."""

import json
import zipfile

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras_models import CLASSES, MODELS, SIZE, images, logits_of, scrambled
from networks import assert_close, scramble

import cifar100
import eval as evaluation
import keras_split
import train
from keras_split import KerasNetwork
from serving import export
from splitnet.common.errors import UserError
from splitnet.network import branching, counting, folding, hardening
from splitnet.network import layers as graph_layers
from splitnet.network import network as networks
from splitnet.network.graph import Graph, Tree
from splitnet.network.graph_checks import FUNCTIONS
from splitnet.training import checkpoints


def centred(logits):
  return np.asarray(logits) - np.mean(logits, 1, keepdims=True)


def read(path):
  return checkpoints.read(str(path), keras_split.read_other)


def graph_of(stored, split='2-2-4', **more):
  if stored.graph.layers[0].reads == 'unknown':
    more = {'preprocess': 'pixels', **more}
  return KerasNetwork.of_split(split, num_classes=stored.graph.classes.size, **more).of_stored(stored.graph)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """The small models, written by Keras: dict from name to (model, path)."""
  folder, made = tmp_path_factory.mktemp('models'), {}
  keras.utils.set_random_seed(0)
  for name, make in MODELS.items():
    model = scrambled(make())
    model.save(folder / f'{name}.keras')
    made[name] = model, folder / f'{name}.keras'
  return made


def dense_of(stored, graph):
  network = networks.create(graph)
  checkpoints.assign(network.weights, stored.values, 'the model')
  return network


def check_model(model, stored, size, tolerance):
  """Checks that a model that was read computes what Keras does, has as many parameters, and hardens and folds."""
  given, graph = images(size), graph_of(stored)
  dense = dense_of(stored, graph)
  prepare = graph_layers.preparation(graph, None)
  logits = dense(prepare(given))
  assert_close(centred(logits), centred(logits_of(model, given)), tolerance)
  parameters = counting.total(counting.counts(Tree(graph)), everything=True)[0]
  assert parameters == sum(int(np.prod(w.shape)) for w in model.trainable_weights)
  assert parameters == sum(int(np.prod(v.shape)) for v in dense.trained.values())
  assert Graph.from_dict(json.loads(json.dumps(graph.to_dict()))) == graph

  grouping = networks.create(graph, with_assignments=True)
  checkpoints.assign({n: v for n, v in grouping.weights.items() if '/alpha' not in n}, stored.values, 'the model')
  values = {n: v.numpy() for n, v in grouping.weights.items()}
  scramble(grouping)
  checkpoints.assign({n: v for n, v in grouping.weights.items() if '/alpha' not in n}, values, 'before')
  groups = hardening.present_groups(grouping)
  for layer in graph.weighted:
    weights = grouping.weights[layer.weights]
    weights.assign(weights * hardening.kept_weights(graph, layer, groups))
  tree, x = hardening.harden(grouping), prepare(given)
  assert np.abs(grouping(x) - logits).max() > 0.01 * np.abs(logits).max()
  assert_close(tree(x), grouping(x), tolerance)
  assert_close(folding.folded(tree)(x), tree(x), tolerance)
  counted = counting.total(counting.counts(tree), everything=True)[0]
  assert counted == sum(int(np.prod(v.shape)) for v in tree.trained.values()) < parameters


@pytest.mark.parametrize('name', MODELS)
def test_what_is_read_computes_the_same_dense_hardened_and_folded(files, name):
  model, path = files[name]
  check_model(model, read(path), SIZE, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['ResNet50', 'VGG16', 'MobileNet'])
def test_what_keras_brings_along_is_read(tmp_path, name):
  more = {'alpha': 0.25} if name == 'MobileNet' else {}
  keras.utils.set_random_seed(2)  # with some weights a probability is too small for its logarithm
  model = scrambled(getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=7, **more))
  model.save(tmp_path / 'model.keras')
  check_model(model, read(tmp_path / 'model.keras'), 32, 1e-4)


def saved(model, folder):
  """Writes a model as Keras does; returns the path."""
  model.save(folder / 'made.keras')
  return folder / 'made.keras'


def test_every_function_is_that_of_keras(tmp_path):
  functions = [layers.Activation(name, name=name) for name in FUNCTIONS]
  model = keras.Sequential([keras.Input([SIZE, SIZE, 3]), layers.Conv2D(4, 3), *functions, *end()])
  graph, x = read(saved(model, tmp_path)).graph, np.linspace(-5, 5, 41, dtype=np.float32)
  for layer in functions:
    function = graph.by_name[layer.name]
    assert function.op == 'activation'
    assert_close(graph_layers.compute(function, [tf.constant(x)], {}, 41, None), layer(x), 1e-6)


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['tf', 'torch', 'caffe', 'unit'])
def test_images_are_prepared_as_keras_does(files, name):
  model, path = files['direct']
  stored, given = read(path), images()
  if name == 'unit':
    prepared = given / np.float32(255)
  else:
    prepared = keras.applications.imagenet_utils.preprocess_input(given.astype(np.float32), mode=name)
  graph = graph_of(stored, preprocess=name)
  dense = dense_of(stored, graph)
  assert_close(dense(graph_layers.preparation(graph, None)(given)), logits_of(model, prepared), 1e-4)
  again = KerasNetwork.of_split('2-2-4', num_classes=CLASSES, preprocess=name).of_stored(graph)
  assert again == graph  # of a checkpoint the settings are those that it was made with


def test_how_images_are_prepared_must_be_known(files):
  unknown, known = (read(files[name][1]) for name in ('direct', 'residual'))
  with pytest.raises(UserError, match=r'no layer of direct prepares its images .* --preprocess .*: data, pixels, '):
    graph_of(unknown, preprocess='')
  with pytest.raises(UserError, match='--preprocess is unit, but residual prepares its images itself: leave it out'):
    graph_of(known, preprocess='unit')
  with pytest.raises(UserError, match=r'no layer of direct prepares its images: train.py --preprocess says how'):
    graph_layers.preparation(unknown.graph, None)
  assert graph_layers.preparation(graph_of(unknown, preprocess='data'), 'the data') == 'the data'


# --- where it branches ----------------------------------------------------------------------------------------------


def borders(graph):
  return [layer.name for layer in graph.borders.values() if layer]


def test_a_tree_branches_above_the_layers_that_are_named(files):
  stored = read(files['residual'][1])
  assert [layer.name for layer in branching.borders(stored.graph).values()] == [
    'pool', 'sum0', 'end0', 'sum1', 'end1/mean',
  ]  # fmt: skip
  graph = graph_of(stored, split_at='end0, sum1')
  assert borders(graph) == ['end0', 'sum1', 'end1/mean'] and graph.split == '2-2-4'
  # What sums join is one set of units, which serves the highest depth that it is read at.
  assert graph.by_name['b1'].units is graph.by_name['shortcut1'].units is graph.by_name['c1'].units
  assert graph.by_name['c1'].units.groups == 4 and graph.by_name['a1'].units.groups == 2
  assert borders(graph_of(stored, '1-2-2', split_at='b1')) == ['sum1', 'end1/mean']  # up to the next weighted layer
  assert borders(graph_of(stored, '1-1-3')) == borders(graph_of(stored)) == ['end0', 'sum1', 'end1/mean']
  deep = graph_of(stored, '2-2-3-4', split_at='sum0,end0,sum1')
  assert list(deep.depths.values()) == [1, 2, 2, 3, 4]
  again = KerasNetwork.of_split('2-2-3-4', num_classes=CLASSES, split_at='sum0,end0,sum1').of_stored(deep)
  assert again == deep


@pytest.mark.parametrize(
  'split_at, split, sentence',
  [
    ('nothing', '2-2-2', "has no layer 'nothing'; it can branch above: pool, sum0, end0, sum1"),
    ('a1', '1-2-2', "cannot branch above 'a1', since more than one tensor passes; it can"),
    ('sum1,sum0', '2-2-2', "'sum0' does not stand above 'sum1'"),
    ('sum0,b0', '2-2-2', "'b0' does not stand above 'sum0'"),
    ('sum1', '2-2-2', '--groups 2-2-2 divides 2 depths below the classes, but the tree branches above 1 layers'),
  ],
)
def test_where_it_cannot_branch_is_told(files, split_at, split, sentence):
  with pytest.raises(UserError) as caught:
    graph_of(read(files['residual'][1]), split, split_at=split_at)
  assert sentence in str(caught.value) and '\n' not in str(caught.value)


def test_the_program_shows_where_it_can_branch_and_what_that_saves(files, capsys):
  path = files['residual'][1]
  code, out, _ = helpers.call(keras_split, [path, '--groups', '2-2-4', '--split_at', 'sum0,sum1'], capsys)
  assert code == 0
  graph = graph_of(read(path), split_at='sum0,sum1')
  dense = counting.total(counting.counts(Tree(graph)), everything=True)
  split = keras_split.sizes_of(graph)
  assert f'residual: images of {SIZE} x {SIZE} pixels, {CLASSES} classes\n{dense[0]:,} parameters' in out
  assert out.splitlines()[-1] == (
    f'--groups 2-2-4 above sum0, sum1, end1/mean: saves {100 - 100 * split[0] / dense[0]:.1f} % of the parameters and '
    f'{100 - 100 * split[1] / dense[1]:.1f} % of the FLOPs'
  )
  rows = [line for line in out.splitlines() if line.startswith('| ')]
  assert len(rows) == 7 and [' (default)' in row for row in rows] == [False] * 4 + [True] * 2 + [False]
  assert max(map(len, rows)) <= 100


# --- what is refused ------------------------------------------------------------------------------------------------


def end():
  return layers.GlobalAveragePooling2D(), layers.Dense(4, name='classes')


def chain(*middle, size=SIZE, channels=3):
  return keras.Sequential([keras.Input([size, size, channels]), layers.Conv2D(8, 3, name='first'), *middle, *end()])


def joined(join):
  given = keras.Input([SIZE, SIZE, 3])
  x, y = (layers.Conv2D(8, 3, padding='same')(given) for _ in range(2))
  pool, dense = end()
  return keras.Model(given, dense(pool(join(x, y))))


def shared():
  given, conv = keras.Input([SIZE, SIZE, 3]), layers.Conv2D(3, 3, padding='same', name='twice')
  pool, dense = end()
  return keras.Model(given, dense(pool(conv(conv(given)))))


def several_outputs():
  model = chain()
  return keras.Model(model.inputs, [model.outputs[0], model.get_layer('first').output])


@keras.saving.register_keras_serializable('mine')
class Mine(layers.Layer):
  """A layer that only these tests know."""

  def call(self, x):
    return x


class Plain(keras.Model):
  """A model that is Python code."""

  def __init__(self, **keywords):
    super().__init__(**keywords)
    self.inner = chain()

  def call(self, x):
    return self.inner(x)


def called():
  model = Plain()
  model(images().astype(np.float32))
  return model


def sequential(*middle):
  return keras.Sequential([keras.Input([SIZE, SIZE, 3]), *middle])


REFUSED = {
  'joined channels': (lambda: joined(lambda x, y: layers.Concatenate(name='l')([x, y])), "'l' (Concatenate) joins"),
  'a product': (lambda: joined(lambda x, y: layers.Multiply(name='l')([x, y])), "layer 'l' (Multiply) combines"),
  'a difference': (lambda: joined(lambda x, y: x - y), '(Subtract) combines tensors otherwise than by a sum'),
  'a factor': (lambda: joined(lambda x, y: x * 2.0 + y), 'scales what other layers have computed'),
  'groups': (lambda: chain(layers.Conv2D(8, 3, groups=2, name='l')), "layer 'l' is divided into 2 groups of its own"),
  'a dilation': (lambda: chain(layers.Conv2D(8, 3, dilation_rate=2, name='l')), "layer 'l' is dilated"),
  'a window': (lambda: chain(layers.Conv2D(8, (3, 1), name='l')), "layer 'l' has a window (3, 1), while square ones"),
  'strides': (lambda: chain(layers.MaxPooling2D(2, (2, 1), name='l')), "layer 'l' has strides (2, 1)"),
  'multiplied': (lambda: chain(layers.DepthwiseConv2D(3, depth_multiplier=2, name='l')), "layer 'l' writes 2 channels"),
  'attention': (lambda: joined(lambda x, y: layers.Attention(name='l')([x, y])), "layer 'l' (Attention) lets every"),
  'layer norm': (lambda: chain(layers.LayerNormalization(name='l')), "layer 'l' (LayerNormalization) normalises over"),
  'transposed': (lambda: chain(layers.Conv2DTranspose(8, 3, name='l')), "layer 'l' (Conv2DTranspose) is of a kind"),
  'code': (lambda: chain(layers.Lambda(lambda x: x * 2, name='l')), "layer 'l' (Lambda) is Python code"),
  'a class': (lambda: chain(Mine(name='l')), "layer 'l' is of a class of your own ('mine>Mine')"),
  'a function': (lambda: chain(layers.Conv2D(8, 3, activation=minus_one, name='l')), "'l' has an activation of your"),
  'a kind of model': (called, "it is a model of the class 'Plain'"),
  'used twice': (shared, "layer 'twice' is used 2 times"),
  'outputs': (several_outputs, 'it has 1 inputs and 2 outputs'),
  'grey': (lambda: chain(channels=1), 'its input is [None, 16, 16, 1], while (None, SIZE, SIZE, 3)'),
  'any size': (lambda: chain(size=None), 'its input is [None, None, None, 3]'),
  'a sigmoid': (lambda: sequential(*chain().layers, layers.Activation('sigmoid', name='l')), "'l' ends in a sigmoid"),
  'a softmax inside': (lambda: sequential(layers.Flatten(), layers.Softmax(), layers.Dense(3)), 'reads a softmax'),
  'no classes': (lambda: sequential(layers.Conv2D(8, 3, name='l')), "'l' is the last (conv)"),
  'one class': (lambda: sequential(*chain().layers[:-1], layers.Dense(1, name='l')), "'l' writes one output"),
  'bounds': (lambda: chain(layers.ReLU(4.0, name='l')), "layer 'l' (ReLU) has max_value 4.0"),
  'a shape': (lambda: chain(layers.Reshape([28, 7, 8], name='l')), "layer 'l' reshapes to (28, 7, 8)"),
  'padding': (lambda: chain(layers.ZeroPadding2D((1, 2), name='l')), "'l' pads rows by (1, 1) and columns by"),
  'flattened norm': (
    lambda: sequential(layers.Flatten(), layers.BatchNormalization(name='l'), layers.Dense(3)),
    "layer 'l' normalises what is flattened",
  ),
}  # fmt: skip


def minus_one(x):
  return x - 1


@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_split_is_refused_in_a_sentence(tmp_path, case):
  make, sentence = REFUSED[case]
  path = saved(make(), tmp_path)
  with pytest.raises(UserError) as caught:
    read(path)
  text = str(caught.value)
  assert text.startswith(f"'{path}' cannot be split: ") and '\n' not in text
  assert sentence in text


def rewritten(path, to, change):
  """Writes an archive anew, each of its files' bytes as `change` says; returns its path."""
  with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, 'w', zipfile.ZIP_DEFLATED) as new:
    for info in old.infolist():
      content = change(info.filename, old.read(info))
      if content is not None:
        new.writestr(info.filename, content)
  return to


def without(key):
  """Returns a change that leaves a key out of config.json."""

  def change(name, content):
    if name != 'config.json':
      return content
    config = json.loads(content)
    del config['config'][key]
    return json.dumps(config)

  return change


DAMAGED = {
  'no config': lambda name, content: None if name == 'config.json' else content,
  'no weights': lambda name, content: None if name.endswith('.h5') else content,
  'other weights': lambda name, content: b'x' * 1000 if name.endswith('.h5') else content,
  'half the weights': lambda name, content: content[: len(content) // 2] if name.endswith('.h5') else content,
  'no JSON': lambda name, content: b'{' if name == 'config.json' else content,
  'a list': lambda name, content: b'[]' if name == 'config.json' else content,
  'deep': lambda name, content: b'[' * 100_000 if name == 'config.json' else content,
  'no layers': without('layers'), 'no name': without('name'),
  'a bomb': lambda name, content: b' ' * 50_000_000 + content if name == 'config.json' else content,
}  # fmt: skip


@pytest.mark.parametrize('case', DAMAGED)
def test_damaged_files_are_refused_in_a_sentence(files, tmp_path, case):
  path = rewritten(files['direct'][1], tmp_path / 'damaged.keras', DAMAGED[case])
  with pytest.raises(UserError) as caught:
    read(path)
  assert str(path) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('content', [b'', b'PK', b'hello' * 100])
def test_other_files_are_refused_in_a_sentence(files, tmp_path, content):
  for name, bytes_ in (('short', content), ('cut', files['direct'][1].read_bytes()[:1000] + content)):
    path = tmp_path / f'{name}.keras'
    path.write_bytes(bytes_)
    with pytest.raises(UserError, match='is no Keras model, or damaged'):
      read(path)


def test_a_layer_of_another_module_is_not_imported(files, tmp_path):
  def change(name, content):
    return content.replace(b'"keras.layers"', b'"antigravity"') if name == 'config.json' else content

  path = rewritten(files['direct'][1], tmp_path / 'foreign.keras', change)
  with pytest.raises(UserError, match='is of a class of your own'):
    read(path)


@pytest.mark.parametrize('name', ['model.h5', 'folder'])
def test_other_formats_are_told_how_to_become_one(tmp_path, name):
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'folder' / 'saved_model.pb').touch()
  with pytest.raises(UserError, match=r"does not end in .keras: load it in Keras, and model.save\('MODEL.keras'\)"):
    read(tmp_path / name)


def test_flags_of_train(data, tmp_path, capsys):
  def told(*flags):
    return helpers.call(train, ['--mode', 'group', '--train_dir', tmp_path / 'run', *flags], capsys)[2]

  assert 'it must be wrn, resnet18, alexnet or MODEL.keras' in told('--network', 'keras')
  assert "there is no checkpoint 'none.keras'" in told('--network', 'none.keras', '--data_dir', tmp_path)
  assert 'leave one out' in told('--network', 'a.keras', '--basemodel', 'b')
  assert '--split_at is of --network keras' in told('--split_at', 'a', '--data_dir', data)


# --- the whole way --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_that_keras_trained_goes_the_whole_way_and_back(runs, data, tmp_path, capsys):
  """Fit, group, split, evaluate, export; Keras evaluates the export to the same accuracy."""

  def succeed(program, *arguments):
    code, out, stderr = helpers.call(program, arguments, capsys)
    assert code == 0, stderr
    return out

  given, path = keras.Input([32, 32, 3]), tmp_path / 'mine.keras'
  x = layers.Rescaling(1 / 127.5, -1)(given)
  for i, channels in enumerate((8, 16, 16, 24)):
    x = layers.Conv2D(channels, 3, 2, padding='same', use_bias=False, name=f'conv{i}')(x)
    x = layers.ReLU(name=f'relu{i}')(layers.BatchNormalization()(x))
  x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(x))
  model = keras.Model(given, layers.Dense(100, activation='softmax')(x), name='mine')
  model.compile('adam', 'sparse_categorical_crossentropy', metrics=['accuracy'])
  train_images, test = cifar100.load(data, 'train'), cifar100.load(data, 'test')
  model.fit(train_images.images, train_images.labels, 30, 2, verbose=0)
  model.save(path)

  here = ['--checkpoint', path, '--data_dir', data, '--output_file', tmp_path / 'dense.json']
  succeed(evaluation, *here)
  accuracy = model.evaluate(test.images, test.labels, 35, verbose=0)[1]
  assert json.loads((tmp_path / 'dense.json').read_text())['accuracy'] == pytest.approx(accuracy)

  group, split = tmp_path / 'group', tmp_path / 'split'
  asked = ['--network', path, '--split_at', 'conv1,relu2', '--groups', '2-3-4', '--assignment_start', 'spectral']
  succeed(train, *helpers.flags('group', data, str(group), *asked, '--max_steps', 3, '--gamma2', 5))
  succeed(train, *helpers.flags('group', data, str(group), *asked, '--max_steps', 4, '--gamma2', 5))  # goes on
  assert read(group).path.endswith('ckpt-4')
  path.rename(tmp_path / 'gone.keras')  # whatever follows needs the checkpoint alone
  teacher = ['--basemodel', group, '--teacher', tmp_path / 'gone.keras']
  succeed(train, *helpers.flags('split', data, str(split), *teacher, '--max_steps', 3))
  other = ['--basemodel', group, '--teacher', runs['baseline']]
  code, _, stderr = helpers.call(train, helpers.flags('split', data, str(tmp_path / 'other'), *other), capsys)
  assert code == 1 and 'reads prepared images, but the network pixels ones: give a teacher whose images' in stderr
  stored = read(split)
  assert stored.network['split_at'] == 'conv1,relu2' and borders(stored.graph) == ['relu1', 'relu2', 'relu3/mean']
  assert stored.graph.split == '2-3-4' and stored.graph.layers[0].reads == 'pixels'

  out = tmp_path / 'export'
  succeed(export, '--checkpoint', split, '--data_dir', data, '--branches', '--format', 'keras', '--out', out)
  succeed(evaluation, '--checkpoint', split, '--data_dir', data, '--output_file', tmp_path / 'split.json')
  again = keras.saving.load_model(out / 'keras' / 'whole.keras')
  again.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=['accuracy'])
  accuracy = again.evaluate(test.images, test.labels, 35, verbose=0)[1]
  assert json.loads((tmp_path / 'split.json').read_text())['accuracy'] == pytest.approx(accuracy)
  logits = checkpoints.load_network(stored)(test.images.astype(np.float32))
  assert_close(again.predict(test.images, verbose=0), logits, 1e-5)
