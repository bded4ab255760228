"""
Windows of training series, for what is decided before a training starts.

Letters as in :mod:`darts_ddssm.ssm`.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from darts import TimeSeries
from torch import Tensor

# Windows, evenly spaced over all series, that anything is taken from.
NUM_WINDOWS = 1000

# Multiples of it, without their whole parts, lie evenly between 0 and 1.
GOLDEN_RATIO = (1 + 5**0.5) / 2


class ChunkLengths(NamedTuple):
    """Steps of the parts of a training window.

    Attributes
    ----------
    input, gap, output
        Steps I of the input chunk, G between the chunks, and n of the output chunk.
    """

    input: int
    gap: int
    output: int

    @property
    def window(self) -> int:
        """Steps of the window."""
        return sum(self)


class Windows(NamedTuple):
    """Some windows of a series.

    Attributes
    ----------
    before
        The values that are known before the last steps of any window begin, (M, C).
    x
        The windows, (T, N, C).
    starts
        Where they start in the series, (N,).
    """

    before: Tensor
    x: Tensor
    starts: Tensor


def windows_of(
    series: Sequence[TimeSeries],
    length: int,
    *,
    first_share: float = 0.0,
    num_last: int = 1,
    max_windows: int = NUM_WINDOWS,
) -> Iterator[Windows]:
    """Yield evenly spaced windows of each series, in double precision.

    Parameters
    ----------
    series
        The series; those without a window are left out.
    length
        Steps of a window.
    first_share
        Share of the windows that is left out at the start of each series.
    num_last
        Number of the last steps of each window, which begin after ``before``.
    max_windows
        The most windows of all series, but at least one of each.
    """
    num_windows = max(max_windows // max(len(series), 1), 1)
    for i, one in enumerate(series):
        last = len(one) - length
        if last < 0:
            continue
        # (T, C, samples) -> (T, C)
        path = torch.from_numpy(one.all_values(copy=False).astype(np.float64).mean(-1))
        first = int(first_share * (last + 1))
        starts = np.unique(np.linspace(first, last, num_windows).astype(int))
        if num_windows == 1:
            # at other places of each series, which may all start alike
            starts = first + np.array([int(i * GOLDEN_RATIO % 1 * (last - first + 1))])
        x = torch.stack([path[start : start + length] for start in starts], 1)
        yield Windows(path[: first + length - num_last], x, torch.from_numpy(starts))


def on_index(covariates: TimeSeries, index: pd.Index) -> np.ndarray:
    """Values at the times of an index, NaN where there are none: (T, F)."""
    frame = pd.DataFrame(covariates.all_values(copy=False).mean(-1), covariates.time_index)
    return frame.reindex(index).to_numpy(copy=True)


def num_without_scale(series: Sequence[TimeSeries], length: int) -> int:
    """Count the series of which a component has values, but none in its last steps.

    Parameters
    ----------
    series
        The series.
    length
        Number of the last steps.
    """
    known = (~np.isnan(one.all_values(copy=False)).all(2) for one in series)
    return sum(bool((x.any(0) & ~x[-length:].any(0)).any()) for x in known)


def num_observed_steps(series: Sequence[TimeSeries]) -> int:
    """Return the number of steps of all series at which anything is observed."""
    known = (~np.isnan(one.all_values(copy=False)).all((1, 2)) for one in series)
    return sum(int(steps.sum()) for steps in known)


def with_flags(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return windows with 0 where a value is missing, and the flags of those that are not.

    (T, N, C) -> twice (N, T, C)
    """
    x = x.transpose(0, 1)
    return x.nan_to_num(), (~x.isnan()).to(x.dtype)


def moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and number of the observed values along the first axis."""
    count = (~x.isnan()).sum(0)
    mean = x.nanmean(0)
    return mean, (x - mean).square().nanmean(0).sqrt(), count
