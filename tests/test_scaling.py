"""Reversible instance normalisation and the scale of the training set."""

import numpy as np
import pytest
import torch
from conftest import noisy_sine, with_gaps
from darts.models.components.layer_norm_variants import RINorm
from darts.utils.likelihood_models import torch as likelihoods

from darts_ddssm.scaling import instance_scale

# --- reversible instance normalisation --------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_follows_shift_and_scale_of_a_series(tiny, affine):
    """A forecast of 100 x + 1,000 is the forecast of x, mapped likewise."""
    series = with_gaps(noisy_sine(), slice(70, 74))
    norm = {"affine": affine, "eps": 1e-9}
    model = tiny(use_reversible_instance_norm=norm).fit(series)
    forecast = model.predict(6, series, num_samples=20, random_state=0)
    mapped = model.predict(6, 100 * series + 1000, num_samples=20, random_state=0)
    expected = 100 * forecast.all_values() + 1000
    np.testing.assert_allclose(mapped.all_values(), expected, rtol=1e-4)


def test_instance_norm_keeps_the_likelihood_of_the_data():
    """Raw parameters mapped back give the density of x, by change of variables."""
    torch.manual_seed(0)
    likelihood = likelihoods.GaussianLikelihood()
    x = 50 + 3 * torch.randn(4, 12, 2, dtype=torch.float64)
    rin = RINorm(input_dim=2).double()
    with torch.no_grad():
        rin.affine_weight.copy_(torch.tensor([0.5, 2.0]))
        rin.affine_bias.copy_(torch.tensor([-1.0, 1.0]))
    scale = instance_scale(rin, x, torch.ones_like(x))
    raw = torch.randn(4, 12, 2, 2, dtype=torch.float64)
    normalised, data = (
        likelihood._distr_from_params(likelihood._params_from_output(r))
        for r in (raw, scale.parameters_to_data(raw))
    )
    expected = normalised.log_prob(scale.normalise(x)) - scale.spread.log()
    torch.testing.assert_close(data.log_prob(x), expected)


def test_instance_norm_of_a_family_without_location(tiny):
    with pytest.raises(ValueError, match="`use_reversible_instance_norm` must be"):
        tiny(
            likelihood=likelihoods.PoissonLikelihood(),
            use_reversible_instance_norm=True,
        )
