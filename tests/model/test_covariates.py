"""Past, future and static covariates: accepted, encoded, and of effect."""

import numpy as np
import pandas as pd
import pytest
from darts import TimeSeries
from darts.utils.timeseries_generation import datetime_attribute_timeseries

from tests.helpers import close, covariate, noisy_sine, same, signs, with_gaps

ORDERS = (1, None)


def noise(length: int, seed: int = 1) -> np.ndarray:
    values = 0.1 * np.random.default_rng(seed).standard_normal((length, 1))
    return values.astype(np.float32)


def correlation(forecast: TimeSeries, actual: np.ndarray) -> float:
    median = forecast.quantile(0.5).values()[:, 0]
    return np.corrcoef(median, actual[:, 0])[0, 1]


# --- all combinations -----------------------------------------------------------------


@pytest.mark.parametrize("past", [True, False])
@pytest.mark.parametrize("future", [True, False])
@pytest.mark.parametrize("static", [True, False])
def test_covariates_of_every_kind(tiny, past, future, static):
    series = noisy_sine(num_components=2)
    if static:
        series = series.with_static_covariates(pd.DataFrame({"a": [1.0], "b": [2.0]}))
    covariates = {}
    if past:
        # ends with the series, whatever the horizon
        covariates["past_covariates"] = covariate(80, num_components=2)
    if future:
        covariates["future_covariates"] = covariate(95)
    model = tiny().fit(series, **covariates)
    assert model.uses_static_covariates is static
    assert model.predict(15, num_samples=2).shape == (15, 2, 2)


@pytest.mark.parametrize("shared", [True, False])
def test_static_covariates_of_all_components_or_each(tiny, shared):
    static = pd.DataFrame({"a": [1.0] if shared else [1.0, -1.0], "b": 2.0})
    series = noisy_sine(num_components=2).with_static_covariates(static)
    model = tiny(n_epochs=1).fit(series)
    assert model.uses_static_covariates
    expected = 2 * static.size
    assert model.model.ssm.transition.context.input_size == expected
    assert model.predict(3).n_components == 2


def with_covariates(kind: str, values: np.ndarray) -> tuple[list, dict]:
    """Three series with covariates of a kind, whose values are given for each."""
    series = [noisy_sine(seed=i).astype(np.float64) for i in range(3)]
    if kind == "static":
        frames = [pd.DataFrame({"a": [v[0]]}) for v in values]
        pairs = zip(series, frames, strict=True)
        return [one.with_static_covariates(frame) for one, frame in pairs], {}
    covariates = [
        TimeSeries.from_times_and_values(
            pd.date_range(one.start_time(), periods=len(v), freq=one.freq), v
        )
        for one, v in zip(series, values, strict=True)
    ]
    return series, {f"{kind}_covariates": covariates}


@pytest.mark.parametrize("kind", ["past", "future", "static"])
def test_covariates_of_any_scale(tiny, kind):
    """In another unit they are the same covariates."""
    values = np.random.default_rng(0).standard_normal((3, 90))

    def forecasts(factor: float, offset: float) -> np.ndarray:
        series, covariates = with_covariates(kind, factor * values + offset)
        # with Adam: the bases of SOAP make much of rounding, which differs by machine
        model = tiny(optimizer_kwargs={"lr": 1e-3}).fit(series, **covariates)
        paths = model.predict(6, series, **covariates, num_samples=5, random_state=0)
        return np.stack([path.all_values() for path in paths])

    plain = forecasts(1.0, 0.0)
    np.testing.assert_allclose(forecasts(1e6, -1e5), plain, rtol=1e-9, atol=1e-9)
    assert not np.allclose(forecasts(0.0, 1.0), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["past", "future", "static"])
def test_a_covariate_that_was_constant_may_change(tiny, kind):
    """By its own size, which is one unit then."""
    series, covariates = with_covariates(kind, np.full((3, 90), 1e6))
    model = tiny().fit(series, **covariates)
    series, covariates = with_covariates(kind, np.full((3, 90), 2e6))
    paths = model.predict(6, series, **covariates, num_samples=5, random_state=0)
    assert all(np.abs(path.all_values()).max() < 10 for path in paths)


