"""What simple forecasts of a training set tell: the noise and the length of a training."""

import numpy as np
import pytest
import torch
from darts import TimeSeries
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor

from darts_ddssm import DDSSMModel
from darts_ddssm.datasets import bimodal_random_walk
from darts_ddssm.estimator import cross_validation, recipe
from darts_ddssm.estimator.automatic import say_once
from darts_ddssm.estimator.covariates import TrainingCovariates
from darts_ddssm.estimator.cross_validation import (
    COVARIATE_TOLERANCE,
    DEFAULT_LEVEL,
    MAX_COVARIATE_LEVEL,
    MAX_IDLE_LEVEL,
    NOISE_LEVELS,
    SHARE_OF_LEVEL,
    ForecastErrors,
    _covariate_ridge_errors,
    _folds,
    _joint_ridge_errors,
    _neighbours_error,
    _ridge_errors,
    _Rows,
    automatic_covariate_noise,
    automatic_input_noise,
    each_step_tells,
    forecast_errors,
    is_predictable,
    may_be_delayed,
)
from darts_ddssm.estimator.instance_scale import instance_floor
from darts_ddssm.estimator.windows import ChunkLengths
from darts_ddssm.series.scaling import (
    CovariateScale,
    LocalPattern,
    Scale,
)
from tests.helpers import close, delayed_effect, moved_by, noisy_sine, same, with_gaps


def errors_of(
    *series: TimeSeries,
    by_instance: bool = False,
    past_covariates: list[TimeSeries] | None = None,
    future_covariates: list[TimeSeries] | None = None,
) -> ForecastErrors | None:
    """Errors of forecasts of 12 steps from 24, in the units of all series."""
    values = np.concatenate([one.values() for one in series])
    std = np.nanstd(values, 0)
    spread = np.where(std > 0, std, 1.0)
    scale = Scale(torch.tensor(np.nanmean(values, 0)), torch.tensor(spread))
    whole = LocalPattern(24)
    floor = instance_floor(series, 24, scale, whole)
    lengths, covariates = ChunkLengths(24, 0, 12), None
    if past_covariates or future_covariates:
        as_they_are = [CovariateScale.unit()] * 2
        given = past_covariates, future_covariates, *as_they_are
        covariates = TrainingCovariates(series, *given, lengths)
    how = scale, floor, whole if by_instance else None, covariates
    return forecast_errors(series, lengths, *how)


def level(*series: TimeSeries, num_windows: int = 1, by_instance: bool = False) -> float:
    """The level chosen by these errors."""
    errors, num_components = errors_of(*series, by_instance=by_instance), series[0].width
    noise = automatic_input_noise(errors, num_windows, num_components)
    # as exact as the levels are written
    return round(noise / SHARE_OF_LEVEL / np.sqrt(num_components), 12)


def white_noise(length: int = 200, seed: int = 0) -> TimeSeries:
    values = np.random.default_rng(seed).standard_normal((length, 1))
    return TimeSeries.from_values(values)


def repeated(length: int = 120, seed: int = 0) -> TimeSeries:
    """The same twelve values again and again."""
    values = np.random.default_rng(seed).standard_normal(12)
    return TimeSeries.from_values(np.resize(values, length))


def test_noise_is_that_of_the_best_ridge_regression():
    """Errors are those of scikit-learn's ridge regression with N noise^2 as penalty."""
    rng = np.random.default_rng(0)
    x, held = rng.standard_normal((2, 30, 2, 5))
    weights = rng.standard_normal((5, 3))
    y, y_held = (part @ weights + rng.standard_normal((30, 2, 3)) for part in (x, held))
    parts = (torch.from_numpy(part).flatten(0, 1) for part in (x, y, held, y_held))
    errors = _ridge_errors(*parts)
    for noise, error in zip(NOISE_LEVELS, errors, strict=True):
        ridge = Ridge(alpha=60 * noise**2).fit(x.reshape(60, 5), y.reshape(60, 3))
        residuals = ridge.predict(held.reshape(60, 5)) - y_held.reshape(60, 3)
        expected = np.log(np.abs(residuals).mean(0)).mean()
        assert error.item() == pytest.approx(expected, rel=1e-6)


