"""Every density of darts, and the parameters of the predictive marginal."""

import numpy as np
import pytest
import torch
from darts.utils.likelihood_models import torch as likelihoods

from darts_ddssm.density import in_support
from tests.helpers import noisy_sine, same, with_gaps

ANY = noisy_sine(num_components=2).values()
POSITIVE = np.exp(ANY)
COUNTS = np.round(3 * POSITIVE)
SHARES = POSITIVE / POSITIVE.sum(1, keepdims=True)
FAMILIES = {
    "Gaussian": ANY,
    "Laplace": ANY,
    "Cauchy": ANY,
    "Gumbel": ANY,
    "Gamma": POSITIVE,
    "Exponential": POSITIVE,
    "HalfNormal": POSITIVE,
    "LogNormal": POSITIVE,
    "Weibull": POSITIVE,
    "Poisson": COUNTS,
    "NegativeBinomial": COUNTS,
    "Geometric": COUNTS,
    "Bernoulli": (ANY > 0).astype(float),
    "Beta": SHARES,
    "ContinuousBernoulli": SHARES,
    "Dirichlet": SHARES,
}

MIXTURES_OF_THE_FAMILY = {"Gaussian", "LogNormal", "Bernoulli"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_density_trains_and_samples_in_its_support(tiny, family):
    likelihood = getattr(likelihoods, f"{family}Likelihood")()
    values = FAMILIES[family].astype(np.float32)
    series = noisy_sine(num_components=2).with_values(values)
    model = tiny(likelihood=likelihood).fit(with_gaps(series, (slice(20, 24), 1)))
    forecast = model.predict(6, num_samples=20).all_values()
    assert np.isfinite(forecast).all()
    # (n, C, S) -> (n, S, C)
    samples = torch.as_tensor(forecast.swapaxes(1, 2))
    assert in_support(likelihood, samples.flatten(0, 1)).all()
    # the check itself refuses what lies outside
    assert (
        FAMILIES[family] is ANY
        or not in_support(likelihood, samples.flatten(0, 1) - 100).any()
    )


@pytest.mark.darts_compat
def test_all_densities_of_darts_are_tested():
    names = {n.removesuffix("Likelihood") for n in dir(likelihoods)}
    types = {t.name for t in likelihoods.LikelihoodType}
    assert names & types == set(FAMILIES)


def test_likelihood_parameters_are_the_moments_of_the_samples(tiny):
    model = tiny(n_epochs=5).fit(noisy_sine(num_components=2))
    parameters = model.predict(6, predict_likelihood_parameters=True)
    names = ["0_mu", "0_sigma", "1_mu", "1_sigma"]
    assert parameters.components.tolist() == names
    samples = model.predict(6, num_samples=4000).all_values()
    # five standard errors of a mean of 4,000 samples and of the parameters' own 500
    error = 5 * samples.std(2) * (1 / 4000 + 1 / 500) ** 0.5
    assert (np.abs(parameters.values()[:, ::2] - samples.mean(2)) < error).all()
    np.testing.assert_allclose(parameters.values()[:, 1::2], samples.std(2), rtol=0.2)


@pytest.mark.parametrize("family", ["Bernoulli", "LogNormal"])
def test_likelihood_parameters_of_other_mixtures(tiny, family):
    """The probability; mean and standard deviation of the logarithm."""
    likelihood = getattr(likelihoods, f"{family}Likelihood")()
    series = noisy_sine(num_components=2).with_values(FAMILIES[family].astype(np.float32))
    model = tiny(n_epochs=5, likelihood=likelihood).fit(series)
    parameters = model.predict(6, predict_likelihood_parameters=True)
    samples = model.predict(6, num_samples=4000).all_values()
    if family == "Bernoulli":
        assert parameters.components.tolist() == ["0_p", "1_p"]
        means = parameters.values()
    else:
        assert parameters.components.tolist() == ["0_mu", "0_sigma", "1_mu", "1_sigma"]
        means, samples = parameters.values()[:, ::2], np.log(samples)
        np.testing.assert_allclose(parameters.values()[:, 1::2], samples.std(2), rtol=0.2)
    error = 5 * samples.std(2) * (1 / 4000 + 1 / 500) ** 0.5
    assert (np.abs(means - samples.mean(2)) < error).all()


@pytest.mark.parametrize("family", sorted({*FAMILIES} - MIXTURES_OF_THE_FAMILY))
def test_likelihood_parameters_of_no_marginal(tiny, family):
    likelihood = getattr(likelihoods, f"{family}Likelihood")()
    series = noisy_sine(num_components=2).with_values(FAMILIES[family].astype(np.float32))
    model = tiny(n_epochs=1, likelihood=likelihood).fit(series)
    with pytest.raises(ValueError, match="`predict_likelihood_parameters` must be"):
        model.predict(3, predict_likelihood_parameters=True)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_prior_is_one_of_the_data(tiny, scale):
    """A strong prior on the spread of the emission decides it, in the data's units."""
    sigma = 2.0 * scale
    likelihood = likelihoods.GaussianLikelihood(prior_sigma=sigma, prior_strength=100.0)
    series = (scale * noisy_sine()).astype(np.float32)
    model = tiny(
        likelihood=likelihood,
        transition="gaussian",
        overshooting_weight=0,
        n_epochs=30,
        optimizer_kwargs={"lr": 1e-2},
    )
    parameters = model.fit(series).predict(6, predict_likelihood_parameters=True)
    np.testing.assert_allclose(parameters["0_sigma"].values(), sigma, rtol=0.2)


def test_beta_nll(tiny):
    """Another loss, another model."""
    series = noisy_sine()
    forecasts = [
        tiny(likelihood=likelihoods.GaussianLikelihood(beta_nll=beta))
        .fit(series)
        .predict(3, random_state=0)
        for beta in (0.0, 0.5)
    ]
    assert not same(*forecasts)
    assert all(np.isfinite(f.values()).all() for f in forecasts)
