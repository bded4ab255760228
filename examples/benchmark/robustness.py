"""The bimodal walk with one thing changed at a time."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import report
import scores
from cells import Cell, Options, Suite
from darts import TimeSeries
from darts.utils.likelihood_models.torch import (
    CauchyLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
)
from scipy.stats import t as student_t
from simulated import (
    LENGTH,
    NUM_SAMPLES,
    NUM_TEST,
    SIMULATIONS,
    fit,
    forecast,
)

from darts_ddssm.datasets import BimodalRandomWalk, StatePaths
from darts_ddssm.metrics import jensen_shannon_divergence

LIKELIHOODS = {
    "Gaussian": GaussianLikelihood,
    "Laplace": LaplaceLikelihood,
    "Cauchy": CauchyLikelihood,
}
DEGREES_OF_FREEDOM = 3
# Probability below which a path is left out of a density.
RARE = 1e-6


@dataclass(frozen=True)
class HeavyTailedWalk(BimodalRandomWalk):
    """The bimodal walk, observed with Student's noise; ``noise`` is its scale."""

    def observe(self, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return state + self.noise * rng.standard_t(DEGREES_OF_FREEDOM, state.shape)

    def _log_density(self, x: np.ndarray, state: np.ndarray) -> np.ndarray:
        x = np.asarray(x, dtype=np.float64)
        return student_t.logpdf(x, DEGREES_OF_FREEDOM, state, self.noise)


@dataclass(frozen=True)
class Condition:
    """A process, what is seen of it, and the density of an observation."""

    process: BimodalRandomWalk = BimodalRandomWalk()
    likelihood: str = "Gaussian"
    num_series: int = 1024
    missing: float = 0.0


BASE = Condition()


def _changed(factor: str, level: float | str) -> Condition:
    match factor:
        case "observation noise":
            return replace(BASE, process=BimodalRandomWalk(noise=level))
        case "jump":
            return replace(BASE, process=BimodalRandomWalk(step=level))
        case "probability of up":
            return replace(BASE, process=BimodalRandomWalk(probability=level))
        case "heavy tails":
            return replace(BASE, process=HeavyTailedWalk(noise=level))
        case "likelihood":
            return replace(BASE, likelihood=level)
        case "training series":
            return replace(BASE, num_series=level)
        case "missing":
            return replace(BASE, missing=level)
    raise ValueError(factor)


LEVELS: dict[str, tuple] = {
    "observation noise": (0.2, 0.5, 1.0, 2.0),
    "jump": (0.5, 1.0, 2.0, 4.0),
    "probability of up": (0.5, 0.7, 0.8, 0.95),
    "heavy tails": (0.2, 0.5, 1.0),
    "likelihood": tuple(LIKELIHOODS),
    "training series": (64, 256, 1024, 4096),
    "missing": (0.0, 0.1, 0.3, 0.5),
}
# Every level is a setting of its own; those equal to the base are run once.
CONDITIONS = {
    f"{factor} {level}": _changed(factor, level)
    for factor, levels in LEVELS.items()
    for level in levels
}
RUN_ONCE = {condition: name for name, condition in reversed(CONDITIONS.items())}


def with_missing(series: list[TimeSeries], share: float, seed: int) -> list[TimeSeries]:
    """Remove values at random."""
    rng = np.random.default_rng(seed)
    out = []
    for one in series:
        values = one.values()
        values[rng.random(values.shape) < share] = np.nan
        out.append(one.with_values(values))
    return out


def divergence(
    forecasts: np.ndarray, known: list[StatePaths], process: BimodalRandomWalk
) -> float:
    """Mean divergence of one-step forecasts (S, N, 1, 1) to the exact densities.

    The exact density is that of the next observation given the same, incomplete data: a
    mixture over the paths of states that they leave possible.
    """
    values = []
    for i, paths in enumerate(known):
        possible = paths.probabilities > RARE
        last, weights = paths.states[possible, -1], paths.probabilities[possible]
        centre = process.decay * (weights @ last[:, 0])
        # as far as the true density reaches
        far = process.decay * last[:, 0] - centre
        reach = np.abs(far).max() + process.step + 12 * process.noise
        values.append(
            jensen_shannon_divergence(
                forecasts[:, i, 0, 0] - centre,
                lambda x, at=centre, z=last, w=weights: (
                    w @ process.predictive_density(x + at, z)
                ),
                interval=(-reach, reach),
            )
        )
    return float(np.mean(values))


def run(cell: Cell, options: Options) -> dict[str, float]:
    """Fit under one condition; scores of one-step forecasts, beside the true process's.

    The true process knows itself, but of the state only what the same data say.
    """
    condition = CONDITIONS[cell.setting]
    process, seed = condition.process, 10 * cell.seed
    train_set = process.simulate(condition.num_series, LENGTH, seed + 1)
    test = process.simulate(NUM_TEST, LENGTH, seed + 2)
    actual = np.stack([s.values()[-1:] for s in test.series])
    # The likelihood of a wrong family sees the data in the same scale as the right one.
    trained, scaler = fit(
        cell,
        with_missing(train_set.series, condition.missing, seed + 3),
        SIMULATIONS["bimodal walk"],
        options,
        likelihood=LIKELIHOODS[condition.likelihood](),
    )
    contexts = with_missing([s[:-1] for s in test.series], condition.missing, seed + 4)
    samples = forecast(trained.model, scaler, contexts, 1, cell.seed)
    known = [process.smooth(one.values()) for one in contexts]
    drawn = [
        paths.sample(NUM_SAMPLES, seed + 7 + i)[:, -1] for i, paths in enumerate(known)
    ]
    # (S, N, 1) -> (1, S, N, 1, 1) -> (S, N, 1, 1)
    oracle = process.sample_future(np.stack(drawn, axis=1), 1, 1, seed + 6)[0]
    finite = np.isfinite(samples).all()
    return trained.cost | {
        "finite": float(finite),
        # of what is not finite there is no histogram
        "jsd": divergence(samples, known, process) if finite else np.nan,
        "jsd_oracle": divergence(oracle, known, process),
        "crps": scores.crps(actual, samples),
        "crps_oracle": scores.crps(actual, oracle),
    }


def summary(frame: pd.DataFrame, folder: Path, data_dir: str | None) -> str:
    """A table and curves of the divergence and of the CRPS over the true process's."""
    frame = frame.assign(relative=frame["crps"] / frame["crps_oracle"])
    mean = frame.groupby(["setting", "method"]).mean(numeric_only=True)
    divergences, relatives, floors, rows = {}, {}, {}, {}
    for factor, levels in LEVELS.items():
        names = [RUN_ONCE[CONDITIONS[f"{factor} {level}"]] for level in levels]
        for table, score in ((divergences, "jsd"), (relatives, "relative")):
            values = mean[score].unstack("method").reindex(index=names)
            table[factor] = values.set_axis(levels, axis=0)
        floor = mean["jsd_oracle"].groupby("setting").mean().reindex(names)
        floors[factor] = floor.set_axis(levels)
        for level in levels:
            row = {"true process, JSD": f"{floors[factor][level]:.3f}"}
            for method in divergences[factor].columns:
                row[f"{method}, JSD"] = f"{divergences[factor].loc[level, method]:.3f}"
            for method in relatives[factor].columns:
                row[f"{method}, CRPS"] = f"{relatives[factor].loc[level, method]:.3f}"
            ran = frame[frame["setting"] == RUN_ONCE[CONDITIONS[f"{factor} {level}"]]]
            row["diverged"] = f"{int((ran['finite'] < 1).sum())} of {len(ran)}"
            rows[f"{factor} {level}"] = row
    report.curves(divergences, "JSD", folder / "robustness_jsd.png", floors)
    report.curves(relatives, "CRPS / true process's", folder / "robustness_crps.png")
    table = pd.DataFrame.from_dict(rows, orient="index")
    diverged = int((frame["finite"] < 1).sum())
    seeds = sorted(frame["seed"].unique())
    over = f"Means over seeds {', '.join(map(str, seeds))}" if seeds[1:] else "One seed"
    return "\n\n".join(
        [
            f"{over}; the CRPS over that of the true process:",
            report.markdown(table),
            f"Runs with a value that is not finite: {diverged} of {len(frame)}.",
        ]
    )


SUITE = Suite(
    settings=[
        name for name, condition in CONDITIONS.items() if RUN_ONCE[condition] == name
    ],
    methods=["DDSSM", "DDSSM (Gaussian)"],
    run=run,
    report=summary,
    seconds=90.0,
)
