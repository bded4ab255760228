"""
The scale of the target: of the training set, and of each window where that is asked for.

The state-space model works on values near zero with a spread near one, whatever the
units of the data, so that neither its training nor its numerical range depends on them.
On top of that, reversible instance normalisation takes each window, input and output
chunk, in the scale of the observed values of its input chunk; darts' own knows neither
gaps nor output chunks. Unless the user decides, it is used where the training series say
so, as they do where the level drifts: a network knows nothing of levels that it was not
trained on.

Letters: B batch, T time steps, C components, K parameters.

References
----------
.. [1] T. Kim et al., "Reversible Instance Normalization for Accurate Time-Series
       Forecasting against Distribution Shift", ICLR 2022.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from darts import TimeSeries
from darts.models.components.layer_norm_variants import RINorm
from darts.utils.data import TorchTrainingDataset
from darts.utils.likelihood_models.torch import (
    CauchyLikelihood,
    GaussianLikelihood,
    GumbelLikelihood,
    LaplaceLikelihood,
)
from torch import Tensor, nn
from torch.distributions import Normal, StudentT

# Families whose raw parameters are a location and, before a softplus, a scale: they are
# the ones that a shift and a scaling of the data map to themselves.
LOCATION_SCALE_FAMILIES = (
    GaussianLikelihood,
    LaplaceLikelihood,
    CauchyLikelihood,
    GumbelLikelihood,
)

# Windows, evenly spaced, that the scale of a training set is taken from.
NUM_WINDOWS = 1000

# Windows, of all series, by which it is decided whether each has its own scale; what that
# must gain, in nats a value, to be no accident; and the least spread, in that of the
# training set, of an input chunk that can be a scale.
MAX_COMPARED = 1000
MIN_GAIN = 0.1
MIN_INSTANCE_STD = 1e-3

# Least spread of a component in rounding errors of its magnitude: a constant is forecast
# as itself.
MIN_SPREAD = 8


class Scale(NamedTuple):
    """The map from data to normalised values, (x - shift) / spread.

    Attributes
    ----------
    shift, spread
        One value a component, (C,), or a series and component, (B, 1, C).
    """

    shift: Tensor
    spread: Tensor

    def normalise(self, x: Tensor) -> Tensor:
        """Map data (..., B, T, C) to normalised values."""
        return (x - self.shift) / self.spread

    def to_data(self, x: Tensor) -> Tensor:
        """Map normalised values (..., B, T, C) to data."""
        return x * self.spread + self.shift

    def parameters_to_data(self, raw: Tensor) -> Tensor:
        """Map raw parameters of a location-scale family (B, T, C, K) to the data's."""
        location, raw_spread = raw.unbind(-1)
        spread = nn.functional.softplus(raw_spread) * self.spread
        # the inverse of softplus, exact for large and for small spreads
        raw_spread = spread + torch.log(-torch.expm1(-spread))
        return torch.stack([self.to_data(location), raw_spread], dim=-1)

    def after(self, inner: "Scale") -> "Scale":
        """Return the map from data to what ``inner`` makes of this map's values."""
        return Scale(self.to_data(inner.shift), self.spread * inner.spread)


def dataset_scale(dataset: TorchTrainingDataset) -> tuple[np.ndarray, np.ndarray]:
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
    shift, spread = (torch.where(count > 0, x, 0.0).numpy() for x in (mean, std))
    magnitude = np.where(np.isnan(values), 0.0, np.abs(values)).max(0)
    # a component of zeros alone has no magnitude either
    floor = MIN_SPREAD * rounding * np.where(magnitude > 0, magnitude, 1.0)
    return shift, np.maximum(spread, floor)


def prefers_instance_scale(
    series: Sequence[TimeSeries], input_length: int, gap: int, output_length: int
) -> bool:
    """Whether a window is better scaled by its own past than by the training set.

    The first two thirds of the windows of each series are taken for a training set. It is
    asked what says clearly more of the output chunks in the last third: a Gaussian of the
    moments of that training set, or a Student t of those of the input chunk alone, which
    allows for how little a short chunk knows of them.

    Parameters
    ----------
    series
        The training series; those too short to tell are left out.
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


def instance_scale(rin: RINorm, x: Tensor, observed: Tensor) -> Scale:
    """Scale of each series by the observed values of its input chunk.

    Parameters
    ----------
    rin
        darts' module, whose affine parameters and ``eps`` are used.
    x, observed
        Values and flags of the input chunk, (B, T, C). A component that is nowhere
        observed is left as it is.
    """
    count = observed.sum(1, keepdim=True)
    mean = (x * observed).sum(1, keepdim=True) / count.clamp(min=1)
    squares = ((x - mean) * observed).square().sum(1, keepdim=True)
    variance = torch.where(count > 0, squares / count.clamp(min=1), 1.0)
    std = (variance + rin.eps).sqrt()
    if not rin.affine:
        return Scale(mean, std)
    # x' = (x - mean) / std * |weight| + bias
    spread = std / (rin.affine_weight.abs() + rin.eps)
    return Scale(mean - rin.affine_bias * spread, spread)


def max_input(dtype: np.dtype) -> float:
    """Largest size of a value for the networks: they square what they make of it.

    Parameters
    ----------
    dtype
        Type of the data; of 16 bits, it has the range of float32 in the model.
    """
    return float(np.finfo(np.result_type(dtype, np.float32)).max) ** 0.4
