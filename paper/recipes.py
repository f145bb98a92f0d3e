"""Holds the recipes: which runs there are, their settings, whose cells they are.

paper    the settings of baseline.sh, group.sh --paper and split.sh
short    far fewer steps, for a GPU; grouped as group.sh does: from the baseline, other gammas, no dropout
better   the same networks as well as we would train them: longer than short, smoothed labels, the split ones taught
         by the dense one; not the paper's experiment
cpu      a few epochs of each stage, for a CPU

AlexNet and ResNet-18, the networks of Tables 3 and 4, have recipes of their own, paper and cpu (docs/results.md says
what of them is known and what is chosen).
"""

import dataclasses
import os

from alexnet_split import AlexNet
from paper.published import DENSE, DROPOUT_SPLITS, GROUPINGS, TABLE_1_DENSE, TABLE_2, TABLE_3, TABLE_4
from paper.runs import Run
from resnet_split import ResNet18, WideResNet
from splitnet.common.errors import UserError
from splitnet.common.files import PROJECT
from splitnet.network.settings import find

TRAIN_IMAGES = 45000  # the paper's, by which a recipe's epochs are counted
STAGES = ('baseline', 'group', 'split', 'scratch')
TEACHING = dict(distill_weight=0.7, distill_temperature=2)  # if the dense network teaches the split one
DENSE_DROPOUT = 0.5  # dropout_keep_prob of the baseline with dropout, in the layers that 2-2-2 would split

# What grouping has in common in all recipes but the paper's own, and the paper's training of everything else.
GROUPING = dict(
  l2_weight=0.0001, basemodel='baseline', assignment_start='spectral', gamma1=5, gamma2=20, gamma3=30,
  dropout_keep_prob=1,
)  # fmt: skip
PAPER = dict(max_steps=120000, initial_lr=0.1, drop_at=(5 / 12, 7 / 12), l2_weight=0.0005)

# Each recipe has the settings of each stage: train.py's flags, those of runs.SHARES, and instead of max_steps also
# epochs. 'group' learns the groups, 'split' fine-tunes them, 'scratch' trains a split network from scratch (columns S,
# C, R); 'all' is for each stage.
RECIPES = {
  'paper': {
    'all': dict(batch_size=90, val_interval=1000, checkpoint_interval=5000),
    'baseline': PAPER,
    'group': dict(
      max_steps=200000, initial_lr=0.1, drop_at=(0.6, 0.75), l2_weight=0.0001, basemodel=None, gamma1=1, gamma2=1,
      gamma3=10, dropout_keep_prob=0.5,
    ),
    'split': PAPER,
    'scratch': PAPER,
  },
  # The peak learning rate is the better one of two at k = 1 (docs/paper-scale.md).
  'short': {
    'all': dict(batch_size=360, val_interval=125, checkpoint_interval=500, lr_schedule='cosine', precision='bfloat16'),
    'baseline': dict(epochs=30, initial_lr=1.0, warmup_at=0.2, l2_weight=0.0005),
    'group': dict(GROUPING, epochs=10, initial_lr=0.1, ramp_at=0.5, assignment_lr_scale=20),
    'split': dict(epochs=20, initial_lr=0.4, warmup_at=0.1, l2_weight=0.0005),
    'scratch': dict(epochs=60, initial_lr=1.0, warmup_at=0.2, l2_weight=0.0005),
  },
  'better': {
    'all': dict(
      batch_size=180, val_interval=250, checkpoint_interval=1000, lr_schedule='cosine', precision='bfloat16',
      label_smoothing=0.1,
    ),
    'baseline': dict(epochs=120, initial_lr=0.2, warmup_at=0.05, l2_weight=0.0005),
    'group': dict(GROUPING, epochs=20, initial_lr=0.1, ramp_at=0.5, assignment_lr_scale=20),
    'split': dict(TEACHING, epochs=100, initial_lr=0.2, warmup_at=0.05, l2_weight=0.0005, teacher='baseline'),
    'scratch': dict(TEACHING, epochs=240, initial_lr=0.2, warmup_at=0.05, l2_weight=0.0005, teacher='baseline'),
  },
  # One cycle per stage. S, C and R get as many steps as fine-tuning, as in the paper's recipe.
  'cpu': {
    'all': dict(batch_size=90, val_interval=1000, checkpoint_interval=1000, lr_schedule='cosine'),
    'baseline': dict(max_steps=2000, initial_lr=0.15, warmup_at=0.2, l2_weight=0.0005),
    'group': dict(GROUPING, max_steps=700, initial_lr=0.05, ramp_at=0.4, assignment_lr_scale=40),
    'split': dict(max_steps=1000, initial_lr=0.1, warmup_at=0.1, l2_weight=0.0005),
    'scratch': dict(max_steps=1000, initial_lr=0.15, warmup_at=0.2, l2_weight=0.0005),
  },
}  # fmt: skip


