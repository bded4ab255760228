"""
What darts' likelihoods must tell of themselves: support, loss with gaps, marginals.

Letters: S samples, B batch, T time steps, C components, K parameters.
"""

import torch
from darts.utils.likelihood_models.torch import (
    BernoulliLikelihood,
    DirichletLikelihood,
    GaussianLikelihood,
    LogNormalLikelihood,
    TorchLikelihood,
)
from torch import Tensor
from torch.distributions import Distribution

from darts_ddssm.scaling import LOCATION_SCALE_FAMILIES

# Least raw parameter. A softplus or a sigmoid of it, 4e-18, is zero for all purposes but
# one: the density exists, and its logarithm and derivatives are finite in float32.
MIN_RAW = -40.0


def _example(likelihood: TorchLikelihood, num_components: int) -> Distribution:
    """One distribution of the family, to ask for its support."""
    raw = torch.zeros(1, 1, num_components, likelihood.num_parameters)
    return likelihood._distr_from_params(likelihood._params_from_output(raw))


def in_support(likelihood: TorchLikelihood, values: Tensor) -> Tensor:
    """Tell which observations (T, C) lie in the support; missing ones do."""
    if isinstance(likelihood, DirichletLikelihood):
        # a row with a gap cannot be checked
        missing = values.isnan().any(-1, keepdim=True)
        inside = (values > 0) & ((values.sum(-1, keepdim=True) - 1).abs() < 1e-4)
        return inside | missing
    return _example(likelihood, values.shape[-1]).support.check(values) | values.isnan()


def bounded(likelihood: TorchLikelihood, raw: Tensor) -> Tensor:
    """Bound raw parameters so that no positive parameter is rounded to zero.

    Far from the data that a network has seen, its output may be anything.

    Parameters
    ----------
    likelihood
        The family, one of darts' with a density.
    raw
        Raw parameters, (..., C, K).
    """
    if isinstance(likelihood, (*LOCATION_SCALE_FAMILIES, LogNormalLikelihood)):
        location, spread = raw.split(1, dim=-1)
        return torch.cat([location, spread.clamp(min=MIN_RAW)], dim=-1)
    return raw.clamp(min=MIN_RAW)


def _filled(
    likelihood: TorchLikelihood, x: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Put values of the support where the weight is zero.

    Returns
    -------
    x
        Observations, (..., T, C).
    weight
        Weight of each term of the likelihood, (..., T, C), or (..., T) where it has one
        for all components of a step, which counts if all of them are observed.
    """
    num_components = x.shape[-1]
    if isinstance(likelihood, DirichletLikelihood):
        complete = (weight > 0).all(-1)
        x = torch.where(complete.unsqueeze(-1), x, 1 / num_components)
        # float32 proportions sum to one only nearly
        return x / x.sum(-1, keepdim=True), weight.mean(-1) * complete
    discrete = _example(likelihood, num_components).support.is_discrete
    # 1 and 1/2 lie inside the support of every discrete and every continuous family
    return torch.where(weight > 0, x, 1.0 if discrete else 0.5), weight


def negative_log_likelihood(
    likelihood: TorchLikelihood, raw: Tensor, x: Tensor, weight: Tensor
) -> Tensor:
    """Mean negative log-likelihood in nats a value, a scalar.

    Parameters
    ----------
    likelihood
        The family, one of darts' with a density.
    raw
        Raw parameters, (B, T, C, K).
    x
        Observations; any number where the weight is zero, (B, T, C).
    weight
        Weight of each observation, zero where it is missing, (B, T, C).
    """
    raw = bounded(likelihood, raw)
    if raw.isnan().any():
        # The loss of a network that has diverged; torch would refuse the parameters.
        return raw.sum()
    x, weight = _filled(likelihood, x, weight)
    # one density for all components of a step is one term, not C of them
    terms = x.shape[-1] if weight.dim() < x.dim() else 1
    return likelihood.compute_loss(raw, x, weight) / terms


def log_prob(likelihood: TorchLikelihood, raw: Tensor, x: Tensor, seen: Tensor) -> Tensor:
    """Log-density of what is observed at each step in nats, (N, T).

    Parameters
    ----------
    likelihood
        The family, one of darts' with a density.
    raw
        Raw parameters, (N, T, C, K).
    x
        Observations; any number where missing, (N, T, C).
    seen
        1 where ``x`` is observed and 0 where it is missing, (N, T, C).
    """
    parameters = likelihood._params_from_output(bounded(likelihood, raw))
    density = likelihood._distr_from_params(parameters)
    x, seen = _filled(likelihood, x, seen)
    log_probs = density.log_prob(x) * seen
    return log_probs.sum(-1) if log_probs.dim() == x.dim() else log_probs


def given_the_rest(
    likelihood: TorchLikelihood, drawn: Tensor, x: Tensor, seen: Tensor
) -> Tensor:
    """Condition draws of a step on the components that are observed at it.

    Given the state, components are independent, but for shares: those of a Dirichlet
    variable that are missing divide up what the others leave, in proportions as drawn.

    Parameters
    ----------
    likelihood
        The family, one of darts' with a density.
    drawn
        Draws of all components, (..., T, C).
    x
        Observations; any number where missing, (..., T, C).
    seen
        1 where ``x`` is observed and 0 where it is missing, (..., T, C).
    """
    if not isinstance(likelihood, DirichletLikelihood):
        return drawn
    left = 1 - (x * seen).sum(-1, keepdim=True)
    drawn = drawn * (1 - seen)
    return drawn * left / drawn.sum(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


def has_prior(likelihood: TorchLikelihood) -> bool:
    """Tell whether the user gave a prior of any parameter."""
    return any(value is not None for value in likelihood._prior_params or ())


def has_marginal(likelihood: TorchLikelihood) -> bool:
    """Tell whether parameters of the family describe a mixture over latent paths."""
    families = (BernoulliLikelihood, GaussianLikelihood, LogNormalLikelihood)
    return isinstance(likelihood, families)


def marginal_parameters(likelihood: TorchLikelihood, raw: Tensor) -> tuple[Tensor, ...]:
    """Parameters of the mixture over latent paths, (B, T, C) each.

    Those of the Gaussian with the mixture's mean and variance; for the log-normal, with
    those of the logarithm. A mixture of Bernoulli variables is one.

    Parameters
    ----------
    likelihood
        A family that :func:`has_marginal`.
    raw
        Raw parameters along the paths, (S, B, T, C, K).
    """
    # (S, B, ...) -> (S * B, ...) and back
    parameters = likelihood._params_from_output(raw.flatten(0, 1))
    first, *second = (x.unflatten(0, raw.shape[:2]) for x in parameters)
    if not second:
        return (first.mean(0),)
    variance = second[0].square().mean(0) + first.var(0, unbiased=False)
    return first.mean(0), variance.sqrt()
