"""Whether the answers are right: states, likelihood, gaps, simulations, transitions."""

from functools import cache
from types import SimpleNamespace as Namespace

import numpy as np
import pytest
import torch
from darts import TimeSeries
from darts.utils.likelihood_models import torch as likelihoods
from scipy import stats

from darts_ddssm import DDSSMModel
from darts_ddssm.series import inference
from darts_ddssm.series.inference import PredictiveLogDensities
from darts_ddssm.series.likelihoods import cumulative, log_prob
from darts_ddssm.ssm.state_space import StateSpaceModel
from darts_ddssm.ssm.window import Window
from tests.helpers import (
    GAPS,
    INPUT,
    ORDERS,
    SERIES,
    TRANSITIONS,
    WINDOW,
    agree,
    ask,
    fitted,
    noisy_sine,
    standard_error,
    tiny_model,
    values,
    with_gaps,
)

FAST = {"lr": 1e-2}


@cache
def trained(**kwargs) -> DDSSMModel:
    """Return a model that knows the sine. A Gaussian transition answers quickly."""
    arguments = dict(
        transition="gaussian",
        transition_order=1,
        latent_dim=3,
        hidden_size=16,
        batch_size=32,
        n_epochs=30,
        optimizer_kwargs=FAST,
    )
    return tiny_model(**(arguments | kwargs)).fit(noisy_sine(200))


def with_tail(series: TimeSeries, num_steps: int) -> TimeSeries:
    """Append missing values."""
    tail = np.full((num_steps, series.n_components), np.nan, dtype=series.dtype)
    return series.append_values(tail)


# --- states ---------------------------------------------------------------------------


def later(series: TimeSeries, t: int) -> TimeSeries:
    """Return a series with other values after step t."""
    other = series.values(copy=True)
    other[t + 1 :] = other[t + 1 :] * -2 + 1
    return series.with_values(other)


@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("t", [5, 30, 60])
def test_filtering_does_not_know_the_future(transition, t):
    model = fitted(transition=transition)
    one, other = GAPS, later(GAPS, t)
    past = slice(0, t + 1)
    filtered = [values(ask("filtering", model, s)) for s in (one, other)]
    np.testing.assert_array_equal(filtered[0][past], filtered[1][past])
    assert not np.array_equal(filtered[0][t + 1], filtered[1][t + 1])
    smoothed = [values(ask("smoothing", model, s)) for s in (one, other)]
    assert not np.array_equal(smoothed[0][past], smoothed[1][past])


@pytest.mark.parametrize("shift", [0, 3])
def test_filtering_sees_the_input_chunk_of_a_forecast(shift):
    """Its first step still counts, the step before it does not."""
    model = fitted(output_chunk_shift=shift)
    states = values(ask("filtering", model, SERIES))
    for age, seen in ((INPUT - 1, True), (INPUT, False)):
        changed = SERIES.values(copy=True)
        changed[70 - age] += 100
        other = values(ask("filtering", model, SERIES.with_values(changed)))
        assert np.array_equal(states[70], other[70]) is not seen


def test_filtering_of_a_series_with_a_season():
    """The first pasts are shorter than the cycles that tell the season."""
    rng = np.random.default_rng(0)
    season = np.tile(rng.standard_normal(6), 20)
    values = 5 * season + 0.3 * rng.standard_normal(120).cumsum()
    series = TimeSeries.from_values(values.astype(np.float32))
    model = tiny_model().fit(series)
    assert model.model.local_pattern.season_length == 6
    states = model.infer_latents(series[:30], filtering=True, num_samples=3)
    assert np.isfinite(states.all_values()).all()


