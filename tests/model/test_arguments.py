"""Arguments that are refused, each with a message that names the problem."""

import functools

import numpy as np
import pandas as pd
import pytest
from darts.utils.likelihood_models import torch as likelihoods

from darts_ddssm import DDSSMModel
from tests.helpers import TRAINER, noisy_sine, tiny_model


@pytest.mark.parametrize(
    "name", ["latent_dim", "hidden_size", "num_solver_steps", "transition_order"]
)
@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True])
def test_sizes_must_be_positive_integers(tiny, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be .* got `{value!r}`"):
        tiny(**{name: value})


@pytest.mark.parametrize("name", ["hidden_size", "num_solver_steps"])
def test_sizes_must_not_be_none(tiny, name):
    with pytest.raises(ValueError, match=f"`{name}` must be .* got `None`"):
        tiny(**{name: None})


@pytest.mark.parametrize("value", [0, 4])
def test_num_solver_steps_must_be_enough(tiny, value):
    """Fewer give a spread that is wrong by a fifth and more."""
    match = f"`num_solver_steps` must be an integer >= 5, got `{value}`"
    with pytest.raises(ValueError, match=match):
        tiny(num_solver_steps=value)
    model = tiny()
    with pytest.raises(ValueError, match=match):
        model.num_solver_steps = value


def test_a_copy_has_the_number_of_solver_steps_that_was_set(tiny):
    model = tiny(n_epochs=1).fit(noisy_sine())
    model.num_solver_steps = 7
    assert model.untrained_model().num_solver_steps == 7
    assert "num_solver_steps=7" in repr(model)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "2", None, True])
def test_peak_kl_weight_must_be_a_positive_number(tiny, value):
    with pytest.raises(ValueError, match=f"`peak_kl_weight` must be .* got `{value!r}`"):
        tiny(peak_kl_weight=value)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "1", None, True])
def test_weight_must_be_a_number(tiny, value):
    with pytest.raises(ValueError, match="`overshooting_weight` must be a number >= 0"):
        tiny(overshooting_weight=value)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan"), "0", None, False])
def test_gap_augmentation_must_be_a_share(tiny, value):
    with pytest.raises(ValueError, match=f"`gap_augmentation` must be .* got `{value!r}`"):
        tiny(gap_augmentation=value)


def test_transition_must_be_known(tiny):
    with pytest.raises(ValueError, match="`transition` must be .* got `'laplace'`"):
        tiny(transition="laplace")


def test_likelihood_must_be_a_density(tiny):
    with pytest.raises(ValueError, match="`likelihood` .*no|`likelihood` must be a d"):
        tiny(likelihood=likelihoods.QuantileRegression())
    with pytest.raises(ValueError, match="`likelihood` must be one of .*'gaussian'"):
        tiny(likelihood="gaussian")


def test_numbers_of_numpy_are_numbers(tmp_path):
    """In training and in files, whose loader takes Python's own alone."""
    sizes = ("latent_dim", "hidden_size", "batch_size", "transition_order", "patch_length")
    model = DDSSMModel(
        *np.array([12, 6, 0]),
        **{name: np.int64(2) for name in sizes},
        n_epochs=np.int64(1),
        num_solver_steps=np.int32(5),
        input_noise=np.float32(0.5),
        use_reversible_instance_norm={"eps": np.float64(1e-3)},
        optimizer_kwargs={"lr": np.float32(1e-3)},
        pl_trainer_kwargs=TRAINER,
    )
    path = str(tmp_path / "model.pt")
    model.fit(noisy_sine()).num_solver_steps = np.int64(6)
    model.save(path)
    loaded = DDSSMModel.load(path)
    assert loaded.num_solver_steps == 6
    assert len(loaded.predict(np.int64(3), num_samples=np.int64(2))) == 3


def test_unknown_argument(tiny):
    with pytest.raises(ValueError, match="no args/kwargs `\\['latent_size'\\]`"):
        tiny(latent_size=3)


