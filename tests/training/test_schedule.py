"""Weight of the KL, learning rate, noise and forecast loss in the course of a training."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, Timer

from darts_ddssm import DDSSMModel
from darts_ddssm.estimator.automatic import (
    MIN_LEARNING_RATE,
)
from darts_ddssm.training.schedule import (
    forecast_loss_share,
    input_noise,
    kl_weight,
    learning_rate_share,
    progress,
)
from darts_ddssm.training.soap import SOAP
from tests.helpers import TRAINER, changed, kept, noisy_sine, state


def weight_now(module) -> float:
    return kl_weight(module.progress.item(), module.peak_kl_weight)


class KLWeights(Callback):
    """Record the weight of the KL in every update."""

    def __init__(self):
        self.weights = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.weights.append(weight_now(pl_module))


def test_kl_weight_starts_low_and_ends_at_one(tiny):
    record = KLWeights()
    model = tiny({"callbacks": [record]}, n_epochs=6, peak_kl_weight=3)
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
    model = tiny(trainer, n_epochs=6, peak_kl_weight=3, **arguments).fit(noisy_sine())
    # 63 windows in batches of 16
    assert len(record.weights) == 6 * 4
    assert model.trainer.global_step == 6 * 2
    assert max(record.weights) == 3.0 and record.weights[-1] == 1.0
    (path,) = (tmp_path / "m" / "checkpoints").glob("last-*")
    averaging = torch.load(path, weights_only=False)["averaging_state"]
    assert averaging["n_averaged"] == 6 * 2


def test_schedule_ends_with_the_last_update_whatever_the_limit(tiny):
    record = KLWeights()
    trainer = {"callbacks": [record], "max_steps": 20}
    tiny(trainer, n_epochs=100).fit(noisy_sine())
    assert len(record.weights) == 20
    assert record.weights[0] == pytest.approx(0.05) and record.weights[-1] == 1.0


def test_schedule_ends_with_the_time(tiny):
    record = KLWeights()
    trainer = {"callbacks": [record], "max_time": {"seconds": 3}}
    tiny(trainer, n_epochs=100_000).fit(noisy_sine())
    assert record.weights[0] == pytest.approx(0.05) and record.weights[-1] == 1.0


class Clock(Timer):
    """A clock that shows a share of the time."""

    def __init__(self, share):
        super().__init__({"seconds": 1})
        self.share = share

    def time_elapsed(self, *args):
        return self.share


@pytest.mark.parametrize("num_processes", [1, 2])
def test_clock_of_the_first_process_counts(num_processes):
    """In all processes: else each would have a learning rate of its own."""
    said = []

    def broadcast(share: float) -> float:
        # the first process comes first
        said.append(share)
        return said[0]

    strategy = SimpleNamespace(broadcast=broadcast)
    fixed = dict(estimated_stepping_batches=100, global_step=10)
    shares = [
        progress(
            SimpleNamespace(
                callbacks=[Clock(share)],
                world_size=num_processes,
                strategy=strategy,
                **fixed,
            )
        )
        for share in (0.4, 0.5)
    ]
    assert shares == ([0.4, 0.4] if num_processes == 2 else [0.4, 0.5])


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


def test_finished_training_is_extended(tiny, tmp_path):
    """The weight of the KL has reached 1 and does not fall back."""
    arguments = dict(n_epochs=4, peak_kl_weight=3.0)
    tiny(**kept(tmp_path), **arguments).fit(noisy_sine())
    loaded = DDSSMModel.load_from_checkpoint("m", str(tmp_path), best=False)
    before = state(loaded)
    loaded.fit(noisy_sine(), epochs=8)
    assert loaded.epochs_trained == 8
    assert before["progress"] <= loaded.model.progress
    assert weight_now(loaded.model) == 1.0
    assert "ssm.decoder.bypass.weight" in changed(before, state(loaded))


# --- the learning rate ----------------------------------------------------------------


class Rates(Callback):
    """Record the learning rate of every update."""

    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, *args):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_learning_rate_rises_and_falls():
    rates = [learning_rate_share(i / 1000) for i in range(1001)]
    peak = rates.index(max(rates))
    assert rates[peak] == pytest.approx(1.0) and 50 <= peak <= 200
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(rates[0], 10 * rates[-1]) < 0.1


@pytest.mark.parametrize(
    "limit, epochs",
    [({}, 10), ({"max_steps": 40}, 1000), ({"max_time": {"seconds": 4}}, 100_000)],
    ids=["epochs", "steps", "time"],
)
def test_recipe_ends_with_the_training(tiny, limit, epochs):
    """Whichever limit comes first: a KL weight of 1 is logged, and the rate is low."""
    record = Rates()
    model = tiny({"callbacks": [record], **limit}, n_epochs=epochs).fit(noisy_sine())
    # 63 windows are few
    assert max(record.rates) > 0.9 * MIN_LEARNING_RATE
    assert record.rates[0] < 0.1 * MIN_LEARNING_RATE
    assert record.rates[-1] < 0.05 * MIN_LEARNING_RATE
    assert model.trainer.callback_metrics["kl_weight"] == 1.0


def test_whoever_passes_an_optimizer_gets_it(tiny):
    record = Rates()
    trainer = {"callbacks": [record]}
    tiny(trainer, optimizer_kwargs={"lr": 2e-3}).fit(noisy_sine())
    assert set(record.rates) == {2e-3}
    record.rates.clear()
    model = tiny(trainer, optimizer_cls=torch.optim.SGD).fit(noisy_sine())
    assert isinstance(model.trainer.optimizers[0], torch.optim.SGD)
    # the default of that class
    assert set(record.rates) == {1e-3}
    record.rates.clear()
    halved = dict(
        lr_scheduler_cls=torch.optim.lr_scheduler.ExponentialLR,
        lr_scheduler_kwargs={"gamma": 0.5},
    )
    tiny(trainer, n_epochs=2, optimizer_kwargs={"lr": 2e-3}, **halved).fit(noisy_sine())
    assert set(record.rates) == {2e-3, 1e-3}


@pytest.mark.parametrize("own", [{}, {"optimizer_kwargs": {"lr": 2e-3}}])
def test_recipe_survives_saving_and_loading(tiny, tmp_path, own):
    path = str(tmp_path / "model.pt")
    model = tiny(**own).fit(noisy_sine())
    model.save(path)
    loaded = DDSSMModel.load(path).fit(noisy_sine())
    first, again = (one.trainer.optimizers[0] for one in (model, loaded))
    assert type(first) is type(again) is (torch.optim.Adam if own else SOAP)
    assert again.param_groups[0]["lr"] == first.param_groups[0]["lr"]


def test_training_that_is_extended_has_a_schedule_of_its_own(tiny):
    record = Rates()
    model = tiny({"callbacks": [record]}, n_epochs=3).fit(noisy_sine())
    first = list(record.rates)
    record.rates.clear()
    model.fit(noisy_sine(), epochs=3)
    assert record.rates == pytest.approx(first)


# --- the number of epochs -------------------------------------------------------------


def test_forecasts_are_trained_now_and_then_with_a_weight_to_match():
    shares = [forecast_loss_share(i) for i in range(400)]
    assert np.mean(shares) == 1.0
    assert 0 < np.count_nonzero(shares) < 200


@pytest.mark.parametrize("level", (0.05, 0.5))
def test_noise_on_the_input_ends_before_training_does(level):
    levels = [input_noise(share, level) for share in np.linspace(0, 1, 101)]
    assert levels[0] == max(level, 0.2)
    assert (np.diff(levels) <= 0).all()
    assert min(levels[:80]) >= level and levels[-10:] == [0.0] * 10
    assert input_noise(0.1, level=0.0) == 0.0
