"""
Whole series as samples, with their covariates.

darts' datasets cut series into chunks. Here a series is one sample as it is, with its
covariates at its own time steps.

Letters as in :mod:`darts_ddssm.ssm`.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from darts import TimeSeries
from darts.models.forecasting.torch_forecasting_model import MixedCovariatesTorchModel
from darts.utils.data.torch_datasets.utils import (
    TorchInferenceBatch,
    TorchInferenceSample,
)
from darts.utils.ts_utils import SeriesType, get_series_seq_type, series2seq
from darts.utils.utils import generate_index, n_steps_between

from darts_ddssm.estimator.data_checks import (
    check_data,
    check_fitted,
    check_one_for_each,
    check_range,
    check_series,
    chunk_lengths,
)
from darts_ddssm.estimator.windows import on_index
from darts_ddssm.validation import check

Series: TypeAlias = TimeSeries | Sequence[TimeSeries]
Sample: TypeAlias = TorchInferenceSample

# The parts of a sample that have time steps, and all of its parts.
STEPS = ("past_target", "past_covariates", "historic_future_covariates")
SLOTS = (*STEPS, "static_covariates")

# Which part of a sample an argument becomes.
SLOT_OF = {
    "past_covariates": "past_covariates",
    "future_covariates": "historic_future_covariates",
}


def prolonged(series: TimeSeries, num_steps: int) -> TimeSeries:
    """Append unknown values to a series."""
    shape = (num_steps, series.n_components, series.n_samples)
    return series.append_values(np.full(shape, np.nan, dtype=series.dtype))


def of_type(sequence: Sequence[TimeSeries], dtype: np.dtype) -> list[TimeSeries]:
    """Return series with their values, and static covariates, in a type."""
    return [one if one.dtype == dtype else one.astype(dtype) for one in sequence]


def known_until(
    covariates: TimeSeries, series: TimeSeries, required: int, wanted: int
) -> TimeSeries:
    """Append unknown values to covariates that end between two steps after a series.

    Parameters
    ----------
    covariates
        Future covariates. Those of another frequency, which darts refuses, are returned as
        they are.
    series
        The series that is to be forecast.
    required
        Number of steps after the series that covariates must have. Those that end before
        are returned as they are.
    wanted
        Number of steps that they have in the end, or more.
    """
    if covariates.freq != series.freq:
        return covariates
    num_after = n_steps_between(covariates.end_time(), series.end_time(), series.freq)
    if required <= num_after < wanted:
        return prolonged(covariates, wanted - num_after)
    return covariates


def collate(samples: Sequence[Sample]) -> TorchInferenceBatch:
    """Join samples of one length."""

    def join(name: str) -> torch.Tensor | None:
        parts = [getattr(sample, name) for sample in samples]
        return None if parts[0] is None else torch.from_numpy(np.stack(parts))

    return TorchInferenceBatch(**{name: join(name) for name in SLOTS})


def data_type(model: MixedCovariatesTorchModel) -> np.dtype:
    """Return the type of the data that a model was trained on."""
    return model.train_sample.past_target.dtype


def in_one_type(
    dtype: np.dtype,
    series: Sequence[TimeSeries],
    past_covariates: Sequence[TimeSeries] | None,
    future_covariates: Sequence[TimeSeries] | None,
) -> tuple[Sequence[TimeSeries], Sequence[TimeSeries] | None, Sequence[TimeSeries] | None]:
    """Return series and their covariates, as many of each, with values in one type."""
    check_one_for_each("past_covariates", past_covariates, series)
    check_one_for_each("future_covariates", future_covariates, series)
    return (
        of_type(series, dtype),
        past_covariates and of_type(past_covariates, dtype),
        future_covariates and of_type(future_covariates, dtype),
    )


def whole_series(
    model: MixedCovariatesTorchModel,
    method: str,
    series: Series | None,
    past_covariates: Series | None,
    future_covariates: Series | None,
) -> tuple[Sequence[TimeSeries], list[Sample], bool]:
    """Return whole series, their samples, and whether there was but one.

    Parameters
    ----------
    model
        A fitted model.
    method
        Name of the method that asks, for messages.
    series, past_covariates, future_covariates
        Arguments of the method. ``None`` for the training series.
    """
    check_fitted(model, method)
    for name, value in (
        ("series", series),
        ("past_covariates", past_covariates),
        ("future_covariates", future_covariates),
    ):
        if value is not None:
            check_series(name, value)
    if series is None:
        check(
            model.training_series is not None,
            f"`series` must be given to `{method}()`, since the model was fitted to "
            "several series or does not hold them.",
        )
        series = model.training_series
        past_covariates = past_covariates or model.past_covariate_series
        future_covariates = future_covariates or model.future_covariate_series
    single = get_series_seq_type(series) == SeriesType.SINGLE
    sequence, past, future = (
        series2seq(one) for one in (series, past_covariates, future_covariates)
    )
    for i, one in enumerate(sequence):
        check(
            one.n_samples == 1,
            f"`series` must have one sample, got {one.n_samples} (at sequence index "
            f"`{i}`).",
        )
        check(
            len(one) >= model.input_chunk_length,
            "`series` must have at least `input_chunk_length`, "
            f"{model.input_chunk_length}, steps, got {len(one)} (at sequence index `{i}`).",
        )
    targets, past, future = in_one_type(data_type(model), sequence, past, future)
    check_data(model, targets, past, future)
    samples = [
        sample_of(model, method, one, past and past[i], future and future[i])
        for i, one in enumerate(targets)
    ]
    return sequence, samples, single


def sample_of(
    model: MixedCovariatesTorchModel,
    method: str,
    series: TimeSeries,
    past_covariates: TimeSeries | None,
    future_covariates: TimeSeries | None,
    optional: Sequence[str] = (),
    encode: bool = True,
) -> Sample:
    """Return a whole series with its covariates, as darts' datasets give a chunk.

    Parameters
    ----------
    model
        A fitted model.
    method
        Name of the method that asks, for messages.
    series, past_covariates, future_covariates
        One series with its covariates.
    optional
        Names of parts of the sample that are unknown if they are not given.
    encode
        Whether the covariates of ``add_encoders`` are added.
    """
    if encode and model.encoders is not None and model.encoders.encoding_available:
        # those of the whole series, as the start of a forecast would need them; darts
        # asks for the steps of a training window at least. They are added at the start:
        # positions are counted from the end.
        missing = max(chunk_lengths(model).window - len(series), 0)
        blank = np.full((missing, series.n_components), np.nan, dtype=series.dtype)
        long = series.prepend_values(blank)
        past_covariates = _with_unknown(
            model, method, "past_covariates", past_covariates, long, optional
        )
        future_covariates = _with_unknown(
            model, method, "future_covariates", future_covariates, long, optional
        )
        past, future = model.generate_fit_predict_encodings(
            model.output_chunk_length,
            [long],
            past_covariates and [past_covariates],
            future_covariates and [future_covariates],
        )
        past_covariates = past and past[0]
        future_covariates = future and future[0]
    # in the type of the model, where large values may be infinite
    past_covariates, future_covariates = (
        one and of_type([one], data_type(model))[0]
        for one in (past_covariates, future_covariates)
    )
    index = series.time_index
    parts = {"past_target": series.values(copy=False)}
    for name, covariates in (
        ("past_covariates", past_covariates),
        ("future_covariates", future_covariates),
    ):
        if covariates is None:
            continue
        check(
            covariates.freq == series.freq,
            f"`{name}` must have the frequency of `series`, got `{covariates.freq}` beside "
            f"`{series.freq}`.",
        )
        # past covariates may end before the series
        needed = index if name == "future_covariates" else index[:1]
        check(
            needed.isin(covariates.time_index).all(),
            f"`{name}` must cover `series` from {needed[0]} to {needed[-1]} in "
            f"`{method}()`, got {covariates.start_time()} to {covariates.end_time()}.",
        )
        parts[SLOT_OF[name]] = on_index(covariates, index)
        check_range(name, 0, parts[SLOT_OF[name]])
    if model.uses_static_covariates and series.static_covariates is not None:
        static = series.static_covariates_values(copy=False)
        check_range("static_covariates", 0, static)
        parts["static_covariates"] = static
    for slot in optional:
        trained = getattr(model.train_sample, slot)
        if trained is not None and slot not in parts:
            parts[slot] = np.full((len(index), trained.shape[1]), np.nan)
            if slot == "static_covariates":
                parts[slot] = np.full_like(trained, np.nan)
    parts = {name: values.astype(data_type(model)) for name, values in parts.items()}
    # darts looks for the part of the future covariates that lies ahead
    sample = TorchInferenceSample(
        **parts, future_covariates=parts.get("historic_future_covariates")
    )
    # darts' own check of what is there and of how many components it has
    model._validate_predict_ds_output(model.train_sample, sample)
    return sample


def _with_unknown(
    model: MixedCovariatesTorchModel,
    method: str,
    name: str,
    covariates: TimeSeries | None,
    series: TimeSeries,
    optional: Sequence[str],
) -> TimeSeries | None:
    """Return covariates of the user's, all missing where optional ones are not given.

    darts' transformer of encodings looks for those of training beside them.

    Parameters
    ----------
    model
        A fitted model that has encoders.
    method, optional
        As for :func:`sample_of`.
    name
        Name of the covariates.
    covariates
        What was given.
    series
        The series. The result reaches as far beyond its end as darts may ask for.

    Returns
    -------
    TimeSeries or None
        None if there were no such covariates in training.
    """
    slot = SLOT_OF[name]
    trained = getattr(model.train_sample, slot)
    width = 0 if trained is None else trained.shape[1]
    # `past_components` of the encoders, or `future_components`
    width -= len(getattr(model.encoders, name.replace("covariates", "components")))
    if width == 0 or covariates is not None:
        return covariates
    check(
        slot in optional,
        f"`{name}` must be given to `{method}()`, as in training, got `None`.",
    )
    num_steps = len(series) + model.output_chunk_shift + model.output_chunk_length
    index = generate_index(series.start_time(), length=num_steps, freq=series.freq)
    return TimeSeries(times=index, values=np.full((num_steps, width, 1), np.nan))


def blank_series(
    model: MixedCovariatesTorchModel,
    num_steps: int,
    covariates: TimeSeries | None,
    static_covariates: pd.DataFrame | None,
) -> TimeSeries:
    """Return a series of missing values like those of training.

    Parameters
    ----------
    model
        A fitted model.
    num_steps
        Number of steps.
    covariates
        The series starts with them, or if there are none with the training series.
    static_covariates
        Its static covariates, or None for those of the training series if there was one,
        as the metadata are.
    """
    size = model.train_sample.past_target.shape[1]
    example = model._example
    if example is None:
        blank = np.empty((1, size), dtype=data_type(model))
        example = TimeSeries.from_values(blank)
    times = example if covariates is None else covariates
    freq = times.freq if model._example is None else example.freq
    index = generate_index(times.start_time(), length=num_steps, freq=freq)
    metadata = None
    if model.training_series is not None:
        # what is said of one of several series does not hold for a new one
        metadata = example.metadata
        if static_covariates is None:
            static_covariates = example.static_covariates
    return TimeSeries(
        times=index,
        values=np.full((num_steps, size, 1), np.nan, dtype=data_type(model)),
        components=example.components,
        static_covariates=static_covariates,
        hierarchy=example.hierarchy,
        metadata=metadata,
    )


def part_of(sample: Sample, steps: slice) -> Sample:
    """Return some of the time steps of a sample."""
    kept = {name: getattr(sample, name) for name in STEPS}
    parts = {name: None if x is None else x[steps] for name, x in kept.items()}
    return TorchInferenceSample(**parts, static_covariates=sample.static_covariates)
