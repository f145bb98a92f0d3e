"""The recipes of the tables: which runs there are, with which settings, and which run each cell of a table shows.

paper    the settings of baseline.sh, group.sh --paper and split.sh
short    far fewer steps, for a GPU; grouped as group.sh does: from the baseline, other gammas, no dropout
better   the same networks as well as we would train them: longer than short, smoothed labels, the split ones taught
         by the dense one; not the paper's experiment
cpu      a few epochs of each stage, for a CPU
"""

import dataclasses
import os

from paper.published import DROPOUT_SPLITS, GROUPINGS, SPLITS, TABLE_1_DENSE
from paper.runs import Run
from resnet_split import WideResNet
from splitnet.common.files import PROJECT

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
# C, R); 'all' is for each stage. Runs are in runs/paper/RECIPE unless 'out' says otherwise, and a branch reads 'all',
# which gives the paper's counts, unless 'branch_input' does.
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
    'out': 'runs/tables',
    'branch_input': 'group',
    'all': dict(batch_size=90, val_interval=1000, checkpoint_interval=1000, lr_schedule='cosine'),
    'baseline': dict(max_steps=2000, initial_lr=0.15, warmup_at=0.2, l2_weight=0.0005),
    'group': dict(GROUPING, max_steps=700, initial_lr=0.05, ramp_at=0.4, assignment_lr_scale=40),
    'split': dict(max_steps=1000, initial_lr=0.1, warmup_at=0.1, l2_weight=0.0005),
    'scratch': dict(max_steps=1000, initial_lr=0.15, warmup_at=0.2, l2_weight=0.0005),
  },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Experiment:
  """What a user asks of all runs of the tables; None leaves it to the recipe."""

  recipe: str = 'cpu'  # a key of RECIPES
  k: int = 8  # width multiplier
  branch_input: str | None = None  # what a branch reads of its parent, 'group' or 'all'
  out: str | None = None  # folder for the runs
  batch_size: int | None = None  # images per step; steps and learning rate change with it
  precision: str | None = None  # 'float32' or 'bfloat16'
  jit_compile: bool | None = None  # whether to compile with XLA; None leaves it to train.py
  baseline_steps: int | None = None  # of each run of a stage
  group_steps: int | None = None
  split_steps: int | None = None
  scratch_steps: int | None = None

  def __post_init__(self):
    recipe = RECIPES[self.recipe]
    out = self.out or os.path.join(PROJECT, recipe.get('out', f'runs/paper/{self.recipe}'))
    object.__setattr__(self, 'branch_input', self.branch_input or recipe.get('branch_input', 'all'))
    object.__setattr__(self, 'out', os.path.abspath(out))

  @property
  def folder(self):
    """The folder for the runs of this width, and for the tables of them."""
    return os.path.join(self.out, f'k{self.k}')

  def config(self, split):
    """Returns the resnet_split.WideResNet of a split."""
    return WideResNet.of_split(split, k=self.k, branch_input=self.branch_input)


def steps_of(recipe, stage):
  """Returns how many steps a stage takes in a recipe, a value of RECIPES."""
  return recipe[stage].get('max_steps') or round(recipe[stage]['epochs'] * TRAIN_IMAGES / recipe['all']['batch_size'])


def settings_of(experiment, stage):
  """Returns a stage's settings with the batch size, steps and precision asked for.

  With more images per step there are as many fewer steps, at as much more learning rate (Goyal et al., Accurate, Large
  Minibatch SGD, 2017).
  """
  recipe = RECIPES[experiment.recipe]
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
  recipe, runs = RECIPES[experiment.recipe], {}
  machine = {} if experiment.jit_compile is None else {'jit_compile': experiment.jit_compile}

  def add(name, stage, mode, **changes):
    settings = {'mode': mode, 'k': experiment.k, 'seed': seed, **settings_of(experiment, stage), **changes}
    settings = {key: value for key, value in settings.items() if value is not None}  # None: without the recipe's
    base, teacher = (runs.get(settings.pop(need, None)) for need in ('basemodel', 'teacher'))
    folder = os.path.join(experiment.folder, f'seed{seed}', name)
    runs[name] = Run(folder, base, settings, teacher, machine, hardens=not name.startswith('find'))

  # As many steps as grouping and fine-tuning take together, for what is compared with them.
  grouping_steps = settings_of(experiment, 'group')['max_steps']
  both = grouping_steps + settings_of(experiment, 'split')['max_steps']

  def tree(split):
    config = experiment.config(split)
    return {name: getattr(config, name) for name in ('ngroups1', 'ngroups2', 'ngroups3', 'branch_input')}

  add('baseline', 'baseline', 'baseline')
  # Trained on as the split networks are; only those can have a teacher.
  untaught = dict.fromkeys(['teacher', *TEACHING])
  add('baseline-long', 'split', 'baseline', basemodel='baseline', max_steps=both, **untaught)
  dropped = {**tree('2-2-2'), 'branch_input': None}
  add('baseline-dropout', 'baseline', 'baseline', dropout_keep_prob=DENSE_DROPOUT, **dropped)
  for split in SPLITS:
    groups = tree(split)
    # Only the paper's dropout rows group with dropout. Fine-tuning has none, as in the released split.sh, and so do S,
    # C and R, of which the paper does not say it.
    grouped = {**groups, **({} if split in DROPOUT_SPLITS else dict(dropout_keep_prob=1))}
    add(f'group-{split}', 'group', 'group', **grouped)
    add(f'split-{split}', 'split', 'split', **groups, basemodel=f'group-{split}')
    if 'teacher' not in recipe['split']:
      base = f'group-{split}'
      add(f'split-{split}-taught', 'split', 'split', **groups, basemodel=base, teacher='baseline-long', **TEACHING)
    if recipe['group'].get('assignment_start') == 'spectral':  # from noise instead, for the table of groups
      add(f'find-{split}', 'group', 'group', **grouped, **finding_from_noise(recipe['group'], groups['ngroups1']))
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
ROWS_OF_GROUPS = [('dense', DENSE_KINDS), *((split, KINDS) for split in SPLITS)]


def run_of_table(split, grouping):
  """Returns the run of a cell of Table 1 or 2; grouping: one of GROUPINGS."""
  return f'split-{split}' if grouping == 'splitnet' else f'scratch-{split}-{grouping}'


def cells(table):
  """Returns a table's cells: dict from 'row' or 'row/column' to the run's name."""
  if table == 'groups':
    rows = [(split, kind, run) for split, kinds in ROWS_OF_GROUPS for kind, (_, _, run) in kinds.items()]
    return {f'{split}/{kind}': run.format(split) for split, kind, run in rows}
  if table == 'all':  # the deep split first
    first = {'baseline': 'baseline', '2-2-2/splitnet': run_of_table('2-2-2', 'splitnet')}
    return {**first, **cells('2'), **cells('1')}
  dense, groupings = (('baseline',), ('splitnet',)) if table == '2' else (TABLE_1_DENSE, GROUPINGS)
  split = {f'{split}/{grouping}': run_of_table(split, grouping) for split in SPLITS for grouping in groupings}
  return {**{name: name for name in dense}, **split}
