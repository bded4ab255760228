"""
Scales of target and covariates, taken from a training set.

Letters as in :mod:`darts_ddssm.ssm`.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from darts.utils.data import TorchTrainingDataset
from torch import Tensor

from darts_ddssm.estimator.data_checks import training_series
from darts_ddssm.estimator.windows import NUM_WINDOWS, moments, on_index
from darts_ddssm.series.scaling import (
    ROUNDING_ERRORS,
    CovariateScale,
    Scale,
    TrainingScales,
)

# The spread of a covariate is at least this share of its range: the rare event of a
# covariate of zeros and ones is a value of a few, not of hundreds.
MIN_SHARE_OF_RANGE = 1 / 8

# The range of a covariate is that of the training set and so much of it more on both sides.
MARGIN_OF_RANGE = 0.1

# A covariate leaves its range where more than this share of the later values lie outside.
MAX_SHARE_OUTSIDE = 0.05

# By how many spreads the mean of a later training set may differ from that of the first,
# and by what factor its spread, so that networks can learn it in the scale of the first.
MAX_RATIO_OF_SCALES = 10.0


def training_scales(dataset: TorchTrainingDataset, input_length: int) -> TrainingScales:
    """Scales of target and covariates, by the observed values of a training set.

    Parameters
    ----------
    dataset
        A darts training dataset; at most 1,000 of its windows are looked at.
    input_length
        Steps of an input chunk.
    """
    targets: list[np.ndarray] = []
    # input chunks and whole windows of the covariates of each kind
    covariates: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {
        "past": [],
        "future": [],
        "static": [],
    }
    for i in np.unique(np.linspace(0, len(dataset) - 1, NUM_WINDOWS).astype(int)):
        sample = dataset[i]
        targets += [sample.past_target, sample.future_target]
        if sample.past_covariates is not None:
            covariates["past"].append((sample.past_covariates,) * 2)
        if sample.future_covariates is not None:
            chunk = sample.historic_future_covariates
            whole = np.concatenate([chunk, sample.future_covariates])
            covariates["future"].append((chunk, whole))
        if sample.static_covariates is not None:
            # (C or 1, F) -> (1, C * F)
            covariates["static"].append((sample.static_covariates.reshape(1, -1),) * 2)
    return TrainingScales(
        _scale(np.concatenate(targets)),
        **{
            kind: _covariate_scale(windows, _ranges(dataset, kind), input_length)
            if windows
            else CovariateScale.unit()
            for kind, windows in covariates.items()
        },
    )


def is_other_scale(new: Scale, old: Scale) -> bool:
    """Tell whether values of one scale are none that a model of another one can learn.

    Parameters
    ----------
    new, old
        Mean and spread of each component, (C,).
    """
    distance = (new.shift - old.shift).abs() / old.spread
    ratio = (new.spread / old.spread).log().abs()
    limit = math.log(MAX_RATIO_OF_SCALES)
    return bool((distance > MAX_RATIO_OF_SCALES).any() or (ratio > limit).any())


def _scale(values: np.ndarray) -> Scale:
    """Mean and standard deviation of each column of values (N, C)."""
    mean, std, magnitude = _magnitudes(values)
    # what a constant has, so that it is forecast as itself
    return Scale(mean, std.maximum(_rounding_error(values) * magnitude))


def _rounding_error(values: np.ndarray) -> float:
    """What varies by less, in terms of its magnitude, is a constant."""
    return ROUNDING_ERRORS * float(np.finfo(values.dtype).eps)


def _magnitudes(values: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and magnitude of each column of values (N, F)."""
    # squares of float32 may overflow
    x = torch.from_numpy(values.astype(np.float64))
    mean, std, count = moments(x)
    # where nothing is observed they are NaN
    mean, std = (torch.where(count > 0, part, 0.0) for part in (mean, std))
    magnitude = x.abs().nan_to_num().amax(0)
    # a component of zeros alone has no magnitude either
    return mean, std, torch.where(magnitude > 0, magnitude, 1.0)


