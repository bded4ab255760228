"""Distilled samplers: what they change and leave alone, saving, refitting, errors."""

import copy
import pickle

import numpy as np
import pytest

from darts_ddssm import DDSSMModel
from darts_ddssm.estimator import distillation
from darts_ddssm.ssm.state_space import StateSpaceModel
from tests.helpers import (
    GAPS,
    KINDS,
    SERIES,
    ahead,
    ask,
    close,
    everything,
    fitted,
    noisy_sine,
    same,
    tiny_model,
    values,
)

pytestmark = pytest.mark.usefixtures("short_flows")

QUICK = {"num_updates": 20, "random_state": 0}


def distilled(num_evaluations: int = 1, **kwargs) -> DDSSMModel:
    """Return a tiny model with a sampler that was hardly trained."""
    model = tiny_model(n_epochs=1, **kwargs).fit(SERIES)
    return model.distill(num_evaluations, **QUICK)


@pytest.fixture(scope="module")
def model():
    """A model with a sampler, which no test may change."""
    return distilled()


def has_sampler(model: DDSSMModel) -> bool:
    """Tell whether draws take no heed of the solver."""
    model = copy.deepcopy(model)
    model.num_solver_steps = 5
    few = ahead(model, SERIES)
    model.num_solver_steps = 9
    return same(few, ahead(model, SERIES))


# --- what it changes and what it leaves alone -----------------------------------------


DRAWS = {
    "predict": lambda model: ahead(model, SERIES),
    "impute": lambda model: ask("impute", model, GAPS),
    "filtering": lambda model: ask("filtering", model, GAPS[40:58]),
    "simulate": lambda model: model.simulate(5, num_samples=3, random_state=0),
    "sample_transition": lambda model: model.sample_transition(
        np.zeros(2), num_samples=3, random_state=0
    ),
}


@pytest.mark.parametrize("num_evaluations", [1, 3])
def test_all_draws_are_those_of_the_sampler(num_evaluations):
    model = distilled(num_evaluations)
    drawn = {name: values(draw(model)) for name, draw in DRAWS.items()}
    # to the solver it would matter
    model.num_solver_steps = 9
    for name, draw in DRAWS.items():
        np.testing.assert_array_equal(drawn[name], values(draw(model)), err_msg=name)
    model.distill(None)
    for name, draw in DRAWS.items():
        assert not np.array_equal(drawn[name], values(draw(model))), name


@pytest.mark.parametrize("kwargs", [{}, {"by_step": True}])
def test_densities_are_those_of_the_full_transition(model, kwargs):
    series = SERIES[:14]
    expected = ask("log_likelihood", fitted(), series, **kwargs)
    found = ask("log_likelihood", model, series, **kwargs)
    np.testing.assert_array_equal(values(found), values(expected))


def test_forecasts_by_the_sampler_share_pasts(model, monkeypatch):
    """Where the past is complete: through gaps there are particles."""
    calls, branch = [], StateSpaceModel.branching_histories

    def spy(ssm, projection, window, num_samples):
        calls.append(num_samples)
        return branch(ssm, projection, window, num_samples)

    monkeypatch.setattr(StateSpaceModel, "branching_histories", spy)
    forecast = model.predict(4, SERIES, num_samples=9, random_state=0)
    assert calls == [9]
    # and none is like another
    assert len(np.unique(forecast.all_values()[0, 0])) == 9
    ahead(model, GAPS[:48])
    ahead(fitted(), SERIES)
    assert calls == [9]


def test_nothing_undoes_it():
    model = distilled()
    assert same(ahead(model.distill(None)), ahead(fitted()))
    assert not has_sampler(model)


def test_draws_are_nearly_those_of_the_solver_where_it_says_so(caplog):
    model = tiny_model(n_epochs=10).fit(SERIES)
    states = np.random.default_rng(0).standard_normal((20, 3, 2))
    how = {"num_samples": 2000, "random_state": 1}
    model.num_solver_steps = 24
    expected = model.sample_transition(states, **how)
    poor, good = "This is much", "distilled sampler's draws are"
    model.distill(num_updates=1, random_state=0)
    assert poor in caplog.text
    caplog.clear()
    model.distill(num_updates=300, random_state=0)
    assert good in caplog.text and poor not in caplog.text
    drawn = model.sample_transition(states, **how)
    spread = expected.std(0)
    # two standard errors of a mean are 0.045 of the spread, of a spread 0.03
    assert (np.abs(drawn.mean(0) - expected.mean(0)) < 0.2 * spread).all()
    np.testing.assert_allclose(drawn.std(0), spread, rtol=0.2)


