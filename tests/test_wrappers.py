"""Ensembles, conformal models, anomaly detection, transformers and explainers of darts."""

import functools

import numpy as np
import pandas as pd
import pytest
from conftest import TRAINER, covariate, noisy_sine, with_gaps
from darts import TimeSeries
from darts.ad import (
    ForecastingAnomalyModel,
    GaussianNLLScorer,
    LaplaceNLLScorer,
    NormScorer,
    QuantileDetector,
)
from darts.dataprocessing import Pipeline
from darts.dataprocessing.transformers import BoxCox, Diff, MissingValuesFiller, Scaler
from darts.explainability import ShapExplainer
from darts.metrics import mic, rmse
from darts.models import (
    ConformalNaiveModel,
    ConformalQRModel,
    LinearRegressionModel,
    NaiveEnsembleModel,
    NaiveMean,
    RegressionEnsembleModel,
)
from darts.utils.likelihood_models.torch import LaplaceLikelihood
from scipy.stats import norm

from darts_ddssm import DDSSMModel

QUANTILES = [0.1, 0.5, 0.9]


def driven(length: int = 100, seed: int = 0) -> tuple[TimeSeries, TimeSeries]:
    """Noise around a level of +1 or -1, and the level, which goes on for longer."""
    rng = np.random.default_rng(seed)
    level = rng.choice([-1.0, 1.0], size=(length + 10, 1)).astype(np.float32)
    noise = 0.1 * rng.standard_normal((length, 1)).astype(np.float32)
    target = TimeSeries.from_values(level[:length] + noise, columns=["target"])
    return target, TimeSeries.from_values(level, columns=["level"])


def white_noise(length: int, scale: float = 1.0, seed: int = 0) -> TimeSeries:
    values = np.random.default_rng(seed).standard_normal((length, 1))
    return TimeSeries.from_values((scale * values).astype(np.float32))


def small(seed: int = 0, **kwargs) -> DDSSMModel:
    """Return a model of :func:`driven` that learns it within a second or two."""
    arguments = dict(
        input_chunk_length=3,
        output_chunk_length=2,
        latent_dim=2,
        hidden_size=8,
        num_solver_steps=4,
        n_epochs=15,
        batch_size=16,
        optimizer_kwargs={"lr": 2e-2},
        random_state=seed,
        pl_trainer_kwargs=TRAINER,
    )
    return DDSSMModel(**(arguments | kwargs))


@functools.cache
def trained(seed: int = 0) -> DDSSMModel:
    """Return one fitted model for all tests; none of them changes it."""
    target, level = driven()
    return small(seed).fit(target, future_covariates=level)


@functools.cache
def ignorant() -> DDSSMModel:
    """Return a model that was fitted with a level that tells nothing."""
    target, _ = driven()
    _, level = driven(seed=9)
    return small(1).fit(target, future_covariates=level)


@functools.cache
def noise_model() -> DDSSMModel:
    """Return a model of white noise of unit variance."""
    return small(n_epochs=3).fit(white_noise(150))


# --- naive ensembles ------------------------------------------------------------------


def test_naive_ensemble_is_the_mean_of_its_members():
    target, level = driven()
    members = [trained(), ignorant()]
    ensemble = NaiveEnsembleModel(members, train_forecasting_models=False)
    arguments = dict(series=target, future_covariates=level, num_samples=400)
    forecast = ensemble.predict(5, **arguments)
    mean, other = (m.predict(5, **arguments) for m in members)
    assert forecast.shape == mean.shape == (5, 1, 400)
    values = [f.all_values() for f in (forecast, mean, other)]
    expected = (values[1].mean(2) + values[2].mean(2)) / 2
    # two forecasts of 400 samples are compared, each of a variance at most the larger
    error = np.max([v.std(2) for v in values], axis=0) * (2 / 400) ** 0.5
    assert np.all(np.abs(values[0].mean(2) - expected) < 5 * error)
    # which is far from either
    assert np.abs(values[1].mean(2) - expected).max() > 5 * error.max()
    # samples are averaged one by one
    one, *each = (
        m.predict(5, **arguments, random_state=3).all_values() for m in (ensemble, *members)
    )
    np.testing.assert_allclose(one, np.mean(each, axis=0), rtol=1e-5)


