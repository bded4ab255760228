"""
The average of the weights, which validation, checkpoints and forecasts use.
"""

from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from darts_ddssm.ssm.networks import averaging_rate

WEIGHT_AVERAGE_DECAY = 0.999


# Checkpoints know the callback by the name of its class.
class _AveragedWeights(WeightAveraging):
    """Exponential average of the weights, of their precision or single precision.

    Validation, checkpoints and the fitted model use the average; Lightning keeps the
    running weights beside it, so that training can be resumed. The buffers of the
    state-space model, scale and drift of the transition above all, are averaged with the
    networks that were trained by them. Other buffers are copied.
    """

    def __init__(self) -> None:
        super().__init__(use_buffers=False)
        # the running weights while the module has the average, as it does in validation
        self._running: list[Tensor] | None = None

    def _match_precision(self, pl_module: LightningModule) -> None:
        # Lightning copies the module before it casts it.
        if self._average_model is not None:
            # 16 bits are too few: what an update adds to an average would be rounded away
            dtype = next(pl_module.parameters()).dtype
            self._average_model.to(torch.promote_types(dtype, torch.float32))
            # counted on the CPU, where reading the number waits for no device
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._match_precision(pl_module)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any
    ) -> None:
        """Average after each step of the optimizer, without waiting for the device."""
        if self._average_model is None or trainer.global_step <= self._latest_update_step:
            return
        self._latest_update_step = trainer.global_step
        module, count = self._average_model.module, self._average_model.n_averaged
        averaged: list[Tensor] = list(module.parameters())
        current: list[Tensor] = list(pl_module.parameters())
        for (name, own), new in zip(
            module.named_buffers(), pl_module.buffers(), strict=True
        ):
            if name.startswith("ssm."):
                # with those of the last update, averaged networks put all modes a bit off
                averaged.append(own)
                current.append(new)
            else:
                own.copy_(new)
        current = [new.to(own.dtype) for own, new in zip(averaged, current, strict=True)]
        # the first update replaces all of it
        rate = averaging_rate(int(count), WEIGHT_AVERAGE_DECAY) if count > 0 else 1.0
        torch._foreach_lerp_(averaged, current, rate)
        count += 1

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._match_precision(pl_module)
        super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def _swap_models(self, pl_module: LightningModule) -> None:
        """Let the module have the average, and then the running weights again.

        The average stays where it is. In the module, as in Lightning's own swap, it would
        lose what the module's precision cannot hold.
        """
        if self._running is None:
            self._running = [value.detach().clone() for value in _values(pl_module)]
            self._copy_average_to_current(pl_module)
        else:
            for value, running in zip(_values(pl_module), self._running, strict=True):
                value.data.copy_(running)
            self._running = None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let the module have the average where training ends early too."""
        self._running = None
        if self._average_model is not None:
            self._copy_average_to_current(pl_module)

    def save_with_weights(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the average in a checkpoint of the weights alone, and nothing beside it."""
        self.on_save_checkpoint(trainer, pl_module, checkpoint)
        for name in ("current_model_state", "averaging_state"):
            checkpoint.pop(name, None)

    def forget(self) -> None:
        """Drop the average: the module has the weights that are to be used."""
        self._average_model = None


def _values(module: LightningModule) -> list[Tensor]:
    """Parameters and buffers of a module."""
    return [*module.parameters(), *module.buffers()]
