"""docs/splitnet.ipynb: runs from start to end in a small setting, and keeps the outputs of the whole one."""

import os

import helpers
import nbformat
import pytest

PATH = os.path.join(helpers.PROJECT, 'docs', 'splitnet.ipynb')
WHOLE = "images_per_class, steps = 100, {'baseline': 600, 'group': 300, 'split': 200}"
SMALL = "images_per_class, steps = 4, {'baseline': 6, 'group': 4, 'split': 2}"


def test_its_outputs_are_kept_and_small():
  notebook = nbformat.read(PATH, as_version=4)
  nbformat.validate(notebook)
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
  text = ''.join(''.join(output.get('text', '')) for cell in code for output in cell.outputs)
  assert 'agreement with the superclasses' in text and 'fine-tuned' in text and 'branch_1' in text
  assert sum('image/png' in output.get('data', {}) for cell in code for output in cell.outputs) == 3
  assert not [output for cell in code for output in cell.outputs if output.output_type == 'error']
  assert os.path.getsize(PATH) < 1 << 20


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch):
  client = pytest.importorskip('nbclient')
  notebook = nbformat.read(PATH, as_version=4)
  [cell] = [cell for cell in notebook.cells if WHOLE in cell.source]
  cell.source = cell.source.replace(WHOLE, SMALL)
  monkeypatch.setenv('TMPDIR', str(tmp_path))
  client.NotebookClient(notebook, timeout=600, resources={'metadata': {'path': os.path.dirname(PATH)}}).execute()
  text = ''.join(output.get('text', '') for c in notebook.cells for output in c.get('outputs', []))
  assert 'fine-tuned' in text and 'branch_1' in text and 'INFO' not in text
