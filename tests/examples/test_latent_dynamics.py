"""The example of the latent side, on a few series and hardly trained."""

import importlib.util
from pathlib import Path

import pytest

from darts_ddssm.datasets import SimulatedSeries, bimodal_random_walk

SCRIPT = Path(__file__).parents[2] / "examples" / "latent_dynamics.py"
PICTURES = {"latent_states", "latent_transition", "forecast_density", "gap", "scenario"}


@pytest.mark.slow
def test_it_draws_its_pictures(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("latent_dynamics", SCRIPT)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    def few(num_series: int, *args, **kwargs) -> SimulatedSeries:
        return bimodal_random_walk(min(num_series // 8, 16), *args, **kwargs)

    monkeypatch.setattr(example, "bimodal_random_walk", few)
    monkeypatch.setitem(example.TRAINER, "enable_progress_bar", False)
    example.simulated(tmp_path, updates=1)
    pictures = list(tmp_path.glob("*.png"))
    assert {path.stem for path in pictures} == PICTURES
    assert all(path.stat().st_size > 0 for path in pictures)
    printed = capsys.readouterr().out
    assert "DDSSM, diffusion" in printed and "anomaly planted" in printed