@pytest.mark.parametrize("norm", [False, True])
def test_a_filtered_state_is_what_a_forecast_starts_with(monkeypatch, norm):
    """Both are drawn from the same posterior, also where windows have their own scale."""
    model = fitted(use_reversible_instance_norm=norm)
    given = []

    def spy(ssm, projection, window, *args, **kwargs):
        given.append(window)
        return sample_states(ssm, projection, window, *args, **kwargs)

    sample_states = StateSpaceModel.sample_states
    monkeypatch.setattr(StateSpaceModel, "sample_states", spy)
    drifting = SERIES + np.linspace(0, 5, len(SERIES), dtype=np.float32)[:, None, None]
    model.predict(1, drifting)
    ask("filtering", model, drifting, batch_size=1)
    assert len(given) == 1 + len(SERIES)
    for forecast, filtered in zip(given[0], given[-1], strict=True):
        assert torch.equal(forecast, filtered)
    # a step earlier it is another one
    assert not torch.equal(given[0].x, given[-2].x)


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_smoothing_ends_where_filtering_does(transition):
    """At the last step of an input chunk both know all of it. Five standard errors."""
    model, series = trained(transition=transition), SERIES[:INPUT]
    draws = [
        values(ask(question, model, series, num_samples=2000))
        for question in ("smoothing", "filtering")
    ]
    assert agree(draws[0][-1], draws[1][-1])
    assert agree(*(np.square(x[-1]) for x in draws))
    # at the first steps they know different things
    assert not agree(draws[0][1], draws[1][1])


def test_states_tell_the_phase_of_the_sine():
    """A regression on their means finds it, as the docstring says one should."""
    latents = trained().infer_latents(SERIES, num_samples=50, random_state=0)
    states = latents.all_values().mean(2)
    design = np.column_stack([states, np.ones(80)])
    angle = 2 * np.pi * np.arange(80) / 12
    truth = np.column_stack([np.sin(angle), np.cos(angle)])
    rest = truth - design @ np.linalg.lstsq(design, truth, rcond=None)[0]
    # the cosine is in no single value of the series
    assert (1 - rest.var(0) / truth.var(0) > [0.8, 0.5]).all()


def test_series_of_a_list_are_not_mixed_up():
    """Each answer is that of its own series, whatever shares a batch with it."""
    series = [SERIES[:30], 10 + SERIES[:30], SERIES[:40], 20 + SERIES[:30]]
    offsets = [0, 10, 0, 20]
    model = trained()
    filled = model.impute([with_gaps(s, slice(10, 12)) for s in series], num_samples=2)
    for one, offset in zip(filled, offsets, strict=True):
        assert abs(one.all_values().mean() - offset) < 2
    scores = model.log_likelihood(series, num_samples=2)
    assert scores[0] > scores[1] > scores[3] and scores[2] > scores[1]


# --- likelihood -----------------------------------------------------------------------


RNG = np.random.default_rng(0)
LOG_SCALE_3 = np.exp(1.0)
# Independent draws and their log-densities, in nats a value.
DRAWS = {
    "Gaussian": (x := RNG.normal(50, 3, 300), stats.norm(50, 3).logpdf(x)),
    "Laplace": (x := RNG.laplace(-5, 2, 300), stats.laplace(-5, 2).logpdf(x)),
    "LogNormal": (
        x := RNG.lognormal(1, 0.5, 300),
        stats.lognorm(0.5, scale=np.e).logpdf(x),
    ),
    "Poisson": (x := RNG.poisson(6, 300), stats.poisson(6).logpmf(x)),
    "Bernoulli": (x := RNG.random(300) < 0.2, stats.bernoulli(0.2).logpmf(x)),
    "Beta": (x := RNG.beta(3, 8, 300), stats.beta(3, 8).logpdf(x)),
    # a pair of shares has one density, over two values
    "Dirichlet": (
        np.column_stack([x := RNG.beta(3, 8, 300), 1 - x]),
        stats.beta(3, 8).logpdf(x) / 2,
    ),
}


@cache
def model_of_draws(family: str) -> DDSSMModel:
    likelihood = getattr(likelihoods, f"{family}Likelihood")()
    model = tiny_model(
        input_chunk_length=6,
        output_chunk_length=2,
        likelihood=likelihood,
        transition="gaussian",
        latent_dim=1,
        overshooting_weight=0,
        gap_augmentation=0.0,
        batch_size=32,
        n_epochs=20,
        optimizer_kwargs={"lr": 3e-2},
    )
    return model.fit(TimeSeries.from_values(DRAWS[family][0].astype(np.float32)))


