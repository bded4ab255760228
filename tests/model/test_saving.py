"""Saving and loading, checkpoints, weights, finetuning, and export, which is refused."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from darts import TimeSeries
from darts.utils.likelihood_models.torch import LaplaceLikelihood
from pytorch_lightning.callbacks import Callback

from darts_ddssm import DDSSMModel
from darts_ddssm.training.lightning_module import (
    COVARIATES,
    LOCAL_PATTERN,
    OF_COVARIATES,
)
from tests.helpers import (
    LARGE_STEP,
    TRAINER,
    ahead,
    changed,
    close,
    kept,
    noisy_sine,
    same,
    state,
)


@pytest.fixture
def saved(tiny, tmp_path):
    """Path of a model fitted to the noisy sine."""
    path = str(tmp_path / "saved.pt")
    tiny(optimizer_kwargs=LARGE_STEP).fit(noisy_sine()).save(path)
    return path


def test_saved_model_forecasts_the_same(tiny, tmp_path):
    model = tiny().fit(noisy_sine())
    path = str(tmp_path / "model.pt")
    model.save(path)
    loaded = DDSSMModel.load(path, map_location="cpu")
    assert close(ahead(model), ahead(loaded))
    loaded.save(path)
    assert close(ahead(model), ahead(DDSSMModel.load(path)))


def test_loaded_model_is_fitted_on(tiny, tmp_path):
    """It keeps its scale and its place in the schedule of the divergence."""
    model = tiny(optimizer_kwargs={"lr": 1e-3}).fit(noisy_sine())
    path = str(tmp_path / "model.pt")
    model.save(path)
    loaded = DDSSMModel.load(path)
    loaded.fit(5 + noisy_sine(seed=1), epochs=1)
    before, after = state(model), state(loaded)
    fixed = {
        "progress",
        "by_instance",
        "floor_spread",
        "floor_ratio",
        "floor_zeros",
        *LOCAL_PATTERN,
    }
    fixed |= {"target_shift", "target_spread", "is_unit_free"}
    fixed |= {f"{kind}_{part}" for kind in COVARIATES for part in OF_COVARIATES}
    fixed.add("ssm.encoder.share_kept")
    assert changed(before, after) == before.keys() - fixed
    name = "ssm.decoder.bypass.weight"
    # Adam moves a weight by at most about the learning rate in each of four updates
    assert (before[name] - after[name]).abs().max() < 0.01


NEW_PROCESS = """
import sys
import numpy as np
from darts.models.forecasting.torch_forecasting_model import TorchForecastingModel

path = sys.argv[1]
try:
    TorchForecastingModel.load(path)
except Exception as error:
    print(error)
import darts_ddssm
model = TorchForecastingModel.load(path)
forecast = model.predict(4, num_samples=3, random_state=1, verbose=False)
np.save(path + ".npy", forecast.all_values())
"""


@pytest.mark.darts_compat
@pytest.mark.slow
def test_new_process_loads_once_this_package_is_imported(tiny, tmp_path):
    model = tiny().fit(noisy_sine())
    path = str(tmp_path / "model.pt")
    model.save(path)
    command = [sys.executable, "-c", NEW_PROCESS, path]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    error = "global `darts_ddssm.model.DDSSMModel` is not allow-listed"
    assert error in process.stdout
    # to rounding: another process may add in another order
    np.testing.assert_allclose(np.load(path + ".npy"), ahead(model).all_values(), atol=1e-6)


class Mine(Callback):
    """A class that darts' safe loader does not know."""


def test_clean_model_is_free_of_its_training(tiny, tmp_path):
    series = noisy_sine()
    model = tiny({"callbacks": [Mine()]}).fit(series)
    full, clean = str(tmp_path / "full.pt"), str(tmp_path / "clean.pt")
    model.save(full)
    model.save(clean, clean=True)
    with pytest.raises(Exception, match="Mine` is not allow-listed"):
        DDSSMModel.load(full)
    # what is given at loading takes the place of what darts adds for training
    trainer = TRAINER | {"enable_checkpointing": False}
    loaded = DDSSMModel.load(clean, map_location="cpu", pl_trainer_kwargs=trainer)
    with pytest.raises(ValueError, match="clean=True"):
        loaded.predict(4)
    assert close(ahead(model), ahead(loaded, series))
    loaded.fit(series, epochs=1)
    assert np.isfinite(ahead(loaded).all_values()).all()


