"""Forecasts over the past: historical forecasts and grid search."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
from darts import TimeSeries
from darts.dataprocessing.transformers import Scaler
from darts.metrics import mae, mcrps, rmse
from darts.models import TiDEModel
from darts.utils.likelihood_models.torch import LaplaceLikelihood

from darts_ddssm import DDSSMModel
from tests.helpers import TRAINER, covariate, fitted, noisy_sine, signs, with_gaps

NUM_SAMPLES = 300


def driven(length: int = 160, seed: int = 0) -> tuple[TimeSeries, dict[str, TimeSeries]]:
    """A target with a gap that covariates decide, so that no two forecasts are alike."""
    past, future = signs(length, seed), signs(length, seed + 1)
    noise = 0.1 * np.random.default_rng(seed + 2).standard_normal((length, 1))
    target, past, future = (
        TimeSeries.from_values(x.astype(np.float32))
        for x in (future + np.roll(past, 1, axis=0) + noise, past, future)
    )
    target = with_gaps(target, slice(132, 135))
    return target, {"past_covariates": past, "future_covariates": future}


@cache
def trained(shift: int = 0) -> DDSSMModel:
    """Return one model of :func:`driven` for all tests; none of them changes it."""
    model = DDSSMModel(
        input_chunk_length=4,
        output_chunk_length=2,
        output_chunk_shift=shift,
        latent_dim=2,
        hidden_size=8,
        num_solver_steps=5,
        n_epochs=10,
        batch_size=16,
        optimizer_kwargs={"lr": 2e-2},
        random_state=1,
        pl_trainer_kwargs=TRAINER,
    )
    target, covariates = driven()
    return model.fit(target, **covariates)


def times(forecasts):
    """First time, last time, frequency and components, nested as the forecasts are."""
    if isinstance(forecasts, TimeSeries):
        first, last = forecasts.start_time(), forecasts.end_time()
        return first, last, forecasts.freq, forecasts.components.tolist()
    return [times(f) for f in forecasts]


def standard_errors(one: TimeSeries, other: TimeSeries) -> float:
    """Largest difference of two forecasts' means in standard errors."""
    x, y = one.all_values(), other.all_values()
    error = ((x.var(2) + y.var(2)) / x.shape[2]) ** 0.5
    return np.max(np.abs(x.mean(2) - y.mean(2)) / error)


# --- optimised and plain --------------------------------------------------------------


@pytest.mark.darts_compat
@pytest.mark.parametrize("shift, horizon", [(0, 1), (0, 2), (0, 5), (2, 2)])
def test_optimised_and_plain_forecasts_agree(shift, horizon):
    """With gaps, covariates, a long horizon, and a shift; they differ in their draws."""
    target, covariates = driven()
    one, other = (
        trained(shift).historical_forecasts(
            target,
            **covariates,
            start=128,
            stride=3,
            forecast_horizon=horizon,
            retrain=False,
            last_points_only=False,
            num_samples=NUM_SAMPLES,
            enable_optimization=enable,
            random_state=int(enable),
        )
        for enable in (True, False)
    )
    assert times(one) == times(other)
    pairs = [(one[i], other[j]) for i in range(len(one)) for j in range(len(other))]
    errors = [standard_errors(*pair) for pair in pairs]
    errors = np.reshape(errors, (len(one), len(other)))
    # a few dozen numbers each
    assert np.diag(errors).max() < 5
    # forecasts of another start are far away, where the covariates are others
    assert np.quantile(errors[~np.eye(len(errors), dtype=bool)], 0.9) > 10


@pytest.mark.darts_compat
def test_optimised_and_plain_last_points_agree():
    target, covariates = driven()
    one, other = (
        trained().historical_forecasts(
            target,
            **covariates,
            start=128,
            stride=2,
            forecast_horizon=3,
            retrain=False,
            num_samples=NUM_SAMPLES,
            enable_optimization=enable,
            random_state=int(enable),
        )
        for enable in (True, False)
    )
    assert times(one) == times(other)
    assert one.n_samples == other.n_samples == NUM_SAMPLES
    assert standard_errors(one, other) < 5
    values = one.all_values().mean(2)
    assert np.ptp(values) > 2


