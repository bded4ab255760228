"""
What changes in the course of training.

Progress is the share of the updates that are done, from 0 to 1.
"""

import numpy as np

# The weight of the KL stays at the first value up to the first share of the updates, is 1
# at the second, at its peak from the third to the fourth, and 1 from the last on. Under a
# weight near 1 from early on, with few updates or a slowly rising learning rate, the
# latent may never come to carry anything.
KL_WEIGHT_START = 0.05
KL_WEIGHT_SHARES = (0.2, 0.4, 0.5, 0.7, 0.9)

# Share of the updates after which forecasts of several steps are trained too.
FORECAST_LOSS_START = 0.3

# Where the number of updates has no limit, this many count as all.
UNLIMITED_UPDATES = 3000


def progress(num_updates: int, expected_updates: float) -> float:
    """Return the share of the updates that are done.

    Parameters
    ----------
    num_updates
        Number of updates that are done.
    expected_updates
        Number of updates of the whole training; may be infinite.
    """
    if expected_updates == float("inf"):
        expected_updates = UNLIMITED_UPDATES
    return min(num_updates / expected_updates, 1.0)


def kl_weight(progress: float, peak: float) -> float:
    """Weight of the KL in the training loss.

    Parameters
    ----------
    progress
        Share of the updates that are done.
    peak
        Weight midway in training; at the end it is 1.
    """
    weights = (KL_WEIGHT_START, 1.0, peak, peak, 1.0)
    return float(np.interp(progress, KL_WEIGHT_SHARES, weights))
