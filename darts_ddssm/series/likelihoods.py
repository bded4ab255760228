"""
What each family of darts' likelihoods can do, and densities with missing values.

Letters as in :mod:`darts_ddssm.ssm`.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from darts.utils.likelihood_models.torch import (
    BernoulliLikelihood,
    BetaLikelihood,
    CauchyLikelihood,
    ContinuousBernoulliLikelihood,
    DirichletLikelihood,
    ExponentialLikelihood,
    GammaLikelihood,
    GaussianLikelihood,
    GeometricLikelihood,
    GumbelLikelihood,
    HalfNormalLikelihood,
    LaplaceLikelihood,
    LogNormalLikelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    TorchLikelihood,
    WeibullLikelihood,
)
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.constraints import (
    Constraint,
    boolean,
    nonnegative,
    nonnegative_integer,
    positive,
    real,
    simplex,
    unit_interval,
)


class _OpenUnitInterval(Constraint):
    """Numbers between zero and one, neither of them included."""

    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)


# From the first parameter of a density, (...), to a value where the density is high.
Value: TypeAlias = Callable[[Tensor], Tensor]

# Least concentration of a Weibull variable: one of less would have draws without bound.
MIN_CONCENTRATION = 0.2

# From the mean of a density and, if it has two parameters, its relative spread, (...) each,
# to its raw parameters.
OfMoments: TypeAlias = Callable[..., tuple[Tensor, ...]]


def _always(value: float) -> Value:
    return lambda first: torch.full_like(first, value)


def _first(first: Tensor) -> Tensor:
    return first


def _exp(first: Tensor) -> Tensor:
    return first.clamp(-80.0, 80.0).exp()


def _inverse_softplus(x: Tensor) -> Tensor:
    # exact for large and for small values
    return x + torch.log(-torch.expm1(-x))


def _of_mean(mean: Tensor) -> tuple[Tensor, ...]:
    return (_inverse_softplus(mean),)


def _exponential(mean: Tensor) -> tuple[Tensor, ...]:
    return (_inverse_softplus(1 / mean),)


def _half_normal(mean: Tensor) -> tuple[Tensor, ...]:
    return (_inverse_softplus(mean * math.sqrt(math.pi / 2)),)


def _geometric(mean: Tensor) -> tuple[Tensor, ...]:
    # of a lower mean the probability of zero is rounded to one
    return (-mean.clamp(min=1e-6).log(),)


def _gamma(mean: Tensor, relative: Tensor) -> tuple[Tensor, ...]:
    shape = relative.pow(-2)
    return _inverse_softplus(shape), _inverse_softplus(shape / mean)


def _log_normal(mean: Tensor, relative: Tensor) -> tuple[Tensor, ...]:
    variance = relative.square().log1p()
    return mean.log() - variance / 2, _inverse_softplus(variance.sqrt())


def _weibull(mean: Tensor, relative: Tensor) -> tuple[Tensor, ...]:
    # the spread nearly, as Justus et al. (1978) give it
    concentration = relative.pow(-1.086).clamp(min=MIN_CONCENTRATION)
    scale = mean * (-torch.lgamma(1 + 1 / concentration)).exp()
    return _inverse_softplus(scale), _inverse_softplus(concentration)


def _negative_binomial(mean: Tensor, relative: Tensor) -> tuple[Tensor, ...]:
    # of the spread beyond that of a Poisson variable
    return _inverse_softplus(mean), _inverse_softplus(relative.square())


@dataclass(frozen=True)
class Family:
    """What a family of densities can do.

    Attributes
    ----------
    support
        Where the density is positive.
    neutral
        A value of high density given the first parameter, which stands where an
        observation is missing. Its log-density and derivatives must be finite: it is
        multiplied by zero.
    location_scale
        Whether the raw parameters are a location and, before a softplus, a scale: a shift
        and a scaling of the data map such a family to itself.
    of_moments
        Raw parameters of a density of values that are not negative but have a unit, by its
        mean and relative spread. ``None`` for all other families.
    num_real
        Number of first raw parameters that may be any real number. The others become
        positive, or probabilities, by a softplus or a sigmoid.
    reparametrised
        Whether draws have a derivative in the parameters and a mean in any units, so that
        the CRPS of draws can be trained.
    marginal
        Whether parameters of the family describe a mixture over latent paths.
    takes_prior
        Whether darts takes a prior of its parameters.
    joint
        Whether there is one density for all components of a step.
    large_terms
        Whether the log-density of large values, or of values of small relative spread, is
        a small difference of terms in the millions. Single precision has too few digits.
    """

    support: Constraint
    neutral: Value = _always(0.5)
    location_scale: bool = False
    of_moments: OfMoments | None = None
    num_real: int = 0
    reparametrised: bool = False
    marginal: bool = False
    takes_prior: bool = True
    joint: bool = False
    large_terms: bool = False

    @property
    def has_unit(self) -> bool:
        """Whether the values have a unit, so that a window may have its own scale."""
        return self.location_scale or self.of_moments is not None


def _location_scale(reparametrised: bool = True, marginal: bool = False) -> Family:
    return Family(
        real,
        neutral=_first,
        location_scale=True,
        num_real=1,
        reparametrised=reparametrised,
        marginal=marginal,
    )


FAMILIES = {
    GaussianLikelihood: _location_scale(marginal=True),
    LaplaceLikelihood: _location_scale(),
    GumbelLikelihood: _location_scale(),
    CauchyLikelihood: _location_scale(reparametrised=False),  # has no mean
    LogNormalLikelihood: Family(
        positive, neutral=_exp, of_moments=_log_normal, num_real=1, marginal=True
    ),
    WeibullLikelihood: Family(
        positive, neutral=_first, of_moments=_weibull, takes_prior=False
    ),
    ExponentialLikelihood: Family(nonnegative, of_moments=_exponential),
    # at zero its density may be infinite
    GammaLikelihood: Family(positive, of_moments=_gamma, large_terms=True),
    HalfNormalLikelihood: Family(nonnegative, neutral=_first, of_moments=_half_normal),
    BetaLikelihood: Family(_OpenUnitInterval()),  # and at both ends
    ContinuousBernoulliLikelihood: Family(unit_interval),
    DirichletLikelihood: Family(simplex, joint=True),
    BernoulliLikelihood: Family(boolean, neutral=_always(1.0), marginal=True),
    GeometricLikelihood: Family(
        nonnegative_integer, neutral=_always(0.0), of_moments=_geometric
    ),
    NegativeBinomialLikelihood: Family(
        nonnegative_integer,
        neutral=_always(1.0),
        of_moments=_negative_binomial,
        takes_prior=False,
        large_terms=True,
    ),
    PoissonLikelihood: Family(
        nonnegative_integer,
        neutral=_always(1.0),
        of_moments=_of_mean,
        large_terms=True,
    ),
}

# Devices that are known to have double precision: Apple's have none.
WITH_DOUBLE = {"cpu", "cuda"}

# Least raw parameter of those that are not real. A softplus or a sigmoid of it, 4e-18, is
# zero for all purposes but one: the density exists, and its logarithm and derivatives are
# finite in float32.
MIN_RAW = -40.0

# The least relative spread of values that are not negative, and the greatest.
MIN_RELATIVE_SPREAD, MAX_RELATIVE_SPREAD = 1e-3, 1e3


def family_of(likelihood: TorchLikelihood) -> Family:
    """Return what the family of a likelihood can do.

    A class that is not in the table, nor derived from one that is, is asked for its
    support and for which parameters may be negative, and taken to be capable of nothing
    else.
    """
    for kind in type(likelihood).__mro__:
        if kind in FAMILIES:
            return FAMILIES[kind]
    raw = torch.zeros(1, 1, 1, likelihood.num_parameters)
    density = likelihood._distr_from_params(likelihood._params_from_output(raw))
    support = density.support
    low = likelihood._params_from_output(raw - 1e4)
    negative = [i for i, value in enumerate(low) if (torch.as_tensor(value) < 0).any()]
    return Family(
        support,
        neutral=_always(1.0 if support.is_discrete else 0.5),
        # all up to the last one that may be negative
        num_real=max(negative, default=-1) + 1,
        takes_prior=likelihood._prior_params is not None,
    )


def has_prior(likelihood: TorchLikelihood) -> bool:
    """Tell whether the user gave a prior of any parameter."""
    given = likelihood._prior_params if family_of(likelihood).takes_prior else None
    return any(value is not None for value in given or ())


def in_support(likelihood: TorchLikelihood, values: Tensor) -> Tensor:
    """Tell which observations (T, C) lie in the support; missing ones do."""
    family = family_of(likelihood)
    if family.joint:
        # a row with a gap cannot be checked; float32 proportions sum to one only nearly
        missing = values.isnan().any(-1, keepdim=True)
        valid = (values > 0) & ((values.sum(-1, keepdim=True) - 1).abs() < 1e-4)
        return valid | missing
    inside: Tensor = family.support.check(values)
    return inside | values.isnan()


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
    family = family_of(likelihood)
    if family.joint:
        # a softmax over the components follows
        return raw.maximum(raw.amax(-2, keepdim=True) + MIN_RAW)
    first, others = raw.tensor_split([family.num_real], dim=-1)
    return torch.cat([first, others.clamp(min=MIN_RAW)], dim=-1)


def in_units(
    likelihood: TorchLikelihood, raw: Tensor, location: Tensor, spread: Tensor
) -> Tensor:
    """Turn what a network says of normalised values into parameters of the data.

    Of values that are not negative it says their mean, from which a softplus takes what is
    below zero, and their spread.

    Parameters
    ----------
    likelihood
        The family, one of darts' with a density.
    raw
        What the network says, (..., T, C, K).
    location, spread
        What normalised values are multiplied by, and then added to, is ``spread`` and
        ``location``, (..., T, C) each, or what is the same for all.

    Returns
    -------
    Tensor
        Raw parameters of the density of the data, (..., T, C, K). Those of a family whose
        values have no unit are what the network says.
    """
    family = family_of(likelihood)
    if not family.has_unit:
        return raw
    size = nn.functional.softplus(raw[..., 1:].clamp(min=MIN_RAW))
    if family.location_scale:
        raw_spread = _inverse_softplus(size.squeeze(-1) * spread)
        return torch.stack([raw[..., 0] * spread + location, raw_spread], dim=-1)
    assert family.of_moments is not None
    mean = nn.functional.softplus((location / spread + raw[..., 0]).clamp(min=MIN_RAW))
    relative = size / mean.unsqueeze(-1)
    relative = relative.clamp(MIN_RELATIVE_SPREAD, MAX_RELATIVE_SPREAD)
    return torch.stack(family.of_moments(mean * spread, *relative.unbind(-1)), dim=-1)


@contextmanager
def _unchecked() -> Iterator[None]:
    """Let torch make and ask densities without a look at parameters and values.

    The look waits for the device. Bounded parameters pass it unless they are not finite,
    and then neither are draws and densities. Values are looked at before they go there.
    """
    default = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(default)


def _precise(likelihood: TorchLikelihood, *parts: Tensor) -> tuple[Tensor, ...]:
    """Return tensors as they are or, where digits would be lost, in double precision."""
    if family_of(likelihood).large_terms and parts[0].device.type in WITH_DOUBLE:
        return tuple(part.double() for part in parts)
    return parts


def density(likelihood: TorchLikelihood, raw: Tensor) -> Distribution:
    """Return the density of each value.

    Parameters
    ----------
    likelihood
        The family, one of darts' with a density.
    raw
        Raw parameters, (N, T, C, K).
    """
    parameters = likelihood._params_from_output(bounded(likelihood, raw))
    with _unchecked():
        found: Distribution = likelihood._distr_from_params(parameters)
    return found


@torch.no_grad()
def draw(likelihood: TorchLikelihood, raw: Tensor) -> Tensor:
    """Draw a value from each density.

    Parameters
    ----------
    likelihood, raw
        As for :func:`density`.

    Returns
    -------
    Tensor
        Observations, (N, T, C).
    """
    if family_of(likelihood).reparametrised:
        # `torch.normal`, which darts asks, looks at the spreads
        return density(likelihood, raw).rsample()
    with _unchecked():
        drawn: Tensor = likelihood.sample(bounded(likelihood, raw))
    return drawn


def _without_missing(
    likelihood: TorchLikelihood, raw: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Put values of high density where the weight is zero.

    Returns
    -------
    x
        Observations, (..., T, C).
    weight
        Weight of each term of the likelihood, (..., T, C). For a joint density there is
        one per step, (..., T), which is zero unless all components are observed.
    """
    family = family_of(likelihood)
    if family.joint:
        complete = (weight > 0).all(-1)
        x = torch.where(complete.unsqueeze(-1), x, 1 / x.shape[-1])
        # float32 proportions sum to one only nearly
        return x / x.sum(-1, keepdim=True), weight.mean(-1) * complete
    first = likelihood._params_from_output(raw.detach())[0]
    return torch.where(weight > 0, x, family.neutral(first)), weight


