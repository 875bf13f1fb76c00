"""The notebooks of docs/ run from top to bottom as they stand."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs(file: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    assert all(output.output_type != "error" for cell in notebook.cells for output in cell.get("outputs", []))


def test_notebooks_hold_no_output() -> None:
    """What they print is of the reader's machine."""
    assert len(NOTEBOOKS) == 2
    for file in NOTEBOOKS:
        assert not any(cell.get("outputs") for cell in nbformat.read(file, as_version=4).cells)
