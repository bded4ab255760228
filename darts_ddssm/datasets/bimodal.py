"""A walk that jumps up or down: the smallest transition that no Gaussian can represent."""

from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import numpy as np
from darts.logging import get_logger
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

logger = get_logger(__name__)

# Paths of signs that are kept where a value is observed: all that have at least such a
# share of the weight of the likeliest one, but no fewer and no more than so many.
LEAST_SHARE, MIN_PATHS, MAX_PATHS = 1e-9, 2**12, 2**14

# Paths through a gap, where none is less likely for what is observed. Of more, so many
# evenly spaced quantiles of the state stand for all.
MAX_GAP_PATHS = 2**16

# Share of the probability whose loss is told.
MAX_SHARE_LOST = 1e-3


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
        is_number = isinstance(self.decay, Real)
        check(
            is_number and 0 <= self.decay <= 1,
            f"`decay` must be between 0 and 1, got `{self.decay!r}`.",
        )
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

        A sum over all paths of signs. With jumps far above the noise all but one or two are
        impossible; of others up to 16,384 are kept where a value is observed, and up to
        65,536 in a gap, which are all of one of up to 16 steps. In a longer one, evenly
        spaced quantiles of the state stand for all. A warning says where more than a
        thousandth of the probability was left out.

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
        pruned as in :meth:`log_likelihood`.

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
        paths, log_weights, share_kept = np.zeros((1, len(x))), np.zeros(1), 1.0
        log_up, log_down = np.log(self.probability), np.log1p(-self.probability)
        for t, x_t in enumerate(x[:, 0]):
            means = self.decay * paths[:, t - 1] if t > 0 else np.zeros(1)
            states = np.concatenate([means + self.step, means - self.step])
            log_weights = np.concatenate([log_weights + log_up, log_weights + log_down])
            if np.isnan(x_t):
                kept, log_weights = _in_gap(states, log_weights)
            else:
                log_weights = log_weights + self._log_density(x_t, states)
                total = np.logaddexp.reduce(log_weights)
                kept = _likeliest(log_weights)
                log_weights = log_weights[kept]
                share_kept *= np.exp(np.logaddexp.reduce(log_weights) - total)
            # the paths that go up, then those that go down
            paths = paths[kept % len(paths)]
            paths[:, t] = states[kept]
        if share_kept < 1 - MAX_SHARE_LOST:
            logger.warning(
                f"`BimodalRandomWalk`: the paths that were left out have "
                f"{1 - share_kept:.1%} of the probability, since too many are possible."
            )
        return paths, log_weights

    def _log_density(self, x: ArrayLike, state: np.ndarray) -> np.ndarray:
        """Log-density of an observation given its state."""
        u = (np.asarray(x, dtype=np.float64) - state) / self.noise
        return -0.5 * u**2 - np.log(self.noise * np.sqrt(2 * np.pi))


def _likeliest(log_weights: np.ndarray) -> np.ndarray:
    """Places of the likeliest paths."""
    order = np.argsort(log_weights)
    least = log_weights[order[-1]] + np.log(LEAST_SHARE)
    number = np.clip(np.count_nonzero(log_weights >= least), MIN_PATHS, MAX_PATHS)
    return order[-number:]


def _in_gap(states: np.ndarray, log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of paths that stand for all, which are as likely as before, and weights."""
    if len(states) <= MAX_GAP_PATHS:
        return np.arange(len(states)), log_weights
    total, order = np.logaddexp.reduce(log_weights), np.argsort(states)
    edges = np.exp(log_weights[order] - total).cumsum()
    quantiles = (np.arange(MAX_GAP_PATHS) + 0.5) / MAX_GAP_PATHS
    # weights may add up to a little less than one
    places = np.searchsorted(edges, quantiles).clip(max=len(order) - 1)
    weights = np.full(MAX_GAP_PATHS, total - np.log(MAX_GAP_PATHS))
    return order[places], weights


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
