"""The average of the weights: what is validated, saved, resumed and in which precision."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from darts import TimeSeries
from darts.utils.serialization import safe_globals
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from darts_ddssm import DDSSMModel
from darts_ddssm.training.schedule import callbacks_of
from darts_ddssm.training.weight_averaging import _AveragedWeights
from tests.helpers import LARGE_STEP, TRAINER, ahead, changed, kept, noisy_sine, same, state


class Validated(Callback):
    """Record the loss and the weights of each validation."""

    def __init__(self):
        self.losses, self.weights = [], []

    def on_validation_batch_end(self, trainer, pl_module, *args):
        state = {k: v.clone() for k, v in pl_module.state_dict().items()}
        self.weights.append(state)

    def on_validation_end(self, trainer, pl_module):
        self.losses.append(trainer.callback_metrics["val_loss"].item())


@pytest.mark.parametrize("weights_only", [False, True])
def test_checkpoint_holds_the_weights_that_were_validated(tiny, tmp_path, weights_only):
    record = Validated()
    checkpoint = ModelCheckpoint(
        # that of the highest loss, which is soon left behind
        tmp_path,
        monitor="val_loss",
        mode="max",
        save_weights_only=weights_only,
    )
    trainer = {
        "callbacks": [record, checkpoint],
        "enable_checkpointing": True,
        "num_sanity_val_steps": 0,
    }
    model = tiny(trainer, n_epochs=5, optimizer_kwargs={"lr": 0.05})
    model.fit(noisy_sine(), val_series=noisy_sine(18, seed=5))
    best = int(np.argmax(record.losses))
    assert checkpoint.best_model_score == record.losses[best]
    saved = torch.load(checkpoint.best_model_path, weights_only=False)["state_dict"]
    assert saved.keys() == record.weights[best].keys()
    for name, value in saved.items():
        assert torch.equal(value, record.weights[best][name])
    # which are not those of the end
    name = "ssm.decoder.bypass.weight"
    assert len(record.losses) == 5 and best < 4
    assert not torch.equal(saved[name], model.model.state_dict()[name])


def test_custom_trainer_trains_as_our_own_does(tiny):
    """It averages and clips too, and it may be used to forecast."""
    series = 100 * noisy_sine()
    arguments = dict(optimizer_kwargs={"lr": 0.05})
    own = tiny(**arguments).fit(series)
    settings = TRAINER | {"enable_checkpointing": False}
    custom = tiny(**arguments).fit(series, trainer=Trainer(**settings, max_epochs=2))
    assert custom.epochs_trained == 2
    trainer = Trainer(**settings)
    forecast = custom.predict(4, num_samples=3, random_state=1, trainer=trainer)
    assert same(forecast, own.predict(4, num_samples=3, random_state=1))


def test_average_is_as_precise_as_the_weights(tiny):
    series = noisy_sine().astype(np.float64)
    weight = tiny().fit(series).model.ssm.decoder.bypass.weight
    assert not torch.equal(weight, weight.float().double())


class OneWeight(LightningModule):
    """A module of a single weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_average_in_half_precision_does_not_stall(dtype):
    """Though an update moves it by less than the weights can hold, validated or not."""
    module, average, trainer = OneWeight(), _AveragedWeights(), Trainer(**TRAINER)
    average.setup(trainer, module, "fit")
    module.to(dtype)
    average.on_fit_start(trainer, module)
    # so many that an update replaces a thousandth
    average._average_model.n_averaged += 9000
    module.weight.data.fill_(1.125)
    rounding = torch.finfo(dtype).eps
    for step in range(1, 1001):
        average.on_train_batch_end(SimpleNamespace(global_step=step), module)
        expected = 1.125 - 0.125 * 0.999**step
        if step % 10 == 0:
            average.on_validation_epoch_start(trainer, module)
            assert module.weight.item() == pytest.approx(expected, rel=rounding)
            average.on_validation_epoch_end(trainer, module)
            assert module.weight.item() == 1.125
    average.on_train_end(trainer, module)
    assert module.weight.dtype == dtype
    assert module.weight.item() == pytest.approx(expected, rel=rounding)


