"""Tests README.md and docs: programs take their commands, their links lead somewhere, the tree is what is there."""

import glob
import os
import re
import shlex

import helpers
import pytest
import script_calls

import cifar100
import eval as evaluation
import imagenet
import keras_split
import train
from benchmarks import input as input_benchmark
from benchmarks import speed
from benchmarks import workers as benchmark_workers
from paper import estimate, experiments, figures, table5, tables
from serving import accuracy, export, infer, publish, report
from splitnet.parallel import worker

PAGES = ['README.md', *sorted(glob.glob('docs/*.md', root_dir=helpers.PROJECT))]
PARSERS = {
  'benchmarks.input': input_benchmark.parse_flags,
  'benchmarks.speed': speed.parse_flags,
  'benchmarks.workers': benchmark_workers.parse_flags,
  'eval.py': evaluation.parse_flags,
  'imagenet.py': imagenet.parse_flags,
  'keras_split.py': lambda argv: keras_split.make_parser().parse_args(argv),
  'paper.estimate': estimate.parse_flags,
  'paper.table5': table5.parse_flags,
  'paper.tables': tables.parse_flags,
  'serving.accuracy': lambda words: accuracy.make_parser().parse_args(words),
  'serving.export': export.parse_flags,
  'serving.infer': infer.parse_flags,
  'serving.publish': lambda words: publish.make_parser().parse_args(words),
  'serving.report': lambda words: report.make_parser().parse_args(words),
  'splitnet.parallel.worker': lambda words: worker.make_parser().parse_args(words),
  'train.py': train.parse_flags,
}
WITHOUT_PARSER = ['./demo.sh', './test.sh', 'download_cifar100.py']
WITHOUT_PARSER += ['tests/fuzz.py', 'tests/kill_campaign.py', 'tests/browser.py']
LEAST_COMMANDS = {'README.md': 30, 'docs/groups.md': 10, 'docs/training.md': 8, 'docs/paper-scale.md': 8}


def read(page):
  with open(os.path.join(helpers.PROJECT, page), encoding='utf-8') as f:
    return f.read()


def split_page(page):
  """Splits a page into (its text without blocks of code, list of (language, block of code))."""
  text, blocks, language = [], [], None
  for line in read(page).splitlines():
    if not line.startswith('```'):
      (text if language is None else blocks[-1][1]).append(line)
    elif language is None:
      language = line[3:]
      blocks.append((language, []))
    else:
      language = None
  assert language is None, 'a block of code does not end'
  return '\n'.join(text), [(language, '\n'.join(lines)) for language, lines in blocks]


def commands(page):
  """The commands of this project in a page's blocks and between its backticks: yields lists of words."""
  text, blocks = split_page(page)
  lines = [
    line for language, block in blocks if not language for line in re.sub(r'\\\n\s*', '', block).splitlines()
  ]
  lines += [' '.join(span.split()) for span in re.findall(r'`([^`]+)`', text)]
  variables = {}
  for line in lines:
    if re.fullmatch(r'\w+="[^"]*"', line):  # a variable of the commands below it
      name, value = line.split('=', 1)
      variables['$' + name] = value.strip('"')
    if re.match(r'(\w+=\S+ )*(\./|scripts/\w+\.sh |python )', line) or line.startswith('TF_CONFIG='):
      for name, value in variables.items():
        line = line.replace(name + ' ', value + ' ')
      words = shlex.split(line, comments=True)
      while re.match(r'\w+=', words[0]):
        words = words[1:]
      yield words[1 + (words[1] == '-m') :] if words[0] == 'python' else words


def parse_figures(words):
  """Parses the flags of paper.figures; further ones go to the grouping run that Figure 4 makes for every balance."""
  flags, further = figures.make_parser().parse_known_args(words)
  assert flags.figure == '4' or not further
  if further:
    train.parse_flags(['--mode', 'group', *further])


