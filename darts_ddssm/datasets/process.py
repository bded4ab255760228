"""What the processes have in common: how to simulate one, and how to continue it."""

from abc import ABC, abstractmethod
from numbers import Real
from typing import NamedTuple

import numpy as np
from darts import TimeSeries
from numpy.typing import ArrayLike

from darts_ddssm.validation import (
    check,
    check_positive_integer,
    check_positive_number,
)


def check_positive(**values: float) -> None:
    """Raise a `ValueError` that names the first value that is no positive number."""
    for name, value in values.items():
        check_positive_number(name, value)


def check_probability(**values: float) -> None:
    """Raise a `ValueError` that names the first value outside (0, 1)."""
    for name, value in values.items():
        check(
            isinstance(value, Real) and 0 < value < 1,
            f"`{name}` must be between 0 and 1, got `{value!r}`.",
        )


def checked_observations(x: ArrayLike, num_components: int) -> np.ndarray:
    """Return observations as an array (T, C), in which NaN alone is not finite."""
    x = np.asarray(x, dtype=np.float64)
    check(
        x.ndim == 2 and len(x) > 0 and x.shape[1] == num_components,
        f"`x` must have shape `(T, {num_components})`, got `{x.shape}`.",
    )
    check(not np.isinf(x).any(), "`x` must be finite, or NaN where a value is missing.")
    return x


def random_signs(
    probability: float, shape: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    """Draw independent signs, 1 with the given probability and -1 otherwise."""
    return np.where(rng.random(shape) < probability, 1.0, -1.0)


class SimulatedSeries(NamedTuple):
    """
    Simulated series and what is known of them.

    Attributes
    ----------
    series
        The observations, one `TimeSeries` of T steps and C components a series.
    latents
        The true states, D components, on the same time index. All that the future
        depends on is in the last one.
    process
        The process that drew them: their oracle.
    """

    series: list[TimeSeries]
    latents: list[TimeSeries]
    process: "Process"


class Process(ABC):
    """
    A Markov state and an observation of it: what the processes here have in common.

    A process of one's own names its components and says how the state starts, how it
    moves and how it is observed.

    Examples
    --------
    >>> import numpy as np
    >>> from darts_ddssm.datasets import Process
    >>> class RandomWalk(Process):
    ...     components = ("x",)
    ...     state_components = ("z",)
    ...     def initial_state(self, num_series, rng):
    ...         return np.zeros((num_series, 1))
    ...     def next_state(self, state, rng):
    ...         return state + rng.standard_normal(state.shape)
    ...     def observe(self, state, rng):
    ...         return state
    >>> series, latents, _ = RandomWalk().simulate(2, length=8, random_state=0)
    >>> series[0] == latents[0].with_columns_renamed("z", "x")
    True
    """

    @property
    @abstractmethod
    def components(self) -> tuple[str, ...]:
        """Names of the C observed components."""

    @property
    @abstractmethod
    def state_components(self) -> tuple[str, ...]:
        """Names of the D components of the state."""

    @abstractmethod
    def initial_state(self, num_series: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the states before the first step, (N, D)."""

    @abstractmethod
    def next_state(self, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw the next state of each, (..., D) to (..., D)."""

    @abstractmethod
    def observe(self, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw an observation of each state, (..., D) to (..., C)."""

    def simulate(
        self, num_series: int, length: int, random_state: int | None = None
    ) -> SimulatedSeries:
        """
        Draw independent series.

        Parameters
        ----------
        num_series
            Number of series, N.
        length
            Steps of each series, T.
        random_state
            Seed; the same seed draws the same series. None draws others every time.

        Returns
        -------
        SimulatedSeries
            Series and true states in float32, with an integer time index from 0.

        Raises
        ------
        ValueError
            If `num_series` or `length` is no positive integer.
        """
        check_positive_integer("num_series", num_series)
        check_positive_integer("length", length)
        rng = np.random.default_rng(random_state)
        z, x = self._roll_out(self.initial_state(num_series, rng), length, rng)
        return SimulatedSeries(
            _to_series(x, self.components), _to_series(z, self.state_components), self
        )

    def sample_future(
        self, state: ArrayLike, n: int, num_samples: int, random_state: int | None = None
    ) -> np.ndarray:
        """
        Draw the next observations given the true state: the best forecast there is.

        Parameters
        ----------
        state
            True state at the last known step, (D,), or of N series, (N, D).
        n
            Steps ahead.
        num_samples
            Number of joint sample paths, S.
        random_state
            Seed, or None.

        Returns
        -------
        numpy.ndarray
            Sample paths, (S, n, C) or (S, N, n, C).

        Raises
        ------
        ValueError
            If `n` or `num_samples` is no positive integer, or if the last axis of `state`
            has not one entry for each of `state_components`.

        Examples
        --------
        >>> import numpy as np
        >>> from darts_ddssm.datasets import bimodal_random_walk
        >>> series, latents, process = bimodal_random_walk(3, length=10, random_state=0)
        >>> states = np.stack([latent.last_values() for latent in latents])
        >>> process.sample_future(states, n=5, num_samples=100).shape
        (100, 3, 5, 1)
        """
        check_positive_integer("n", n)
        check_positive_integer("num_samples", num_samples)
        state = self._check_state(state)
        rng = np.random.default_rng(random_state)
        state = np.broadcast_to(state, (num_samples, *state.shape))
        return self._roll_out(state, n, rng)[1]

    def _roll_out(
        self, state: np.ndarray, n: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """States (..., n, D) after `state` (..., D), and observations (..., n, C)."""
        states = []
        for _ in range(n):
            state = self.next_state(state, rng)
            states.append(state)
        z = np.stack(states, axis=-2)
        return z, self.observe(z, rng)

    def _check_state(self, state: ArrayLike) -> np.ndarray:
        state = np.asarray(state, dtype=np.float64)
        size = len(self.state_components)
        check(
            state.shape[-1:] == (size,),
            f"`state` must have {size} entries on its last axis, "
            f"got shape `{state.shape}`.",
        )
        return state


def _to_series(values: np.ndarray, components: tuple[str, ...]) -> list[TimeSeries]:
    """Series of values (N, T, C)."""
    return [
        TimeSeries.from_values(v, columns=list(components))
        for v in values.astype(np.float32)
    ]
