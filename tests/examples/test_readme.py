"""README's blocks, on a small budget."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

README = Path(__file__).parents[2] / "README.md"


def block_with(text: str) -> str:
    """Return the one block of Python that has some text in it."""
    blocks = README.read_text(encoding="utf-8").split("```python\n")[1:]
    (found,) = (code for code in (b.split("```")[0] for b in blocks) if text in code)
    return found


def run(block: str, names: dict, shorter: dict[str, str]) -> None:
    """Run a block among some names, with parts of its text replaced."""
    for text, replacement in shorter.items():
        assert text in block
        block = block.replace(text, replacement)
    exec(compile(block, "README.md", "exec"), names)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Names and folder of the first block, which later ones go on with."""
    folder, names = tmp_path_factory.mktemp("readme"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        quick = {"random_state=0": "random_state=0, n_epochs=1"}
        run(block_with("statsmodels"), names, quick)
    # what is drawn next in this process has a figure of its own
    names["plt"].close(names["fig"])
    return names, folder


def test_first_block_runs_and_draws_its_picture(first):
    names, folder = first
    assert names["forecast"].all_values().shape == (24, 1, 500)
    assert (folder / "sunspots.png").stat().st_size > 0


@pytest.mark.usefixtures("short_flows")
def test_latent_block_goes_on_with_the_first(first):
    names = dict(first[0])
    slow = (")  # nats per value", ", by_step=True", ")  # of each value")
    few = {end: f", num_samples=2{end}" for end in slow}
    run(block_with("infer_latents"), names, few)
    series, latents = names["series"], names["latents"]
    # a state for each patch of three steps
    assert latents.n_samples == 100 and latents.n_timesteps == len(series) // 3
    assert names["filtered"].n_timesteps == len(series)
    assert np.isfinite(names["score"])
    assert names["by_step"].n_timesteps == latents.n_timesteps
    # the first input chunk tells the scale of the series
    ranks = names["ranks"].values()[36:]
    assert ((ranks >= 0) & (ranks <= 1)).all()
    # nothing is missing in this series
    assert (names["filled"].all_values() == series.all_values()).all()
    # of the paths that the latents are, ten ways on for each
    assert names["following"].shape == (10, 100, latents.n_components)


def test_sktime_block_runs():
    pytest.importorskip("sktime")
    names: dict = {}
    run(block_with("sktime"), names, {"random_state=0": "random_state=0, n_epochs=1"})
    paths = names["paths"]
    # of three months each
    assert len(paths) % 3 == 0 and np.isfinite(paths).all(None)
