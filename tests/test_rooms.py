"""The rule of the house (docs/design.md): which file may import which, read off every file's imports."""

import ast
import glob
import os

import helpers
import pytest

ROOMS = ('common', 'network', 'data', 'parallel', 'reporting', 'training')
# What each room of the library may import beside itself, always to its left.
LEFT = {
  'common': (),
  'network': ('common',),
  'data': ('common',),
  'parallel': ('common', 'network', 'data'),
  'reporting': ('common', 'network', 'data', 'parallel'),
  'training': ('common', 'network', 'data', 'parallel', 'reporting'),
}
PROGRAMS = ('train', 'eval', 'download_cifar100')  # and every module of these folders:
FOLDERS = ('serving', 'paper', 'benchmarks')
CONCRETE = ('resnet_split', 'alexnet_split', 'cifar100', 'imagenet', 'image_folder', 'keras_split')


def module_of(path):
  """The dotted name of a file's module."""
  return path.removesuffix('.py').replace(os.sep, '.').removesuffix('.__init__')


FILES = {
  module_of(path): path
  for pattern in ('*.py', 'splitnet/**/*.py', *(f'{folder}/*.py' for folder in FOLDERS))
  for path in glob.glob(pattern, root_dir=helpers.PROJECT, recursive=True)
}


def imports(module):
  """The modules that a file imports, anywhere in it: those of the project that are files, the others by first name."""
  with open(os.path.join(helpers.PROJECT, FILES[module]), encoding='utf-8') as f:
    tree = ast.parse(f.read())
  names = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{module} has a relative import'
      below = {f'{node.module}.{alias.name}' for alias in node.names} & FILES.keys()
      names |= below or {node.module}
  return {name if name in FILES else name.split('.')[0] for name in names}


def room(module):
  """The room of a module of the library, else None."""
  parts = module.split('.')
  return parts[1] if parts[0] == 'splitnet' and len(parts) > 1 else None


def program(module):
  """The program that a module belongs to (a folder's modules are one), else None."""
  first = module.split('.')[0]
  return first if first in (*PROGRAMS, *FOLDERS) else None


def forbidden(module, imported):
  """Why a module may not import another one, or None."""
  if imported not in FILES:  # not the project's
    return 'utils imports NumPy and TensorFlow only' if module == 'utils' and outside(imported) else None
  if module == 'utils':
    return 'utils imports NumPy and TensorFlow only'
  if room(module):
    if imported == 'utils':
      return None
    if not room(imported):
      return 'the library imports utils and itself'
    if room(imported) not in (room(module), *LEFT[room(module)]):
      return 'inside the library an import points left only'
  elif program(module):
    if program(imported) and program(imported) != program(module):
      return 'a program imports no other program'
  elif module in CONCRETE and program(imported):
    return 'a network or a data set imports no program'
  return None


def outside(name):
  """Whether a module is neither Python's own nor NumPy or TensorFlow."""
  return name not in ('numpy', 'tensorflow', 'collections', 'itertools', 'math', 'functools', 'dataclasses', 'typing')


def test_every_file_has_a_place():
  for module in FILES:
    top = module.split('.')[0]
    assert top in (*PROGRAMS, *FOLDERS, *CONCRETE, 'utils', 'splitnet'), module
    if module not in ('splitnet', 'utils') and top == 'splitnet':
      assert room(module) in ROOMS, module


@pytest.mark.parametrize('module', sorted(FILES))
def test_imports_keep_to_the_rule(module):
  for imported in imports(module):
    assert forbidden(module, imported) is None, f'{module} imports {imported}: {forbidden(module, imported)}'


def test_there_is_no_cycle():
  done, path = set(), []

  def visit(module):
    assert module not in path, ' -> '.join([*path[path.index(module) :], module])
    if module not in done:
      path.append(module)
      for imported in imports(module) & FILES.keys() - {module}:
        visit(imported)
      done.add(path.pop())

  for module in FILES:
    visit(module)


@pytest.mark.parametrize(
  'module, imported',
  [
    ('utils', 'splitnet.common.errors'), ('splitnet.common.flags', 'splitnet.network.grouping'),
    ('splitnet.network.grouping', 'splitnet.data.synthetic'), ('splitnet.parallel.executor', 'splitnet.training.loop'),
    ('splitnet.training.loop', 'cifar100'), ('splitnet.training.loop', 'train'), ('eval', 'train'),
    ('paper.tables', 'train'), ('serving.export', 'paper.tables'), ('cifar100', 'train'), ('utils', 'sklearn'),
  ],
)  # fmt: skip
def test_the_rule_forbids(module, imported):
  assert forbidden(module, imported)
