"""
Whole series and their covariates: what is accepted, refused, remembered and encoded.

One function prepares the series of all questions. Its rules are tested by smoothing; that
the other questions ask it too, by one test a question.
"""

from functools import cache
from types import SimpleNamespace as Namespace

import numpy as np
import pandas as pd
import pytest
import torch
from darts import TimeSeries
from darts.dataprocessing.transformers import Scaler
from darts.utils.timeseries_generation import datetime_attribute_timeseries

from darts_ddssm import DDSSMModel
from darts_ddssm.estimator import questions as asking
from darts_ddssm.estimator.questions import _batches, _counting
from darts_ddssm.estimator.spans import (
    is_as_in_training,
    overlapping_windows,
    stretches,
)
from tests.helpers import (
    CALENDAR,
    COVARIATES,
    GAPS,
    INPUT,
    KINDS,
    QUESTIONS,
    SERIES,
    WINDOW,
    ask,
    covariate,
    fitted,
    model_of,
    noisy_sine,
    same,
    static,
    tiny_model,
    uneven_seasons,
    values,
    with_gaps,
)

pytestmark = pytest.mark.usefixtures("short_flows")

PAST, FUTURE = COVARIATES.values()
questions = pytest.mark.parametrize("question", QUESTIONS)

# What needs no series.
SCRATCH = {
    "simulate": lambda model, **kw: model.simulate(4, **kw),
    "sample_transition": lambda model, **kw: model.sample_transition([0, 0], **kw),
}
each_call = pytest.mark.parametrize("call", SCRATCH)


def refused(match: str):
    return pytest.raises(ValueError, match=match)


def method_of(question: str) -> str:
    return "infer_latents" if question.endswith("ing") else question


# --- one series, many, or that of training --------------------------------------------


@pytest.mark.parametrize(
    "kind, question",
    [
        *((kind, "smoothing") for kind in KINDS),
        *(("everything", question) for question in QUESTIONS if question != "smoothing"),
    ],
)
def test_training_series_and_its_covariates_are_remembered(kind, question):
    model, (series, covariates, _) = model_of(kind), KINDS[kind]
    given = values(ask(question, model, series, **covariates))
    np.testing.assert_array_equal(values(ask(question, model)), given)


@cache
def several() -> DDSSMModel:
    return tiny_model(n_epochs=1).fit([SERIES, noisy_sine(seed=1)])


def test_simulations_keep_what_is_said_of_the_training_series():
    """Of one; what is said of the first of several does not hold for a new one."""
    one, other = (SERIES.with_metadata({"shop": i}) for i in (1, 2))
    model = tiny_model(n_epochs=1).fit(one)
    assert model.simulate(3).metadata == model.predict(3).metadata == {"shop": 1}
    assert tiny_model(n_epochs=1).fit([one, other]).simulate(3).metadata is None


@questions
def test_training_series_is_needed_after_fitting_several(question):
    with refused(f"`series` must be given to `{method_of(question)}"):
        ask(question, several())
    assert np.isfinite(values(ask(question, several(), SERIES))).all()


@pytest.mark.parametrize(
    "kind, question",
    [
        ("encoders", "smoothing"),
        ("static", "smoothing"),
        *(("covariates", question) for question in QUESTIONS),
    ],
)
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


@pytest.mark.parametrize("question", ["smoothing", "filtering"])
def test_batch_size_and_progress_change_no_shapes(question, capsys):
    series, model = [SERIES[:30], SERIES[:30], SERIES[:20]], fitted()
    shape = values(ask(question, model, series)).shape
    for batch_size in (1, 2, 1000):
        answer = ask(question, model, series, batch_size=batch_size)
        assert values(answer).shape == shape
    assert "Predicting" not in "".join(capsys.readouterr())
    ask(question, model, series, verbose=True)
    assert "Predicting" in "".join(capsys.readouterr())


# --- what is refused of a series ------------------------------------------------------


def test_model_must_be_fitted(tiny):
    model = tiny()
    message = "The model must be fitted before calling `{}"
    for question in QUESTIONS:
        for args in ((SERIES,), ()):
            with refused(message.format(method_of(question))):
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


