"""Random and hostile input: finite forecasts, or a ValueError that names the problem."""

import os
import warnings

import numpy as np
import pytest
from darts import TimeSeries
from darts.utils.likelihood_models import torch as likelihoods
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from darts_ddssm import DDSSMModel
from tests.helpers import TRAINER, noisy_sine

# The same examples in every run; a number in DDSSM_EXAMPLES looks at as many new ones.
MORE = int(os.environ.get("DDSSM_EXAMPLES", 0))
run = settings(
    max_examples=MORE or 50,
    deadline=None,
    derandomize=not MORE,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

SCALES = st.sampled_from([1e-12, 1e-6, 1.0, 1e6, 1e12])
DTYPES = st.sampled_from([np.float32, np.float64])
SEEDS = st.integers(0, 1000)
KINDS = st.sampled_from(["past_covariates", "future_covariates"])


@st.composite
def models(draw, families=None) -> DDSSMModel:
    """Tiny models of every kind of transition, any chunk lengths and any shift."""
    family = draw(
        st.sampled_from(families or ["Gaussian", "Gaussian", "Laplace", "Gumbel"])
    )
    return DDSSMModel(
        input_chunk_length=draw(st.integers(1, 8)),
        output_chunk_length=draw(st.integers(1, 5)),
        output_chunk_shift=draw(st.sampled_from([0, 0, 1, 3])),
        latent_dim=draw(st.integers(1, 3)),
        hidden_size=draw(st.integers(1, 8)),
        transition_order=draw(st.sampled_from([1, 2, None])),
        transition=draw(st.sampled_from(["diffusion", "gaussian"])),
        # After a constant input chunk anything is an outlier, and far below its location
        # the logarithm of a Gumbel density falls exponentially.
        use_reversible_instance_norm=family in ["Gaussian", "Laplace"]
        and draw(st.booleans()),
        num_solver_steps=draw(st.integers(5, 6)),
        likelihood=getattr(likelihoods, f"{family}Likelihood")(),
        batch_size=8,
        n_epochs=1,
        random_state=0,
        pl_trainer_kwargs=TRAINER,
    )


def window_of(model: DDSSMModel) -> int:
    """Return the length of one training window."""
    chunks = model.input_chunk_length + model.output_chunk_length
    return chunks + model.output_chunk_shift


def horizon_of(model: DDSSMModel, n: int) -> int:
    """With a shift, a forecast is no longer than the output chunk."""
    return min(n, model.output_chunk_length) if model.output_chunk_shift else n


def walk(length: int, num_components: int, seed: int) -> np.ndarray:
    """Random walks or constants."""
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((length, num_components))
    steps[1:] *= rng.random(num_components) < 0.7
    return steps.cumsum(0)


def forecast(
    model: DDSSMModel, series, n: int, start=None, **covariates
) -> list[np.ndarray]:
    """Fit and forecast, without a warning from this package."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="darts_ddssm")
        model.fit(series, **covariates)
        forecasts = model.predict(n, start or series, num_samples=3, **covariates)
    return [f.all_values() for f in forecasts]


# --- targets --------------------------------------------------------------------------


@run
@given(
    model=models(),
    extra=st.lists(st.integers(0, 20), min_size=1, max_size=3),
    num_components=st.integers(1, 3),
    scale=SCALES,
    offset=st.sampled_from([0.0, 1.0, -1e3, 1e6]),
    dtype=DTYPES,
    n=st.integers(1, 9),
    seed=SEEDS,
)
def test_clean_series_have_finite_forecasts(
    model, extra, num_components, scale, offset, dtype, n, seed
):
    """From one training window on, of any lengths, at any scale."""
    series = []
    for i, more in enumerate(extra):
        values = walk(window_of(model) + more, num_components, seed + i)
        series.append(TimeSeries.from_values((scale * (offset + values)).astype(dtype)))
    largest = max(np.abs(s.values()).max() for s in series)
    n = horizon_of(model, n)
    for drawn in forecast(model, series, n):
        assert drawn.shape == (n, num_components, 3)
        assert np.isfinite(drawn).all()
        # an untrained model is no wild one
        assert np.abs(drawn).max() <= 100 * max(largest, 1e-6)


@run
@given(
    model=models(),
    scale=SCALES,
    offset=st.sampled_from([0.0, -1e3, 1e6]),
    num_missing=st.integers(0, 8),
    dtype=DTYPES,
    n=st.integers(1, 9),
    seed=SEEDS,
)
def test_forecasts_start_from_any_series(model, scale, offset, num_missing, dtype, n, seed):
    """Of another scale than that of training, with its end missing or not.

    Refused only where it is far away, which is nearer for a constant training series.
    """
    length = window_of(model) + 5
    series = TimeSeries.from_values(walk(length, 2, seed).astype(dtype))
    values = scale * (offset + walk(length, 2, seed + 1))
    values[length - num_missing :] = np.nan
    start = TimeSeries.from_values(values.astype(dtype))
    try:
        (drawn,) = forecast(model, [series], horizon_of(model, n), start=[start])
    except ValueError as error:
        assert scale * (1 + abs(offset)) >= 1e6 and "`series` must be within" in str(error)
    else:
        assert np.isfinite(drawn).all()


@run
@given(
    model=models(),
    length=st.integers(1, 14),
    num_components=st.integers(1, 2),
    dtype=st.sampled_from([np.int64, np.int8, np.uint16, bool]),
)
def test_a_series_is_long_enough_or_refused(model, length, num_components, dtype):
    """Integers, too."""
    values = np.arange(length * num_components).reshape(length, -1) % 7
    series = TimeSeries.from_values(values.astype(dtype))
    needed = window_of(model)
    try:
        (drawn,) = forecast(model, [series], horizon_of(model, 2))
    except ValueError as error:
        assert length < needed and "too short" in str(error)
    else:
        assert length >= needed and np.isfinite(drawn).all()


POSITIVE = ["Gamma", "Exponential", "HalfNormal", "LogNormal", "Weibull"]
COUNTS = ["Poisson", "NegativeBinomial", "Geometric"]
SHARES = ["Beta", "ContinuousBernoulli", "Dirichlet"]


@run
@given(
    model=models(families=[*POSITIVE, *COUNTS, *SHARES, "Bernoulli", "Cauchy"]),
    missing=st.sampled_from([0.0, 0.2]),
    scale=SCALES,
    n=st.integers(1, 9),
    seed=SEEDS,
)
def test_other_densities_have_finite_forecasts(model, missing, scale, n, seed):
    """Positive values and counts of any scale, and shares."""
    family = type(model.likelihood).__name__.removesuffix("Likelihood")
    values = walk(window_of(model) + 5, 2, seed)
    if family in POSITIVE:
        values = scale * np.exp(values.clip(-5, 5))
    elif family in COUNTS:
        values = np.round(scale * np.exp(values.clip(-5, 5)))
    elif family in SHARES:
        values = np.exp(values.clip(-5, 5))
        values /= values.sum(1, keepdims=True)
    elif family == "Bernoulli":
        values = values > 0
    values = values.astype(np.float32)
    values[1:][np.random.default_rng(seed).random(values[1:].shape) < missing] = np.nan
    series = TimeSeries.from_values(values)
    (drawn,) = forecast(model, [series], horizon_of(model, n))
    assert np.isfinite(drawn).all()


@pytest.mark.parametrize("family", [*POSITIVE, *COUNTS])
def test_training_at_a_large_scale_goes_on(tiny, family):
    """Steps are large and many."""
    series = noisy_sine()
    values = np.round(1e6 * np.exp(series.values()))
    likelihood = getattr(likelihoods, f"{family}Likelihood")()
    model = tiny(likelihood=likelihood, n_epochs=15, optimizer_kwargs={"lr": 1e-2})
    (drawn,) = forecast(model, [series.with_values(values)], 6)
    assert np.isfinite(drawn).all()


@pytest.mark.parametrize("known", [0.0, np.nan])
@pytest.mark.parametrize("later", [1e-3, 1.0, 1e6])
def test_component_that_was_constant_leaves_the_others_alone(tiny, known, later):
    """A flag that fires for the first time, or a component that nobody has seen."""
    sine = noisy_sine(60).values()
    values = np.concatenate([sine, np.full_like(sine, known)], axis=1)
    model = tiny(n_epochs=5).fit(TimeSeries.from_values(values))
    forecasts = []
    for value in (known, later):
        values[-1, 1] = value
        given = {"num_samples": 20, "random_state": 0}
        drawn = model.predict(4, TimeSeries.from_values(values), **given)
        forecasts.append(drawn.all_values()[:, 0])
    # of the sine, which is between -1 and 1
    assert np.abs(forecasts[1]).max() < 3
    if known == 0:
        np.testing.assert_allclose(*forecasts, atol=1e-3)


# --- gaps, infinities, covariates -----------------------------------------------------


@run
@given(
    model=models(),
    extra=st.integers(0, 20),
    missing=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    where=st.sampled_from(["series", "past_covariates", "future_covariates"]),
    what=st.sampled_from([np.nan, np.inf, -np.inf]),
    n=st.integers(1, 9),
    seed=SEEDS,
)
def test_missing_and_infinite_values(model, extra, missing, where, what, n, seed):
    """Gaps are bridged; infinities, and series of gaps alone, are refused by name."""
    length = window_of(model) + extra
    rng = np.random.default_rng(seed)
    given = {
        "series": walk(length, 2, seed),
        "past_covariates": walk(length, 1, seed + 1),
        "future_covariates": walk(length + 12, 2, seed + 2),
    }
    broken = given[where]
    chosen = rng.random(broken.shape) < missing
    broken[chosen] = what
    given = {k: TimeSeries.from_values(v.astype(np.float32)) for k, v in given.items()}
    series = given.pop("series")
    given = {name: [one] for name, one in given.items()}
    refused = np.isinf(what) and chosen.any()
    refused |= where == "series" and chosen.all()
    try:
        (drawn,) = forecast(model, [series], horizon_of(model, n), **given)
    except ValueError as error:
        assert refused and f"`{where}` must" in str(error)
    else:
        assert not refused
        assert np.isfinite(drawn).all()


@run
@given(
    model=models(families=["Gaussian", "Laplace"]),
    scale=SCALES,
    offset=SCALES,
    kind=KINDS,
    seed=SEEDS,
)
def test_covariates_of_any_scale(model, scale, offset, kind, seed):
    """They are taken as they are; whatever the scale, the forecast is finite.

    Where a single bad step costs no more than a float can hold, unlike with a Gumbel.
    """
    length = window_of(model) + 5
    series = TimeSeries.from_values(walk(length, 1, seed).astype(np.float32))
    covariates = offset + scale * walk(length + 8, 2, seed + 1)
    covariates = TimeSeries.from_values(covariates.astype(np.float32))
    n = horizon_of(model, 5)
    (drawn,) = forecast(model, [series], n, **{kind: [covariates]})
    assert np.isfinite(drawn).all()