@pytest.mark.parametrize(
    "name", ["input_chunk_length", "output_chunk_length", "batch_size", "n_epochs"]
)
@pytest.mark.parametrize("value", [0, -1, 1.5, "12", True])
def test_lengths_and_numbers_must_be_positive_integers(tiny, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be .* got `{value!r}`"):
        tiny(**{name: value})


@pytest.mark.parametrize("value", [-1, 1.5, "0", None])
def test_shift_must_not_be_negative(tiny, value):
    with pytest.raises(ValueError, match=f"`output_chunk_shift` must be .* `{value!r}`"):
        tiny(output_chunk_shift=value)


@pytest.mark.parametrize("value", ["yes", [1], {}, {"affin": True}, 1])
def test_instance_norm_must_be_known(tiny, value):
    with pytest.raises(ValueError, match="`use_reversible_instance_norm` must be") as error:
        tiny(use_reversible_instance_norm=value)
    assert f"got `{value!r}`" in str(error.value)


@pytest.mark.parametrize(
    "name, value",
    [("eps", -1), ("eps", "a"), ("eps", None), ("eps", np.inf), ("affine", 3)],
)
def test_arguments_of_instance_norm(tiny, name, value):
    match = rf'`use_reversible_instance_norm\["{name}"\]` must be .* got `{value!r}`'
    with pytest.raises(ValueError, match=match):
        tiny(use_reversible_instance_norm={name: value})


@pytest.mark.parametrize("value", [None, 1, "no"])
def test_use_of_static_covariates_must_be_a_bool(tiny, value):
    with pytest.raises(ValueError, match=f"`use_static_covariates` must be .*{value!r}"):
        tiny(use_static_covariates=value)


@pytest.fixture(scope="module")
def fitted():
    return tiny_model(n_epochs=1).fit(noisy_sine())


@pytest.mark.parametrize("name", ["n", "num_samples"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True, None])
def test_forecasts_have_positive_sizes(fitted, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be .* got `{value!r}`"):
        fitted.predict(**{"n": 3} | {name: value})


NO_SERIES = [
    [],
    [noisy_sine(), None],
    pd.DataFrame({"a": [1.0]}),
    3,
    "series",
    np.zeros(20),
]


@pytest.mark.parametrize("value", NO_SERIES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("method", ["infer_latents", "log_likelihood", "impute", "predict"])
def test_series_must_be_series(fitted, method, value):
    call = getattr(fitted, method)
    if method == "predict":
        call = functools.partial(call, 3)
    with pytest.raises(ValueError, match="`series` must be a `TimeSeries` or a sequence"):
        call(series=value)


@pytest.mark.parametrize("value", NO_SERIES, ids=lambda value: type(value).__name__)
def test_training_series_must_be_series(tiny, value):
    with pytest.raises(ValueError, match="`series` must be a `TimeSeries` or a sequence"):
        tiny().fit(value)


@pytest.mark.parametrize("name", ["past_covariates", "future_covariates"])
def test_covariates_must_be_series(fitted, name):
    for method in (fitted.infer_latents, fitted.impute, fitted.log_likelihood):
        with pytest.raises(ValueError, match=f"`{name}` must be a `TimeSeries`.* got `3`"):
            method(noisy_sine(), **{name: 3})
    with pytest.raises(ValueError, match=f"`{name}` must be a `TimeSeries`.* got `3`"):
        fitted.simulate(5, **{name: 3})
    with pytest.raises(ValueError, match=f"`{name}` must be a `TimeSeries`.* got `3`"):
        fitted.sample_transition([0.0, 0.0], **{name: 3})


def test_filtering_must_be_a_bool(fitted):
    with pytest.raises(ValueError, match="`filtering` must be .* got `'a'`"):
        fitted.infer_latents(filtering="a")


def test_states_must_be_numbers(fitted):
    with pytest.raises(ValueError, match="`state` must be numbers, got `'a'`"):
        fitted.sample_transition("a")
