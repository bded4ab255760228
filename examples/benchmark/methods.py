"""The methods that are compared, and training them for an equal time.

Every torch model gets the same windows, the same scaling and at most the same seconds of
training. The DDSSM has its default arguments, and decides how long it trains. For the
others, how many updates fit is found by timing some, so that schedules know their length;
their learning rate rises and falls once. Where there are validation data, the best epoch by
their loss is kept, and the settings that a method leaves open are those with the lowest
loss in short training of each.
"""

import logging
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from darts import TimeSeries
from darts.models import RNNModel, TFTModel, TiDEModel
from darts.models.forecasting.torch_forecasting_model import TorchForecastingModel
from darts.utils.likelihood_models.torch import GaussianLikelihood, QuantileRegression
from pytorch_lightning.callbacks import Callback, EarlyStopping

from darts_ddssm import DDSSMModel

BATCH_SIZE = 64
# Updates that are timed, after some that warm up.
WARM_UP, TIMED = 5, 15
MIN_UPDATES = 50
# Most updates of a model that does not decide its length, however fast they are.
MAX_UPDATES = 3000
# Share of the budget that each candidate is trained for.
PILOT = 0.25
# Share of the updates without progress after which training ends.
PATIENCE = 1 / 3
# An epoch shorter than this would spend its time on validation.
UPDATES_BETWEEN_VALIDATIONS = 20

Maker = Callable[..., TorchForecastingModel]


def quiet() -> None:
    """Keep one thread and the logs of darts and Lightning out of the way."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch", "darts"):
        logging.getLogger(name).setLevel(logging.ERROR)


def rnn(input_chunk_length: int, output_chunk_length: int, **kwargs: Any) -> RNNModel:
    """DeepAR's recipe: an LSTM that is fed its own samples."""
    return RNNModel(
        input_chunk_length=input_chunk_length,
        # Each step of a window but the first is forecast from those before it.
        training_length=input_chunk_length + output_chunk_length - 1,
        model="LSTM",
        hidden_dim=40,
        n_rnn_layers=2,
        dropout=0.1,
        likelihood=GaussianLikelihood(),
        **kwargs,
    )


@dataclass(frozen=True)
class Method:
    """A torch model with its own settings.

    Attributes
    ----------
    make
        Constructor, given the chunk lengths and what all models share.
    lr
        Highest learning rate of its schedule; None where the model has a schedule of its
        own and decides its length.
    settings
        Its own arguments.
    candidates
        Further arguments to choose from, where there are validation data.
    """

    make: Maker
    lr: float | None
    settings: dict[str, Any] = field(default_factory=dict)
    candidates: tuple[dict[str, Any], ...] = ()

    def __call__(self, **kwargs: Any) -> TorchForecastingModel:
        return self.make(**(self.settings | kwargs))

    def variants(self) -> list["Method"]:
        """Return one method for each candidate."""
        return [
            replace(self, settings=self.settings | further, candidates=())
            for further in self.candidates
        ]


# The DDSSM decides by itself whether each window is seen in its own scale.
OWN_SCALE = tuple({"use_reversible_instance_norm": own} for own in (False, True))

TORCH_METHODS = {
    "DDSSM": Method(DDSSMModel, lr=None),
    "DDSSM (Gaussian)": Method(DDSSMModel, lr=None, settings={"transition": "gaussian"}),
    "RNNModel": Method(rnn, lr=2e-3),
    "TiDEModel": Method(
        TiDEModel,
        lr=1e-3,
        settings={"likelihood": QuantileRegression()},
        candidates=OWN_SCALE,
    ),
    "TFTModel": Method(
        TFTModel,
        lr=2e-3,
        settings={
            "likelihood": QuantileRegression(),
            "add_relative_index": True,
            "hidden_size": 32,
        },
        candidates=OWN_SCALE,
    ),
}


