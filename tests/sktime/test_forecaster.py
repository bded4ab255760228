"""DDSSMForecaster: sktime's checks, its indices and containers, darts' model inside."""

import importlib
import pickle
import sys

import numpy as np
import pandas as pd
import pytest
from darts import TimeSeries
from darts.utils.likelihood_models.torch import LaplaceLikelihood
from pytorch_lightning.callbacks import EarlyStopping
from sktime.base import load
from sktime.datasets import load_airline
from sktime.forecasting.base import ForecastingHorizon
from sktime.forecasting.compose import (
    ForecastByLevel,
    ForecastingPipeline,
    TransformedTargetForecaster,
)
from sktime.forecasting.model_evaluation import evaluate
from sktime.forecasting.model_selection import ForecastingGridSearchCV
from sktime.forecasting.reconcile import ReconcilerForecaster
from sktime.performance_metrics.forecasting.probabilistic import CRPS, PinballLoss
from sktime.split import ExpandingWindowSplitter
from sktime.transformations.boxcox import LogTransformer
from sktime.transformations.date import DateTimeFeatures
from sktime.transformations.hierarchical.aggregate import Aggregator
from sktime.utils.estimator_checks import check_estimator, parametrize_with_checks

from darts_ddssm import DDSSMModel
from darts_ddssm.sktime import DDSSMForecaster
from tests.helpers import FH, INDEX, INDICES, LENGTH, panel, sine


@pytest.mark.slow
@parametrize_with_checks(DDSSMForecaster)
def test_sktime_checks(obj, test_name):
    check_estimator(obj, tests_to_run=test_name, raise_exceptions=True, verbose=False)


# --- the same model as in darts ---------------------------------------------------------


def test_forecasts_are_those_of_the_darts_model(forecaster):
    frames = {"a": sine(seed=0), "b": sine(INDEX[:30], seed=1)}
    y = panel(frames)
    arguments = forecaster().get_params()
    num_samples = arguments.pop("num_samples")
    model = DDSSMModel(**{k: v for k, v in arguments.items() if v is not None})
    series = [TimeSeries.from_values(f.to_numpy(np.float32)) for f in frames.values()]
    expected = model.fit(series).predict(
        5, series, num_samples=num_samples, random_state=arguments["random_state"]
    )
    paths = forecaster().fit(y).predict_proba(fh=range(1, 6)).spl
    for name, forecast in zip(frames, expected, strict=True):
        actual = paths.xs(name, level=1)["a"].to_numpy().reshape(num_samples, 5)
        np.testing.assert_array_equal(actual, forecast.all_values()[:, 0].T)


def test_arguments_and_trained_model_reach_the_user(forecaster):
    assert forecaster(latent_dim=3).fit(sine()).model_.latent_dim == 3
    model = forecaster().fit(sine()).model_
    assert model.simulate(n=5, num_samples=2).shape == (5, 1, 2)


def test_invalid_arguments_are_refused_in_fit(forecaster):
    with pytest.raises(ValueError, match="`num_samples` must be an integer >= 1, got `0`"):
        forecaster(num_samples=0).fit(sine())
    with pytest.raises(ValueError, match="`latent_dim` must be an integer >= 1, got `0`"):
        forecaster(latent_dim=0).fit(sine())


def test_likelihoods_and_callbacks_survive_cloning_and_fits(forecaster):
    stopping = EarlyStopping("train_loss", patience=0)
    trainer = {"callbacks": [stopping], "max_steps": -1}
    one = forecaster(trainer, likelihood=LaplaceLikelihood(), n_epochs=4).clone()
    expected = one.fit(sine()).predict(FH)
    assert isinstance(one.model_.likelihood, LaplaceLikelihood)
    # a callback that has stopped one fit does not stop the next at once
    pd.testing.assert_frame_equal(one.fit(sine()).predict(FH), expected)


# --- one source of truth ----------------------------------------------------------------


