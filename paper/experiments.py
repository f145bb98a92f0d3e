"""Holds the experiment: which runs the tables need of a recipe, and whose cells they are."""

import dataclasses
import os

from alexnet_split import AlexNet
from paper.published import DENSE, DROPOUT_SPLITS, GROUPINGS, TABLE_1_DENSE, TABLE_2, TABLE_3, TABLE_4, TABLES
from paper.recipes import BY_NETWORK, TEACHING, stage_settings
from paper.runs import Run
from resnet_split import ResNet18, WideResNet
from splitnet.common.errors import UserError
from splitnet.common.files import PROJECT
from splitnet.network.settings import find

NETWORKS = {kind.network: kind for kind in (WideResNet, ResNet18, AlexNet)}
DENSE_DROPOUT = 0.5  # dropout_keep_prob of the baseline with dropout, in the layers that 2-2-2 would split


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Holds what a user asks of all runs of the tables; None leaves it to the recipe."""

  recipe: str = 'cpu'  # a key of recipes.RECIPES
  network: str = 'wrn'  # a key of NETWORKS
  k: int = 8  # width multiplier of wrn
  width: float | None = None  # that of the others; None: the paper's
  branch_input: str | None = None  # what a branch reads of its parent, 'group' or 'all'
  dataset: str | None = None  # a key of data.DATASETS; None: CIFAR-100 of wrn, ILSVRC 2012 of the others
  image_size: int | None = None  # of image files; None: the data set's own
  cache: bool | None = None  # whether image files are decoded once, for training
  skip_damaged: bool = False  # leave out image files that cannot be decoded
  out: str | None = None  # folder for the runs
  batch_size: int | None = None  # images per step; steps and learning rate change with it
  precision: str | None = None  # 'float32' or 'bfloat16'
  jit_compile: bool | None = None  # whether to compile with XLA; None leaves it to train.py
  baseline_steps: int | None = None  # of each run of a stage
  group_steps: int | None = None
  split_steps: int | None = None
  scratch_steps: int | None = None

  def __post_init__(self):
    find(NETWORKS, self.network)
    if self.recipe not in self.recipes:
      raise UserError(f'--recipe {self.recipe} is for Tables 1 and 2; {self.network} has {" and ".join(self.recipes)}')
    small = self.recipe == 'cpu'
    out = self.out or os.path.join(PROJECT, 'runs/tables' if small else f'runs/paper/{self.recipe}')
    for name, value in {
      'out': os.path.abspath(out),
      'width': self.width or {'resnet18': 2.0}.get(self.network, 1.0),
      # As the paper's counts have it; small runs read as the released code's do.
      'branch_input': self.branch_input or ('all' if self.is_wide and not small else 'group'),
      'dataset': self.dataset or ('cifar100' if self.is_wide else 'imagenet'),
    }.items():
      object.__setattr__(self, name, value)

  @property
  def is_wide(self):
    """Returns whether the network is the one of Tables 1 and 2."""
    return self.network == 'wrn'

  @property
  def recipes(self):
    """Returns the recipes of the network: dict by name."""
    return BY_NETWORK[self.network]

  @property
  def stages(self):
    """Returns the recipe: dict from stage to settings, and further keys."""
    return self.recipes[self.recipe]

  @property
  def splits(self):
    """Returns the splits of the network's tables, in the paper's order: a list."""
    published = next(published for network, published in TABLES.values() if network == self.network)
    return [split for split in published if split != DENSE]

  @property
  def folder(self):
    """Returns the folder for the runs of this width, and for the tables of them."""
    return os.path.join(self.out, f'k{self.k}' if self.is_wide else f'{self.network}-x{self.width:g}')

  @property
  def flags(self):
    """Returns train.py's flags of the network and its data: a dict."""
    network = {'k': self.k} if self.is_wide else {'network': self.network, 'width': self.width}
    if self.dataset == 'cifar100':
      return network
    return {**network, 'dataset': self.dataset, 'image_size': self.image_size, 'cache': self.cache or None}

  def config(self, split, **data):
    """Returns the Settings of a split; `data` may say num_classes and image_size."""
    width = {'k': self.k} if self.is_wide else {'width': self.width}
    return NETWORKS[self.network].of_split(split, branch_input=self.branch_input, **width, **data)


