"""Whether windows have a scale of their own, and series of any scale in one fit."""

import numpy as np
import pytest
import torch
from darts import TimeSeries
from darts.utils.likelihood_models import torch as likelihoods

from darts_ddssm import DDSSMModel, datasets
from darts_ddssm.estimator import instance_scale
from darts_ddssm.estimator.automatic import (
    say_once,
)
from darts_ddssm.estimator.instance_scale import (
    instance_floor,
    prefers_instance_scale,
)
from darts_ddssm.estimator.local_pattern import automatic_local_pattern
from darts_ddssm.estimator.windows import ChunkLengths
from darts_ddssm.series.scaling import LocalPattern, Scale
from tests.helpers import (
    autoregression,
    constant,
    drawn,
    drifting,
    noisy_sine,
    random_walk,
    swing,
    with_gaps,
)


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


def intermittent() -> TimeSeries:
    """Zero, but for pulses of different heights at random."""
    rng = np.random.default_rng(0)
    values = (rng.random(400) < 0.04) * rng.exponential(size=400)
    return TimeSeries.from_values(values.astype(np.float32))


def flat_for_long(series: TimeSeries) -> TimeSeries:
    """A series that does not move for two input chunks."""
    values = series.values(copy=True)
    values[200:225] = values[200]
    return series.with_values(values)


def random_panel(sizes: tuple[float, ...]) -> list[np.ndarray]:
    """Noise of several sizes, with a stretch of zeros."""
    rng = np.random.default_rng(0)
    panel = [size * rng.standard_normal((120, 1)) for size in sizes]
    for values in panel:
        values[40:70] = 0.0
    return panel


def training_scale(series: list[TimeSeries]) -> Scale:
    values = np.concatenate([one.values() for one in series])
    return Scale(*(torch.from_numpy(f(values, 0)) for f in (np.nanmean, np.nanstd)))


def prefers(series: list[TimeSeries], input_length: int = 12) -> bool:
    """What is decided for forecasts of six steps."""
    scale = training_scale(series)
    pattern = LocalPattern(input_length)
    return prefers_instance_scale(series, ChunkLengths(input_length, 0, 6), scale, pattern)


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
        *(([autoregression(seed)], False) for seed in range(5)),
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
    pattern = automatic_local_pattern(series, ChunkLengths(24, 0, 24))
    assert prefers_instance_scale(series, ChunkLengths(24, 0, 24), scale, pattern)


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
        return prefers_instance_scale(
            series, ChunkLengths(12, 0, 2), scale, LocalPattern(1)
        )

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
    monkeypatch.setattr(instance_scale, "MIN_CROSSINGS", 0)
    monkeypatch.setattr(instance_scale, "CLEAR_GAIN", 100.0)
    assert prefers([random_walk(20, seed=i) + 30.0 * i for i in range(60)])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_launches", [0, 5, 10])
def test_series_that_begin_with_zeros_hide_no_other_scales(num_launches, seed):
    rng = np.random.default_rng(seed)
    sizes = 10 ** rng.uniform(0, 3, 20 - num_launches)
    values = [size * rng.gamma(2, 1, 120) for size in sizes]
    for _ in range(num_launches):
        first = rng.integers(60, 100)
        sales = 500 * rng.gamma(20, 1 / 20, 120)
        values.append(np.where(np.arange(120) < first, 0.0, sales))
    series = [TimeSeries.from_values(x.astype(np.float32)) for x in values]
    assert prefers(series)
    alike = [one / float(one.values().max()) for one in series[: 20 - num_launches]]
    assert not prefers(alike)


def test_a_chunk_of_zeros_has_the_scale_of_the_median_series():
    """Not that of the calmest one, nor of the widest."""
    series = [TimeSeries.from_values(x) for x in random_panel((0.1, 10.0, 1e4))]
    floor = instance_floor(series, 12, training_scale(series), LocalPattern(12))
    alone = [
        instance_floor([one], 12, training_scale([one]), LocalPattern(12)) for one in series
    ]
    assert floor.spread == alone[0].spread and floor.zeros == alone[1].spread
    moments = torch.zeros(1).double(), torch.zeros(1).double()
    assert floor.apply(*moments) == floor.zeros


HEAVY = {
    "log-normal": lambda rng: np.exp(1.5 * rng.standard_normal(300)),
    "Student": lambda rng: rng.standard_t(2, 300),
    "rare": lambda rng: (rng.random(300) < 0.03) * 1000 + rng.standard_normal(300),
    "intermittent": lambda rng: (rng.random(300) < 0.1) * (1.0 + rng.poisson(5, 300)),
}


@pytest.mark.parametrize("kind", HEAVY)
def test_heavy_tails_are_no_drift(kind):
    """But for a seed here and there."""
    decisions = []
    for seed in range(10):
        values = HEAVY[kind](np.random.default_rng(seed))
        series = [TimeSeries.from_values(values)]
        lengths = ChunkLengths(24, 0, 12)
        pattern = automatic_local_pattern(series, lengths)
        how = lengths, training_scale(series), pattern
        decisions.append(prefers_instance_scale(series, *how))
    assert sum(decisions) <= 2


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
        found = prefers_instance_scale([drifting], ChunkLengths(12, 0, 6), scale, pattern)
        assert found is expected
    still_pattern = of_season._replace(level_steps=12)
    assert not prefers_instance_scale([still], ChunkLengths(12, 0, 6), scale, still_pattern)


def test_a_smooth_season_keeps_its_scale(tiny):
    """Though its last values tell the next ones, it stays where it was."""
    module = tiny(n_epochs=1).fit(swing(25, 120)).model
    assert not module.has_instance_scale and not module.reflects


def test_a_season_that_repeats_exactly_keeps_its_scale(tiny):
    """Rounding errors are no drift."""
    series = TimeSeries.from_values(
        np.tile(np.array([5.1, -4.2, 1.3, 3.4, -2.5, -3.1], np.float32), 20)
    )
    assert automatic_local_pattern([series], ChunkLengths(12, 0, 6)).season_length == 6
    assert not tiny(n_epochs=1).fit(series).model.has_instance_scale
