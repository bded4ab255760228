"""
Asking questions: samples to the Lightning module and answers back.

Letters as in :mod:`darts_ddssm.ssm`.
"""

import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from darts import TimeSeries
from darts.logging import raise_log
from darts.models.forecasting.torch_forecasting_model import MixedCovariatesTorchModel
from darts.utils.data.torch_datasets.utils import TorchInferenceSample
from torch.utils.data import DataLoader

from darts_ddssm.estimator.data_checks import chunk_lengths, why_instance_scale
from darts_ddssm.estimator.sequences import (
    STEPS,
    Sample,
    blank_series,
    collate,
    data_type,
    sample_of,
)
from darts_ddssm.series.inference import FilteredStates, Question, TransitionDraws
from darts_ddssm.validation import check, check_positive_integer

# Number of training windows up to which a series counts as about as long as one.
MAX_WINDOWS = 2

# The most training windows that a window is led back for a scale of a few components.
MAX_BACK = 4

# The most steps of all series of a batch, to bound the memory.
MAX_STEPS = 2**15


def _batches(samples: Sequence[Sample], batch_size: int) -> Iterator[list[int]]:
    """Yield the places of at most ``batch_size`` samples of one length.

    There are fewer where they are long.
    """
    by_length: dict[int, list[int]] = {}
    for i, sample in enumerate(samples):
        by_length.setdefault(len(sample.past_target), []).append(i)
    for length, places in by_length.items():
        size = max(min(batch_size, MAX_STEPS // length), 1)
        for start in range(0, len(places), size):
            yield places[start : start + size]


def ask(
    model: MixedCovariatesTorchModel,
    question: type[Question],
    samples: Sequence[Sample],
    num_samples: int,
    batch_size: int | None,
    verbose: bool | None,
    nearest: Sequence[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Ask a question about each of the samples and return the answers in their order.

    Parameters
    ----------
    model
        A fitted model.
    question
        The kind of question.
    samples
        Series with their covariates.
    num_samples, batch_size, verbose
        Arguments of the method that asks.
    nearest
        For each of the samples, what :func:`_nearest_values` returns. ``None`` where their
        scale needs none.
    """
    if batch_size is not None:
        check_positive_integer("batch_size", batch_size)
    batches = list(_batches(samples, batch_size or model.batch_size))
    questions = [
        question(
            collate([samples[i] for i in places]),
            num_samples,
            model.num_solver_steps,
            nearest=None
            if nearest is None
            else torch.from_numpy(np.stack([nearest[i] for i in places])),
        )
        for places in batches
    ]
    found: list[np.ndarray] = [np.empty(0)] * len(samples)
    for places, answer in zip(batches, answers(model, questions, verbose), strict=True):
        # (S, B, ...) -> B of (S, ...); (B,) -> B of ()
        for i, one in zip(
            places, np.moveaxis(answer, min(1, answer.ndim - 1), 0), strict=True
        ):
            found[i] = one
    return found


def answers(
    model: MixedCovariatesTorchModel, questions: Sequence[Question], verbose: bool | None
) -> list[np.ndarray]:
    """Let the Lightning module answer on the trainer's device, as it forecasts."""
    model.trainer = model._setup_trainer(None, model.model, verbose, model.n_epochs)
    # a list will do for a dataset
    loader: DataLoader = DataLoader(list(questions), batch_size=None)  # type: ignore[arg-type]
    found = model.trainer.predict(model.model, loader)
    # numpy knows no bfloat16
    found = [x.float() if x.dtype == torch.bfloat16 else x for x in found]
    return [x.cpu().numpy() for x in found]


def ask_filtered(
    model: MixedCovariatesTorchModel,
    samples: Sequence[Sample],
    num_samples: int,
    batch_size: int | None,
    verbose: bool | None,
) -> list[np.ndarray]:
    """Return states given the past of each step, (S, T, D) for each sample.

    The past is the input chunk that a forecast from that step has.

    Parameters
    ----------
    model, samples, num_samples, batch_size, verbose
        As for :func:`ask`.
    """
    length = model.input_chunk_length
    pasts = [
        part_of(sample, slice(max(end - length, 0), end))
        for sample in samples
        for end in range(1, len(sample.past_target) + 1)
    ]
    states = ask(model, FilteredStates, pasts, num_samples, batch_size, verbose)
    ends = np.cumsum([len(sample.past_target) for sample in samples])[:-1]
    # T of (S, D) for each sample -> (S, T, D)
    return [z.swapaxes(0, 1) for z in np.split(np.stack(states), ends)]


def is_by_window(model: MixedCovariatesTorchModel) -> bool:
    """Tell whether a long series is cut into windows.

    That is where each window has its own scale, or a covariate is relative to the input
    chunk, from which it drifts away.
    """
    return bool(model.model.has_instance_scale or model.model.local_covariates)


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


def ask_by_window(
    model: MixedCovariatesTorchModel,
    question: type[Question],
    samples: Sequence[Sample],
    every: int,
    num_samples: int,
    batch_size: int | None,
    verbose: bool | None,
) -> list[np.ndarray]:
    """Ask about whole series, or window by window, see :func:`is_by_window`.

    The windows overlap by half. Each step has its answer from the window in whose middle
    it is, and the steps of a gap have theirs from one window, which is longer where the gap
    is long: its samples are joint.

    Parameters
    ----------
    model, question, samples, num_samples, batch_size, verbose
        As for :func:`ask`. The answers are (S, B, T, ...).
    every
        Number of time steps per step of an answer; the last of them ends with the series.
    """
    how = num_samples, batch_size, verbose
    spans = [_windows(model, np.isnan(sample.past_target)) for sample in samples]
    return _ask_of_spans(model, question, samples, spans, every, *how)


def _ask_of_spans(
    model: MixedCovariatesTorchModel,
    question: type[Question],
    samples: Sequence[Sample],
    spans: Sequence[Sequence[Span]],
    every: int,
    num_samples: int,
    batch_size: int | None,
    verbose: bool | None,
    predicts: bool = False,
) -> list[np.ndarray]:
    """Ask about spans of each sample, all at once, and join the answers that count.

    If they are predicted, components whose scale is hardly known yet are missing.
    """
    each = [
        (sample, span)
        for sample, of_sample in zip(samples, spans, strict=True)
        for span in of_sample
    ]
    parts = [part_of(sample, slice(span.start, span.end)) for sample, span in each]
    nearest = None
    if model.model.has_instance_scale:
        nearest = [
            _nearest_values(model, sample.past_target, span.start) for sample, span in each
        ]
        if predicts:
            parts = [
                _without_new(model, part, sample, span)
                for part, (sample, span) in zip(parts, each, strict=True)
            ]
    how = num_samples, batch_size, verbose
    found = iter(ask(model, question, parts, *how, nearest))
    return [
        np.concatenate([_counting(next(found), span, every) for span in of_sample], axis=1)
        for of_sample in spans
    ]


def _nearest_values(
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


def _is_new(model: MixedCovariatesTorchModel, target: np.ndarray, span: Span) -> np.ndarray:
    """Tell which components begin less than half an input chunk before a stretch, (C,)."""
    latest = span.first - model.input_chunk_length // 2
    return np.isnan(target[: max(latest, 0) + 1]).all(0)


def _without_new(
    model: MixedCovariatesTorchModel, part: Sample, sample: Sample, span: Span
) -> Sample:
    """Return the part of a sample in a stretch without the components that are new."""
    target = part.past_target.copy()
    target[:, _is_new(model, sample.past_target, span)] = np.nan
    return replace(part, past_target=target)


def _counting(answer: np.ndarray, span: Span, every: int) -> np.ndarray:
    """Take those steps of an answer (S, M, ...) about a span that count."""
    # the last steps of patches, from the end of the span
    steps = np.arange(span.end - 1 - every * (answer.shape[1] - 1), span.end, every)
    return answer[:, (span.first <= steps) & (steps < span.last)]


def _windows(model: MixedCovariatesTorchModel, missing: np.ndarray) -> list[Span]:
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


def ask_predicted(
    model: MixedCovariatesTorchModel,
    question: type[Question],
    samples: Sequence[Sample],
    every: int,
    num_samples: int,
    batch_size: int | None,
    verbose: bool | None,
) -> list[np.ndarray]:
    """Ask what was predicted of each value that is, see :func:`predicted_values`.

    Where a long series is cut, see :func:`is_by_window`, it is predicted in stretches, each
    given the input chunk before it.

    Parameters
    ----------
    model, question, samples, every, num_samples, batch_size, verbose
        As for :func:`ask_by_window`.
    """
    how = num_samples, batch_size, verbose
    if not is_by_window(model):
        return ask(model, question, samples, *how)
    spans = [_stretches(model, np.isnan(sample.past_target)) for sample in samples]
    return _ask_of_spans(model, question, samples, spans, every, *how, predicts=True)


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
        for span in _stretches(model, np.isnan(target)):
            is_predicted[span.first : span.last, _is_new(model, target, span)] = False
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


def _stretches(model: MixedCovariatesTorchModel, missing: np.ndarray) -> list[Span]:
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


def part_of(sample: Sample, steps: slice) -> Sample:
    """Return some of the time steps of a sample."""
    kept = {name: getattr(sample, name) for name in STEPS}
    parts = {name: None if x is None else x[steps] for name, x in kept.items()}
    return TorchInferenceSample(**parts, static_covariates=sample.static_covariates)


def histories_of(
    model: MixedCovariatesTorchModel, state: np.ndarray | TimeSeries
) -> tuple[np.ndarray, bool]:
    """Return states as histories (N, T, D), and whether several were given.

    Parameters
    ----------
    model
        A fitted model.
    state
        States (D,), (T, D) or (N, T, D), or a series of states, each of whose samples is a
        history.

    Raises
    ------
    ValueError
        If ``state`` is not finite or of another shape.
    """
    if isinstance(state, TimeSeries):
        # (T, D, N) -> (N, T, D)
        state = state.all_values(copy=False).transpose(2, 0, 1)
    try:
        states = np.asarray(state, dtype=data_type(model))
    except (TypeError, ValueError):
        raise_log(ValueError(f"`state` must be numbers, got `{reprlib.repr(state)}`."))
    dim = model.model.ssm.latent_dim
    check(
        1 <= states.ndim <= 3 and states.shape[-1:] == (dim,) and states.size > 0,
        f"`state` must have shape `({dim},)`, `(T, {dim})` or `(N, T, {dim})`, got "
        f"`{states.shape}`.",
    )
    check(bool(np.isfinite(states).all()), "`state` must be finite.")
    # (D,), (T, D) or (N, T, D) -> (N, T, D)
    return states.reshape((-1, *np.atleast_2d(states).shape[-2:])), states.ndim == 3


def transition_question(
    model: MixedCovariatesTorchModel,
    histories: np.ndarray,
    num_samples: int,
    past_covariates: TimeSeries | None,
    future_covariates: TimeSeries | None,
    static_covariates: pd.DataFrame | None,
) -> TransitionDraws:
    """Return the question which states follow some histories.

    Parameters
    ----------
    model
        A fitted model.
    histories
        States, oldest first, (N, T, D).
    num_samples
        Number S of draws from each history.
    past_covariates, future_covariates, static_covariates
        Arguments of the method that asks.
    """
    patch, num_before = model.model.patch_length, 0
    if model.model.local_covariates:
        # which are seen relative to the input chunk before the step that is drawn
        num_before = model.input_chunk_length
        histories = histories[:, -(num_before // patch) :]
    # of the given states, and of the one that follows too
    num_given = histories.shape[1] * patch
    num_steps, num_before = num_given + patch, max(num_given, num_before)
    times = None
    if future_covariates is not None:
        times = future_covariates[-(num_before + patch) :]
        if past_covariates is not None:
            # as far back as both are known
            is_known = times.time_index.isin(past_covariates.time_index)
            times = times[max(min(is_known.argmax(), len(times) - num_steps), 0) :]
        num_steps = max(num_steps, len(times))
    elif past_covariates is not None:
        check(
            len(past_covariates) >= num_given,
            f"`past_covariates` must cover the {num_given} steps of the given states, got "
            f"{len(past_covariates)}.",
        )
        times = past_covariates[-num_before:]
        num_steps = len(times) + patch
    sample = sample_of(
        model,
        "sample_transition",
        blank_series(model, num_steps, times, static_covariates),
        past_covariates,
        future_covariates,
        ("past_covariates", "historic_future_covariates", "static_covariates"),
        # without covariates, the state is at no time
        encode=times is not None,
    )
    batch = collate([sample] * len(histories))
    states = torch.from_numpy(histories)
    return TransitionDraws(batch, num_samples, model.num_solver_steps, states)