@pytest.mark.parametrize("columns", [("a",), ("a", "b")])
def test_all_forecasts_come_from_the_same_paths(forecaster, columns):
    one = forecaster(num_samples=100).fit(sine(columns=columns), fh=FH)
    paths = one.predict_proba().spl.to_numpy().reshape(100, len(FH), len(columns))
    np.testing.assert_allclose(one.predict(), paths.mean(0))
    np.testing.assert_allclose(one.predict_var(), paths.var(0))
    alpha = [0.05, 0.3, 0.5, 0.95]
    quantiles = one.predict_quantiles(alpha=alpha)
    expected = np.quantile(paths, alpha, axis=0, method="inverted_cdf")
    for i, column in enumerate(columns):
        np.testing.assert_allclose(quantiles[column].T, expected[:, :, i])
    interval = one.predict_interval(coverage=0.9)
    np.testing.assert_array_equal(
        interval.xs("lower", axis=1, level=2), quantiles.xs(0.05, axis=1, level=1)
    )


def test_joint_samples_are_whole_paths(forecaster):
    joint = forecaster().fit(sine()).predict_proba(FH, marginal=False)
    paths = {tuple(path["a"]) for _, path in joint.spl.groupby(level=0)}
    drawn = {tuple(path["a"]) for _, path in joint.sample(20).groupby(level=0)}
    assert len(paths) == 10
    assert drawn <= paths


@pytest.mark.parametrize("random_state", [0, None])
def test_repeated_loaded_and_copied_forecasts_agree(forecaster, tmp_path, random_state):
    one = forecaster(random_state=random_state).fit(sine(), fh=FH)
    expected = one.predict()
    saved = str(tmp_path / "forecaster")
    one.save(saved)
    for other in (one, load(saved), pickle.loads(pickle.dumps(one))):
        pd.testing.assert_frame_equal(other.predict(), expected)
        pd.testing.assert_frame_equal(other.predict_proba().mean(), expected)


def test_random_state_rules(forecaster):
    def forecast(seed: int | None) -> pd.DataFrame:
        return forecaster(random_state=seed).fit(sine()).predict(FH)

    pd.testing.assert_frame_equal(forecast(1), forecast(1))
    for seeds in ((1, 2), (None, None)):
        one, other = map(forecast, seeds)
        assert not np.allclose(one, other)


def test_the_mean_of_a_series_in_its_own_container(forecaster):
    y = sine()["a"]
    forecast = forecaster().fit(y).predict(FH)
    assert isinstance(forecast, pd.Series)
    assert forecast.name == "a"


# --- short series, missing values, precision ----------------------------------------------


def test_missing_values_are_not_refused_but_used(forecaster):
    y = sine(columns=("a", "b"))
    y.iloc[5:9, 0] = np.nan
    y.iloc[-3:, 1] = np.nan
    assert forecaster().fit(y).predict(FH).notna().all(axis=None)


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_infinite_values_are_refused_by_name(forecaster, precision):
    dtype, huge = ("float32", 1e300) if precision == "32-true" else ("float64", np.inf)
    message = rf"must be NaN \(missing\) or finite in {dtype}, got infinite values"
    one, other = forecaster({"precision": precision}), sine()
    other.iloc[3] = huge
    with pytest.raises(ValueError, match=f"`y` {message}.$"):
        one.fit(other)
    with pytest.raises(ValueError, match=f"`X` {message}.$"):
        one.fit(sine(), X=other)
    many, others = panel({"a": sine(), "b": sine()}), panel({"a": sine(), "b": other})
    with pytest.raises(ValueError, match=rf"`y` {message} of the series `\('b',\)`"):
        one.fit(others)
    with pytest.raises(ValueError, match=rf"`X` {message} of the series `\('b',\)`"):
        one.fit(many, X=others)
    one.fit(many)
    later = sine(pd.period_range(INDEX[-1] + 1, periods=2, freq="M"))
    later.iloc[1] = huge
    one.update(panel({"b": later}), update_params=False)
    with pytest.raises(ValueError, match=rf"`y` {message} of the series `\('b',\)`"):
        one.predict(FH)


