"""Level, trend and season of an input chunk: found, said, and followed."""

import numpy as np
import pytest
import torch
from darts import TimeSeries

from darts_ddssm import DDSSMModel
from darts_ddssm.estimator import local_pattern
from darts_ddssm.estimator.automatic import (
    FEW_WINDOWS,
    say_once,
)
from darts_ddssm.estimator.local_pattern import automatic_local_pattern
from darts_ddssm.estimator.windows import ChunkLengths, windows_of
from darts_ddssm.series.scaling import LocalPattern
from tests.helpers import (
    autoregression,
    changing_trend,
    constant,
    growing_seasons,
    noisy_sine,
    random_walk,
    swing,
    uneven_seasons,
    with_gaps,
)


def pattern_of(series: list[TimeSeries], *lengths: int) -> LocalPattern:
    """Steps of the input chunk, between the chunks, and of the output chunk."""
    return automatic_local_pattern(series, ChunkLengths(*lengths))


def many_seasons() -> TimeSeries:
    """As many as a network finds by itself."""
    return growing_seasons(FEW_WINDOWS + 18)


@pytest.mark.parametrize(
    "series, expected",
    [
        ([random_walk(seed=s) for s in range(3)], (1, 1)),
        ([many_seasons()], (5, 7)),
        ([many_seasons() * 1e-6, many_seasons() * 1e6 - 1e8], (5, 7)),
        # the longer the mean, the nearer to that of all
        ([autoregression(seed=0)], (10, 12)),
        ([constant(3.0)], (12, 12)),
        ([with_gaps(many_seasons(), slice(20, 100, 3))], (5, 7)),
        ([noisy_sine(17)], (12, 12)),
    ],
)
def test_steps_whose_mean_is_the_level(series, expected):
    least, most = expected
    found = pattern_of(series, 12, 0, 6)
    assert least <= found.level_steps <= most and found.trend_values == 0


def test_constants_in_double_precision_say_nothing():
    """The mean of some of their values is off by a rounding error."""
    constants = [TimeSeries.from_values(np.full(120, value)) for value in (0.13, 7.7, 1e5)]
    seasons = growing_seasons().astype(np.float64)
    noise = np.random.default_rng(0).standard_normal((120, 1))
    for series in (seasons, TimeSeries.from_values(noise)):
        alone = pattern_of([series], 12, 0, 6)
        assert pattern_of([series, *constants], 12, 0, 6) == alone
    assert pattern_of(constants, 12, 0, 6) == LocalPattern(12)


def test_components_have_one_say_each():
    """Whatever their unit."""
    walk, seasons = random_walk(), growing_seasons()
    both = [walk.stack(unit * seasons) for unit in (1e-6, 1.0, 1e6)]
    found = {pattern_of([one], 12, 0, 6) for one in both}
    assert len(found) == 1 and found.pop().level_steps < 8


def test_a_random_walk_is_forecast_from_its_last_value(tiny, caplog):
    """Of a chunk that rose, the mean would be far below."""
    series = random_walk()
    say_once.cache_clear()
    model = tiny().fit(series)
    assert model.model.local_pattern.level_steps == 1
    assert "whose level is that of its last value, since" in caplog.text
    past = np.r_[np.zeros(11), 30.0].astype(np.float32)
    forecast = model.predict(1, TimeSeries.from_values(past), num_samples=200)
    other = tiny(use_reversible_instance_norm=True).fit(noisy_sine())
    assert other.model.local_pattern.level_steps > 1
    # the spread of this chunk is 8.3
    assert forecast.all_values().mean() > 20


def test_many_windows_have_a_level_too(tiny):
    model = tiny(n_epochs=1, batch_size=256).fit(random_walk(FEW_WINDOWS + 18))
    assert model.model.local_pattern.level_steps == 1


def test_long_input_chunks_take_no_longer(monkeypatch):
    """Of them fewer windows are compared, which tell the same."""
    series = [random_walk(4000), random_walk(2000, seed=1)]
    found = pattern_of(series, 100, 0, 20)
    monkeypatch.setattr(local_pattern, "MAX_COMPARED", 100 * 120 * 300)
    num_windows = []

    def counted(*args, **kwargs):
        for part in windows_of(*args, **kwargs):
            num_windows.append(part.x.shape[1])
            yield part

    monkeypatch.setattr(local_pattern, "windows_of", counted)
    assert pattern_of(series, 100, 0, 20) == found == LocalPattern(1)
    assert sum(num_windows) == 300


