"""
Windows of the covariates of training series, and whether they tell windows apart.

A network that sees by its covariates which of the training windows it is in soon knows all
of them by heart. By a calendar, which comes round, it does not see that.

Letters as in :mod:`darts_ddssm.ssm`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from darts import TimeSeries
from torch import Tensor

from darts_ddssm.estimator.windows import ChunkLengths, on_index
from darts_ddssm.series.scaling import CovariateScale

# The most values of covariates of a window that are looked at, of each kind the last ones,
# and the most windows that are compared, of so many series.
MAX_COVARIATES, MAX_ROWS, NUM_SERIES = 256, 2000, 10


class TrainingCovariates(NamedTuple):
    """Past and future covariates of training series.

    Attributes
    ----------
    series
        The training series.
    past, future
        Their covariates. ``None`` where there are none.
    past_scale, future_scale
        The scales of the covariates.
    lengths
        Steps of the parts of a window.
    """

    series: Sequence[TimeSeries]
    past: Sequence[TimeSeries] | None
    future: Sequence[TimeSeries] | None
    past_scale: CovariateScale
    future_scale: CovariateScale
    lengths: ChunkLengths

    def windows(self, i: int, starts: Tensor) -> tuple[Tensor, Tensor]:
        """All covariates of some windows of a series, and those of its output chunks.

        Parameters
        ----------
        i
            Number of the series.
        starts
            Where the windows start in it, (N,).

        Returns
        -------
        inputs
            Past covariates of the input chunks and future ones of the windows, (N, ...).
        ahead
            Future covariates of the output chunks, (N, n, F).
        """
        past = self._windows(self.past, i, starts, self.past_scale)
        future = self._windows(self.future, i, starts, self.future_scale)
        parts = [_last_inputs(past[:, : self.lengths.input]), _last_inputs(future)]
        return torch.cat(parts, dim=1), future[:, -self.lengths.output :]

    def _windows(
        self,
        covariates: Sequence[TimeSeries] | None,
        i: int,
        starts: Tensor,
        scale: CovariateScale,
    ) -> Tensor:
        """Normalised covariates of windows, zero where unknown, (N, I + G + n, F)."""
        if covariates is None:
            return torch.zeros(len(starts), self.lengths.window, 0, dtype=torch.float64)
        values = on_index(covariates[i], self.series[i].time_index)
        steps = starts.unsqueeze(-1) + torch.arange(self.lengths.window)
        windows = torch.from_numpy(values.astype(np.float64))[steps]
        return scale.normalise(windows, windows).nan_to_num()


def _last_inputs(covariates: Tensor) -> Tensor:
    """The last covariates of windows: (N, T, F) -> (N, ...)."""
    num_steps = max(MAX_COVARIATES // max(covariates.shape[2], 1), 1)
    return covariates[:, -num_steps:].flatten(1)


def share_apart(covariates: TrainingCovariates) -> float:
    """Tell how far away the nearest other window is by its covariates.

    Windows of one series that start less than an output chunk apart are not compared.

    Parameters
    ----------
    covariates
        The covariates of the training series.

    Returns
    -------
    float
        Its distance as a share of the typical one, in the median. 0 where all windows are
        alike, or none can be compared.
    """
    length = covariates.lengths.window
    longer = [i for i, one in enumerate(covariates.series) if len(one) >= length]
    some = np.unique(np.linspace(0, len(longer) - 1, NUM_SERIES).astype(int))
    rows, starts = [], []
    for i in (longer[k] for k in some if longer):
        # one after the other: what comes round would be missed between windows far apart
        number = len(covariates.series[i]) - length + 1
        starts.append(torch.arange(min(number, math.ceil(MAX_ROWS / len(some)))))
        inputs, _ = covariates.windows(i, starts[-1])
        rows.append(inputs)
    if not rows:
        return 0.0
    x, start = torch.cat(rows), torch.cat(starts)
    owner = torch.repeat_interleave(
        torch.arange(len(rows)), torch.tensor([len(each) for each in rows])
    )
    is_other = (start.unsqueeze(-1) - start).abs() >= covariates.lengths.output
    is_other |= owner.unsqueeze(-1) != owner
    # the differences themselves: of like windows they are zero, whatever their size
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    distances = torch.where(is_other, distances, torch.nan)
    typical = distances.nanmedian()
    nearest = distances.nan_to_num(nan=torch.inf).amin(1)
    nearest = nearest[nearest.isfinite()]
    # less than this is rounding
    least = torch.finfo(torch.float32).eps * x.shape[1] ** 0.5
    if len(nearest) == 0 or typical <= least:
        return 0.0
    return (nearest.median() / typical).item()
