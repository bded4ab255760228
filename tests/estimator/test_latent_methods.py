"""What a model answers beside forecasts: shapes, times, seeds, saved models, errors."""

import numpy as np
import pandas as pd
import pytest
import torch
from darts import TimeSeries

from darts_ddssm import DDSSMModel
from tests.helpers import (
    COVARIATES,
    GAPS,
    KINDS,
    ORDERS,
    QUESTIONS,
    ROUNDING,
    SERIES,
    STATIC,
    TRAINER,
    TRANSITIONS,
    WINDOW,
    ask,
    covariate,
    equal,
    everything,
    fitted,
    model_of,
    noisy_sine,
    same,
    static,
    tiny_model,
    values,
    with_gaps,
)

pytestmark = pytest.mark.usefixtures("short_flows")

kinds = pytest.mark.parametrize("kind", KINDS)


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


@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("order", ORDERS)
def test_every_transition(transition, order):
    answers = everything(fitted(transition=transition, transition_order=order))
    assert all(np.isfinite(one).all() for one in answers.values())


@pytest.mark.parametrize("freq", ["h", "D", "W-SUN", "MS", 1, 3])
def test_answers_are_on_the_index_of_the_series(freq):
    length = 60
    if isinstance(freq, str):
        times = pd.date_range("2020-02-02", periods=length, freq=freq)
    else:
        times = pd.RangeIndex(5, 5 + freq * length, freq)
    series = TimeSeries.from_times_and_values(times, GAPS.values()[:length])
    model = tiny_model(n_epochs=1).fit(series)
    for question in ("smoothing", "filtering", "impute"):
        for one in (series, series[10:40]):
            answer = ask(question, model, one)
            assert answer.time_index.equals(one.time_index)
            assert answer.freq == one.freq
    forecast = model.predict(8)
    assert forecast.freq == series.freq
    assert forecast.start_time() == series.end_time() + series.freq
    simulated = model.simulate(7, num_samples=2)
    assert simulated.start_time() == series.start_time()
    assert simulated.freq == series.freq and len(simulated) == 7


def test_what_is_known_of_the_series_is_kept():
    series = TimeSeries.from_times_and_values(
        pd.date_range("2020-01-01", periods=60),
        noisy_sine(60, num_components=3).values(),
        columns=["all", "north", "south"],
        hierarchy={"north": ["all"], "south": ["all"]},
        static_covariates=static(1.0, 2.0, 3.0),
    )
    series = with_gaps(series, slice(20, 24))
    model = tiny_model(n_epochs=1).fit(series)
    filled = model.impute(series[10:], num_samples=2)
    assert filled.components.equals(series.components)
    assert filled.hierarchy == series.hierarchy
    assert filled.time_index.equals(series.time_index[10:])
    pd.testing.assert_frame_equal(filled.static_covariates, series.static_covariates)
    for other in (model.simulate(5, num_samples=2), model.predict(3, num_samples=2)):
        assert other.components.equals(series.components)
        assert other.hierarchy == series.hierarchy
        assert other.dtype == series.dtype
        pd.testing.assert_frame_equal(other.static_covariates, series.static_covariates)


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
    model = fitted()
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
    everything(fitted())
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