def noisy_triangles(length: int = 400, seed: int = 0) -> TimeSeries:
    """Up and down by 40 in 40 steps each, under noise of 1."""
    values = np.abs(np.arange(length) % 80 - 40)
    values = values + np.random.default_rng(seed).standard_normal(length)
    return TimeSeries.from_values(values.astype(np.float32))


@pytest.mark.parametrize("seed", range(3))
def test_a_trend_that_changes_is_that_of_the_last_values(seed):
    found = pattern_of([changing_trend(seed=seed)], 12, 0, 6)
    assert found == LocalPattern(1, 1, 1.0)


def test_chunks_of_which_nothing_is_observed_say_nothing_of_it():
    """They are not taken for zeros."""
    series = with_gaps(changing_trend() + 1e5, slice(100, 130))
    assert pattern_of([series], 12, 0, 6) == LocalPattern(1, 1, 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_under_noise_the_trend_is_that_of_more_values(seed):
    """After a gap too, and whatever the unit."""
    for unit, gap in ((1e-6, 0), (1.0, 3), (1e6, 0)):
        series = [unit * noisy_triangles(seed=seed)]
        found = pattern_of(series, 12, gap, 6)
        assert found.trend_values >= 3 and found.trend_share == 1


@pytest.mark.parametrize(
    "series",
    [
        *([random_walk(seed=seed)] for seed in range(3)),
        # growth as usual, which all windows show
        [TimeSeries.from_values(np.exp(0.03 * np.arange(120)).astype(np.float32))],
        [growing_seasons()],
        [noisy_sine()],
    ],
)
def test_usual_growth_is_left_to_the_network(series):
    assert pattern_of(series, 12, 0, 6).trend_values == 0


def test_a_swing_has_no_trend():
    """Its last values tell the next chunk, but not those after it."""
    assert pattern_of([swing(25, 120)], 12, 0, 6).trend_values == 0
    # nor where some series are too short to tell
    series = [swing(25, 120), swing(25, 20)]
    assert pattern_of(series, 12, 0, 6).trend_values == 0


def test_a_trend_goes_on_as_far_as_the_input_chunk_reaches_back():
    """Where output chunks are short, it would be that of a swing for three of them."""
    assert pattern_of([swing(25, 120)], 12, 0, 1).trend_values == 0
    assert pattern_of([changing_trend()], 12, 0, 1).trend_values > 0
    # or as far as the series is long enough to tell
    assert pattern_of([swing(25, 39)], 20, 0, 4).trend_values == 0


def test_a_series_at_rest_does_not_hide_the_trend_of_the_others():
    """After a pulse at its start no level is wrong, so that every trend is."""
    series = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        slopes = rng.choice([-1.0, 1.0], size=3).repeat(40)
        values = slopes.cumsum() + 0.3 * rng.standard_normal(120)
        series.append(TimeSeries.from_values(values.astype(np.float32)))
    pulse = np.zeros(120, np.float32)
    pulse[8] = 3.0
    for panel in (series, [*series, TimeSeries.from_values(pulse)]):
        assert pattern_of(panel, 12, 0, 3).trend_values > 0


def test_forecasts_go_on_with_the_trend_of_their_past(tiny, caplog):
    """Up or down, however long they are, and past a gap between the chunks."""
    say_once.cache_clear()
    for shift, n in ((0, 12), (2, 6)):
        model = tiny(n_epochs=1, output_chunk_shift=shift).fit(changing_trend())
        for slope in (-20.0, 20.0):
            past = TimeSeries.from_values((slope * np.arange(12)).astype(np.float32))
            forecast = model.predict(n, past, num_samples=100, random_state=0)
            expected = slope * np.arange(12 + shift, 12 + shift + n)
            middle = np.median(forecast.all_values()[:, 0], axis=1)
            # a narrow chunk is divided by what the calmest ones have
            spread = model.model.floor_spread.item()
            assert np.abs(middle - expected).max() < 3 * spread
    assert "with the trend of its last 2 values, since" in caplog.text
    say_once.cache_clear()
    tiny(n_epochs=1, use_reversible_instance_norm=True).fit(changing_trend())
    assert "with the trend of its last 2 values.\n" in caplog.text


def test_a_gap_is_filled_along_the_trend(tiny):
    model = tiny(n_epochs=1).fit(changing_trend())
    line = TimeSeries.from_values((20.0 * np.arange(18)).astype(np.float32))
    filled = model.impute(with_gaps(line, slice(8, 11)), num_samples=50, random_state=0)
    middle = np.median(filled.all_values()[:, 0], axis=1)
    spread = model.model.floor_spread.item()
    assert np.abs(middle - line.values()[:, 0]).max() < 3 * spread


@pytest.mark.parametrize("seed", range(3))
def test_a_season_is_found_by_what_it_tells(seed):
    """Whatever the unit, with gaps, and past steps between the chunks."""
    for unit, gap, missing in ((1e-6, 0, 0), (1.0, 2, 0), (1e6, 0, 15)):
        series = with_gaps(unit * uneven_seasons(seed=seed), slice(20, 20 + missing))
        found = pattern_of([series], 12, gap, 6)
        assert (found.season_length, found.season_cycles) == (6, 2)


@pytest.mark.parametrize(
    "series, input_length",
    [
        ([random_walk()], 12),
        ([autoregression(seed=0)], 12),
        ([changing_trend()], 12),
        ([constant(3.0)], 12),
        # seen less than twice in a chunk
        ([uneven_seasons()], 5),
        ([uneven_seasons()], 1),
        # many windows
        ([uneven_seasons(FEW_WINDOWS + 18)], 12),
    ],
)
def test_what_does_not_repeat_has_no_season(series, input_length):
    assert pattern_of(series, input_length, 0, 6).season_length == 0


@pytest.mark.parametrize("number", [1, 400, 501, 2000])
def test_windows_of_many_series_are_not_all_their_first(number):
    """However all of them start."""
    series = [TimeSeries.from_values(np.arange(200.0)) for _ in range(number)]
    starts = torch.cat([part.starts for part in windows_of(series, 20)])
    assert len(starts) >= number
    assert starts.min() >= 0 and starts.max() <= 180
    assert starts.double().mean() == pytest.approx(90, abs=3)
    assert starts.double().std() > 45


def test_windows_of_a_long_series_may_be_few(tiny):
    """Of which a training has its last ones alone."""
    series = uneven_seasons(FEW_WINDOWS + 18)
    model = tiny(n_epochs=1, use_reversible_instance_norm=True)
    model.fit(series, max_samples_per_ts=10)
    assert model.model.local_pattern.season_length == 6


def test_the_season_of_the_past_goes_on(tiny, caplog):
    """At once, however long the forecast is, and past a gap between the chunks."""
    say_once.cache_clear()
    series = uneven_seasons()
    for shift, n in ((0, 12), (2, 6)):
        model = tiny(n_epochs=1, output_chunk_shift=shift).fit(series)
        assert model.model.has_instance_scale and not model.model.reflects
        # another season than that of the training series
        season = np.array([-6.0, 2.0, 4.0, 0.0, 3.0, -3.0])
        past = TimeSeries.from_values(np.tile(season, 2).astype(np.float32))
        forecast = model.predict(n, past, num_samples=200, random_state=0)
        middle = np.median(forecast.all_values()[:, 0], axis=1)
        expected = season[np.arange(shift, shift + n) % 6]
        assert np.corrcoef(middle, expected)[0, 1] > 0.9
    assert "whose season is the mean of its last 2 cycles of 6 steps, since" in caplog.text


def test_a_gap_is_filled_by_the_season(tiny):
    model = tiny(n_epochs=1).fit(uneven_seasons())
    season = np.tile(np.array([-6.0, 2.0, 4.0, 0.0, 3.0, -3.0], np.float32), 3)
    series = TimeSeries.from_values(season)
    filled = model.impute(with_gaps(series, slice(7, 10)), num_samples=50, random_state=0)
    middle = np.median(filled.all_values()[7:10, 0], axis=1)
    assert np.corrcoef(middle, season[7:10])[0, 1] > 0.9


@pytest.mark.parametrize(
    "series, expected",
    [
        (changing_trend(), LocalPattern(1, 1, 1.0)),
        (uneven_seasons(), LocalPattern(2, 0, 0.0, 6, 2)),
    ],
)
def test_level_trend_and_season_are_saved(tiny, tmp_path, series, expected):
    model = tiny(n_epochs=1).fit(series)
    path = str(tmp_path / "model.pt")
    model.save(path)
    loaded = DDSSMModel.load(path)
    assert loaded.model.local_pattern == expected
    one, other = (m.predict(3, series, random_state=0) for m in (model, loaded))
    np.testing.assert_allclose(one.values(), other.values(), rtol=1e-5)