class _Ranges(NamedTuple):
    """Least and greatest values of covariates in the training series, (F,) each.

    The first two thirds of the steps of each series say what its range was.
    """

    lowest: Tensor
    highest: Tensor
    leaves: Tensor


def _ranges(dataset: TorchTrainingDataset, kind: str) -> _Ranges | None:
    """Find the ranges of covariates, and which ones leave theirs as time goes on.

    All series are looked at, not some windows: a rare event must not be missed.

    Parameters
    ----------
    dataset
        A darts training dataset.
    kind
        The kind of the covariates.

    Returns
    -------
    _Ranges
        ``None`` where the dataset has no series.
    """
    series = training_series(dataset)
    if not series:
        return None
    if kind == "static":
        # (C or 1, F) -> (1, C * F)
        parts = [one.static_covariates_values(copy=False).reshape(1, -1) for one in series]
    else:
        covariates = getattr(dataset, f"{kind}_covariates")
        parts = [
            on_index(one, other.time_index)
            for one, other in zip(covariates, series, strict=True)
        ]
    before, after = [], []
    for values in parts:
        first, last = np.split(values.astype(np.float64), [math.ceil(2 * len(values) / 3)])
        before.append(first)
        after.append(last)
    # (T, F) of all series
    early, late = (torch.from_numpy(np.concatenate(each)) for each in (before, after))
    lowest, highest = _extremes(early)
    # what was unknown or constant had no range yet
    outside = (lowest < highest) & ((late < lowest) | (late > highest))
    leaves = outside.sum(0) > MAX_SHARE_OUTSIDE * (~late.isnan()).sum(0)
    return _Ranges(*_extremes(torch.cat([early, late])), leaves)


def _extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest observed values of each column (N, F), infinite without any."""
    return x.nan_to_num(nan=torch.inf).amin(0), x.nan_to_num(nan=-torch.inf).amax(0)


def _covariate_scale(
    windows: list[tuple[np.ndarray, np.ndarray]],
    ranges: _Ranges | None,
    input_length: int,
) -> CovariateScale:
    """Scale of covariates, by the observed values of some windows.

    Parameters
    ----------
    windows
        Input chunk and whole window, (I, F) and (T, F) each.
    ranges
        Their ranges in all training series. ``None`` where only the windows are known.
    input_length
        Steps I of an input chunk.
    """
    values = np.concatenate([whole for _, whole in windows])
    least_share = _rounding_error(values)
    shift, spread, magnitude = _magnitudes(values)
    x = torch.from_numpy(values.astype(np.float64))
    lowest, highest = _extremes(x)
    is_local = torch.zeros_like(shift, dtype=torch.bool)
    if ranges is not None:
        lowest, highest = ranges.lowest, ranges.highest
        is_local = ranges.leaves
    lowest, highest = lowest - shift, highest - shift
    if is_local.any():
        chunks, wholes = (
            [torch.from_numpy(part.astype(np.float64)) for part in parts]
            for parts in zip(*windows, strict=True)
        )
        x = torch.cat([w - c.nanmean(0) for c, w in zip(chunks, wholes, strict=True)])
        spread = torch.where(is_local, x.square().nanmean(0).sqrt().nan_to_num(), spread)
        least, greatest = _extremes(x)
        lowest = torch.where(is_local, least, lowest)
        highest = torch.where(is_local, greatest, highest)
    # of nothing there is no range
    lowest, highest = (torch.where(x.isfinite(), x, 0.0) for x in (lowest, highest))
    spread = spread.maximum(MIN_SHARE_OF_RANGE * (highest - lowest))
    # of one that was constant nothing is known but that
    constant = spread <= least_share * magnitude
    spread = torch.where(constant, magnitude, spread)
    margin = MARGIN_OF_RANGE * (highest - lowest)
    low, high = (lowest - margin) / spread, (highest + margin) / spread
    return CovariateScale(shift, spread, low, high, is_local, input_length)