def far(seed: int = 5) -> TimeSeries:
    """A series unlike the others, which a model does the worse on the surer it is."""
    return 10 * noisy_sine(seed=seed)


def test_best_model_is_the_one_that_is_saved(tiny, tmp_path):
    model = tiny(**kept(tmp_path), n_epochs=6, optimizer_kwargs=LARGE_STEP)
    model.fit(noisy_sine(), val_series=far(), load_best=True)
    path = str(tmp_path / "model.pt")
    # at once: a forecast in between would renew the trainer, which writes the file
    model.save(path)
    assert close(ahead(model), ahead(DDSSMModel.load(path)))


@pytest.mark.darts_compat
def test_weights_loaded_into_a_fitted_model_are_saved(tiny, saved, tmp_path):
    model = tiny(optimizer_kwargs=LARGE_STEP).fit(noisy_sine(seed=1))
    model.load_weights(saved)
    path = str(tmp_path / "model.pt")
    model.save(path)
    series = noisy_sine()
    assert close(ahead(DDSSMModel.load(saved)), ahead(DDSSMModel.load(path), series))


def test_best_and_last_checkpoint(tiny, tmp_path):
    series = noisy_sine()
    arguments = dict(n_epochs=6, optimizer_kwargs=LARGE_STEP)
    last = tiny(**kept(tmp_path), **arguments).fit(series, val_series=far())
    again = tiny(**kept(tmp_path / "again"), **arguments)
    best = again.fit(series, val_series=far(), load_best=True)
    assert not same(ahead(best), ahead(last))
    for model, is_best in ((best, True), (last, False)):
        loaded = DDSSMModel.load_from_checkpoint("m", str(tmp_path), best=is_best)
        assert close(ahead(model), ahead(loaded, series))
        weights = tiny(**arguments)
        weights.load_weights_from_checkpoint("m", str(tmp_path), best=is_best)
        assert close(ahead(model), ahead(weights, series))


def test_components_and_dates_of_training_are_remembered(tiny, tmp_path):
    """By checkpoints and with weights alone; those of a failed attempt are forgotten."""
    series = noisy_sine().with_columns_renamed("0", "sales")
    model = tiny(**kept(tmp_path), n_epochs=1)
    with pytest.raises(ValueError, match="too short"):
        model.fit(TimeSeries.from_values(series.values()[:3]))
    path = str(tmp_path / "model.pt")
    model.fit(series).save(path)
    weights, other_weights = tiny(), tiny()
    weights.load_weights(path)
    other_weights.load_weights_from_checkpoint("m", str(tmp_path), best=False)
    checkpoint = DDSSMModel.load_from_checkpoint("m", str(tmp_path), best=False)
    for one in (model, checkpoint, weights, other_weights):
        simulated = one.simulate(3, num_samples=2)
        assert simulated.components.to_list() == ["sales"]
        assert simulated.time_index.equals(series.time_index[:3])


def test_export_to_onnx_is_refused(tiny, tmp_path):
    path = tmp_path / "model.onnx"
    for model in (tiny(), tiny(n_epochs=1).fit(noisy_sine())):
        with pytest.raises(NotImplementedError, match="known by its samples alone"):
            model.to_onnx(str(path))
    assert not path.exists()


# --- weights alone --------------------------------------------------------------------


def test_weights_into_a_model_that_trains_otherwise(tiny, saved):
    other = tiny(
        n_epochs=7,
        batch_size=5,
        optimizer_cls=torch.optim.SGD,
        optimizer_kwargs={"lr": 1e-4},
        lr_scheduler_cls=torch.optim.lr_scheduler.ExponentialLR,
        lr_scheduler_kwargs={"gamma": 0.9},
        peak_kl_weight=2.0,
        overshooting_weight=0.0,
        gap_augmentation=0.0,
        num_solver_steps=9,
    )
    other.load_weights(saved)
    more_steps = ahead(other, noisy_sine())
    other.num_solver_steps = 5
    expected = ahead(DDSSMModel.load(saved))
    assert close(expected, ahead(other, noisy_sine()))
    assert not same(expected, more_steps)
    other.fit(noisy_sine(), epochs=1)
    assert isinstance(other.trainer.optimizers[0], torch.optim.SGD)


