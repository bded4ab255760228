"""
The scale of the data: of the training set or, for the target, of each window.

The state-space model works on values near zero with a spread near one, whatever the
units of the data, so that neither its training nor its numerical range depends on them.
With reversible instance normalisation [1]_, each window, input and output chunk, is
normalised by the observed values of its input chunk in place of the training set's.
darts' own normalisation knows neither gaps nor output chunks, and its least spread is a
number that knows no unit.

Letters as in :mod:`darts_ddssm.ssm`.

References
----------
.. [1] T. Kim et al., "Reversible Instance Normalization for Accurate Time-Series
       Forecasting against Distribution Shift", ICLR 2022.
"""

from typing import NamedTuple

import torch
from darts.models.components.layer_norm_variants import RINorm
from torch import Tensor, nn

# A spread of so many rounding errors of the level, or less, is that of a constant.
ROUNDING_ERRORS = 8


def is_constant(level: Tensor, std: Tensor) -> Tensor:
    """Tell whether values of such a level and standard deviation are a constant.

    Data of double precision often were of single precision once.
    """
    return std <= ROUNDING_ERRORS * torch.finfo(torch.float32).eps * level


class Scale(NamedTuple):
    """The map from data to normalised values, (x - shift) / spread.

    Attributes
    ----------
    shift, spread
        One value per component, (C,), or per series and component, (B, 1, C).
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

    @classmethod
    def unit(cls) -> "Scale":
        """Return the scale that leaves values as they are."""
        return cls(torch.tensor(0.0), torch.tensor(1.0))


class TrainingScales(NamedTuple):
    """Scales of a training set.

    Attributes
    ----------
    target
        Of the C components.
    past, future, static
        Of the covariates of each kind, those of all components joined.
    """

    target: Scale
    past: Scale
    future: Scale
    static: Scale


class InstanceFloor(NamedTuple):
    """What an input chunk is divided by at least, so that a constant one is a scale.

    Attributes
    ----------
    spread
        In units of the data, (C,).
    ratio
        Of a constant chunk, in terms of the constant, (C,).
    """

    spread: Tensor
    ratio: Tensor

    def apply(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return what chunks of such moments, (..., C) each, are divided by."""
        level = mean.hypot(std)
        of_level = is_constant(level, std) * self.ratio * level
        return std.maximum(self.spread).maximum(of_level)


def instance_scale(
    rin: RINorm,
    x: Tensor,
    observed: Tensor,
    scale: Scale,
    floor: InstanceFloor,
    level_steps: int | None = None,
) -> Scale:
    """Scale of each series by the observed values of its input chunk.

    The level is the mean of its last steps, as many as tell most of what follows: the last
    value of a random walk, the last season of a trend. The spread is that around the mean
    of all steps.

    Parameters
    ----------
    rin
        darts' module, whose affine parameters are used.
    x, observed
        Values and flags of the input chunk, (B, T, C).
    scale
        The scale of the training set, for a component that is nowhere observed.
    floor
        Least spread of a chunk.
    level_steps
        Number of the last steps. Where nothing is observed at them, or ``None``: all.
    """
    # in a unit in which squares do not overflow
    x = x / scale.spread
    count = observed.sum(1, keepdim=True)
    mean = (x * observed).sum(1, keepdim=True) / count.clamp(min=1)
    deviation = (x - mean) * observed
    std = (deviation.square().sum(1, keepdim=True) / count.clamp(min=1)).sqrt()
    level = mean
    if level_steps is not None:
        last, seen = x[:, -level_steps:], observed[:, -level_steps:]
        num_seen = seen.sum(1, keepdim=True)
        level = (last * seen).sum(1, keepdim=True) / num_seen.clamp(min=1)
        level = torch.where(num_seen > 0, level, mean)
    mean, level, std = (part * scale.spread for part in (mean, level, std))
    level, std = (
        torch.where(count > 0, own, whole)
        for own, whole in zip((level, floor.apply(mean, std)), scale, strict=True)
    )
    if not rin.affine:
        return Scale(level, std)
    # x' = (x - mean) / std * |weight| + bias
    spread = std / (rin.affine_weight.abs() + rin.eps)
    return Scale(level - rin.affine_bias * spread, spread)