@pytest.mark.darts_compat
def test_optimised_and_plain_likelihood_parameters_agree():
    target, covariates = driven()
    one, other = (
        trained().historical_forecasts(
            target,
            **covariates,
            start=128,
            stride=2,
            forecast_horizon=2,
            retrain=False,
            predict_likelihood_parameters=True,
            enable_optimization=enable,
            random_state=int(enable),
        )
        for enable in (True, False)
    )
    assert times(one) == times(other)
    assert [name.split("_")[-1] for name in one.components] == ["mu", "sigma"]
    (mean, sigma), (other_mean, other_sigma) = one.values().T, other.values().T
    # moments over 500 paths, whose spread is below that of the values
    error = sigma * (2 / 500) ** 0.5
    assert np.all(np.abs(mean - other_mean) < 5 * error)
    assert np.all(np.abs(sigma - other_sigma) < 5 * error)
    assert np.ptp(mean) > 2


@pytest.mark.darts_compat
def test_optimised_and_plain_several_series_agree():
    """The forecasts of each series come back as its own."""
    pairs = [driven(length, seed) for length, seed in ((160, 0), (150, 7), (155, 9))]
    series = [target for target, _ in pairs]
    covariates = {name: [c[name] for _, c in pairs] for name in pairs[0][1]}
    one, other = (
        trained().historical_forecasts(
            series,
            **covariates,
            start=-6,
            start_format="position",
            forecast_horizon=2,
            retrain=False,
            last_points_only=False,
            num_samples=NUM_SAMPLES,
            enable_optimization=enable,
            random_state=int(enable),
        )
        for enable in (True, False)
    )
    assert times(one) == times(other)
    assert [f[-1].end_time() for f in one] == [s.end_time() for s in series]
    errors = [
        standard_errors(a, b)
        for forecasts in zip(one, other, strict=True)
        for a, b in zip(*forecasts, strict=True)
    ]
    assert max(errors) < 5


def test_historical_forecast_is_the_forecast_from_there():
    """What comes after the start of a forecast does not change it."""
    target, covariates = driven()
    (historical,) = trained().historical_forecasts(
        target,
        **covariates,
        start=-2,
        start_format="position",
        forecast_horizon=2,
        retrain=False,
        last_points_only=False,
        num_samples=NUM_SAMPLES,
    )
    values = target.values(copy=True)
    values[-2:] = 100.0
    (changed,) = trained().historical_forecasts(
        target.with_values(values),
        **covariates,
        start=-2,
        start_format="position",
        forecast_horizon=2,
        retrain=False,
        last_points_only=False,
        num_samples=NUM_SAMPLES,
    )
    forecast = trained().predict(2, target[:-2], **covariates, num_samples=NUM_SAMPLES)
    assert times(forecast) == times(historical)
    assert standard_errors(forecast, historical) < 5
    assert standard_errors(changed, historical) < 5


@pytest.mark.parametrize("enable", [True, False])
def test_past_covariates_that_end_with_the_series_suffice(tiny, enable):
    """As in ``predict()``, however long the horizon."""
    series, past = noisy_sine(), covariate(80)
    model = tiny(n_epochs=1).fit(series, past_covariates=past)
    arguments = dict(
        forecast_horizon=10,
        retrain=False,
        last_points_only=False,
        enable_optimization=enable,
        num_samples=2,
    )
    forecasts = model.historical_forecasts(
        series, past_covariates=past, start=76, overlap_end=True, **arguments
    )
    expected = fitted().historical_forecasts(
        series, start=76, overlap_end=True, **arguments
    )
    assert times(forecasts) == times(expected)
    assert forecasts[-1].start_time() == series.end_time() + series.freq
    (last,) = model.historical_forecasts(
        series, past_covariates=past, start="end", **arguments
    )
    assert times(last) == times(forecasts[-1])


# --- options --------------------------------------------------------------------------


OPTIONS = {
    "default": {},
    "horizon": {"forecast_horizon": 6},
    "long horizon": {"forecast_horizon": 9},
    "stride": {"forecast_horizon": 6, "stride": 5},
    "all points": {"forecast_horizon": 3, "last_points_only": False, "stride": 4},
    "overlap": {"forecast_horizon": 6, "overlap_end": True, "last_points_only": False},
    "start value": {"start": pd.Timestamp("2000-02-20"), "forecast_horizon": 6},
    "start share": {"start": 0.7, "stride": 3},
    "start position": {"start": 66, "last_points_only": False, "stride": 2},
    "start from end": {"start": -9, "start_format": "position", "forecast_horizon": 4},
    "start too early": {"start": 2, "stride": 3, "show_warnings": False},
    "future": {"start": "end", "forecast_horizon": 9, "last_points_only": False},
}


