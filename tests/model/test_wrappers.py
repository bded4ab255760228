"""darts' ensembles, conformal models, anomaly models and explainers around ours."""

import functools

import numpy as np
import pandas as pd
import pytest
from darts import TimeSeries
from darts.ad import (
    ForecastingAnomalyModel,
    GaussianNLLScorer,
    QuantileDetector,
)
from darts.explainability import ShapExplainer
from darts.metrics import rmse
from darts.models import (
    ConformalNaiveModel,
    NaiveEnsembleModel,
    NaiveMean,
    RegressionEnsembleModel,
)
from darts.utils.likelihood_models.torch import LaplaceLikelihood

from darts_ddssm import DDSSMModel
from tests.helpers import TRAINER, covariate, fitted, noisy_sine, same

# Each asks our model through private hooks of darts.
pytestmark = pytest.mark.darts_compat


def driven(length: int = 100, seed: int = 0) -> tuple[TimeSeries, TimeSeries]:
    """Noise around a level of +1 or -1, and the level, which goes on for longer."""
    rng = np.random.default_rng(seed)
    level = rng.choice([-1.0, 1.0], size=(length + 10, 1)).astype(np.float32)
    noise = 0.1 * rng.standard_normal((length, 1)).astype(np.float32)
    target = TimeSeries.from_values(level[:length] + noise, columns=["target"])
    return target, TimeSeries.from_values(level, columns=["level"])


def small(seed: int = 0, **kwargs) -> DDSSMModel:
    """Return a model of :func:`driven` that learns it within a second or two."""
    arguments = dict(
        input_chunk_length=3,
        output_chunk_length=2,
        latent_dim=2,
        hidden_size=8,
        num_solver_steps=5,
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


def test_regression_ensemble_weighs_its_members():
    """All weight goes to the member that knows how the level acts."""
    target, level = driven(160, seed=5)
    ensemble = RegressionEnsembleModel(
        [trained(), ignorant()],
        regression_train_n_points=100,
        regression_train_num_samples=200,
        train_forecasting_models=False,
        train_using_historical_forecasts=True,
    )
    ensemble.fit(target[:140], future_covariates=level)
    good, bad = ensemble.ensemble_model.model.coef_.ravel()
    assert 0.8 < good < 1.2
    # the other's forecasts hardly depend on the level: little to weigh
    forecast = ensemble.predict(20, target[:140], future_covariates=level)
    assert forecast.n_samples == 1
    alone = ignorant().predict(20, target[:140], future_covariates=level, num_samples=200)
    assert rmse(target, forecast) < 0.4 < rmse(target, alone)


@pytest.mark.parametrize("horizon", [2, 6])
def test_conformal_forecast_starts_after_the_series(tiny, horizon):
    """Also beyond the output chunk, with past covariates that end with the series."""
    series, past = noisy_sine(), covariate(80)
    member = tiny(n_epochs=1, input_chunk_length=4, output_chunk_length=2)
    member.fit(series, past_covariates=past)
    model = ConformalNaiveModel(member, quantiles=[0.1, 0.5, 0.9], cal_num_samples=5)
    forecast = model.predict(horizon, series, past_covariates=past)
    assert forecast.start_time() == series.end_time() + series.freq
    assert forecast.n_timesteps == horizon


def test_planted_anomaly_has_the_highest_score():
    """A value that is common elsewhere, but not at this level."""
    target, level = driven(150, seed=3)
    where = 100
    values = target.values(copy=True)
    values[where] = -values[where]
    target = target.with_values(values)
    model = ForecastingAnomalyModel(trained(), GaussianNLLScorer())
    model.fit(target, future_covariates=level)
    arguments = dict(future_covariates=level, start=20, num_samples=100)
    scores = model.score(target, **arguments)
    assert scores.time_index[np.argmax(scores.values())] == where
    truth = target.with_values((target.time_index == where)[:, None].astype(float))
    auc = model.eval_metric(truth, target, **arguments, metric="AUC_ROC")
    assert list(auc.values()) == [1.0]
    detector = QuantileDetector(high_quantile=0.99).fit(scores)
    assert detector.detect(scores)[scores.time_index.get_loc(where)].values().all()


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


def test_explanation_needs_a_marginal():
    """Without one there is no number to explain."""
    target, level = driven()
    model = small(n_epochs=1, likelihood=LaplaceLikelihood())
    model.fit(target, future_covariates=level)
    with pytest.raises(ValueError, match="[Ll]ikelihood"):
        explainer(model).explain_single(max_evals=17)


# --- saving ---------------------------------------------------------------------------


@pytest.mark.parametrize("clean", [False, True])
def test_saved_wrappers_forecast_the_same(tmp_path, clean):
    """darts' safe loader takes what a wrapper holds of the model."""
    series, path = noisy_sine(), str(tmp_path / "wrapper.pt")
    model = fitted()
    ensemble = NaiveEnsembleModel([model, model], train_forecasting_models=False)
    conformal = ConformalNaiveModel(model, quantiles=[0.1, 0.5, 0.9], cal_length=20)
    for wrapper in (ensemble, conformal):
        wrapper.save(path, clean=clean)
        loaded = type(wrapper).load(path)
        forecasts = [
            one.predict(3, series, num_samples=20, random_state=0)
            for one in (wrapper, loaded)
        ]
        assert same(*forecasts)