def test_series_without_values_are_refused_by_name(forecaster):
    message = "`y` must have observed values, got missing values only"
    with pytest.raises(ValueError, match=f"{message}.$"):
        forecaster().fit(sine() * np.nan)
    y = panel({"a": sine(), "b": sine() * np.nan})
    with pytest.raises(ValueError, match=rf"{message} of the series `\('b',\)`"):
        forecaster().fit(y)


def test_series_shorter_than_a_window(forecaster):
    one = forecaster(input_chunk_length=24, output_chunk_length=12).fit(sine(INDEX[:7]))
    forecast = one.predict([1, 15])
    assert forecast.notna().all(axis=None)
    assert forecast.index.equals(INDEX[[7, 21]])


def test_large_numbers_in_double_precision(forecaster):
    y = sine() + 1e9
    spread = {}
    for precision in ("32-true", "64-true"):
        one = forecaster({"precision": precision}).fit(y)
        spread[precision] = (one.predict_proba(FH).spl - 1e9)["a"].nunique()
    # float32 has steps of 64 there
    assert spread["64-true"] == 30 > spread["32-true"]


def test_sktime_need_not_remember_the_data(forecaster):
    one = forecaster()
    one.set_config(remember_data=False)
    one.fit(sine(INDEX[:30])).update(sine()[30:], update_params=True)
    pd.testing.assert_frame_equal(one.predict(FH), forecaster().fit(sine()).predict(FH))


# --- covariates -------------------------------------------------------------------------


def signs(index: pd.Index) -> pd.DataFrame:
    tosses = np.random.default_rng(1).choice([-1.0, 1.0], size=len(index))
    return pd.DataFrame({"sign": tosses}, index=index)


LONG = pd.period_range("2000-01", periods=LENGTH + 12, freq="M")


def test_known_covariates_rule_the_forecast(forecaster):
    index = pd.RangeIndex(312)
    X = signs(index)
    y = X.rename(columns={"sign": "a"}) * 3 + sine(index, seed=2) - 10
    trainer = {"max_steps": 150}
    arguments = dict(hidden_size=16, batch_size=32, n_epochs=100, num_samples=50)
    one = forecaster(trainer, optimizer_kwargs={"lr": 1e-2}, **arguments)
    forecast = one.fit(y[:300], X[:300]).predict(range(1, 13), X[300:])
    assert np.corrcoef(forecast["a"], y["a"][300:])[0, 1] > 0.9
    # from a set of rows with gaps, as sktime passes it, to a horizon of the same
    gaps = one.predict([3, 9], X.loc[[302, 308]])
    assert (np.sign(gaps["a"]) == X["sign"].loc[[302, 308]]).all()


def test_covariates_passed_early_are_known_later(forecaster):
    X = signs(LONG)
    one = forecaster().fit(sine(), X)
    pd.testing.assert_frame_equal(one.predict(FH), one.predict(FH, X[LENGTH:]))


def test_missing_covariates(forecaster):
    X = signs(LONG)
    X.iloc[[3, 30, LENGTH + 1]] = np.nan
    one = forecaster().fit(sine(), X[:LENGTH])
    assert one.predict(FH, X[LENGTH:]).notna().all(axis=None)
    message = "`X` must have a row at each time of `y` and of the horizon, got none at"
    with pytest.raises(ValueError, match=f"{message} `2003-06`"):
        one.predict(FH, X[LENGTH : LENGTH + 1])
    with pytest.raises(ValueError, match=f"{message} `2003-05`"):
        one.predict(FH)