# concentrations of darts' Dirichlet variables sum to one: those of the draws do not
@pytest.mark.parametrize("family", [f for f in DRAWS if f != "Dirichlet"])
def test_likelihood_of_draws_is_their_density(family):
    """Nothing can be known of them but what they are drawn from."""
    model = model_of_draws(family)
    expected = DRAWS[family][1].mean()
    series = model.training_series
    gaps = with_gaps(series, slice(100, 130))
    for score in model.log_likelihood([series, gaps], num_samples=50):
        assert score == pytest.approx(expected, abs=0.15)


def test_unusual_series_score_lower():
    values = SERIES.values(copy=True)
    outlier = values.copy()
    outlier[40] += 3
    spoiled = [outlier, values * 2, values[np.random.default_rng(0).permutation(80)]]
    series = [SERIES, *(SERIES.with_values(x) for x in spoiled)]
    for model in (trained(), trained(transition="diffusion")):
        usual, *unusual = model.log_likelihood(series)
        # the nats of a change of model that one would call decisive, in all 80 values
        assert max(unusual) < usual - 5 / 80


def test_outlier_is_found_by_windows():
    values = SERIES.values(copy=True)
    values[40] += 3
    series = SERIES.with_values(values)
    parts = [series[i : i + 12] for i in range(0, 69, 4)]
    scores = trained().log_likelihood(parts)
    assert 29 <= 4 * int(np.argmin(scores)) <= 40


def test_log_densities_by_step():
    """In nats, on the last steps of patches; NaN where nothing is observed."""
    model = fitted(patch_length=3, num_components=2)
    series = noisy_sine(25, num_components=2)
    gappy = [with_gaps(series, slice(6, 12)), with_gaps(series, (slice(6, 12), 0))]
    found = model.log_likelihood(gappy, by_step=True, num_samples=4, random_state=0)
    for one, steps in zip(gappy, found, strict=True):
        assert steps.components.to_list() == ["log_density"]
        assert steps.time_index.equals(one.time_index[::3])
    # of the third and fourth patch, one value and none
    missing = [np.isnan(steps.values()[:, 0]).tolist() for steps in found]
    assert missing[0] == [i == 3 for i in range(9)]
    assert not any(missing[1])


def test_log_densities_by_step_sum_to_that_of_the_series():
    """The filter, which resamples, comes nearer to it from below."""
    model, series = trained(), SERIES[:24]
    how = {"num_samples": 500, "random_state": 0}
    steps = model.log_likelihood(series, by_step=True, **how).values()
    whole = model.log_likelihood(series, **how)
    assert -0.05 < np.sum(steps) / 24 - whole < 0.3


@pytest.mark.parametrize("steps", [slice(9, 11), slice(0, 2)])
def test_log_likelihood_of_a_series_with_gaps_is_that_of_the_filter(steps):
    """The posterior of the encoder would cross them in one way."""
    model, gappy = trained(), with_gaps(SERIES[:24], steps)
    how = {"num_samples": 50, "random_state": 0}
    by_step = model.log_likelihood(gappy, by_step=True, **how).values()
    assert model.log_likelihood(gappy, **how) == pytest.approx(np.nansum(by_step) / 22)
    # each series has its own place, in gaps or not; what is missing at the end is no gap
    several = [SERIES[:24], gappy, with_gaps(SERIES[:24], slice(20, 24))]
    found = model.log_likelihood(several, **how)
    complete = model.log_likelihood(several[::2], **how)
    np.testing.assert_allclose(found[::2], complete)


