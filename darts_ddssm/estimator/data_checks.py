"""
What a model, series and covariates must be, so that nothing becomes NaN later.
"""

import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from darts import TimeSeries
from darts.logging import raise_log
from darts.models.forecasting.torch_forecasting_model import MixedCovariatesTorchModel
from darts.utils.data import ShiftedTorchTrainingDataset, TorchTrainingDataset
from darts.utils.ts_utils import series2seq

from darts_ddssm.estimator.windows import ChunkLengths
from darts_ddssm.series.likelihoods import in_support
from darts_ddssm.validation import check, check_bool, check_positive_number


def max_input(dtype: np.dtype) -> float:
    """Largest size of a value for the networks: they square what they make of it.

    Parameters
    ----------
    dtype
        Type of the data. Of 16 bits, it has the range of float32 in the model.
    """
    return float(np.finfo(np.result_type(dtype, np.float32)).max) ** 0.4


def check_data(
    model: MixedCovariatesTorchModel,
    series: Sequence[TimeSeries],
    past_covariates: Sequence[TimeSeries] | None,
    future_covariates: Sequence[TimeSeries] | None,
) -> None:
    """Refuse infinities, extremes, and values outside the support of the likelihood.

    Parameters
    ----------
    model
        The model that is to use the data, fitted or not.
    series, past_covariates, future_covariates
        The data.

    Raises
    ------
    ValueError
        If a series is refused or has no observed value.
    """
    _check_static_covariates(model, series)
    for i, one in enumerate(series):
        values = one.all_values(copy=False)
        _check_finite("series", i, values)
        _check_target_range(model, i, values)
        if model.uses_static_covariates and one.has_static_covariates:
            # darts refuses those that are no numbers
            numbers = one.static_covariates.select_dtypes("number")
            check_range("static_covariates", i, numbers.to_numpy(one.dtype))
        check(
            not np.isnan(values).all(),
            "`series` must have observed values, got a series of missing values only (at "
            f"sequence index `{i}`).",
        )
        # (T, C, samples) -> (T * samples, C)
        rows = values.swapaxes(1, 2).reshape(-1, one.n_components)
        outside = ~in_support(model.likelihood, torch.tensor(rows)).numpy()
        if outside.any():
            raise_log(
                ValueError(
                    f"`series` must lie in the support of `{model.likelihood}`, got "
                    f"`{rows[outside][0]}` (at sequence index `{i}`)."
                )
            )
    for name, sequence in (
        ("past_covariates", past_covariates),
        ("future_covariates", future_covariates),
    ):
        for i, one in enumerate(sequence or []):
            check_range(name, i, one.all_values(copy=False))


def check_series(name: str, value: Any) -> None:
    """Refuse what is neither a series nor a sequence of at least one.

    Parameters
    ----------
    name
        Name of the argument.
    value
        What was given.
    """
    several = isinstance(value, Sequence) and not isinstance(value, str)
    given = value if several else [value]
    wrong = [one for one in given if not isinstance(one, TimeSeries)]
    if wrong or len(given) == 0:
        got = reprlib.repr(wrong[0] if wrong else value)
        raise_log(
            ValueError(
                f"`{name}` must be a `TimeSeries` or a sequence of at least one, got "
                f"`{got}`."
            )
        )


def check_covariates(
    past_covariates: TimeSeries | None, future_covariates: TimeSeries | None
) -> None:
    """Refuse covariates of one series that are no series."""
    for name, value in (
        ("past_covariates", past_covariates),
        ("future_covariates", future_covariates),
    ):
        if value is not None and not isinstance(value, TimeSeries):
            got = reprlib.repr(value)
            raise_log(
                ValueError(f"`{name}` must be a `TimeSeries` or `None`, got `{got}`.")
            )


def check_one_for_each(
    name: str, covariates: Sequence[TimeSeries] | None, series: Sequence[TimeSeries]
) -> None:
    """Refuse covariates of another number than that of the series."""
    check(
        covariates is None or len(covariates) == len(series),
        f"`{name}` must have one series for each of `series`.",
    )


