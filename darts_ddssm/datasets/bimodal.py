"""A walk that jumps up or down: the smallest transition that no Gaussian can represent."""

from dataclasses import dataclass

import numpy as np

from darts_ddssm.datasets.process import (
    Process,
    SimulatedSeries,
    check,
    check_positive,
    check_probability,
    random_signs,
)


@dataclass(frozen=True)
class BimodalRandomWalk(Process):
    r"""
    A walk that jumps up or down at every step, and never stays.

    .. math::
        z_t = a z_{t-1} + b s_t, \qquad x_t = z_t + c \, e_t,
        \qquad z_0 = 0, \; e_t \sim N(0, 1)

    with independent signs :math:`s_t`, 1 with probability :math:`p` and -1 otherwise.
    The one-step density has two narrow modes at a distance of :math:`2b`, which a
    Gaussian transition can only cover with one wide one.

    The parameters and their ranges are those of `bimodal_random_walk`: a is `decay`, b
    `step`, c `noise` and p `probability`.

    Examples
    --------
    >>> from darts_ddssm.datasets import BimodalRandomWalk
    >>> density = BimodalRandomWalk().predictive_density([-4.0, 0.0, 4.0], state=[0.0])
    >>> density.round(3).tolist()
    [0.997, 0.0, 0.997]
    """

    decay: float = 0.9
    step: float = 4.0
    noise: float = 0.2
    probability: float = 0.5

    components = ("x",)
    state_components = ("z",)

    def __post_init__(self) -> None:
        check(0 <= self.decay <= 1, f"`decay` must be between 0 and 1, got `{self.decay}`.")
        check_positive(step=self.step, noise=self.noise)
        check_probability(probability=self.probability)

    def initial_state(self, num_series: int, rng: np.random.Generator) -> np.ndarray:
        return np.zeros((num_series, 1))

    def next_state(self, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        sign = random_signs(self.probability, state.shape, rng)
        return self.decay * state + self.step * sign

    def observe(self, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return state + self.noise * rng.standard_normal(state.shape)

    def predictive_density(self, x: np.ndarray, state: np.ndarray) -> np.ndarray:
        """
        Exact density of the next observation given the true state.

        Parameters
        ----------
        x
            Points, (G,).
        state
            True state at the last known step, (1,), or of N series, (N, 1).

        Returns
        -------
        numpy.ndarray
            Density at each point, in 1 over the unit of x, (G,) or (N, G).

        Raises
        ------
        ValueError
            If the last axis of `state` has not one entry.
        """
        mean = self.decay * self._check_state(state)

        def normal(mean: np.ndarray) -> np.ndarray:
            u = (np.asarray(x, dtype=np.float64) - mean) / self.noise
            return np.exp(-0.5 * u**2) / (self.noise * np.sqrt(2 * np.pi))

        p = self.probability
        return p * normal(mean + self.step) + (1 - p) * normal(mean - self.step)


def bimodal_random_walk(
    num_series: int = 1024,
    length: int = 32,
    *,
    decay: float = 0.9,
    step: float = 4.0,
    noise: float = 0.2,
    probability: float = 0.5,
    random_state: int | None = None,
) -> SimulatedSeries:
    """
    Series that jump up or down at every step: a transition with two modes.

    Parameters
    ----------
    num_series
        Number of series.
    length
        Steps of each series.
    decay
        What is left of the state after a step, from 0 to 1.
    step
        Height of a jump, in the unit of the series.
    noise
        Standard deviation of the observation noise, in the unit of the series.
    probability
        Probability of an upward jump.
    random_state
        Seed of the series, or None.

    Returns
    -------
    SimulatedSeries
        Series ("x"), true states ("z") and the process, a `BimodalRandomWalk`.

    Raises
    ------
    ValueError
        If an argument is outside its range.

    Examples
    --------
    >>> from darts_ddssm.datasets import bimodal_random_walk
    >>> series, latents, process = bimodal_random_walk(16, length=32, random_state=0)
    >>> len(series), len(series[0]), process.step
    (16, 32, 4.0)
    """
    process = BimodalRandomWalk(decay, step, noise, probability)
    return process.simulate(num_series, length, random_state)
