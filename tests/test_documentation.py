"""README.md and docs: every command in them is one that the programs take, and what they link to is there."""

import glob
import os
import re
import shlex

import helpers
import pytest
from test_scripts import project, run  # noqa: F401 - a fixture

import eval as evaluation
import train
from benchmarks import speed
from benchmarks import workers as hosts_benchmark
from paper import estimate, figures, table5, tables
from serving import export, infer
from splitnet.parallel import worker

PAGES = ['README.md', *sorted(glob.glob('docs/*.md', root_dir=helpers.PROJECT))]
PARSERS = {
  'benchmarks.speed': speed.parse_flags,
  'eval.py': evaluation.parse_flags,
  'serving.export': export.parse_flags,
  'benchmarks.workers': hosts_benchmark.parse_flags,
  'serving.infer': infer.make_parser().parse_args,
  'paper.estimate': estimate.parse_flags,
  'paper.table5': table5.parse_flags,
  'paper.tables': tables.parse_flags,
  'train.py': train.parse_flags,
  'splitnet.parallel.worker': worker.parse_flags,
}


def read(page):
  with open(os.path.join(helpers.PROJECT, page)) as f:
    return f.read()


def commands(page):
  """The commands in a page's blocks of code and between its backticks, those of this project: lists of words."""
  text = re.sub(r'\\\n\s*', '', read(page))
  blocks, given = re.findall(r'^```\n(.*?)^```$', text, re.DOTALL | re.MULTILINE), {}
  lines = [line for block in blocks for line in block.splitlines()]
  rest = re.sub(r'^```\n.*?^```$', '', text, flags=re.DOTALL | re.MULTILINE)
  lines += [' '.join(span.split()) for span in re.findall(r'`([^`]+)`', rest)]
  for line in lines:
    if re.fullmatch(r'\w+="[^"]*"', line):  # a variable of the commands below it
      name, value = line.split('=', 1)
      given['$' + name] = value.strip('"')
    if re.match(r'(\w+=\S+ )*(\./|scripts/|python )', line) or line.startswith('TF_CONFIG='):
      for name, value in given.items():
        line = line.replace(name + ' ', value + ' ')
      words = shlex.split(line, comments=True)
      while re.match(r'\w+=', words[0]):
        words = words[1:]
      yield words[1 + (words[1] == '-m') :] if words[0] == 'python' else words


def parse_figures(words):
  flags, more = figures.make_parser().parse_known_args(words)
  assert flags.figure == '4' or not more
  if more:  # of the grouping run that Figure 4 makes for every balance
    train.parse_flags(['--mode', 'group', *more])


@pytest.mark.parametrize('page', PAGES)
def test_every_command_is_one_that_the_programs_take(page, project, tmp_path, monkeypatch):  # noqa: F811
  (project / 'runs' / 'baseline' / 'best').mkdir(parents=True)
  (project / 'runs' / 'baseline' / 'best' / 'checkpoint').touch()
  monkeypatch.chdir(tmp_path)
  found = list(commands(page))
  assert len(found) >= {'README.md': 40, 'docs/groups.md': 8}.get(page, 0)
  for program, *words in found:
    path = program if '/' in program or program.endswith('.py') else program.replace('.', '/') + '.py'
    assert os.path.exists(os.path.join(helpers.PROJECT, path)), program
    if program.startswith(('./', 'scripts/')) and program not in ('./demo.sh', './test.sh'):
      code, calls, stderr = run(project, program.removeprefix('./'), *words)
      assert (code, stderr) == (0, ''), (program, words)
      program, words = calls[-1]
    if program == 'paper.figures' and any(word.startswith('-') for word in words):
      parse_figures(words)
    elif program == 'splitnet.reporting.compare':
      assert all(re.fullmatch(r'[\w-]+=\S+\.json', word) for word in words)
    elif program == 'tests/check_reference.py':
      assert glob.glob(os.path.join(helpers.PROJECT, *words))
    elif program in PARSERS:
      flags = PARSERS[program](words)
      if program == 'paper.tables' and flags.only:
        assert tables.chosen_cells(flags.table, flags.only, tables.make_runs(flags, 0))
    else:
      assert program in ('./demo.sh', './test.sh', 'paper.figures'), (program, words)


@pytest.mark.parametrize('page', PAGES)
def test_what_a_page_links_to_is_there(page):
  links = re.findall(r'\]\(([^)]+)\)', read(page))
  assert links or page != 'README.md'
  for link in links:
    if not link.startswith('http'):
      assert os.path.exists(os.path.join(helpers.PROJECT, os.path.dirname(page), link)), link


def test_every_program_is_in_the_list_of_files():
  listed = read('README.md').split('\n## Files\n')[1]
  for path in glob.glob('*.py', root_dir=helpers.PROJECT):
    assert '`%s`' % path in listed, path