def check_weights(name: str, weights: Any) -> None:
    """Refuse sample weights that are not finite; those by name are."""
    if weights is None or isinstance(weights, str):
        return
    check_series(name, weights)
    for i, one in enumerate(series2seq(weights)):
        values = one.all_values(copy=False)
        outside = values[~np.isfinite(values)]
        if len(outside) > 0:
            raise_log(
                ValueError(
                    f"`{name}` must be finite, got `{outside[0]}` (at sequence index "
                    f"`{i}`)."
                )
            )


def check_training_set(
    model: MixedCovariatesTorchModel, name: str, dataset: TorchTrainingDataset
) -> None:
    """Refuse a dataset of other chunks than the model's, or of data that it cannot use.

    Parameters
    ----------
    model
        The model that is to be trained.
    name
        Name of the argument.
    dataset
        The dataset. Only the series of darts' own datasets are checked. The chunks of an
        empty one are left to darts, and one of a model that needs no training has input
        chunks alone.
    """
    if isinstance(dataset, ShiftedTorchTrainingDataset):
        known = dataset.past_covariates, dataset.future_covariates
        _check_one_type(name, [dataset.series, *known])
        check_data(model, dataset.series, *known)
        check_weights("sample_weight", dataset.sample_weight)
    if len(dataset) == 0 or not model._requires_training:
        return
    sample = dataset[0]
    # (I, C) and (n, C)
    found = {
        "input_chunk_length": len(sample.past_target),
        "output_chunk_length": len(sample.future_target),
    }
    if isinstance(dataset, ShiftedTorchTrainingDataset):
        # from the start of the input chunk
        found["output_chunk_shift"] = dataset.shift - found["input_chunk_length"]
    for length, got in found.items():
        own = getattr(model, length)
        check(got == own, f"`{name}` must have the model's `{length}`, {own}, got {got}.")


def _check_one_type(name: str, given: Sequence[Sequence[TimeSeries] | None]) -> None:
    """Refuse series with values of several types, which have no common batch."""
    types = sorted({str(one.dtype) for sequence in given for one in sequence or []})
    check(
        len(types) <= 1,
        f"`{name}` must have values of one type, got `{'`, `'.join(types)}`.",
    )


def training_series(dataset: TorchTrainingDataset) -> Sequence[TimeSeries]:
    """Return the series that a training dataset cuts into windows, none where unknown.

    Only darts' own datasets are asked: what is called ``series`` in a dataset of the user's
    may be anything.
    """
    if isinstance(dataset, ShiftedTorchTrainingDataset):
        return dataset.series
    return []


def check_future_covariates(
    series: Sequence[TimeSeries], future_covariates: Sequence[TimeSeries], num_steps: int
) -> None:
    """Refuse future covariates that end less than so many steps after their series."""
    for i, (one, covariates) in enumerate(zip(series, future_covariates, strict=True)):
        if covariates.freq != one.freq:
            # darts refuses it
            continue
        last = one.end_time() + num_steps * one.freq
        check(
            covariates.end_time() >= last,
            f"`future_covariates` must extend {num_steps} steps beyond `series`, the "
            f"greater of `n` and `output_chunk_length`, to {last}, got "
            f"{covariates.end_time()} (at sequence index `{i}`).",
        )


def check_instance_norm(value: Any) -> None:
    """Refuse what is no value of `use_reversible_instance_norm`."""
    name, allowed = "use_reversible_instance_norm", {"affine", "eps"}
    kinds = f"`True`, `False`, `None` or a dictionary of {sorted(allowed)}"
    is_valid = value is None or isinstance(value, bool)
    if isinstance(value, dict):
        # an empty one would be as good as `False`
        is_valid = len(value) > 0 and set(value) <= allowed
    check(is_valid, f"`{name}` must be {kinds}, got `{value!r}`.")
    if isinstance(value, dict):
        check_bool(f'{name}["affine"]', value.get("affine", True))
        check_positive_number(f'{name}["eps"]', value.get("eps", 1.0), or_zero=True)