def test_nothing_that_is_held_out_is_trained_on():
    starts = torch.arange(0, 100, 3)
    train, held = _folds(starts, output_length=12)
    assert torch.equal(held.sum(0), torch.ones(len(starts)))
    for i in range(len(held)):
        between = starts[held[i]].unsqueeze(-1) - starts[train[i]]
        # output chunks of 12 steps share none
        assert between.abs().min() >= 12
        assert train[i].sum() > 15


@pytest.mark.parametrize("by_instance", (False, True))
def test_a_series_that_repeats_itself_takes_least_and_noise_takes_most(by_instance):
    assert level(repeated(), by_instance=by_instance) == NOISE_LEVELS[0]
    assert level(white_noise(), by_instance=by_instance) >= 1.0


def logistic_map(length: int = 400) -> TimeSeries:
    """Chaotic: no linear forecast sees that each value decides on the next one."""
    x = np.full((length, 1), 0.3)
    for t in range(1, length):
        x[t] = 3.8 * x[t - 1] * (1 - x[t - 1])
    return TimeSeries.from_values(x)


def test_error_of_nearest_neighbours():
    """That of scikit-learn's, which see the last three values."""
    rng = np.random.default_rng(0)
    x, held = rng.standard_normal((2, 40, 5))
    y, y_held = rng.standard_normal((2, 40, 3))
    none = np.zeros((40, 0))
    rows = (map(torch.from_numpy, (*pair, none, none)) for pair in ((x, y), (held, y_held)))
    error = _neighbours_error(*(_Rows(*each) for each in rows))
    neighbours = KNeighborsRegressor(10).fit(x[:, -3:], y)
    residuals = neighbours.predict(held[:, -3:]) - y_held
    assert error.item() == pytest.approx(np.log(np.abs(residuals).mean(0)).mean())


@pytest.mark.parametrize("by_instance", (False, True))
def test_whose_past_says_what_follows(by_instance):
    """That of a sine or of chaos does, that of noise not. Few windows do not tell."""
    found = [
        is_predictable(errors_of(series, by_instance=by_instance))
        for series in (
            noisy_sine(400),
            repeated(),
            logistic_map(),
            white_noise(400),
            white_noise(36),
        )
    ]
    assert found == [True, True, True, False, True]


def test_of_what_each_step_tells():
    """Of what the past says, and of so many windows of noise that none is learned."""
    found = [
        each_step_tells(errors_of(series))
        for series in (noisy_sine(400), white_noise(36), white_noise(), white_noise(4000))
    ]
    assert found == [True, True, False, True]


@pytest.mark.parametrize("seed", range(5))
def test_each_step_of_short_walks_tells(seed):
    """Whichever walks they are, though some suit more noise than others."""
    walks = bimodal_random_walk(300, 37, random_state=seed).series
    assert each_step_tells(errors_of(*walks))


def test_units_do_not_matter():
    for by_instance in (False, True):
        one = level(noisy_sine(), by_instance=by_instance)
        assert NOISE_LEVELS[0] < one < 1.0
        moved = level(noisy_sine() * 1e6 + 1e3, by_instance=by_instance)
        assert moved == pytest.approx(one)


def test_many_windows_need_less():
    """Noise is inverse to the number of windows."""
    few = level(white_noise(), num_windows=100)
    assert level(white_noise(), num_windows=10) == few
    assert level(white_noise(), num_windows=900) == pytest.approx(few / 9)


def test_gaps_are_filled_for_it():
    series = with_gaps(noisy_sine(), slice(30, 34))
    assert level(series) == pytest.approx(level(noisy_sine()), rel=0.6)
    nothing = with_gaps(noisy_sine(), slice(None))
    assert level(nothing, noisy_sine()) < 1.0


