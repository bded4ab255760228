"""Every density of darts, and the parameters of the predictive marginal."""

import inspect

import numpy as np
import pytest
import torch
from darts import TimeSeries
from darts.utils.likelihood_models import torch as likelihoods

from darts_ddssm.series.likelihoods import FAMILIES as table
from darts_ddssm.series.likelihoods import (
    bounded,
    cumulative,
    family_of,
    in_support,
    in_units,
    log_prob,
    negative_log_likelihood,
)
from darts_ddssm.series.scaling import Scale
from tests.helpers import (
    assert_mean,
    assert_same_mean,
    noisy_sine,
    same,
    with_gaps,
)

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

# torch counts the ends of their supports in
OPEN = {"Gamma", "Beta"}

COUNTED = {"Poisson", "NegativeBinomial", "Geometric", "Bernoulli"}

MIXTURES_OF_THE_FAMILY = {"Gaussian", "LogNormal", "Bernoulli"}


@pytest.mark.parametrize("family", FAMILIES)
def test_cumulative_probability(family):
    """That of as many draws as there are, with half of those that equal the value."""
    torch.manual_seed(0)
    likelihood = getattr(likelihoods, f"{family}Likelihood")()
    raw = torch.randn(1, 1, 2, likelihood.num_parameters).repeat(4000, 1, 1, 1)
    draws = likelihood.sample(raw)
    x = draws[:1].expand_as(draws)
    found = cumulative(likelihood, raw, x, torch.ones_like(x))
    assert ((found >= 0) & (found <= 1)).all()
    # torch has the function of most densities without mass at single values
    exact = (found == found[:1]).all()
    assert exact == (family not in {*COUNTED, "Beta", "Dirichlet"})
    below = (draws < x).double() + (draws == x).double() / 2
    # the value itself is the first draw
    if exact:
        assert_mean(below[1:], found[0])
    else:
        assert_same_mean(below[1:], found.double())


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


# --- the table of the families --------------------------------------------------------


def density(likelihood, raw: torch.Tensor):
    return likelihood._distr_from_params(likelihood._params_from_output(raw))


@pytest.mark.parametrize("family", FAMILIES)
def test_table_says_what_the_density_does(family):
    kind = getattr(likelihoods, f"{family}Likelihood")
    likelihood, told = kind(), table[kind]
    raw = torch.zeros(1, 1, 2, likelihood.num_parameters)
    one = density(likelihood, raw)
    # support and a value in it
    values = torch.tensor([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0]).view(-1, 1, 1)
    pairs = torch.stack([values, 1 - values], dim=-1)[:, 0]
    inside = one.support.check(pairs)
    if family in OPEN:
        # where the density may be infinite
        inside &= (pairs != 0) & ((pairs != 1) | (family == "Gamma"))
    assert torch.equal(told.support.check(pairs), inside)
    assert told.joint == (one.event_shape == (2,))
    # a derivative where it is used
    assert one.has_rsample or not told.reparametrised
    names = set(inspect.signature(kind).parameters) - {"prior_strength"}
    priors = [name for name in names if name.startswith("prior_")]
    assert told.takes_prior == bool(priors)
    # where raw parameters go, far on the negative side
    low = density(likelihood, raw - 30)
    parameters = likelihood._params_from_output(raw - 30)
    assert low.batch_shape == one.batch_shape
    for i, parameter in enumerate(parameters):
        assert (parameter < -1).all() == (i < told.num_real), i


