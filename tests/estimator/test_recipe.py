"""How a training goes by default: its augmentation and its length."""

import numpy as np
import pytest
from darts import TimeSeries
from darts.utils.likelihood_models import torch as likelihoods
from darts.utils.timeseries_generation import gaussian_timeseries
from pytorch_lightning import Trainer

from darts_ddssm.estimator import recipe
from darts_ddssm.estimator.automatic import (
    FEW_WINDOWS,
    FEWEST_WINDOWS,
    TREND_AUGMENTATION,
    automatic_trend_augmentation,
    say_once,
)
from darts_ddssm.estimator.local_pattern import may_have_season
from darts_ddssm.estimator.windows import ChunkLengths
from darts_ddssm.series.scaling import LocalPattern
from tests.helpers import TRAINER, drawn, drifting, growing_seasons, noisy_sine, random_walk


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


# in a fifth of all draws a linear forecast is no better than the level: these are some
@pytest.mark.parametrize("seed", [4, 5, 11])
def test_a_season_that_is_not_taken_out_is_no_walk(tiny, seed):
    """Where the level turns, it may hide the season from a linear forecast."""
    time, rng = np.arange(120), np.random.default_rng(seed)
    season = 4 * np.sin(2 * np.pi * time / 12 + seed) + 2 * np.cos(np.pi * time / 2)
    noise = 0.5 * rng.standard_normal(120).cumsum() + rng.standard_normal(120)
    values = 0.8 * time - 1.5 * np.maximum(time - 75, 0) + season + noise
    series = [TimeSeries.from_values(values)]
    level = LocalPattern(1)
    assert may_have_season(series, ChunkLengths(24, 0, 12), level)
    assert not may_have_season([random_walk(seed=seed)], ChunkLengths(24, 0, 12), level)
    how = {"input_chunk_length": 24, "output_chunk_length": 12, "n_epochs": 1}
    assert not tiny(**how).fit(series).model.reflects


@pytest.mark.parametrize("zeros, likelihood", [(0.5, None), (0.05, None), (0.5, "Poisson")])
def test_counts_with_many_zeros_are_told_of_their_likelihoods(
    tiny, caplog, zeros, likelihood
):
    say_once.cache_clear()
    rng = np.random.default_rng(0)
    counts = np.where(rng.random(80) < zeros, 0, 1 + rng.poisson(3, 80))
    chosen = None if likelihood is None else likelihoods.PoissonLikelihood()
    for factor, expected in ((1.0, zeros == 0.5 and likelihood is None), (0.3, False)):
        caplog.clear()
        series = TimeSeries.from_values(factor * counts)
        model = tiny(n_epochs=1, likelihood=chosen if factor == 1 else None)
        model.fit(series).fit(series)
        said = [r for r in caplog.records if "`likelihood=Poisson" in r.message]
        assert len(said) == expected


@pytest.mark.parametrize("seed", range(3))
def test_products_that_come_and_go_are_no_walks(tiny, seed):
    """They rise in another way than they fall. Walks of products, and few series, are."""
    rng, time = np.random.default_rng(seed), np.arange(60)
    cycles, walks = [], []
    for _ in range(30):
        centre, width, noise = rng.uniform(15, 35), rng.uniform(6, 14), rng.normal(size=60)
        sales = np.exp(-(np.abs((time - centre) / width) ** 1.5) + 0.15 * noise)
        cycles.append(TimeSeries.from_values(rng.uniform(20, 500) * sales[:45] + 0.5))
        steps = np.exp(0.1 * rng.standard_normal(45).cumsum())
        walks.append(TimeSeries.from_values(steps))
    how = {"input_chunk_length": 16, "output_chunk_length": 8, "n_epochs": 1}
    for series, expected in ((cycles, False), (walks, True)):
        module = tiny(**how, batch_size=256).fit(series).model
        assert module.local_pattern.level_steps == 1 and module.reflects == expected


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


def test_steps_that_are_counted(tiny, monkeypatch):
    """Observed ones, in many short series as in one, and none outside of the windows."""
    counted = []
    monkeypatch.setattr(
        recipe,
        "automatic_num_updates",
        lambda *sizes: counted.append(sizes[:3]) or 1,
    )
    values = noisy_sine().values()
    values[3:10] = np.nan
    series = TimeSeries.from_values(values)
    for given in (series, [series[:20], series[20:60]]):
        tiny(n_epochs=None).fit(given)
    tiny(n_epochs=None).fit(series, max_samples_per_ts=2)
    # windows of 18 steps; darts takes as many of each series
    expected = [(63, 80 - 7, 1), (2 * 23, 60 - 7, 2), (2, 2 * 18, 1)]
    # with what the past says and as if it said much
    assert counted == [sizes for sizes in expected for _ in range(2)]