def check_range(name: str, i: int, values: np.ndarray) -> None:
    """Refuse infinities, and covariates that are too large for the networks.

    Parameters
    ----------
    name
        Name of the argument.
    i
        Place of the series in its sequence.
    values
        Values of any shape.
    """
    _check_finite(name, i, values)
    _check_distance(name, i, values, values, "of zero")


def _check_static_covariates(
    model: MixedCovariatesTorchModel, series: Sequence[TimeSeries]
) -> None:
    """Refuse series of which some have static covariates and others have not."""
    has_some = [one.has_static_covariates for one in series]
    # what it uses is known by its first training
    is_fitted = model.model is not None
    uses = model.uses_static_covariates if is_fitted else model.considers_static_covariates
    if uses and any(has_some) and not all(has_some):
        raise_log(
            ValueError(
                "`series` must have static covariates, all or none of them, got none (at "
                f"sequence index `{has_some.index(False)}`)."
            )
        )


def _check_finite(name: str, i: int, values: np.ndarray) -> None:
    check(
        not np.isinf(values).any(),
        f"`{name}` must be finite or NaN (missing), got infinite values (at sequence index "
        f"`{i}`).",
    )


def _check_target_range(
    model: MixedCovariatesTorchModel, i: int, values: np.ndarray
) -> None:
    """Refuse a target (T, C, samples) that is far outside the scale of the training set."""
    module = model.model
    if module is None or values.shape[1] != len(module.target_shift):
        return
    # in double precision, as it might overflow
    shift, spread = (
        x.cpu().double().numpy()[:, None]
        for x in (module.target_shift, module.target_spread)
    )
    origin = "standard deviations of the training mean"
    _check_distance("series", i, values, (values - shift) / spread, origin)


def _check_distance(
    name: str, i: int, values: np.ndarray, distance: np.ndarray, origin: str
) -> None:
    limit = max_input(values.dtype)
    # in half precision the limit would be infinite
    too_far = np.abs(distance) > np.float64(limit)
    if too_far.any():
        raise_log(
            ValueError(
                f"`{name}` must be within {limit:.0e} {origin}, got "
                f"`{values[too_far][0]}` (at sequence index `{i}`)."
            )
        )


def chunk_lengths(model: MixedCovariatesTorchModel) -> ChunkLengths:
    """Return the steps of the parts of a training window."""
    return ChunkLengths(
        model.input_chunk_length, model.output_chunk_shift, model.output_chunk_length
    )


def check_trained(model: MixedCovariatesTorchModel) -> None:
    """Refuse a model that was fitted and has lost its weights."""
    check(
        not model._fit_called or model.model is not None,
        "The model must be trained: its training ended before the first update. Call "
        "`fit()` again, or load a checkpoint (`load_from_checkpoint()`) or a saved model "
        "(`load()`).",
    )


def check_fitted(model: MixedCovariatesTorchModel, method: str) -> None:
    """Raise a `ValueError` that names a method which needs a fitted model."""
    check(model._fit_called, f"The model must be fitted before calling `{method}()`.")
    check_trained(model)


def why_instance_scale(model: MixedCovariatesTorchModel) -> str:
    """Say that the model has decided for instance normalisation, if it has."""
    if not model.model.decides_scale:
        return ""
    return (
        " It was switched on automatically, since the training series drift or differ in "
        "scale: pass `use_reversible_instance_norm=False` to the model to switch it off."
    )


def check_training_scale(model: MixedCovariatesTorchModel, method: str) -> None:
    """Refuse a method that needs a scale where there is no given window to take it from."""
    check_fitted(model, method)
    check(
        not model.model.has_instance_scale,
        f"`{method}()` must be called on a model without `use_reversible_instance_norm`: "
        "with it, the scale is that of a given input chunk." + why_instance_scale(model),
    )