def assert_close(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """As :func:`~tests.helpers.close`, for the answers to all questions."""
    assert one.keys() == other.keys()
    for question, answer in one.items():
        np.testing.assert_allclose(answer, other[question], **ROUNDING)


@pytest.mark.parametrize("kind", ["plain", "everything", "float64"])
def test_saved_models_answer_the_same(kind, tmp_path):
    """Saved whole or without its training, loaded from a checkpoint, or its weights."""
    series, covariates, arguments = KINDS[kind]
    checkpoints = dict(save_checkpoints=True, work_dir=str(tmp_path), model_name="m")
    model = tiny_model(n_epochs=1, **arguments, **checkpoints).fit(series, **covariates)
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
        assert_close(expected, everything(other, kind))
    for name in ("full", "checkpoint"):
        for question in QUESTIONS:
            answer = values(ask(question, loaded[name]))
            assert_close({question: answer}, {question: expected[question]})


@pytest.mark.parametrize("kind", ["plain", "float64"])
def test_loaded_weights_answer_the_same(kind, tmp_path):
    model = model_of(kind)
    path = str(tmp_path / "model.pt")
    model.save(path)
    weights = tiny_model(n_epochs=1, **KINDS[kind][2])
    weights.load_weights(path)
    assert_close(everything(model, kind), everything(weights, kind))
    with pytest.raises(ValueError, match="`series` must be given to `impute"):
        weights.impute()


def test_loaded_weights_simulate_on_the_dates_of_covariates(tmp_path):
    model, ahead = model_of("covariates"), COVARIATES["future_covariates"]
    path = str(tmp_path / "model.pt")
    model.save(path)
    weights = tiny_model(n_epochs=1)
    weights.load_weights(path)
    simulated = weights.simulate(8, num_samples=2, future_covariates=ahead)
    assert simulated.time_index.equals(ahead.time_index[:8])


def test_solver_steps_changed_after_training(tiny):
    """They draw what the transition draws, and no more.

    That is so for the particle filter, too, which the likelihood of a long series is by.
    """
    model = tiny(n_epochs=1).fit(SERIES)
    few = everything(model)
    of_window = model.log_likelihood(SERIES[:WINDOW], random_state=0)
    model.num_solver_steps = 9
    many = everything(model)
    assert {name for name in few if not np.array_equal(few[name], many[name])} == {
        "simulate",
        "sample_transition",
        "log_likelihood",
    }
    assert model.log_likelihood(SERIES[:WINDOW], random_state=0) == of_window
    model.num_solver_steps = 5
    assert equal(few, everything(model))


# --- states and gaps ------------------------------------------------------------------


@pytest.mark.parametrize("filtering", [False, True])
@pytest.mark.parametrize("dim", [1, 3, 11])
def test_names_and_samples_of_states(dim, filtering):
    model = fitted(latent_dim=dim)
    states = model.infer_latents(num_samples=6, filtering=filtering)
    assert states.components.tolist() == [f"z_{i}" for i in range(dim)]
    assert states.shape == (80, dim, 6)
    assert states.all_values().std(2).min() > 0
    assert model.infer_latents(SERIES[:12], filtering=filtering).shape == (12, dim, 100)


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
    filled = fitted(num_components=2).impute(series, num_samples=5, random_state=0)
    assert filled.shape == (80, 2, 5) and filled.dtype == dtype
    after = filled.all_values()
    for i in range(5):
        np.testing.assert_array_equal(after[~missing, i], before[~missing, 0])
    assert np.isfinite(after).all()
    if missing.any():
        assert after[missing].std(-1).min() > 0
    np.testing.assert_array_equal(series.all_values(), before)


def test_a_gap_that_no_path_leads_through_is_said(caplog):
    model = fitted()
    far = np.where(np.arange(len(GAPS))[:, None] < 45, GAPS.values(), GAPS.values() + 50)
    model.impute([GAPS.with_values(far), GAPS], num_samples=20, random_state=0)
    assert "`DDSSMModel`: in 1 of 2 series hardly a path" in caplog.text
    caplog.clear()
    model.impute(GAPS, num_samples=20, random_state=0)
    assert "hardly a path" not in caplog.text


# --- simulation -----------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 12, WINDOW, 50])
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_simulated_series(n, transition):
    model = fitted(num_components=2, transition=transition)
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
    simulated = tiny_model(n_epochs=1).fit(series).simulate(20, num_samples=2)
    assert simulated.time_index.equals(series[0].time_index[:20])


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


def of_several_statics() -> DDSSMModel:
    """A model of series whose static covariates differ."""
    return tiny_model(n_epochs=1).fit(
        [STATIC, STATIC.with_static_covariates(static(3.0, 4.0))]
    )


def test_static_covariates_are_those_of_training_or_others():
    model = model_of("static")
    common = {"num_samples": 2, "random_state": 0}
    default, given, other = (
        model.simulate(4, static_covariates=x, **common)
        for x in (None, static(1.0, 2.0), static(-5.0, 9.0))
    )
    # of one series nothing is learned of other values
    assert same(default, given) and same(given, other)
    assert other.static_covariates["a"].tolist() == [-5.0, 9.0]
    several = of_several_statics()
    one, two = (
        several.simulate(4, static_covariates=x, **common)
        for x in (static(1.0, 2.0), static(3.0, 4.0))
    )
    assert one.n_components == 2 and not same(one, two)
    with pytest.raises(ValueError, match="trained with `static_covariates`"):
        several.simulate(4)


# --- the transition -------------------------------------------------------------------


@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("order", ORDERS)
def test_which_states_the_next_one_depends_on(transition, order):
    """All of them, the last two, or the last."""
    model = fitted(transition=transition, transition_order=order)
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
    model = fitted()

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


def test_inputs_of_the_transition_are_not_changed():
    state = np.ones((2, 3, 2), np.float32)
    fitted().sample_transition(state, num_samples=2)
    assert (state == 1).all()


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
    # of one series nothing is learned of other values
    np.testing.assert_array_equal(drawn[1], drawn[2])
    several = of_several_statics()
    one, two = (
        several.sample_transition([0, 0], 3, static_covariates=x, random_state=0)
        for x in (static(1.0, 2.0), static(3.0, 4.0))
    )
    assert not np.array_equal(one, two)


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
    with pytest.raises(ValueError, match=message):
        fitted().sample_transition(state)


# --- numbers --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, -1, 1.0, 2.5, True, "2", None])
def test_numbers_are_positive_integers(number):
    model = fitted()
    with pytest.raises(ValueError, match="`num_samples` must be an integer >= 1"):
        model.infer_latents(num_samples=number)
    with pytest.raises(ValueError, match="`n` must be an integer >= 1"):
        model.simulate(number)
    if number is not None:
        with pytest.raises(ValueError, match="`batch_size` must be an integer >= 1"):
            model.infer_latents(batch_size=number)


def test_every_method_checks_its_numbers():
    model = fitted()
    for call in (
        model.log_likelihood,
        model.probability_integral_transform,
        model.impute,
        lambda **kw: model.simulate(4, **kw),
        lambda **kw: model.sample_transition([0, 0], **kw),
    ):
        with pytest.raises(ValueError, match="`num_samples` must be an integer >= 1"):
            call(num_samples=0)
    for question in QUESTIONS:
        with pytest.raises(ValueError, match="`batch_size` must be an integer >= 1"):
            ask(question, model, batch_size=0)


def test_numbers_of_numpy_are_integers():
    three = np.int64(3)
    assert fitted().simulate(three, num_samples=three).shape == (3, 1, 3)
    assert fitted().impute(num_samples=three, batch_size=three).n_samples == 3
