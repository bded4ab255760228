"""
The average of the weights, which validation, checkpoints and forecasts use.
"""

from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

WEIGHT_AVERAGE_DECAY = 0.999


@torch.no_grad()
def _update_average(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
    """Exponential average whose window grows with the number of updates at first."""
    rate = max(1 - WEIGHT_AVERAGE_DECAY, 9 / (10 + int(count)))
    torch._foreach_lerp_(averaged, current, rate)


# Checkpoints know the callback by the name of its class.
class _AveragedWeights(WeightAveraging):
    """Exponential average of the weights, of the precision that the trainer sets.

    Validation, checkpoints and the fitted model use the average; Lightning keeps the
    running weights beside it, so that training can be resumed. Buffers are copied.
    """

    def __init__(self) -> None:
        super().__init__(use_buffers=False, multi_avg_fn=_update_average)

    def _match_precision(self, pl_module: LightningModule) -> None:
        # Lightning copies the module before it casts it.
        if self._average_model is not None:
            self._average_model.to(pl_module.dtype)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._match_precision(pl_module)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._match_precision(pl_module)
        super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let the module have the average where training ends early too."""
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
