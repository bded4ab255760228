"""Persistent signs in four latent dimensions, seen through a network."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from darts_ddssm.datasets.process import (
    Process,
    SimulatedSeries,
    check_positive,
    check_probability,
    random_signs,
)


@dataclass(frozen=True)
class SwitchingSigns(Process):
    r"""
    Four latent dimensions that jump with persistent signs, seen through a network.

    .. math::
        z_t = a z_{t-1} + b s_t, \qquad
        x_t = W_2 \tanh(W_1 \tanh(A z_t)) + c \, e_t, \qquad e_t \sim N(0, I)

    Each of the four signs :math:`s_t` keeps its value from one step to the next with
    probability :math:`p`. The signs are a part of the state: the future depends on them
    too, and the next state has 16 possible values. The rows of A are scaled so that the
    inputs of the inner hyperbolic tangent have standard deviation 1. Series start in
    the stationary regime.

    The parameters and their ranges are those of `switching_signs`: a is `decay`, b
    `step`, p `persistence` and c `noise`; `system_state` is the seed of A, W_1 and W_2.

    Examples
    --------
    >>> from darts_ddssm.datasets import SwitchingSigns
    >>> process = SwitchingSigns(persistence=0.7)
    >>> _, latents, _ = process.simulate(1, length=8, random_state=0)
    >>> latents[0].components.tolist()
    ['z1', 'z2', 'z3', 'z4', 's1', 's2', 's3', 's4']
    """

    decay: float = 0.5
    step: float = 2.0
    persistence: float = 0.85
    noise: float = 0.1
    system_state: int = 0

    components = tuple(f"x{i}" for i in range(1, 9))
    state_components = tuple(f"{v}{i}" for v in "zs" for i in range(1, 5))

    def __post_init__(self) -> None:
        check_probability(decay=self.decay, persistence=self.persistence)
        check_positive(step=self.step, noise=self.noise)

    @cached_property
    def weights(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The matrices of the emission: A (4, 4), W_1 (16, 4) and W_2 (8, 16)."""
        rng = np.random.default_rng(self.system_state)
        # Standard deviation of z: a first-order autoregression driven by signs whose
        # own autocorrelation is r.
        a, r = self.decay, 2 * self.persistence - 1
        scale = self.step * np.sqrt((1 + a * r) / (1 - a * r) / (1 - a**2))
        mixing = rng.standard_normal((4, 4))
        mixing /= scale * np.linalg.norm(mixing, axis=1, keepdims=True)
        return (
            mixing,
            rng.standard_normal((16, 4)) / np.sqrt(4),
            rng.standard_normal((8, 16)) / np.sqrt(16),
        )

    def initial_state(self, num_series: int, rng: np.random.Generator) -> np.ndarray:
        state = np.zeros((num_series, 8))
        state[:, 4:] = random_signs(0.5, (num_series, 4), rng)
        # Zero is forgotten to one part in a thousand.
        for _ in range(int(np.ceil(np.log(1e-3) / np.log(self.decay)))):
            state = self.next_state(state, rng)
        return state

    def next_state(self, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        z, sign = state[..., :4], state[..., 4:]
        sign = sign * random_signs(self.persistence, sign.shape, rng)
        return np.concatenate([self.decay * z + self.step * sign, sign], axis=-1)

    def observe(self, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        mean = self.emission_mean(state)
        return mean + self.noise * rng.standard_normal(mean.shape)

    def emission_mean(self, state: np.ndarray) -> np.ndarray:
        """Mean of the observation of each state: (..., 8) to (..., 8), without noise."""
        mixing, hidden, output = self.weights
        mixed = np.tanh(self._check_state(state)[..., :4] @ mixing.T)
        return np.tanh(mixed @ hidden.T) @ output.T


def switching_signs(
    num_series: int = 1024,
    length: int = 32,
    *,
    decay: float = 0.5,
    step: float = 2.0,
    persistence: float = 0.85,
    noise: float = 0.1,
    system_state: int = 0,
    random_state: int | None = None,
) -> SimulatedSeries:
    """
    Eight components driven by four latent dimensions that jump with persistent signs.

    Parameters
    ----------
    num_series
        Number of series.
    length
        Steps of each series.
    decay
        What is left of the state after a step, between 0 and 1.
    step
        Height of a jump, in the unit of the latent.
    persistence
        Probability that a sign stays from one step to the next.
    noise
        Standard deviation of the observation noise, in the unit of the series.
    system_state
        Seed of the emission, apart from that of the series, so that training and test
        series share one system.
    random_state
        Seed of the series, or None.

    Returns
    -------
    SimulatedSeries
        Series ("x1" to "x8"), true states ("z1" to "z4" and the signs "s1" to "s4") and
        the process, a `SwitchingSigns`.

    Raises
    ------
    ValueError
        If an argument is outside its range.

    Examples
    --------
    >>> from darts_ddssm.datasets import switching_signs
    >>> train, _, _ = switching_signs(16, length=32, random_state=0)
    >>> test, latents, process = switching_signs(4, length=32, random_state=1)
    >>> process.sample_future(latents[0].last_values(), n=4, num_samples=100).shape
    (100, 4, 8)
    """
    process = SwitchingSigns(decay, step, persistence, noise, system_state)
    return process.simulate(num_series, length, random_state)