def test_covariates_that_do_not_go_with_the_target(forecaster):
    X = signs(LONG)
    with pytest.raises(ValueError, match="`X` must be passed to `fit`"):
        forecaster().fit(sine()).predict(FH, X)
    with pytest.raises(
        ValueError, match=r"`X` must have the columns \['sign'\] as in `fit`"
    ):
        forecaster().fit(sine(), X).predict(FH, X.rename(columns={"sign": "b"}))
    y = panel({"a": sine(), "b": sine()})
    with pytest.raises(ValueError, match=r"`X` must have the series of `y`, got none of"):
        forecaster().fit(y, panel({"a": X}))
    with pytest.raises(ValueError, match=r"got none at `2000-01` of the series `\('b',\)`"):
        forecaster().fit(y, panel({"a": X, "b": X[1:]}))


# --- panels and hierarchies -------------------------------------------------------------


def test_panels_of_unequal_series(forecaster):
    y = panel({"b": sine(INDEX[:30]), "a": sine(INDEX[5:8]), "c": sine()})
    one = forecaster().fit(y)
    forecast = one.predict([1, 5])
    ends = {name: rows.index[-1][1] for name, rows in y.groupby(level=0, sort=False)}
    # as each series has its own end
    assert forecast.index.to_list() == [(n, t + i) for n, t in ends.items() for i in (1, 5)]
    assert forecast.index.names == ["shop", "month"]
    # an absolute horizon is the same for all
    times = ForecastingHorizon(INDEX[-1:] + 2, is_relative=False)
    absolute = one.predict(times)
    assert absolute.index.to_list() == [(name, INDEX[-1] + 2) for name in ("b", "a", "c")]
    quantiles = one.predict_quantiles(times, alpha=[0.1, 0.9])
    assert quantiles.index.equals(absolute.index)
    assert one.predict_proba(times).spl.shape == (30, 1)


def test_covariates_of_panels(forecaster):
    y = panel({"a": sine(), "b": sine(INDEX[:-4])})
    X = panel({"b": signs(LONG), "a": signs(LONG)})
    one = forecaster().fit(y, X)
    times = ForecastingHorizon(INDEX[-1:] + 7, is_relative=False)
    assert len(one.predict(times)) == len(one.predict([7], X)) == 2


def test_hierarchies_with_totals(forecaster):
    shops = {("north", "x"): sine(), ("north", "y"): sine(), ("south", "z"): sine()}
    y = Aggregator().fit_transform(pd.concat(shops, names=["region", "shop", "month"]))
    forecast = forecaster().fit(y).predict(FH)
    assert forecast.index.droplevel(-1).unique().equals(y.index.droplevel(-1).unique())
    reconciled = ReconcilerForecaster(forecaster(), method="bu").fit(y).predict(FH)
    total = reconciled.loc[("__total", "__total")]
    parts = [reconciled.loc[key] for key in shops]
    np.testing.assert_allclose(total, sum(parts))


def test_one_model_a_series_on_request(forecaster):
    y = panel({"a": sine(), "b": sine(seed=3) * 100})
    local = ForecastByLevel(forecaster(), groupby="local").fit(y).predict(FH)
    expected = forecaster().fit(y.loc["b"]).predict(FH)
    np.testing.assert_array_equal(local.loc["b"], expected)


# --- new data ---------------------------------------------------------------------------


@pytest.mark.parametrize("is_panel", [False, True])
def test_update_with_training_is_a_fit_to_all_data(forecaster, is_panel):
    def frame(part: slice) -> pd.DataFrame:
        one = sine()[part]
        return panel({"a": one, "b": one + 1}) if is_panel else one

    one = forecaster().fit(frame(slice(30)))
    one.update(frame(slice(30, 33))).update(frame(slice(33, None)))
    pd.testing.assert_frame_equal(
        one.predict(FH), forecaster().fit(frame(slice(None))).predict(FH)
    )


def test_update_without_training_sees_the_new_data_with_the_old_weights(forecaster):
    one = forecaster().fit(sine(INDEX[:30]))
    weights = {k: v.clone() for k, v in one.model_.model.state_dict().items()}
    one.update(sine()[30:35], update_params=False)
    assert all((weights[k] == v).all() for k, v in one.model_.model.state_dict().items())
    forecast = one.predict([1])
    assert forecast.index[0] == INDEX[35]
    other = sine()[30:35] + 5
    changed = forecaster().fit(sine(INDEX[:30])).update(other, update_params=False)
    # of a network that was hardly trained
    assert not np.array_equal(changed.predict([1]), forecast)


