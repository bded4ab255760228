"""Series and covariates that are refused, each with a message that names the problem."""

import warnings

import numpy as np
import pandas as pd
import pytest
from darts import TimeSeries
from darts.utils.likelihood_models import torch as likelihoods
from darts.utils.timeseries_generation import linear_timeseries

from tests.helpers import covariate, noisy_sine, static, with_gaps


def test_series_must_have_observed_values(tiny):
    nothing = with_gaps(noisy_sine(), slice(None))
    with pytest.raises(ValueError, match="`series` must have observed .* index `1`"):
        tiny().fit([noisy_sine(), nothing])
    with pytest.raises(ValueError, match="`series` must have observed"):
        tiny().fit(noisy_sine()).predict(3, nothing)


def test_infinite_values(tiny):
    broken = noisy_sine(100).values(copy=True)
    broken[5] = np.inf
    broken = noisy_sine(100).with_values(broken)
    series = noisy_sine()
    with pytest.raises(ValueError, match="`series` must be finite"):
        tiny().fit(broken)
    with pytest.raises(ValueError, match="`past_covariates` must be finite"):
        tiny().fit(series, past_covariates=broken)
    with pytest.raises(ValueError, match="`future_covariates` must be finite"):
        tiny().fit(series, future_covariates=broken)


def test_values_outside_the_support(tiny):
    model = tiny(likelihood=likelihoods.PoissonLikelihood())
    with pytest.raises(ValueError, match="`series` must lie in the support of `Poi"):
        model.fit(noisy_sine())
    counts = noisy_sine().map(lambda x: np.round(3 * np.exp(x)))
    with pytest.raises(ValueError, match="`series` must lie in the support"):
        model.fit(counts).predict(3, counts - 100)


def test_series_too_short(tiny):
    with pytest.raises(ValueError, match="too short"):
        tiny().fit(linear_timeseries(length=10).astype(np.float32))


@pytest.mark.parametrize("name", ["past_covariates", "future_covariates", "series"])
def test_infinities_are_refused_after_and_beside_training(tiny, name):
    """In validation, and where a forecast starts from them."""
    given = {
        "series": noisy_sine(),
        "past_covariates": covariate(80),
        "future_covariates": covariate(100),
    }
    broken = given[name].values(copy=True)
    broken[75] = np.inf
    broken = given | {name: given[name].with_values(broken)}
    refused = pytest.raises(ValueError, match=f"`{name}` must be finite or NaN")
    with refused:
        tiny().fit(**given, **{f"val_{k}": v for k, v in broken.items()})
    model = tiny(n_epochs=1).fit(**given)
    with refused:
        model.predict(6, **broken)
    with refused:
        model.historical_forecasts(**broken, start=-8, retrain=False)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_static_covariates_are_finite_or_missing(tiny, value):
    series = noisy_sine()
    clean = series.with_static_covariates(pd.DataFrame({"a": [1.0]}))
    broken = series.with_static_covariates(pd.DataFrame({"a": [value]}))
    model = tiny(n_epochs=1).fit(clean)
    for attempt in (
        lambda: tiny(n_epochs=1).fit(broken).predict(3),
        lambda: model.predict(3, broken),
    ):
        if np.isnan(value):
            assert np.isfinite(attempt().values()).all()
        else:
            with pytest.raises(ValueError, match="`static_covariates` must be finite"):
                attempt()


@pytest.mark.parametrize("kind", ["past_covariates", "future_covariates", "series"])
def test_absurd_input_is_no_crash_inside_torch(tiny, kind):
    """Values near the end of float32: a finite forecast, or an error that says where."""
    given = {"series": noisy_sine(), kind: covariate(100)} | {"series": noisy_sine()}
    model = tiny(n_epochs=1).fit(**given)
    absurd = {kind: given[kind].with_values(np.full((len(given[kind]), 1), 1e37))}
    try:
        drawn = model.predict(6, **(given | absurd)).values()
    except ValueError as error:
        assert f"`{kind}`" in str(error)
    else:
        assert np.isfinite(drawn).all()


@pytest.mark.parametrize("first", [True, False])
def test_all_series_or_none_have_static_covariates(tiny, first):
    one, other = noisy_sine().with_static_covariates(static(1.0)), noisy_sine(seed=1)
    series = [one, other] if first else [other, one]
    with pytest.raises(ValueError, match="`series` must have static covariates") as error:
        tiny().fit(series)
    assert f"(at sequence index `{int(first)}`)" in str(error.value)


@pytest.mark.parametrize("family, bad", [("Gamma", 0.0), ("Beta", 0.0), ("Beta", 1.0)])
def test_values_of_infinite_density_are_refused(tiny, family, bad):
    values = np.random.default_rng(0).uniform(0.1, 0.9, (80, 1)).astype(np.float32)
    values[20] = bad
    likelihood = getattr(likelihoods, f"{family}Likelihood")()
    with pytest.raises(ValueError, match="`series` must lie in the support of"):
        tiny(likelihood=likelihood).fit(noisy_sine().with_values(values))


@pytest.mark.parametrize("number", [1, 3])
def test_each_series_has_covariates(tiny, number):
    known, series = [covariate(100)] * number, [noisy_sine()] * 2
    message = "`future_covariates` must have one series for each"
    model = tiny(n_epochs=1).fit(noisy_sine(), future_covariates=covariate(100))
    with pytest.raises(ValueError, match=message):
        model.predict(3, series, future_covariates=known)
    with pytest.raises(ValueError, match=message):
        tiny().fit(series, future_covariates=known)


def test_future_covariates_must_cover_the_horizon(tiny):
    """The message is about the horizon, also where it is longer than the output chunk."""
    model = tiny(n_epochs=1).fit(noisy_sine(), future_covariates=covariate(80))
    for n, steps in ((2, 6), (10, 10)):
        with pytest.raises(ValueError, match=f"must extend {steps} steps") as error:
            model.predict(n, future_covariates=covariate(80 + steps - 1))
        assert "at sequence index `0`" in str(error.value)
        assert len(model.predict(n, future_covariates=covariate(80 + steps))) == n


@pytest.mark.parametrize("patch_length", [1, 4])
def test_future_covariates_must_have_the_frequency(tiny, patch_length):
    """Where it differs, their ends cannot be compared, or should not be."""
    series, known = noisy_sine(), covariate(100)
    model = tiny(n_epochs=1, patch_length=patch_length)
    model.fit(series, future_covariates=known)
    hours = pd.date_range(series.start_time(), periods=len(known), freq="h")
    for index in (pd.RangeIndex(len(known)), hours):
        other = TimeSeries.from_times_and_values(index, known.values())
        with pytest.raises(ValueError, match="`future_covariates` frequency .* not match"):
            model.predict(6, series, future_covariates=other)


def test_half_precision_draws_no_warning(tiny):
    series = noisy_sine().astype(np.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        forecast = (
            tiny(n_epochs=1).fit(series, future_covariates=series).predict(1, series[:60])
        )
    assert np.isfinite(forecast.values()).all()
