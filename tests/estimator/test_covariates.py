"""Windows of covariates, and whether they tell training windows apart."""

import numpy as np
import pytest
import torch
from darts import TimeSeries

from darts_ddssm.estimator.covariates import TrainingCovariates, share_apart
from darts_ddssm.estimator.windows import ChunkLengths
from darts_ddssm.series.scaling import CovariateScale
from tests.helpers import covariate, noisy_sine


def covariates_of(
    *values: np.ndarray, is_past: bool = False, output_length: int = 4
) -> TrainingCovariates:
    """Covariates of series that are as long, windows of 8 + 2 + n steps."""
    series = [TimeSeries.from_values(np.zeros((len(each), 1))) for each in values]
    covariates = [TimeSeries.from_values(each) for each in values]
    parts = (covariates, None) if is_past else (None, covariates)
    scales = [CovariateScale.unit(input_length=8)] * 2
    return TrainingCovariates(series, *parts, *scales, ChunkLengths(8, 2, output_length))


def test_windows_of_covariates():
    """Of past ones the input chunk is known, of future ones the window."""
    values = np.arange(60.0).reshape(30, 2)
    starts = torch.tensor([0, 5, 16])
    past, none = covariates_of(values, is_past=True).windows(0, starts)
    assert past[1].tolist() == values[5:13].flatten().tolist()
    assert none.shape == (3, 4, 0)
    future, ahead = covariates_of(values).windows(0, starts)
    assert future[2].tolist() == values[16:30].flatten().tolist()
    assert ahead[1].tolist() == values[15:19].tolist()


def test_covariates_on_another_index():
    """They may begin and end elsewhere; what is not known is zero."""
    series, values = noisy_sine(20), covariate(30)
    scales = [CovariateScale.unit(input_length=8)] * 2
    given = [series[5:]], None, [values[7:]], *scales, ChunkLengths(8, 2, 4)
    (inputs,), _ = TrainingCovariates(*given).windows(0, torch.tensor([0]))
    assert inputs[:2].tolist() == [0, 0]
    np.testing.assert_array_equal(inputs[2:], values.values()[7:19, 0])


def season(length: int, period: int) -> np.ndarray:
    phase = 2 * np.pi * np.arange(length)[:, None] / period
    return np.hstack([np.sin(phase), np.cos(phase)])


def test_a_calendar_tells_no_windows_apart():
    """Nor what all series have in common, a constant, or too few windows."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((100, 2))
    assert share_apart(covariates_of(season(60, 12))) == pytest.approx(0, abs=1e-6)
    assert share_apart(covariates_of(noise, noise)) == 0
    assert share_apart(covariates_of(np.full((100, 1), 0.3))) == 0
    assert share_apart(covariates_of(noise[:10])) == 0
    assert share_apart(covariates_of(noise[:15])) == 0


@pytest.mark.parametrize("num_series", (1, 3))
def test_noise_tells_windows_apart(num_series):
    """In many dimensions all are about as far away."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((num_series, 100, 2))
    assert share_apart(covariates_of(*noise)) > 0.5
    both = [np.hstack([season(100, 12), each]) for each in noise]
    assert share_apart(covariates_of(*both)) > 0.25


def test_windows_that_overlap_are_not_compared():
    """A slow walk is like itself a step later, which says nothing."""
    walk = np.random.default_rng(0).standard_normal((300, 1)).cumsum(0)
    near, far = (share_apart(covariates_of(walk, output_length=n)) for n in (1, 20))
    assert near < 0.5 * far
