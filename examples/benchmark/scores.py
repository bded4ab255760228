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
    return inside(y, *np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0))


def inside(y: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """Share of the values between two bounds."""
    known = ~np.isnan(y)
    covered = np.where(np.isnan(low), np.nan, (low <= y) & (y <= high))
    return float(covered[known].mean())


def weighted_quantile_loss(y: np.ndarray, samples: np.ndarray) -> float:
    """Sum of twice the pinball losses over the sum of absolute values, mean of deciles."""
    return loss_of_deciles(y, np.quantile(samples, QUANTILES, axis=0))


def loss_of_deciles(y: np.ndarray, deciles: np.ndarray) -> float:
    """As `weighted_quantile_loss`, of the deciles (9, ...) of values (...)."""
    error = y - deciles
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


def scaled_error(y: np.ndarray, median: np.ndarray, scale: np.ndarray) -> float:
    """Mean absolute error of forecasts (N, n), each over its own scale (N,).

    Forecasts whose scale is zero or unknown are left out.
    """
    kept = ~np.isnan(y) & (scale > 0)[:, None]
    # (N,) -> (N, n)
    scale = np.broadcast_to(scale[:, None], y.shape)
    return float((np.abs(y - median)[kept] / scale[kept]).mean())


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
