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
    """Exponential average of the weights, of the precision that the trainer sets.

    Validation, checkpoints and the fitted model use the average; Lightning keeps the
    running weights beside it, so that training can be resumed. The buffers of the
    state-space model, scale and drift of the transition above all, are averaged with the
    networks that were trained by them. Other buffers are copied.
    """

    def __init__(self) -> None:
        super().__init__(use_buffers=False)
        # whether module and average have changed places, as they do in validation
        self._is_swapped = False

    def _match_precision(self, pl_module: LightningModule) -> None:
        # Lightning copies the module before it casts it.
        if self._average_model is not None:
            self._average_model.to(pl_module.dtype)
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
        super()._swap_models(pl_module)
        self._is_swapped = not self._is_swapped

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let the module have the average where training ends early too."""
        if self._average_model is not None:
            if self._is_swapped:
                self._swap_models(pl_module)
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
