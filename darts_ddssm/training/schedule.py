"""
What changes in the course of training.

Progress is the share of a training that is done, from 0 to 1.
"""

import math
from typing import TypeVar

import numpy as np
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, Timer
from pytorch_lightning.tuner.lr_finder import _LRCallback

Kind = TypeVar("Kind", bound=Callback)

# The weight of the KL stays at the first value up to the first share of the updates, is 1
# at the second, at its peak from the third to the fourth, and 1 from the last on. Under a
# weight near 1 from early on, with few updates or a slowly rising learning rate, the
# latent may never come to carry anything.
KL_WEIGHT_START = 0.05
KL_WEIGHT_SHARES = (0.2, 0.4, 0.5, 0.7, 0.9)

# The noise on the encoder's input, in units of normalised values, falls from so much to
# nothing over this share of the training. It never falls below the level that is chosen,
# and after that share there is none.
INPUT_NOISE_START, INPUT_NOISE_END = 0.2, 0.8

# Share of the training after which forecasts are trained too.
FORECAST_LOSS_START = 0.3

# From then on they are trained in one of so many updates, with a weight to match.
FORECAST_LOSS_PERIOD = 4

# The learning rate rises from a share of its peak to all of it over the first share of the
# training, and falls along a cosine to its floor, another share of the peak.
WARM_UP, LEARNING_RATE_START, LEARNING_RATE_FLOOR = 0.1, 0.04, 1e-3

# What a search for a learning rate takes for the share of the training that is done, in all
# of its updates: its losses are compared, which must be of one kind. There the rate is near
# its peak, the KL counts, and no forecasts are trained.
SEARCH_SHARE = 0.25

# Where the number of updates has no limit, this many count as all.
UNLIMITED_UPDATES = 3000


def callbacks_of(trainer: Trainer, kind: type[Kind]) -> list[Kind]:
    """Return the callbacks of a trainer that are of one kind."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, kind)]


def searches_learning_rate(trainer: Trainer) -> bool:
    """Tell whether the updates of a trainer are those of a search for a learning rate."""
    return bool(callbacks_of(trainer, _LRCallback))


def progress(trainer: Trainer) -> float:
    """Return the share of a training that is done, from 0 to 1.

    It is the greatest of the shares of the updates, the epochs and the time that the
    trainer allows, since training ends with the first of them. All processes of a training
    have the same, and have to ask for it together.
    """
    # of steps and epochs, the lower one
    expected = trainer.estimated_stepping_batches
    if expected == float("inf"):
        expected = UNLIMITED_UPDATES
    done = trainer.global_step / expected if expected > 0 else 1.0
    timers = callbacks_of(trainer, Timer)
    for timer in timers:
        elapsed, remaining = timer.time_elapsed(), timer.time_remaining()
        if remaining is not None and elapsed + remaining > 0:
            done = max(done, elapsed / (elapsed + remaining))
    if timers and trainer.world_size > 1:
        # each process has a clock of its own, and that of the first one counts
        done = trainer.strategy.broadcast(done)
    return min(done, 1.0)


def kl_weight(progress: float, peak: float) -> float:
    """Weight of the KL in the training loss.

    Parameters
    ----------
    progress
        Share of the training that is done.
    peak
        Weight midway in training; at the end it is 1.
    """
    weights = (KL_WEIGHT_START, 1.0, peak, peak, 1.0)
    return float(np.interp(progress, KL_WEIGHT_SHARES, weights))


def learning_rate_share(progress: float) -> float:
    """Share of its peak that the learning rate has.

    Parameters
    ----------
    progress
        Share of the training that is done.
    """
    if progress < WARM_UP:
        return LEARNING_RATE_START + (1 - LEARNING_RATE_START) * progress / WARM_UP
    cosine = (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))) / 2
    return LEARNING_RATE_FLOOR + (1 - LEARNING_RATE_FLOOR) * cosine


def forecast_loss_share(num_updates: int) -> int:
    """Weight of the loss of forecasts after so many updates, 1 on average."""
    return FORECAST_LOSS_PERIOD * (num_updates % FORECAST_LOSS_PERIOD == 0)


def input_noise(progress: float, level: float) -> float:
    """Standard deviation of the noise on what the encoder sees, of normalised values.

    Parameters
    ----------
    progress
        Share of the training that is done.
    level
        The least standard deviation while there is noise; 0 for none at all.
    """
    if level == 0 or progress >= INPUT_NOISE_END:
        return 0.0
    return max(INPUT_NOISE_START * (1 - progress / INPUT_NOISE_END), level)