def test_naive_ensemble_averages_likelihood_parameters():
    target, level = driven()
    members = [trained(), ignorant()]
    ensemble = NaiveEnsembleModel(members, train_forecasting_models=False)
    forecast, *each = (
        m.predict(
            2,
            target,
            future_covariates=level,
            predict_likelihood_parameters=True,
            random_state=0,
        )
        for m in (ensemble, *members)
    )
    assert forecast.components.tolist() == ["target_mu", "target_sigma"]
    expected = np.mean([f.values() for f in each], axis=0)
    np.testing.assert_allclose(forecast.values(), expected, rtol=1e-5)


def test_naive_ensemble_trains_its_members(tiny):
    """With covariates for those that take them, beside a local model that takes none."""
    series, past = noisy_sine(), covariate(80)
    ensemble = NaiveEnsembleModel([tiny(n_epochs=1), NaiveMean()], show_warnings=False)
    ensemble.fit(series, past_covariates=past)
    alone = tiny(n_epochs=1).fit(series, past_covariates=past)
    forecast = ensemble.predict(4, random_state=0)
    expected = (alone.predict(4, random_state=0).values() + series.values().mean()) / 2
    np.testing.assert_allclose(forecast.values(), expected, rtol=1e-4, atol=1e-5)
    # with a member that is not probabilistic the whole is not, in darts
    with pytest.raises(ValueError, match="probabilistic"):
        ensemble.predict(4, num_samples=2)


def test_naive_ensemble_of_several_series(tiny):
    series = [noisy_sine(num_components=2), noisy_sine(90, num_components=2, seed=1)]
    ensemble = NaiveEnsembleModel([tiny(n_epochs=1), tiny(n_epochs=1, random_state=1)])
    ensemble.fit(series)
    forecasts = ensemble.predict(8, series, num_samples=4)
    assert [f.shape for f in forecasts] == [(8, 2, 4)] * 2
    assert [f.start_time() for f in forecasts] == [s.end_time() + s.freq for s in series]
    historical = ensemble.historical_forecasts(
        series, start=-3, start_format="position", retrain=False, num_samples=4
    )
    assert [h.shape for h in historical] == [(3, 2, 4)] * 2


def test_ensemble_must_not_retrain_fitted_members():
    """As for any of darts' models."""
    with pytest.raises(ValueError, match="already fitted"):
        NaiveEnsembleModel([trained(), ignorant()])


# --- regression ensembles -------------------------------------------------------------


@pytest.mark.parametrize("historical", [True, False])
def test_regression_ensemble_weighs_its_members(historical):
    """All weight goes to the member that knows how the level acts."""
    target, level = driven(160, seed=5)
    ensemble = RegressionEnsembleModel(
        [trained(), ignorant()],
        regression_train_n_points=100,
        regression_train_num_samples=200,
        train_forecasting_models=False,
        train_using_historical_forecasts=historical,
    )
    ensemble.fit(target[:140], future_covariates=level)
    good, bad = ensemble.ensemble_model.model.coef_.ravel()
    assert 0.8 < good < 1.2
    # the other's forecasts hardly depend on the level: little to weigh
    forecast = ensemble.predict(20, target[:140], future_covariates=level)
    assert forecast.n_samples == 1
    alone = ignorant().predict(20, target[:140], future_covariates=level, num_samples=200)
    assert rmse(target, forecast) < 0.4 < rmse(target, alone)


def test_regression_ensemble_trains_its_members():
    target, level = driven(120)
    ensemble = RegressionEnsembleModel(
        [small(), LinearRegressionModel(lags=3, output_chunk_length=2)],
        regression_train_n_points=30,
        regression_train_num_samples=100,
        regression_train_samples_reduction="mean",
        show_warnings=False,
    )
    ensemble.fit(target[:110], future_covariates=level)
    forecast = ensemble.predict(10)
    assert rmse(target, forecast) < 0.5
    # darts fits the members a second time, to all of the series
    assert ensemble.forecasting_models[0].training_series.end_time() == 109