MISMATCHES = {
    "input_chunk_length": 11,
    "output_chunk_length": 5,
    "transition_order": 1,
    "transition": "gaussian",
    "hidden_size": 9,
    "likelihood": LaplaceLikelihood(),
    "use_static_covariates": False,
    "use_reversible_instance_norm": True,
}


@pytest.mark.darts_compat
def test_weights_into_another_architecture(tiny, saved):
    """The message names the argument."""
    for name, value in MISMATCHES.items():
        with pytest.raises(ValueError, match=f"found {name}="):
            tiny(**{name: value}).load_weights(saved)
    with pytest.raises(ValueError, match="`latent_dim` must be .* checkpoint, 2, got 3"):
        tiny(latent_dim=3).load_weights(saved)


def test_weights_belong_to_a_number_of_components(tiny, saved):
    model = tiny()
    model.load_weights(saved)
    with pytest.raises(ValueError, match="dimension"):
        model.fit(noisy_sine(num_components=2))
    with pytest.raises(ValueError, match="dimension|components"):
        model.predict(3, noisy_sine(num_components=2))


# --- finetuning -----------------------------------------------------------------------


PROCESS = "ssm.transition."
TRACKED = ("squared_scale", "num_updates", "squares", "products", "drift")
SCALE = {PROCESS + name for name in TRACKED}
# what the encoder has seen, where it learns
SEEN = {"largest_input"}


def finetuned(tiny, saved, **kwargs) -> tuple[set[str], set[str]]:
    """Fit loaded weights to another series: what has changed, and all parameters."""
    model = tiny(optimizer_kwargs=LARGE_STEP, **kwargs)
    model.load_weights(saved)
    before = state(model)
    assert not changed(before, state(DDSSMModel.load(saved)))
    model.fit(2 - noisy_sine(seed=3))
    assert np.isfinite(ahead(model).all_values()).all()
    return changed(before, state(model)), {n for n, _ in model.model.named_parameters()}


def test_finetuning_moves_all_parameters(tiny, saved):
    moved, parameters = finetuned(tiny, saved)
    assert moved == parameters | SCALE | SEEN
    assert finetuned(tiny, saved, enable_finetuning=True)[0] == moved


def test_frozen_transition_keeps_its_scale_too(tiny, saved):
    """Its network works in units of that scale."""
    patterns = {"freeze": [PROCESS + "*"]}
    moved, parameters = finetuned(tiny, saved, enable_finetuning=patterns)
    learning = {name for name in parameters if not name.startswith(PROCESS)}
    assert moved == learning | SEEN


def test_partly_frozen_transition_tracks_its_scale(tiny, saved):
    part = PROCESS + "context."
    moved, parameters = finetuned(tiny, saved, enable_finetuning={"freeze": [part + "*"]})
    frozen = {name for name in parameters if name.startswith(part)}
    assert frozen and moved == (parameters - frozen) | SCALE | SEEN


def test_unfrozen_emission_is_all_that_moves(tiny, saved):
    patterns = {"unfreeze": ["ssm.decoder.*"]}
    moved, parameters = finetuned(tiny, saved, enable_finetuning=patterns)
    assert moved == {name for name in parameters if name.startswith("ssm.decoder.")}


def test_no_finetuning_leaves_the_model_as_it_is(tiny, saved):
    assert finetuned(tiny, saved, enable_finetuning=False)[0] == set()


# --- old checkpoints ------------------------------------------------------------------
# `python -m tests.model.test_saving` makes the files of this version anew.

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "0.1.0"
CHECKPOINT_ARGUMENTS = dict(
    input_chunk_length=8,
    output_chunk_length=4,
    latent_dim=1,
    hidden_size=4,
    num_solver_steps=5,
    n_epochs=20,
    optimizer_kwargs={"lr": 1e-2},
    random_state=0,
)


def known_series() -> dict[str, TimeSeries]:
    """Two components and covariates of each kind, of no random number generator."""
    steps = np.arange(60)[:, None]
    waves = np.sin(2 * np.pi * steps / np.array([6, 7, 8, 9])).astype(np.float32)
    return {
        "series": TimeSeries.from_values(waves[:50, :2]),
        "past_covariates": TimeSeries.from_values(waves[:50, 2:3]),
        "future_covariates": TimeSeries.from_values(waves[:, 3:]),
    }


