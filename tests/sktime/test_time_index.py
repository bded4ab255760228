"""Indices of every kind and horizons, which are refused where they do not fit."""

import numpy as np
import pandas as pd
import pytest
from sktime.forecasting.base import ForecastingHorizon

from tests.helpers import FH, INDICES, LENGTH, panel, sine


@pytest.fixture(scope="module")
def by_number() -> dict[bool, pd.DataFrame]:
    """Forecasts of a series whose steps are numbers, with gaps and without."""
    return {}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
@pytest.mark.parametrize("gaps", [False, True], ids=["complete", "gaps"])
def test_any_index_and_rows_left_out(forecaster, by_number, index, gaps):
    y = sine(index)
    if gaps:
        y.iloc[[7, 8, 20]] = np.nan
    # the same for all of them
    if gaps not in by_number:
        by_number[gaps] = forecaster().fit(y.set_axis(INDICES["range"])).predict(FH)
    forecast = forecaster().fit(y.dropna()).predict(FH)
    np.testing.assert_array_equal(forecast, by_number[gaps])
    if isinstance(index, pd.DatetimeIndex):
        times = pd.date_range(index[-1], periods=6, freq=index.freq or "ME")[FH]
    else:
        times = index[-1] + np.array(FH)
    assert forecast.index.to_list() == list(times)


def test_absolute_horizons(forecaster):
    one = forecaster().fit(sine())
    times = pd.PeriodIndex(["2003-05", "2003-09"], freq="M")
    forecast = one.predict(ForecastingHorizon(times, is_relative=False))
    assert forecast.index.equals(times)
    np.testing.assert_array_equal(forecast, one.predict([1, 5]))


def test_in_sample_horizons_are_refused(forecaster):
    one = forecaster().fit(sine())
    with pytest.raises(NotImplementedError, match="in-sample"):
        one.predict([0, 1])
    with pytest.raises(NotImplementedError, match="in-sample"):
        one.predict_interval([-1])


def test_times_off_the_grid_are_refused(forecaster):
    days = pd.date_range("2000-01-01", periods=LENGTH)
    one = forecaster().fit(sine(days))
    noon = pd.DatetimeIndex(["2000-02-10", "2000-02-11 12:00", "2000-02-12"])
    with pytest.raises(ValueError, match="`fh` must be after the last time of each series"):
        one.predict(ForecastingHorizon(noon, is_relative=False))
    message = "The index of `y` must have one frequency, got dates from which none can be"
    for irregular in (days[[0, 1]], days.delete(9).insert(9, days[9] + pd.Timedelta("1h"))):
        with pytest.raises(ValueError, match=message):
            forecaster().fit(sine(irregular))
    periods = pd.PeriodIndex(["2000-01", "2000-03", "2000-04"], freq="2M")
    message = "The index of `y` must be regular, got `2000-04`, which is no multiple of"
    with pytest.raises(ValueError, match=message):
        forecaster().fit(sine(periods))


@pytest.mark.parametrize(
    "freq, offset", [("h", "30min"), ("D", "6h"), ("MS", "1D"), ("W-SUN", "0D")]
)
def test_series_may_be_offset_against_each_other(forecaster, freq, offset):
    """Each keeps its own steps, in a panel as alone."""
    times = pd.date_range("2000-01-02", periods=LENGTH, freq=freq)
    times = pd.DatetimeIndex(times, freq=None)
    later = times + pd.Timedelta(offset)
    if freq == "MS":
        later = times[1:]
    one = forecaster().fit(panel({"a": sine(times), "b": sine(later)}))
    index = one.predict([1, 2]).index
    assert list(index.get_level_values(0)) == ["a", "a", "b", "b"]
    step = pd.tseries.frequencies.to_offset(freq)
    for key, own in (("a", times), ("b", later)):
        expected = [own[-1] + step, own[-1] + 2 * step]
        assert [time for name, time in index if name == key] == expected


def test_the_frequency_is_that_of_the_training(forecaster):
    """What was trained on days does not turn to hours."""
    days = pd.date_range("2000-01-01", periods=LENGTH)
    one = forecaster().fit(sine(days))
    hours = pd.date_range(days[-1], periods=10, freq="h")
    one.update(sine()[:10].set_axis(hours), update_params=False)
    with pytest.raises(ValueError, match="`y` must be regular, got .* multiple of `D`"):
        one.predict([1])


@pytest.mark.parametrize("key", [np.nan, None], ids=str)
def test_missing_keys_are_refused(forecaster, key):
    y = panel({"a": sine(), key: sine()})
    with pytest.raises(ValueError, match="The index of `y` must have no missing key"):
        forecaster().fit(y)
    one = forecaster().fit(panel({"a": sine()}))
    with pytest.raises(ValueError, match="The index of `y` must have no missing key"):
        one.update(y, update_params=False)
    with pytest.raises(ValueError, match="The index of `X` must have no missing key"):
        forecaster().fit(panel({"a": sine()}), X=y)


def test_durations_are_refused(forecaster):
    y = sine(pd.timedelta_range(0, periods=LENGTH, freq="D"))
    with pytest.raises(ValueError, match="The times of `y` must be .* `TimedeltaIndex`"):
        forecaster().fit(y)


def test_a_time_must_not_come_twice(forecaster):
    y = sine(INDICES["range"])
    twice = pd.concat([y, y.iloc[[3]]]).sort_index()
    with pytest.raises(ValueError, match=f"no time twice, got `{y.index[3]}` again"):
        forecaster().fit(twice)