@pytest.mark.parametrize("reduction", ["median", 0.9])
def test_regression_ensemble_reduces_the_samples(reduction):
    """The regression is fitted on a quantile of the member's samples."""
    target = white_noise(150, seed=1)
    points = 60
    ensemble = RegressionEnsembleModel(
        [noise_model()],
        regression_train_n_points=points,
        regression_train_num_samples=400,
        regression_train_samples_reduction=reduction,
        train_forecasting_models=False,
        regression_model=LinearRegressionModel(lags_future_covariates=[0]),
    )
    seen = {}
    fit = ensemble.ensemble_model.fit

    def recorded(series, future_covariates, **kwargs):
        seen.update(series=series, forecast=future_covariates)
        return fit(series=series, future_covariates=future_covariates, **kwargs)

    ensemble.ensemble_model.fit = recorded
    ensemble.fit(target)
    forecast = noise_model().predict(points, target[:-points], num_samples=400)
    q = 0.5 if reduction == "median" else reduction
    assert seen["forecast"].n_samples == 1
    assert seen["series"].time_index.equals(forecast.time_index)
    # (q (1 - q) / n) ** 0.5 / density of a unit normal quantile, for two of them
    error = (2 * q * (1 - q) / 400) ** 0.5 / norm.pdf(norm.ppf(q))
    spread = forecast.all_values().std(2)
    difference = seen["forecast"].values() - forecast.quantile(q).values()
    assert np.abs(difference / spread).max() < 6 * error


def test_probabilistic_regression_ensemble():
    """The spread of its forecast is that of the errors, not that of the members."""
    target, level = driven(160, seed=5)
    regression = LinearRegressionModel(
        lags_future_covariates=[0], likelihood="quantile", quantiles=QUANTILES, alpha=0
    )
    ensemble = RegressionEnsembleModel(
        [trained()],
        regression_train_n_points=100,
        regression_train_num_samples=200,
        train_forecasting_models=False,
        train_using_historical_forecasts=True,
        regression_model=regression,
    )
    assert ensemble.supports_probabilistic_prediction
    ensemble.fit(target[:140], future_covariates=level)
    forecast = ensemble.predict(20, num_samples=300)
    assert forecast.n_samples == 300
    inside = mic(target, forecast, q_interval=(0.1, 0.9))
    # 0.8 in expectation, of 20 steps
    assert inside > 0.8 - 5 * (0.8 * 0.2 / 20) ** 0.5
    width = forecast.quantile(0.9).values() - forecast.quantile(0.1).values()
    # 0.26 by the noise alone; levels are two apart
    assert width.mean() < 0.7
    deterministic = RegressionEnsembleModel(
        [trained()], regression_train_n_points=50, train_forecasting_models=False
    )
    assert not deterministic.supports_probabilistic_prediction
    deterministic.fit(target[:140], future_covariates=level)
    with pytest.raises(ValueError, match="probabilistic"):
        deterministic.predict(5, num_samples=2)


# --- conformal models -----------------------------------------------------------------


def conformal_quantile(scores: np.ndarray, level: float) -> float:
    """The ceil((n + 1) * level)-th smallest score, or the largest."""
    rank = int(np.ceil(np.round((len(scores) + 1) * level, 8)))
    return np.sort(scores)[min(rank, len(scores)) - 1]


def calibration(series: TimeSeries, quantiles: list[float]) -> tuple[np.ndarray, ...]:
    """Actual values, and quantiles of one-step forecasts of them and of the next."""
    forecasts = noise_model().historical_forecasts(
        series,
        retrain=False,
        overlap_end=True,
        num_samples=100,
        random_state=0,
    )
    # (steps, quantiles)
    values = np.quantile(forecasts.all_values()[:, 0], quantiles, axis=1).T
    actual = series.slice_intersect(forecasts).values()[:, 0]
    assert len(values) == len(actual) + 1
    return actual, values[:-1], values[-1]


def test_conformal_naive_intervals():
    """The median, and on either side the quantile of past absolute errors."""
    series = white_noise(80, scale=3.0, seed=2)
    model = ConformalNaiveModel(noise_model(), quantiles=QUANTILES, cal_num_samples=100)
    forecast = model.predict(1, series, predict_likelihood_parameters=True, random_state=0)
    actual, values, after = calibration(series, QUANTILES)
    width = conformal_quantile(np.abs(actual - values[:, 1]), 0.8)
    expected = after[1] + width * np.array([-1, 0, 1])
    np.testing.assert_allclose(forecast.values()[0], expected, rtol=1e-4)
    assert forecast.start_time() == series.end_time() + series.freq


