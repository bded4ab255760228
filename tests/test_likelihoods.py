"""Every density of darts, and the parameters of the predictive marginal."""

import numpy as np
import pytest
from conftest import noisy_sine, with_gaps
from darts.utils.likelihood_models import torch as likelihoods

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


@pytest.mark.parametrize("family", FAMILIES)
def test_every_density_trains_and_samples_in_its_support(tiny, family):
    likelihood = getattr(likelihoods, f"{family}Likelihood")()
    values = FAMILIES[family].astype(np.float32)
    series = noisy_sine(num_components=2).with_values(values)
    model = tiny(likelihood=likelihood).fit(with_gaps(series, (slice(20, 24), 1)))
    forecast = model.predict(6, num_samples=20).all_values()
    assert np.isfinite(forecast).all()
    if values is not FAMILIES["Gaussian"] and family not in ("Laplace", "Cauchy"):
        assert (forecast >= 0).all() or family in ("Gaussian", "Gumbel")
    if family in ("Poisson", "NegativeBinomial", "Geometric", "Bernoulli"):
        np.testing.assert_array_equal(forecast, forecast.round())
    if family in ("Beta", "ContinuousBernoulli", "Dirichlet", "Bernoulli"):
        assert (forecast <= 1).all()
    if family == "Dirichlet":
        np.testing.assert_allclose(forecast.sum(1), 1.0, rtol=1e-5)


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


def test_likelihood_parameters_of_no_marginal(tiny):
    positive = noisy_sine().map(lambda x: np.exp(x))
    model = tiny(likelihood=likelihoods.GammaLikelihood()).fit(positive)
    with pytest.raises(ValueError, match="predict_likelihood_parameters"):
        model.predict(3, predict_likelihood_parameters=True)
