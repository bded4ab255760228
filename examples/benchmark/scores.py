"""Scores of sample forecasts, all from one array of samples.

Only what the data lack is left out: a forecast that is NaN has the score NaN.

Letters: S samples, N forecasts, n steps, C components.
"""

import numpy as np
import scoringrules as sr

QUANTILES = np.arange(1, 10) / 10


def crps(y: np.ndarray, samples: np.ndarray) -> float:
    """Mean CRPS of samples (S, N, n, C) of values (N, n, C), missing ones left out."""
    scores = sr.crps_ensemble(y, np.moveaxis(samples, 0, -1))
    return float(scores[~np.isnan(y)].mean())


def coverage(y: np.ndarray, samples: np.ndarray, level: float) -> float:
    """Share of the values inside the central interval of a nominal level."""
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
    known = ~np.isnan(y)
    inside = np.where(np.isnan(low), np.nan, (low <= y) & (y <= high))
    return float(inside[known].mean())


def weighted_quantile_loss(y: np.ndarray, samples: np.ndarray) -> float:
    """Sum of twice the pinball losses over the sum of absolute values, mean of deciles."""
    error = y - np.quantile(samples, QUANTILES, axis=0)
    levels = QUANTILES.reshape(-1, *(1,) * y.ndim)
    pinball = np.maximum(levels * error, (levels - 1) * error)
    known = ~np.isnan(y)
    # (9, known values) -> (9,)
    totals = pinball[:, known].sum(axis=1)
    return float(2 * totals.mean() / np.abs(y[known]).sum())


def mase(y: np.ndarray, samples: np.ndarray, history: np.ndarray, season: int) -> float:
    """Absolute error of the median over that of the seasonal naive in the history (T,)."""
    scale = np.nanmean(np.abs(history[season:] - history[:-season]))
    error = np.abs(y - np.median(samples, axis=0))
    return float(error[~np.isnan(y)].mean() / scale)


def energy_score(y: np.ndarray, samples: np.ndarray) -> float:
    """Mean energy score of the joint path, over what of it is observed."""
    scores = []
    for i, path in enumerate(y):
        known = ~np.isnan(path)
        if known.any():
            # (S, n, C) -> (S, known values)
            members = samples[:, i][:, known]
            scores.append(sr.es_ensemble(path[known], members, estimator="fair"))
    return float(np.mean(scores))
