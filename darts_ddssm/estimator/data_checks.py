"""
What a model, series and covariates must be, so that nothing becomes NaN later.
"""

from collections.abc import Sequence

import numpy as np
import torch
from darts import TimeSeries
from darts.logging import raise_log
from darts.models.forecasting.torch_forecasting_model import MixedCovariatesTorchModel

from darts_ddssm.series.likelihoods import in_support
from darts_ddssm.validation import check


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
    too_far = np.abs(distance) > limit
    if too_far.any():
        raise_log(
            ValueError(
                f"`{name}` must be within {limit:.0e} {origin}, got "
                f"`{values[too_far][0]}` (at sequence index `{i}`)."
            )
        )


def window_length(model: MixedCovariatesTorchModel) -> int:
    """Return the number of steps of a training window, I + G + n."""
    chunks = model.input_chunk_length + model.output_chunk_length
    return int(chunks + model.output_chunk_shift)


def check_fitted(model: MixedCovariatesTorchModel, method: str) -> None:
    """Raise a `ValueError` that names a method which needs a fitted model."""
    check(
        model._fit_called and model.model is not None,
        f"The model must be fitted before calling `{method}()`.",
    )


def check_instance_scale(model: MixedCovariatesTorchModel, method: str) -> None:
    """Refuse a method that has no meaning where each window has its own scale."""
    check_fitted(model, method)
    check(
        not model.model.by_instance,
        f"`{method}()` must be called on a model without `use_reversible_instance_norm`: "
        "with it, the density is that of a window given its scale. Where the level drifts "
        "it is on unless set to `False`.",
    )


def check_window_length(
    model: MixedCovariatesTorchModel, method: str, sequence: Sequence[TimeSeries]
) -> None:
    """Refuse series longer than a training window where each window has its own scale."""
    length = window_length(model)
    if model.model.by_instance:
        for i, one in enumerate(sequence):
            check(
                len(one) <= length,
                f"`series` must have at most {length} steps, one training window, for "
                f"`{method}()` with `use_reversible_instance_norm`, got {len(one)} (at "
                f"sequence index `{i}`).",
            )
