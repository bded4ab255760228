"""What a user sets of the training: callbacks, trainer, metrics, optimiser, precision."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import TRAINER, noisy_sine, same
from darts.utils.serialization import safe_globals
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torchmetrics import MeanAbsoluteError, Metric, MetricCollection

from darts_ddssm import DDSSMModel

# --- schedule, clipping, failure ------------------------------------------------------


class KLWeights(Callback):
    """Record the weight of the divergence in every update."""

    def __init__(self):
        self.weights = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.weights.append(pl_module.kl_weight)


def test_kl_weight_starts_low_and_ends_at_one(tiny):
    record = KLWeights()
    model = tiny({"callbacks": [record]}, n_epochs=10, peak_kl_weight=3)
    model.fit(noisy_sine())
    assert record.weights[0] == pytest.approx(0.05)
    assert max(record.weights) == 3.0
    assert record.weights[-1] == 1.0
    record.weights.clear()
    # a fitted model does not go through it again
    model.fit(noisy_sine(), epochs=2)
    assert set(record.weights) == {1.0}


def test_schedule_counts_updates_and_not_batches(tiny, tmp_path):
    """So does the average: accumulated gradients make one update of several batches."""
    record = KLWeights()
    arguments = dict(save_checkpoints=True, work_dir=str(tmp_path), model_name="m")
    trainer = {"callbacks": [record], "accumulate_grad_batches": 2}
    model = tiny(trainer, n_epochs=10, peak_kl_weight=3, **arguments).fit(noisy_sine())
    # 63 windows in batches of 16
    assert len(record.weights) == 10 * 4
    assert model.trainer.global_step == 10 * 2
    assert max(record.weights) == 3.0 and record.weights[-1] == 1.0
    (path,) = (tmp_path / "m" / "checkpoints").glob("last-*")
    averaging = torch.load(path, weights_only=False)["averaging_state"]
    assert averaging["n_averaged"] == 10 * 2


def test_schedule_ends_with_the_last_update_whatever_the_limit(tiny):
    record = KLWeights()
    trainer = {"callbacks": [record], "max_steps": 20}
    tiny(trainer, n_epochs=100).fit(noisy_sine())
    assert len(record.weights) == 20
    assert record.weights[0] == pytest.approx(0.05) and record.weights[-1] == 1.0


class Stop(Callback):
    """Stop after ten updates."""

    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = trainer.global_step == 10


def test_schedule_rises_slowly_where_there_is_no_limit(tiny):
    record = KLWeights()
    trainer = Trainer(
        **TRAINER, max_epochs=-1, enable_checkpointing=False, callbacks=[record, Stop()]
    )
    model = tiny().fit(noisy_sine(), trainer=trainer)
    assert len(record.weights) == 10
    assert max(record.weights) < 0.1 and 0 < model.model.progress < 0.01


def test_gradient_is_clipped_by_default(tiny):
    norms = []

    class Norm(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(grads).item())

    series = 100 * noisy_sine()
    tiny({"callbacks": [Norm()]}).fit(series)
    assert max(norms) > 1.0
    norms.clear()

    class ClippedNorm(Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            if grads:
                norms.append(torch.nn.utils.get_total_norm(grads).item())

    tiny({"callbacks": [ClippedNorm()]}).fit(series)
    assert max(norms) <= 1.0 + 1e-4
    norms.clear()
    tiny({"callbacks": [ClippedNorm()], "gradient_clip_val": 0}).fit(series)
    assert max(norms) > 1.0


class Break(Callback):
    """Spoil the weights in the third epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            pl_module.ssm.decoder.bypass.weight.data.fill_(torch.nan)


def test_loss_that_becomes_non_finite_stops_training(tiny, tmp_path):
    """The checkpoint saved before the failure still loads and forecasts."""
    arguments = dict(save_checkpoints=True, work_dir=str(tmp_path), model_name="m")
    model = tiny({"callbacks": [Break()]}, n_epochs=5, **arguments)
    series = noisy_sine()
    with pytest.raises(RuntimeError, match="non-finite .* smaller learning rate"):
        model.fit(series, val_series=series)
    with safe_globals([Break]):
        loaded = DDSSMModel.load_from_checkpoint("m", str(tmp_path), best=False)
    assert np.isfinite(loaded.predict(3, series).values()).all()


# --- callbacks and trainer ------------------------------------------------------------


