"""Arguments that are refused, each with a message that names the problem."""

import pytest
from darts.utils.likelihood_models import torch as likelihoods


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


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "1", None, True])
def test_weight_must_be_a_number(tiny, value):
    with pytest.raises(ValueError, match="`overshooting_weight` must be a number >= 0"):
        tiny(overshooting_weight=value)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan"), "0", None, False])
def test_gap_augmentation_must_be_a_share(tiny, value):
    with pytest.raises(ValueError, match=f"`gap_augmentation` must be .* got `{value!r}`"):
        tiny(gap_augmentation=value)


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
