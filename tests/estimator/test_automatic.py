"""What a model decides by its training set: patch length, whose scale, which scale."""

import numpy as np
import pytest
import torch
from darts import TimeSeries
from darts.utils.likelihood_models import torch as likelihoods
from pytorch_lightning import Trainer

from darts_ddssm import DDSSMModel, datasets
from darts_ddssm.estimator import scales
from darts_ddssm.estimator.automatic import (
    FEW_WINDOWS,
    FEWEST_WINDOWS,
    LATENT_DIM,
    MAX_LATENT_DIM,
    TREND_AUGMENTATION,
    automatic_latent_dim,
    automatic_patch_length,
    automatic_trend_augmentation,
    say_once,
)
from darts_ddssm.estimator.scales import (
    automatic_local_pattern,
    prefers_instance_scale,
)
from darts_ddssm.estimator.windows import windows_of
from darts_ddssm.series.scaling import LocalPattern, Scale
from tests.helpers import TRAINER, drawn, noisy_sine, random_walk, same, with_gaps


@pytest.mark.parametrize(
    "window, output, expected",
    [
        (18, 6, 1),
        (32, 1, 1),
        (35, 12, 1),
        (36, 12, 3),
        (48, 12, 3),
        (48, 2, 2),
        (65, 13, 3),
        (80, 20, 4),
        (156, 24, 6),
        (192, 48, 8),
        (120, 7, 4),
        (240, 7, 7),
        (120, 1, 1),
    ],
)
def test_automatic_length(window, output, expected):
    assert automatic_patch_length(window, window - output, output) == expected


def test_more_components_have_larger_states(tiny, caplog):
    say_once.cache_clear()
    dims = [automatic_latent_dim(number) for number in range(1, 30)]
    assert dims == sorted(dims) and len(set(dims)) > 3
    assert (dims[0], dims[-1]) == (LATENT_DIM, MAX_LATENT_DIM)
    for number in (1, 2):
        model = tiny(latent_dim=None, n_epochs=1)
        assert model.latent_dim is None
        model.fit(noisy_sine(num_components=number))
        assert model.latent_dim == dims[number - 1]
        assert model.infer_latents().n_components == dims[number - 1]
        assert model.untrained_model().latent_dim is None
    # of one component there is nothing to say
    (said,) = [r for r in caplog.records if "latent states" in r.message]
    assert f"of {dims[1]} dimensions" in said.message and "`latent_dim`" in said.message
    tiny(latent_dim=3, n_epochs=1).fit(noisy_sine(num_components=2))
    assert len([r for r in caplog.records if "latent states" in r.message]) == 1


def test_weights_of_a_state_that_was_chosen(tiny, tmp_path):
    path, series = str(tmp_path / "model.pt"), noisy_sine(num_components=2)
    fitted = tiny(latent_dim=None, n_epochs=1).fit(series)
    fitted.save(path)
    for model in (tiny(latent_dim=None), tiny(latent_dim=fitted.latent_dim)):
        model.load_weights(path)
        assert model.latent_dim == fitted.latent_dim
        assert same(*(m.predict(3, series, random_state=0) for m in (model, fitted)))
    dim = fitted.latent_dim
    with pytest.raises(ValueError, match=f"`latent_dim` must be .* {dim}, got 3"):
        tiny(latent_dim=3).load_weights(path)
    tiny(latent_dim=3, n_epochs=1).fit(series).save(path)
    with pytest.raises(ValueError, match=f"`latent_dim` must be .* 3, got {dim}"):
        tiny(latent_dim=None).load_weights(path)


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


def constant(value: float) -> TimeSeries:
    return TimeSeries.from_values(np.full((120, 1), value, dtype=np.float32))


def flat_for_long(series: TimeSeries) -> TimeSeries:
    """A series that does not move for two input chunks."""
    values = series.values(copy=True)
    values[200:225] = values[200]
    return series.with_values(values)


def walk(seed: int) -> TimeSeries:
    """A stationary autoregression that forgets within a window."""
    noise = np.random.default_rng(seed).standard_normal(600)
    x = np.zeros(600)
    for t in range(1, 600):
        x[t] = 0.5 * x[t - 1] + noise[t]
    return TimeSeries.from_values(x.astype(np.float32))


def training_scale(series: list[TimeSeries]) -> Scale:
    values = np.concatenate([one.values() for one in series])
    return Scale(*(torch.from_numpy(f(values, 0)) for f in (np.nanmean, np.nanstd)))