def test_a_rare_event_is_a_value_of_a_few(tiny):
    """A covariate of zeros and ones, one in a hundred."""
    event = np.zeros((3, 90))
    event[:, 30] = 1.0
    series, covariates = with_covariates("future", event)
    scale = tiny(n_epochs=1).fit(series, **covariates).model.scales.future
    assert 5 < 1 / scale.spread.item() <= 8


@pytest.mark.parametrize("kind", ["past", "future", "static"])
def test_beyond_their_range_covariates_are_at_its_bound(tiny, kind):
    """Nothing was learned of there: a great value is no greater than a greater one."""
    rng = np.random.default_rng(0)
    # none near zero, which a factor would leave within the range
    values = rng.choice([-1, 1], (3, 90)) * rng.uniform(0.5, 1, (3, 90))
    series, covariates = with_covariates(kind, values)
    model = tiny().fit(series, **covariates)

    def forecast(factor: float) -> TimeSeries:
        series, covariates = with_covariates(kind, factor * values)
        return model.predict(6, series[0], **first_of(covariates), random_state=0)

    assert same(forecast(1e3), forecast(1e6))
    assert not same(forecast(1e3), forecast(1.0))
    # a little beyond it is within
    assert not same(forecast(1.05), forecast(1.0))


def first_of(covariates: dict[str, list[TimeSeries]]) -> dict[str, TimeSeries]:
    return {name: values[0] for name, values in covariates.items()}


@pytest.mark.parametrize("kind", ["past", "future"])
def test_a_covariate_that_drifts_is_seen_relative_to_the_input_chunk(tiny, kind):
    """One that rises for ever, beside one that has a range; each is judged by itself."""
    noise = np.random.default_rng(0).standard_normal((3, 90, 2))
    values = noise + np.arange(90)[:, None] * [1.0, 0.0]
    series, covariates = with_covariates(kind, values)
    model = tiny().fit(series, **covariates)
    scale = getattr(model.model.scales, kind)
    assert scale.is_local.tolist() == [True, False]

    def forecast(offset: list[float]) -> TimeSeries:
        _, covariates = with_covariates(kind, values + offset)
        return model.predict(6, series[0], **first_of(covariates), random_state=0)

    plain = forecast([0.0, 0.0])
    assert close(forecast([1024.0, 0.0]), plain)
    assert not close(forecast([0.0, 1.0]), plain)


def test_a_calendar_that_comes_round_is_seen_as_it_is(tiny):
    """Its values tell the phase; what counts the days of the year for ever does not."""
    series, how = noisy_sine(), {"add_length": 10, "dtype": np.float32}
    days, number = (
        datetime_attribute_timeseries(series.time_index, name, cyclic=cyclic, **how)
        for name, cyclic in (("dayofweek", True), ("dayofyear", False))
    )
    model = tiny(n_epochs=1).fit(series, future_covariates=days.stack(number))
    assert model.model.scales.future.is_local.tolist() == [False, False, True]


@pytest.mark.parametrize("kind", ["past", "future"])
@pytest.mark.parametrize("before", [np.nan, 0.0])
def test_a_covariate_that_was_unknown_or_constant_before_does_not_drift(tiny, kind, before):
    """Its level, that of a flag that is set late, matters."""
    values = np.random.default_rng(0).choice([0.0, 1.0], (3, 90))
    values[:, :60] = before
    series, covariates = with_covariates(kind, values)
    model = tiny().fit(series, **covariates)
    assert not getattr(model.model.scales, kind).is_local.any()

    def forecast(level: float) -> TimeSeries:
        _, covariates = with_covariates(kind, np.full((3, 90), level))
        return model.predict(6, series[0], **first_of(covariates), random_state=0)

    assert not close(forecast(0.0), forecast(1.0))


