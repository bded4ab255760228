"""A walk that jumps up or down: the smallest transition that no Gaussian can represent."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from darts_ddssm.datasets.process import (
    Process,
    SimulatedSeries,
    check_positive,
    check_probability,
    checked_observations,
    random_signs,
)
from darts_ddssm.validation import check, check_positive_integer

# Paths of signs that are kept at each step.
MAX_PATHS = 4096


class StatePaths(NamedTuple):
    """
    Paths of the state that some observations leave possible: an exact posterior.

    Attributes
    ----------
    states
        K paths, (K, T, D).
    probabilities
        Probability of each path, (K,).
    """

    states: np.ndarray
    probabilities: np.ndarray

    def sample(self, num_samples: int, random_state: int | None = None) -> np.ndarray:
        """
        Draw paths, (S, T, D).

        Parameters
        ----------
        num_samples
            Number of paths, S.
        random_state
            Seed, or None.

        Raises
        ------
        ValueError
            If `num_samples` is no positive integer.

        Examples
        --------
        >>> from darts_ddssm.datasets import BimodalRandomWalk
        >>> paths = BimodalRandomWalk().smooth([[4.0], [float("nan")], [3.3]])
        >>> paths.sample(100, random_state=0).shape
        (100, 3, 1)
        """
        check_positive_integer("num_samples", num_samples)
        rng = np.random.default_rng(random_state)
        chosen = rng.choice(len(self.states), num_samples, p=self.probabilities)
        return self.states[chosen]


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

    def predictive_density(self, x: ArrayLike, state: ArrayLike) -> np.ndarray:
        """
        Exact density of the next observation given the true state.

        Given observations alone it is a mixture of such densities, over the paths that
        they leave possible.

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

        Examples
        --------
        The last value is missing, so that three values are possible:

        >>> from darts_ddssm.datasets import BimodalRandomWalk
        >>> process = BimodalRandomWalk(decay=1.0)
        >>> paths = process.smooth([[4.0], [float("nan")]])
        >>> x = [-4.0, 0.0, 4.0, 12.0]
        >>> density = process.predictive_density(x, paths.states[:, -1])
        >>> (paths.probabilities @ density).round(3).tolist()
        [0.499, 0.0, 0.997, 0.499]
        """
        mean, p = self.decay * self._check_state(state), self.probability
        up = self._log_density(x, mean + self.step)
        down = self._log_density(x, mean - self.step)
        return p * np.exp(up) + (1 - p) * np.exp(down)

    def log_likelihood(self, x: ArrayLike) -> float:
        """
        Exact log-density of a series of observations.

        A sum over all paths of signs, of which the likeliest 4,096 are kept at each step.
        With jumps far above the noise all but one or two are impossible; up to 12 steps
        nothing is left out in any case.

        Parameters
        ----------
        x
            Observations, (T, 1), with NaN where one is missing.

        Returns
        -------
        float
            Joint log-density of what is observed, in nats, in total.

        Raises
        ------
        ValueError
            If `x` has not the shape (T, 1), or an infinite value.

        Examples
        --------
        >>> from darts_ddssm.datasets import BimodalRandomWalk
        >>> round(BimodalRandomWalk().log_likelihood([[4.0], [-0.4]]), 3)
        -0.005
        """
        log_weights = self._filter(x)[1]
        return float(np.logaddexp.reduce(log_weights))

    def smooth(self, x: ArrayLike) -> StatePaths:
        """
        Exact posterior of the path of states given incomplete, noisy observations.

        Its last states are the filtered ones: what is known when a forecast starts. It is
        pruned as in :meth:`log_likelihood`. A path that is left out at a step had there at
        most the probability of the least likely of those kept.

        Parameters
        ----------
        x
            Observations, (T, 1), with NaN where one is missing.

        Returns
        -------
        StatePaths
            The paths that are possible, and their probabilities.

        Raises
        ------
        ValueError
            If `x` has not the shape (T, 1), or an infinite value.

        Examples
        --------
        Two steps that lead back to 4: down and up, or up and down.

        >>> from darts_ddssm.datasets import BimodalRandomWalk
        >>> process = BimodalRandomWalk(decay=1.0)
        >>> paths = process.smooth([[4.0], [float("nan")], [4.0]])
        >>> likely = paths.probabilities > 0.01
        >>> paths.states[likely, :, 0].tolist(), paths.probabilities[likely].tolist()
        ([[4.0, 0.0, 4.0], [4.0, 8.0, 4.0]], [0.5, 0.5])
        """
        states, log_weights = self._filter(x)
        probabilities = np.exp(log_weights - np.logaddexp.reduce(log_weights))
        return StatePaths(states[..., None], probabilities / probabilities.sum())

    def _filter(self, x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest paths (K, T), and their joint log-density with x, (K,)."""
        x = checked_observations(x, 1)
        paths, log_weights = np.zeros((1, len(x))), np.zeros(1)
        log_up, log_down = np.log(self.probability), np.log1p(-self.probability)
        for t, x_t in enumerate(x[:, 0]):
            means = self.decay * paths[:, t - 1] if t > 0 else np.zeros(1)
            states = np.concatenate([means + self.step, means - self.step])
            log_weights = np.concatenate([log_weights + log_up, log_weights + log_down])
            if not np.isnan(x_t):
                log_weights = log_weights + self._log_density(x_t, states)
            kept = np.argsort(log_weights)[-MAX_PATHS:]
            # the paths that go up, then those that go down
            paths = paths[kept % len(paths)]
            paths[:, t], log_weights = states[kept], log_weights[kept]
        return paths, log_weights

    def _log_density(self, x: ArrayLike, state: np.ndarray) -> np.ndarray:
        """Log-density of an observation given its state."""
        u = (np.asarray(x, dtype=np.float64) - state) / self.noise
        return -0.5 * u**2 - np.log(self.noise * np.sqrt(2 * np.pi))


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
