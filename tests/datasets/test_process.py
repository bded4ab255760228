"""What holds for all simulated series."""

import inspect

import numpy as np
import pytest

from darts_ddssm.datasets import (
    BimodalRandomWalk,
    SwitchingSigns,
    bimodal_random_walk,
    linear_gaussian,
    switching_signs,
)
from tests.helpers import assert_mean, stack

DATASETS = [bimodal_random_walk, switching_signs, linear_gaussian]


@pytest.mark.parametrize("dataset", DATASETS)
def test_layout(dataset):
    series, latents, process = dataset(3, length=12, random_state=0)
    assert len(series) == len(latents) == 3
    for x, z in zip(series, latents, strict=True):
        assert x.components.tolist() == list(process.components)
        assert z.components.tolist() == list(process.state_components)
        assert x.has_range_index and x.time_index.equals(z.time_index)
        assert x.dtype == z.dtype == np.float32
        assert len(x) == 12 and x.start_time() == 0


@pytest.mark.parametrize("dataset", DATASETS)
def test_random_state_decides(dataset):
    first, again, other = (dataset(2, 8, random_state=i) for i in (0, 0, 1))
    assert first.series == again.series and first.latents == again.latents
    assert first.series != other.series
    assert first.series[0] != first.series[1]
    assert dataset(1, 8).series != dataset(1, 8).series


@pytest.mark.parametrize("dataset", DATASETS)
def test_function_is_its_process(dataset):
    series, _, process = dataset(2, 8, random_state=0)
    assert process.simulate(2, 8, random_state=0).series == series


@pytest.mark.parametrize(
    ("dataset", "process_class"),
    [(bimodal_random_walk, BimodalRandomWalk), (switching_signs, SwitchingSigns)],
)
def test_function_and_process_have_the_same_defaults(dataset, process_class):
    defaults = inspect.signature(dataset).parameters
    for name, parameter in inspect.signature(process_class).parameters.items():
        assert defaults[name].default == parameter.default


@pytest.mark.parametrize("dataset", DATASETS)
def test_sample_future_shapes_and_seed(dataset):
    _, latents, process = dataset(3, 5, random_state=0)
    states = np.stack([z.last_values() for z in latents])
    c = len(process.components)
    paths = process.sample_future(states, n=4, num_samples=7, random_state=0)
    assert paths.shape == (7, 3, 4, c)
    one = process.sample_future(states[0], n=4, num_samples=7, random_state=0)
    assert one.shape == (7, 4, c)
    again = process.sample_future(states, n=4, num_samples=7, random_state=0)
    np.testing.assert_array_equal(paths, again)
    assert not np.array_equal(paths[0], paths[1])


@pytest.mark.parametrize("dataset", DATASETS)
def test_future_continues_the_series(dataset):
    """Samples given a true state have the moments of what the series did next."""
    series, latents, process = dataset(2000, 12, random_state=1)
    states = stack(latents)[:, -3]
    actual = stack(series)[:, -2:]
    samples = process.sample_future(states, n=2, num_samples=100, random_state=2)
    # Moments of actual values less those of samples of the same series
    for moment in (lambda x: x, lambda x: x**2, lambda x: x[..., :1, :] * x):
        assert_mean(moment(actual) - moment(samples).mean(axis=0), 0.0)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("name", ["num_series", "length"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "4"])
def test_sizes_must_be_positive_integers(dataset, name, value):
    message = f"`{name}` must be an integer >= 1, got `{value!r}`"
    with pytest.raises(ValueError, match=message):
        dataset(**{"num_series": 1, "length": 4, name: value})


@pytest.mark.parametrize(
    ("dataset", "name", "value"),
    [
        (bimodal_random_walk, "probability", 0.0),
        (bimodal_random_walk, "probability", 1.0),
        (bimodal_random_walk, "probability", float("nan")),
        (bimodal_random_walk, "probability", "a"),
        (bimodal_random_walk, "decay", "a"),
        (bimodal_random_walk, "decay", 1.1),
        (bimodal_random_walk, "decay", -0.1),
        (bimodal_random_walk, "step", 0.0),
        (bimodal_random_walk, "noise", -0.2),
        (switching_signs, "persistence", 1.0),
        (switching_signs, "decay", 1.0),
        (switching_signs, "step", -2.0),
        (switching_signs, "noise", 0.0),
        (linear_gaussian, "radius", 1.0),
        (linear_gaussian, "period", 0.0),
        (linear_gaussian, "step", 0.0),
        (linear_gaussian, "noise", 0.0),
        (linear_gaussian, "noise", float("inf")),
        (linear_gaussian, "num_components", 0),
        (linear_gaussian, "num_components", 1.5),
    ],
)
def test_arguments_outside_their_range(dataset, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be .*, got `{value!r}`"):
        dataset(1, 4, **{name: value})


def test_sample_future_errors():
    process = SwitchingSigns()
    with pytest.raises(ValueError, match=r"`state` must have 8 entries .* `\(4,\)`"):
        process.sample_future(np.zeros(4), n=1, num_samples=1)
    with pytest.raises(ValueError, match="`state` must have 8 entries"):
        process.sample_future(0.0, n=1, num_samples=1)
    with pytest.raises(ValueError, match="`n` must be an integer >= 1, got `0`"):
        process.sample_future(np.zeros(8), n=0, num_samples=1)
    with pytest.raises(
        ValueError, match="`num_samples` must be an integer >= 1, got `1.5`"
    ):
        process.sample_future(np.zeros(8), n=1, num_samples=1.5)
