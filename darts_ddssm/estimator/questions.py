"""
Asking questions: samples to the Lightning module and answers back.

Letters as in :mod:`darts_ddssm.ssm`.
"""

import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from darts import TimeSeries
from darts.logging import raise_log
from darts.models.forecasting.torch_forecasting_model import MixedCovariatesTorchModel
from torch.utils.data import DataLoader

from darts_ddssm.estimator.sequences import (
    Sample,
    blank_series,
    collate,
    data_type,
    part_of,
    sample_of,
)
from darts_ddssm.estimator.spans import (
    Span,
    is_by_window,
    is_new,
    nearest_values,
    overlapping_windows,
    stretches,
)
from darts_ddssm.series.inference import FilteredStates, Question, TransitionDraws
from darts_ddssm.validation import check, check_positive_integer

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
        For each of the samples, what :func:`.nearest_values` returns. ``None`` where their
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


def ask_by_window(
    model: MixedCovariatesTorchModel,
    question: type[Question],
    samples: Sequence[Sample],
    every: int,
    num_samples: int,
    batch_size: int | None,
    verbose: bool | None,
) -> list[np.ndarray]:
    """Ask about whole series, or window by window, see :func:`.is_by_window`.

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
    spans = [overlapping_windows(model, np.isnan(sample.past_target)) for sample in samples]
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
            nearest_values(model, sample.past_target, span.start) for sample, span in each
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


def _without_new(
    model: MixedCovariatesTorchModel, part: Sample, sample: Sample, span: Span
) -> Sample:
    """Return the part of a sample in a stretch without the components that are new."""
    target = part.past_target.copy()
    target[:, is_new(model, sample.past_target, span)] = np.nan
    return replace(part, past_target=target)


def _counting(answer: np.ndarray, span: Span, every: int) -> np.ndarray:
    """Take those steps of an answer (S, M, ...) about a span that count."""
    # the last steps of patches, from the end of the span
    steps = np.arange(span.end - 1 - every * (answer.shape[1] - 1), span.end, every)
    return answer[:, (span.first <= steps) & (steps < span.last)]


def ask_predicted(
    model: MixedCovariatesTorchModel,
    question: type[Question],
    samples: Sequence[Sample],
    every: int,
    num_samples: int,
    batch_size: int | None,
    verbose: bool | None,
) -> list[np.ndarray]:
    """Ask what was predicted of each value that is, see :func:`.predicted_values`.

    Where a long series is cut, see :func:`.is_by_window`, it is predicted in stretches,
    each given the input chunk before it.

    Parameters
    ----------
    model, question, samples, every, num_samples, batch_size, verbose
        As for :func:`ask_by_window`.
    """
    how = num_samples, batch_size, verbose
    if not is_by_window(model):
        return ask(model, question, samples, *how)
    spans = [stretches(model, np.isnan(sample.past_target)) for sample in samples]
    return _ask_of_spans(model, question, samples, spans, every, *how, predicts=True)


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