def test_conformal_naive_intervals_of_each_side():
    series = white_noise(80, seed=3).map(np.exp)
    model = ConformalNaiveModel(
        noise_model(), quantiles=QUANTILES, cal_num_samples=100, symmetric=False
    )
    forecast = model.predict(1, series, predict_likelihood_parameters=True, random_state=0)
    actual, values, after = calibration(series, QUANTILES)
    error = actual - values[:, 1]
    low, high = (conformal_quantile(x, 0.9) for x in (-error, error))
    expected = after[1] + np.array([-low, 0, high])
    np.testing.assert_allclose(forecast.values()[0], expected, rtol=1e-4)
    assert high > 2 * low


def test_conformal_quantiles():
    """Both quantiles move outwards by the quantile of how far values lay outside."""
    series = white_noise(80, scale=3.0, seed=2)
    model = ConformalQRModel(noise_model(), quantiles=QUANTILES, cal_num_samples=100)
    forecast = model.predict(1, series, predict_likelihood_parameters=True, random_state=0)
    actual, values, after = calibration(series, QUANTILES)
    outside = np.maximum(values[:, 0] - actual, actual - values[:, 2])
    width = conformal_quantile(outside, 0.8)
    expected = after + width * np.array([-1, 0, 1])
    np.testing.assert_allclose(forecast.values()[0], expected, rtol=1e-4)
    assert width > 0


@pytest.mark.parametrize("conformal", [ConformalNaiveModel, ConformalQRModel])
def test_conformal_coverage(conformal):
    """On a series of three times the noise of training, 80 % is 80 % again."""
    series = white_noise(250, scale=3.0, seed=4)
    model = conformal(
        noise_model(), quantiles=QUANTILES, cal_length=80, cal_num_samples=100
    )

    def coverage(forecaster) -> float:
        return forecaster.backtest(
            series,
            start=100,
            retrain=False,
            num_samples=300,
            last_points_only=True,
            metric=mic,
            metric_kwargs={"q_interval": (0.1, 0.9)},
            random_state=0,
        )

    # of 150 steps, and of the level by 80 past scores
    error = (0.8 * 0.2 * (1 / 150 + 1 / 80)) ** 0.5
    assert abs(coverage(model) - 0.8) < 4 * error
    assert coverage(noise_model()) < 0.8 - 4 * error


def test_conformal_samples_follow_the_intervals():
    series = white_noise(60, seed=6)
    model = ConformalQRModel(noise_model(), quantiles=QUANTILES, cal_num_samples=100)
    parameters = model.predict(
        3, series, predict_likelihood_parameters=True, random_state=0
    )
    samples = model.predict(3, series, num_samples=2000, random_state=0)
    assert samples.shape == (3, 1, 2000)
    # darts draws evenly between quantiles and puts the tails on the outermost
    values, (low, middle, high) = samples.all_values()[:, 0], parameters.values().T
    shares = [
        np.isclose(values, low[:, None]).mean(1),
        (values < middle[:, None]).mean(1),
        np.isclose(values, high[:, None]).mean(1),
    ]
    for share, expected in zip(shares, (0.1, 0.5, 0.1), strict=True):
        error = (expected * (1 - expected) / 2000) ** 0.5
        assert np.abs(share - expected).max() < 5 * error


@pytest.mark.parametrize("horizon", [2, 6])
def test_conformal_forecast_starts_after_the_series(tiny, horizon):
    """Also beyond the output chunk, with past covariates that end with the series."""
    series, past = noisy_sine(), covariate(80)
    member = tiny(n_epochs=1, input_chunk_length=4, output_chunk_length=2)
    member.fit(series, past_covariates=past)
    model = ConformalNaiveModel(member, quantiles=QUANTILES, cal_num_samples=5)
    forecast = model.predict(horizon, series, past_covariates=past)
    assert forecast.start_time() == series.end_time() + series.freq
    assert forecast.n_timesteps == horizon


# --- anomalies ------------------------------------------------------------------------


