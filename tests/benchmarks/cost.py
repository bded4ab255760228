"""
What an update and a forecast cost, beside darts' own models on the same series.

    python tests/benchmarks/cost.py

Prints milliseconds per update by window length, beside TFTModel(hidden_size=32); seconds
of 100 samples of 24 steps, beside RNNModel (LSTM); and the memory that a forecast takes by
number of samples. One thread by default, as the figures of the README.
"""

import argparse
import logging
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from darts import TimeSeries
from darts.models import RNNModel, TFTModel
from darts.models.forecasting.torch_forecasting_model import TorchForecastingModel
from darts.utils.likelihood_models.torch import GaussianLikelihood
from pytorch_lightning.callbacks import Callback

from darts_ddssm import DDSSMModel

OUTPUT_CHUNK = 24
WINDOWS = (48, 96, 192, 384)
QUIET = {
    "accelerator": "cpu",
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "logger": False,
}


class Clock(Callback):
    """Seconds of each update."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *args) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, *args) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def sines(num_series: int, length: int) -> list[TimeSeries]:
    """Noisy sines of period 24 in float32."""
    rng = np.random.default_rng(0)
    wave = np.sin(2 * np.pi * np.arange(length) / 24)
    noise = 0.1 * rng.standard_normal((num_series, length))
    return [TimeSeries.from_values((wave + e).astype(np.float32)) for e in noise]


def update_seconds(
    make: Callable[..., TorchForecastingModel], window: int, updates: int
) -> float:
    """Median time of an update on 64 windows, after three that warm up."""
    clock = Clock()
    model = make(
        input_chunk_length=window - OUTPUT_CHUNK,
        output_chunk_length=OUTPUT_CHUNK,
        batch_size=64,
        random_state=0,
        n_epochs=1000,
        pl_trainer_kwargs=QUIET | {"max_steps": updates + 3, "callbacks": [clock]},
    )
    model.fit(sines(1, window + 255))
    return statistics.median(clock.seconds[3:])


def training(args: argparse.Namespace) -> None:
    def ddssm(**settings) -> Callable[..., TorchForecastingModel]:
        return lambda **kwargs: DDSSMModel(**settings, **kwargs)

    models = {
        "TFTModel, hidden_size 32": lambda **kwargs: TFTModel(
            hidden_size=32, add_relative_index=True, **kwargs
        ),
        "DDSSM, latent_dim 4": ddssm(latent_dim=4),
        "DDSSM, latent_dim 8": ddssm(latent_dim=8),
        "DDSSM, latent_dim 16": ddssm(latent_dim=16),
        "DDSSM, latent_dim 8, order 1": ddssm(latent_dim=8, transition_order=1),
        "DDSSM, latent_dim 8, gaussian": ddssm(latent_dim=8, transition="gaussian"),
    }
    times = {name: [] for name in models}
    for window in WINDOWS:
        # in turn, so that a busy machine is busy for all of them
        rounds = {name: [] for name in models}
        for _ in range(args.repeats):
            for name, make in models.items():
                rounds[name].append(update_seconds(make, window, args.updates))
        for name in models:
            times[name].append(min(rounds[name]))
    print("\nmilliseconds an update of 64 windows, by window length (times TFT's)")
    print(f"{'':32s}" + "".join(f"{w:>14d}" for w in WINDOWS) + "  exponent")
    base = times["TFTModel, hidden_size 32"]
    for name, seconds in times.items():
        cells = (f"{1e3 * s:.0f} ({s / b:.2f})" for s, b in zip(seconds, base, strict=True))
        slope = np.polyfit(np.log(WINDOWS[1:]), np.log(seconds[1:]), 1)[0]
        print(f"{name:32s}" + "".join(f"{c:>14s}" for c in cells) + f"  {slope:.2f}")


def forecasting(args: argparse.Namespace) -> None:
    trainer = QUIET | {"max_steps": 1}
    models = {
        "RNNModel, LSTM": RNNModel(
            input_chunk_length=36,
            training_length=48,
            model="LSTM",
            hidden_dim=40,
            n_rnn_layers=2,
            likelihood=GaussianLikelihood(),
            pl_trainer_kwargs=trainer,
        )
    }
    for transition in ("diffusion", "gaussian"):
        models[f"DDSSM, {transition}"] = DDSSMModel(
            36, 12, transition=transition, pl_trainer_kwargs=trainer
        )
    series = sines(50, 60)
    print("\nseconds of 100 samples of 24 steps, input chunk 36 (times RNNModel's)")
    print(f"{'':32s}{'1 series':>16s}{'50 series':>16s}")
    base = None
    for name, model in models.items():
        model.fit(series)
        seconds = []
        for group in (series[:1], series):
            rounds = []
            for _ in range(args.repeats + 1):
                start = time.perf_counter()
                model.predict(24, group, num_samples=100)
                rounds.append(time.perf_counter() - start)
            seconds.append(min(rounds[1:]))
        base = base or seconds
        cells = (f"{s:.2f} ({s / b:.1f})" for s, b in zip(seconds, base, strict=True))
        print(f"{name:32s}" + "".join(f"{c:>16s}" for c in cells))


def predict_memory(num_samples: int) -> float:
    """MiB that the peak grows by in a forecast, less the forecast itself."""
    model = DDSSMModel(36, 12, pl_trainer_kwargs=QUIET | {"max_steps": 1})
    model.fit(sines(1, 60))
    model.predict(24, num_samples=100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    forecast = model.predict(24, num_samples=num_samples)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # ru_maxrss is in KiB on Linux
    return (after - before) / 1024 - forecast.all_values().nbytes / 2**20


def memory() -> None:
    print("\nMiB that a forecast of 24 steps takes beside itself, by number of samples")
    for num_samples in (100, 1_000, 10_000, 100_000):
        command = [sys.executable, __file__, "--predict-memory", str(num_samples)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        print(f"{num_samples:>10,d} {float(out.split()[-1]):8.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--predict-memory", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(args.threads)
    if args.predict_memory:
        print(predict_memory(args.predict_memory))
        return
    forecasting(args)
    memory()
    training(args)


if __name__ == "__main__":
    main()
