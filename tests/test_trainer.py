"""What a user sets of the training: callbacks, trainer, metrics, optimiser, precision."""

import numpy as np
import pytest
import torch
from conftest import noisy_sine
from darts.utils.serialization import safe_globals
from pytorch_lightning.callbacks import Callback

from darts_ddssm import DDSSMModel


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
