"""The weight of the KL over the updates of a training."""

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback

from darts_ddssm import DDSSMModel
from darts_ddssm.training.schedule import kl_weight
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
    # as far as it goes in steps or in epochs, whichever is more
    assert len(record.weights) > 20


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
