"""
How a long series is cut, where it is asked about part by part.

The states and gaps of a series are those of overlapping windows, and what is predicted of
it is so in stretches, each given the input chunk before it.

Letters as in :mod:`darts_ddssm.ssm`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from darts.models.forecasting.torch_forecasting_model import MixedCovariatesTorchModel

from darts_ddssm.estimator.data_checks import chunk_lengths, why_instance_scale
from darts_ddssm.estimator.sequences import Sample
from darts_ddssm.validation import check

# Number of training windows up to which a series counts as about as long as one.
MAX_WINDOWS = 2

# The most training windows that a window is led back for a scale of a few components.
MAX_BACK = 4


class Span(NamedTuple):
    """A part of a series that is asked about, and which of its answers count.

    Attributes
    ----------
    start, end
        Its steps.
    first, last
        The steps, from the first one to the one before the last one, whose answers count.
    """

    start: int
    end: int
    first: int
    last: int


def is_by_window(model: MixedCovariatesTorchModel) -> bool:
    """Tell whether a long series is cut into windows.

    That is where each window has its own scale, or a covariate is relative to the input
    chunk, from which it drifts away.
    """
    return bool(model.model.has_instance_scale or model.model.local_covariates)


def overlapping_windows(
    model: MixedCovariatesTorchModel, missing: np.ndarray
) -> list[Span]:
    """Return the windows of a series whose values (T, C) are missing, or are not.

    Where it is not cut, see :func:`is_by_window`, the series is one window.
    """
    num_steps, length = len(missing), chunk_lengths(model).window
    if not is_by_window(model) or num_steps <= length:
        return [Span(0, num_steps, 0, num_steps)]
    patch = model.model.patch_length
    # whole patches, so that those of all windows coincide
    margin, hop = (max(length // parts // patch, 1) * patch for parts in (4, 2))
    is_cut = _cut_gaps(missing, length)
    borders = {num_steps}
    # covariates that drift leave their range in a first window that is any longer
    least = length - margin - (hop - 1 if model.model.local_covariates else 0)
    for border in range(num_steps - margin - hop, least - 1, -hop):
        while border > 0 and is_cut[border]:
            border -= patch
        if border > 0:
            borders.add(border)
    spans, first = [], 0
    for last in sorted(borders):
        # at least as long as a training window, and its last patch is whole
        end = min(last + margin, num_steps)
        start = max(min(first - margin, end - length), 0)
        end += max(-(-(start + length - end) // patch), 0) * patch
        if model.model.has_instance_scale:
            start = _start_with_most_values(model, ~missing, start, first)
            start = _start_with_values(model, ~missing, start)
        spans.append(Span(start, min(end, num_steps), first, last))
        first = last
    return spans


def _cut_gaps(missing: np.ndarray, length: int) -> np.ndarray:
    """Tell before which steps a border would cut a gap, (T,).

    A gap of some components alone counts if it is no longer than a window: a component may
    be missing for as long as it likes.

    Parameters
    ----------
    missing
        Whether values are missing, (T, C).
    length
        Steps of a window.
    """
    is_cut = np.zeros(len(missing), dtype=bool)
    for in_gap, longest in ((missing.all(1), len(missing)), (missing.any(1), length)):
        edges = np.diff(in_gap.astype(int), prepend=0, append=0)
        starts, ends = (edges == 1).nonzero()[0], (edges == -1).nonzero()[0]
        for start, end in zip(starts, ends, strict=True):
            if end - start <= longest:
                is_cut[start + 1 : end] = True
    return is_cut


def stretches(model: MixedCovariatesTorchModel, missing: np.ndarray) -> list[Span]:
    """Return stretches of a series that are predicted one by one.

    Each has the input chunk before it, or the last one before that has values where the
    scale is taken from it. Where it is not, the first chunk is predicted with the first
    stretch.

    Parameters
    ----------
    model
        A fitted model that is asked by window.
    missing
        Whether values of the series are missing, (T, C).
    """
    num_steps, chunk = len(missing), model.input_chunk_length
    patch, first = model.model.patch_length, _after_input_chunk(model, num_steps)
    # whole patches, so that those of all stretches are on one grid
    length = max((chunk_lengths(model).window - chunk) // patch, 1) * patch
    spans = []
    if not model.model.has_instance_scale:
        end = min(first + length, num_steps)
        spans.append(Span(0, end, 0, end))
        first = end
    for start in range(first, num_steps, length):
        end, begin = min(start + length, num_steps), start - chunk
        if model.model.has_instance_scale:
            # only components that have values there need a scale
            needed = ~missing[:, ~missing[start:end].all(0)]
            begin = _start_with_values(model, needed, begin)
        spans.append(Span(begin, end, start, end))
    return spans


def _start_with_most_values(
    model: MixedCovariatesTorchModel, known: np.ndarray, start: int, first: int
) -> int:
    """Move the start of a window back until its input chunk has the most values it can.

    A scale of few values is a poor one. The earliest chunk is that which a forecast from
    the first answer would have.

    Parameters
    ----------
    model
        A fitted model.
    known
        Whether values of the series are known, (T, C).
    start
        The start of the window.
    first
        The first step whose answer counts.
    """
    length = model.input_chunk_length
    starts = np.arange(max(min(first - length, start), 0), start + 1)
    num_before = np.pad(known.sum(1).cumsum(), (1, 0))
    number = num_before[np.minimum(starts + length, len(known))] - num_before[starts]
    # the latest of those that have the most
    latest: int = starts[number == number.max()][-1]
    return latest


def _start_with_values(
    model: MixedCovariatesTorchModel, known: np.ndarray, start: int
) -> int:
    """Move the start of a window back until its input chunk has values to take a scale of.

    Parameters
    ----------
    model
        A fitted model.
    known
        Whether values of the series are known, (T, C).
    start
        The start of the window.
    """
    length = model.input_chunk_length
    known = known[: start + length]
    lacks = known.any(0) & ~known[start:].any(0)
    if not lacks.any():
        return start
    # the chunk ends with the last value of the component that lacks values for longest
    last = len(known) - 1 - int(known[::-1, lacks].argmax(0).max())
    # one component must not lead every window far back
    is_far = start + length - last > MAX_BACK * chunk_lengths(model).window
    return start if is_far and not lacks.all() else max(last + 1 - length, 0)


def nearest_values(
    model: MixedCovariatesTorchModel, target: np.ndarray, start: int
) -> np.ndarray:
    """Return values that tell the scale of components that a window begins without.

    They are the last chunk with a value before the window or, if there is none, the first
    one after. It begins at the same point of a season as the window does.

    Parameters
    ----------
    model
        A fitted model, whose windows have their own scale.
    target
        Values of the series, NaN where missing, (T, C).
    start
        The first step of the window.

    Returns
    -------
    numpy.ndarray
        Values of a chunk of each component, (I, C). NaN where the window begins with an
        input chunk that has a value, and where the component has none at all.
    """
    known, length = ~np.isnan(target), model.input_chunk_length
    season = max(model.model.local_pattern.season_length, 1)
    nearest = np.full((length, target.shape[1]), np.nan, dtype=target.dtype)
    for i in (~known[start : start + length].any(0)).nonzero()[0]:
        steps = known[:, i].nonzero()[0]
        if len(steps) == 0:
            continue
        before = steps[steps < start]
        if len(before) > 0:
            first = before[-1] + 1 - length
            first += (start - first) % season
        else:
            first = steps[0] - (steps[0] - start) % season
        chunk = np.arange(first, first + length)
        is_there = (chunk >= 0) & (chunk < len(target))
        nearest[is_there, i] = target[chunk[is_there], i]
    return nearest


def is_new(model: MixedCovariatesTorchModel, target: np.ndarray, span: Span) -> np.ndarray:
    """Tell which components begin less than half an input chunk before a stretch, (C,)."""
    latest = span.first - model.input_chunk_length // 2
    return np.isnan(target[: max(latest, 0) + 1]).all(0)


def predicted_values(model: MixedCovariatesTorchModel, sample: Sample) -> np.ndarray:
    """Tell which values of a series are predicted from those before them, (T, C).

    Where each window has its own scale, nothing is predicted of the first input chunk,
    which sets it, nor of a patch that it ends in; and nothing of a component that begins
    less than half a chunk before a stretch.
    """
    target = sample.past_target
    is_predicted: np.ndarray = ~np.isnan(target)
    if model.model.has_instance_scale:
        is_predicted[: _after_input_chunk(model, len(target))] = False
        for span in stretches(model, np.isnan(target)):
            is_predicted[span.first : span.last, is_new(model, target, span)] = False
    return is_predicted


def _after_input_chunk(model: MixedCovariatesTorchModel, num_steps: int) -> int:
    """Return the first step of the first patch after the first input chunk of a series."""
    patch = model.model.patch_length
    first: int = num_steps - (num_steps - model.input_chunk_length) // patch * patch
    return first


def check_is_predicted(model: MixedCovariatesTorchModel, samples: Sequence[Sample]) -> None:
    """Check that each series has values of which something is predicted."""
    for i, sample in enumerate(samples):
        check(
            bool(predicted_values(model, sample).any()),
            "`series` must have values after the first input chunk that has any, whose "
            "scale the model takes with `use_reversible_instance_norm`, got none (at "
            f"sequence index `{i}`)." + why_instance_scale(model),
        )


def is_as_in_training(model: MixedCovariatesTorchModel, sample: Sample) -> bool:
    """Tell whether a series is of the kind that the posterior was trained on.

    That is a complete one, about as long as a training window, and no longer where a
    covariate drifts away from its input chunk. What is missing at its end does not count.

    Parameters
    ----------
    model
        A fitted model.
    sample
        The series.
    """
    missing = np.isnan(sample.past_target)
    length = (~missing.all(1)).nonzero()[0].max(initial=-1) + 1
    shortest = chunk_lengths(model).window
    longest = shortest if model.model.local_covariates else MAX_WINDOWS * shortest
    about_as_long = shortest <= length <= longest
    return bool(about_as_long and not missing[:length].any())
