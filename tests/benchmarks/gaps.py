"""
Forecasts, imputation and scenarios of an incomplete bimodal walk, beside the exact ones.

    python tests/benchmarks/gaps.py --missing 0.3 --seed 1

With default arguments but `latent_dim=2`; everything is asked through the public
interface, of series never trained on.
"""

import argparse
import time

import numpy as np
import scoringrules as sr
from darts import TimeSeries
from numpy.lib.stride_tricks import sliding_window_view
from quiet import quiet

from darts_ddssm import DDSSMModel
from darts_ddssm.datasets import BimodalRandomWalk
from darts_ddssm.metrics import jensen_shannon_divergence

LENGTH, NUM_SAMPLES = 32, 100
# Probability below which a path is impossible.
RARE = 1e-6


def hidden(series: list[TimeSeries], missing: np.ndarray) -> list[TimeSeries]:
    """Hide the values at steps (N, T)."""
    return [
        s.with_values(np.where(m[:, None], np.nan, s.values())).astype(np.float32)
        for s, m in zip(series, missing, strict=True)
    ]


def missing_steps(
    rng: np.random.Generator, num_series: int, length: int, share: float, block: int
) -> np.ndarray:
    """Draw which steps are missing, (N, T), a share of them, in blocks that may overlap."""
    begins = 1 - (1 - share) ** (1 / block)
    first = rng.random((num_series, length + block - 1)) < begins
    # (N, T + block - 1) -> (N, T, block)
    return sliding_window_view(first, block, axis=1).any(-1)


def fit(process: BimodalRandomWalk, args: argparse.Namespace) -> DDSSMModel:
    """Fit a model to 1,024 incomplete series."""
    train = process.simulate(1024, LENGTH, 10 * args.seed + 1).series
    rng = np.random.default_rng(10 * args.seed + 3)
    missing = missing_steps(rng, 1024, LENGTH, args.missing, args.block)
    model = DDSSMModel(
        input_chunk_length=LENGTH - 1,
        output_chunk_length=1,
        latent_dim=2,
        batch_size=64,
        random_state=args.seed,
        pl_trainer_kwargs={
            "accelerator": args.device,
            "devices": 1,
            "max_steps": args.updates,
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "logger": False,
        },
    )
    start = time.perf_counter()
    model.fit(hidden(train, missing))
    print(f"fitted in {time.perf_counter() - start:.0f} s", flush=True)
    return model


def divergence(process: BimodalRandomWalk, context: TimeSeries, x: np.ndarray) -> float:
    """Divergence of one-step forecasts (S,) to the exact density given the context."""
    paths = process.smooth(context.values())
    possible = paths.probabilities > RARE
    last, weights = paths.states[possible, -1], paths.probabilities[possible]
    centre = process.decay * (weights @ last[:, 0])
    reach = np.abs(process.decay * last - centre).max() + process.step + 12 * process.noise
    return jensen_shannon_divergence(
        x - centre,
        lambda points: weights @ process.predictive_density(points + centre, last),
        interval=(-reach, reach),
    )


def forecasts(
    process: BimodalRandomWalk,
    model: DDSSMModel,
    test: list[TimeSeries],
    args: argparse.Namespace,
) -> None:
    """One step ahead, of incomplete and of complete series."""
    rng = np.random.default_rng(10 * args.seed + 4)
    for share in sorted({args.missing, 0.0}):
        missing = missing_steps(rng, len(test), LENGTH - 1, share, args.block)
        contexts = hidden([s[:-1] for s in test], missing)
        start = time.perf_counter()
        number = args.num_samples
        found = model.predict(1, contexts, num_samples=number, random_state=0)
        seconds = time.perf_counter() - start
        ours, floor = [], []
        for i, (context, forecast) in enumerate(zip(contexts, found, strict=True)):
            ours.append(divergence(process, context, forecast.all_values()[0, 0]))
            states = process.smooth(context.values()).sample(number, i)[:, -1]
            exact = process.sample_future(states, 1, 1, len(test) + i)[0, :, 0, 0]
            floor.append(divergence(process, context, exact))
        print(
            f"forecast, {share:.0%} missing: JSD {np.mean(ours):.4f}, exact samples "
            f"{np.mean(floor):.4f}, {seconds:.1f} s",
            flush=True,
        )


def imputation(
    process: BimodalRandomWalk, model: DDSSMModel, test: list[TimeSeries]
) -> None:
    """Gaps in the middle, and five steps before a value given six steps ahead."""
    rng = np.random.default_rng(0)
    gaps = {f"{n} steps hidden": slice(12, 12 + n) for n in (4, 8)}
    for name, steps in (gaps | {"value six ahead given": slice(26, 31)}).items():
        missing = np.zeros((len(test), LENGTH), dtype=bool)
        missing[:, steps] = True
        gappy = hidden(test, missing)
        start = time.perf_counter()
        filled = model.impute(gappy, num_samples=NUM_SAMPLES, random_state=0)
        seconds = time.perf_counter() - start
        ours, best, far = [], [], []
        for series, one, given in zip(test, filled, gappy, strict=True):
            actual = series.values()[steps, 0]
            samples = one.all_values()[steps, 0]
            paths = process.smooth(given.values())
            states = paths.sample(NUM_SAMPLES, 0)[:, steps, 0].T
            exact = states + process.noise * rng.standard_normal(states.shape)
            ours.append(sr.crps_ensemble(actual, samples, estimator="fair").mean())
            best.append(sr.crps_ensemble(actual, exact, estimator="fair").mean())
            ways = paths.states[paths.probabilities > RARE][:, steps, 0]
            distance = np.abs(samples.T[:, None] - ways).max(-1).min(1)
            far.append(np.mean(distance > 5 * max(process.noise, 0.3)))
        print(
            f"{name}: CRPS {np.mean(ours):.4f}, exact smoother {np.mean(best):.4f}, "
            f"{np.mean(ours) / np.mean(best):.2f} times; near no possible way "
            f"{np.mean(far):.1%}, {seconds:.1f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--missing", type=float, default=0.3)
    parser.add_argument("--block", type=int, default=1, help="steps missing in a row")
    parser.add_argument("--noise", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--num-series", type=int, default=64)
    parser.add_argument(
        "--num-samples",
        type=int,
        default=512,
        help="samples of each forecast; the fewer, the higher is the floor of the JSD",
    )
    args = parser.parse_args()
    quiet()
    process = BimodalRandomWalk(noise=args.noise)
    model = fit(process, args)
    test = process.simulate(args.num_series, LENGTH, 10 * args.seed + 2).series
    forecasts(process, model, test, args)
    imputation(process, model, test)


if __name__ == "__main__":
    main()
