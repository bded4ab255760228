"""Missing values in the target: training, context, forecasts."""

import numpy as np
import pytest
import torch
from conftest import noisy_sine, with_gaps
from darts import TimeSeries
from darts.metrics import mcrps
from darts.utils.data.torch_datasets.utils import TorchTrainingBatch
from darts.utils.missing_values import fill_missing_values
from torch.optim.lr_scheduler import OneCycleLR

from darts_ddssm.ssm.state_space import StateSpaceModel
from darts_ddssm.window import training_window
from darts_ddssm.window import with_gaps as hide


def test_missing_values_in_training_and_context(tiny):
    rng = np.random.default_rng(0)
    series = noisy_sine(num_components=2)
    gaps = rng.random((80, 2)) < 0.3
    gaps[-4:] = True
    model = tiny().fit(with_gaps(series, gaps), val_series=with_gaps(series, gaps))
    assert np.isfinite(model.trainer.callback_metrics["val_loss"].item())
    assert np.isfinite(model.predict(6, num_samples=3).all_values()).all()


def test_a_gap_says_nothing(tiny):
    """Windows whose gaps hold different values give one loss."""
    target = torch.randn(4, 12, 2)
    target[:, 5:8] = torch.nan
    batch = TorchTrainingBatch(past_target=target, future_target=torch.randn(4, 6, 2))
    window = training_window(batch, gap=0)
    assert torch.isfinite(window.x).all()
    module = tiny().fit(noisy_sine(num_components=2)).model.eval()
    losses = []
    for value in (0.0, 1e6):
        x = torch.where(window.observed > 0, window.x, value)
        torch.manual_seed(0)
        losses.append(module.negative_elbo(window._replace(x=x), kl_weight=1.0))
    assert losses[0] == losses[1]


def test_practice_gaps():
    """Gaps of many lengths in the first rows; nothing that is missing comes back."""
    torch.manual_seed(0)
    num_rows, num_steps = 600, 24
    target = torch.randn(800, num_steps, 2)
    target[:, 3] = torch.nan
    empty = target[:, :0]
    window = training_window(TorchTrainingBatch(target, future_target=empty), gap=0)
    hidden = hide(window, num_rows)
    assert torch.equal(hidden.observed[num_rows:], window.observed[num_rows:])
    assert not hidden.observed[:, 3].any()
    assert torch.equal(hidden.x, window.x) and torch.equal(hidden.weight, window.weight)
    seen = hidden.observed[:num_rows, 4:]
    # a quarter on average: half of the values in no row
    assert (1 - seen).mean().item() == pytest.approx(0.25, abs=0.04)
    assert (seen.mean((1, 2)) > 0.9).any() and (seen.mean((1, 2)) < 0.6).any()
    together = (seen[..., 0] == seen[..., 1]).all(1)
    assert 0.4 < together.double().mean() < 0.8
    lengths = set()
    for row in seen[..., 0].tolist():
        runs = "".join("01"[int(value)] for value in row).split("1")
        lengths.update(len(run) for run in runs)
    assert {1, 2, 3, 5, 8, 12} <= lengths


@pytest.mark.parametrize("share, rows", [(0, 0), (0.25, 4), (0.75, 12)])
def test_gaps_are_practised_on_a_share_of_each_batch(tiny, monkeypatch, share, rows):
    practised = []

    def spy(model, window, num_practice=0):
        if model.training:
            practised.append((num_practice, int((window.observed == 0).any((1, 2)).sum())))
        return elbo(model, window, num_practice)

    elbo = StateSpaceModel.elbo
    monkeypatch.setattr(StateSpaceModel, "elbo", spy)
    # 63 windows: three batches of 16 and one of 15
    tiny(n_epochs=1, batch_size=16, gap_practice=share).fit(noisy_sine())
    told, hidden = zip(*practised, strict=True)
    assert told == (rows,) * 3 + (int(share * 15),)
    # a row may be lucky and lose nothing
    assert 0.5 * sum(told) <= sum(hidden) <= sum(told)


# --- accuracy -------------------------------------------------------------------------

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

    After 36 epochs, of two seeds: 9 and 20 %, interpolation 200 %.
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
            stride=6,
            retrain=False,
            num_samples=50,
            last_points_only=False,
            random_state=0,
        )
        scores = [mcrps([x] * len(f), f) for x, f in zip(full, forecasts, strict=True)]
        return float(np.mean(scores))

    complete, missing = score(full), score(gaps)
    assert missing < 1.3 * complete
    assert missing < 0.7 * score(filled)
