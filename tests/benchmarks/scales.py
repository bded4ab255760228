"""
Series of very different scales in one fit, beside the same with a Scaler for each series.

    python tests/benchmarks/scales.py --seeds 0 1 2

Twelve noisy seasonal series of scales 1e-3, 1 and 1e6, with and without offsets of many
scales and a flat series among them. Default arguments; CRPS of rolling forecasts in units
of each series' standard deviation, and what the raw series cost over the scaled ones.
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


def standard_series(seed: int) -> np.ndarray:
    """A season of twelve steps and an autoregression for each scale and offset, (N, T)."""
    rng = np.random.default_rng(seed)
    number = len(SCALES) * len(OFFSETS)
    noise = np.zeros((number, LENGTH))
    for t in range(1, LENGTH):
        noise[:, t] = 0.7 * noise[:, t - 1] + 0.4 * rng.standard_normal(number)
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
    origins = range(TRAIN, LENGTH - HORIZON + 1, STRIDE)
    pasts = [one[:t] for one in scored for t in origins]
    paths = model.predict(HORIZON, pasts, num_samples=NUM_SAMPLES, random_state=0)
    samples = np.stack([path.all_values()[:, 0] for path in paths])
    values = np.stack([one.values()[:, 0] for one in scored])
    actual = np.concatenate([[x[t : t + HORIZON] for t in origins] for x in values])
    # (N * origins, n) -> (N, origins * n)
    crps = sr.crps_ensemble(actual, samples).reshape(len(scored), -1)
    return crps.mean(1) / values.std(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    quiet()
    for seed in args.seeds:
        standard = standard_series(seed)
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