def test_a_drifting_covariate_with_gaps_or_nowhere_known(tiny):
    """Its level is that of the values that are known; without any it is unknown."""
    noise = np.random.default_rng(0).standard_normal((3, 90))
    values = noise + np.arange(90)
    series, covariates = with_covariates("future", values)
    model = tiny().fit(series, **covariates)
    for missing in (slice(60, 65), slice(0, 80), slice(0, 90)):
        gappy = values.copy()
        gappy[:, missing] = np.nan
        _, covariates = with_covariates("future", gappy)
        path = model.predict(6, series[0], **first_of(covariates), num_samples=3)
        assert np.isfinite(path.all_values()).all()


def test_questions_take_a_drifting_covariate_as_forecasts_do(tiny):
    """Relative to the first input chunk of the series, as the window is normalised."""
    noise = np.random.default_rng(0).standard_normal((3, 90))
    values = noise + np.arange(90)
    series, covariates = with_covariates("future", values)
    model = tiny().fit(series, **covariates)
    found = []
    for offset in (0.0, 1024.0):
        _, covariates = with_covariates("future", values + offset)
        found.append(
            model.log_likelihood(series[0], **first_of(covariates), random_state=0)
        )
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_static_covariates_left_out(tiny):
    series = noisy_sine().with_static_covariates(pd.DataFrame({"a": [1.0]}))
    without = tiny(use_static_covariates=False).fit(series)
    assert not without.uses_static_covariates
    other = series.with_static_covariates(pd.DataFrame({"a": [9.0]}))
    one, two = (without.predict(3, s, random_state=0) for s in (series, other))
    assert same(one, two)


def test_static_covariates_that_are_not_used_may_be_those_of_some_series(tiny):
    series = noisy_sine()
    with_static = series.with_static_covariates(pd.DataFrame({"a": [1.0]}))
    model = tiny(n_epochs=1).fit(series)
    one, other = model.predict(3, [series, with_static], num_samples=2)
    assert one.shape == other.shape == (3, 1, 2)
    assert len(model.infer_latents([with_static, series])) == 2
    uses = tiny(n_epochs=1).fit(with_static)
    with pytest.raises(ValueError, match="all or none of them"):
        uses.predict(3, [with_static, series])


def test_covariates_must_be_those_of_training(tiny):
    series = noisy_sine()
    model = tiny(n_epochs=1).fit([series] * 2, future_covariates=[covariate(100)] * 2)
    with pytest.raises(ValueError, match="covariates"):
        model.predict(3, series)
    with pytest.raises(ValueError, match="covariates"):
        model.predict(3, series, future_covariates=covariate(100, num_components=2))


def test_missing_values_in_covariates(tiny):
    gap = slice(60, 90)
    kinds = {
        "past_covariates": with_gaps(covariate(80), slice(60, 80)),
        "future_covariates": with_gaps(covariate(100, seed=2), gap),
    }
    model = tiny().fit(noisy_sine(), **kinds)
    assert np.isfinite(model.predict(12, num_samples=3).all_values()).all()


def test_encoders_give_what_explicit_covariates_give(tiny):
    times = pd.date_range("2020-01-01", periods=100)
    series = TimeSeries.from_times_and_values(times[:80], noisy_sine().values())
    month = datetime_attribute_timeseries(times, "month", dtype=np.float32)
    week = datetime_attribute_timeseries(times, "dayofweek", dtype=np.float32)
    encoders = {"datetime_attribute": {"past": ["month"], "future": ["dayofweek"]}}
    encoded = tiny(add_encoders=encoders).fit(series)
    explicit = tiny().fit(series, past_covariates=month, future_covariates=week)
    assert encoded.uses_past_covariates and encoded.uses_future_covariates
    assert same(
        encoded.predict(9, num_samples=3, random_state=0),
        explicit.predict(9, num_samples=3, random_state=0),
    )


