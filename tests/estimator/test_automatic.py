"""What a model decides by sizes alone: patches, latent states, updates and rates."""

import math

import pytest

from darts_ddssm.estimator.automatic import (
    LATENT_DIM,
    MAX_LATENT_DIM,
    MAX_LEARNING_RATE,
    MIN_LEARNING_RATE,
    automatic_latent_dim,
    automatic_learning_rate,
    automatic_n_epochs,
    automatic_num_updates,
    automatic_patch_length,
    say_once,
)
from darts_ddssm.estimator.windows import ChunkLengths
from tests.helpers import noisy_sine, same


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
    assert automatic_patch_length(ChunkLengths(window - output, 0, output)) == expected


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


@pytest.mark.parametrize(
    "num_windows, batch_size", [(1, 32), (97, 32), (150, 32), (5000, 64)]
)
def test_automatic_number_of_epochs_makes_as_many_updates(num_windows, batch_size):
    num_batches = math.ceil(num_windows / batch_size)
    expected = automatic_num_updates(num_windows, 9999, 1, False, True, False)
    updates = automatic_n_epochs(expected, num_windows, batch_size) * num_batches
    assert abs(updates - expected) <= num_batches / 2


def test_more_windows_take_more_updates_and_a_higher_rate():
    """Between bounds."""
    sizes = (1, 100, 300, 1200, 10_000, 10**7)
    numbers = [automatic_num_updates(n, 10**7, 1, False, True, False) for n in sizes]
    assert numbers == [400, 400, 400, 800, 2300, 3500]
    rates = [automatic_learning_rate(n) for n in (1, 100, 300, 1000, 10**7)]
    assert rates == sorted(rates)
    assert (rates[0], rates[-1]) == (MIN_LEARNING_RATE, MAX_LEARNING_RATE)


def test_many_short_series_take_more_updates_of_which_each_step_tells():
    """A thousand series of a window each tell more than as many windows of one."""
    assert automatic_num_updates(1024, 32 * 1024, 1024, True, True, False) == 3500
    assert automatic_num_updates(1024, 32 * 1024, 1024, False, True, False) == 700
    assert automatic_num_updates(1024, 1055, 1, True, True, False) == 800


def test_a_long_series_whose_past_says_little_takes_fewer_updates():
    """But many short series take as many as ever."""
    assert automatic_num_updates(4777, 4800, 1, True, True, False) == 1600
    assert automatic_num_updates(4777, 4800, 1, True, False, False) == 800
    for predictable in (False, True):
        assert automatic_num_updates(250, 300, 1, True, predictable, False) == 400
        assert (
            automatic_num_updates(1024, 32 * 1024, 1024, True, predictable, False) == 3500
        )


@pytest.mark.parametrize("steps_count", (False, True))
@pytest.mark.parametrize("predictable", (False, True))
def test_a_short_series_has_400_updates(steps_count, predictable):
    """However little it tells: with fewer it would hardly be trained at all."""
    assert automatic_num_updates(100, 100, 1, steps_count, predictable, False) == 400


def test_a_season_that_is_taken_out_needs_no_learning():
    sizes = (100, 120, 1, True, True)
    assert automatic_num_updates(*sizes, False) == 2 * automatic_num_updates(*sizes, True)


def test_automatic_number_of_epochs_is_one_at_least():
    assert automatic_n_epochs(3500, 10**6, 32) == 1