@pytest.mark.parametrize("scorer", [GaussianNLLScorer, LaplaceNLLScorer])
def test_planted_anomaly_has_the_highest_score(scorer):
    """A value that is common elsewhere, but not at this level."""
    target, level = driven(150, seed=3)
    where = 100
    values = target.values(copy=True)
    values[where] = -values[where]
    target = target.with_values(values)
    model = ForecastingAnomalyModel(trained(), scorer())
    model.fit(target, future_covariates=level)
    arguments = dict(future_covariates=level, start=20, num_samples=100)
    scores = model.score(target, **arguments)
    assert scores.time_index[np.argmax(scores.values())] == where
    truth = target.with_values((target.time_index == where)[:, None].astype(float))
    auc = model.eval_metric(truth, target, **arguments, metric="AUC_ROC")
    assert list(auc.values()) == [1.0]
    detector = QuantileDetector(high_quantile=0.99).fit(scores)
    assert detector.detect(scores)[scores.time_index.get_loc(where)].values().all()


def test_anomaly_score_is_the_likelihood_of_the_samples():
    target, level = driven(120, seed=4)
    model = ForecastingAnomalyModel(trained(), [GaussianNLLScorer(), NormScorer()])
    (scores, _), forecast = model.score(
        target,
        future_covariates=level,
        start=100,
        num_samples=50,
        return_model_prediction=True,
    )
    assert forecast.n_samples == 50 and forecast.start_time() == 100
    samples = forecast.all_values()
    density = norm(samples.mean(2), samples.std(2))
    expected = -density.logpdf(target.slice_intersect(forecast).values())
    np.testing.assert_allclose(scores.values(), expected, rtol=1e-4)


def test_anomaly_model_trains_the_model(tiny):
    series = noisy_sine(100)
    model = ForecastingAnomalyModel(tiny(), GaussianNLLScorer())
    model.fit(series[:70], allow_model_training=True, num_samples=10)
    assert model.model.epochs_trained == 2
    scores = model.score(series, start=70, num_samples=10)
    assert scores.n_timesteps == 30 and np.isfinite(scores.values()).all()


# --- transformers ---------------------------------------------------------------------


def test_pipeline_of_filler_and_scaler(tiny):
    """The samples come back in the data's units, each by the same map."""
    series = 500 + 100 * with_gaps(noisy_sine(), slice(30, 34))
    pipeline = Pipeline([MissingValuesFiller(), Scaler()])
    scaled = pipeline.fit_transform(series)
    assert not np.isnan(scaled.values()).any()
    forecast = tiny().fit(scaled).predict(9, num_samples=50)
    result = pipeline.inverse_transform(forecast, partial=True)
    assert result.shape == (9, 1, 50)
    low, high = np.nanmin(series.values()), np.nanmax(series.values())
    expected = low + (high - low) * forecast.all_values()
    np.testing.assert_allclose(result.all_values(), expected, rtol=1e-4)
    assert low < result.all_values().mean() < high


def test_box_cox_of_samples(tiny):
    series = noisy_sine().map(lambda x: 1000 * np.exp(2 * x))
    box_cox = BoxCox(lmbda=0)
    forecast = tiny().fit(box_cox.fit_transform(series)).predict(9, num_samples=50)
    result = box_cox.inverse_transform(forecast)
    np.testing.assert_allclose(
        result.all_values(), np.exp(forecast.all_values()), rtol=1e-4
    )
    assert 100 < np.median(result.all_values()) < 10000


@pytest.mark.parametrize("enable", [True, False])
def test_differences(tiny, enable):
    """A path of differences is summed up from the last value on; darts takes one path."""
    steps = 0.5 + 0.1 * np.random.default_rng(0).standard_normal((80, 1))
    series = TimeSeries.from_values(steps.cumsum(0).astype(np.float32))
    diff = Diff()
    changes = diff.fit_transform(series)
    model = tiny().fit(changes)
    forecast = model.predict(6, random_state=0)
    result = diff.inverse_transform(forecast, insample=changes)
    expected = series.last_value() + forecast.values().cumsum(0)
    np.testing.assert_allclose(result.values(), expected, rtol=1e-4)
    forecasts = model.historical_forecasts(
        series,
        start=60,
        forecast_horizon=6,
        retrain=False,
        last_points_only=False,
        enable_optimization=enable,
        data_transformers={"series": diff},
    )
    # the level is that of each start; steps scatter by 0.1, summed over six of them
    error = [rmse(series, f) for f in forecasts]
    assert np.max(error) < 5 * 0.1 * (2 * 6) ** 0.5
    with pytest.raises(ValueError, match="number of samples"):
        diff.inverse_transform(model.predict(6, num_samples=2), insample=changes)


