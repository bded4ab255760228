"""
What the model decides by itself: the scale of its target and the length of patches.

Letters as in :mod:`darts_ddssm.ssm`.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from darts import TimeSeries
from darts.logging import get_logger
from darts.utils.data import TorchTrainingDataset
from torch import Tensor
from torch.distributions import Normal, StudentT

logger = get_logger(__name__)

# A window of at most MAX_SINGLE_STEPS steps has a state at each of them, a longer one has
# about NUM_PATCHES states.
MAX_SINGLE_STEPS = 48
NUM_PATCHES = 12

# Windows, evenly spaced, that the scale of a training set is taken from.
NUM_WINDOWS = 1000

# Windows, of all series, by which it is decided whether each has its own scale; what that
# must gain, in nats per value, to be no accident; and the least spread, in that of the
# training set, of an input chunk that can be a scale.
MAX_COMPARED = 1000
MIN_GAIN = 0.1
MIN_INSTANCE_STD = 1e-3

# Least spread of a component in rounding errors of its magnitude, so that a constant is
# forecast as itself.
MIN_SPREAD = 8


@cache
def say_once(message: str) -> None:
    """Log what was decided, so that a plain script shows it, and once only.

    A level below that of a warning would show nowhere, and a backtest that trains many
    models would repeat it for each.
    """
    logger.warning(message)


def automatic_patch_length(window_length: int, output_length: int) -> int:
    """Return the length of patches for windows of a length, 1 for a state at each step.

    In a long window it is a twelfth of the window, shortened so that the output chunk is
    divided evenly.

    Parameters
    ----------
    window_length, output_length
        Steps of a training window and of its output chunk.
    """
    if window_length <= MAX_SINGLE_STEPS:
        return 1
    num_after = math.ceil(output_length / (window_length // NUM_PATCHES))
    return math.ceil(output_length / num_after)


def dataset_scale(dataset: TorchTrainingDataset) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the observed values of a training set, (C,) each.

    Parameters
    ----------
    dataset
        A darts training dataset; at most 1,000 of its windows are looked at.
    """
    last = len(dataset) - 1
    rows = []
    for i in np.unique(np.linspace(0, last, NUM_WINDOWS).astype(int)):
        sample = dataset[i]
        rows += [sample.past_target, sample.future_target]
    # (windows * T, C), in double precision: squares of float32 may overflow
    values = np.concatenate(rows)
    rounding = np.finfo(values.dtype).eps
    values = values.astype(np.float64)
    mean, std, count = _moments(values)
    # where nothing is observed they are NaN
    shift, spread = (torch.where(count > 0, x, 0.0) for x in (mean, std))
    magnitude = np.where(np.isnan(values), 0.0, np.abs(values)).max(0)
    # a component of zeros alone has no magnitude either
    floor = MIN_SPREAD * rounding * np.where(magnitude > 0, magnitude, 1.0)
    return shift, spread.maximum(torch.from_numpy(floor))


def prefers_instance_scale(
    series: Sequence[TimeSeries], input_length: int, gap: int, output_length: int
) -> bool:
    """Tell whether a window is better scaled by its own past than by the training set.

    The first two thirds of the windows of each series are taken for a training set. Two
    predictions of the output chunks in the last third are compared by likelihood: a
    Gaussian with the moments of that training set, and a Student t with the moments of the
    input chunk, which allows for the uncertainty of moments of a short chunk. The window's
    own past must be better by a clear margin.

    Parameters
    ----------
    series
        The training series; those that are too short are left out.
    input_length, gap, output_length
        Steps of the input chunk, between the chunks, and of the output chunk.
    """
    length = input_length + gap + output_length
    # (T, C, samples) -> (T, C)
    paths = [one.all_values(copy=False).astype(np.float64).mean(-1) for one in series]
    paths = [values for values in paths if len(values) >= length + 2]
    if not paths:
        return False
    firsts = [2 * (len(values) - length + 1) // 3 for values in paths]
    known = np.concatenate(
        [x[: i + length - 1] for x, i in zip(paths, firsts, strict=True)]
    )
    mean, std, _ = _moments(known)
    # constant components say nothing
    std = torch.where(std > 0, std, torch.nan)
    by_training_set = Normal(mean, std, validate_args=False)
    num_windows = max(MAX_COMPARED // len(paths), 1)
    gains = []
    for values, first in zip(paths, firsts, strict=True):
        last = len(values) - length
        for start in np.unique(np.linspace(first, last, num_windows).astype(int)):
            window = values[start : start + length]
            own_mean, own_std, count = _moments(window[:input_length])
            if (own_std < MIN_INSTANCE_STD * std).any():
                # nothing to divide by
                return False
            # one value alone has no spread
            own_std = torch.where(count > 1, own_std, torch.nan)
            count = count.clamp(min=2)
            own_std *= ((count + 1) / (count - 1)).sqrt()
            by_input = StudentT(count - 1, own_mean, own_std, validate_args=False)
            ahead = torch.from_numpy(window[-output_length:])
            difference = by_input.log_prob(ahead) - by_training_set.log_prob(ahead)
            gains.append(difference.flatten())
    return torch.cat(gains).nanmean().item() > MIN_GAIN


def _moments(values: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and number of the observed values of each component."""
    x = torch.from_numpy(values)
    count = (~x.isnan()).sum(0)
    mean = x.nanmean(0)
    return mean, (x - mean).square().nanmean(0).sqrt(), count
