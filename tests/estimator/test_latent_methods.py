"""What lies behind a series: states, likelihood, gaps, simulation, dynamics."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from darts import TimeSeries
from darts.utils.likelihood_models import torch as likelihoods
from scipy import stats

from darts_ddssm import DDSSMModel
from tests.helpers import TRAINER, covariate, noisy_sine, same, with_gaps

TRANSITIONS = ("diffusion", "gaussian")
ORDERS = (1, 2, None)
# A training window of the tiny model has 12 + 6 steps.
WINDOW = 18
SERIES = noisy_sine()
GAPS = with_gaps(SERIES, slice(40, 45))
FAST = {"lr": 1e-2}


def maker(trainer: dict | None = None, **kwargs) -> DDSSMModel:
    """Do as the fixture `tiny`, for models that several tests share."""
    arguments = dict(
        input_chunk_length=12,
        output_chunk_length=6,
        latent_dim=2,
        hidden_size=8,
        num_solver_steps=4,
        n_epochs=1,
        batch_size=16,
        random_state=0,
    )
    return DDSSMModel(**(arguments | kwargs), pl_trainer_kwargs=TRAINER | (trainer or {}))


@cache
def plain(num_components: int = 1, **kwargs) -> DDSSMModel:
    """Return a model that was hardly trained."""
    return maker(**kwargs).fit(noisy_sine(num_components=num_components))


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
    return maker(**(arguments | kwargs)).fit(noisy_sine(200))


def static(*values: float) -> pd.DataFrame:
    return pd.DataFrame({"a": values})


CALENDAR = {"datetime_attribute": {"past": ["month"], "future": ["dayofweek"]}}
COVARIATES = {
    "past_covariates": covariate(80, num_components=2),
    "future_covariates": covariate(100, seed=2),
}
SHIFT = {"output_chunk_shift": 2}
STATIC = noisy_sine(num_components=2).with_static_covariates(static(1.0, 2.0))

# Series, covariates and arguments of models of every kind.
KINDS = {
    "plain": (SERIES, {}, {}),
    "multivariate": (noisy_sine(num_components=3), {}, {}),
    "gaps": (GAPS, {}, {}),
    "covariates": (SERIES, COVARIATES, {}),
    "static": (STATIC, {}, {}),
    "encoders": (SERIES, {}, {"add_encoders": CALENDAR}),
    "everything": (STATIC, COVARIATES, {"add_encoders": CALENDAR} | SHIFT),
    "shift": (SERIES, {}, SHIFT),
    "float64": (SERIES.astype(np.float64), {}, {}),
    "wide": (SERIES, {}, {"latent_dim": 18}),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@cache
def model_of(kind: str) -> DDSSMModel:
    series, covariates, arguments = KINDS[kind]
    return maker(**arguments).fit(series, **covariates)


# Questions about a series.
QUESTIONS = {
    "smoothing": lambda model, *args, **kw: model.infer_latents(*args, **kw),
    "filtering": lambda model, *args, **kw: model.infer_latents(
        *args, filtering=True, **kw
    ),
    "log_likelihood": lambda model, *args, **kw: model.log_likelihood(*args, **kw),
    "impute": lambda model, *args, **kw: model.impute(*args, **kw),
}
questions = pytest.mark.parametrize("question", QUESTIONS)


def ask(question: str, model: DDSSMModel, *args, **kwargs):
    """Answer a question, with few samples and a seed unless others are given."""
    return QUESTIONS[question](
        model, *args, **({"num_samples": 3, "random_state": 0} | kwargs)
    )


def values(answer) -> np.ndarray:
    """Numbers of an answer of any type."""
    if isinstance(answer, list):
        return np.concatenate([values(one).ravel() for one in answer])
    return answer.all_values() if isinstance(answer, TimeSeries) else np.asarray(answer)


def everything(model: DDSSMModel, kind: str = "plain") -> dict[str, np.ndarray]:
    """All that a model can be asked, answered for the series that it was fitted to."""
    series, covariates, _ = KINDS[kind]
    answers = {q: ask(q, model, series, **covariates) for q in QUESTIONS}
    common = {"num_samples": 3, "random_state": 0} | covariates
    if series.static_covariates is not None:
        common["static_covariates"] = series.static_covariates
    answers["simulate"] = model.simulate(20, **common)
    state = np.zeros((2, 3, model.latent_dim))
    if "future_covariates" in common:
        # up to the step after the last state, of which the past ones are known
        common["future_covariates"] = common["future_covariates"][:81]
    answers["sample_transition"] = model.sample_transition(state, **common)
    return {name: values(answer) for name, answer in answers.items()}


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def standard_error(draws: np.ndarray) -> np.ndarray:
    """Return that of the mean along the last axis."""
    return draws.std(-1, ddof=1) / draws.shape[-1] ** 0.5


def agree(
    one: np.ndarray, other: np.ndarray, num_errors: float = 5.0, slack: float = 0.0
) -> bool:
    """Tell whether means along the last axis are as near as their standard errors say."""
    error = np.hypot(standard_error(one), standard_error(other))
    allowed = slack + num_errors * error
    return bool((np.abs(one.mean(-1) - other.mean(-1)) < allowed).all())


def with_tail(series: TimeSeries, num_steps: int) -> TimeSeries:
    """Append missing values."""
    tail = np.full((num_steps, series.n_components), np.nan, dtype=series.dtype)
    return series.append_values(tail)


# --- all of it, for models of every kind ----------------------------------------------


@kinds
def test_every_question_to_every_model(kind):
    """Shapes and types, with the covariates of training."""
    model, series = model_of(kind), KINDS[kind][0]
    dim, num_components, dtype = model.latent_dim, series.n_components, series.dtype
    answers = everything(model, kind)
    assert all(np.isfinite(one).all() for one in answers.values())
    assert all(one.dtype == dtype for one in answers.values() if one.ndim > 0)
    assert {name: one.shape for name, one in answers.items()} == {
        "smoothing": (80, dim, 3),
        "filtering": (80, dim, 3),
        "log_likelihood": (),
        "impute": (80, num_components, 3),
        "simulate": (20, num_components, 3),
        "sample_transition": (3, 2, dim),
    }


@kinds
@questions
def test_training_series_and_its_covariates_are_remembered(kind, question):
    model, (series, covariates, _) = model_of(kind), KINDS[kind]
    given = values(ask(question, model, series, **covariates))
    np.testing.assert_array_equal(values(ask(question, model)), given)


@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("order", ORDERS)
def test_every_transition(transition, order):
    answers = everything(plain(transition=transition, transition_order=order))
    assert all(np.isfinite(one).all() for one in answers.values())


@pytest.mark.parametrize("kind", ["covariates", "encoders", "static"])
@questions
def test_one_series_or_many(kind, question):
    """Of different lengths, in their order, as each by itself."""
    model, (whole, covariates, _) = model_of(kind), KINDS[kind]
    series = [whole[:30], whole[20:], whole[50:], whole[10:40]]
    covariates = {name: [one] * 4 for name, one in covariates.items()}
    together = ask(question, model, series, **covariates)
    assert isinstance(together, list)
    (single,) = ask(
        question, model, series[:1], **{k: v[:1] for k, v in covariates.items()}
    )
    for i, one in enumerate(together):
        alone = ask(question, model, series[i], **{k: v[i] for k, v in covariates.items()})
        if question == "log_likelihood":
            assert isinstance(one, float) and isinstance(alone, float)
            assert isinstance(single, float)
        else:
            assert one.time_index.equals(series[i].time_index)
            assert one.shape == alone.shape and one.components.equals(alone.components)


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


@questions
def test_batch_size_and_progress_change_no_shapes(question, capsys):
    series, model = [SERIES[:30], SERIES[:30], SERIES[:20]], plain()
    shape = values(ask(question, model, series)).shape
    for batch_size in (1, 2, 1000):
        answer = ask(question, model, series, batch_size=batch_size)
        assert values(answer).shape == shape
    assert "Predicting" not in "".join(capsys.readouterr())
    ask(question, model, series, verbose=True)
    assert "Predicting" in "".join(capsys.readouterr())


@pytest.mark.parametrize("freq", ["h", "D", "W-SUN", "MS", 1, 3])
def test_answers_are_on_the_index_of_the_series(freq):
    length = 60
    if isinstance(freq, str):
        times = pd.date_range("2020-02-02", periods=length, freq=freq)
    else:
        times = pd.RangeIndex(5, 5 + freq * length, freq)
    series = TimeSeries.from_times_and_values(times, GAPS.values()[:length])
    model = maker().fit(series)
    for question in ("smoothing", "filtering", "impute"):
        for one in (series, series[10:40]):
            answer = ask(question, model, one)
            assert answer.time_index.equals(one.time_index)
            assert answer.freq == one.freq
    simulated = model.simulate(7, num_samples=2)
    assert simulated.start_time() == series.start_time()
    assert simulated.freq == series.freq and len(simulated) == 7


def test_precision_of_a_trainer(tiny):
    model = tiny({"precision": "bf16-mixed"}, n_epochs=1).fit(SERIES)
    answers = everything(model)
    assert all(np.isfinite(one).all() for one in answers.values())
    assert {one.dtype for one in answers.values() if one.ndim > 0} == {np.dtype("f4")}


def test_half_precision_weights(tiny):
    model = tiny({"precision": "bf16-true"}, n_epochs=1).fit(SERIES)
    model.predict(3)
    assert all(np.isfinite(one).all() for one in everything(model).values())


# --- randomness and state -------------------------------------------------------------


def test_random_state_decides_every_answer():
    model = plain()
    assert equal(everything(model), everything(model))
    for question in QUESTIONS:
        seeds = [values(ask(question, model, GAPS, random_state=i)) for i in (0, 1)]
        assert not np.array_equal(*seeds)
    for draw in (
        lambda i: model.simulate(4, num_samples=2, random_state=i).all_values(),
        lambda i: model.sample_transition([0, 0], num_samples=2, random_state=i),
    ):
        assert not np.array_equal(draw(0), draw(1))


def test_seed_of_the_model_decides_every_answer(tiny):
    def answers() -> list[np.ndarray]:
        model = tiny(n_epochs=1).fit(SERIES)
        few = {"num_samples": 2}
        return [
            *(values(QUESTIONS[q](model, **few)) for q in QUESTIONS),
            model.simulate(3, **few).all_values(),
            model.sample_transition([0, 0], **few),
            # each call goes on where the last one stopped
            model.sample_transition([0, 0], **few),
        ]

    one, other = answers(), answers()
    for x, y in zip(one, other, strict=True):
        np.testing.assert_array_equal(x, y)
    assert not np.array_equal(one[-1], one[-2])


def test_generators_of_torch_and_numpy_are_left_alone():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    everything(plain())
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("kind", ["plain", "everything"])
def test_nothing_of_the_model_is_disturbed(kind):
    """Forecasts before and after are the same, and so are the weights and the data."""
    model, (series, covariates, _) = model_of(kind), KINDS[kind]
    weights = {name: x.clone() for name, x in model.model.state_dict().items()}
    data = {"series": series, **covariates}
    before = {name: x.all_values(copy=True) for name, x in data.items()}

    def forecast() -> TimeSeries:
        return model.predict(4, num_samples=3, random_state=1)

    first = forecast()
    everything(model, kind)
    assert same(first, forecast())
    after = model.model.state_dict()
    assert all(torch.equal(x, after[name]) for name, x in weights.items())
    for name, x in data.items():
        np.testing.assert_array_equal(x.all_values(), before[name])


@pytest.mark.parametrize("kind", ["plain", "everything", "float64"])
def test_saved_models_answer_the_same(kind, tmp_path):
    """Saved whole or without its training, loaded from a checkpoint, or its weights."""
    series, covariates, arguments = KINDS[kind]
    checkpoints = dict(save_checkpoints=True, work_dir=str(tmp_path), model_name="m")
    model = maker(**arguments, **checkpoints).fit(series, **covariates)
    full, clean = str(tmp_path / "full.pt"), str(tmp_path / "clean.pt")
    expected = everything(model, kind)
    model.save(full)
    model.save(clean, clean=True)
    loaded = {
        "full": DDSSMModel.load(full),
        "clean": DDSSMModel.load(clean, pl_trainer_kwargs=TRAINER),
        "checkpoint": DDSSMModel.load_from_checkpoint("m", str(tmp_path), best=False),
    }
    for other in loaded.values():
        assert equal(expected, everything(other, kind))
    for name in ("full", "checkpoint"):
        for question in QUESTIONS:
            answer = values(ask(question, loaded[name]))
            np.testing.assert_array_equal(answer, expected[question])


@pytest.mark.parametrize("kind", ["plain", "float64"])
def test_loaded_weights_answer_the_same(kind, tmp_path):
    model = model_of(kind)
    path = str(tmp_path / "model.pt")
    model.save(path)
    weights = maker(**KINDS[kind][2])
    weights.load_weights(path)
    assert equal(everything(model, kind), everything(weights, kind))
    with pytest.raises(ValueError, match="`series` must be given to `impute"):
        weights.impute()


def test_loaded_weights_simulate_on_the_dates_of_covariates(tmp_path):
    model, ahead = model_of("covariates"), COVARIATES["future_covariates"]
    path = str(tmp_path / "model.pt")
    model.save(path)
    weights = maker()
    weights.load_weights(path)
    simulated = weights.simulate(8, num_samples=2, future_covariates=ahead)
    assert simulated.time_index.equals(ahead.time_index[:8])


def test_solver_steps_changed_after_training(tiny):
    """They draw what the transition draws, and no more."""
    model = tiny(n_epochs=1).fit(SERIES)
    few = everything(model)
    model.num_solver_steps = 9
    many = everything(model)
    assert {name for name in few if not np.array_equal(few[name], many[name])} == {
        "simulate",
        "sample_transition",
    }
    model.num_solver_steps = 4
    assert equal(few, everything(model))


# --- states ---------------------------------------------------------------------------


@pytest.mark.parametrize("filtering", [False, True])
@pytest.mark.parametrize("dim", [1, 3, 11])
def test_names_and_samples_of_states(dim, filtering):
    model = plain(latent_dim=dim)
    states = model.infer_latents(num_samples=6, filtering=filtering)
    assert states.components.tolist() == [f"z_{i}" for i in range(dim)]
    assert states.shape == (80, dim, 6)
    assert states.all_values().std(2).min() > 0
    assert model.infer_latents(SERIES[:12], filtering=filtering).shape == (12, dim, 100)


def later(series: TimeSeries, t: int) -> TimeSeries:
    """Return a series with other values after step t."""
    other = series.values(copy=True)
    other[t + 1 :] = other[t + 1 :] * -2 + 1
    return series.with_values(other)


@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("t", [5, 30, 60])
def test_filtering_does_not_know_the_future(transition, t):
    model = plain(transition=transition)
    one, other = GAPS, later(GAPS, t)
    past = slice(0, t + 1)
    filtered = [values(ask("filtering", model, s)) for s in (one, other)]
    np.testing.assert_array_equal(filtered[0][past], filtered[1][past])
    assert not np.array_equal(filtered[0][t + 1], filtered[1][t + 1])
    smoothed = [values(ask("smoothing", model, s)) for s in (one, other)]
    assert not np.array_equal(smoothed[0][past], smoothed[1][past])


@pytest.mark.parametrize("shift", [0, 3])
def test_filtering_sees_the_last_window(shift):
    """Its first step still counts, the step before it does not."""
    model = plain(output_chunk_shift=shift)
    states = values(ask("filtering", model, SERIES))
    for age, seen in ((WINDOW + shift - 1, True), (WINDOW + shift, False)):
        changed = SERIES.values(copy=True)
        changed[70 - age] += 100
        other = values(ask("filtering", model, SERIES.with_values(changed)))
        assert np.array_equal(states[70], other[70]) is not seen


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_smoothing_ends_where_filtering_does(transition):
    """At the last step of a window both know all of it. Five standard errors."""
    model, series = trained(transition=transition), SERIES[:WINDOW]
    draws = [
        values(ask(question, model, series, num_samples=2000))
        for question in ("smoothing", "filtering")
    ]
    assert agree(draws[0][-1], draws[1][-1])
    assert agree(*(np.square(x[-1]) for x in draws))
    # a step earlier they know different things
    assert not agree(draws[0][5], draws[1][5])


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
    model = maker(
        likelihood=likelihood,
        transition="gaussian",
        n_epochs=15,
        optimizer_kwargs={"lr": 2e-2},
    )
    return model.fit(TimeSeries.from_values(DRAWS[family][0].astype(np.float32)))


# concentrations of darts' Dirichlet variables sum to one: those of the draws do not
@pytest.mark.parametrize("family", [f for f in DRAWS if f != "Dirichlet"])
def test_likelihood_of_draws_is_their_density(family):
    """Nothing can be known of them but what they are drawn from."""
    model = model_of_draws(family)
    expected = DRAWS[family][1].mean()
    series = model.training_series
    assert model.log_likelihood(num_samples=100) == pytest.approx(expected, abs=0.15)
    gaps = with_gaps(series, slice(100, 130))
    one = with_gaps(series, (slice(100, 130), 0))
    for missing in model.log_likelihood([gaps, one], num_samples=100):
        assert missing == pytest.approx(expected, abs=0.15)


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


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_change_of_units(tiny, transition):
    """A thousand times the series has the logarithm of it less a value."""
    scores = []
    for scale in (1.0, 1000.0):
        series = (scale * SERIES).astype(np.float32)
        model = tiny(transition=transition, n_epochs=5).fit(series)
        scores.append(model.log_likelihood(random_state=0))
    assert scores[0] - scores[1] == pytest.approx(np.log(1000), abs=0.01)


def scores_of(model: DDSSMModel, series: TimeSeries, num_samples: int) -> np.ndarray:
    """Log-densities, of 12 seeds."""
    seeds = range(12)
    return np.array(
        [
            model.log_likelihood(series, None, None, num_samples, random_state=i)
            for i in seeds
        ]
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
    for where in (
        slice(0, 9),
        slice(30, 50),
        slice(70, 80),
        (slice(5, 60), 1),
        slice(1, 79),
    ):
        assert np.isfinite(plain(num_components=2).log_likelihood(with_gaps(series, where)))


@cache
def short(transition: str) -> DDSSMModel:
    """Return a model that takes a single value, trained."""
    model = maker(
        input_chunk_length=1,
        output_chunk_length=11,
        transition=transition,
        transition_order=1,
        num_solver_steps=16,
        n_epochs=15,
        optimizer_kwargs=FAST,
    )
    return model.fit(noisy_sine(200))


GRID = np.linspace(-3, 3, 41)
SPACE = GRID[1] - GRID[0]


def densities(model: DDSSMModel, rows: np.ndarray, num_samples: int) -> np.ndarray:
    """Densities of short series (R, T), of eight seeds: (R, 8)."""
    series = [TimeSeries.from_values(row[:, None].astype(np.float32)) for row in rows]
    counts = (~np.isnan(rows)).sum(1)
    return np.column_stack(
        [
            np.exp(
                counts
                * model.log_likelihood(series, num_samples=num_samples, random_state=i)
            )
            for i in range(8)
        ]
    )


@pytest.mark.parametrize("transition, num_samples", [("diffusion", 32), ("gaussian", 2000)])
def test_density_of_one_value_is_that_of_simulations(transition, num_samples):
    """It integrates to one and has their moments, within five standard errors.

    The importance-weighted density is unbiased, though its logarithm is not. But the
    encoder's proposals are narrow: rare weights that are missed account for 0.02.
    """
    model = short(transition)
    density = SPACE * densities(model, GRID[:, None], num_samples)
    simulated = model.simulate(1, num_samples=4000, random_state=0).all_values()[0, 0]
    for power in range(3):
        moment = (GRID[:, None] ** power * density).sum(0)
        assert agree(moment, simulated**power, slack=0.02)
        assert standard_error(moment) < 0.2


# --- gaps -----------------------------------------------------------------------------

WHERE = {
    "none": np.zeros((80, 2), bool),
    "start": np.arange(80)[:, None] < [9, 9],
    "middle": (np.arange(80) // 20 % 2 == 1)[:, None] & [True, True],
    "end": np.arange(80)[:, None] >= [60, 60],
    "partial": np.random.default_rng(0).random((80, 2)) < 0.3,
    "one component": np.ones((80, 2), bool) & [False, True],
    "almost all": np.arange(80)[:, None] != [40, 41],
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("where", WHERE)
def test_what_was_observed_stays_and_gaps_are_filled(where, dtype):
    missing = WHERE[where]
    series = with_gaps(noisy_sine(num_components=2).astype(dtype), missing)
    before = series.all_values(copy=True)
    filled = plain(num_components=2).impute(series, num_samples=5, random_state=0)
    assert filled.shape == (80, 2, 5) and filled.dtype == dtype
    after = filled.all_values()
    for i in range(5):
        np.testing.assert_array_equal(after[~missing, i], before[~missing, 0])
    assert np.isfinite(after).all()
    if missing.any():
        assert after[missing].std(-1).min() > 0
    np.testing.assert_array_equal(series.all_values(), before)


def test_what_is_known_of_the_series_is_kept():
    series = TimeSeries.from_times_and_values(
        pd.date_range("2020-01-01", periods=60),
        noisy_sine(60, num_components=3).values(),
        columns=["all", "north", "south"],
        hierarchy={"north": ["all"], "south": ["all"]},
        static_covariates=static(1.0, 2.0, 3.0),
    )
    series = with_gaps(series, slice(20, 24))
    model = maker().fit(series)
    filled = model.impute(series[10:], num_samples=2)
    assert filled.components.equals(series.components)
    assert filled.hierarchy == series.hierarchy
    assert filled.time_index.equals(series.time_index[10:])
    pd.testing.assert_frame_equal(filled.static_covariates, series.static_covariates)
    simulated = model.simulate(5, num_samples=2)
    assert simulated.components.equals(series.components)
    assert simulated.hierarchy == series.hierarchy
    pd.testing.assert_frame_equal(simulated.static_covariates, series.static_covariates)


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
    model = maker(
        transition="gaussian",
        transition_order=1,
        use_reversible_instance_norm=False,
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


# --- simulation -----------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 12, WINDOW, 50])
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_simulated_series(n, transition):
    model = plain(num_components=2, transition=transition)
    simulated = model.simulate(n, num_samples=6)
    series = model.training_series
    assert simulated.shape == (n, 2, 6)
    assert simulated.components.equals(series.components)
    assert simulated.time_index.equals(series.time_index[:n])
    assert simulated.dtype == series.dtype
    assert np.isfinite(simulated.all_values()).all()
    assert simulated.all_values().std(2).min() > 0


def test_simulation_after_fitting_several_series():
    """On the index of the first."""
    series = [noisy_sine(60)[10:], noisy_sine(seed=1)]
    simulated = maker().fit(series).simulate(20, num_samples=2)
    assert simulated.time_index.equals(series[0].time_index[:20])


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
    model = maker(transition="gaussian", latent_dim=3, n_epochs=40, optimizer_kwargs=FAST)
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


def test_simulation_starts_with_its_future_covariates():
    model = model_of("covariates")
    ahead = COVARIATES["future_covariates"][30:]
    simulated = model.simulate(50, num_samples=2, future_covariates=ahead)
    assert simulated.time_index.equals(ahead.time_index[:50])
    # past covariates are optional, and so are their ends
    past = COVARIATES["past_covariates"]
    one, other, unknown = (
        model.simulate(50, 2, ahead, given, random_state=0).all_values()
        for given in (past, past[30:40], None)
    )
    np.testing.assert_array_equal(one[:11], other[:11])
    assert not np.array_equal(one[11], other[11])
    np.testing.assert_array_equal(one[:1], unknown[:1])
    assert not np.array_equal(one[1], unknown[1])


def test_static_covariates_are_those_of_training_or_others():
    model = model_of("static")
    common = {"num_samples": 2, "random_state": 0}
    default, given, other = (
        model.simulate(4, static_covariates=x, **common)
        for x in (None, static(1.0, 2.0), static(-5.0, 9.0))
    )
    assert same(default, given) and not same(given, other)
    assert other.static_covariates["a"].tolist() == [-5.0, 9.0]
    several = maker().fit([STATIC, STATIC.with_static_covariates(static(3.0, 4.0))])
    assert several.simulate(4, static_covariates=static(3.0, 4.0)).n_components == 2
    with pytest.raises(ValueError, match="trained with `static_covariates`"):
        several.simulate(4)


# --- encoders -------------------------------------------------------------------------


@cache
def explicit() -> tuple[DDSSMModel, dict[str, TimeSeries]]:
    """Return a model of covariates that those of `CALENDAR` are, and these."""
    from darts.utils.timeseries_generation import datetime_attribute_timeseries

    times = noisy_sine(100).time_index
    covariates = {
        f"{kind}_covariates": datetime_attribute_timeseries(times, name, dtype=np.float32)
        for kind, name in (("past", "month"), ("future", "dayofweek"))
    }
    return maker().fit(SERIES, **covariates), covariates


@pytest.mark.parametrize("part", [slice(0, 80), slice(0, 12), slice(33, 70)])
@questions
def test_encoders_give_what_explicit_covariates_give(question, part):
    model, covariates = explicit()
    given = ask(question, model, SERIES[part], **covariates)
    encoded = ask(question, model_of("encoders"), SERIES[part])
    np.testing.assert_array_equal(values(given), values(encoded))


@pytest.mark.parametrize("n", [5, 12, 40])
def test_encoders_of_simulations(n):
    model, covariates = explicit()
    common = {"num_samples": 2, "random_state": 0}
    given = model.simulate(n, **covariates, **common)
    assert same(given, model_of("encoders").simulate(n, **common))


# --- the transition -------------------------------------------------------------------


@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("order", ORDERS)
def test_which_states_the_next_one_depends_on(transition, order):
    """All of them, the last two, or the last."""
    model = plain(transition=transition, transition_order=order)
    history = np.random.default_rng(0).standard_normal((5, 2))

    def draw(state) -> np.ndarray:
        return model.sample_transition(state, num_samples=4, random_state=0)

    expected = draw(history)
    for i in range(5):
        other = history.copy()
        other[i] += 1
        matters = order is None or i >= 5 - order
        assert np.array_equal(draw(other), expected) is not matters
    if order is not None:
        np.testing.assert_allclose(draw(history[-order:]), expected, atol=1e-6)


def test_shapes_of_states():
    model = plain()

    def draw(state) -> np.ndarray:
        return model.sample_transition(state, num_samples=4, random_state=0)

    for state, shape in (
        ([0.0, 1.0], (4, 2)),
        ([0, 1], (4, 2)),
        (np.zeros(2, np.float32), (4, 2)),
        (torch.zeros(2), (4, 2)),
        ([[0.0, 1.0]] * 3, (4, 2)),
        ([[[0.0, 1.0]] * 3], (4, 1, 2)),
        (np.zeros((5, 1, 2)), (4, 5, 2)),
        (np.zeros((5, 30, 2)), (4, 5, 2)),
    ):
        drawn = draw(state)
        assert drawn.shape == shape and drawn.dtype == np.float32
        assert drawn.std(0).min() > 0
    assert model.sample_transition([0.0, 1.0]).shape == (100, 2)
    np.testing.assert_array_equal(draw([1.0, 2.0]), draw([[1.0, 2.0]]))
    np.testing.assert_array_equal(draw([1.0, 2.0]), draw([[[1.0, 2.0]]])[:, 0])


def test_each_history_has_its_own_draws():
    """In the order in which they are given."""
    states = np.array([[-20.0, -20.0], [0.0, 0.0], [20.0, 20.0]])[:, None]
    means = plain().sample_transition(states, num_samples=200).mean(0)
    assert (np.diff(means, axis=0) > 5).all()


def test_inputs_of_the_transition_are_not_changed():
    state = np.ones((2, 3, 2), np.float32)
    plain().sample_transition(state, num_samples=2)
    assert (state == 1).all()


@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("order", ORDERS)
def test_transition_is_the_one_of_the_filter(transition, order):
    """The state after a series is the transition of its paths. Five standard errors."""
    model = plain(transition=transition, transition_order=order)
    series = SERIES[: WINDOW - 1]
    paths = values(ask("smoothing", model, series, num_samples=2000))
    # (T, D, S) -> (S, T, D)
    paths = paths.transpose(2, 0, 1)
    drawn = model.sample_transition(paths, num_samples=1, random_state=1)[0].T
    filtered = ask("filtering", model, with_tail(series, 1), num_samples=2000)
    filtered = filtered.all_values()[-1]
    assert agree(drawn, filtered)
    assert agree(drawn**2, filtered**2)


def test_transition_is_the_one_of_simulations():
    """From step to step, in a model that remembers one state. Five standard errors."""
    model = plain(transition_order=1)
    tail = with_tail(SERIES[:12], 2)
    z = values(ask("filtering", model, tail, num_samples=2000))
    drawn = model.sample_transition(z[-2].T[:, None], num_samples=1)[0].T
    assert agree(drawn, z[-1])


def test_covariates_of_a_transition():
    """The last of the future is that of the step drawn, of the past the step before."""
    model = model_of("covariates")
    history = np.random.default_rng(0).standard_normal((3, 2))
    past, ahead = covariate(19, num_components=2), covariate(20, seed=2)

    def draw(**given) -> np.ndarray:
        return model.sample_transition(history, 4, **given, random_state=0)

    unknown = draw()
    for name, one, num_seen in (
        ("future_covariates", ahead, 4),
        ("past_covariates", past, 3),
    ):
        expected = draw(**{name: one})
        assert not np.array_equal(expected, unknown)
        np.testing.assert_array_equal(expected, draw(**{name: one[-num_seen:]}))
        for age, matters in ((1, True), (num_seen + 1, False)):
            changed = one.values(copy=True)
            changed[-age] += 1
            other = draw(**{name: one.with_values(changed)})
            assert np.array_equal(expected, other) is not matters
    both = draw(past_covariates=past, future_covariates=ahead)
    # beyond the last given state past covariates are not seen
    longer = past.append_values(np.ones((1, 2), np.float32))
    np.testing.assert_array_equal(
        both, draw(past_covariates=longer, future_covariates=ahead)
    )


def test_past_covariates_of_a_transition_that_are_too_short():
    """Not those of other states."""
    model = model_of("covariates")
    with pytest.raises(ValueError, match="`past_covariates` must cover"):
        model.sample_transition(np.zeros((3, 2)), past_covariates=covariate(2, 2))


def test_static_covariates_of_a_transition():
    model = model_of("static")
    drawn = [
        model.sample_transition([0, 0], 3, static_covariates=x, random_state=0)
        for x in (None, static(1.0, 2.0), static(-5.0, 9.0))
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[1], drawn[2])


# --- errors ---------------------------------------------------------------------------


def refused(match: str):
    return pytest.raises(ValueError, match=match)


SCRATCH = {
    "simulate": lambda model, **kw: model.simulate(4, **kw),
    "sample_transition": lambda model, **kw: model.sample_transition([0, 0], **kw),
}


def test_model_must_be_fitted(tiny):
    model = tiny()
    message = "The model must be fitted before calling `{}"
    for question in QUESTIONS:
        for args in ((SERIES,), ()):
            name = "infer_latents" if question.endswith("ing") else question
            with refused(message.format(name)):
                ask(question, model, *args)
    for name, call in SCRATCH.items():
        with refused(message.format(name)):
            call(model)


BAD_SERIES = {
    "short": (SERIES[:11], "`series` must have at least `input_chunk_length`, 12, steps"),
    "stochastic": (
        TimeSeries.from_values(np.zeros((30, 1, 2), np.float32)),
        "`series` must have one sample, got 2",
    ),
    "components": (noisy_sine(num_components=2), "`series` must have equal number of"),
    "infinite": (SERIES.with_values(np.full((80, 1), np.inf)), "`series` must be finite"),
    "missing": (with_gaps(SERIES, slice(None)), "`series` must have observed values"),
}


@questions
@pytest.mark.parametrize("what", BAD_SERIES)
def test_bad_series_are_refused(question, what):
    """Alone and in a list."""
    series, message = BAD_SERIES[what]
    for given in (series, [SERIES, series]):
        with refused(message):
            ask(question, plain(), given)


PAST, FUTURE = COVARIATES.values()
HOURS = TimeSeries.from_times_and_values(
    pd.date_range(SERIES.start_time(), periods=80 * 24, freq="h"),
    np.zeros((80 * 24, 1), np.float32),
)
BAD_COVARIATES = {
    "no past": ({"past_covariates": None}, "trained with `past_covariates`"),
    "no future": ({"future_covariates": None}, "trained with `future_covariates`"),
    "past starts late": (
        {"past_covariates": PAST[1:]},
        "`past_covariates` must cover `series` from",
    ),
    "future starts late": (
        {"future_covariates": FUTURE[1:]},
        "`future_covariates` must cover `series` from",
    ),
    "future ends early": (
        {"future_covariates": FUTURE[:79]},
        "`future_covariates` must cover `series` from",
    ),
    "frequency": (
        {"future_covariates": HOURS},
        "`future_covariates` must have the frequency of `series`",
    ),
    "index": (
        {"future_covariates": TimeSeries.from_values(FUTURE.values())},
        "`future_covariates` must have the frequency of `series`",
    ),
    "components": ({"past_covariates": covariate(80)}, "`past_covariates` must have equal"),
    "infinite": (
        {"future_covariates": FUTURE * np.inf},
        "`future_covariates` must be finite or NaN",
    ),
    "number": (
        {"past_covariates": [PAST, PAST]},
        "`past_covariates` must have one series for each",
    ),
}


@questions
@pytest.mark.parametrize("what", BAD_COVARIATES)
def test_bad_covariates_are_refused(question, what):
    bad, message = BAD_COVARIATES[what]
    with refused(message):
        ask(question, model_of("covariates"), SERIES, **(COVARIATES | bad))


@questions
def test_past_covariates_may_end_early(question):
    given = COVARIATES | {"past_covariates": PAST[:30]}
    short, whole = (
        values(ask(question, model_of("covariates"), SERIES, **x))
        for x in (given, COVARIATES)
    )
    assert np.isfinite(short).all()
    # the encoder is not told of them, the likelihood is
    if question == "log_likelihood":
        assert short != whole


@questions
@pytest.mark.parametrize("name", COVARIATES)
def test_superfluous_covariates_are_refused(question, name):
    with refused(f"trained without `{name}`"):
        ask(question, plain(), SERIES, **{name: COVARIATES[name]})


@pytest.mark.parametrize("call", SCRATCH)
@pytest.mark.parametrize("name", COVARIATES)
def test_superfluous_covariates_of_no_series_are_refused(call, name):
    with refused(f"trained without `{name}`"):
        SCRATCH[call](plain(), **{name: COVARIATES[name]})


@pytest.mark.parametrize("call", SCRATCH)
def test_bad_covariates_of_no_series_are_refused(call):
    model = model_of("covariates")
    for given, message in (
        ({"future_covariates": FUTURE[:1]}, "`future_covariates` must cover `series`"),
        ({"future_covariates": HOURS}, "`future_covariates` must have the frequency"),
        ({"future_covariates": FUTURE * np.inf}, "`future_covariates` must be finite"),
        ({"future_covariates": PAST}, "`future_covariates` must have equal number"),
        (
            {"future_covariates": FUTURE[:80], "past_covariates": FUTURE[:80]},
            "`past_covariates` must have equal number",
        ),
    ):
        with refused(message):
            SCRATCH[call](model, **given)
    with refused("trained with `future_covariates`"):
        model.simulate(4)
    with refused("`static_covariates` must have equal number of components"):
        SCRATCH[call](model_of("static"), static_covariates=static(1.0))


@pytest.mark.parametrize("call", SCRATCH)
def test_infinite_static_covariates_of_no_series_are_refused(call):
    with refused("`static_covariates` must be finite or NaN"):
        SCRATCH[call](model_of("static"), static_covariates=static(np.inf, 2.0))


@pytest.mark.parametrize("call", SCRATCH)
def test_past_covariates_beside_encoders_are_optional(call):
    """Unknown where they are not given, as without encoders."""
    drawn = SCRATCH[call](model_of("everything"), future_covariates=FUTURE)
    assert np.isfinite(values(drawn)).all()


def test_static_covariates_are_needed():
    bare = noisy_sine(num_components=2)
    for question in QUESTIONS:
        with refused("trained with `static_covariates`"):
            ask(question, model_of("static"), bare)


@questions
def test_training_series_is_needed_after_fitting_several(question):
    model = several()
    name = "infer_latents" if question.endswith("ing") else question
    with refused(f"`series` must be given to `{name}"):
        ask(question, model)
    assert np.isfinite(values(ask(question, model, SERIES))).all()


@cache
def several() -> DDSSMModel:
    return maker().fit([SERIES, noisy_sine(seed=1)])


@pytest.mark.parametrize("number", [0, -1, 1.0, 2.5, True, "2", None])
def test_numbers_are_positive_integers(number):
    model = plain()
    for question in QUESTIONS:
        with refused("`num_samples` must be an integer >= 1"):
            ask(question, model, num_samples=number)
        if number is not None:
            with refused("`batch_size` must be an integer >= 1"):
                ask(question, model, batch_size=number)
    for call in SCRATCH.values():
        with refused("`num_samples` must be an integer >= 1"):
            call(model, num_samples=number)
    with refused("`n` must be an integer >= 1"):
        model.simulate(number)


def test_numbers_of_numpy_are_integers():
    three = np.int64(3)
    assert plain().simulate(three, num_samples=three).shape == (3, 1, 3)
    assert plain().impute(num_samples=three, batch_size=three).n_samples == 3


@pytest.mark.parametrize(
    "state, message",
    [
        (0.0, r"`state` must have shape `\(2,\)`, .* got `\(\)`"),
        ([0.0], r"`state` must have shape .* got `\(1,\)`"),
        ([0.0, 1.0, 2.0], r"`state` must have shape .* got `\(3,\)`"),
        (np.zeros((4, 3)), r"`state` must have shape .* got `\(4, 3\)`"),
        (np.zeros((1, 1, 1, 2)), "`state` must have shape"),
        (np.zeros((0, 2)), "`state` must have shape"),
        ([0.0, np.nan], "`state` must be finite"),
        ([[0.0, 0.0], [np.inf, 0.0]], "`state` must be finite"),
        # beyond the range of the model's own precision
        ([0.0, 1e300], "`state` must be finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_bad_states_are_refused(state, message):
    with refused(message):
        plain().sample_transition(state)


@cache
def normalised(shift: int = 0) -> DDSSMModel:
    return maker(use_reversible_instance_norm=True, output_chunk_shift=shift).fit(SERIES)


def test_instance_norm_has_no_density_and_no_simulation():
    for call in (lambda m: m.log_likelihood(SERIES[:12]), lambda m: m.simulate(3)):
        with refused("must be called on a model without `use_reversible_instance_norm`"):
            call(normalised())
    assert normalised().sample_transition([0, 0], num_samples=3).shape == (3, 2)


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("question", ["smoothing", "impute"])
def test_instance_norm_takes_a_window(question, shift):
    model, length = normalised(shift), WINDOW + shift
    series = GAPS[35:]
    answer = ask(question, model, series[:length])
    assert len(answer) == length and np.isfinite(answer.all_values()).all()
    with refused(f"`series` must have at most {length} steps, one training window"):
        ask(question, model, [series[:length], series[: length + 1]])


def test_instance_norm_filters_windows():
    """Each state has its own window, so that the series may be long."""
    states = ask("filtering", normalised(), GAPS)
    assert len(states) == 80 and np.isfinite(states.all_values()).all()


def test_instance_norm_fills_in_the_scale_of_the_window():
    series = with_gaps(1000 + 100 * SERIES[:WINDOW], slice(8, 10))
    filled = ask("impute", normalised(), series).all_values()
    assert 500 < filled.min() and filled.max() < 1500