def test_static_covariates_transformer_and_several_series(tiny):
    """Series of far apart units, each scaled by its own, with static covariates."""
    series = [
        (10.0**i * noisy_sine(seed=i)).with_static_covariates(
            pd.DataFrame({"which": [float(i)]})
        )
        for i in range(3)
    ]
    scaler = Scaler()
    scaled = scaler.fit_transform(series)
    forecasts = tiny().fit(scaled).predict(6, scaled, num_samples=20)
    results = scaler.inverse_transform(forecasts)
    for i, result in enumerate(results):
        assert 0.2 < result.all_values().std() / 10**i < 5
        assert result.static_covariates.equals(series[i].static_covariates)


# --- explanations ---------------------------------------------------------------------


def explainer(model: DDSSMModel, **kwargs) -> ShapExplainer:
    """Return an explainer with a small background."""
    return ShapExplainer(
        model,
        background_num_samples=10,
        batch_size=1024,
        test_stationarity=False,
        **kwargs,
    )


def test_explanation_finds_the_covariate_that_decides():
    """Each step of the mean hangs on the level of that step alone."""
    target, level = driven()
    result = explainer(trained()).explain_single(max_evals=17)
    values = result.get_explanation("target_mu")
    assert values.n_timesteps == 2
    for step in range(2):
        names = values.components
        sizes = np.abs(values.values()[step])
        assert names[np.argmax(sizes)] == f"level_futcov_lag{step}"
        assert np.sort(sizes)[-2] < 0.2 * sizes.max()
        # towards the level of that step
        at = 100 + step
        assert np.sign(values.values()[step, np.argmax(sizes)]) == level[at].first_value()


def test_explanation_adds_up_to_the_forecast():
    target, level = driven()
    result = explainer(trained()).explain_single(max_evals=17)
    explanation = result.get_shap_explanation_object("target_mu")
    total = explanation.base_values + explanation.values.sum(-1)
    forecast = trained().predict(2, predict_likelihood_parameters=True)
    mean, sigma = forecast.values().T
    # means over 500 paths; the base value is one over ten backgrounds
    error = sigma * (3 / 500) ** 0.5
    assert np.all(np.abs(total - mean) < 5 * error)


def test_explanation_with_covariates_of_every_kind():
    target, level = driven()
    target = target.with_static_covariates(pd.DataFrame({"size": [1.0]}))
    past = TimeSeries.from_values(covariate(100).values(), columns=["past"])
    model = small(n_epochs=1, input_chunk_length=2, output_chunk_length=1)
    model.fit(target, past_covariates=past, future_covariates=level)
    names = explainer(model).explain_single(max_evals=19).get_explanation("target_mu")
    assert names.components.tolist() == [
        *(f"target_target_lag{i}" for i in (-2, -1)),
        *(f"past_pastcov_lag{i}" for i in (-2, -1)),
        *(f"level_futcov_lag{i}" for i in (-2, -1, 0)),
        "size_statcov_target_target",
    ]
    assert np.isfinite(names.values()).all()


def test_explanation_of_many_forecasts():
    """The share of the level has the level's sign, at each forecast."""
    target, level = driven()
    result = explainer(trained()).explain(
        target[:7], foreground_future_covariates=level[:9], max_evals=17
    )
    values = result.get_explanation(horizon=1, component="target_mu")
    share = values["level_futcov_lag0"]
    # from the end of the first input chunk to one step after the series
    assert share.time_index.tolist() == [3, 4, 5, 6, 7]
    expected = level.slice_intersect(share).values()
    assert np.array_equal(np.sign(share.values()), expected)


def test_explanation_needs_a_marginal():
    """Without one there is no number to explain."""
    target, level = driven()
    model = small(n_epochs=1, likelihood=LaplaceLikelihood())
    model.fit(target, future_covariates=level)
    with pytest.raises(ValueError, match="[Ll]ikelihood"):
        explainer(model).explain_single(max_evals=17)