def test_series_of_a_single_window_are_held_out_as_a_whole():
    few = [white_noise(36, seed) for seed in range(60)]
    assert level(*few) >= 1.0
    assert level(*(repeated(36, seed) for seed in range(60))) == NOISE_LEVELS[0]


def test_series_whose_windows_overlap_are_held_out_as_a_whole():
    """Eleven windows each; the more there are, the less noise suits."""
    few = [white_noise(46, seed) for seed in range(60)]
    assert level(*few) > DEFAULT_LEVEL
    assert level(*(repeated(46, seed) for seed in range(60))) == NOISE_LEVELS[0]


def beside(*series: TimeSeries) -> TimeSeries:
    """One series of the components of all."""
    return TimeSeries.from_values(np.hstack([one.values() for one in series]))


def test_components_are_forecast_from_all_of_them():
    """Errors are those of scikit-learn's ridge regression on all inputs at once."""
    rng = np.random.default_rng(0)
    x, held = rng.standard_normal((2, 60, 3, 5))
    y, y_held = rng.standard_normal((2, 60, 3, 4))
    none = np.zeros((60, 0))
    parts = (x, y, none, none), (held, y_held, none, none)
    errors = _joint_ridge_errors(*(_Rows(*map(torch.from_numpy, p)) for p in parts))
    for noise, error in zip(NOISE_LEVELS, errors, strict=True):
        ridge = Ridge(alpha=60 * noise**2).fit(x.reshape(60, 15), y.reshape(60, 12))
        residuals = ridge.predict(held.reshape(60, 15)) - y_held.reshape(60, 12)
        # of all components at each step, as where each is forecast by itself
        steps = np.abs(residuals).reshape(60, 3, 4).mean((0, 1))
        expected = np.log(steps).mean()
        assert error.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("num_components", (3, 600))
def test_no_more_inputs_than_a_regression_takes(num_components):
    """The last steps of each component, or some of very many components."""
    rng = np.random.default_rng(0)
    walk = rng.standard_normal((120, num_components)).cumsum(0)
    errors = errors_of(TimeSeries.from_values(walk), by_instance=True)
    assert errors.joint.isfinite().all()


def test_components_that_tell_nothing_of_each_other_take_more_noise():
    """Windows of a sine are told apart by what is beside it."""
    wave, noises = noisy_sine(200), [white_noise(seed=seed) for seed in range(3)]
    alone = errors_of(wave)
    assert torch.equal(alone.joint, alone.linear)
    assert level(beside(wave, *noises)) > 2 * level(wave)


def test_a_constant_component_says_nothing():
    noise, constant = white_noise(), TimeSeries.from_values(np.ones((200, 1)))
    with_constant = errors_of(beside(noise, constant))
    alone = errors_of(noise)
    # half of the outputs have no error
    assert torch.allclose(with_constant.joint, alone.linear - np.log(2), atol=1e-6)
    assert not is_predictable(with_constant)


def test_a_component_that_tells_what_another_will_be_takes_little():
    ahead = white_noise().values()
    pair = TimeSeries.from_values(np.hstack([ahead[12:], ahead[:-12]]))
    errors = errors_of(pair)
    # the error of one of them is gone
    assert errors.joint.min() < errors.linear.min() - 0.5
    assert level(pair) <= 0.1
    assert is_predictable(errors) and not is_predictable(errors_of(pair[["1"]]))


@pytest.mark.parametrize("num_components", (1, 4))
def test_noise_grows_with_the_root_of_the_components(num_components):
    noise = automatic_input_noise(None, 10, num_components)
    assert noise == pytest.approx(SHARE_OF_LEVEL * DEFAULT_LEVEL * np.sqrt(num_components))


