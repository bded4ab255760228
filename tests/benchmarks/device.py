"""
Updates and paths per second on a CPU and on a GPU, by precision and number of processes.

    python tests/benchmarks/device.py --windows 64 --input 36 --output 12
    python tests/benchmarks/device.py --processes 2 --updates 200

Without a GPU it says so and measures the CPU alone. With several processes, each has a core
and as many windows as one process alone has; the losses are those of one process with the
windows of all of them.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from darts import TimeSeries
from pytorch_lightning.callbacks import Callback
from quiet import quiet
from torch.profiler import ProfilerActivity, profile

from darts_ddssm import DDSSMModel

# Updates that are not timed, since memory and kernels are made ready in them, and updates
# in which the operations of a GPU are.
WARM_UP, PROFILED = 10, 10


class Clock(Callback):
    """Times and losses of updates, and the share of them that a GPU is busy."""

    def __init__(self, profiled: bool) -> None:
        self.times: list[float] = []
        self.cpu_times: list[float] = []
        self.losses: list[float] = []
        self.profile = profile(activities=[ProfilerActivity.CUDA]) if profiled else None
        self.busy = float("nan")

    def on_train_batch_end(self, trainer, pl_module, outputs, *args) -> None:
        if pl_module.device.type == "cuda" and len(self.times) in (WARM_UP - 1, 0):
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        self.cpu_times.append(time.process_time())
        self.losses.append(outputs["loss"].detach())
        if self.profile is not None and len(self.times) == WARM_UP:
            self.profile.start()
        if self.profile is not None and len(self.times) == WARM_UP + PROFILED:
            torch.cuda.synchronize()
            self.profile.stop()
            spent = sum(event.self_device_time_total for event in self.profile.events())
            self.busy = spent / 1e6 / (time.perf_counter() - self.times[WARM_UP - 1])

    def on_train_end(self, trainer, pl_module) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
            self.times[-1] = time.perf_counter()
        self.losses = [float(loss) for loss in self.losses]

    def updates_per_second(self, cpu: bool = False) -> float:
        """Updates by the clock on the wall, or by the time that this process had."""
        times = self.cpu_times if cpu else self.times
        return (len(times) - WARM_UP) / (times[-1] - times[WARM_UP - 1])


def series_of(args: argparse.Namespace, num_windows: int) -> TimeSeries:
    """Sines of period 12 with noise, which make so many windows."""
    rng = np.random.default_rng(args.seed)
    length = num_windows + args.input + args.output - 1
    phase = np.arange(length)[:, None] / 12 + np.arange(args.components) / 4
    values = np.sin(2 * np.pi * phase) + 0.1 * rng.standard_normal(phase.shape)
    values[rng.random(values.shape) < args.missing] = np.nan
    return TimeSeries.from_values(values.astype(np.float32))


def fit(
    args: argparse.Namespace, clock: Clock, windows: int, **trainer
) -> tuple[DDSSMModel, TimeSeries]:
    """Fit a model, with so many windows in an update of each process."""
    model = DDSSMModel(
        input_chunk_length=args.input,
        output_chunk_length=args.output,
        hidden_size=args.hidden_size,
        patch_length=args.patch_length,
        batch_size=windows,
        input_noise=0.2,
        random_state=args.seed,
        pl_trainer_kwargs={
            "max_steps": args.updates + WARM_UP,
            "callbacks": [clock],
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "logger": False,
        }
        | trainer,
    )
    series = series_of(args, 16 * args.windows * (args.processes or 1))
    return model.fit(series), series


def paths_per_second(args: argparse.Namespace, model: DDSSMModel, series) -> float:
    """Paths of the output chunk, from the ends of as many series as an update has."""
    length, num_samples = args.input, args.paths // args.windows + 1
    # complete ones: in gaps the number of paths depends on what they meet
    contexts = [
        series[i : i + length].with_values(np.nan_to_num(series[i : i + length].values()))
        for i in range(args.windows)
    ]
    model.predict(args.output, contexts[:1], num_samples=2)
    start = time.perf_counter()
    model.predict(args.output, contexts, num_samples=num_samples)
    return num_samples * len(contexts) / (time.perf_counter() - start)


def by_device(args: argparse.Namespace) -> None:
    """Print a row for each device and precision."""
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices.append("gpu")
        print(f"GPU: {torch.cuda.get_device_name()}")
    else:
        print("No GPU here: the CPU alone.")
    print("device precision   updates/s   paths/s   GPU busy   peak memory, MiB")
    for device in devices:
        for precision in ("32-true", "bf16-mixed"):
            on_gpu = device == "gpu"
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            trainer = {"accelerator": device, "devices": 1, "precision": precision}
            clock = Clock(profiled=False)
            model, series = fit(args, clock, args.windows, **trainer)
            paths = paths_per_second(args, model, series)
            if on_gpu:
                memory = torch.cuda.max_memory_allocated() / 2**20
                # apart from the timing, which the profiler would slow down
                profiled = Clock(profiled=True)
                fit(args, profiled, args.windows, **trainer)
                busy = f"{profiled.busy:8.0%}"
            else:
                # of the whole process, so far
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
                busy = "       -"
            print(
                f"{device:6s} {precision:10s} {clock.updates_per_second():10.2f} "
                f"{paths:9.0f}   {busy} {memory:18.0f}",
                flush=True,
            )


def one_of(args: argparse.Namespace) -> None:
    """Train with the processes and windows of ``args.one_of``, and print what came out."""
    processes, windows = args.one_of
    trainer = {"accelerator": "cpu", "devices": processes}
    if processes > 1:
        trainer["strategy"] = "ddp"
    clock = Clock(profiled=False)
    model, _ = fit(args, clock, windows, **trainer)
    if model.trainer.is_global_zero:
        found = {
            "wall": clock.updates_per_second() * windows,
            "cpu": clock.updates_per_second(cpu=True) * windows,
            "losses": clock.losses,
        }
        print("RESULT" + json.dumps(found), flush=True)


def by_processes(args: argparse.Namespace) -> None:
    """Print windows per second of each core, and the losses of one and of all."""
    num, results = args.processes, {}
    for key in ((1, args.windows), (num, args.windows), (1, num * args.windows)):
        # Lightning starts the script anew in each further process
        command = [sys.executable, *sys.argv, "--one-of", *map(str, key)]
        output = subprocess.run(command, capture_output=True, text=True, check=True)
        (line,) = (x for x in output.stdout.splitlines() if x.startswith("RESULT"))
        results[key] = json.loads(line.removeprefix("RESULT"))
    one, many, all_in_one = results.values()
    print("processes   windows/s a core   windows/s of its CPU time")
    for name, found in ((1, one), (num, many)):
        print(f"{name:9d} {found['wall']:18.1f} {found['cpu']:27.1f}")
    ratios = (many[key] / one[key] for key in ("wall", "cpu"))
    print("    ratio {:18.2f} {:27.2f}".format(*ratios))
    print("mean loss in fifths of the updates, and the standard error of the difference")
    parts = [np.array_split(r["losses"], 5) for r in (all_in_one, many)]
    for i, (a, b) in enumerate(zip(*parts, strict=True)):
        error = (a - b).std(ddof=1) / len(a) ** 0.5
        print(f"  {i + 1}: one {a.mean():8.4f}, {num} {b.mean():8.4f}, error {error:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--windows", type=int, default=64, help="of an update")
    parser.add_argument("--input", type=int, default=36)
    parser.add_argument("--output", type=int, default=12)
    parser.add_argument("--components", type=int, default=1)
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument(
        "--patch-length", type=int, help="the model's own choice if left out"
    )
    parser.add_argument("--missing", type=float, default=0.0)
    parser.add_argument("--paths", type=int, default=16_384)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, help="compare so many with one")
    parser.add_argument("--one-of", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    quiet()
    if args.one_of:
        one_of(args)
    elif args.processes:
        by_processes(args)
    else:
        by_device(args)


if __name__ == "__main__":
    main()
