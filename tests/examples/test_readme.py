"""README's first block, on a small budget."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

README = Path(__file__).parents[2] / "README.md"


def test_first_block_runs_and_draws_its_picture(tmp_path, monkeypatch):
    block = README.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    quick = block.replace("random_state=0", "random_state=0, n_epochs=1")
    assert quick != block
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(quick, "README.md", "exec"), names)
    # what is drawn next in this process has a figure of its own
    names["plt"].close(names["fig"])
    assert names["forecast"].all_values().shape == (24, 1, 500)
    assert Path("sunspots.png").stat().st_size > 0
