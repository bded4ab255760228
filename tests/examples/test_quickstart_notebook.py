"""
The notebook: as kept it is from one real run, and it runs.
"""

import base64
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PATH = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"
BUDGET = "n_epochs = 1\nnum_samples = 20\nstride = 24"
MODELS = ("DDSSM", "TiDEModel", "ExponentialSmoothing")
PICTURES = {"data", "fan", "event", "latents", "impute"}
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(home|root|tmp|work|usr|opt|Users)/|[A-Z]:\\\\")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_budget(cell):
    return "parameters" in cell.metadata.get("tags", [])


def pictures(notebook):
    """Decoded PNGs by the name of the cell that drew them."""
    return {
        cell.id: base64.b64decode(output.data["image/png"])
        for cell in code_cells(notebook)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    }


def table(notebook, name):
    """The table that a cell shows, as lines of text."""
    (cell,) = (cell for cell in notebook.cells if cell.id == name)
    (output,) = (out for out in cell.outputs if "text/html" in out.get("data", {}))
    return output.data["text/plain"].splitlines()


def check_results(notebook):
    """What has to hold of a run, however long."""
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    # no warnings and no logs but what the model says that it has decided
    for output in outputs:
        if output.get("name") == "stderr":
            assert all("`DDSSMModel`" in line for line in output.text.splitlines())
    header, *rows = table(notebook, "backtest")
    assert header.split() == ["mcrps", "coverage", "seconds"]
    assert tuple(row.split()[0] for row in rows) == MODELS
    for row in rows:
        crps, coverage, seconds = (float(number) for number in row.split()[1:])
        assert crps > 0 and 0 <= coverage <= 1 and seconds >= 0
    drawn = pictures(notebook)
    assert drawn.keys() == PICTURES
    assert all(png.startswith(b"\x89PNG") and len(png) > 5000 for png in drawn.values())
    assert "the same forecast after loading: True" in json.dumps(cells[-1].outputs)


@pytest.fixture
def kept():
    return nbformat.read(PATH, as_version=4)


def test_the_kept_outputs_are_of_one_run(kept):
    nbformat.validate(kept)
    check_results(kept)
    assert all(cell.outputs for cell in code_cells(kept) if not is_budget(cell))
    assert sum(map(is_budget, kept.cells)) == 1


def test_nothing_tells_the_machine(kept):
    assert kept.metadata.kernelspec.name == "python3"
    for cell in code_cells(kept):
        for output in cell.outputs:
            output.get("data", {}).pop("image/png", None)
    found = MACHINE_PATH.search(json.dumps(kept))
    assert not found, found


def test_the_file_is_small():
    assert PATH.stat().st_size < 600_000


@pytest.mark.slow
def test_it_runs(kept, monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # the kernel's own backend keeps the pictures
    monkeypatch.delenv("MPLBACKEND", raising=False)
    for cell in code_cells(kept):
        cell.outputs, cell.execution_count = [], None
        if is_budget(cell):
            cell.source = BUDGET
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(kept, kernel_name="python3", timeout=900, resources=resources).execute()
    check_results(kept)
    assert not list(tmp_path.iterdir())