@pytest.mark.parametrize(
    "length, by_filter",
    [(INPUT, True), (WINDOW - 1, True), (WINDOW, False), (2 * WINDOW, False), (80, True)],
)
def test_log_likelihood_of_a_series_unlike_training_windows_is_that_of_the_filter(
    length, by_filter
):
    """Of less than one the posterior is too sure; over many, few of its paths count."""
    model, series = trained(), SERIES[:length]
    how = {"num_samples": 20, "random_state": 0}
    by_step = model.log_likelihood(series, by_step=True, **how).values()
    whole = model.log_likelihood(series, **how)
    assert np.isclose(whole, by_step.mean(), rtol=0, atol=1e-5) == by_filter


def test_an_outlier_has_the_lowest_log_density():
    values = SERIES.values(copy=True)
    values[40] += 3
    series = SERIES.with_values(values)
    usual, by_step = (
        trained().log_likelihood(x, by_step=True, num_samples=500, random_state=0).values()
        for x in (SERIES, series)
    )
    assert int(np.argmin(by_step)) == 40
    # what comes before it does not know of it
    np.testing.assert_array_equal(by_step[:40], usual[:40])


@pytest.mark.parametrize("size", [1e4, 1e6])
def test_steps_after_an_outlier_have_their_log_densities(size):
    """To the digits of each, however unlikely the series was before."""
    values = SERIES.values(copy=True)
    values[40] = size
    series, how = SERIES.with_values(values), {"num_samples": 100, "random_state": 0}
    steps = trained().log_likelihood(series, by_step=True, **how).values()[:, 0]
    assert steps[40] < -1e3
    usual = trained().log_likelihood(SERIES, by_step=True, **how).values()[:, 0]
    # an input chunk later it is forgotten
    np.testing.assert_allclose(steps[60:], usual[60:], atol=1.0)
    assert (steps[41:] != np.round(steps[41:], 2)).any()


