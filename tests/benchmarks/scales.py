"""
Series of very different scales in one fit, beside the same with a Scaler for each series.

    python tests/benchmarks/scales.py --seeds 0 1 2

Twelve noisy seasonal series of scales 1e-3, 1 and 1e6, with and without offsets of many
scales and a flat series among them. Default arguments; CRPS of rolling forecasts in units
of each series' standard deviation, and what the raw series cost over the scaled ones.

A Scaler tells level and scale of a series, which an input chunk of 24 noisy values tells
roughly. What that costs at least is the ratio of two forecasts that know the process: one
knows level and scale too, the other finds them in the chunk by Bayes' rule.
"""

import argparse
import time

import numpy as np
import scoringrules as sr
from darts import TimeSeries
from darts.dataprocessing.transformers import Scaler
from quiet import quiet
from sampling import TRAINER
from sklearn.preprocessing import StandardScaler

from darts_ddssm import DDSSMModel

SCALES, OFFSETS = (1e-3, 1.0, 1e6), (0.0, 10.0, -30.0, 100.0)
LENGTH, TRAIN, INPUT, HORIZON = 240, 192, 24, 12
NUM_SAMPLES, STRIDE = 100, 4
# Of the noise: how much of it stays, and the standard deviation of what is new.
DECAY, NEW = 0.7, 0.4
ORIGINS = range(TRAIN, LENGTH - HORIZON + 1, STRIDE)
# What the forecasts that know the process allow for: phases of the season and, where it is
# unknown, the scale; and the variance of the level.
PHASES, UNKNOWN_SCALES = np.arange(48) / 48, np.exp(np.linspace(-0.7, 0.7, 15))
KNOWN_LEVEL, UNKNOWN_LEVEL = 0.01, 1e3


def standard_series(seed: int) -> np.ndarray:
    """A season of twelve steps and an autoregression for each scale and offset, (N, T)."""
    rng = np.random.default_rng(seed)
    number = len(SCALES) * len(OFFSETS)
    noise = np.zeros((number, LENGTH))
    for t in range(1, LENGTH):
        noise[:, t] = DECAY * noise[:, t - 1] + NEW * rng.standard_normal(number)
    phase = rng.random((number, 1))
    return np.sin(2 * np.pi * (np.arange(LENGTH) / 12 + phase)) + noise


def scores(series: list[TimeSeries], own_scaler: bool, seed: int) -> np.ndarray:
    """CRPS of each series but the flat one, in units of its standard deviation."""
    if own_scaler:
        scaler = Scaler(StandardScaler()).fit([s[:TRAIN] for s in series])
        series = scaler.transform(series)
    series = [s.astype(np.float32) for s in series]
    model = DDSSMModel(INPUT, HORIZON, random_state=seed, pl_trainer_kwargs=TRAINER)
    model.fit([s[:TRAIN] for s in series])
    scored = series[: len(SCALES) * len(OFFSETS)]
    pasts = [one[:t] for one in scored for t in ORIGINS]
    paths = model.predict(HORIZON, pasts, num_samples=NUM_SAMPLES, random_state=0)
    samples = np.stack([path.all_values()[:, 0] for path in paths])
    values = np.stack([one.values()[:, 0] for one in scored])
    return in_spreads(samples, values)


def in_spreads(samples: np.ndarray, values: np.ndarray) -> np.ndarray:
    """CRPS of forecasts (N * origins, n, S) of series (N, T), in their spreads, (N,)."""
    actual = np.concatenate([[x[t : t + HORIZON] for t in ORIGINS] for x in values])
    # (N * origins, n) -> (N, origins * n)
    crps = sr.crps_ensemble(actual, samples).reshape(len(values), -1)
    return crps.mean(1) / values.std(1)


def exact_forecast(
    chunk: np.ndarray, level_variance: float, scales: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw what follows an input chunk by Bayes' rule: (n, S).

    Given phase and scale, values are Gaussian around the season. Their level has a normal
    prior, phase and the logarithm of the scale have flat ones.
    """
    time = np.arange(INPUT + HORIZON)
    covariance = NEW**2 / (1 - DECAY**2) * DECAY ** np.abs(time[:, None] - time)
    covariance += level_variance
    past, cross = covariance[:INPUT, :INPUT], covariance[INPUT:, :INPUT]
    gain = np.linalg.solve(past, cross.T).T
    spread = np.linalg.cholesky(covariance[INPUT:, INPUT:] - gain @ cross.T)
    season = np.sin(2 * np.pi * (time / 12 + PHASES[:, None]))
    # (scales, phases, I)
    rest = chunk / scales[:, None, None] - season[:, :INPUT]
    squares = np.einsum("spi,ij,spj->sp", rest, np.linalg.inv(past), rest)
    log_weights = -squares / 2 - INPUT * np.log(scales)[:, None]
    weights = np.exp(log_weights - log_weights.max()).ravel()
    chosen = rng.choice(weights.size, NUM_SAMPLES, p=weights / weights.sum())
    # (scales, phases, n) -> (S, n)
    mean = (season[:, INPUT:] + rest @ gain.T).reshape(-1, HORIZON)[chosen]
    drawn = mean + rng.standard_normal((NUM_SAMPLES, HORIZON)) @ spread.T
    return (np.repeat(scales, len(PHASES))[chosen, None] * drawn).T


def least_ratios(standard: np.ndarray) -> np.ndarray:
    """Ratios of the scales for whoever knows the process and sees an input chunk."""
    rng, found = np.random.default_rng(0), []
    for level_variance, scales in (
        (UNKNOWN_LEVEL, UNKNOWN_SCALES),
        (KNOWN_LEVEL, np.ones(1)),
    ):
        samples = [
            exact_forecast(x[t - INPUT : t], level_variance, scales, rng)
            for x in standard
            for t in ORIGINS
        ]
        found.append(in_spreads(np.stack(samples), standard))
    raw, scaled = (x.reshape(len(SCALES), -1).mean(1) for x in found)
    return raw / scaled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    quiet()
    for seed in args.seeds:
        standard = standard_series(seed)
        print(f"seed {seed}: ratios are at least {least_ratios(standard).round(2)}")
        scales = np.repeat(SCALES, len(OFFSETS))[:, None]
        offsets = np.tile(OFFSETS, len(SCALES))[:, None]
        for has_offsets in (False, True):
            values = scales * (standard + has_offsets * offsets)
            for has_flat in (False, True):
                series = [TimeSeries.from_values(x) for x in values]
                if has_flat:
                    series.append(TimeSeries.from_values(np.full(LENGTH, 5.0)))
                start = time.perf_counter()
                raw, scaled = (scores(series, own, seed) for own in (False, True))
                seconds = time.perf_counter() - start
                # (scales, offsets)
                raw, scaled = (x.reshape(len(SCALES), -1).mean(1) for x in (raw, scaled))
                print(
                    f"seed {seed}, offsets {has_offsets}, flat series {has_flat}: CRPS of "
                    f"scales 1e-3, 1, 1e6 {raw.round(3)}, with a Scaler {scaled.round(3)}, "
                    f"ratios {(raw / scaled).round(2)}; {seconds:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
