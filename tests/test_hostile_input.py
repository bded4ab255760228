"""Random and hostile series: finite forecasts or a ValueError that names the problem."""

import warnings

import numpy as np
from conftest import TRAINER
from darts import TimeSeries
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from darts_ddssm import DDSSMModel

# Examples are the same in every run; `derandomize=False` looks further.
run = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

SCALES = st.sampled_from([1e-12, 1e-6, 1.0, 1e6, 1e12])
DTYPES = st.sampled_from([np.float32, np.float64])
SEEDS = st.integers(0, 1000)


@st.composite
def models(draw) -> DDSSMModel:
    """Tiny models of every kind of transition and any chunk lengths."""
    return DDSSMModel(
        input_chunk_length=draw(st.integers(1, 8)),
        output_chunk_length=draw(st.integers(1, 5)),
        latent_dim=draw(st.integers(1, 3)),
        hidden_size=draw(st.integers(1, 8)),
        transition_order=draw(st.sampled_from([1, 2, None])),
        transition=draw(st.sampled_from(["diffusion", "gaussian"])),
        use_reversible_instance_norm=draw(st.booleans()),
        num_solver_steps=draw(st.integers(1, 3)),
        batch_size=8,
        n_epochs=1,
        random_state=0,
        pl_trainer_kwargs=TRAINER,
    )


def values(length: int, num_components: int, seed: int) -> np.ndarray:
    """Random walks or constants."""
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((length, num_components))
    steps[1:] *= rng.random(num_components) < 0.7
    return steps.cumsum(0)


def forecast(model: DDSSMModel, series, n: int, **covariates) -> list[np.ndarray]:
    """Fit and forecast, without a warning from this package."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="darts_ddssm")
        model.fit(series, **covariates)
        forecasts = model.predict(n, series, num_samples=3, **covariates)
    return [f.all_values() for f in forecasts]


@run
@given(
    model=models(),
    extra=st.integers(0, 20),
    num_components=st.integers(1, 3),
    num_series=st.integers(1, 3),
    scale=SCALES,
    offset=st.sampled_from([0.0, 1.0, -1e3, 1e6]),
    dtype=DTYPES,
    n=st.integers(1, 9),
    seed=SEEDS,
)
def test_clean_series_have_finite_forecasts(
    model, extra, num_components, num_series, scale, offset, dtype, n, seed
):
    """From one training window on, at any scale."""
    length = model.input_chunk_length + model.output_chunk_length + extra
    series = [
        TimeSeries.from_values(
            (scale * (offset + values(length, num_components, seed + i))).astype(dtype)
        )
        for i in range(num_series)
    ]
    largest = max(np.abs(s.values()).max() for s in series)
    for drawn in forecast(model, series, n):
        assert drawn.shape == (n, num_components, 3)
        assert np.isfinite(drawn).all()
        # an untrained model is no wild one
        assert np.abs(drawn).max() <= 100 * max(largest, 1e-6)


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
    length = model.input_chunk_length + model.output_chunk_length + extra
    rng = np.random.default_rng(seed)
    given = {
        "series": values(length, 2, seed),
        "past_covariates": values(length, 1, seed + 1),
        "future_covariates": values(length + 10, 2, seed + 2),
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
        (drawn,) = forecast(model, [series], n, **given)
    except ValueError as error:
        assert refused and f"`{where}` must" in str(error)
    else:
        assert not refused
        assert np.isfinite(drawn).all()


@run
@given(model=models(), length=st.integers(1, 12), num_components=st.integers(1, 2))
def test_a_series_is_long_enough_or_refused(model, length, num_components):
    """Integers, too."""
    series = TimeSeries.from_values(np.arange(length * num_components).reshape(length, -1))
    needed = model.input_chunk_length + model.output_chunk_length
    try:
        (drawn,) = forecast(model, [series], 2)
    except ValueError as error:
        assert length < needed and "too short" in str(error)
    else:
        assert length >= needed and np.isfinite(drawn).all()


@run
@given(
    model=models(),
    scale=SCALES,
    kind=st.sampled_from(["past_covariates", "future_covariates"]),
    seed=SEEDS,
)
def test_covariates_of_any_scale(model, scale, kind, seed):
    """They are taken as they are; whatever the scale, the forecast is finite."""
    length = model.input_chunk_length + model.output_chunk_length + 5
    series = TimeSeries.from_values(values(length, 1, seed).astype(np.float32))
    covariates = scale * values(length + 5, 2, seed + 1)
    covariates = TimeSeries.from_values(covariates.astype(np.float32))
    (drawn,) = forecast(model, [series], 5, **{kind: [covariates]})
    assert np.isfinite(drawn).all()