@cache
def tide() -> TiDEModel:
    """Return a fitted model of darts with the same chunks."""
    model = TiDEModel(12, 6, hidden_size=4, n_epochs=1, pl_trainer_kwargs=TRAINER)
    return model.fit(noisy_sine())


@pytest.mark.darts_compat
@pytest.mark.parametrize("name", OPTIONS)
def test_options_mean_what_they_mean_in_darts(name):
    """For one series and for several."""
    for series in (noisy_sine(), [noisy_sine(), noisy_sine(95, seed=1)]):
        forecasts, expected = (
            m.historical_forecasts(series, retrain=False, **OPTIONS[name])
            for m in (fitted(), tide())
        )
        assert times(forecasts) == times(expected)


def test_retraining_changes_the_forecast(tiny):
    """A model that was trained before the level rose learns of it."""
    values = noisy_sine(120).values(copy=True)
    values[60:] += 20
    series = noisy_sine(120).with_values(values)
    model = tiny().fit(series[:50])
    options = dict(start=110, stride=5, num_samples=50, forecast_horizon=2)
    old = model.historical_forecasts(series, retrain=False, **options)
    new = model.historical_forecasts(series, retrain=True, train_length=40, **options)
    actual = series.slice_intersect(new)
    assert mae(actual, new) < 3 < mae(actual, old)


def test_likelihood_parameters_need_a_marginal(tiny):
    model = tiny(n_epochs=1, likelihood=LaplaceLikelihood()).fit(noisy_sine())
    for enable in (True, False):
        with pytest.raises(ValueError, match="`predict_likelihood_parameters"):
            model.historical_forecasts(
                noisy_sine(),
                start=-1,
                start_format="position",
                retrain=False,
                predict_likelihood_parameters=True,
                enable_optimization=enable,
            )


@pytest.mark.darts_compat
def test_transformers_are_fitted_on_each_fold(tiny):
    """By hand: scale the training set, fit, forecast, and scale back."""
    series, past = 200 + 50 * noisy_sine(), 30 * covariate(80)
    forecasts = tiny(n_epochs=1).historical_forecasts(
        series,
        past_covariates=past,
        start=70,
        stride=4,
        forecast_horizon=4,
        last_points_only=False,
        num_samples=5,
        data_transformers={"series": Scaler(), "past_covariates": Scaler()},
        random_state=0,
    )
    assert len(forecasts) == 2
    for forecast in forecasts:
        train = series.drop_after(forecast.start_time())
        scaler, past_scaler = Scaler(), Scaler()
        scaled = scaler.fit_transform(train)
        past_scaler.fit(past.slice_intersect(train))
        scaled_past = past_scaler.transform(past)
        model = tiny(n_epochs=1).fit(scaled, past_covariates=scaled_past)
        expected = model.predict(4, num_samples=5, random_state=0)
        assert times(forecast) == times(expected)
        expected = scaler.inverse_transform(expected)
        np.testing.assert_allclose(forecast.all_values(), expected.all_values(), rtol=1e-4)
        assert 100 < forecast.all_values().mean() < 300


# --- grid search ----------------------------------------------------------------------


def grid(learning_rates=(1e-5, 2e-2), **values) -> dict:
    """Candidates for :func:`driven`: one that learns nothing and one that does."""
    arguments = dict(
        input_chunk_length=4,
        output_chunk_length=2,
        latent_dim=2,
        hidden_size=8,
        num_solver_steps=5,
        n_epochs=6,
        batch_size=16,
        random_state=0,
        pl_trainer_kwargs=TRAINER,
    )
    arguments = {name: [value] for name, value in arguments.items()}
    candidates = {"optimizer_kwargs": [{"lr": lr} for lr in learning_rates]}
    return arguments | candidates | values