def test_averaged_weights_whichever_way_they_are_loaded(tiny, tmp_path):
    arguments = dict(n_epochs=4, optimizer_kwargs=LARGE_STEP)
    model = tiny(**kept(tmp_path), **arguments).fit(noisy_sine())
    saved = str(tmp_path / "model.pt")
    model.save(saved)
    (path,) = (tmp_path / "m" / "checkpoints").glob("last-*")
    checkpoint = torch.load(path, weights_only=False)
    average, running = checkpoint["state_dict"], checkpoint["current_model_state"]
    # each parameter is averaged, and of the buffers what the transition was trained by
    averaged = {name for name, _ in model.model.named_parameters()}
    moments = ("squared_scale", "num_updates", "squares", "products", "drift")
    averaged |= {f"ssm.transition.{name}" for name in moments}
    assert changed(average, running) == averaged
    weights, weights_of_checkpoint = tiny(**arguments), tiny(**arguments)
    weights.load_weights(saved)
    weights_of_checkpoint.load_weights_from_checkpoint("m", str(tmp_path), best=False)
    for loaded in (
        model,
        DDSSMModel.load(saved),
        DDSSMModel.load_from_checkpoint("m", str(tmp_path), best=False),
        weights,
        weights_of_checkpoint,
    ):
        assert not changed(average, state(loaded))


def in_order(model: DDSSMModel, series: TimeSeries) -> DDSSMModel:
    """Fit to the windows of a series one after the other."""
    return model.fit(series, dataloader_kwargs={"shuffle": False})


class Seeded(Callback):
    """Let the noise of an update depend on its number alone."""

    def on_train_batch_start(self, trainer, pl_module, *args):
        torch.manual_seed(trainer.global_step)


class Interrupted(Seeded):
    """Stop after the third epoch."""

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == 2


@pytest.mark.parametrize("precision", ["32-true", "64-true", "16-true"])
def test_resumed_training_ends_where_one_go_does(tiny, tmp_path, precision):
    """So the weights, the optimizer's state, the schedule and the scales survive."""
    dtype = np.float64 if precision == "64-true" else np.float32
    series = noisy_sine().astype(dtype)
    arguments = kept(tmp_path) | {"n_epochs": 6, "optimizer_kwargs": LARGE_STEP}
    at_one_go = tiny({"callbacks": [Seeded()]}, **(arguments | {"model_name": "one"}))
    in_order(at_one_go, series)
    stopped = in_order(tiny({"callbacks": [Interrupted()]}, **arguments), series)
    assert stopped.epochs_trained == 3
    assert changed(state(at_one_go), state(stopped))
    with safe_globals([Interrupted]):
        resumed = DDSSMModel.load_from_checkpoint("m", str(tmp_path), best=False)
        in_order(resumed, series)
    assert resumed.epochs_trained == 6
    assert not changed(state(at_one_go), state(resumed))
    assert same(ahead(at_one_go), ahead(resumed))


class Failure(Callback):
    """Raise an error in the second epoch, and record the average of then."""

    def __init__(self, stage):
        self.stage, self.average = stage, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.stage == "training" and trainer.current_epoch == batch_idx == 1:
            (averaged,) = callbacks_of(trainer, _AveragedWeights)
            self.fail(averaged._average_model.module)

    def on_validation_batch_start(self, trainer, pl_module, *args):
        if self.stage == "validation" and trainer.current_epoch == 1:
            self.fail(pl_module)

    def fail(self, module):
        self.average = {name: value.clone() for name, value in module.state_dict().items()}
        raise RuntimeError("failure")


@pytest.mark.parametrize("stage", ["training", "validation"])
def test_error_leaves_the_average(tiny, stage):
    failure = Failure(stage)
    model = tiny({"callbacks": [failure]}, optimizer_kwargs=LARGE_STEP)
    with pytest.raises(RuntimeError, match="failure"):
        model.fit(noisy_sine(), val_series=noisy_sine(seed=1))
    assert not changed(failure.average, state(model))