def prefers(series: list[TimeSeries], input_length: int = 12) -> bool:
    """What is decided for forecasts of six steps."""
    scale = training_scale(series)
    pattern = LocalPattern(input_length)
    return prefers_instance_scale(series, input_length, 0, 6, scale, pattern)


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
        # one constant series, and a constant stretch, forbid nothing
        ([drifting(), constant(3.0)], True),
        ([flat_for_long(drifting(240))], True),
        # series of different scale
        ([noisy_sine(120) * scale for scale in (1e-3, 1.0, 1e6)], True),
        ([noisy_sine(120).stack(noisy_sine(120).with_columns_renamed("0", "1"))], False),
        *(([walk(seed)], False) for seed in range(5)),
    ],
)
def test_drift_is_recognised(series, drifts):
    values = [one.all_values(copy=True) for one in series]
    assert prefers(series) == drifts
    for one, before in zip(series, values, strict=True):
        assert (one.all_values() == before).all()
    blank = [slice(i, i + 2) for i in range(0, 120, 5)]
    for where in blank:
        series = [with_gaps(one, where) for one in series]
    assert prefers(series) == drifts
    # a single value has no scale
    assert not prefers(series, 1)


@pytest.mark.parametrize("seed", range(3))
def test_a_rise_is_recognised_by_long_windows_of_a_short_series(seed):
    """What the comparison forecasts was not known before."""
    time, rng = np.arange(90), np.random.default_rng(seed)
    values = time + 5 * np.sin(2 * np.pi * time / 12) + 3 * rng.standard_normal(90)
    series = [TimeSeries.from_values(values.astype(np.float32))]
    scale = Scale(*(torch.tensor([f(values)]) for f in (np.mean, np.std)))
    pattern = automatic_local_pattern(series, 24, 0, 24)
    assert prefers_instance_scale(series, 24, 0, 24, scale, pattern)


