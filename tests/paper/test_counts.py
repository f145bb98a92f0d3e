"""Tests counts against the paper's, and what the program prints of them."""

import pytest
from made_runs import rows_of

from paper import counts, experiments, published, tables


def test_percentages_are_the_papers_where_branches_read_all_of_their_parent():
  header, rows = counts.counts_table(experiments.Experiment(k=8, branch_input='all').config)
  assert [row[0].split()[-1] for row in rows] == ['dense', *published.SPLITS]
  for here, paper in (('% reduced', '% reduced (paper)'), ('% FLOPs reduced', '% FLOPs reduced (paper)')):
    ours, theirs = ([float(row[header.index(name)]) for row in rows] for name in (here, paper))
    assert ours == pytest.approx(theirs, abs=0.15) and theirs[-1] > 30


@pytest.mark.parametrize('table, count, flops_digits', [('3', 5, 0.002), ('4', 4, 0.01)])
def test_counts_of_tables_3_and_4_are_the_papers_as_nearly_as_even_groups_can_be(table, count, flops_digits):
  network, published_rows = published.TABLES[table]
  _, rows = counts.counts_table(experiments.Experiment('paper', network).config, published_rows)
  assert len(rows) == len(published_rows) == count
  for _, parameters, m, less, paper_less, flops, g, fewer, paper_fewer in rows:
    assert abs(int(parameters.replace(',', '')) / 1e6 - float(m)) < 0.05
    assert abs(int(flops.replace(',', '')) / 1e9 - float(g)) < flops_digits
    assert abs(float(less) - float(paper_less)) <= 0.06 and abs(float(fewer) - float(paper_fewer)) <= 0.06


def test_layers_add_up_and_everything_adds_what_the_paper_leaves_out():
  counted = counts.layer_counts(experiments.Experiment(k=1, branch_input='all').config('2-4-4'))
  for everything in (False, True):
    _, rows = counts.layers_table(counted, everything)
    assert ('init_conv' in [row[0] for row in rows]) == everything
    for column in (1, 2):
      numbers = [int(row[column].replace(',', '')) for row in rows]
      assert numbers[-1] == sum(numbers[:-1])
  _, rows = counts.layers_table(counted)
  assert [row[0] for row in rows if 'fc' in row[0]] == [f'branch_{i}/logits/fc' for i in range(4)]


def test_the_program_prints_counts(capsys):
  assert tables.main(['counts', '--k', '1', '--per_layer', 'dense', '--branch_input', 'all']) == 0
  rows = rows_of(capsys.readouterr().out)
  assert rows[1] == ['unit_1_0/conv_1', '2,304', '4,718,592']
  assert tables.main(['counts', '--k', '1']) == 0
  out = capsys.readouterr().out
  assert len(out.split('branch_input')) == 3 and 'WRN-16-1' in out
  dense = [row for row in rows_of(out) if row[0] == 'dense']
  assert [row[1::4] for row in dense[-2:]] == [['62,367,776', '2,278,248,448'], ['45,673,832', '14,038,484,944']]


@pytest.mark.parametrize('split', list(published.SPLITS))
def test_split_depths_are_the_networks(split):
  graph = experiments.Experiment(k=1).config(split).graph()
  assert str(len(graph.split_layers)) == published.SPLITS[split][1]