def forecast_of_checkpoint(model: DDSSMModel) -> np.ndarray:
    forecast = model.predict(6, **known_series(), num_samples=20, random_state=0)
    return forecast.all_values()


def make_checkpoint() -> None:
    """Save a model, without its training, and a forecast of it."""
    CHECKPOINT.mkdir(parents=True, exist_ok=True)
    model = DDSSMModel(**CHECKPOINT_ARGUMENTS, pl_trainer_kwargs=TRAINER)
    model.fit(**known_series())
    model.save(str(CHECKPOINT / "model.pt"), clean=True)
    np.save(CHECKPOINT / "forecast.npy", forecast_of_checkpoint(model))


def version(path: Path) -> str:
    return path.parent.name


@pytest.mark.parametrize("path", sorted(CHECKPOINT.parent.glob("*/model.pt")), ids=version)
def test_old_checkpoint(path):
    """A model that an earlier version saved forecasts what it did then."""
    expected = np.load(path.parent / "forecast.npy")
    loaded = DDSSMModel.load(str(path), map_location="cpu", pl_trainer_kwargs=TRAINER)
    weights = loaded.untrained_model()
    weights.load_weights(str(path))
    for model in (loaded, weights):
        # in single precision, on any processor
        actual = forecast_of_checkpoint(model)
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)


if __name__ == "__main__":
    make_checkpoint()


# --- copies and interruptions ---------------------------------------------------------


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_of_a_fitted_model_are_fitted(tiny, tmp_path, copied):
    model = tiny(n_epochs=1).fit(noisy_sine())
    other = copied(model)
    assert close(ahead(model), ahead(other))
    # and can be saved, also before they have forecast
    copied(model).save(str(tmp_path / "model.pt"))
    assert close(ahead(model), ahead(DDSSMModel.load(str(tmp_path / "model.pt"))))
    # a deep copy goes its own way
    before = ahead(model)
    if copied is not copy.copy:
        other.fit(noisy_sine(seed=1))
        assert not same(before, ahead(other))
    assert same(before, ahead(model))


def test_saved_files_hold_the_weights_once(tiny, tmp_path):
    tiny(n_epochs=1, hidden_size=64).fit(noisy_sine()).save(str(tmp_path / "model.pt"))
    sizes = [(tmp_path / name).stat().st_size for name in ("model.pt", "model.pt.ckpt")]
    assert sizes[0] < 0.2 * sizes[1]


def test_a_loaded_model_is_saved_with_its_weights(tiny, tmp_path):
    """Also where it has not forecast yet."""
    first, second = str(tmp_path / "first.pt"), str(tmp_path / "second.pt")
    model = tiny(n_epochs=1).fit(noisy_sine())
    model.save(first)
    DDSSMModel.load(first).save(second)
    assert close(ahead(model), ahead(DDSSMModel.load(second)))


class Interrupt(Callback):
    """Raise an error before an update."""

    def __init__(self, error: type[BaseException], after: int) -> None:
        self.error, self.after = error, after

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.after:
            raise self.error


class Halt(Callback):
    """Stop after an update."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = trainer.global_step == self.after


# Lightning makes an exit of Ctrl-C
@pytest.mark.parametrize(
    "error, raised", [(OSError, OSError), (KeyboardInterrupt, SystemExit)]
)
def test_an_interrupted_training_leaves_a_model(tiny, error, raised):
    model = tiny({"callbacks": [Interrupt(error, after=3)]})
    with pytest.raises(raised):
        model.fit(noisy_sine())
    assert np.isfinite(ahead(model).all_values()).all()
    assert len(model.infer_latents(num_samples=2)) == 80
    # as if it had been told to stop there
    whole = tiny({"callbacks": [Halt(after=3)]}).fit(noisy_sine())
    assert whole.trainer.global_step == 3
    assert close(ahead(model), ahead(whole))


def test_a_training_that_never_began_leaves_none(tiny):
    model = tiny({"callbacks": [Interrupt(OSError, after=0)]})
    with pytest.raises(OSError):
        model.fit(noisy_sine())
    for call in (lambda: model.predict(3), model.infer_latents, model.log_likelihood):
        with pytest.raises(ValueError, match="The model must be trained: its training end"):
            call()