def negative_log_likelihood(
    likelihood: TorchLikelihood, raw: Tensor, x: Tensor, weight: Tensor
) -> Tensor:
    """Mean negative log-likelihood in nats per value, a scalar.

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
    dtype = torch.result_type(raw, x)
    raw, x, weight = _precise(likelihood, bounded(likelihood, raw), x, weight)
    x, weight = _without_missing(likelihood, raw, x, weight)
    if type(likelihood) is GaussianLikelihood and not has_prior(likelihood):
        return _gaussian_loss(likelihood, raw, x, weight)
    # one density for all components of a step is one term, not C of them
    terms = x.shape[-1] if weight.dim() < x.dim() else 1
    with _unchecked():
        loss: Tensor = likelihood.compute_loss(raw, x, weight) / terms
    return loss.to(dtype)


def _gaussian_loss(
    likelihood: GaussianLikelihood, raw: Tensor, x: Tensor, weight: Tensor
) -> Tensor:
    """What darts minimises for Gaussians, whose spreads torch's loss would look at."""
    mean, std = likelihood._params_from_output(raw)
    variance = std.square()
    with torch.no_grad():
        variance.clamp_(min=likelihood.nllloss.eps)
    loss = 0.5 * (variance.log() + (x - mean).square() / variance)
    loss = loss + 0.5 * math.log(2 * math.pi)
    if likelihood.beta_nll > 0:
        loss = loss * std.detach().square() ** likelihood.beta_nll
    return (loss * weight).mean()