@pytest.mark.parametrize("what", BAD_SERIES)
def test_bad_series_are_refused(what):
    """Alone and in a list."""
    series, message = BAD_SERIES[what]
    for given in (series, [SERIES, series]):
        with refused(message):
            ask("smoothing", fitted(), given)


def test_static_covariates_are_needed():
    with refused("trained with `static_covariates`"):
        ask("smoothing", model_of("static"), noisy_sine(num_components=2))


def normalised(shift: int = 0) -> DDSSMModel:
    return fitted(use_reversible_instance_norm=True, output_chunk_shift=shift)


def test_instance_norm_has_no_simulation():
    with refused("must be called on a model without `use_reversible_instance_norm`"):
        normalised().simulate(3)
    assert normalised().sample_transition([0, 0], num_samples=3).shape == (3, 2)


@pytest.mark.parametrize("patch, last", [(1, 12), (5, 16)])
def test_instance_norm_has_no_density_of_the_first_input_chunk(patch, last):
    """Nor of a patch that it ends in."""
    model = fitted(use_reversible_instance_norm=True, patch_length=patch)
    for call in (
        model.log_likelihood,
        lambda series: model.log_likelihood(series, by_step=True),
        model.probability_integral_transform,
    ):
        for series in (SERIES[:last], with_gaps(SERIES[: last + patch], slice(last, 80))):
            with refused("must have values after the first input chunk .*index `1`"):
                call([SERIES, series])


@pytest.mark.parametrize("patch, shift", [(1, 0), (1, 3), (4, 0), (5, 0)])
def test_instance_norm_predicts_all_that_follows(patch, shift):
    """Stretch by stretch, each patch once; the density of a series is their sum."""
    model = fitted(
        use_reversible_instance_norm=True,
        patch_length=patch,
        output_chunk_shift=shift,
        transition="gaussian",
    )
    for length in (17, WINDOW + shift, WINDOW + shift + 1, 33, 80):
        series = GAPS[-length:]
        known = length - (length - 12) // patch * patch
        observed = ~np.isnan(series.values()[:, 0])
        how = {"num_samples": 4, "random_state": 0}
        transform = model.probability_integral_transform(series, **how).values()[:, 0]
        assert np.array_equal(~np.isnan(transform), observed & (np.arange(length) >= known))
        by_step = model.log_likelihood(series, by_step=True, **how)
        assert by_step.time_index.equals(series.time_index[(length - 1) % patch :: patch])
        log_densities = by_step.values()[:, 0]
        some = observed[known:].reshape(-1, patch).any(1)
        before = len(log_densities) - len(some)
        assert np.isnan(log_densities[:before]).all()
        assert np.array_equal(~np.isnan(log_densities[before:]), some)
        total = observed[known:].sum() * model.log_likelihood(series, **how)
        np.testing.assert_allclose(np.nansum(log_densities), total, rtol=1e-4)


def test_a_density_given_the_input_chunk_is_one():
    """It integrates to one, and up to each value to its transform. The grid costs 0.01."""
    model = fitted(use_reversible_instance_norm=True, transition="gaussian", n_epochs=5)
    grid = np.linspace(-6, 6, 161)
    series = [
        SERIES[:13].with_values(np.append(SERIES.values()[:12], x)[:, None].astype("f4"))
        for x in grid
    ]
    how = {"num_samples": 500, "random_state": 0, "batch_size": len(series)}
    density = np.exp(model.log_likelihood(series, **how))
    below = np.cumsum(density) * (grid[1] - grid[0])
    assert abs(below[-1] - 1) < 0.05
    transforms = model.probability_integral_transform(series, **how)
    found = np.array([one.values()[-1, 0] for one in transforms])
    # the standard error of a transform of 500 draws is 0.022 at most
    assert np.abs(found - below).mean() < 0.05


