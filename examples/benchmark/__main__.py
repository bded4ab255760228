"""
Where the DDSSM wins and where it loses: accuracy, calibration, robustness, cost.

    python examples/benchmark --suite simulated robustness real scaling --jobs 2
    python examples/benchmark --suite real --data-dir ../shared/data
    python examples/benchmark --suite gift --data-dir ../shared/data --settings births_d

Every finished cell (a setting, a method and a seed) is stored at once in
``<out-dir>/<suite>.csv``; a run that was stopped goes on where it was. Tables
(``<suite>.md``) and pictures are made of that file at the end.
"""

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from cells import Cell, Options, Store
from methods import Budget, quiet
from suites import SUITES, run_apart
from tqdm import tqdm


def run_suite(
    name: str, store: Store, cells: Sequence[Cell], options: Options, jobs: int
) -> None:
    """Run cells, each in a fresh process that a thread waits for."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(run_apart, name, cell, options): cell for cell in cells}
        for future in tqdm(as_completed(futures), name, total=len(futures), unit="cell"):
            store.add(futures[future], *future.result())


def write_report(
    name: str, store: Store, folder: Path, data_dir: str | None, seconds: float
) -> None:
    """Make tables and pictures of what is stored for a budget, if there is anything."""
    stored = store.read()
    frame, errors = (part[part["budget"] == seconds] for part in stored)
    if frame.empty and errors.empty:
        budgets = sorted({f"{x:g}" for part in stored for x in part["budget"]}, key=float)
        known = ", ".join(budgets) or "none"
        print(f"{name}: no results for --budget {seconds:g}; budgets stored: {known}")
        return
    parts = [f"# {name}", f"At most {seconds:g} seconds of training a model."]
    if len(frame):
        order = SUITES[name].methods
        frame = frame.sort_values("method", key=lambda m: m.map(list(order).index))
        parts.append(SUITES[name].report(frame, folder, data_dir))
    for setting, method, seed, _, error in errors.itertuples(index=False, name=None):
        parts.append(f"Failed: {setting}, {method}, seed {seed}\n\n```\n{error}\n```")
    (folder / f"{name}.md").write_text("\n\n".join(parts) + "\n")


def chosen(what: str, asked: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Return those asked for, or all."""
    unknown = set(asked or []) - set(known)
    if unknown:
        raise SystemExit(f"{what} must be of {list(known)}, got {sorted(unknown)}")
    return [x for x in known if not asked or x in asked]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", nargs="+", required=True, choices=list(SUITES))
    parser.add_argument(
        "--data-dir",
        help="e.g. ../shared/data: CSV files of the series, for real (without it they are "
        "downloaded); data of GIFT-Eval and published scores, in it or in its folder gift, "
        "for gift; the others need none",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[0, 1, 2],
        help="each setting and method is run with each of them; default 0 1 2",
    )
    parser.add_argument("--budget", type=float, help="seconds of training a model")
    parser.add_argument(
        "--max-updates",
        type=int,
        help="3,000 by default, where a model does not decide it",
    )
    parser.add_argument("--settings", nargs="+", help="series, conditions or sizes")
    parser.add_argument(
        "--methods", nargs="+", help='names as in the tables, such as "DDSSM"; default all'
    )
    parser.add_argument(
        "--out-dir",
        type=Path,
        default=Path("benchmark_results"),
        help="folder of results, tables and pictures; default benchmark_results",
    )
    parser.add_argument(
        "--device",
        choices=["cpu", "gpu"],
        default="cpu",
        help="of torch models; use another --out-dir for each device: results do not "
        "record it",
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread")
    parser.add_argument(
        "--report-only",
        action="store_true",
        help="run nothing, make tables and pictures of what is stored",
    )
    args = parser.parse_args(argv)
    quiet()
    for name in args.suite:
        suite, store = SUITES[name], Store(args.out_dir / f"{name}.csv")
        seconds = suite.seconds if args.budget is None else args.budget
        if not args.report_only:
            asked = args.settings
            if not asked and suite.found is not None:
                asked = suite.found(args.data_dir)
            settings = chosen("--settings", asked, suite.settings)
            methods = chosen("--methods", args.methods, suite.methods)
            budget = Budget(seconds, args.max_updates, args.device)
            options = Options(budget, args.data_dir)
            done = store.done()
            every = suite.cells(settings, methods, args.seeds, seconds)
            cells = [cell for cell in every if cell not in done]
            run_suite(name, store, cells, options, args.jobs)
        write_report(name, store, args.out_dir, args.data_dir, seconds)


if __name__ == "__main__":
    main()