def test_what_the_user_changes_later_is_not_seen(forecaster):
    y, X = sine(), sine(seed=1).set_axis(["x"], axis=1)
    one = forecaster().fit(y[:-2], X[:-2])
    forecast = one.predict([1, 2], X[-2:])
    y.iloc[:], X.iloc[:-2], y.columns = np.inf, 1000.0, ["other"]
    pd.testing.assert_frame_equal(forecast, one.predict([1, 2], X[-2:]))


def test_update_adds_series(forecaster):
    one = forecaster().fit(panel({"a": sine(INDEX[:30])}))
    one.update(panel({"b": sine()}), update_params=False)
    assert one.predict([1]).index.to_list() == [("a", INDEX[30]), ("b", INDEX[-1] + 1)]


def test_backtests_see_nothing_behind_the_cutoff(forecaster):
    y = sine()
    cv = ExpandingWindowSplitter(fh=[1], initial_window=20, step_length=10)
    one = forecaster().fit(y)
    forecast = one.update_predict(y, cv=cv, update_params=False)
    later = y.copy()
    later[20:] += 100
    # the same weights, but other data from step 20 on
    one.update(later, update_params=False)
    again = one.update_predict(later, cv=cv, update_params=False)
    assert forecast.index.equals(INDEX[[20, 30]])
    np.testing.assert_array_equal(forecast.iloc[0], again.iloc[0])
    assert not np.allclose(forecast.iloc[1], again.iloc[1])


def test_update_with_other_columns_is_refused(forecaster):
    one = forecaster().fit(sine(INDEX[:30]))
    message = r"`y` must have the columns \['a'\] as in `fit`, got \['b'\]"
    with pytest.raises(ValueError, match=message):
        one.update(sine(columns="b")[30:])


# --- pretraining ------------------------------------------------------------------------


def test_pretrained_weights_forecast_series_never_seen(forecaster):
    one = forecaster().pretrain(panel({"a": sine(), "b": sine(seed=1)}))
    weights = {k: v.clone() for k, v in one.pretrained_.model.model.state_dict().items()}
    unseen = sine(seed=2)
    forecast = one.fit(unseen[:-5]).update(unseen[-5:]).predict(FH)
    assert all((weights[k] == v).all() for k, v in one.model_.model.state_dict().items())
    # the same from a clone, which keeps them
    pd.testing.assert_frame_equal(one.clone().fit(unseen).predict(FH), forecast)
    # and from an index of another kind
    other = one.fit(unseen.reset_index(drop=True)).predict(FH)
    np.testing.assert_array_equal(other, forecast)


def test_pretraining_again_goes_on(forecaster):
    def weights(one: DDSSMForecaster) -> list:
        return [w.clone() for w in one.pretrained_.model.model.ssm.parameters()]

    y = panel({"a": sine(), "b": sine(seed=1)})
    one = forecaster(optimizer_kwargs={"lr": 1e-2}).pretrain(y)
    first = weights(one)
    one.pl_trainer_kwargs = one.pl_trainer_kwargs | {"max_steps": 2}
    second = weights(one.pretrain(y))
    anew = forecaster({"max_steps": 2}, optimizer_kwargs={"lr": 1e-2})
    fresh = weights(anew.pretrain(y))

    def distance(some: list, others: list) -> float:
        return sum((a - b).abs().sum().item() for a, b in zip(some, others, strict=True))

    assert 0 < distance(first, second)
    assert distance(first, second) != distance(first, fresh)
    # after a plain fit it begins
    begun = forecaster().fit(sine()).pretrain(y)
    assert distance(weights(begun), weights(forecaster().pretrain(y))) == 0


