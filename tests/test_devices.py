"""Devices that nobody needs to have: nothing is made in a wrong place, hardly a wait."""

import numpy as np
import pytest
import torch
from darts import TimeSeries
from pytorch_lightning.callbacks import Callback
from torchmetrics import MeanAbsoluteError

from darts_ddssm import DDSSMModel
from darts_ddssm.ssm import transition
from darts_ddssm.ssm.transition import Transition
from tests.elsewhere import ELSEWHERE, Device, Wait, elsewhere, trainer_elsewhere
from tests.helpers import KINDS, QUESTIONS, noisy_sine, state, tiny_model, values

# Short ones: each operation goes through Python.
STEPS = slice(30, 60)
SERIES, GAPS = (KINDS[kind][0][STEPS] for kind in ("plain", "gaps"))

# The same gaps in a parabola, along whose trend windows are forecast.
CURVE = GAPS.with_values(
    0.2 * (np.arange(30, dtype=np.float32)[:, None] - 15) ** 2 + 0 * GAPS.values()
)

# The same gaps in a random walk, windows of which are reflected.
WALK = GAPS.with_values(
    np.random.default_rng(0).standard_normal((30, 1)).cumsum(0).astype(np.float32)
    + 0 * GAPS.values()
)

GPU = {"accelerator": "gpu", "devices": 1}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

# Of a training, fewer than those after which the loss is looked at. The fifth has forecasts
# of several steps in its loss.
UPDATES = 8


def model_elsewhere(*callbacks: Callback, **arguments) -> DDSSMModel:
    """A model that is on the device."""
    trainer = trainer_elsewhere() | {"callbacks": list(callbacks)}
    small = {"batch_size": 4, "input_noise": 0.2}
    return tiny_model(trainer, **(small | arguments))


def of_logging(wait: Wait) -> bool:
    """Tell whether Lightning waited to log what it was given."""
    return any("logger_connector" in file for file in wait.files)


class Updates(Callback):
    """Collect what is waited for from the start to the end of an update."""

    def __init__(self, device: Device) -> None:
        self.device, self.waits, self.number = device, [], 0

    def on_train_batch_start(self, *args):
        self.device.waits.clear()

    def on_train_batch_end(self, *args):
        self.number += 1
        self.waits += [wait for wait in self.device.waits if not of_logging(wait)]


@pytest.mark.parametrize(
    "series, arguments",
    [
        (SERIES, {}),
        (SERIES, {"patch_length": 3, "torch_metrics": MeanAbsoluteError()}),
        (CURVE, {"use_reversible_instance_norm": True}),
        (WALK, {"use_reversible_instance_norm": True}),
        (GAPS, {"patch_length": 3, "transition_order": 1}),
        (GAPS, {"transition": "gaussian"}),
    ],
)
def test_no_update_waits(series, arguments):
    """From the batch to the average of the weights, but for Lightning's own logging."""
    with elsewhere() as device:
        updates = Updates(device)
        model = model_elsewhere(updates, **arguments).fit(series)
    assert updates.number == UPDATES
    # a part of what is chosen for few windows
    assert model.model.reflects == (series is WALK)
    assert updates.waits == []


def test_a_wait_is_noticed(monkeypatch):
    """The test before this one can fail."""

    def looks(of_model: Transition, path) -> None:
        if path.z.isfinite().all():
            track_moments(of_model, path)

    track_moments = Transition.track_moments
    monkeypatch.setattr(Transition, "track_moments", looks)
    with elsewhere() as device:
        updates = Updates(device)
        model_elsewhere(updates, n_epochs=1).fit(SERIES)
    found = [wait.operation for wait in updates.waits]
    assert found == updates.number * ["aten._local_scalar_dense.default"]


def test_forecasts_of_complete_series_do_not_wait():
    """In gaps they do: how many paths are sent through one depends on what they meet."""

    def waits(series: TimeSeries) -> list[Wait]:
        device.waits.clear()
        forecast = model.predict(8, series, num_samples=40)
        assert np.isfinite(forecast.all_values()).all()
        return [w for w in device.waits if any("series/model.py" in f for f in w.files)]

    with elsewhere() as device:
        model = model_elsewhere(n_epochs=1).fit(SERIES)
        assert waits(SERIES) == []
        model.distill(num_updates=2)
        assert waits(SERIES) == []
        # a gap of five steps, six steps before the end
        assert waits(GAPS[:20]) != []


def test_it_is_the_same_model_elsewhere():
    """But for rounding: the operations of a recurrent network are other ones."""
    with elsewhere():
        model = model_elsewhere(n_epochs=1).fit(GAPS)
    here = state(tiny_model(n_epochs=1, batch_size=4, input_noise=0.2).fit(GAPS))
    for name, value in model.model.state_dict().items():
        torch.testing.assert_close(value, here[name], rtol=1e-3, atol=1e-4)


def test_a_model_that_is_elsewhere_is_fitted_on():
    """What is decided before a training is decided here."""
    with elsewhere():
        model = model_elsewhere(n_epochs=1, input_noise=None).fit(SERIES)
        level = model.model.input_noise
        model.model.to(ELSEWHERE)
        model.fit(SERIES)
    assert model.model.input_noise == pytest.approx(level)


