"""What a model decides by sizes alone: its patches and its latent states."""

import pytest

from darts_ddssm.estimator.automatic import (
    LATENT_DIM,
    MAX_LATENT_DIM,
    automatic_latent_dim,
    automatic_patch_length,
    say_once,
)
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