def test_pretraining_and_fit_take_the_same_arguments(forecaster):
    y = panel({"a": sine(), "b": sine(seed=1)})
    X = panel({"a": signs(LONG), "b": signs(LONG)})
    message = "`X` must be passed to both of `pretrain` and `fit` or to neither, got it in"
    with pytest.raises(ValueError, match=f"{message} `pretrain` alone"):
        forecaster().pretrain(y, X).fit(sine())
    with pytest.raises(ValueError, match=f"{message} `fit` alone"):
        forecaster().pretrain(y).fit(sine(), signs(LONG))
    assert forecaster().pretrain(y, X).fit(sine(), signs(LONG)).predict(FH).shape == (3, 1)


def test_columns_are_in_the_places_of_pretraining(forecaster):
    """By which the weights tell them apart."""
    y = pd.DataFrame({"a": sine()["a"], "b": 9 * sine(seed=1)["a"]})
    X = pd.concat([signs(LONG).set_axis([name], axis=1) for name in "cd"], axis=1)
    one = forecaster().pretrain(panel({1: y, 2: y}), panel({1: X, 2: X}))
    for given, known, name, columns in (
        (y[["b", "a"]], X, "y", r"\['a', 'b'\] as in `pretrain`, got \['b', 'a'\]"),
        (y[["a"]], X, "y", r"\['a', 'b'\] as in `pretrain`, got \['a'\]"),
        (y, X[["d", "c"]], "X", r"\['c', 'd'\] as in `pretrain`, got \['d', 'c'\]"),
        (y, X.set_axis(["d", "e"], axis=1), "X", r"\['c', 'd'\] as in `pretrain`, got"),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must have the columns {columns}"):
            # a clone has them too
            one.clone().fit(given, known)
        with pytest.raises(ValueError, match=f"`{name}` must have the columns {columns}"):
            one.pretrain(panel({1: given, 2: given}), panel({1: known, 2: known}))
    assert one.fit(y, X).predict(FH).shape == (3, 2)


def test_columns_may_have_other_names_than_in_pretraining(forecaster):
    X = panel({1: signs(LONG), 2: signs(LONG)})
    one = forecaster().pretrain(panel({1: sine(), 2: sine()}), X)
    known = signs(LONG).set_axis(["p"], axis=1)
    assert list(one.fit(sine(columns="q"), known).predict(FH).columns) == ["q"]


# --- with the rest of sktime ------------------------------------------------------------


def test_pipelines_tuning_and_evaluation(forecaster):
    y = load_airline()[:60]
    fh = np.arange(1, 4)
    cv = ExpandingWindowSplitter(fh=fh, initial_window=40, step_length=10)
    search = ForecastingGridSearchCV(
        forecaster(), cv, {"latent_dim": [1, 2]}, scoring=CRPS(), backend=None
    )
    pipeline = TransformedTargetForecaster([LogTransformer(), search])
    scores = evaluate(
        pipeline, ExpandingWindowSplitter(fh, 54, 3), y, scoring=PinballLoss()
    )
    assert scores["test_PinballLoss"].gt(0).tolist() == [True, True]


def test_features_of_the_calendar(forecaster):
    y = sine(INDICES["month starts"])
    pipeline = ForecastingPipeline([DateTimeFeatures(ts_freq="M"), forecaster()])
    X = pd.DataFrame(index=pd.date_range("2000-01", periods=LENGTH + 5, freq="MS"))
    pipeline.fit(y, X=X[:LENGTH])
    assert pipeline.predict(FH, X=X[LENGTH:]).shape == (3, 1)


# --- without the extra ------------------------------------------------------------------


def test_the_import_without_sktime_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sktime", None)
    monkeypatch.setitem(sys.modules, "sktime.forecasting.base", None)
    for name in [name for name in sys.modules if name.startswith("darts_ddssm.sktime")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r'pip install "\.\[sktime\]"'):
        importlib.import_module("darts_ddssm.sktime")
