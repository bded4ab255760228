"""Time and memory by the size of the problem, one size at a time.

Each cell runs in a process of its own (see ``__main__``), so that the peak of its memory
is its own.
"""

import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import report
from cells import Cell, Options, Suite
from darts import TimeSeries
from methods import TORCH_METHODS, WARM_UP, Budget, Clock

HORIZON = 24


class Size(NamedTuple):
    """How large a problem is: a training window and batch, a forecast.

    States have the size of one component, however many there are: what a larger one costs
    is a row of its own.
    """

    window: int = 96
    latent_dim: int = 8
    batch: int = 64
    components: int = 1
    samples: int = 100
    series: int = 1


SIZES = {
    "window": (64, 128, 256, 512, 1024, 2048),
    "latent_dim": (2, 4, 8, 16, 32, 64),
    "batch": (16, 32, 64, 128, 256, 512),
    "components": (1, 2, 5, 20, 50, 200),
    "samples": (10, 100, 1000, 10000),
    "series": (1, 10, 100, 1000),
}
# With a latent state at each time step, however long the window is.
NO_PATCHES = ", patch_length=1"
OF_FORECAST = ("samples", "series")
# darts' models, and the sizes at which they are timed too.
REFERENCES = {"RNNModel": ("window", *OF_FORECAST), "TFTModel": ("window",)}


def noisy_sines(num_series: int, length: int, components: int) -> list[TimeSeries]:
    """Noisy sines of period 24 in float32."""
    rng = np.random.default_rng(0)
    wave = np.sin(2 * np.pi * np.arange(length) / 24)[:, None]
    noise = 0.1 * rng.standard_normal((num_series, length, components))
    return [TimeSeries.from_values((wave + e).astype(np.float32)) for e in noise]


def peak_memory() -> float:
    """Peak of this process's memory so far, MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss starts from the peak of the process that this one was forked from
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 1024
    # macOS counts in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def forget_peak() -> None:
    """Let the peak of this process's memory be what it has now, if the system can."""
    references = Path("/proc/self/clear_refs")
    if references.exists():
        references.write_text("5")


def run(cell: Cell, options: Options) -> dict[str, float]:
    """Time updates, or forecasts, and see how far they push the peak of the memory."""
    factor, level = cell.setting.rsplit(" ", 1)
    size = Size()._replace(**{factor: int(level)})
    method = cell.method.removesuffix(NO_PATCHES)
    more = {}
    if method.startswith("DDSSM"):
        more["latent_dim"] = size.latent_dim
    if method != cell.method:
        more["patch_length"] = 1

    def model(updates: int, clock: Clock):
        return TORCH_METHODS[method](
            input_chunk_length=size.window - HORIZON,
            output_chunk_length=HORIZON,
            batch_size=size.batch,
            n_epochs=10**6,
            random_state=cell.seed,
            pl_trainer_kwargs=options.budget.trainer_arguments([clock], max_steps=updates),
            **more,
        )

    # libraries and their buffers are loaded by something small
    small = TORCH_METHODS[method](
        input_chunk_length=8,
        output_chunk_length=4,
        pl_trainer_kwargs=options.budget.trainer_arguments(max_steps=2),
    )
    small.fit(noisy_sines(1, 40, 1)[0]).predict(4, num_samples=2)
    series = noisy_sines(size.series, size.window + 4 * size.batch, size.components)
    clock = Clock()
    if factor in OF_FORECAST:
        fitted = model(2, clock).fit(series[:1])
        # below the peak of the training, a forecast would seem to take nothing
        forget_peak()
        before = peak_memory()
        forecast = timed(lambda: fitted.predict(HORIZON, series, num_samples=size.samples))
        held = sum(f.all_values(copy=False).nbytes for f in forecast.result) / 2**20
        return {"seconds": forecast.seconds, "memory": peak_memory() - before - held}
    before = peak_memory()
    model(WARM_UP + updates_within(options.budget), clock).fit(series)
    return {
        "seconds": statistics.median(clock.seconds[WARM_UP:]),
        "memory": peak_memory() - before,
    }


def updates_within(budget: Budget) -> int:
    """Updates to time: enough for a median, few where there is little time."""
    return int(np.clip(budget.seconds / 2, 3, min(15, budget.max_updates or 15)))


class Timed(NamedTuple):
    """A result and the seconds that it took."""

    result: list
    seconds: float


def timed(function: Callable[[], list]) -> Timed:
    """Run a function."""
    start = time.perf_counter()
    result = function()
    return Timed(result, time.perf_counter() - start)


def exponent(values: pd.Series) -> float:
    """Slope of the logarithm over the upper half of the sizes, where it is known."""
    upper = values.iloc[len(values) // 2 :].dropna()
    if len(upper) < 2:
        return np.nan
    return float(np.polyfit(np.log(upper.index.astype(float)), np.log(upper), 1)[0])


def summary(frame: pd.DataFrame, folder: Path, data_dir: str | None) -> str:
    """Tables of seconds and memory by each size, and their curves."""
    parts, panels = [], {}
    frame = frame.groupby(["setting", "method"]).min(numeric_only=True).reset_index()
    frame[["factor", "level"]] = frame["setting"].str.rsplit(" ", n=1, expand=True)
    frame["level"] = frame["level"].astype(int)
    for factor in SIZES:
        rows = frame[frame["factor"] == factor]
        if rows.empty:
            continue
        unit, scale = ("s", 1) if factor in OF_FORECAST else ("ms an update", 1e3)
        seconds = rows.pivot(index="level", columns="method", values="seconds") * scale
        memory = rows.pivot(index="level", columns="method", values="memory")
        panels[f"{factor} ({unit})"] = seconds
        table = {}
        for method in seconds.columns:
            texts = [f"{x:.3g}" for x in seconds[method]]
            table[f"{method}, {unit}"] = [*texts, f"{exponent(seconds[method]):.2f}"]
        for method in memory.columns:
            # memory that is free, but still held, may serve a little
            texts = [f"{x:.0f}" if x >= 1 else "< 1" for x in memory[method]]
            slope = exponent(memory[method].where(memory[method] >= 1))
            table[f"{method}, MiB"] = [*texts, f"{slope:.2f}"]
        columns = [*map(str, seconds.index), "exponent"]
        by_size = pd.DataFrame.from_dict(table, orient="index", columns=columns)
        parts += [f"By {factor}:", report.markdown(by_size)]
    report.log_curves(panels, folder / "scaling.png")
    return "\n\n".join(parts)


def applies(setting: str, method: str) -> bool:
    """Whether the method is timed at this size."""
    return setting.startswith(REFERENCES.get(method, tuple(SIZES)))


SUITE = Suite(
    settings=[f"{factor} {size}" for factor, sizes in SIZES.items() for size in sizes],
    methods=["DDSSM", f"DDSSM{NO_PATCHES}", *REFERENCES],
    run=run,
    report=summary,
    seconds=30.0,
    applies=applies,
)
