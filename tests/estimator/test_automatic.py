"""What a model decides by its training set: patch length, whose scale, which scale."""

import numpy as np
import pytest
from darts import TimeSeries
from darts.utils.likelihood_models import torch as likelihoods

from darts_ddssm import DDSSMModel
from darts_ddssm.estimator.automatic import (
    automatic_patch_length,
    prefers_instance_scale,
    say_once,
)
from tests.helpers import drawn, noisy_sine, with_gaps


@pytest.mark.parametrize(
    "window, output, expected",
    [
        (18, 6, 1),
        (48, 12, 1),
        (49, 12, 4),
        (65, 13, 5),
        (80, 20, 5),
        (156, 24, 12),
        (192, 48, 16),
        (120, 7, 7),
        (120, 1, 1),
    ],
)
def test_automatic_length(window, output, expected):
    assert automatic_patch_length(window, output) == expected


def test_scale_is_that_of_the_observed_values(tiny):
    """Of all series of the training set."""
    one, other = noisy_sine(), with_gaps(noisy_sine(seed=1) + 5, slice(20, 50))
    module = tiny(n_epochs=1).fit([one, other]).model
    windows = []
    for series in (one, other):
        values = series.values()[:, 0]
        windows += [values[i : i + 18] for i in range(80 - 17)]
    values = np.concatenate(windows)
    assert module.target_shift.item() == pytest.approx(np.nanmean(values), rel=1e-4)
    assert module.target_spread.item() == pytest.approx(np.nanstd(values), rel=1e-4)


def drifting(length: int = 120) -> TimeSeries:
    """A sine on a rising line."""
    return noisy_sine(length) + np.linspace(0, 20, length, dtype=np.float32)[:, None, None]


def intermittent() -> TimeSeries:
    """Zero, but for pulses of different heights at random."""
    rng = np.random.default_rng(0)
    values = (rng.random(400) < 0.04) * rng.exponential(size=400)
    return TimeSeries.from_values(values.astype(np.float32))


def walk(seed: int) -> TimeSeries:
    """A stationary autoregression that forgets within a window."""
    noise = np.random.default_rng(seed).standard_normal(600)
    x = np.zeros(600)
    for t in range(1, 600):
        x[t] = 0.5 * x[t - 1] + noise[t]
    return TimeSeries.from_values(x.astype(np.float32))


@pytest.mark.parametrize(
    "series, drifts",
    [
        ([noisy_sine(120)], False),
        ([drifting()], True),
        ([drifting() * 1e-9], True),
        ([TimeSeries.from_values(np.full((60, 1), 3.0))], False),
        # two levels, each of which stays
        ([noisy_sine(120), noisy_sine(120) + 50.0], True),
        # too short to tell
        ([drifting()[:19]], False),
        # a constant here and there, and for long
        ([intermittent()], False),
        ([noisy_sine(120).stack(noisy_sine(120).with_columns_renamed("0", "1"))], False),
        *(([walk(seed)], False) for seed in range(5)),
    ],
)
def test_drift_is_recognised(series, drifts):
    values = [one.all_values(copy=True) for one in series]
    assert prefers_instance_scale(series, 12, 0, 6) == drifts
    for one, before in zip(series, values, strict=True):
        assert (one.all_values() == before).all()
    blank = [slice(i, i + 2) for i in range(0, 120, 5)]
    for where in blank:
        series = [with_gaps(one, where) for one in series]
    assert prefers_instance_scale(series, 12, 0, 6) == drifts
    # a single value has no scale
    assert not prefers_instance_scale(series, 1, 0, 6)


@pytest.mark.parametrize("norm, by_instance", [(None, True), (True, True), (False, False)])
def test_drifting_series_are_normalised_window_by_window(tiny, norm, by_instance):
    model = tiny(use_reversible_instance_norm=norm).fit(drifting())
    assert bool(model.model.by_instance) == by_instance
    if by_instance:
        with pytest.raises(ValueError, match="must be called on a model without"):
            model.log_likelihood()
    else:
        assert np.isfinite(model.log_likelihood())


def test_steady_series_have_one_scale(tiny):
    auto, off = (
        drawn(tiny(use_reversible_instance_norm=norm), noisy_sine())
        for norm in (None, False)
    )
    np.testing.assert_array_equal(auto, off)


def test_other_likelihoods_have_one_scale(tiny):
    series = drifting() + 5.0
    model = tiny(likelihood=likelihoods.GammaLikelihood()).fit(series)
    assert not model.model.by_instance
    assert np.isfinite(model.log_likelihood())


def test_whose_scale_is_saved(tiny, tmp_path):
    model = tiny().fit(drifting())
    path = str(tmp_path / "model.pt")
    model.save(path)
    forecasts = [
        one.predict(4, num_samples=3, random_state=1).all_values()
        for one in (model, DDSSMModel.load(path))
    ]
    np.testing.assert_array_equal(*forecasts)
    fresh = tiny()
    fresh.load_weights(path)
    assert fresh.model.by_instance


def test_a_scale_that_was_decided_is_said_and_explained(tiny, caplog):
    """Once, and in the errors that follow from it."""
    say_once.cache_clear()
    for _ in range(2):
        model = tiny(n_epochs=1).fit(drifting())
        assert model.model.by_instance
    said = [r for r in caplog.records if "normalises each window" in r.message]
    assert [record.levelname for record in said] == ["WARNING"]
    for call in (model.infer_latents, model.impute, model.log_likelihood):
        with pytest.raises(ValueError, match="It was switched on automatically.*pass"):
            call()
    # not where the user has decided it
    model = tiny(n_epochs=1, use_reversible_instance_norm=True).fit(drifting())
    with pytest.raises(ValueError) as error:
        model.infer_latents()
    assert "automatically" not in str(error.value)
