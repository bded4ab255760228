"""Arguments and data that are refused, each with a message that names the problem."""

import numpy as np
import pytest
from conftest import noisy_sine, with_gaps
from darts.utils.likelihood_models import torch as likelihoods
from darts.utils.timeseries_generation import linear_timeseries


@pytest.mark.parametrize(
    "name", ["latent_dim", "hidden_size", "num_solver_steps", "transition_order"]
)
@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True])
def test_sizes_must_be_positive_integers(tiny, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be .* got `{value!r}`"):
        tiny(**{name: value})


@pytest.mark.parametrize("name", ["latent_dim", "hidden_size", "num_solver_steps"])
def test_sizes_must_not_be_none(tiny, name):
    with pytest.raises(ValueError, match=f"`{name}` must be .* got `None`"):
        tiny(**{name: None})


def test_num_solver_steps_is_checked_when_changed(tiny):
    model = tiny()
    with pytest.raises(ValueError, match="`num_solver_steps` must be .* got `0`"):
        model.num_solver_steps = 0


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "2", None, True])
def test_peak_kl_weight_must_be_a_positive_number(tiny, value):
    with pytest.raises(ValueError, match=f"`peak_kl_weight` must be .* got `{value!r}`"):
        tiny(peak_kl_weight=value)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan"), "0", None, False])
def test_gap_practice_must_be_a_share(tiny, value):
    with pytest.raises(ValueError, match=f"`gap_practice` must be .* got `{value!r}`"):
        tiny(gap_practice=value)


def test_transition_must_be_known(tiny):
    with pytest.raises(ValueError, match="`transition` must be .* got `'laplace'`"):
        tiny(transition="laplace")


def test_likelihood_must_be_a_density(tiny):
    with pytest.raises(ValueError, match="`likelihood` .*no|`likelihood` must be a d"):
        tiny(likelihood=likelihoods.QuantileRegression())
    with pytest.raises(ValueError, match="`likelihood` must be one of .*'gaussian'"):
        tiny(likelihood="gaussian")


def test_unknown_argument(tiny):
    with pytest.raises(ValueError, match="no args/kwargs `\\['latent_size'\\]`"):
        tiny(latent_size=3)


def test_series_must_have_observed_values(tiny):
    nothing = with_gaps(noisy_sine(), slice(None))
    with pytest.raises(ValueError, match="`series` must have observed .* index `1`"):
        tiny().fit([noisy_sine(), nothing])
    with pytest.raises(ValueError, match="`series` must have observed"):
        tiny().fit(noisy_sine()).predict(3, nothing)


def test_infinite_values(tiny):
    broken = noisy_sine(100).values(copy=True)
    broken[5] = np.inf
    broken = noisy_sine(100).with_values(broken)
    series = noisy_sine()
    with pytest.raises(ValueError, match="`series` must be finite"):
        tiny().fit(broken)
    with pytest.raises(ValueError, match="`past_covariates` must be finite"):
        tiny().fit(series, past_covariates=broken)
    with pytest.raises(ValueError, match="`future_covariates` must be finite"):
        tiny().fit(series, future_covariates=broken)


def test_values_outside_the_support(tiny):
    model = tiny(likelihood=likelihoods.PoissonLikelihood())
    with pytest.raises(ValueError, match="`series` must lie in the support of `Poi"):
        model.fit(noisy_sine())
    counts = noisy_sine().map(lambda x: np.round(3 * np.exp(x)))
    with pytest.raises(ValueError, match="`series` must lie in the support"):
        model.fit(counts).predict(3, counts - 100)


def test_series_too_short(tiny):
    with pytest.raises(ValueError, match="too short"):
        tiny().fit(linear_timeseries(length=10).astype(np.float32))
