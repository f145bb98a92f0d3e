"""Tells what eval.py found as a table of text, and what each device computed."""

import collections

import numpy as np

from splitnet.network import hardening
from splitnet.parallel import placement


def describe_part(part, costs, device):
  """Returns what a device computes: a dict that JSON can hold."""
  reads = part.source and list(part.source)
  return {'device': device, 'branches': part.nodes, 'reads': reads, 'flops': placement.part_load(part, costs)}


def result_text(result, names):
  """Returns the result of eval.py, a dict, as text of many lines."""
  rows = [
    ('checkpoint', result['checkpoint']),
    ('network', result['network_text']),
    ('devices', ', '.join(result['devices'])),
    ('images', f'{result["images"]:,} ({result["split"]})'),
    ('accuracy, top 1', f'{100 * result["accuracy"]:.2f} %'),
    ('accuracy, top 5', f'{100 * result["top5_accuracy"]:.2f} %'),
    *([('accuracy, superclass', f'{100 * result["superclass_accuracy"]:.2f} %')] if names.coarse else []),
    ('cross-entropy', f'{result["cross_entropy"]:.4f}'),
    ('parameters', f'{result["parameters"]:,}'),
    ('FLOPs per image', f'{result["flops"]:,}'),
  ]
  if result['hardened']:
    rows.append(('dropped by hardening', hardening.describe_dropped(hardening.Dropped(**result['dropped']))))
  if len(result['placement']) > 1:
    loads = collections.Counter()
    for part in result['placement']:
      loads[part['device']] += part['flops']
    rows.append(('FLOPs, busiest device', f'{max(loads.values()):,} (trunk: {result["trunk"]})'))
  speed = f'{result["images_per_second"]:.0f}, {result["in_flight"]} batches under way on each device'
  rows.append(('images per second', speed))
  rows.append(('latency of one batch', f'{1000 * result["latency"]:.1f} ms, {result["batch_size"]} images'))
  if 'groups' in result:
    errors, across = result['errors'], result['errors_across_groups']
    rows.append(('errors across groups', f'{across} of {errors} ({100 * across / max(errors, 1):.1f} %)'))
    agreement = 'not known: the data has no superclasses'
    if names.coarse:
      agreement = (
        f'{result["agreement"]:.2f} of the classes are in the group that has most of their superclass; of random '
        f'groups {result["chance_agreement"]:.2f}'
      )
    rows.append(('agreement of the groups', agreement))
  lines = [f'{name:26} {value}' for name, value in rows]
  for g, members in enumerate(result.get('groups', [])):
    lines += ['', f'group {g}, {len(members)} classes: {", ".join(members)}']
  return '\n'.join([*lines, '', *_accuracy_by_class(result, names)])


def _accuracy_by_class(result, names):
  def percent(value):
    return '-' if value is None else f'{100 * value:.0f}'

  if not names.coarse:
    inside = [f'{name} {percent(result["class_accuracy"][name])}' for name in names.fine]
    return ['accuracy by class (%)', ', '.join(inside)]
  lines, width = ['accuracy by superclass and class (%)'], max(map(len, names.coarse))
  for i, coarse in enumerate(names.coarse):
    members = [names.fine[c] for c in np.flatnonzero(names.fine_to_coarse == i)]
    inside = ', '.join(f'{name} {percent(result["class_accuracy"][name])}' for name in members)
    lines.append(f'{coarse:{width}} {percent(result["accuracy_within_superclass"][coarse]):>4}   {inside}')
  return lines