@pytest.mark.parametrize("size", [1.0, 20.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_missing_values_cost_nothing_whatever_the_parameters(family, size):
    """Nor is the gradient of what is observed beside them disturbed."""
    likelihood = getattr(likelihoods, f"{family}Likelihood")()
    torch.manual_seed(0)
    raw = (size * torch.randn(1, 400, 2, likelihood.num_parameters)).requires_grad_()
    x = torch.as_tensor(FAMILIES[family][:1].astype(np.float32)).expand(1, 400, -1)
    weight = torch.zeros_like(x)
    loss = negative_log_likelihood(likelihood, raw, x, weight)
    loss.backward()
    assert loss == 0 and not raw.grad.any()
    told = log_prob(likelihood, raw.detach(), x, weight)
    assert torch.equal(told, torch.zeros(1, 400))


@pytest.mark.parametrize("family", [name for name in FAMILIES if FAMILIES[name] is ANY])
def test_location_and_scale_move_the_density(family):
    """A shift and a scaling of data and parameters change the density by its Jacobian."""
    likelihood = getattr(likelihoods, f"{family}Likelihood")()
    assert family_of(likelihood).location_scale
    torch.manual_seed(0)
    raw, x = torch.randn(2, 3, 1, 2).double(), torch.randn(2, 3, 1).double()
    scale = Scale(torch.tensor(5.0).double(), torch.tensor(3.0).double())
    ones = torch.ones_like(x)
    before = log_prob(likelihood, raw, x, ones)
    of_data = in_units(likelihood, raw, scale.shift, scale.spread)
    after = log_prob(likelihood, of_data, scale.to_data(x), ones)
    torch.testing.assert_close(after, before - np.log(3.0))


# --- values that are not negative -----------------------------------------------------

# Families of values that have a unit and are not negative, and of counts.
UNITS = [n for n in FAMILIES if FAMILIES[n] is POSITIVE or FAMILIES[n] is COUNTS]
SHARES_ONLY = ["Beta", "Bernoulli", "ContinuousBernoulli", "Dirichlet"]
TWO_PARAMETERS = ["Gamma", "LogNormal", "NegativeBinomial", "Weibull"]


def test_which_families_have_a_unit():
    for name in FAMILIES:
        family = table[getattr(likelihoods, f"{name}Likelihood")]
        is_location_scale = FAMILIES[name] is ANY
        assert family.location_scale == is_location_scale
        assert family.has_unit == (is_location_scale or name in UNITS), name


def moments_of(family: str, mean: float, std: float, scale: Scale):
    """Mean and variance of the density whose normalised moments the network says."""
    likelihood = getattr(likelihoods, f"{family}Likelihood")()
    # the inverse of the two softplus
    location = (mean - scale.shift.item()) / scale.spread.item()
    raw_spread = np.log(np.expm1(std / scale.spread.item()))
    raw = torch.tensor([location, raw_spread][: likelihood.num_parameters]).double()
    of_data = in_units(likelihood, raw.view(1, 1, 1, -1), scale.shift, scale.spread)
    found = density(likelihood, of_data)
    return found.mean.item(), found.variance.item()


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("family", UNITS)
def test_network_says_mean_and_spread(family, unit):
    """In any unit, and far from zero in terms of the spread, where nothing is cut off."""
    scale = Scale(torch.tensor(50.0 * unit).double(), torch.tensor(2.0 * unit).double())
    mean, std = 60.0 * unit, 6.0 * unit
    found_mean, found_variance = moments_of(family, mean, std, scale)
    # the probability of a rare count other than zero is known in single precision
    assert found_mean == pytest.approx(mean, rel=1e-2 if family == "Geometric" else 1e-6)
    if family in TWO_PARAMETERS:
        expected = std**2 + (mean if family == "NegativeBinomial" else 0.0)
        # that of a Weibull variable is known nearly
        rough = 0.05 if family == "Weibull" else 1e-6
        assert found_variance == pytest.approx(expected, rel=rough)


@pytest.mark.parametrize("family", UNITS)
def test_mean_far_below_zero_is_next_to_nothing(family):
    likelihood = getattr(likelihoods, f"{family}Likelihood")()
    raw = torch.tensor([-1e4, 3.0])[: likelihood.num_parameters].view(1, 1, 1, -1)
    raw = raw.requires_grad_()
    of_data = in_units(likelihood, raw, torch.tensor(5.0), torch.tensor(2.0))
    x = torch.tensor([[[1.0]]])
    loss = negative_log_likelihood(likelihood, of_data, x, torch.ones_like(x))
    loss.backward()
    assert loss.isfinite() and raw.grad.isfinite().all()
    assert (density(likelihood, of_data).mean < 1e-6).all()


# Location and spread of the data, and values near the location. Where the network says 0
# and -7, terms of the log-density are in the millions.
PRECISE = {
    "Gamma": (1000.0, 1.0, [999.0, 1000.0, 1001.0]),
    "NegativeBinomial": (5.0, 2.0, [3.0, 5.0, 8.0]),
    "Poisson": (1e6, 1e3, [999e3, 1e6, 1001e3]),
}


@pytest.mark.parametrize("family", PRECISE)
def test_log_densities_in_single_precision(family):
    """And their derivatives are those in double precision."""
    likelihood = getattr(likelihoods, f"{family}Likelihood")()
    found = []
    for dtype in (torch.float32, torch.float64):
        location, spread, x = (torch.tensor(x, dtype=dtype) for x in PRECISE[family])
        said = torch.tensor([0.0, -7.0][: likelihood.num_parameters], dtype=dtype)
        raw = said.repeat(1, 3, 1, 1).requires_grad_()
        of_data, x = in_units(likelihood, raw, location, spread), x.view(1, 3, 1)
        told = log_prob(likelihood, of_data, x, torch.ones_like(x))
        loss = negative_log_likelihood(likelihood, of_data, x, torch.ones_like(x))
        (grad,) = torch.autograd.grad(loss, raw)
        assert told.dtype == loss.dtype == dtype
        found.append([one.double() for one in (told, loss, grad)])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", PRECISE)
def test_log_densities_where_single_precision_is_all_there_is(monkeypatch, family):
    monkeypatch.setattr("darts_ddssm.series.likelihoods.WITH_DOUBLE", set())
    likelihood = getattr(likelihoods, f"{family}Likelihood")()
    raw, x = torch.zeros(1, 2, 1, likelihood.num_parameters), torch.ones(1, 2, 1)
    rough = log_prob(likelihood, raw, x, torch.ones_like(x))
    monkeypatch.undo()
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, log_prob(likelihood, raw, x, torch.ones_like(x)))


@pytest.mark.parametrize("family", SHARES_ONLY)
def test_shares_have_no_unit(family):
    likelihood = getattr(likelihoods, f"{family}Likelihood")()
    raw = torch.randn(1, 3, 2, likelihood.num_parameters)
    assert in_units(likelihood, raw, torch.tensor(5.0), torch.tensor(2.0)) is raw


def counts(length: int = 160, drift: float = 0.0) -> TimeSeries:
    """Thousands, with a season of eight steps."""
    steps = np.arange(length)
    mean = 5000 * np.exp(0.2 * np.sin(2 * np.pi * steps / 8) + drift * steps)
    values = np.random.default_rng(0).poisson(mean)
    return TimeSeries.from_values(values.astype(np.float32))


@pytest.mark.parametrize("drift", [0.0, 0.02])
@pytest.mark.parametrize("family", UNITS)
def test_large_values_are_forecast_at_their_level(tiny, family, drift):
    """After a few updates, also where they grow, by 40 % in a window."""
    series = counts(drift=drift)
    likelihood = getattr(likelihoods, f"{family}Likelihood")()
    model = tiny(likelihood=likelihood, input_chunk_length=16, output_chunk_length=4)
    model.fit(series[:-4])
    forecast = model.predict(4, num_samples=200, random_state=0).all_values()
    assert model.model.has_instance_scale == (drift > 0)
    # two standard deviations of the season; those of a geometric mean are 0.07
    assert forecast.mean() == pytest.approx(series[-4:].values().mean(), rel=0.4)


@pytest.mark.parametrize("family", [f for f in UNITS if FAMILIES[f] is POSITIVE])
def test_unit_changes_no_forecast(tiny, family):
    """A thousand grams are a kilogram; the density has another unit, too."""
    likelihood = getattr(likelihoods, f"{family}Likelihood")
    grams, kilograms = counts(), counts().map(lambda x: x / 1024)
    models = [tiny(likelihood=likelihood()).fit(one) for one in (grams, kilograms)]
    first, second = (m.predict(4, num_samples=9, random_state=0) for m in models)
    np.testing.assert_allclose(first.values(), 1024 * second.values(), rtol=1e-3)
    difference = models[1].log_likelihood() - models[0].log_likelihood()
    assert difference == pytest.approx(np.log(1024), abs=0.05)


def test_counts_of_earlier_versions(tiny):
    """The networks of saved models say the parameters of the data themselves."""
    series = counts()
    model = tiny(likelihood=likelihoods.PoissonLikelihood(), n_epochs=1).fit(series)
    for parameter in model.model.ssm.decoder.parameters():
        parameter.data.zero_()

    def mean() -> float:
        return model.predict(4, num_samples=500, random_state=0).all_values().mean()

    level = series.values().mean()
    assert mean() == pytest.approx(level, rel=0.1)
    state = model.model.state_dict()
    del state["is_unit_free"]
    model.model.load_state_dict(state)
    # the softplus of zero, by 2,000 draws
    assert mean() == pytest.approx(np.log(2), abs=0.1)


@pytest.mark.parametrize("patch_length", [1, 3])
def test_growing_counts_have_a_latent_side(tiny, short_flows, patch_length):
    series = counts(60, drift=0.02)
    model = tiny(
        likelihood=likelihoods.NegativeBinomialLikelihood(), patch_length=patch_length
    )
    model.fit(series)
    assert model.model.has_instance_scale
    filled = model.impute(with_gaps(series, slice(40, 44)), num_samples=50, random_state=0)
    gap, known = filled.all_values()[40:44].mean(), series.values()[40:44].mean()
    assert gap == pytest.approx(known, rel=0.4)
    end = series[-20:]
    whole = model.log_likelihood(end, num_samples=200, random_state=0)
    steps = model.log_likelihood(end, num_samples=200, random_state=0, by_step=True)
    # whole patches of the eight steps after the input chunk
    number = 8 // patch_length * patch_length
    assert np.nansum(steps.values()) / number == pytest.approx(whole, rel=0.2)
    ranks = model.probability_integral_transform(end).values()
    assert np.nanmin(ranks) >= 0 and np.nanmax(ranks) <= 1


def test_a_likelihood_of_the_user_has_its_own_support():
    class Named(likelihoods.GammaLikelihood):
        pass

    class HalfCauchyLikelihood(likelihoods.TorchLikelihood):
        def __init__(self):
            super().__init__(likelihoods.LikelihoodType.HalfNormal, ["scale"])

        def _params_from_output(self, model_output):
            return (torch.nn.functional.softplus(model_output.squeeze(-1)),)

        def _distr_from_params(self, params):
            return torch.distributions.HalfCauchy(params[0])

        def sample(self, model_output):
            return self._distr_from_params(self._params_from_output(model_output)).sample()

        @property
        def num_parameters(self):
            return 1

        @property
        def _prior_params(self):
            return None

    assert family_of(Named()) == table[likelihoods.GammaLikelihood]
    told = family_of(HalfCauchyLikelihood())
    assert told.support is torch.distributions.constraints.nonnegative
    assert not (told.location_scale or told.reparametrised or told.marginal)
    assert not told.takes_prior


class StudentTLikelihood(likelihoods.TorchLikelihood):
    """A user's own, with a real location; of two parameters in either order."""

    def __init__(self, location: int):
        names = ["mu", "sigma"] if location == 0 else ["sigma", "mu"]
        super().__init__(likelihoods.LikelihoodType.Gaussian, names)
        self.location = location

    def _params_from_output(self, model_output):
        first, second = model_output.unbind(-1)
        if self.location == 0:
            return first, torch.nn.functional.softplus(second)
        return torch.nn.functional.softplus(first), second

    def _distr_from_params(self, params):
        scale = params[1 - self.location]
        return torch.distributions.StudentT(5.0, params[self.location], scale)

    def sample(self, model_output):
        return self._distr_from_params(self._params_from_output(model_output)).sample()

    @property
    def num_parameters(self):
        return 2


@pytest.mark.parametrize("location", [0, 1])
def test_a_location_of_the_user_goes_anywhere(location):
    likelihood = StudentTLikelihood(location)
    raw = torch.zeros(1, 1, 1, 2)
    raw[..., location] = -200.0
    raw = raw.requires_grad_()
    assert bounded(likelihood, raw)[..., location] == -200
    x = torch.full((1, 1, 1), -300.0)
    loss = negative_log_likelihood(likelihood, raw, x, torch.ones_like(x))
    loss.backward()
    # towards the value
    assert raw.grad[..., location] > 0


def test_a_positive_parameter_of_the_user_is_not_rounded_to_zero():
    raw = torch.tensor([-200.0, -200.0]).view(1, 1, 1, 2)
    x = torch.full((1, 1, 1), -201.0)
    assert log_prob(StudentTLikelihood(0), raw, x, torch.ones_like(x)).isfinite()


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_the_gaussian_loss_is_that_of_darts(beta):
    """Which looks at the spreads; in value and derivatives, at its least variance too."""
    torch.manual_seed(0)
    likelihood = likelihoods.GaussianLikelihood(beta_nll=beta)
    raw, x = torch.randn(4, 5, 2, 2, dtype=torch.float64), torch.randn(4, 5, 2).double()
    raw[0, ..., 1] = -20.0
    weight = (torch.rand(4, 5, 2) < 0.7).double()
    ours, theirs = (raw.clone().requires_grad_() for _ in range(2))
    loss = negative_log_likelihood(likelihood, ours, x, weight)
    # where the weight is zero, the mean itself is put
    filled = torch.where(weight > 0, x, raw[..., 0])
    expected = likelihood.compute_loss(theirs, filled, weight)
    torch.testing.assert_close(loss, expected)
    (ours_grad,) = torch.autograd.grad(loss, ours)
    (theirs_grad,) = torch.autograd.grad(expected, theirs)
    torch.testing.assert_close(ours_grad, theirs_grad)
