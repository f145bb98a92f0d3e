"""counting.py: what single layers have, and what the paper leaves out."""

from splitnet.network import counting
from splitnet.network.builder import Builder
from splitnet.network.graph import Tree


def built(counted='all', scaled=True):
  """Counts of a tiny network: a stem that is not counted, a convolution with biases, a batch norm, a last layer."""
  b = Builder('tiny', {'trunk': 1, 'logits': 1}, 8)
  x = b.conv('stem', b.image, b.shared('stem', 5), 3, counted='none')
  x = b.conv('conv', x, b.shared('conv', 7), 3, stride=2, bias=True, counted=counted)
  x = b.mean(b.relu(b.batch_norm('bn', x, scaled)))
  b.at('logits')
  b.linear('fc', x, b.inner('classes', 10))
  return counting.counts(Tree(b.graph()))


def test_counts_of_single_layers():
  stem, conv, norm, fc = built()
  assert [c.name for c in (stem, conv, norm, fc)] == ['stem', 'conv', 'bn', 'fc']
  assert (stem.parameters, stem.flops, stem.counted) == (9 * 3 * 5, 2 * 9 * 3 * 5 * 64, (0, 0))
  assert (conv.parameters, conv.flops) == (9 * 5 * 7 + 7, 2 * 9 * 5 * 7 * 16 + 7 * 16)
  assert (norm.parameters, norm.flops, norm.counted) == (14, 2 * 7 * 16, (0, 0))
  assert (fc.parameters, fc.flops) == (7 * 10 + 10, 2 * (7 * 10 + 10)) == fc.counted
  assert built(scaled=False)[2].parameters == 7
  assert conv.node == ('trunk', 0) and fc.node == ('logits', 0)


def test_biases_count_or_not():
  assert built()[1].counted == (9 * 5 * 7 + 7, 2 * 9 * 5 * 7 * 16 + 7 * 16)
  assert built('weights')[1].counted == (9 * 5 * 7, 2 * 9 * 5 * 7 * 16)


def test_totals_leave_out_what_the_paper_leaves_out():
  counts = built()
  assert counting.total(counts) == (counts[1].parameters + 80, counts[1].flops + 160)
  assert counting.total(counts, everything=True) == tuple(
    sum(getattr(c, name) for c in counts) for name in ('parameters', 'flops')
  )