@pytest.mark.parametrize("min_delta, epochs", [(1000.0, 2), (-1000.0, 5)])
def test_early_stopping(tiny, min_delta, epochs):
    stopping = EarlyStopping("val_loss", min_delta=min_delta, patience=1)
    model = tiny({"callbacks": [stopping]}, n_epochs=5)
    model.fit(noisy_sine(), val_series=noisy_sine(seed=1))
    assert model.epochs_trained == epochs
    assert np.isfinite(model.predict(3).values()).all()


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
        tmp_path, monitor="val_loss", save_weights_only=weights_only
    )
    trainer = {
        "callbacks": [record, checkpoint],
        "enable_checkpointing": True,
        "num_sanity_val_steps": 0,
    }
    model = tiny(trainer, n_epochs=5, optimizer_kwargs={"lr": 0.05})
    # one window, far from the others: the surer a model is, the worse it does
    model.fit(noisy_sine(), val_series=10 * noisy_sine(18, seed=5))
    best = int(np.argmin(record.losses))
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


# --- metrics --------------------------------------------------------------------------


class Pairs(Metric):
    """Record the forecasts and the targets that a metric is given."""

    # darts makes copies of a metric, which share this
    seen = []

    def update(self, preds, target):
        self.seen.append((preds.clone(), target.clone()))

    def compute(self):
        return torch.tensor(0.0)


class Clear(Callback):
    """Keep what the last validation gives."""

    def on_validation_start(self, *args):
        Pairs.seen.clear()


def test_metrics_of_training_and_validation(tiny):
    series, val_series = noisy_sine(), noisy_sine(seed=1)
    logged = []
    for metrics in (MeanAbsoluteError(), MetricCollection([MeanAbsoluteError(), Pairs()])):
        model = tiny({"callbacks": [Clear()]}, torch_metrics=metrics)
        model.fit(series, val_series=val_series)
        logged.append(model.trainer.callback_metrics)
    # what a metric draws does not depend on how many there are
    for name in ("train_MeanAbsoluteError", "val_MeanAbsoluteError"):
        assert logged[0][name] == logged[1][name] > 0
    preds, target = (torch.cat(x) for x in zip(*Pairs.seen, strict=True))
    assert preds.shape == target.shape == (63 * 6, 1)
    error = (preds - target).abs().mean()
    torch.testing.assert_close(logged[1]["val_MeanAbsoluteError"], error)


def test_metrics_see_forecasts_from_the_input_chunk_alone(tiny):
    """Another output chunk gives other errors of the same forecast."""
    one = noisy_sine(18, num_components=2, seed=1)
    values = one.values(copy=True)
    values[12:] += 100
    values[14, 0] = np.nan
    other = one.with_values(values)
    seen = []
    for val_series in (one, other):
        metrics = MetricCollection([Pairs(), MeanAbsoluteError()])
        model = tiny({"callbacks": [Clear()]}, torch_metrics=metrics)
        model.fit(noisy_sine(num_components=2), val_series=val_series)
        (pair,) = Pairs.seen
        seen.append(pair)
    (preds, target), (other_preds, other_target) = seen
    # the step with the missing value is left out
    rows = [0, 1, 3, 4, 5]
    torch.testing.assert_close(other_preds, preds[rows], rtol=0, atol=0)
    torch.testing.assert_close(other_target, target[rows] + 100)
    error = model.trainer.callback_metrics["val_MeanAbsoluteError"]
    torch.testing.assert_close(error, (other_preds - other_target).abs().mean())


# --- optimiser and learning rate ------------------------------------------------------


class Rates(Callback):
    """Record the learning rate of each update."""

    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, *args):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_custom_optimizer(tiny):
    model = tiny(optimizer_cls=torch.optim.SGD, optimizer_kwargs={"lr": 0.0})
    model.fit(noisy_sine())
    assert isinstance(model.trainer.optimizers[0], torch.optim.SGD)
    weights = model.model.state_dict()["ssm.decoder.bypass.weight"].clone()
    model.fit(noisy_sine(), epochs=1)
    assert torch.equal(weights, model.model.state_dict()["ssm.decoder.bypass.weight"])


@pytest.mark.parametrize(
    "arguments",
    [
        {"optimizer_kwargs": {"no_such_argument": 1}},
        {"optimizer_kwargs": {"lr": -1.0}},
        {"lr_scheduler_cls": OneCycleLR, "lr_scheduler_kwargs": {"no_such_argument": 1}},
    ],
)
def test_wrong_arguments_of_the_optimizer(tiny, arguments):
    with pytest.raises(ValueError, match="(?s)the optimizer .*(no_such_argument|-1.0)"):
        tiny(**arguments).fit(noisy_sine())


