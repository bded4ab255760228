"""The switching signs against closed forms."""

import numpy as np

from darts_ddssm.datasets import (
    SwitchingSigns,
    switching_signs,
)
from tests.helpers import assert_mean, stack


def test_switching_dynamics():
    series, latents, process = switching_signs(400, 16, random_state=0)
    z, sign = np.split(stack(latents), 2, axis=-1)
    assert set(np.unique(sign)) == {-1.0, 1.0}
    np.testing.assert_allclose(
        z[:, 1:], process.decay * z[:, :-1] + process.step * sign[:, 1:], atol=1e-5
    )
    stays = sign[:, 1:] == sign[:, :-1]
    assert_mean(stays.reshape(-1, 4), process.persistence)
    residuals = stack(series) - process.emission_mean(stack(latents))
    assert_mean(residuals.reshape(-1, 8), 0.0)
    assert_mean(residuals.reshape(-1, 8) ** 2, process.noise**2)


def test_switching_is_stationary_and_does_not_saturate():
    _, latents, process = switching_signs(4000, 8, random_state=0)
    inputs = stack(latents)[..., :4] @ process.weights[0].T
    assert_mean(inputs[:, 0] ** 2, 1.0)
    assert_mean(inputs[:, -1] ** 2, 1.0)


def test_switching_mean_ahead():
    """The expected sign shrinks by 2p - 1 at every step, and the mean of z follows."""
    process = SwitchingSigns(decay=0.8, step=1.0, persistence=0.9)
    state = np.array([1.0, -2.0, 0.0, 3.0, 1.0, -1.0, 1.0, -1.0])
    rng = np.random.default_rng(0)
    z, sign, future = state[:4], state[4:], np.tile(state, (20_000, 1))
    for _ in range(5):
        sign = (2 * 0.9 - 1) * sign
        z = 0.8 * z + sign
        future = process.next_state(future, rng)
        assert_mean(future, np.concatenate([z, sign]))


def test_system_state_is_apart_from_the_series():
    one = switching_signs(1, 4, random_state=0)
    other = switching_signs(1, 4, random_state=1)
    for a, b in zip(one.process.weights, other.process.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    system = switching_signs(1, 4, random_state=0, system_state=1)
    assert system.latents == one.latents and system.series != one.series
    assert not np.array_equal(one.process.weights[0], system.process.weights[0])