class Clock(Callback):
    """Seconds of each update."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        if torch.cuda.is_available():
            # which is handed its work, and goes on by itself
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.start)


@dataclass(frozen=True)
class Budget:
    """What training may cost, and where.

    Attributes
    ----------
    seconds
        Time of training a model.
    max_updates
        Most updates; None for :data:`MAX_UPDATES`, or for a length that a model decides.
    device
        Lightning's name of what all torch models run on.
    """

    seconds: float
    max_updates: int | None
    device: str = "cpu"

    @property
    def own_length(self) -> dict[str, Any]:
        """Limits of a training that decides its length by itself."""
        limits: dict[str, Any] = {"max_time": {"seconds": self.seconds}}
        if self.max_updates is not None:
            limits["max_steps"] = self.max_updates
        return limits

    def trainer_arguments(
        self, callbacks: Sequence[Callback] = (), **kwargs: Any
    ) -> dict[str, Any]:
        """Arguments of a quiet trainer on one device."""
        return {
            "accelerator": self.device,
            "devices": 1,
            "callbacks": list(callbacks),
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "logger": False,
            **kwargs,
        }


@dataclass(frozen=True)
class Trained:
    """A fitted model, what it cost, and its loss on validation data if there are any."""

    model: TorchForecastingModel
    updates: int
    seconds: float
    loss: float = math.nan

    @property
    def cost(self) -> dict[str, float]:
        return {"updates": self.updates, "fit_seconds": self.seconds}


def train(
    method: Method,
    series: Sequence[TimeSeries],
    budget: Budget,
    seed: int,
    validation: Sequence[TimeSeries] | None = None,
    **kwargs: Any,
) -> Trained:
    """Fit a model for the time of a budget.

    Parameters
    ----------
    method
        The model.
    series
        What it is trained on, scaled.
    budget
        Seconds and most updates.
    seed
        Seed of the model.
    validation
        Series whose loss says which epoch was the best; without it the last one is kept.
    **kwargs
        The chunk lengths and other arguments of the model.
    """
    if validation is not None and method.candidates:
        pilot = replace(budget, seconds=PILOT * budget.seconds)

        def loss(candidate: Method) -> float:
            return train(candidate, series, pilot, seed, validation, **kwargs).loss

        method = min(method.variants(), key=loss)

    kwargs |= {"batch_size": BATCH_SIZE, "random_state": seed}
    length = kwargs["input_chunk_length"] + kwargs["output_chunk_length"]
    windows = sum(max(len(one) - length + 1, 0) for one in series)
    epoch = math.ceil(windows / BATCH_SIZE)
    every = math.ceil(UPDATES_BETWEEN_VALIDATIONS / epoch)
    updates = budget.max_updates
    if method.lr is not None:
        kwargs["n_epochs"] = 10**6
        updates = _fitting_updates(method, series, budget, **kwargs)
    if validation is not None and updates is not None:
        # To the end of an epoch that is validated: without one there is no best.
        every = max(1, min(every, updates // epoch))
        updates = max(updates // (every * epoch), 1) * every * epoch

    clock = Clock()
    callbacks: list[Callback] = [clock]
    limits: dict[str, Any]
    if method.lr is None:
        limits = replace(budget, max_updates=updates).own_length
        if validation is not None:
            # an epoch may take longer than the budget
            limits["min_epochs"] = every
    else:
        limits = {"max_steps": updates}
        kwargs |= {
            "optimizer_kwargs": {"lr": method.lr},
            "lr_scheduler_cls": torch.optim.lr_scheduler.OneCycleLR,
            "lr_scheduler_kwargs": {
                "max_lr": method.lr,
                "total_steps": updates,
                "pct_start": 0.1,
                "interval": "step",
            },
        }
        if validation is not None:
            patience = math.ceil(PATIENCE * updates / (every * epoch))
            callbacks.append(EarlyStopping("val_loss", patience=patience))

    if validation is None:
        trainer = budget.trainer_arguments(callbacks, **limits)
        model = method(pl_trainer_kwargs=trainer, **kwargs)
        start = time.perf_counter()
        model.fit(series)
        return Trained(model, len(clock.seconds), time.perf_counter() - start)

    trainer = budget.trainer_arguments(callbacks, check_val_every_n_epoch=every, **limits)
    with tempfile.TemporaryDirectory() as work_dir:
        model = method(
            pl_trainer_kwargs=trainer,
            save_checkpoints=True,
            work_dir=work_dir,
            model_name="model",
            **kwargs,
        )
        start = time.perf_counter()
        model.fit(series, val_series=validation, load_best=True)
        seconds = time.perf_counter() - start
        loss = float(model.trainer.checkpoint_callback.best_model_score)
        return Trained(model, len(clock.seconds), seconds, loss)


def _fitting_updates(
    method: Method, series: Sequence[TimeSeries], budget: Budget, **kwargs: Any
) -> int:
    """Time some updates, and tell how many fit in the budget."""
    clock = Clock()
    trainer = budget.trainer_arguments([clock], max_steps=WARM_UP + TIMED)
    method(pl_trainer_kwargs=trainer, **kwargs).fit(series)
    fitting = int(budget.seconds / statistics.median(clock.seconds[WARM_UP:]))
    return int(np.clip(fitting, MIN_UPDATES, budget.max_updates or MAX_UPDATES))