def settings_of(experiment, stage, split=None):
  """Returns a stage's settings, for a split, with the batch size, steps and precision asked for.

  With more images per step there are as many fewer steps, at as much more learning rate (Goyal et al., Accurate, Large
  Minibatch SGD, 2017).
  """
  settings = {'precision': 'float32', **stage_settings(experiment.stages, stage, split)}
  if experiment.batch_size and experiment.batch_size != settings['batch_size']:
    factor = experiment.batch_size / settings['batch_size']
    settings.update(batch_size=experiment.batch_size, initial_lr=settings['initial_lr'] * factor)
    for name in ('max_steps', 'val_interval', 'checkpoint_interval'):
      settings[name] = max(1, round(settings[name] / factor))
  settings['max_steps'] = getattr(experiment, f'{stage}_steps') or settings['max_steps']
  settings['precision'] = experiment.precision or settings['precision']
  return settings


def finding_from_noise(group, groups):
  """Returns what differs in the run before grouping, which finds groups from noise.

  The released gammas but for gamma1: with two groups at the logits a smaller one, so that assignments become disjoint
  later; with more a larger one, without which they stayed undecided. And assignments that move far faster than the
  weights. Chosen by trial at k = 1, seed 0 (docs/groups.md).
  """
  return dict(
    assignment_start='noise', gamma1=0.3 if groups == 2 else 1.5, gamma2=1, ramp_at=None, gamma3=10,
    assignment_lr_scale=32 * group['assignment_lr_scale'],
  )  # fmt: skip


def make_runs(experiment, seed):
  """Returns all runs of all tables for one seed: dict from name to Run."""
  recipe, runs = experiment.stages, {}
  machine = {} if experiment.jit_compile is None else {'jit_compile': experiment.jit_compile}
  if experiment.skip_damaged:
    machine['skip_damaged'] = True

  def add(name, stage, mode, split=None, **changes):
    settings = {'mode': mode, **experiment.flags, 'seed': seed, **settings_of(experiment, stage, split), **changes}
    settings = {key: value for key, value in settings.items() if value is not None}  # None: without the recipe's
    base, teacher = (runs.get(settings.pop(need, None)) for need in ('basemodel', 'teacher'))
    folder = os.path.join(experiment.folder, f'seed{seed}', name)
    runs[name] = Run(folder, base, settings, teacher, machine, hardens=not name.startswith('find'))

  def steps(split=None):  # of grouping, and of it and fine-tuning together, for what is compared with them
    grouping, tuning = (settings_of(experiment, stage, split)['max_steps'] for stage in ('group', 'split'))
    return grouping, grouping + tuning

  def tree(split):
    if not experiment.is_wide:
      return {'groups': split, 'branch_input': experiment.branch_input}
    config = experiment.config(split)
    return {name: getattr(config, name) for name in ('ngroups1', 'ngroups2', 'ngroups3', 'branch_input')}

  add('baseline', 'baseline', 'baseline')
  # Trained on as the split networks are; only those can have a teacher.
  untaught = dict.fromkeys(['teacher', *TEACHING])
  add('baseline-long', 'split', 'baseline', basemodel='baseline', max_steps=steps()[1], **untaught)
  if experiment.is_wide:
    dropped = {**tree('2-2-2'), 'branch_input': None}
    add('baseline-dropout', 'baseline', 'baseline', dropout_keep_prob=DENSE_DROPOUT, **dropped)
  for split in experiment.splits:
    groups, (grouping_steps, both) = {'split': split, **tree(split)}, steps(split)
    # Of WRN only the paper's dropout rows group with dropout. Fine-tuning has none, as in the released split.sh, and so
    # do S, C and R, of which the paper does not say it.
    dropped = split in DROPOUT_SPLITS or not experiment.is_wide
    grouped = groups if dropped else dict(groups, dropout_keep_prob=1)
    add(f'group-{split}', 'group', 'group', **grouped)
    add(f'split-{split}', 'split', 'split', **groups, basemodel=f'group-{split}')
    if 'teacher' not in recipe['split']:
      base = f'group-{split}'
      add(f'split-{split}-taught', 'split', 'split', **groups, basemodel=base, teacher='baseline-long', **TEACHING)
    if recipe['group'].get('assignment_start') == 'spectral':  # from noise instead, for the table of groups
      last_groups = int(split.rpartition('-')[2])
      add(f'find-{split}', 'group', 'group', **grouped, **finding_from_noise(recipe['group'], last_groups))
      add(f'group-{split}-noise', 'group', 'group', **grouped, basemodel=f'find-{split}', assignment_start='noise')
      add(f'split-{split}-noise', 'split', 'split', **groups, basemodel=f'group-{split}-noise')
      # As many steps as those two, from the spectral start.
      add(f'group-{split}-long', 'group', 'group', **grouped, max_steps=2 * grouping_steps)
      add(f'split-{split}-long', 'split', 'split', **groups, basemodel=f'group-{split}-long')
    for kind in ('semantic', 'clustering', 'random'):
      base = dict(basemodel='baseline') if kind == 'clustering' else {}
      add(f'scratch-{split}-{kind}', 'scratch', 'split', **groups, grouping=kind, **base)
      start = dict(grouping=kind, grouping_start='basemodel', basemodel='baseline')
      add(f'given-{split}-{kind}', 'split', 'split', **groups, **start)
      add(f'given-{split}-{kind}-long', 'split', 'split', **groups, **start, max_steps=both)
  return runs