def test_groups_of_paths_are_averaged_without_a_sum(monkeypatch):
    """Beside the formula in double precision, with an unusual step among the first."""
    rng = np.random.default_rng(0)
    groups = [rng.standard_normal((3, 40)).astype(np.float32) for _ in range(3)]
    for x in groups:
        x[0, 4] -= 1e9
    sizes, given = [128, 128, 64], iter(groups)
    totals = np.stack(groups).astype(np.longdouble).cumsum(2)
    shares = np.log(np.array(sizes) / 320)[:, None, None]
    highest = (totals + shares).max(0)
    total = highest + np.log(np.exp(totals + shares - highest).sum(0))
    expected = np.diff(total, axis=1, prepend=0)

    class Model:
        def predictive(self, normalised, size, num_solver_steps):
            return Namespace(log_density=torch.as_tensor(next(given)))

    question = PredictiveLogDensities(Namespace(), 320, 5)
    monkeypatch.setattr(question, "_group_sizes", lambda least: iter(sizes), raising=False)
    monkeypatch.setattr(question, "_normalised", lambda model: None, raising=False)
    found = question.answer(Model())[0].numpy()
    np.testing.assert_allclose(found, expected.astype(float), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", ["log_likelihood", "probability_integral_transform"])
def test_filter_has_all_its_paths_however_many_series_are_asked_about(monkeypatch, method):
    model, how = fitted(transition="gaussian"), {"num_samples": 20, "random_state": 0}
    if method == "log_likelihood":
        how["by_step"] = True
    found = []
    for rows in (2**16, 1):
        monkeypatch.setattr(inference, "MAX_ROWS", rows)
        found.append(getattr(model, method)(SERIES[:30], **how).values())
    np.testing.assert_array_equal(*found)


def test_impossible_value_spoils_no_later_step():
    """Of density zero in single precision, as Gumbel variables have far below."""
    series = noisy_sine(60)
    model = tiny_model(likelihood=likelihoods.GumbelLikelihood(), transition="gaussian")
    model.fit(series)
    values = series.values(copy=True)
    values[30] = -1e3
    series = series.with_values(values)
    how = {"num_samples": 20, "random_state": 0}
    steps = model.log_likelihood(series, by_step=True, **how).values()[:, 0]
    assert steps[30] == -np.inf and np.isfinite(np.delete(steps, 30)).all()
    assert model.log_likelihood(series, **how) == -np.inf
    ranks = model.probability_integral_transform(series, **how).values()
    assert ((ranks >= 0) & (ranks <= 1)).all() and ranks[30] == 0


def test_log_density_of_a_step_does_not_depend_on_later_ones():
    model = fitted(transition="gaussian")
    how = {"by_step": True, "random_state": 0, "num_samples": 4}
    one, other = (
        model.log_likelihood(series, **how).values()
        for series in (SERIES, later(SERIES, 30))
    )
    np.testing.assert_array_equal(one[:31], other[:31])
    assert not np.isclose(one[31], other[31])


@pytest.mark.parametrize("patch_length", [1, 3])
def test_probability_integral_transforms(patch_length):
    """Of each observed value, whatever comes after it."""
    model = fitted(patch_length=patch_length, num_components=2)
    series = noisy_sine(25, num_components=2)
    gappy = [series, with_gaps(series, (slice(6, 12), 0))]
    how = {"num_samples": 20, "random_state": 0}
    found = model.probability_integral_transform(gappy, **how)
    for one, transform in zip(gappy, found, strict=True):
        assert transform.time_index.equals(one.time_index)
        assert transform.components.equals(one.components)
        missing = np.isnan(one.values())
        np.testing.assert_array_equal(np.isnan(transform.values()), missing)
        assert ((transform.values() >= 0) & (transform.values() <= 1))[~missing].all()
    changed = [later(series, 15), gappy[1]]
    other, _ = model.probability_integral_transform(changed, **how)
    early, late = slice(0, 13), slice(16, 25)
    np.testing.assert_array_equal(other.values()[early], found[0].values()[early])
    assert not np.allclose(other.values()[late], found[0].values()[late])


@pytest.mark.parametrize("family", ["Dirichlet", "Gaussian", "Gamma"])
def test_density_of_a_patch_is_that_of_its_steps(family):
    """Also where a step of it is missing, or lies outside the window."""
    likelihood = getattr(likelihoods, f"{family}Likelihood")()
    x = np.random.default_rng(0).dirichlet([3, 4, 5], 60).astype(np.float32)
    model = tiny_model(likelihood=likelihood, patch_length=3, n_epochs=1)
    series_model = model.fit(TimeSeries.from_values(x)).model.series_model
    data, nothing = torch.tensor(x[None, :11]), torch.zeros(1, 11, 0)
    observed = torch.ones_like(data)
    observed[:, [1, 4, 5]] = 0
    window = Window(data, observed, nothing, nothing, torch.ones_like(data))
    normalised, cut = series_model.normalise(window), series_model.patches(11)
    torch.manual_seed(0)
    patches, z = cut.fold_window(normalised.window), torch.randn(1, 4, 2)
    raw = series_model.decode(z, patches.u, cut)
    raw = series_model.of_emitted(raw, normalised.scale, series_model.first_step(11))
    values = normalised.window.x if family == "Gaussian" else data
    for function in (log_prob, cumulative):
        of_states = series_model._of_emission(normalised, patches, function)
        found = torch.stack([of_states(z[:, t], torch.tensor([0]), t) for t in range(4)], 1)
        if function is log_prob:
            # (1, 11) -> (1, 4)
            steps = function(likelihood, raw, values, observed).unsqueeze(-1)
            torch.testing.assert_close(found, cut.fold(steps).sum(-1))
        elif family == "Dirichlet":
            # which torch draws
            assert found.shape == (1, 4, 9)
        else:
            steps = function(likelihood, raw, values, observed)
            # (1, 11, 3) -> (1, 4, 9); the first step lies outside the window
            torch.testing.assert_close(found.flatten()[3:], cut.fold(steps).flatten()[3:])


def test_transforms_of_extreme_values():
    values = SERIES.values(copy=True)
    values[[30, 50]] += [[4], [-4]]
    series = SERIES.with_values(values)
    transform = trained().probability_integral_transform(series, random_state=0).values()
    assert transform[30] > 0.99 and transform[50] < 0.01
    # the others lie on both sides
    assert 0.3 < np.median(transform) < 0.7


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_change_of_units(tiny, transition):
    """A thousand times the series has the logarithm of it less a value."""
    scores = []
    for scale in (1.0, 1000.0):
        series = (scale * SERIES).astype(np.float32)
        model = tiny(transition=transition, n_epochs=5).fit(series)
        scores.append(model.log_likelihood(num_samples=4, random_state=0))
    assert scores[0] - scores[1] == pytest.approx(np.log(1000), abs=0.01)


def scores_of(model: DDSSMModel, series: TimeSeries, num_samples: int) -> np.ndarray:
    """Twelve independent estimates of a log-density."""
    return np.array(
        model.log_likelihood([series] * 12, num_samples=num_samples, random_state=0)
    )


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_more_samples_are_a_better_bound(transition):
    model = trained(transition=transition)
    one, some, many = (scores_of(model, SERIES[:24], n) for n in (1, 8, 32))
    for fewer, more in ((one, some), (some, many)):
        error = np.hypot(fewer.std(), more.std()) / len(more) ** 0.5
        assert more.mean() - fewer.mean() > -3 * error
    assert many.mean() > one.mean() - one.std() / len(one) ** 0.5
    assert many.std() < one.std()


def test_nothing_after_the_last_observation_counts():
    """A tail of missing values changes no log-density, within five standard errors."""
    for series, (model, num_samples) in (
        (SERIES[:20], (trained(), 256)),
        (SERIES[-20:], (trained(), 256)),
        (SERIES[:20], (trained(transition="diffusion"), 8)),
    ):
        scores = scores_of(model, series, num_samples)
        with_missing = scores_of(model, with_tail(series, 10), num_samples)
        assert agree(scores, with_missing)


def test_gaps_are_finite_wherever_they_are():
    series = noisy_sine(num_components=2)
    gaps = (slice(0, 9), slice(30, 50), slice(70, 80), (slice(5, 60), 1), slice(1, 79))
    gappy = [with_gaps(series, where) for where in gaps]
    scores = fitted(num_components=2).log_likelihood(gappy, num_samples=4)
    assert np.isfinite(scores).all()


@cache
def short(transition: str, n_epochs: int) -> DDSSMModel:
    """Return a model that takes a single value, trained."""
    model = tiny_model(
        input_chunk_length=1,
        output_chunk_length=11,
        transition=transition,
        transition_order=1,
        overshooting_weight=0,
        num_solver_steps=16,
        n_epochs=n_epochs,
        optimizer_kwargs=FAST,
    )
    return model.fit(noisy_sine(200))


GRID = np.linspace(-3, 3, 41)
SPACE = GRID[1] - GRID[0]


def densities(model: DDSSMModel, rows: np.ndarray, num_samples: int) -> np.ndarray:
    """Densities of short series (R, T), eight independent estimates each: (R, 8)."""
    series = [
        TimeSeries.from_values(row[:, None].astype(np.float32))
        for row in rows
        for _ in range(8)
    ]
    counts = (~np.isnan(rows)).sum(1, keepdims=True)
    scores = model.log_likelihood(
        series, num_samples=num_samples, batch_size=len(series), random_state=0
    )
    return np.exp(counts * np.reshape(scores, (-1, 8)))


@pytest.mark.parametrize("n_epochs", [5, 15, 60])
@pytest.mark.parametrize("transition, num_samples", [("diffusion", 32), ("gaussian", 2000)])
def test_density_of_one_value_is_that_of_simulations(transition, num_samples, n_epochs):
    """It integrates to one and has their moments, within five standard errors.

    The weighted density is unbiased, though its logarithm is not: an encoder that is
    trained for long, and too sure of a single value, must not make it too low. The grid
    accounts for 0.002.
    """
    model = short(transition, n_epochs)
    density = SPACE * densities(model, GRID[:, None], num_samples)
    simulated = model.simulate(1, num_samples=4000, random_state=0).all_values()[0, 0]
    for power in range(3):
        moment = (GRID[:, None] ** power * density).sum(0)
        assert agree(moment, simulated**power, slack=0.002)
        assert standard_error(moment) < 0.2


# --- gaps -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["Poisson", "Bernoulli", "LogNormal", "Beta"])
def test_filled_and_simulated_values_are_of_the_family(family):
    model = model_of_draws(family)
    gaps = with_gaps(model.training_series, slice(20, 60))
    drawn = [
        model.impute(gaps, num_samples=20).all_values(),
        model.simulate(40, num_samples=20).all_values(),
    ]
    for x in map(torch.as_tensor, drawn):
        # those of torch are the ones that training checks
        density = model.likelihood._distr_from_params(
            model.likelihood._params_from_output(
                torch.zeros(1, 1, 1, 2)[..., : model.likelihood.num_parameters]
            )
        )
        assert density.support.check(x).all()
        # the mean of 800 draws or more
        assert abs(x.mean() - DRAWS[family][0].mean()) < 0.3 * DRAWS[family][0].mean()


def test_filled_shares_sum_to_one():
    model = model_of_draws("Dirichlet")
    gaps = with_gaps(model.training_series, (slice(20, 60), 1))
    totals = model.impute(gaps, num_samples=5).all_values().sum(1)
    np.testing.assert_allclose(totals, 1.0, rtol=1e-5)


def test_gap_is_filled_by_what_stands_around_it():
    """Of a sine, better than by its mean and by a line."""
    where = slice(40, 46)
    gap = with_gaps(SERIES, where)
    truth = SERIES.values()[where, 0]
    filled = trained().impute(gap, num_samples=200, random_state=0)
    drawn = filled.all_values()[where, 0]
    error = np.abs(np.median(drawn, axis=1) - truth).mean()
    line = np.interp(range(40, 46), [39, 46], SERIES.values()[[39, 46], 0])
    assert error < 0.9 * np.abs(truth).mean()
    assert error < 0.9 * np.abs(truth - line).mean()


def test_samples_of_a_gap_are_joint():
    """Neighbours in a gap, and components beside each other, go together."""
    rng = np.random.default_rng(0)
    level = 0.9 * rng.standard_normal(300).cumsum() / 3
    level = np.sin(level)[:, None] + 0.1 * rng.standard_normal((300, 2))
    series = TimeSeries.from_values(level.astype(np.float32))
    model = tiny_model(
        transition="gaussian",
        transition_order=1,
        use_reversible_instance_norm=False,
        batch_size=32,
        n_epochs=30,
        optimizer_kwargs=FAST,
    ).fit(series)
    gap = with_gaps(series[:60], slice(20, 40))
    drawn = model.impute(gap, num_samples=500, random_state=0).all_values()[20:40]
    centred = drawn - drawn.mean(2, keepdims=True)
    components = np.mean(centred[:, 0] * centred[:, 1]) / np.mean(centred**2)
    steps = np.mean(centred[:-1] * centred[1:]) / np.mean(centred**2)
    # zero were they drawn each by itself, with a standard error of 0.01
    assert components > 0.05 and steps > 0.05


def test_instance_norm_fills_in_the_scale_of_the_window():
    series = with_gaps(1000 + 100 * SERIES[:WINDOW], slice(8, 10))
    filled = ask("impute", fitted(use_reversible_instance_norm=True), series).all_values()
    assert 500 < filled.min() and filled.max() < 1500


# --- simulation -----------------------------------------------------------------------


def test_simulations_look_like_the_series():
    """Anywhere in a period at first, in waves of twelve steps from there."""
    simulated = trained().simulate(24, num_samples=400, random_state=0).all_values()[:, 0]
    # twice the spread of 400 means of the sine is 0.07
    assert abs(simulated[0].mean()) < 0.35
    assert simulated[0].std() == pytest.approx(0.7, abs=0.2)
    path = simulated - simulated.mean(0)
    half, whole = ((path[:-k] * path[k:]).mean() / path.var() for k in (6, 12))
    assert half < -0.3 and whole > 0.1


@cache
def driven() -> DDSSMModel:
    """Return a model of a series that is led by covariates, as is `drivers`."""
    series, covariates = drivers()
    model = tiny_model(
        transition="gaussian",
        latent_dim=3,
        overshooting_weight=0,
        batch_size=32,
        n_epochs=40,
        optimizer_kwargs={"lr": 2e-2},
    )
    return model.fit(series, **covariates)


@cache
def drivers(seed: int = 0) -> tuple[TimeSeries, dict[str, TimeSeries]]:
    """Future coin tosses of the step and twice the past ones of the step before."""
    rng = np.random.default_rng(seed)
    future, past = rng.choice([-1.0, 1.0], size=(2, 240, 1))
    values = future + 2 * np.roll(past, 1, axis=0) + 0.1 * rng.standard_normal((240, 1))
    values, past, future = (
        TimeSeries.from_values(x.astype(np.float32)) for x in (values, past, future)
    )
    return values, {"past_covariates": past, "future_covariates": future}


def test_covariates_act_at_their_steps():
    """In simulations and on the likelihood, beyond training."""
    model, (series, covariates) = driven(), drivers(seed=1)
    part = slice(50, 90)
    covariates = {name: one[part] for name, one in covariates.items()}
    series = series[part]
    truth = series.values()[1:, 0]
    simulated = model.simulate(40, num_samples=50, **covariates).all_values()[1:, 0]
    assert np.corrcoef(simulated.mean(1), truth)[0, 1] > 0.9
    # the other way round
    wrong = {name: -one for name, one in covariates.items()}
    right, *others = (
        model.log_likelihood(series, **given)
        for given in (
            covariates,
            wrong,
            covariates | {"past_covariates": wrong["past_covariates"]},
            covariates | {"future_covariates": wrong["future_covariates"]},
        )
    )
    assert right > max(others) + 0.1


# --- the transition -------------------------------------------------------------------


def test_each_history_has_its_own_draws():
    """In the order in which they are given."""
    states = np.array([[-20.0, -20.0], [0.0, 0.0], [20.0, 20.0]])[:, None]
    means = fitted().sample_transition(states, num_samples=200).mean(0)
    assert (np.diff(means, axis=0) > 5).all()


def test_states_may_be_those_that_were_inferred():
    """Each sample is a history."""
    model = fitted()
    latents = model.infer_latents(SERIES, num_samples=5, random_state=0)
    drawn = model.sample_transition(latents, num_samples=7, random_state=1)
    assert drawn.shape == (7, 5, 2)
    histories = latents.all_values().transpose(2, 0, 1)
    again = model.sample_transition(histories, num_samples=7, random_state=1)
    assert np.array_equal(drawn, again)


@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("order", ORDERS)
def test_transition_is_the_one_of_the_filter(transition, order):
    """The state after a series is the transition of its paths. Five standard errors."""
    model = fitted(transition=transition, transition_order=order)
    series = with_gaps(SERIES[:INPUT], slice(-1, None))
    paths = values(ask("smoothing", model, series, num_samples=2000))
    # (T, D, S) -> (S, T, D), without the last state, which nothing is known of
    paths = paths.transpose(2, 0, 1)[:, :-1]
    drawn = model.sample_transition(paths, num_samples=1, random_state=1)[0].T
    filtered = ask("filtering", model, series, num_samples=2000).all_values()[-1]
    assert agree(drawn, filtered)
    assert agree(drawn**2, filtered**2)


def test_transition_is_the_one_of_simulations():
    """From step to step, in a model that remembers one state. Five standard errors."""
    model = fitted(transition_order=1)
    tail = with_tail(SERIES[:12], 2)
    z = values(ask("filtering", model, tail, num_samples=2000))
    drawn = model.sample_transition(z[-2].T[:, None], num_samples=1)[0].T
    assert agree(drawn, z[-1])
