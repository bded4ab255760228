"""Missing values in the target: training, context, forecasts, accuracy."""

import numpy as np
import pytest
from darts import TimeSeries
from darts.metrics import mcrps
from darts.utils.missing_values import fill_missing_values
from torch.optim.lr_scheduler import OneCycleLR

from darts_ddssm.ssm.transition import Transition
from tests.helpers import SERIES, TRANSITIONS, fitted, noisy_sine, with_gaps


def test_missing_values_in_training_and_context(tiny):
    rng = np.random.default_rng(0)
    series = noisy_sine(num_components=2)
    gaps = rng.random((80, 2)) < 0.3
    gaps[-4:] = True
    model = tiny().fit(with_gaps(series, gaps), val_series=with_gaps(series, gaps))
    assert np.isfinite(model.trainer.callback_metrics["val_loss"].item())
    assert np.isfinite(model.predict(6, num_samples=3).all_values()).all()


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_a_small_batch_sends_no_more_paths_through_a_gap(monkeypatch, transition):
    """However few samples are drawn at a time, to bound the memory."""
    model, series = fitted(transition=transition), with_gaps(SERIES, slice(-6, -3))
    sample, num_rows = Transition.sample, []

    def counted(self, history, u, *args):
        num_rows.append(len(u))
        return sample(self, history, u, *args)

    monkeypatch.setattr(Transition, "sample", counted)

    def num_drawn(batch_size: int) -> int:
        num_rows.clear()
        how = {"num_samples": 200, "random_state": 0}
        forecast = model.predict(2, series, batch_size=batch_size, **how)
        assert forecast.n_samples == 200
        assert np.isfinite(forecast.all_values()).all()
        return sum(num_rows)

    assert num_drawn(batch_size=1) == num_drawn(batch_size=64)


LENGTH, CUT = 320, 240


def seasonal_with_gaps() -> tuple[list[TimeSeries], list[TimeSeries]]:
    """Four seasonal series, and the same less 30 % of the values and blocks of 20."""
    rng = np.random.default_rng(0)
    full, gaps = [noisy_sine(LENGTH, seed=i) for i in range(4)], []
    for series in full:
        missing = rng.random(LENGTH) < 0.3
        # one in the part that is trained on, one in the part that is forecast
        for start in (0, CUT):
            block = start + rng.integers(60)
            missing[block : block + 20] = True
        gaps.append(with_gaps(series, missing))
    return full, gaps


@pytest.mark.slow
def test_gaps_cost_little_accuracy(tiny):
    """Within 30 % of the CRPS on the full series, where interpolation loses far more.

    Of two seeds: 7 %, interpolation over 100 %.
    """
    full, gaps = seasonal_with_gaps()
    filled = [fill_missing_values(series, fill="auto") for series in gaps]

    def score(series: list[TimeSeries]) -> float:
        epochs = 18
        batches = 4 * (CUT - 47) // 32 + 1
        model = tiny(
            input_chunk_length=36,
            output_chunk_length=12,
            latent_dim=4,
            hidden_size=32,
            batch_size=32,
            n_epochs=epochs,
            overshooting_weight=0,
            lr_scheduler_cls=OneCycleLR,
            lr_scheduler_kwargs={
                "max_lr": 5e-3,
                "total_steps": batches * epochs,
                "pct_start": 0.1,
                "interval": "step",
            },
        )
        model.fit([s[:CUT] for s in series])
        forecasts = model.historical_forecasts(
            series,
            start=CUT,
            forecast_horizon=12,
            stride=12,
            retrain=False,
            num_samples=50,
            last_points_only=False,
            random_state=0,
        )
        scores = [mcrps([x] * len(f), f) for x, f in zip(full, forecasts, strict=True)]
        return float(np.mean(scores))

    missing = score(gaps)
    assert missing < 1.3 * score(full)
    assert missing < 0.7 * score(filled)


@pytest.mark.parametrize("num_missing", [11, 12])
def test_series_without_a_level_is_told(tiny, caplog, num_missing):
    """Where the input chunk, of which it is taken, has no value."""
    model = tiny(use_reversible_instance_norm=True).fit(noisy_sine())
    gone = with_gaps(noisy_sine(), slice(80 - num_missing, 80))
    caplog.clear()
    model.predict(3, [noisy_sine(), gone])
    told = "1 of 2 series have a component without a value in the last 12 steps"
    assert (told in caplog.text) == (num_missing == 12)