def test_the_same_seed_gives_the_same_sampler(model):
    assert same(ahead(model), ahead(distilled()))
    other = distilled().distill(**QUICK | {"random_state": 1})
    assert not same(ahead(model), ahead(other))


def test_distilling_anew_is_distilling(model):
    assert same(ahead(model), ahead(distilled(2).distill(1, **QUICK)))


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_every_kind(kind):
    series, covariates, arguments = KINDS[kind]
    model = tiny_model(n_epochs=1, **arguments).fit(series, **covariates)
    model.distill(series=series, **covariates, **QUICK)
    assert all(np.isfinite(one).all() for one in everything(model, kind).values())


@pytest.mark.parametrize(
    "kwargs",
    [
        {"transition_order": 1},
        {"patch_length": 3},
        {"use_reversible_instance_norm": True},
        {"trainer": {"precision": "bf16-true"}},
    ],
)
def test_models_with_other_arguments(kwargs):
    forecast = ahead(distilled(**kwargs))
    assert np.isfinite(forecast.all_values()).all()


def test_several_series_of_which_some_are_short():
    series = [noisy_sine(30), noisy_sine(60, seed=1)]
    model = tiny_model(n_epochs=1).fit(series)
    model.distill(series=[noisy_sine(14), *series], **QUICK)
    assert has_sampler(model)


# --- copies, files, and training on ---------------------------------------------------


def test_copies_have_the_sampler(model):
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert has_sampler(twin)
        assert close(ahead(model), ahead(twin))


def test_files_have_the_sampler(model, tmp_path):
    path = str(tmp_path / "model.pt")
    model.save(path)
    loaded = DDSSMModel.load(path, map_location="cpu")
    assert close(ahead(model), ahead(loaded))
    loaded.save(path)
    assert close(ahead(model), ahead(DDSSMModel.load(path)))
    weights = tiny_model()
    weights.load_weights(path)
    assert close(ahead(model), ahead(weights, SERIES))


def test_loaded_weights_bring_their_sampler_or_none(tmp_path):
    path = str(tmp_path / "model.pt")
    fitted().save(path)
    model = distilled()
    model.load_weights(path)
    assert close(ahead(model), ahead(fitted()))
    assert not has_sampler(model)


@pytest.mark.parametrize("loads", [False, True])
def test_fitting_again_drops_the_sampler_and_says_so(loads, tmp_path, caplog):
    model = distilled()
    if loads:
        path = str(tmp_path / "model.pt")
        model.save(path)
        model = DDSSMModel.load(path)
    model.fit(SERIES, epochs=1)
    assert "drops its distilled sampler" in caplog.text
    assert not has_sampler(model)
    caplog.clear()
    model.fit(SERIES, epochs=1)
    assert "drops its distilled sampler" not in caplog.text


# --- errors ---------------------------------------------------------------------------


@pytest.mark.parametrize("num_evaluations", [0, 1.5, True, "one"])
def test_number_of_evaluations(num_evaluations):
    with pytest.raises(ValueError, match="`num_evaluations` must be an integer >= 1"):
        fitted().distill(num_evaluations)


def test_many_evaluations():
    with pytest.raises(ValueError, match="`num_evaluations` must be at most 4, got 5"):
        fitted().distill(5)


@pytest.mark.parametrize("num_updates", [0, 1.5, None])
def test_number_of_updates(num_updates):
    with pytest.raises(ValueError, match="`num_updates` must be an integer"):
        fitted().distill(num_updates=num_updates)


@pytest.mark.parametrize("num_evaluations", [1, None])
def test_before_fit(num_evaluations):
    with pytest.raises(ValueError, match=r"fitted before calling `distill\(\)`"):
        tiny_model().distill(num_evaluations)


@pytest.mark.parametrize("num_evaluations", [1, None])
def test_gaussian_transition(num_evaluations):
    model = fitted(transition="gaussian")
    with pytest.raises(ValueError, match='with `transition="diffusion"`'):
        model.distill(num_evaluations)


def test_several_training_series():
    model = tiny_model(n_epochs=1).fit([SERIES, SERIES])
    with pytest.raises(ValueError, match=r"`series` must be given to `distill\(\)`"):
        model.distill()


def test_no_series_has_a_training_window():
    with pytest.raises(ValueError, match="`series` must have one of at least .* 18, steps"):
        fitted().distill(series=SERIES[:17])


def test_a_failed_attempt_leaves_the_sampler(monkeypatch):
    model = distilled()
    expected = ahead(model)
    with pytest.raises(ValueError, match="`series` must have one of at least"):
        model.distill(series=SERIES[:17])
    assert same(ahead(model), expected)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(distillation, "answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.distill()
    assert same(ahead(model), expected)