def test_instance_norm_scores_in_the_units_of_the_data():
    """A series of another scale has the density of the same one, but for the units."""
    model = normalised()
    how = {"num_samples": 8, "by_step": True, "random_state": 0}
    found = [model.log_likelihood(a * SERIES + b, **how) for a, b in ((1, 0), (100, 5000))]
    own, other = (x.values()[12:, 0] for x in found)
    np.testing.assert_allclose(other + np.log(100), own, atol=0.05)


def levels(num_components: int = 1) -> DDSSMModel:
    """A model of seasons at levels from 0 to 300, each window in its own scale."""
    panel = [uneven_seasons(seed=i) + 100.0 * i for i in range(4)]
    if num_components > 1:
        panel = [one.stack(one) for one in panel]
    # one of many epochs is not needed: a season and a level are no matter of training
    return tiny_model(n_epochs=1, use_reversible_instance_norm=True).fit(panel)


def far_away(length: int, num_components: int = 1) -> TimeSeries:
    """The same season at a level where no training series was."""
    one = uneven_seasons(length, drift=0.0) + 1000.0
    return one if num_components == 1 else one.stack(one)


@pytest.mark.parametrize("length", [24, 40, 63])
@pytest.mark.parametrize("missing", [12, 14])
def test_the_start_of_a_series_is_filled_at_its_level(length, missing):
    """Though its first input chunk tells none, by the season of what follows it."""
    series = far_away(length)
    filled = levels().impute(
        with_gaps(series, slice(0, missing)), num_samples=50, random_state=0
    )
    middle = np.median(filled.all_values()[:missing, 0], axis=1)
    actual = series.values()[:missing, 0]
    assert np.abs(middle - actual).mean() < 3
    assert np.corrcoef(middle, actual)[0, 1] > 0.8


def test_a_component_that_is_missing_for_long_keeps_its_level():
    """In the middle of its gap, too, and if it begins late."""
    model, series = levels(2), far_away(160, 2)
    for missing in (slice(20, 140), slice(0, 100)):
        values = series.values(copy=True)
        values[missing, 1] = np.nan
        filled = model.impute(series.with_values(values), num_samples=20, random_state=0)
        off = filled.all_values()[missing, 1] - series.values()[missing, 1, None]
        assert np.abs(np.median(off, axis=1)).max() < 15


@pytest.mark.parametrize("missing", [12, 15, 30])
def test_nothing_is_predicted_before_a_scale_is_known(missing):
    """A series that begins late has the densities of one that begins there."""
    model, series = levels(), far_away(66)
    late = with_gaps(series, slice(0, missing))
    how = {"num_samples": 8, "random_state": 0}
    by_step = model.log_likelihood(late, by_step=True, **how).values()[:, 0]
    transform = model.probability_integral_transform(late, **how).values()[:, 0]
    is_predicted = ~np.isnan(by_step)
    assert np.array_equal(is_predicted, ~np.isnan(transform))
    first = is_predicted.argmax()
    # half a chunk at least, half a chunk and a stretch at most
    assert missing + 6 <= first <= missing + 12 and is_predicted[first:].all()
    total = is_predicted.sum() * model.log_likelihood(late, **how)
    np.testing.assert_allclose(np.nansum(by_step), total, rtol=1e-4)
    whole = model.log_likelihood(series, by_step=True, **how).values()[:, 0]
    assert abs(np.nanmean(by_step) - whole[first:].mean()) < 1