def cumulative(
    likelihood: TorchLikelihood, raw: Tensor, x: Tensor, observed: Tensor
) -> Tensor:
    """P(X <= x) of each value, (N, T, C).

    Where torch has no such function of a density, a draw from it is compared with the
    value: 1 if the draw is lower, and 1 half of the times that both are the same.

    Parameters
    ----------
    likelihood, raw, x, observed
        As for :func:`log_prob`.
    """
    x, _ = _without_missing(likelihood, bounded(likelihood, raw), x, observed)
    try:
        with _unchecked():
            below: Tensor = density(likelihood, raw).cdf(x)
    except NotImplementedError:
        drawn = draw(likelihood, raw)
        same = (drawn == x) & (torch.rand_like(drawn) < 0.5)
        below = ((drawn < x) | same).to(raw.dtype)
    return below


def log_prob(
    likelihood: TorchLikelihood, raw: Tensor, x: Tensor, observed: Tensor
) -> Tensor:
    """Log-density of what is observed at each step in nats, (N, T).

    Parameters
    ----------
    likelihood
        The family, one of darts' with a density.
    raw
        Raw parameters, (N, T, C, K).
    x
        Observations; any number where missing, (N, T, C).
    observed
        1 where ``x`` is observed and 0 where it is missing, (N, T, C).
    """
    dtype = torch.result_type(raw, x)
    raw, x, observed = _precise(likelihood, raw, x, observed)
    x, observed = _without_missing(likelihood, bounded(likelihood, raw), x, observed)
    with _unchecked():
        log_probs: Tensor = density(likelihood, raw).log_prob(x) * observed
    log_probs = log_probs.sum(-1) if log_probs.dim() == x.dim() else log_probs
    return log_probs.to(dtype)


def given_the_rest(
    likelihood: TorchLikelihood, drawn: Tensor, x: Tensor, observed: Tensor
) -> Tensor:
    """Condition draws of a step on the components that are observed at it.

    Components are independent given the state, except for a joint density: the missing
    components of a Dirichlet variable divide up what the observed ones leave, in the
    proportions that were drawn.

    Parameters
    ----------
    likelihood
        The family, one of darts' with a density.
    drawn
        Draws of all components, (..., T, C).
    x
        Observations; any number where missing, (..., T, C).
    observed
        1 where ``x`` is observed and 0 where it is missing, (..., T, C).
    """
    if not family_of(likelihood).joint:
        return drawn
    left = 1 - (x * observed).sum(-1, keepdim=True)
    drawn = drawn * (1 - observed)
    return drawn * left / drawn.sum(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


def marginal_parameters(likelihood: TorchLikelihood, raw: Tensor) -> tuple[Tensor, ...]:
    """Parameters of the mixture over latent paths, (B, T, C) each.

    Those of the Gaussian with the mixture's mean and variance; for the log-normal, with
    those of the logarithm. A mixture of Bernoulli variables is one.

    Parameters
    ----------
    likelihood
        One whose family has a marginal.
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