@pytest.mark.usefixtures("short_flows")
def test_positions_are_counted_from_the_end_of_a_series(tiny):
    """Those that a question sees are those that a forecast sees, in short series too."""
    # one so long that hardly any position is new in the last third of the steps: such ones
    # would be seen relative to their mean
    series = [TimeSeries.from_values(noisy_sine(number).values()) for number in (800, 18)]
    common = {"series": series, "max_samples_per_ts": 8}
    encoders = {"position": {"future": ["relative"]}}
    encoded = tiny(n_epochs=1, add_encoders=encoders).fit(**common)

    def positions(given: TimeSeries) -> TimeSeries:
        steps = np.arange(len(given) + 6, dtype=np.float32) - (len(given) - 1)
        return TimeSeries.from_values(steps)

    covariates = [positions(one) for one in series]
    explicit = tiny(n_epochs=1).fit(**common, future_covariates=covariates)
    assert not explicit.model.scales.future.is_local.any()
    past = series[0][:12]
    given = {"future_covariates": positions(past)}
    assert same(
        encoded.predict(6, past, num_samples=2, random_state=0),
        explicit.predict(6, past, num_samples=2, random_state=0, **given),
    )
    one = encoded.infer_latents(past, num_samples=2, random_state=0)
    assert same(one, explicit.infer_latents(past, num_samples=2, random_state=0, **given))
    one = encoded.log_likelihood(past, num_samples=2, random_state=0)
    assert one == explicit.log_likelihood(past, num_samples=2, random_state=0, **given)


def test_encodings_before_a_short_series_are_not_looked_at(tiny):
    """A user's encoder may have no value there."""

    def since_the_start(index: pd.RangeIndex) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(np.asarray(index) + 1.0)

    series = TimeSeries.from_values(noisy_sine().values())
    model = tiny(n_epochs=1, add_encoders={"custom": {"future": [since_the_start]}})
    latents = model.fit(series).infer_latents(series[:12])
    assert np.isfinite(latents.values()).all()


def test_future_covariates_too_short(tiny):
    model = tiny().fit(noisy_sine(), future_covariates=covariate(86))
    with pytest.raises(ValueError, match="future_covariates"):
        model.predict(12)


def test_it_is_not_said_that_later_past_covariates_are_used(tiny, caplog):
    series, known = noisy_sine(), covariate(100)
    model = tiny(n_epochs=1).fit(series, past_covariates=known[:80])
    how = {"num_samples": 3, "random_state": 0}
    short, long = (
        model.predict(9, series, past_covariates=c, **how) for c in (known[:80], known)
    )
    assert same(short, long)
    where = {"forecast_horizon": 9, "start": -20, "start_format": "position", "stride": 10}
    for retrain in (False, True):
        model.historical_forecasts(
            series, past_covariates=known, retrain=retrain, **where, **how
        )
    assert "past_covariates" not in caplog.text


def test_past_covariates_that_end_with_the_series_suffice(tiny):
    model = tiny(n_epochs=1).fit(noisy_sine(), past_covariates=covariate(80))
    for n in (1, 6, 30):
        assert model.predict(n).n_timesteps == n
    with pytest.raises(ValueError, match="past_covariates"):
        model.predict(1, past_covariates=covariate(79))


# --- effects --------------------------------------------------------------------------

# What acts within a few steps is learned from short windows.
SHORT = {
    "input_chunk_length": 4,
    "output_chunk_length": 2,
    "optimizer_kwargs": {"lr": 1e-2},
}


@pytest.mark.parametrize("transition", ["diffusion", "gaussian"])
def test_forecast_follows_a_future_covariate(tiny, transition):
    """A covariate that is the level of the series decides the forecast."""
    rng = np.random.default_rng(0)
    level = rng.choice([-1.0, 1.0], size=(200, 1)).astype(np.float32)
    known = TimeSeries.from_values(level)
    noise = 0.1 * rng.standard_normal((180, 1)).astype(np.float32)
    series = TimeSeries.from_values(level[:180] + noise)
    model = tiny(**SHORT, transition=transition, n_epochs=30, batch_size=32)
    model.fit(series, future_covariates=known)
    forecast = model.predict(20, num_samples=100).quantile(0.5).values()
    assert np.corrcoef(forecast[:, 0], level[180:, 0])[0, 1] > 0.9


