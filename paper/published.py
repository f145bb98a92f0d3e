"""Lists the numbers that the paper prints (Kim et al., ICML 2017).

Tables 1, 2 and 5 are of CIFAR-100, 3 and 4 of ILSVRC 2012. A split is named by its numbers of groups,
ngroups3-ngroups2-ngroups1.
"""

import collections

DENSE = '1-1-1'
# Split -> (the paper's name, how many layers are split, groups).
SPLITS = {
  '1-1-4': ('FC', '1', '4'),
  '1-2-2': ('Shallow', '6', '2'),
  '2-2-2': ('Deep', '11', '2'),
  '2-4-4': ('Hierarchical', '11', '2-4'),
}
DROPOUT_SPLITS = ('2-2-2', '2-4-4')  # the rows marked '(dropout)'

# Table 1: test error (%). Whose groups -> the column's heading; run -> error of the dense networks; split -> errors in
# the order of the columns. The deep split's own error is 24.62 here and 24.66 in Table 2.
GROUPINGS = {'semantic': 'S', 'clustering': 'C', 'random': 'R', 'splitnet': 'SplitNet'}
TABLE_1_DENSE = {'baseline': '24.28', 'baseline-dropout': '24.52'}
TABLE_1 = {
  '1-1-4': ('23.80', '23.72', '24.30', '24.26'),
  '1-2-2': ('24.46', '24.54', '25.46', '23.96'),
  '2-2-2': ('25.04', '26.04', '27.12', '24.62'),
  '2-4-4': ('24.92', '25.98', '26.78', '24.80'),
}

# Table 2: split -> parameters (10^6), % reduced, FLOPs (10^9), % reduced, test error (%).
TABLE_2 = {
  DENSE: ('11.0', '0.0', '3.10', '0.0', '24.28'),
  '1-1-4': ('11.0', '0.35', '3.10', '0.0', '24.26'),
  '1-2-2': ('7.42', '32.54', '2.64', '14.63', '23.96'),
  '2-2-2': ('5.90', '46.39', '2.11', '31.97', '24.66'),
  '2-4-4': ('4.12', '62.58', '1.88', '39.29', '24.80'),
}

# Tables 3 (AlexNet) and 4 (ResNet-18x2): split -> parameters (10^6), % reduced, FLOPs (10^9), % reduced, top-1 test
# error (%), that of random groups. The paper names 2-2-2-2-2 '2x5'.
TABLE_3 = {
  DENSE: ('62.37', '0', '2.278', '0', '41.72', ''),
  '1-1-3': ('59.64', '4.38', '2.273', '0.21', '42.07', '42.20'),
  '1-2-5': ('50.69', '18.72', '2.256', '1.00', '42.21', '43.20'),
  '2-4-8': ('27.34', '56.17', '2.209', '3.05', '43.02', '43.35'),
  '2-2-2-2-2': ('31.96', '48.76', '1.847', '18.95', '44.60', '44.99'),
}
TABLE_4 = {
  DENSE: ('45.67', '0', '14.04', '0', '25.58', ''),
  '1-1-3': ('44.99', '1.49', '14.04', '0.01', '24.90', '25.86'),
  '1-2-2': ('28.39', '37.84', '12.39', '11.72', '25.48', '26.41'),
  '2-2-2': ('24.21', '47.00', '10.75', '23.42', '26.45', '28.61'),
}

# Table 5: seconds for 50,000 images in batches of 100 on so many TITAN X Pascal, and the speed-up. `partition` says how
# a dense network stands on several devices; a tree has its branches there.
Timing = collections.namedtuple('Timing', 'name network split devices partition seconds speed_up')
TABLE_5 = [
  Timing('baseline', 'baseline', DENSE, 1, None, 24.27, 1.00),
  Timing('horizontal', 'baseline, horizontal', DENSE, 2, 'horizontal', 46.70, 0.52),
  Timing('vertical-2', 'baseline, vertical', DENSE, 2, 'vertical', 20.15, 1.20),
  Timing('vertical-3', 'baseline, vertical', DENSE, 3, 'vertical', 22.45, 1.08),
  Timing('shallow', 'shallow', '1-2-2', 2, None, 17.78, 1.37),
  Timing('deep', 'deep', '2-2-2', 2, None, 14.03, 1.73),
  Timing('hierarchical', 'hierarchical', '2-4-4', 2, None, 14.22, 1.71),
  Timing('deep-3', 'deep, 3-way', '3-3-3', 3, None, 10.92, 2.22),
]
# Table -> its network, and the numbers by split.
TABLES = {'1': ('wrn', TABLE_2), '2': ('wrn', TABLE_2), '3': ('alexnet', TABLE_3), '4': ('resnet18', TABLE_4)}


def row_name(split, table=TABLE_2):
  """Returns a split as in the first column: 'Deep 2-2-2', or 'dense'."""
  return 'dense' if split == DENSE else f'{SPLITS[split][0]} {split}' if table is TABLE_2 else split