@pytest.mark.darts_compat
def test_gridsearch_on_a_validation_set():
    """The score is that of a forecast of 100 samples with a seed."""
    target, covariates = driven()
    train, val = target[:120], target[120:130]
    model, best, score = DDSSMModel.gridsearch(
        grid(), train, **covariates, val_series=val, metric=mcrps
    )
    assert best["optimizer_kwargs"] == {"lr": 2e-2}
    assert best.keys() == grid().keys()
    # an untrained model of these arguments
    assert type(model) is DDSSMModel and not model.model_created
    assert model.model_params["optimizer_kwargs"] == {"lr": 2e-2}
    model.fit(train, **covariates)
    forecast = model.predict(10, **covariates, num_samples=100, random_state=0)
    assert score == pytest.approx(mcrps(val, forecast), rel=1e-4)
    assert model.predict(10, **covariates).n_samples == 1


@pytest.mark.slow
def test_gridsearch_gives_the_same_each_time():
    """In this process and in others."""
    target, covariates = driven()
    (_, best, score), (_, same_best, same_score) = (
        DDSSMModel.gridsearch(
            grid(n_epochs=[1]),
            target[:120],
            **covariates,
            val_series=target[120:130],
            metric=mcrps,
            n_jobs=n_jobs,
        )
        for n_jobs in (1, 2)
    )
    assert same_best == best
    assert same_score == pytest.approx(score, rel=1e-4)


@pytest.mark.darts_compat
def test_gridsearch_by_expanding_windows():
    target, covariates = driven()
    target = target[:130]
    options = dict(forecast_horizon=2, start=122, stride=4, metric=mcrps)
    model, best, score = DDSSMModel.gridsearch(grid(), target, **covariates, **options)
    assert best["optimizer_kwargs"] == {"lr": 2e-2}
    expected = model.backtest(
        target,
        **covariates,
        **options,
        last_points_only=False,
        num_samples=100,
        random_state=0,
    )
    assert score == pytest.approx(expected, rel=1e-4)


def test_gridsearch_scores_points_by_the_median():
    """One sample, as darts draws, is further from the truth than the median of many."""
    target, covariates = driven()
    train, val = target[:120], target[120:130]
    scores = [
        DDSSMModel.gridsearch(
            grid([2e-2]),
            train,
            **covariates,
            val_series=val,
            metric=rmse,
            num_samples=num_samples,
        )[2]
        for num_samples in (1, 300)
    ]
    model = DDSSMModel(**{name: value for name, (value,) in grid([2e-2]).items()})
    model.fit(train, **covariates)
    forecast = model.predict(10, **covariates, num_samples=300, random_state=0)
    assert scores[1] == pytest.approx(rmse(val, forecast), rel=1e-4)
    assert scores[1] < scores[0]


@pytest.mark.darts_compat
def test_gridsearch_takes_the_options_of_darts():
    """Transformers, a share of the candidates, a seed; and the class that it is of."""

    class Mine(DDSSMModel):
        pass

    target, covariates = driven()
    train, val = 500 + 100 * target[:120], 500 + 100 * target[120:130]
    model, best, score = Mine.gridsearch(
        grid([2e-2, 1e-2, 5e-3]),
        train,
        **covariates,
        val_series=val,
        metric=mae,
        data_transformers={"series": Scaler()},
        n_random_samples=2,
        random_state=3,
    )
    assert type(model) is Mine
    assert best["optimizer_kwargs"]["lr"] in (2e-2, 1e-2, 5e-3)
    scaler = Scaler()
    model.fit(scaler.fit_transform(train), **covariates)
    forecast = model.predict(10, **covariates, num_samples=100, random_state=3)
    expected = mae(val, scaler.inverse_transform(forecast))
    assert score == pytest.approx(expected, rel=1e-3)


def test_gridsearch_errors():
    target, covariates = driven()
    for value in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="`num_samples` must be"):
            DDSSMModel.gridsearch(
                grid(), target, **covariates, forecast_horizon=2, num_samples=value
            )
    with pytest.raises(ValueError, match="[Ff]itted|`use_fitted_values`"):
        DDSSMModel.gridsearch(grid(), target, use_fitted_values=True)


@pytest.mark.parametrize("name", ["series", "past_covariates"])
def test_historical_forecasts_take_series(name):
    model = fitted()
    given = {"series": noisy_sine()} | {name: np.zeros(40)}
    with pytest.raises(ValueError, match=f"`{name}` must be a `TimeSeries`"):
        model.historical_forecasts(**given, forecast_horizon=9, retrain=False)