def short_panel(number: int, num_steps: int, seed: int) -> list[TimeSeries]:
    """Like series: sines with noise that begin anywhere in their season."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(12, size=number)
    return [noisy_sine(40, seed=i)[start:][:num_steps] for i, start in enumerate(starts)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("number", [3, 200])
@pytest.mark.parametrize("num_steps", [18, 19])
def test_short_series_have_their_own_scale_where_they_differ(num_steps, number, seed):
    """In scale or in level; like ones have not, be they noise alone."""
    rng = np.random.default_rng(seed)
    like = short_panel(number, num_steps, seed)
    assert not prefers(like)
    noise = [one.with_values(rng.standard_normal((num_steps, 1))) for one in like]
    assert not prefers(noise)
    factors = 10 ** rng.uniform(1, 6, number)
    assert prefers([(5 + one) * k for one, k in zip(like, factors, strict=True)])
    levels = rng.permutation(np.arange(number))
    assert prefers([one + 10.0 * k for one, k in zip(like, levels, strict=True)])
    # one alone, or one that is long enough to tell
    assert not prefers([drifting()[:num_steps]])
    assert not prefers([noisy_sine(120), like[0] * 1e6])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("number, length", [(1, 1600), (8, 600)])
def test_many_windows_of_series_that_keep_returning_have_one_scale(number, length, seed):
    """Their last values tell what follows, and so does the mean that they return to."""

    def series_of(decay: float) -> list[TimeSeries]:
        process = datasets.BimodalRandomWalk(noise=0.2, decay=decay)
        return process.simulate(number, length, seed).series

    def decided(series: list[TimeSeries]) -> bool:
        scale = training_scale(series)
        return prefers_instance_scale(series, 12, 0, 2, scale, LocalPattern(1))

    assert not decided(series_of(0.9))
    # one that never returns, few windows, and a level that changes
    assert decided(series_of(1.0))
    assert decided([one[:150] for one in series_of(0.9)[:4]])
    walks = [one.stack(other) for one, other in zip(*map(series_of, (0.9, 1)), strict=True)]
    assert decided(walks)
    rise = np.linspace(0, 60, length)[:, None, None]
    assert decided([one + rise for one in series_of(0.9)])


def test_series_that_return_may_have_no_window_before_the_last_third(monkeypatch):
    """Then nothing can be learned of their level."""
    monkeypatch.setattr(scales, "MIN_CROSSINGS", 2)
    monkeypatch.setattr(scales, "MIN_GAIN", -10.0)
    rng = np.random.default_rng(0)
    series = [TimeSeries.from_values(rng.standard_normal((20, 1))) for _ in range(60)]
    assert prefers(series)


@pytest.mark.parametrize("seed", range(3))
def test_like_short_series_with_a_memory_have_one_scale(tiny, seed):
    """Their last values tell the next one, and are no scale of their own."""
    process = datasets.BimodalRandomWalk(noise=0.2)
    series = [one.astype(np.float32) for one in process.simulate(100, 32, seed).series]
    model = tiny(input_chunk_length=31, output_chunk_length=1, n_epochs=1).fit(series)
    assert not model.model.has_instance_scale


def test_a_panel_of_one_window_each_is_normalised_window_by_window(tiny):
    panel = [one * 10.0**i for i, one in enumerate(short_panel(6, 18, seed=0))]
    model = tiny(n_epochs=1).fit(panel)
    assert model.model.has_instance_scale
    for one, k in zip(panel, 10.0 ** np.arange(6), strict=True):
        forecast = model.predict(6, one, num_samples=20, random_state=0)
        assert np.abs(np.median(forecast.all_values(), axis=2)).max() < 10 * k


@pytest.mark.parametrize("norm, by_instance", [(None, True), (True, True), (False, False)])
def test_drifting_series_are_normalised_window_by_window(tiny, norm, by_instance):
    model = tiny(use_reversible_instance_norm=norm).fit(drifting())
    assert bool(model.model.by_instance) == by_instance
    assert np.isfinite(model.log_likelihood())
    if by_instance:
        with pytest.raises(ValueError, match="must be called on a model without"):
            model.simulate(3)
    else:
        assert np.isfinite(model.simulate(3).values()).all()


def test_steady_series_have_one_scale(tiny):
    auto, off = (
        drawn(tiny(use_reversible_instance_norm=norm), noisy_sine())
        for norm in (None, False)
    )
    np.testing.assert_array_equal(auto, off)


def test_shares_have_one_scale(tiny):
    # float32 has no number between the share of a large value and one
    series = drifting().map(lambda x: 0.1 + 0.8 / (1 + np.exp(-x)))
    model = tiny(likelihood=likelihoods.BetaLikelihood()).fit(series)
    assert not model.model.by_instance
    assert np.isfinite(model.log_likelihood())


def test_positive_values_that_drift_have_their_own_scale(tiny):
    series = drifting() + 5.0
    model = tiny(likelihood=likelihoods.GammaLikelihood()).fit(series)
    assert model.model.by_instance
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
    short = drifting()[:12]
    for call in (lambda: model.log_likelihood(short), lambda: model.simulate(3)):
        with pytest.raises(ValueError, match="It was switched on automatically.*pass"):
            call()
    # not where the user has decided it
    model = tiny(n_epochs=1, use_reversible_instance_norm=True).fit(drifting())
    with pytest.raises(ValueError) as error:
        model.simulate(3)
    assert "automatically" not in str(error.value)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_series_of_any_scale_are_forecast_alike(tiny, offset):
    """In one training set, also beside a constant: each in its own unit."""
    base = noisy_sine(120) + offset
    factors = (1e-3, 1.0, 1e6)
    series = [base * factor for factor in factors] + [constant(3.0)]
    model = tiny(n_epochs=2).fit(series)
    assert model.model.by_instance
    paths = [
        model.predict(6, one, num_samples=20, random_state=0).all_values() / factor
        for one, factor in zip(series[:3], factors, strict=True)
    ]
    for path in paths:
        np.testing.assert_allclose(path, paths[1], rtol=1e-3, atol=1e-2)
        assert np.abs(path - offset).max() < 20
    flat = model.predict(6, series[3], num_samples=20, random_state=0).all_values()
    # hardly trained: within a few times what its level says
    assert np.abs(flat - 3.0).max() < 30


@pytest.mark.parametrize("value", [0.0, 50.0])
def test_a_constant_chunk_is_divided_by_what_chunks_have(tiny, value):
    model = tiny(use_reversible_instance_norm=True).fit(drifting())
    flat = constant(value)[:12]
    forecast = model.predict(6, flat, num_samples=50, random_state=0).all_values()
    # chunks of the training series have a spread of about one
    assert 0.01 < np.abs(forecast - value).max() < 20


# --- random trends --------------------------------------------------------------------


@pytest.mark.parametrize(
    "num_windows, expected",
    [(1, 1.0), (FEWEST_WINDOWS, 1.0), (2 * FEWEST_WINDOWS, 0.5), (FEW_WINDOWS + 1, 0.0)],
)
def test_trends_are_for_few_windows(num_windows, expected):
    found = automatic_trend_augmentation(num_windows, share_left=0.5)
    assert found == pytest.approx(expected * TREND_AUGMENTATION)
    assert automatic_trend_augmentation(num_windows, share_left=0.0) == 0


def test_trends_are_added_where_a_short_series_drifts(tiny, caplog):
    say_once.cache_clear()
    for _ in range(2):
        model = tiny(n_epochs=1).fit(drifting())
    assert model.model.trend_augmentation == TREND_AUGMENTATION
    said = [
        r
        for r in caplog.records
        if f"adds random trends of about {TREND_AUGMENTATION:.2g}" in r.message
    ]
    assert len(said) == 1 and said[0].levelname == "WARNING"
    assert "Pass `trend_augmentation`" in said[0].message


def test_trends_are_not_added_where_it_keeps_its_level(tiny, caplog):
    say_once.cache_clear()
    assert tiny(n_epochs=1).fit(noisy_sine()).model.trend_augmentation == 0
    assert "random trends" not in caplog.text


def test_trends_of_the_users(tiny):
    """Of any size, with whatever scale, and none for counts."""
    forecasts = []
    for trend in (0, 0.5, 3.0):
        model = tiny(trend_augmentation=trend)
        forecasts.append(drawn(model, noisy_sine()))
        assert model.model.trend_augmentation == trend
    assert not np.array_equal(forecasts[0], forecasts[1])
    assert not np.array_equal(forecasts[1], forecasts[2])
    counts = noisy_sine().map(lambda x: np.round(np.exp(x)))
    forecasts = [
        drawn(
            tiny(trend_augmentation=t, likelihood=likelihoods.PoissonLikelihood()), counts
        )
        for t in (0, 3.0)
    ]
    np.testing.assert_array_equal(*forecasts)


@pytest.mark.parametrize("value", (-0.1, "much", True, float("nan")))
def test_trend_augmentation_must_be_a_number(tiny, value):
    message = f"`trend_augmentation` must be .* got `{value!r}`"
    with pytest.raises(ValueError, match=message):
        tiny(trend_augmentation=value)


# --- the level of an input chunk ------------------------------------------------------


def growing_seasons(length: int = 120) -> TimeSeries:
    """A season of six steps on a rising line."""
    season = 3 * np.sin(np.arange(length) * np.pi / 3)
    return TimeSeries.from_values((season + 0.3 * np.arange(length)).astype(np.float32))


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
        ([walk(seed=0)], (10, 12)),
        ([constant(3.0)], (12, 12)),
        ([with_gaps(many_seasons(), slice(20, 100, 3))], (5, 7)),
        ([noisy_sine(17)], (12, 12)),
    ],
)
def test_steps_whose_mean_is_the_level(series, expected):
    least, most = expected
    found = automatic_local_pattern(series, 12, 0, 6)
    assert least <= found.level_steps <= most and found.trend_values == 0


def test_components_have_one_say_each():
    """Whatever their unit."""
    walk, seasons = random_walk(), growing_seasons()
    both = [walk.stack(unit * seasons) for unit in (1e-6, 1.0, 1e6)]
    found = {automatic_local_pattern([one], 12, 0, 6) for one in both}
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
    found = automatic_local_pattern(series, 100, 0, 20)
    monkeypatch.setattr(scales, "MAX_COMPARED", 100 * 120 * 300)
    num_windows = []

    def counted(*args, **kwargs):
        for part in windows_of(*args, **kwargs):
            num_windows.append(part.x.shape[1])
            yield part

    monkeypatch.setattr(scales, "windows_of", counted)
    assert automatic_local_pattern(series, 100, 0, 20) == found == LocalPattern(1)
    assert sum(num_windows) == 300


# --- the trend of an input chunk ------------------------------------------------------


def changing_trend(length: int = 400, seed: int = 0) -> TimeSeries:
    """What rises and falls by a rate that walks."""
    return TimeSeries.from_values(random_walk(length, seed).values()[:, 0].cumsum())


def noisy_triangles(length: int = 400, seed: int = 0) -> TimeSeries:
    """Up and down by 40 in 40 steps each, under noise of 1."""
    values = np.abs(np.arange(length) % 80 - 40)
    values = values + np.random.default_rng(seed).standard_normal(length)
    return TimeSeries.from_values(values.astype(np.float32))


@pytest.mark.parametrize("seed", range(3))
def test_a_trend_that_changes_is_that_of_the_last_values(seed):
    found = automatic_local_pattern([changing_trend(seed=seed)], 12, 0, 6)
    assert found == LocalPattern(1, 1, 1.0)


def test_chunks_of_which_nothing_is_observed_say_nothing_of_it():
    """They are not taken for zeros."""
    series = with_gaps(changing_trend() + 1e5, slice(100, 130))
    assert automatic_local_pattern([series], 12, 0, 6) == LocalPattern(1, 1, 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_under_noise_the_trend_is_that_of_more_values(seed):
    """After a gap too, and whatever the unit."""
    for unit, gap in ((1e-6, 0), (1.0, 3), (1e6, 0)):
        series = [unit * noisy_triangles(seed=seed)]
        found = automatic_local_pattern(series, 12, gap, 6)
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
    assert automatic_local_pattern(series, 12, 0, 6).trend_values == 0


def swing(period: int, length: int) -> TimeSeries:
    values = 3 * np.sin(2 * np.pi * np.arange(length) / period)
    return TimeSeries.from_values(values.astype(np.float32))


def test_a_swing_has_no_trend():
    """Its last values tell the next chunk, but not those after it."""
    assert automatic_local_pattern([swing(25, 120)], 12, 0, 6).trend_values == 0
    # nor where some series are too short to tell
    series = [swing(25, 120), swing(25, 20)]
    assert automatic_local_pattern(series, 12, 0, 6).trend_values == 0


def test_a_trend_goes_on_as_far_as_the_input_chunk_reaches_back():
    """Where output chunks are short, it would be that of a swing for three of them."""
    assert automatic_local_pattern([swing(25, 120)], 12, 0, 1).trend_values == 0
    assert automatic_local_pattern([changing_trend()], 12, 0, 1).trend_values > 0
    # or as far as the series is long enough to tell
    assert automatic_local_pattern([swing(25, 39)], 20, 0, 4).trend_values == 0


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
        assert automatic_local_pattern(panel, 12, 0, 3).trend_values > 0


def test_a_smooth_season_keeps_its_scale(tiny):
    """Though its last values tell the next ones, it stays where it was."""
    module = tiny(n_epochs=1).fit(swing(25, 120)).model
    assert not module.has_instance_scale and not module.reflects


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


# --- the season of an input chunk -----------------------------------------------------


def uneven_seasons(length: int = 120, seed: int = 0, drift: float = 0.3) -> TimeSeries:
    """A season of six steps of no simple shape, on a level that walks, under noise."""
    rng = np.random.default_rng(seed)
    season = np.array([5.0, -4.0, 1.0, 3.0, -2.0, -3.0])[np.arange(length) % 6]
    level = drift * rng.standard_normal(length).cumsum()
    values = season + level + 0.3 * rng.standard_normal(length)
    return TimeSeries.from_values(values.astype(np.float32))


@pytest.mark.parametrize("seed", range(3))
def test_a_season_is_found_by_what_it_tells(seed):
    """Whatever the unit, with gaps, and past steps between the chunks."""
    for unit, gap, missing in ((1e-6, 0, 0), (1.0, 2, 0), (1e6, 0, 15)):
        series = with_gaps(unit * uneven_seasons(seed=seed), slice(20, 20 + missing))
        found = automatic_local_pattern([series], 12, gap, 6)
        assert (found.season_length, found.season_cycles) == (6, 2)


@pytest.mark.parametrize(
    "series, input_length",
    [
        ([random_walk()], 12),
        ([walk(seed=0)], 12),
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
    assert automatic_local_pattern(series, input_length, 0, 6).season_length == 0


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


def test_a_season_does_not_hide_how_the_level_moves():
    """It is far wider than the drift."""
    season = np.tile([30.0, -30.0, 0.0, 15.0, 5.0, -20.0], 20)[:, None, None]
    drifting, still = (
        (random_walk() if drifts else noisy_sine(120)) * 0.3 + season.astype(np.float32)
        for drifts in (True, False)
    )
    scale = Scale(torch.zeros(1).double(), torch.full((1,), 20.0).double())
    of_season = LocalPattern(1, season_length=6, season_cycles=2)
    for pattern, expected in ((of_season, True), (LocalPattern(6), False)):
        assert prefers_instance_scale([drifting], 12, 0, 6, scale, pattern) is expected
    still_pattern = of_season._replace(level_steps=12)
    assert not prefers_instance_scale([still], 12, 0, 6, scale, still_pattern)


def test_a_season_that_repeats_exactly_keeps_its_scale(tiny):
    """Rounding errors are no drift."""
    series = TimeSeries.from_values(
        np.tile(np.array([5.1, -4.2, 1.3, 3.4, -2.5, -3.1], np.float32), 20)
    )
    assert automatic_local_pattern([series], 12, 0, 6).season_length == 6
    assert not tiny(n_epochs=1).fit(series).model.has_instance_scale


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


# --- windows upside down --------------------------------------------------------------


def test_a_walk_may_as_well_fall_as_rise(tiny, caplog):
    """It says so, and not where a window has an input, no level of its own, or a season.

    Be it one that the input chunk holds but once.
    """
    say_once.cache_clear()
    walks = random_walk()
    assert tiny(n_epochs=1).fit(walks).model.reflects
    assert "turns half of its training windows upside down, since" in caplog.text
    assert not tiny(n_epochs=1).fit(growing_seasons()).model.reflects
    assert not tiny(n_epochs=1).fit(noisy_sine()).model.reflects
    once = tiny(n_epochs=1, output_chunk_length=1).fit(walks * 0.3 + noisy_sine(120) * 3)
    assert once.model.local_pattern == LocalPattern(1) and not once.model.reflects
    inputs = TimeSeries.from_values(noisy_sine(120).values())
    assert not tiny(n_epochs=1).fit(walks, future_covariates=inputs).model.reflects
    assert not tiny(n_epochs=1, trend_augmentation=0).fit(walks).model.reflects
    many = tiny(n_epochs=1, batch_size=256).fit(random_walk(FEW_WINDOWS + 18))
    assert not many.model.reflects


def test_no_direction_is_learned_from_a_walk_that_rose(tiny):
    """Its mirror image is forecast by the mirror image, but for chance."""
    rising = random_walk() + 0.3 * np.arange(120, dtype=np.float32)[:, None, None]
    off = []
    for trend in (None, 0):
        model = tiny(trend_augmentation=trend, use_reversible_instance_norm=True)
        model.fit(rising)
        past = rising[-12:]
        level = past.values()[-1, 0]
        middles = [
            np.median(
                model.predict(6, one, num_samples=400, random_state=0).all_values(), 2
            )
            for one in (past, -1 * past + 2 * float(level))
        ]
        off.append(np.abs(sum(middles) / 2 - level).mean())
    assert off[0] < off[1]


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


# --- the length of a training ---------------------------------------------------------


@pytest.mark.parametrize(
    "trainer, dataloader, num_updates",
    [
        # of 63 windows in batches of 16
        ({}, {}, 12),
        ({}, {"batch_size": 20, "drop_last": True}, 12),
        ({}, {"batch_size": 63}, 13),
        ({"accumulate_grad_batches": 2}, {}, 12),
        ({"accumulate_grad_batches": 3}, {"batch_size": 10}, 12),
        ({"limit_train_batches": 3}, {}, 12),
        ({"limit_train_batches": 0.5}, {}, 12),
    ],
)
def test_updates_are_those_that_are_made(
    tiny, monkeypatch, caplog, trainer, dataloader, num_updates
):
    """However the windows are cut into batches, and the batches joined to updates."""
    monkeypatch.setattr("darts_ddssm.model.automatic_num_updates", lambda *sizes: 13)
    say_once.cache_clear()
    model = tiny(trainer, n_epochs=None)
    model.fit(noisy_sine(), dataloader_kwargs=dict(dataloader))
    assert model.trainer.global_step == num_updates
    assert f"{model.epochs_trained} epochs, about {num_updates} updates" in caplog.text


def test_several_processes_share_the_batches(tiny, monkeypatch, caplog):
    monkeypatch.setattr("darts_ddssm.model.automatic_num_updates", lambda *sizes: 13)
    monkeypatch.setattr(Trainer, "world_size", 2)
    say_once.cache_clear()
    tiny(n_epochs=None).fit(noisy_sine())
    # two of four batches each
    assert "trains for 6 epochs, about 12 updates" in caplog.text


def test_a_trainer_of_the_users_has_its_own_length(tiny, caplog):
    say_once.cache_clear()
    trainer = Trainer(max_epochs=2, enable_checkpointing=False, **TRAINER)
    model = tiny(n_epochs=None).fit(noisy_sine(), trainer=trainer)
    assert model.epochs_trained == 2
    assert "`DDSSMModel` trains for" not in caplog.text