# The rows of the table of groups: kind -> (text, the run that groups, the run that is shown) of a split; the dense
# network's runs have no groups, and given groups no run that finds them.
KINDS = {
  'splitnet': ('learned', 'group-{}', 'split-{}'),
  'taught': ('learned, taught', 'group-{}', 'split-{}-taught'),
  'noise': ('learned, noise start', 'group-{}-noise', 'split-{}-noise'),
  'splitnet-long': ('learned, long', 'group-{}-long', 'split-{}-long'),
  'semantic': ('S, semantic', '', 'given-{}-semantic'),
  'clustering': ('C, clustering', '', 'given-{}-clustering'),
  'random': ('R, random', '', 'given-{}-random'),
  'semantic-long': ('S, long', '', 'given-{}-semantic-long'),
  'clustering-long': ('C, long', '', 'given-{}-clustering-long'),
  'random-long': ('R, long', '', 'given-{}-random-long'),
}
DENSE_KINDS = {'baseline': ('baseline', '', 'baseline'), 'long': ('baseline, long', '', 'baseline-long')}
ALL_SPLITS = sorted({*TABLE_2, *TABLE_3, *TABLE_4} - {DENSE})
ROWS_OF_GROUPS = [('dense', DENSE_KINDS), *((split, KINDS) for split in ALL_SPLITS)]


def run_of_table(split, grouping):
  """Returns the run of a cell of Tables 1 to 4; grouping: one of GROUPINGS."""
  return f'split-{split}' if grouping == 'splitnet' else f'scratch-{split}-{grouping}'


def cells(table):
  """Returns a table's cells: dict from 'row' or 'row/column' to the run's name."""
  if table == 'groups':
    rows = [(split, kind, run) for split, kinds in ROWS_OF_GROUPS for kind, (_, _, run) in kinds.items()]
    return {f'{split}/{kind}': run.format(split) for split, kind, run in rows}
  if table == 'all':  # the deep split first
    first = {'baseline': 'baseline', '2-2-2/splitnet': run_of_table('2-2-2', 'splitnet')}
    return {**first, **cells('2'), **cells('1')}
  dense = TABLE_1_DENSE if table == '1' else ['baseline']
  groupings = {'1': GROUPINGS, '2': ['splitnet']}.get(table, ['splitnet', 'random'])
  splits = [split for split in TABLES[table][1] if split != DENSE]
  split = {f'{split}/{grouping}': run_of_table(split, grouping) for split in splits for grouping in groupings}
  return {**{name: name for name in dense}, **split}
