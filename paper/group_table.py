"""Makes the table of groups: their agreement, their sizes, and what they cost.

A row is one run: the learned groups beside given ones: semantic (S, the yardstick), clustering (C), random (R, the
floor). `legend` explains the rest.
"""

from paper.experiments import ROWS_OF_GROUPS
from resnet_split import read_older
from splitnet.network import grouping
from splitnet.network.graph import hard_groups_of
from splitnet.reporting.tables import mean_text, of_dicts
from splitnet.training import checkpoints
from splitnet.training.log_files import read_metrics

CONVERGED = 0.99  # every assignment's mean confidence

# The key in `row_of`'s dict by the column's heading, and how a number is written.
COLUMNS = {
  'steps in all': ('steps', '.0f'),
  'agreement': ('agreement', '.2f'),
  'by chance': ('chance', '.2f'),
  'largest group / mean': ('largest', '.2f'),
  'least confidence': ('confidence', '.3f'),
  'converged at step': ('converged', '.0f'),
  'classes moved (%)': ('classes', '.0f'),
  'features moved (%)': ('features', '.1f'),
  'grouped (%)': ('grouped', '.2f'),
  'hardened (%)': ('hardened', '.2f'),
  'fine-tuned (%)': ('accuracy', '.2f'),
}


def legend(from_scratch):
  """Returns what columns and rows mean; from_scratch: no group is from the baseline."""
  but = ' but the learned groups, which start from nothing,' if from_scratch else ''
  return (
    'Agreement: share of the classes in the group that holds most of their superclass; by chance: that of random '
    f'groups of these sizes. Converged: every assignment at least {CONVERGED:g} confident from this step of grouping '
    'on. Moved: ended in another group than the spectral start had put it in; groups from a noise start take one '
    'grouping run more, which finds them, and (learned, long) those from the spectral start one run of as many steps '
    f'as these two. All{but} start from the same baseline of their seed; S, C and R split it at once and are '
    'fine-tuned with the same steps, or (long) with as many as grouping and fine-tuning have together, for which the '
    'dense network (long) is trained on too; that network teaches the taught ones. Steps in all count from the first '
    'weights on. Mean ± standard deviation.'
  )


def least_confidences(folder):
  """Reads the least confidence of all assignments, by step, steps rising."""
  logged = read_metrics(folder, 'train')
  least = {line['step']: min(line['confidence'].values()) for line in logged if line.get('confidence')}
  return dict(sorted(least.items()))


def converged_at(least):
  """Returns the step from which on all were CONVERGED confident, or None."""
  late = [step for step, value in least.items() if value < CONVERGED]
  return next((step for step in least if not late or step > late[-1]), None)


def moved(result):
  """Returns how many % of classes and of features left their group of the start.

  Both are None if it started from noise, or a checkpoint is not there any more.
  """
  if not checkpoints.exists(result['folder']):
    return None, None
  stored = checkpoints.read(result['folder'], read_older)
  settings = stored.configuration['settings']
  if settings.get('assignment_start') != 'spectral' or not checkpoints.exists(result['base_folder']):
    return None, None
  base = checkpoints.read(result['base_folder'], read_older)
  alphas = grouping.spectral_start(stored.graph, base.values, settings.get('seed', 0))
  started = hard_groups_of(stored.graph, {f'group/{name}/alpha': alpha for name, alpha in alphas.items()})
  ended = hard_groups_of(stored.graph, stored.values)
  return tuple(100 * share for share in grouping.moved(stored.graph, started, ended))


def row_of(result, grouped=None):
  """Returns what is shown of a run, beside the grouping run it was hardened from."""
  sizes = result['group_sizes']
  row = {name: result[name] for name in ('agreement', 'chance')}
  row.update(steps=result['steps_in_all'], accuracy=100 * result['accuracy'])
  if sizes:
    row['largest'] = max(sizes) * len(sizes) / sum(sizes)
  if grouped:
    least = least_confidences(grouped['folder'])
    row['confidence'] = list(least.values())[-1] if least else None
    row['converged'] = converged_at(least)
    row['classes'], row['features'] = moved(grouped)
    row['grouped'] = grouped['grouped_accuracy'] and 100 * grouped['grouped_accuracy']
    row['hardened'] = 100 * grouped['accuracy']
  return row


def table(results):
  """Makes the table, (header, rows) of text: a row per seed, and their mean."""
  rows = []
  for split, kinds in ROWS_OF_GROUPS:
    for text, grouping_run, run in kinds.values():
      grouped = {result['seed']: result for result in results.get(grouping_run.format(split), [])}
      of_run = results.get(run.format(split), [])
      shown = {result['seed']: row_of(result, grouped.get(result['seed'])) for result in of_run}
      _, texts = of_dicts(COLUMNS, shown.values())
      rows += [[split, text, str(seed), *numbers] for seed, numbers in zip(shown, texts)]
      if len(shown) > 1:
        means = [mean_text([row.get(key) for row in shown.values()], form) for key, form in COLUMNS.values()]
        rows.append([split, text, 'mean', *means])
  return ['split', 'groups', 'seed', *COLUMNS], rows