def imagenet_recipes(rate, cpu_rate, dense_steps, drop_at, **shared):
  """Returns the recipes of a network of Tables 3 and 4: dict by name.

  How the paper trained them is not known. Of 'paper' the steps are those in names of the authors' checkpoints (80, 12
  and 30 epochs of ILSVRC at 256 images per step), rates and weight decay AlexNet's own paper's and the released
  ResNet-18's, and the grouping is that of the released ResNet-50.

  Args:
    rate, cpu_rate: the dense network's first learning rate; dense_steps, drop_at: its steps and when the rate falls;
      **shared: of all stages.
  """
  dense = dict(max_steps=dense_steps, initial_lr=rate, drop_at=drop_at)
  cpu_dense = dict(max_steps=1500, initial_lr=cpu_rate, warmup_at=0.1)
  keep_prob, thirds = shared['dropout_keep_prob'], (1 / 3, 2 / 3)
  return {
    'paper': {
      'all': dict(shared, batch_size=256, val_interval=5000, checkpoint_interval=5000),
      'baseline': dense,
      'group': dict(
        max_steps=60000, initial_lr=0.001, drop_at=thirds, l2_weight=0.0001, basemodel='baseline', gamma1=1, gamma2=1,
        gamma3=3, finetune=True, assignment_lr_scale=10,
      ),
      'split': dict(max_steps=150000, initial_lr=rate / 10, drop_at=thirds),
      'scratch': dense,
    },
    'cpu': {
      'all': dict(
        shared, batch_size=64, val_interval=500, checkpoint_interval=500, lr_schedule='cosine', min_crop_area=0.35,
      ),
      'baseline': cpu_dense,
      'group': dict(
        GROUPING, max_steps=500, initial_lr=cpu_rate / 2, ramp_at=0.4, assignment_lr_scale=40,
        dropout_keep_prob=keep_prob,
      ),
      'split': dict(max_steps=700, initial_lr=cpu_rate / 2, warmup_at=0.1),
      'scratch': cpu_dense,
    },
  }  # fmt: skip


IMAGENET_RECIPES = {
  'alexnet': imagenet_recipes(0.01, 0.02, 400000, (0.25, 0.5, 0.75), dropout_keep_prob=0.5, l2_weight=0.0005),
  'resnet18': imagenet_recipes(0.1, 0.1, 450000, (1 / 3, 2 / 3), dropout_keep_prob=1, l2_weight=0.0001),
}
NETWORKS = {kind.network: kind for kind in (WideResNet, ResNet18, AlexNet)}
# Table -> its network, and the paper's numbers by split.
TABLES = {'1': ('wrn', TABLE_2), '2': ('wrn', TABLE_2), '3': ('alexnet', TABLE_3), '4': ('resnet18', TABLE_4)}


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Holds what a user asks of all runs of the tables; None leaves it to the recipe."""

  recipe: str = 'cpu'  # a key of RECIPES
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
    return RECIPES if self.is_wide else IMAGENET_RECIPES[self.network]

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


def steps_of(recipe, stage):
  """Returns how many steps a stage takes in a recipe, a value of RECIPES."""
  return recipe[stage].get('max_steps') or round(recipe[stage]['epochs'] * TRAIN_IMAGES / recipe['all']['batch_size'])


def settings_of(experiment, stage):
  """Returns a stage's settings with the batch size, steps and precision asked for.

  With more images per step there are as many fewer steps, at as much more learning rate (Goyal et al., Accurate, Large
  Minibatch SGD, 2017).
  """
  recipe = experiment.stages
  settings = {'precision': 'float32', **recipe['all'], **recipe[stage]}
  settings.pop('epochs', None)
  settings['max_steps'] = steps_of(recipe, stage)
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

  def add(name, stage, mode, **changes):
    settings = {'mode': mode, **experiment.flags, 'seed': seed, **settings_of(experiment, stage), **changes}
    settings = {key: value for key, value in settings.items() if value is not None}  # None: without the recipe's
    base, teacher = (runs.get(settings.pop(need, None)) for need in ('basemodel', 'teacher'))
    folder = os.path.join(experiment.folder, f'seed{seed}', name)
    runs[name] = Run(folder, base, settings, teacher, machine, hardens=not name.startswith('find'))

  # As many steps as grouping and fine-tuning take together, for what is compared with them.
  grouping_steps = settings_of(experiment, 'group')['max_steps']
  both = grouping_steps + settings_of(experiment, 'split')['max_steps']

  def tree(split):
    if not experiment.is_wide:
      return {'groups': split, 'branch_input': experiment.branch_input}
    config = experiment.config(split)
    return {name: getattr(config, name) for name in ('ngroups1', 'ngroups2', 'ngroups3', 'branch_input')}

  add('baseline', 'baseline', 'baseline')
  # Trained on as the split networks are; only those can have a teacher.
  untaught = dict.fromkeys(['teacher', *TEACHING])
  add('baseline-long', 'split', 'baseline', basemodel='baseline', max_steps=both, **untaught)
  if experiment.is_wide:
    dropped = {**tree('2-2-2'), 'branch_input': None}
    add('baseline-dropout', 'baseline', 'baseline', dropout_keep_prob=DENSE_DROPOUT, **dropped)
  for split in experiment.splits:
    groups = tree(split)
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