@pytest.mark.parametrize("order", ORDERS)
def test_forecast_follows_a_past_covariate(tiny, order):
    """A covariate that is the next value of the series decides the next value alone."""
    known = signs(300)
    values = np.roll(known, 1, axis=0) + noise(300)
    series, past = TimeSeries.from_values(values), TimeSeries.from_values(known)
    model = tiny(**SHORT, transition_order=order, n_epochs=30, batch_size=32)
    model.fit(series[:240], past_covariates=past[:240])
    forecasts = model.historical_forecasts(
        series,
        past_covariates=past,
        start=240,
        forecast_horizon=2,
        retrain=False,
        num_samples=50,
        last_points_only=False,
    )
    next_values, later = (
        np.array([f.quantile(0.5).values()[i, 0] for f in forecasts]) for i in (0, 1)
    )
    assert np.corrcoef(next_values, values[240:-1, 0])[0, 1] > 0.9
    # what comes after that it does not tell; five standard errors
    assert abs(np.corrcoef(later, values[241:, 0])[0, 1]) < 5 / len(later) ** 0.5


def test_forecast_follows_a_past_covariate_with_a_delay(tiny):
    """What is seen three steps before it acts is not forgotten until then."""
    known = signs(500)
    values = np.roll(known, 3, axis=0) + noise(500)
    series, past = TimeSeries.from_values(values), TimeSeries.from_values(known)
    chunks = {"input_chunk_length": 8, "output_chunk_length": 4}
    model = tiny(**SHORT | chunks, hidden_size=16, n_epochs=30, batch_size=32)
    model.fit(series[:400], past_covariates=past[:400])
    forecasts = model.historical_forecasts(
        series,
        past_covariates=past,
        start=400,
        forecast_horizon=3,
        retrain=False,
        num_samples=50,
    )
    assert correlation(forecasts, values[402:]) > 0.9


def test_forecast_follows_a_static_covariate(tiny):
    """From the same past, zero, series go up or down as their covariate says."""
    level = np.tile([0.0, 1.0], 60)[:, None].astype(np.float32)
    series = [
        TimeSeries.from_values(
            sign * level + noise(120, seed=i),
            static_covariates=pd.DataFrame({"sign": [float(sign)]}),
        )
        for i, sign in enumerate((1, -1))
    ]
    model = tiny(
        input_chunk_length=1,
        output_chunk_length=2,
        hidden_size=16,
        batch_size=32,
        n_epochs=60,
        optimizer_kwargs={"lr": 1e-2},
    ).fit(series)
    contexts = [s[:101] for s in series]
    up, down = (
        forecast.quantile(0.5).values()[0, 0]
        for forecast in model.predict(1, contexts, num_samples=100)
    )
    assert up > 0.7 and down < -0.7


# --- shift ----------------------------------------------------------------------------


def test_output_chunk_shift(tiny):
    series = noisy_sine()
    model = tiny(output_chunk_shift=3).fit(series, future_covariates=covariate(100))
    forecast = model.predict(6, num_samples=2)
    assert forecast.start_time() == series.end_time() + 4 * series.freq
    with pytest.raises(ValueError, match="auto-regression"):
        model.predict(7)


def test_steps_of_the_shift_are_rolled_through(tiny):
    """A random walk is further away after a gap: its steps add up."""
    steps = np.random.default_rng(0).standard_normal((12, 60)).astype(np.float32)
    walks = [TimeSeries.from_values(x) for x in 0.2 * steps.cumsum(1)]
    arguments = dict(transition_order=1, n_epochs=20, batch_size=64)
    spreads = []
    for shift in (0, 24):
        model = tiny(**SHORT, output_chunk_shift=shift, **arguments).fit(walks)
        forecast = model.predict(1, walks[0], num_samples=500)
        spreads.append(forecast.all_values().std())
    # in truth 25 ** 0.5 times as far
    assert spreads[1] > 2.5 * spreads[0]