def test_scheduler_that_waits_for_the_validation_loss(tiny):
    rates = Rates()
    model = tiny(
        {"callbacks": [rates]},
        n_epochs=4,
        optimizer_kwargs={"lr": 1e-2},
        lr_scheduler_cls=ReduceLROnPlateau,
        # no epoch is better by that much than the first
        lr_scheduler_kwargs={
            "factor": 0.5,
            "patience": 0,
            "threshold": 1000.0,
            "threshold_mode": "abs",
            "monitor": "val_loss",
        },
    )
    with pytest.raises(MisconfigurationException, match="val_loss"):
        model.untrained_model().fit(noisy_sine())
    rates.rates.clear()
    model.fit(noisy_sine(), val_series=noisy_sine(seed=1))
    assert rates.rates[::4] == pytest.approx([1e-2, 1e-2, 5e-3, 2.5e-3])


def test_scheduler_of_every_update(tiny):
    rates = Rates()
    kwargs = {"max_lr": 1e-2, "total_steps": 20, "interval": "step"}
    model = tiny(
        {"callbacks": [rates]},
        n_epochs=5,
        lr_scheduler_cls=OneCycleLR,
        lr_scheduler_kwargs=kwargs,
    )
    model.fit(noisy_sine())
    peak = int(np.argmax(rates.rates))
    assert len(rates.rates) == 20 and 0 < peak < 10
    assert rates.rates[peak] == pytest.approx(1e-2, rel=0.05)
    assert (np.diff(rates.rates[: peak + 1]) > 0).all()
    assert (np.diff(rates.rates[peak:]) < 0).all()


# --- precision ------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_precision_of_training(tiny, precision):
    """The forecast follows the sine in the precision of the weights."""
    dtype = np.float64 if precision == "64-true" else np.float32
    series, future = (noisy_sine(92).astype(dtype)[i] for i in (slice(80), slice(80, 92)))
    trainer = {"precision": precision}
    model = tiny(trainer, n_epochs=30, optimizer_kwargs={"lr": 1e-2}).fit(series)
    assert all(
        p.numpy().dtype == dtype for p in map(torch.detach, model.model.parameters())
    )
    forecast = model.predict(12, num_samples=100)
    assert forecast.dtype == dtype
    median = forecast.quantile(0.5).values()[:, 0]
    assert np.corrcoef(median, future.values()[:, 0])[0, 1] > 0.8


def test_average_is_as_precise_as_the_weights(tiny):
    series = noisy_sine().astype(np.float64)
    weight = tiny().fit(series).model.ssm.decoder.bypass.weight
    assert not torch.equal(weight, weight.float().double())


# --- several processes ----------------------------------------------------------------

TWO_PROCESSES = """
import sys
import torch
from conftest import TRAINER, noisy_sine
from pytorch_lightning.callbacks import Callback
from darts_ddssm import DDSSMModel

folder = sys.argv[1]


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


class Record(Callback):
    def __init__(self):
        self.batches, self.states = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append(batch.past_target)
        self.states.append(state(pl_module))


record = Record()
model = DDSSMModel(
    12,
    6,
    latent_dim=2,
    hidden_size=8,
    n_epochs=2,
    batch_size=8,
    random_state=0,
    optimizer_kwargs={"lr": 0.05},
    pl_trainer_kwargs=TRAINER
    | {"devices": 2, "strategy": "ddp", "callbacks": [record]},
)
model.fit(noisy_sine(), val_series=noisy_sine(seed=1))
rank = model.trainer.global_rank
# each process a file of its own; the first one alone writes the weights
model.save(f"{folder}/model{rank}.pt", clean=True)
record.states.append(state(model.model))
torch.save((record.batches, record.states), f"{folder}/record{rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    """They see different windows and hold the same weights and scales all the time."""
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    tests = os.path.dirname(__file__)
    process = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": tests},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    records = [torch.load(tmp_path / f"record{i}.pt") for i in range(2)]
    batches, states = zip(*records, strict=True)
    # 63 windows, 64 with one twice: four updates an epoch, and then the average
    assert [len(x) for x in batches] == [8, 8] and [len(x) for x in states] == [9, 9]
    for one, other in zip(*batches, strict=True):
        assert not torch.equal(one, other)
    for one, other in zip(*states, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    scales = [state["ssm.transition.squared_scale"] for state in states[0][:-1]]
    assert len(torch.stack(scales).unique(dim=0)) == 8
    settings = TRAINER | {"enable_checkpointing": False}
    path = str(tmp_path / "model0.pt")
    loaded = DDSSMModel.load(path, pl_trainer_kwargs=settings)
    average = states[0][-1]
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, average[name])
    name = "ssm.decoder.bypass.weight"
    assert not torch.equal(average[name], states[0][-2][name])
    forecast = loaded.predict(4, noisy_sine(), num_samples=3)
    assert np.isfinite(forecast.all_values()).all()
