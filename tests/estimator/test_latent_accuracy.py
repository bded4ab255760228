"""
States, likelihood and imputation of a trained model, against the Kalman smoother.

A short training, with margins for it; `tests/benchmarks/latents.py` has the long one.
"""

import numpy as np
import pytest
import scoringrules as sr
from darts import TimeSeries
from sklearn.linear_model import LinearRegression
from torch.optim.lr_scheduler import OneCycleLR

from darts_ddssm import DDSSMModel
from darts_ddssm.datasets import SimulatedSeries, linear_gaussian
from tests.helpers import TRAINER

pytestmark = pytest.mark.slow

LENGTH, UPDATES = 32, 700


@pytest.fixture(scope="module")
def model() -> DDSSMModel:
    model = DDSSMModel(
        input_chunk_length=24,
        output_chunk_length=8,
        latent_dim=2,
        transition_order=1,
        overshooting_weight=0,
        batch_size=64,
        n_epochs=UPDATES,
        random_state=0,
        lr_scheduler_cls=OneCycleLR,
        lr_scheduler_kwargs={
            "max_lr": 1e-2,
            "total_steps": UPDATES,
            "pct_start": 0.1,
            "interval": "step",
        },
        pl_trainer_kwargs=TRAINER | {"max_steps": UPDATES},
    )
    return model.fit(linear_gaussian(1024, LENGTH, random_state=0).series)


@pytest.fixture(scope="module")
def held_out() -> SimulatedSeries:
    return linear_gaussian(128, LENGTH, random_state=1)


def values(series: list[TimeSeries]) -> np.ndarray:
    return np.stack([s.values() for s in series])


def test_log_likelihood(model, held_out):
    series = held_out.series[:32]
    exact = [held_out.process.log_likelihood(s.values()) / LENGTH for s in series]
    one, many = (
        np.array(model.log_likelihood(series, num_samples=n, random_state=0)) - exact
        for n in (1, 32)
    )
    error = many.std() / len(many) ** 0.5
    assert -0.06 < many.mean() < 3 * error
    # the difference is that of pairs
    gain = many - one
    assert gain.mean() > -3 * gain.std() / len(gain) ** 0.5
    assert one.mean() < 3 * one.std() / len(one) ** 0.5


def test_predictive_log_densities(model, held_out):
    """Of each step, beside those of the Kalman filter, with a gap among them."""
    series = [one.values(copy=True) for one in held_out.series[:32]]
    for x in series:
        x[10:13] = np.nan
    process = held_out.process
    exact = [
        np.diff([0.0] + [process.log_likelihood(x[:t]) for t in range(1, LENGTH + 1)])
        for x in series
    ]
    found = model.log_likelihood(
        [s.with_values(x) for s, x in zip(held_out.series, series, strict=False)],
        by_step=True,
        random_state=0,
    )
    error = np.stack([one.values()[:, 0] for one in found]) - np.stack(exact)
    assert np.isnan(error[:, 10:13]).all()
    assert np.abs(np.nanmean(error)) < 0.06
    assert np.nanstd(error) < 0.4


def test_transforms_are_uniform(model, held_out):
    transform = values(model.probability_integral_transform(held_out.series[:32]))
    counts = np.histogram(transform, bins=5, range=(0, 1))[0] / transform.size
    assert np.abs(counts - 0.2).max() < 0.06


@pytest.mark.parametrize("filtering, margin", [(False, 1.15), (True, 1.08)])
def test_states(model, held_out, filtering, margin):
    true = values(held_out.latents).reshape(-1, 2)
    latents = model.infer_latents(
        held_out.series, num_samples=100, filtering=filtering, random_state=0
    )
    inferred = np.stack([z.all_values().mean(-1) for z in latents]).reshape(-1, 2)
    fitted = LinearRegression().fit(inferred, true).predict(inferred)
    name = "filtered_mean" if filtering else "smoothed_mean"
    oracle = [getattr(held_out.process.smooth(s.values()), name) for s in held_out.series]
    best = np.square(np.concatenate(oracle) - true).mean() ** 0.5
    assert np.square(fitted - true).mean() ** 0.5 < margin * best


@pytest.mark.parametrize("length", [1, 4])
def test_imputation(model, held_out, length):
    """Near the Kalman smoother's, far from that of a model that has seen no gap."""
    rng = np.random.default_rng(0)
    actual = values(held_out.series)
    start = rng.integers(0, LENGTH - length + 1, size=(len(actual), 1))
    missing = (np.arange(LENGTH) >= start) & (np.arange(LENGTH) < start + length)
    gappy = [
        s.with_values(np.where(gaps[:, None], np.nan, s.values()))
        for s, gaps in zip(held_out.series, missing, strict=True)
    ]
    filled = model.impute(gappy, num_samples=100, random_state=0)
    samples = np.stack([s.all_values()[:, 0] for s in filled])
    ours = sr.crps_ensemble(actual[missing, 0], samples[missing], estimator="fair").mean()
    process, best = held_out.process, []
    for x, gaps, s in zip(actual, missing, gappy, strict=True):
        moments = process.smooth(s.values())
        mean = moments.smoothed_mean[gaps] @ process.emission.T
        covariance = moments.smoothed_covariance[gaps]
        covariance = process.emission @ covariance @ process.emission.T
        std = np.sqrt(covariance + process.emission_covariance)[:, 0, 0]
        best.append(sr.crps_normal(x[gaps, 0], mean[:, 0], std))
    assert ours < 1.25 * np.concatenate(best).mean()


def test_simulation_has_the_spread_of_the_series(model, held_out):
    simulated = model.simulate(LENGTH, num_samples=500, random_state=0).all_values()[:, 0]
    std = values(held_out.series).std()
    assert simulated.std() == pytest.approx(std, rel=0.15)
    # half a turn of the hidden rotation
    lagged = np.corrcoef(simulated[:-6].ravel(), simulated[6:].ravel())[0, 1]
    assert lagged < -0.4