@pytest.mark.parametrize("patch, shift", [(1, 0), (1, 3), (4, 0)])
def test_instance_norm_takes_series_of_any_length(patch, shift):
    """Window by window, each step once, the patches of all windows on one grid."""
    model = fitted(
        use_reversible_instance_norm=True, patch_length=patch, output_chunk_shift=shift
    )
    for length in (12, WINDOW + shift, WINDOW + shift + 1, 33, 80):
        series = GAPS[-length:]
        states = ask("smoothing", model, series)
        assert np.isfinite(states.all_values()).all()
        assert states.time_index.equals(series.time_index[(length - 1) % patch :: patch])
        filled = ask("impute", model, series)
        assert np.isfinite(filled.all_values()).all()
        observed = ~np.isnan(series.values())
        assert (filled.all_values()[observed] == series.all_values()[observed]).all()


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("num_steps", [18, 19, 27, 40, 81])
def test_each_step_is_in_the_middle_of_a_window(num_steps, every):
    model = fitted(use_reversible_instance_norm=True, patch_length=every)
    spans = overlapping_windows(model, np.zeros((num_steps, 1), dtype=bool))
    assert [span.first for span in spans] == [0, *(span.last for span in spans[:-1])]
    assert spans[-1].last == num_steps
    margin = max(WINDOW // 4 // every, 1) * every
    for span in spans:
        # whole patches, on one grid
        assert (num_steps - span.end) % every == (num_steps - span.last) % every == 0
        assert span.start == 0 or span.first - span.start >= margin
        assert span.end == num_steps or span.end - span.last >= margin
        length = span.end - span.start
        assert WINDOW <= length <= WINDOW + max(WINDOW // 2, every) + every
    # an answer that tells its steps
    told = [
        np.arange(num_steps)[None, s.start : s.end][:, ::-every][:, ::-1] for s in spans
    ]
    pairs = zip(told, spans, strict=True)
    joined = np.concatenate([_counting(*pair, every) for pair in pairs], axis=1)
    expected = np.arange((num_steps - 1) % every, num_steps, every)
    np.testing.assert_array_equal(joined[0], expected)


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("gap", [slice(30, 36), slice(20, 70), slice(5, 79), slice(60, 80)])
def test_gap_is_in_one_window(gap, every):
    """Which has values before it, of which to take a scale."""
    model = fitted(use_reversible_instance_norm=True, patch_length=every)
    missing = np.zeros((80, 1), dtype=bool)
    missing[gap] = True
    spans = overlapping_windows(model, missing)
    (own,) = (s for s in spans if s.first <= gap.start < s.last)
    assert own.last >= gap.stop and own.start < gap.start
    for span in spans:
        assert not missing[span.start : span.start + INPUT].all()


@pytest.mark.parametrize("gap", [slice(40, 52), slice(40, 70), slice(25, 27)])
def test_window_takes_its_scale_of_as_many_values_as_a_forecast_would(gap):
    model = fitted(use_reversible_instance_norm=True)
    missing = np.zeros((100, 1), dtype=bool)
    missing[gap] = True
    for span in overlapping_windows(model, missing):
        own = missing[span.start : span.start + INPUT].sum()
        assert own <= missing[max(span.first - INPUT, 0) : span.first].sum()


def test_long_gap_is_filled_at_a_level_as_certain_as_that_of_a_forecast():
    """In noise, of which an input chunk tells more than the few values before a gap."""
    x = (10 + 3 * np.random.default_rng(0).standard_normal((480, 1))).astype(np.float32)
    model = tiny_model(use_reversible_instance_norm=True, transition="gaussian", n_epochs=2)
    model.fit(TimeSeries.from_values(x))
    parts = [TimeSeries.from_values(part) for part in np.split(x, 10)]
    how = {"num_samples": 50, "random_state": 0}
    ahead = model.predict(12, [part[:30] for part in parts], **how)
    filled = model.impute([with_gaps(part, slice(30, 42)) for part in parts], **how)
    errors = [
        np.std([one.all_values()[-12:].mean() - 10 for one in each])
        for each in (ahead, [one[30:42] for one in filled])
    ]
    # three times the values tell the level with 0.6 of the error
    assert errors[1] < 1.3 * errors[0]


def test_component_that_is_missing_for_long_is_in_many_windows():
    """The others are known beside it; a short gap of it is in one."""
    model = fitted(use_reversible_instance_norm=True, num_components=2)
    missing = np.zeros((400, 2), dtype=bool)
    missing[20:380, 0] = True
    assert len(overlapping_windows(model, missing)) > 20
    missing[:] = False
    missing[40:50, 0] = True
    spans = overlapping_windows(model, missing)
    assert any(s.first <= 40 and s.last >= 50 for s in spans)


def drifting(length: int = 160) -> np.ndarray:
    """A random walk that rises by fifty times the size of a step, (T, 1)."""
    steps = np.random.default_rng(0).standard_normal((length, 1)).astype(np.float32)
    return steps.cumsum(0) + np.linspace(0, 50, length, dtype=np.float32)[:, None]


@cache
def of_drifting() -> DDSSMModel:
    arguments = dict(transition="gaussian", n_epochs=20, optimizer_kwargs={"lr": 1e-2})
    return tiny_model(use_reversible_instance_norm=True, **arguments).fit(
        TimeSeries.from_values(drifting())
    )


def test_long_gap_is_filled_between_its_ends():
    """By joint samples, without a step anywhere."""
    x = drifting()
    series = with_gaps(TimeSeries.from_values(x), slice(110, 150))
    filled = of_drifting().impute(series, num_samples=200, random_state=0).all_values()
    middle = np.median(filled[110:150, 0], axis=1)
    # the mean of the training set, 25, is 9 below the first end
    assert (middle > x[109] - 4).all() and (middle < x[150] + 4).all()


def test_scenario_beyond_the_end_of_a_drifting_series():
    x = drifting()
    goal = np.full((40, 1), np.nan, dtype=np.float32)
    goal[-1] = x[-1] + 5
    series = TimeSeries.from_values(np.concatenate([x, goal]))
    ahead = of_drifting().impute(series, num_samples=100, random_state=0).all_values()
    assert np.abs(np.median(ahead[160:-1, 0], axis=1) - x[-1]).max() < 15


def test_value_after_a_long_gap_is_likely_at_the_level_before_it():
    """And not at the mean of the training set."""
    x = drifting()
    x[120:150] = np.nan
    likely, unlikely = x.copy(), x.copy()
    likely[150:], unlikely[150:] = x[119], x[80]
    how = {"num_samples": 100, "random_state": 0}
    found = [
        of_drifting().log_likelihood(TimeSeries.from_values(one[:156]), **how)
        for one in (likely, unlikely)
    ]
    assert found[0] > found[1]


def test_long_series_are_asked_about_one_at_a_time(monkeypatch):
    """To bound the memory."""
    monkeypatch.setattr(asking, "MAX_STEPS", 100)
    samples = [Namespace(past_target=np.zeros((n, 1))) for n in (80, 80, 30, 30, 30, 30)]
    assert list(_batches(samples, 8)) == [[0], [1], [2, 3, 4], [5]]


def test_instance_norm_imputes_at_the_level_of_each_window():
    """The level rises to a thousand times the spread about it."""
    line = np.linspace(0, 1000, 80, dtype=np.float32)[:, None, None]
    series = with_gaps(with_gaps(noisy_sine() + line, slice(10, 12)), slice(70, 72))
    model = tiny_model(use_reversible_instance_norm=True, n_epochs=1).fit(series)
    filled = model.impute(num_samples=50, random_state=0).all_values()
    away = np.abs(filled - line)[np.isnan(series.values()[:, 0])]
    # the input chunk of a window rises by 150
    assert away.max() < 1000
    assert np.median(away) < 200


def test_instance_norm_filters_windows():
    """Each state has its own window, so that the series may be long."""
    states = ask("filtering", normalised(), GAPS)
    assert len(states) == 80 and np.isfinite(states.all_values()).all()


# --- covariates that drift, in the scale of the training set --------------------------


def rising(length: int, start: int = 0, seed: int = 0) -> TimeSeries:
    """A line with noise, of a slope of one, on the index of :func:`noisy_sine`."""
    noise = np.random.default_rng(seed).uniform(-1, 1, length)
    values = noise + np.arange(start, start + length)
    return covariate(length).with_values(values.astype(np.float32)[:, None])


@cache
def of_rising(kind: str = "future", **kwargs) -> DDSSMModel:
    """Return a tiny model with a covariate that drifts, whose weights are no zeros."""
    arguments = {"n_epochs": 1, "use_reversible_instance_norm": False} | kwargs
    known = {f"{kind}_covariates": rising(100)}
    model = tiny_model(**arguments).fit(SERIES, **known)
    assert model.model.local_covariates == [kind]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.model.ssm.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return model


def test_only_covariates_that_drift_cut_a_series():
    for name in ("plain", "covariates"):
        model = model_of(name)
        assert model.model.local_covariates == []
        assert len(overlapping_windows(model, np.zeros((80, 1), dtype=bool))) == 1
    loaded = tiny_model(n_epochs=1).fit(
        SERIES, future_covariates=COVARIATES["future_covariates"]
    )
    assert loaded.model.local_covariates == []
    loaded.model.load_state_dict(of_rising().model.state_dict())
    assert loaded.model.local_covariates == ["future"]


@pytest.mark.parametrize("patch", [1, 3])
@pytest.mark.parametrize("kind", ["past", "future"])
def test_the_transition_sees_drift_relative_to_the_past_of_a_step(kind, patch):
    """However many states are given before it, and wherever the covariate stands."""
    model = of_rising(kind, patch_length=patch)
    name = f"{kind}_covariates"
    known = {name: rising(60)}
    how = {"num_samples": 4, "random_state": 0}
    states = np.zeros((20, 2))
    # more states than an input chunk has are not seen
    most = INPUT // patch
    draws = [model.sample_transition(states[:n], **known, **how) for n in (most, 20)]
    np.testing.assert_array_equal(*draws)
    later = {name: rising(60, start=0) + 30.0}
    for n in (1, 4, 20):
        one, other = (
            model.sample_transition(states[:n], **given, **how) for given in (known, later)
        )
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("patch", [1, 4])
@pytest.mark.parametrize("num_steps", [12, 18, 19, 27, 40, 80])
def test_covariates_that_drift_stay_in_their_range(num_steps, patch):
    """At each step that counts, in windows that are no longer than those of training."""
    model = of_rising(patch_length=patch)
    missing = np.zeros((num_steps, 1), dtype=bool)
    x = torch.from_numpy(rising(num_steps).values())
    scale = model.model.scales.future
    for spans in (overlapping_windows(model, missing), stretches(model, missing)):
        assert [span.first for span in spans] == [0, *(span.last for span in spans[:-1])]
        assert spans[-1].last == num_steps
        for span in spans:
            assert span.start == 0 or (num_steps - span.end) % patch == 0
            assert span.end - span.start <= WINDOW + patch - 1
            part = x[None, span.start : span.end]
            inside = scale.normalise(part, part)[0, : WINDOW - 1]
            assert ((inside > scale.low) & (inside < scale.high)).all()


@pytest.mark.parametrize("kind", ["past", "future"])
def test_covariates_that_drift_tell_something_to_the_end(kind):
    """Of a long series; other values of them late in it give other answers."""
    model, own = of_rising(kind), rising(100)
    other = own.values(copy=True)
    other[60:] = rising(40, start=60, seed=1).values()
    calls = {
        "infer_latents": {},
        "impute": {},
        "log_likelihood": {"by_step": True},
        "probability_integral_transform": {},
    }
    series = with_gaps(SERIES, slice(70, 73))
    for method, how in calls.items():
        answers = [
            getattr(model, method)(
                series,
                **{f"{kind}_covariates": known},
                num_samples=4,
                random_state=0,
                **how,
            ).all_values()
            for known in (own, own.with_values(other))
        ]
        # at the bound of its range, a covariate would have no effect at all
        assert not np.array_equal(*(x[65:] for x in answers), equal_nan=True)


@pytest.mark.parametrize("patch, shift", [(1, 0), (1, 3), (4, 0), (5, 0)])
def test_with_covariates_that_drift_all_steps_are_predicted(patch, shift):
    """The first input chunk, too, whose scale is known; each patch once."""
    model = of_rising(patch_length=patch, output_chunk_shift=shift, transition="gaussian")
    how = {"num_samples": 4, "random_state": 0, "future_covariates": rising(100)}
    for length in (12, 17, WINDOW + shift, WINDOW + shift + 1, 33, 80):
        series = with_gaps(SERIES[-length:], slice(length - 9, length - 6))
        observed = ~np.isnan(series.values()[:, 0])
        transform = model.probability_integral_transform(series, **how).values()[:, 0]
        assert np.array_equal(~np.isnan(transform), observed)
        by_step = model.log_likelihood(series, by_step=True, **how)
        assert by_step.time_index.equals(series.time_index[(length - 1) % patch :: patch])
        total = observed.sum() * model.log_likelihood(series, **how)
        np.testing.assert_allclose(np.nansum(by_step.values()), total, rtol=1e-4)


def test_the_posterior_scores_windows_alone_where_covariates_drift():
    """With others, also series of two windows."""
    for length, expected in ((WINDOW, True), (WINDOW + 1, False)):
        sample = Namespace(past_target=np.zeros((length, 1)))
        assert is_as_in_training(of_rising(), sample) is expected
        assert is_as_in_training(model_of("covariates"), sample)


def test_forecasts_follow_a_covariate_that_drifts_to_their_end():
    model, own = of_rising(), rising(110)
    other = own.values(copy=True)
    other[100:] = rising(10, start=100, seed=1).values()
    forecasts = [
        model.predict(30, future_covariates=known, num_samples=4, random_state=0)
        for known in (own, own.with_values(other))
    ]
    assert same(*(forecast[:18] for forecast in forecasts))
    assert not np.allclose(*(forecast[22:].all_values() for forecast in forecasts))


def test_past_covariates_that_drift_cut_no_forecast(monkeypatch):
    """They act on its first step alone."""
    model = of_rising("past")
    monkeypatch.delattr(type(model.model), "_roll_on")
    assert len(model.predict(30, past_covariates=rising(100))) == 30


def test_what_a_covariate_that_drifts_says_is_used_late(tiny):
    """Its noise is the series."""
    rng = np.random.default_rng(0)
    tosses, noise = rng.choice([-1.0, 1.0], 160), 0.1 * rng.standard_normal(160)
    series, known = (
        TimeSeries.from_values(x.astype(np.float32)[:, None])
        for x in (2 * tosses + noise, tosses + 0.1 * np.arange(160))
    )
    model = tiny(
        n_epochs=25,
        optimizer_kwargs={"lr": 1e-2},
        overshooting_weight=0,
        input_noise=0,
        covariate_noise=0,
        use_reversible_instance_norm=False,
    ).fit(series, future_covariates=known)
    assert model.model.local_covariates == ["future"]
    how = {"future_covariates": known, "num_samples": 20, "random_state": 0}
    gap = slice(130, 142)
    filled = model.impute(with_gaps(series, gap), **how)[gap]
    ahead = model.predict(36, series[:100], **how)
    # at the bound of its range, one side of the tosses would be taken for the other
    for found, actual in ((filled, series[gap]), (ahead, series[100:136])):
        middle = np.median(found.all_values(), axis=2)
        assert np.abs(middle - actual.values()).mean() < 0.5


# --- what is refused of covariates ----------------------------------------------------

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


@pytest.mark.parametrize("what", BAD_COVARIATES)
def test_bad_covariates_are_refused(what):
    bad, message = BAD_COVARIATES[what]
    with refused(message):
        ask("smoothing", model_of("covariates"), SERIES, **(COVARIATES | bad))


@pytest.mark.parametrize("name", COVARIATES)
def test_superfluous_covariates_are_refused(name):
    with refused(f"trained without `{name}`"):
        ask("smoothing", fitted(), SERIES, **{name: COVARIATES[name]})
    for call in SCRATCH.values():
        with refused(f"trained without `{name}`"):
            call(fitted(), **{name: COVARIATES[name]})


@questions
def test_every_question_checks_what_it_is_given(question):
    """The series, and the covariates, in whose message the question has its name."""
    with refused("`series` must have at least `input_chunk_length`, 12, steps"):
        ask(question, fitted(), SERIES[:11])
    late = COVARIATES | {"future_covariates": FUTURE[1:]}
    with refused(rf"`future_covariates` must cover .* in `{method_of(question)}\(\)`"):
        ask(question, model_of("covariates"), SERIES, **late)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("factor", [1e30, 1e39])
@questions
def test_values_are_checked_in_the_type_of_the_model(question, factor):
    """Those of float64 may be too large for float32, or infinite in it."""
    with refused("`series` must be"):
        ask(question, fitted(), SERIES.astype(np.float64) * factor)
    for name, covariates in COVARIATES.items():
        large = COVARIATES | {name: covariates.astype(np.float64) * factor}
        with refused(f"`{name}` must be"):
            ask(question, model_of("covariates"), SERIES, **large)


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


@each_call
def test_bad_covariates_of_no_series_are_refused(call):
    model = model_of("covariates")
    for given, message in (
        ({"future_covariates": FUTURE[:1]}, "`future_covariates` must cover `series`"),
        ({"future_covariates": HOURS}, "`future_covariates` must have the frequency"),
        ({"future_covariates": FUTURE * np.inf}, "`future_covariates` must be finite"),
        (
            {"future_covariates": FUTURE.astype(np.float64) * 1e30},
            "`future_covariates` must be within",
        ),
        ({"future_covariates": PAST}, "`future_covariates` must have equal number"),
        (
            {"future_covariates": FUTURE[:80], "past_covariates": FUTURE[:80]},
            "`past_covariates` must have equal number",
        ),
    ):
        with refused(message):
            SCRATCH[call](model, **given)
    with refused("`static_covariates` must have equal number of components"):
        SCRATCH[call](model_of("static"), static_covariates=static(1.0))
    with refused("`static_covariates` must be finite or NaN"):
        SCRATCH[call](model_of("static"), static_covariates=static(np.inf, 2.0))


def test_covariates_of_training_are_needed_in_simulations():
    with refused("trained with `future_covariates`"):
        model_of("covariates").simulate(4)


# --- encoders -------------------------------------------------------------------------


@cache
def explicit() -> tuple[DDSSMModel, dict[str, TimeSeries]]:
    """Return a model of covariates that those of `CALENDAR` are, and these."""
    times = noisy_sine(100).time_index
    covariates = {
        f"{kind}_covariates": datetime_attribute_timeseries(times, name, dtype=np.float32)
        for kind, name in (("past", "month"), ("future", "dayofweek"))
    }
    return tiny_model(n_epochs=1).fit(SERIES, **covariates), covariates


@pytest.mark.darts_compat
@pytest.mark.parametrize(
    "question, part",
    [
        *(("smoothing", part) for part in (slice(0, 80), slice(0, 12))),
        *((question, slice(33, 70)) for question in QUESTIONS),
    ],
)
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


@each_call
def test_past_covariates_beside_encoders_are_optional(call):
    """Unknown where they are not given, as without encoders."""
    drawn = SCRATCH[call](model_of("everything"), future_covariates=FUTURE)
    assert np.isfinite(values(drawn)).all()


@cache
def of_scaled_encodings() -> DDSSMModel:
    """Return a model whose encodings are scaled beside both kinds of covariates."""
    encoders = CALENDAR | {"transformer": Scaler()}
    model = tiny_model(n_epochs=1, add_encoders=encoders)
    return model.fit(SERIES, past_covariates=PAST, future_covariates=FUTURE)


@pytest.mark.parametrize(
    "call, given",
    [
        ("simulate", {"future_covariates": FUTURE}),
        ("sample_transition", {"past_covariates": PAST}),
        ("sample_transition", {"future_covariates": FUTURE}),
    ],
)
def test_covariates_beside_scaled_encodings_are_optional(call, given):
    drawn = SCRATCH[call](of_scaled_encodings(), **given)
    assert np.isfinite(values(drawn)).all()


def test_other_covariates_beside_encodings_must_be_given():
    """As without encodings, where darts says so."""
    needed = "must be given to `{}[(][)]`, as in training, got `None`"
    for model in (of_scaled_encodings(), model_of("everything")):
        with refused("`future_covariates` " + needed.format("simulate")):
            model.simulate(4)
        with refused("`past_covariates` " + needed.format("impute")):
            model.impute(SERIES, future_covariates=FUTURE)