def test_length_of_a_training_that_is_left_open(tiny, monkeypatch, caplog):
    """About so many updates, said once; or until the trainer ends it."""
    monkeypatch.setattr(recipe, "automatic_num_updates", lambda *sizes: 13)
    say_once.cache_clear()
    for _ in range(2):
        # 63 windows in batches of 16
        model = tiny(n_epochs=None).fit(noisy_sine())
        assert model.trainer.global_step == 12 and model.epochs_trained == 3
    message = "trains for 3 epochs, about 12 updates"
    said = [r for r in caplog.records if message in r.message]
    assert [record.levelname for record in said] == ["WARNING"]
    assert model.predict(2, num_samples=3).n_samples == 3
    model = tiny({"max_steps": 17}, n_epochs=None).fit(noisy_sine())
    assert model.trainer.global_step == 17
    # a limit of time is a limit only
    model = tiny({"max_time": {"minutes": 9}}, n_epochs=None).fit(noisy_sine())
    assert model.trainer.global_step == 12
    monkeypatch.setattr(recipe, "automatic_num_updates", lambda *sizes: 10**6)
    model = tiny({"max_time": {"seconds": 2}}, n_epochs=None).fit(noisy_sine())
    assert model.trainer.global_step < 10**5 and model.predict(2).n_timesteps == 2


def test_a_shorter_training_says_why(tiny, monkeypatch, caplog):
    # of 183 windows, in batches of 16
    monkeypatch.setattr(
        recipe, "automatic_num_updates", lambda *sizes: 48 if sizes[-2] else 24
    )
    say_once.cache_clear()
    noise = gaussian_timeseries(length=200).astype(np.float32)
    messages = {}
    for series in (noise, noisy_sine(200)):
        caplog.clear()
        model = tiny(n_epochs=None).fit(series)
        messages[model.trainer.global_step] = caplog.text
    assert messages.keys() == {24, 48}
    assert "about 24 updates, since the past says little of what follows" in messages[24]
    assert "about 48 updates. Pass `n_epochs`" in messages[48]


def test_it_says_that_a_season_needs_no_learning(tiny, monkeypatch, caplog):
    # of 103 windows, in batches of 16
    monkeypatch.setattr(
        recipe, "automatic_num_updates", lambda *sizes: 14 if sizes[-1] else 28
    )
    say_once.cache_clear()
    level = np.random.default_rng(0).standard_normal(120).cumsum()
    season = np.tile([5.0, -4.0, 1.0, 3.0, -2.0, -3.0], 20)
    series = TimeSeries.from_values((0.3 * level + season).astype(np.float32))
    assert tiny(n_epochs=None).fit(series).trainer.global_step == 14
    assert "about 14 updates, since the season is taken out and needs no" in caplog.text


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
    monkeypatch.setattr(recipe, "automatic_num_updates", lambda *sizes: 13)
    say_once.cache_clear()
    model = tiny(trainer, n_epochs=None)
    model.fit(noisy_sine(), dataloader_kwargs=dict(dataloader))
    assert model.trainer.global_step == num_updates
    assert f"{model.epochs_trained} epochs, about {num_updates} updates" in caplog.text


def test_several_processes_share_the_batches(tiny, monkeypatch, caplog):
    monkeypatch.setattr(recipe, "automatic_num_updates", lambda *sizes: 13)
    monkeypatch.setattr(Trainer, "world_size", 2)
    say_once.cache_clear()
    tiny(n_epochs=None).fit(noisy_sine())
    # two of four batches each
    assert "trains for 6 epochs, about 12 updates" in caplog.text


def test_an_epoch_has_a_batch_at_least(tiny):
    message = "`dataloader_kwargs` must leave a batch of 63 training windows, got none"
    with pytest.raises(ValueError, match=message):
        tiny().fit(noisy_sine(), dataloader_kwargs={"batch_size": 64, "drop_last": True})


def test_no_update_at_all(tiny):
    assert tiny({"max_steps": 0}, n_epochs=None).fit(noisy_sine()).trainer.global_step == 0


def test_a_trainer_of_the_users_has_its_own_length(tiny, caplog):
    say_once.cache_clear()
    trainer = Trainer(max_epochs=2, enable_checkpointing=False, **TRAINER)
    model = tiny(n_epochs=None).fit(noisy_sine(), trainer=trainer)
    assert model.epochs_trained == 2
    assert "`DDSSMModel` trains for" not in caplog.text