@pytest.mark.parametrize("length", (10, 36, 40))
def test_few_windows_take_a_default(length):
    assert level(white_noise(length)) == DEFAULT_LEVEL


def test_what_was_chosen_is_said_once(tiny, caplog):
    say_once.cache_clear()
    for _ in range(2):
        model = tiny(n_epochs=1).fit(noisy_sine())
    said = [r for r in caplog.records if "noise of about" in r.message]
    assert len(said) == 1 and said[0].levelname == "WARNING"
    assert f"{model.model.input_noise:.1g}" in said[0].message
    assert "Pass `input_noise`" in said[0].message


def test_noise_of_the_users(tiny, caplog):
    say_once.cache_clear()
    model = tiny(n_epochs=1, input_noise=0.7).fit(noisy_sine())
    assert model.model.input_noise == 0.7
    assert not [r for r in caplog.records if "noise of about" in r.message]
    other = tiny(n_epochs=1, input_noise=0).fit(noisy_sine())
    assert not same(*(m.predict(3, random_state=0) for m in (model, other)))


@pytest.mark.parametrize("num_series, num_components", [(1, 1), (1, 5), (40, 1), (40, 3)])
@pytest.mark.parametrize("num_covariates", [0, 4])
def test_large_windows_are_few(monkeypatch, num_series, num_components, num_covariates):
    """With the covariates beside each component, they fit in the memory."""
    most, shape = 40_000, (max(600 // num_series, 70), num_components)
    monkeypatch.setattr(cross_validation, "MAX_VALUES", most)
    monkeypatch.setattr(cross_validation, "MIN_WINDOWS", 8)
    rng = np.random.default_rng(0)
    series = [TimeSeries.from_values(rng.standard_normal(shape)) for _ in range(num_series)]
    known = [TimeSeries.from_values(rng.standard_normal((shape[0], num_covariates or 1)))]
    rows_of, sizes = cross_validation._rows_of, []

    def counted(*args):
        rows, folds = rows_of(*args)
        sizes.append(sum(part.numel() for part in rows.by_component()))
        return rows, folds

    monkeypatch.setattr(cross_validation, "_rows_of", counted)
    errors = errors_of(*series, future_covariates=known * num_series * bool(num_covariates))
    assert errors.linear.isfinite().all()
    assert most / 4 < sizes[0] <= most


def test_penalties_of_past_and_covariates_are_apart():
    """Errors are those of scikit-learn's ridge regression, each input in its unit."""
    rng = np.random.default_rng(0)
    x, held = rng.standard_normal((2, 60, 5))
    c, c_held = rng.standard_normal((2, 60, 4))
    y, y_held = rng.standard_normal((2, 60, 3))
    none = np.zeros((60, 0))
    parts = (x, y, c, none), (held, y_held, c_held, none)
    rows = (_Rows(*map(torch.from_numpy, each)) for each in parts)
    errors = _covariate_ridge_errors(*rows, level=0.3)
    for noise, error in zip(NOISE_LEVELS, errors, strict=True):
        joined = (np.hstack([a, b * 0.3 / noise]) for a, b in ((x, c), (held, c_held)))
        x_own, held_own = joined
        ridge = Ridge(alpha=60 * 0.3**2).fit(x_own, y)
        expected = np.log(np.abs(ridge.predict(held_own) - y_held).mean(0)).mean()
        assert error.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "effect, expected",
    [
        ("some", MAX_COVARIATE_LEVEL),
        ("most", 0.05),
        ("all", 0.05),
        ("not linear", 0.05),
    ],
)
def test_covariates_have_little_noise_where_they_tell_much(effect, expected):
    series, covariate = moved_by(effect)
    errors = errors_of(series, future_covariates=[covariate])
    assert automatic_covariate_noise(errors) == expected
    # the length of the training is by the past alone
    assert not is_predictable(errors)


def test_covariates_that_tell_nothing_have_most_noise():
    """But where a linear forecast happens to gain by them."""
    pairs = [moved_by("none", seed) for seed in range(7)]
    levels = [
        automatic_covariate_noise(errors_of(series, future_covariates=[covariate]))
        for series, covariate in pairs
    ]
    assert set(levels) <= {MAX_COVARIATE_LEVEL, MAX_IDLE_LEVEL}
    assert np.median(levels) == MAX_IDLE_LEVEL


def test_past_covariates_have_noise_too():
    """Two steps ahead of the series; of the last steps of a horizon they say nothing."""
    series, covariate = moved_by("all")
    delayed = TimeSeries.from_values(series.values()[:-2])
    found = [
        errors_of(delayed, past_covariates=[one])
        for one in (covariate[2:], white_noise(seed=1)[2:])
    ]
    assert all(errors.covariate_neighbours is None for errors in found)
    assert found[1].with_covariates.min() > found[1].linear.min() - COVARIATE_TOLERANCE


def test_covariates_belong_to_the_steps_of_their_series():
    """They may begin before it and end after it. Series that are too short are left out."""
    series, covariate = moved_by("all")
    errors = errors_of(
        series[:20], series[50:150], future_covariates=[covariate[:20], covariate]
    )
    # those of other steps would tell nothing
    assert errors.with_covariates[0] < errors.linear.min() - 2


def test_without_covariates_there_is_no_noise_on_them():
    assert automatic_covariate_noise(errors_of(white_noise())) == 0
    assert automatic_covariate_noise(None) == 0


@pytest.mark.parametrize("period", (7, 12))
def test_a_calendar_has_no_noise(period):
    """It comes round, so that no window is known by it."""
    phase = 2 * np.pi * np.arange(200)[:, None] / period
    calendar = TimeSeries.from_values(np.hstack([np.sin(phase), np.cos(phase)]))
    errors = errors_of(white_noise(), future_covariates=[calendar])
    assert errors.apart == pytest.approx(0, abs=1e-6)
    assert automatic_covariate_noise(errors) == 0
    constant = TimeSeries.from_values(np.ones((200, 1)))
    errors = errors_of(white_noise(), future_covariates=[constant])
    assert automatic_covariate_noise(errors) == 0


@pytest.mark.parametrize("kind", ["past_covariates", "future_covariates"])
@pytest.mark.parametrize("seed", range(3))
def test_delayed_effects_are_found(kind, seed):
    series, covariate = delayed_effect(seed)
    assert may_be_delayed(errors_of(series, **{kind: [covariate]}))


@pytest.mark.parametrize("effect", ["none", "not linear"])
def test_effects_at_once_and_none_are_not_delayed(effect):
    pairs = [moved_by(effect, seed) for seed in range(5)]
    found = [may_be_delayed(errors_of(x, future_covariates=[c])) for x, c in pairs]
    # a linear forecast of noise may happen to gain
    assert np.median(found) == 0


def test_what_comes_round_has_no_delayed_effect():
    phase = 2 * np.pi * np.arange(200)[:, None] / 12
    calendar = TimeSeries.from_values(np.hstack([np.sin(phase), np.cos(phase)]))
    delayed = np.roll(calendar.values()[:, :1], 5, axis=0)
    series = TimeSeries.from_values(0.1 * white_noise().values() + delayed)
    errors = errors_of(series, future_covariates=[calendar])
    assert not may_be_delayed(errors)
    assert not may_be_delayed(errors_of(series)) and not may_be_delayed(None)


def test_delayed_effects_are_learned_and_said(tiny, tmp_path, caplog):
    series, covariate = delayed_effect()
    covariate = covariate.astype(np.float32)
    say_once.cache_clear()
    fitted = {"future_covariates": covariate}
    # whatever else the user decides
    model = tiny(n_epochs=1, input_noise=0.0, covariate_noise=0.0)
    model.fit(series[:-6].astype(np.float32), **fitted)
    assert "learns delayed effects of its covariates" in caplog.text
    kernel = model.model.ssm.transition.context.kernel
    assert kernel.input_weight.any()
    path = str(tmp_path / "model.pt")
    model.save(path)
    weights = model.untrained_model()
    weights.load_weights(path)
    expected = model.predict(6, num_samples=3, random_state=0)
    for loaded in (DDSSMModel.load(path), weights):
        known = {"series": series[:-6].astype(np.float32), **fitted}
        assert close(loaded.predict(6, num_samples=3, random_state=0, **known), expected)
    # what is there is learned on
    model.fit(series[:-6].astype(np.float32), **fitted)
    assert model.model.ssm.transition.context.kernel is kernel


def test_delayed_effects_of_a_transition_that_does_not_remember(tiny, caplog):
    """It sees the inputs of its last steps anyway."""
    series, covariate = delayed_effect()
    say_once.cache_clear()
    tiny(n_epochs=1, transition_order=2).fit(series, future_covariates=covariate)
    assert "delayed effects" not in caplog.text


def test_a_fitted_transition_sees_what_it_saw(tiny, caplog):
    """Whatever it is fitted to later, and so nothing else is said."""
    noise, covariate = moved_by("none")
    series, delayed = delayed_effect()
    model = tiny(n_epochs=1).fit(noise, future_covariates=covariate)
    assert model.model.ssm.transition.context.kernel.input_weight is None
    say_once.cache_clear()
    model.fit(series, future_covariates=delayed)
    assert model.model.ssm.transition.context.kernel.input_weight is None
    assert "delayed effects" not in caplog.text


@pytest.mark.parametrize("order, expected", [(None, 1), (2, 0)])
def test_nothing_is_compared_where_all_is_decided(tiny, monkeypatch, order, expected):
    """Forecasts by many covariates take long."""
    calls = []

    def counted(*args, **kwargs):
        calls.append(forecast_errors(*args, **kwargs))
        return calls[-1]

    monkeypatch.setattr(recipe, "forecast_errors", counted)
    series, covariate = delayed_effect()
    decided = {"n_epochs": 1, "input_noise": 0.0, "covariate_noise": 0.0}
    model = tiny(transition_order=order, **decided)
    for _ in range(2):
        model.fit(series, future_covariates=covariate)
    assert len(calls) == expected


def test_noise_on_covariates_is_chosen_and_said(tiny, caplog):
    series, covariate = moved_by("none")
    say_once.cache_clear()
    model = tiny(n_epochs=1).fit(series, future_covariates=covariate)
    said = [r for r in caplog.records if "on its covariates" in r.message]
    assert len(said) == 1 and "Pass `covariate_noise`" in said[0].message
    assert f"{model.model.covariate_noise:.1g}" in said[0].message
    assert model.model.covariate_noise in (MAX_COVARIATE_LEVEL, MAX_IDLE_LEVEL)


def test_noise_on_covariates_of_the_user(tiny):
    series, covariate = moved_by("none")
    models = [
        tiny(n_epochs=1, covariate_noise=level).fit(series, future_covariates=covariate)
        for level in (0.0, 0.3)
    ]
    assert [model.model.covariate_noise for model in models] == [0.0, 0.3]
    paths = [
        model.predict(3, series[:-10], future_covariates=covariate, random_state=0)
        for model in models
    ]
    assert not same(*paths)


@pytest.mark.parametrize("value", (-0.1, np.nan, "0.1"))
def test_covariate_noise_must_be_a_number(tiny, value):
    with pytest.raises(ValueError, match=f"`covariate_noise` must be .* got `{value!r}`"):
        tiny(covariate_noise=value)


@pytest.mark.parametrize("value", (-0.1, "much", True, float("nan")))
def test_input_noise_must_be_a_number(tiny, value):
    with pytest.raises(ValueError, match=f"`input_noise` must be .* got `{value!r}`"):
        tiny(input_noise=value)
