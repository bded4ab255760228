"""
What the tests share: tiny series and tiny models, through the public API.
"""

import logging
import warnings

import numpy as np
import pytest
import torch
from darts import TimeSeries
from darts.utils.timeseries_generation import gaussian_timeseries, sine_timeseries

from darts_ddssm import DDSSMModel

# More threads only wait for each other on models this small.
torch.set_num_threads(1)

TRAINER = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "logger": False,
}


@pytest.fixture(autouse=True)
def quiet():
    """Keep Lightning's notes on hardware out of the output."""
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        warnings.filterwarnings("ignore", message=".*num_workers.*")
        yield


@pytest.fixture
def tiny():
    """Return a maker of models that train in a second; arguments are overridden."""

    def make(trainer: dict | None = None, **kwargs) -> DDSSMModel:
        arguments = dict(
            input_chunk_length=12,
            output_chunk_length=6,
            latent_dim=2,
            hidden_size=8,
            num_solver_steps=4,
            n_epochs=2,
            batch_size=16,
            random_state=0,
        )
        return DDSSMModel(
            **(arguments | kwargs), pl_trainer_kwargs=TRAINER | (trainer or {})
        )

    return make


def noisy_sine(length: int = 80, num_components: int = 1, seed: int = 0) -> TimeSeries:
    """Sines of period 12 with noise, one a component, in float32."""
    rng = np.random.default_rng(seed)
    phase = np.arange(length)[:, None] / 12 + np.arange(num_components) / 4
    values = np.sin(2 * np.pi * phase) + 0.1 * rng.standard_normal(phase.shape)
    index = sine_timeseries(length=length).time_index
    return TimeSeries.from_times_and_values(index, values.astype(np.float32))


def covariate(length: int, num_components: int = 1, seed: int = 1) -> TimeSeries:
    """Noise of unit variance in float32, on the index of :func:`noisy_sine`."""
    parts = gaussian_timeseries(length=length).time_index
    values = np.random.default_rng(seed).standard_normal((length, num_components))
    return TimeSeries.from_times_and_values(parts, values.astype(np.float32))


def with_gaps(series: TimeSeries, where) -> TimeSeries:
    """Return a copy of a series with missing values at ``where``."""
    values = series.values(copy=True)
    values[where] = np.nan
    return series.with_values(values)


def same(one: TimeSeries, other: TimeSeries) -> bool:
    """Tell whether two series have the same samples."""
    return np.array_equal(one.all_values(), other.all_values())