def fit_and_ask(trainer: dict, kind: str) -> DDSSMModel:
    """Train, validate, forecast, and ask all that can be asked of the latents."""
    series, covariates, arguments = KINDS[kind]
    # as short as all that is asked allows
    series = series[30:52]
    validation = {f"val_{name}": value for name, value in covariates.items()}
    given = {"num_samples": 3} | covariates
    model = tiny_model(
        trainer,
        n_epochs=1,
        batch_size=16,
        input_noise=0.2,
        torch_metrics=MeanAbsoluteError(),
        # with a scale of each window, not all can be asked
        use_reversible_instance_norm=False,
        **arguments,
    )
    model.fit(series, val_series=series, **covariates, **validation)
    answers = [ask(model, series, **given) for ask in QUESTIONS.values()]
    answers.append(model.predict(6, series, **given))
    parameters = {"predict_likelihood_parameters": True} | covariates
    answers.append(model.predict(6, series, **parameters))
    by_step = model.log_likelihood(series, by_step=True, **given)
    transforms = model.probability_integral_transform(series, **given)
    if series.static_covariates is not None:
        given["static_covariates"] = series.static_covariates
    answers.append(model.simulate(12, **given))
    if "future_covariates" in given:
        # up to the step after the last state
        given["future_covariates"] = given["future_covariates"][:81]
    z = np.zeros(model.latent_dim)
    answers.append(model.sample_transition(z, **given))
    model.distill(2, series, **covariates, num_updates=2)
    answers.append(model.predict(6, series, num_samples=3, **covariates))
    assert all(np.isfinite(values(answer)).all() for answer in answers)
    # a gap has no density
    missing = np.isnan(series.values())
    assert np.array_equal(np.isnan(by_step.values()[:, 0]), missing.all(1))
    assert np.array_equal(np.isnan(transforms.values()), missing)
    return model


@pytest.mark.parametrize("kind", ["gaps", "everything"])
def test_nothing_is_made_in_a_wrong_place(kind, short_flows):
    with elsewhere():
        fit_and_ask(trainer_elsewhere(), kind)


def test_a_wrong_place_is_found(monkeypatch):
    """The test before this one can fail."""

    def started_along(z: torch.Tensor) -> torch.Tensor:
        return torch.ones(*z.shape[:-1], 1)

    monkeypatch.setattr(transition, "started_along", started_along)
    with elsewhere(), pytest.raises(RuntimeError, match="to be on the same device"):
        model_elsewhere().fit(SERIES)


def test_what_no_gpu_does_is_found():
    with elsewhere(), pytest.raises(NotImplementedError, match="Bool"):
        marked = torch.zeros(3, dtype=torch.bool, device="meta")
        marked.scatter_reduce(0, torch.arange(3, device="meta"), marked, "amax")


class Spoil(Callback):
    """Make the loss of the third update infinite, and look at the weights after each."""

    def __init__(self) -> None:
        self.finite: list[bool] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 2:
            batch.future_target.fill_(1e30)

    def on_train_batch_end(self, trainer, pl_module, *args):
        values = pl_module.state_dict().values()
        self.finite.append(all(value.isfinite().all() for value in values))


def test_weights_stay_finite_until_the_loss_is_looked_at():
    spoil = Spoil()
    model = tiny_model({"callbacks": [spoil]})
    with pytest.raises(RuntimeError, match="non-finite"):
        model.fit(noisy_sine())
    # it was looked at where the epoch ended
    assert spoil.finite == 4 * [True]
    assert all(value.isfinite().all() for value in state(model).values())


class Strict(Callback):
    """Let torch refuse to wait for a GPU in the loss and its derivatives."""

    def on_train_start(self, trainer, pl_module):
        pl_module._training_loss = strictly(pl_module._training_loss)

    def on_before_backward(self, *args):
        torch.cuda.set_sync_debug_mode("error")

    def on_after_backward(self, *args):
        torch.cuda.set_sync_debug_mode("default")


def strictly(function):
    def called(*args):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return function(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return called


@needs_gpu
@pytest.mark.parametrize("series", [SERIES, GAPS])
def test_no_update_waits_for_a_gpu(series):
    model: DDSSMModel = tiny_model(GPU | {"callbacks": [Strict()]}).fit(series)
    assert np.isfinite(model.predict(3).values()).all()


@needs_gpu
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_gpu_does_all_that_a_cpu_does(kind, short_flows, tmp_path):
    """The model that comes back from there forecasts here, too."""
    model = fit_and_ask(GPU, kind)
    path = str(tmp_path / "model.pt")
    model.save(path)
    cpu = {"accelerator": "cpu"}
    here = DDSSMModel.load(path, pl_trainer_kwargs=cpu, map_location="cpu")
    series, covariates, _ = KINDS[kind]
    forecasts = [m.predict(6, series, num_samples=200, **covariates) for m in (model, here)]
    means, spreads = zip(
        *((f.all_values().mean(2), f.all_values().std(2)) for f in forecasts), strict=True
    )
    # two sets of draws of one distribution
    error = np.hypot(*spreads) / np.sqrt(200)
    assert (abs(means[0] - means[1]) < 6 * error + 1e-6).all()


@needs_gpu
def test_draws_on_a_gpu_follow_the_random_state():
    def forecast() -> np.ndarray:
        model = tiny_model(GPU, n_epochs=1, random_state=3).fit(SERIES)
        return model.predict(6, num_samples=5).all_values()

    np.testing.assert_allclose(forecast(), forecast(), rtol=1e-4)