def check_command(project, program, words):
  """Checks one command: that its program is there and takes its words; a script's, that what it calls does."""
  path = program if '/' in program or program.endswith('.py') else program.replace('.', '/') + '.py'
  assert os.path.exists(os.path.join(helpers.PROJECT, path)), program
  if program.endswith('.sh') and program not in WITHOUT_PARSER:
    code, calls, stderr = script_calls.run(project, program.removeprefix('./'), *words)
    assert (code, stderr) == (0, ''), (program, words)
    program, words = calls[-1]
  if words in (['--help'], ['NAME=FILE...']):
    return
  if program == 'paper.figures':
    parse_figures(words)
  elif program == 'splitnet.reporting.compare':
    assert all(re.fullmatch(r'[\w-]+=\S+\.json', word) for word in words)
  elif program == 'tests/check_reference.py':
    assert glob.glob(os.path.join(helpers.PROJECT, *words))
  elif program in PARSERS:
    flags = PARSERS[program](words)
    if program == 'paper.tables' and flags.only:
      assert tables.chosen_cells(flags.table, flags.only, experiments.make_runs(flags.experiment, 0))
  else:
    assert program in WITHOUT_PARSER, (program, words)


@pytest.mark.parametrize('page', PAGES)
def test_every_command_is_one_that_the_programs_take(page, project, tmp_path, monkeypatch):
  for folder in ('baseline/best', 'group', 'split/best'):
    (project / 'runs' / folder).mkdir(parents=True)
    (project / 'runs' / folder / 'checkpoint').touch()
  monkeypatch.chdir(tmp_path)
  found = list(commands(page))
  assert len(found) >= LEAST_COMMANDS.get(page, 0)
  for program, *words in found:
    check_command(project, program, words)


def anchors(page):
  """The anchors of a page's headings, as GitHub makes them."""
  headings = re.findall(r'^#+ (.*)$', split_page(page)[0], re.MULTILINE)
  return {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES)
def test_what_a_page_links_to_is_there(page):
  links = re.findall(r'\]\(([^)]+)\)', split_page(page)[0])
  assert links or page != 'README.md'
  for link in links:
    if link.startswith('http'):
      continue
    path, _, anchor = link.partition('#')
    target = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
    assert os.path.exists(os.path.join(helpers.PROJECT, target)), link
    assert not anchor or anchor in anchors(target), link


def test_every_page_and_figure_is_linked():
  links = {os.path.basename(link.split('#')[0]) for page in PAGES for link in re.findall(r'\]\(([^)]+)\)', read(page))}
  for pattern in ('docs/*.md', 'docs/figures/*'):
    for path in glob.glob(pattern, root_dir=helpers.PROJECT):
      assert os.path.basename(path) in links, path


def test_the_readme_is_short_and_narrow():
  lines = read('README.md').splitlines()
  assert len(lines) <= 200
  assert not [line for line in lines if len(line) > 110]


def test_the_readmes_tree_is_what_is_there():
  section = read('README.md').split('\n## How the code is organised\n')[1]
  listed = set(re.search(r'```\n(.*?)```', section, re.DOTALL).group(1).split())
  ignored = set(read('.gitignore').replace('/', '').split())
  for name in os.listdir(helpers.PROJECT):
    if not name.startswith('.') and name not in ignored:
      folder = os.path.isdir(os.path.join(helpers.PROJECT, name))
      assert (name + '/' if folder else name) in listed, name
  rooms = {path.split(os.sep)[0] for path in glob.glob('*/*.py', root_dir=os.path.join(helpers.PROJECT, 'splitnet'))}
  assert rooms <= listed
  for word in listed:
    if word.endswith(('/', '.py', '.sh', '.txt', '.toml', '.md')):
      assert os.path.exists(os.path.join(helpers.PROJECT, word)), word


def test_the_lines_that_write_your_own_data_write_what_is_read(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  [block] = [block for language, block in split_page('docs/training.md')[1] if language == 'python']
  exec(compile(block, 'docs/training.md', 'exec'), {})
  names = cifar100.load_names('my_data')
  assert (len(names.fine), len(names.coarse), list(names.fine_to_coarse)) == (4, 2, [0, 0, 1, 1])
  for subset, count in (('train', 400), ('val', 40), ('test', 40)):
    data = cifar100.load('my_data', subset)
    assert data.images.shape == (count, 32, 32, 3) and data.images.dtype == 'uint8'
    assert set(data.labels) <= {0, 1, 2, 3}
