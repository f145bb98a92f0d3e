"""Holds the recipes: the settings of each stage.

paper    the settings of baseline.sh, group.sh --paper and split.sh
short    far fewer steps, for a GPU; grouped as group.sh does: from the baseline, other gammas, no dropout
better   the same networks as well as we would train them: longer than short, smoothed labels, the split ones taught
         by the dense one; not the paper's experiment
cpu      a few epochs of each stage, for a CPU; after so short a baseline long grouping costs accuracy, but the
         hierarchical split takes longer to be decided (docs/groups.md)

AlexNet and ResNet-18, the networks of Tables 3 and 4, have recipes of their own, paper and cpu (docs/results.md says
what of them is known and what is chosen).
"""

TRAIN_IMAGES = 45000  # the paper's, by which a recipe's epochs are counted
DATASETS = ('cifar100', 'image_folder', 'imagenet')  # those of data.py
STAGES = ('baseline', 'group', 'split', 'scratch')
TEACHING = dict(distill_weight=0.7, distill_temperature=2)  # if the dense network teaches the split one

# What grouping has in common in all recipes but the paper's own, and the paper's training of everything else.
GROUPING = dict(
  l2_weight=0.0001, basemodel='baseline', assignment_start='spectral', gamma1=5, gamma2=20, gamma3=30,
  dropout_keep_prob=1,
)  # fmt: skip
PAPER = dict(max_steps=120000, initial_lr=0.1, drop_at=(5 / 12, 7 / 12), l2_weight=0.0005)

# Each recipe has the settings of each stage, and if need be what differs for a split: train.py's flags, those of
# runs.SHARES, and instead of max_steps also epochs. 'group' learns the groups, 'split' fine-tunes them, 'scratch'
# trains a split network from scratch (columns S, C, R); 'all' is for each stage.
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
    'group': dict(GROUPING, max_steps=250, initial_lr=0.05, ramp_at=0.4, assignment_lr_scale=40),
    'split': dict(max_steps=1450, initial_lr=0.1, warmup_at=0.1, l2_weight=0.0005),
    'group-2-4-4': dict(max_steps=700),
    'split-2-4-4': dict(max_steps=1000),
    'scratch': dict(max_steps=1450, initial_lr=0.15, warmup_at=0.2, l2_weight=0.0005),
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
BY_NETWORK = {'wrn': RECIPES, **IMAGENET_RECIPES}


def stage_settings(recipe, stage, split=None):
  """Returns a stage's settings in a recipe, a value of RECIPES, for a split: a dict, with max_steps, not epochs."""
  settings = {**recipe['all'], **recipe[stage], **recipe.get(f'{stage}-{split}', {})}
  if 'epochs' in settings:
    settings['max_steps'] = round(settings.pop('epochs') * TRAIN_IMAGES / settings['batch_size'])
  return settings
