"""All suites, and running one cell of them in a process of its own."""

import multiprocessing
import traceback
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import gift
import real
import robustness
import scaling
import simulated
from cells import Cell, Options, Suite
from methods import quiet

SUITES: dict[str, Suite] = {
    "simulated": simulated.SUITE,
    "robustness": robustness.SUITE,
    "real": real.SUITE,
    "scaling": scaling.SUITE,
    "gift": gift.SUITE,
}


def run_cell(name: str, cell: Cell, options: Options) -> tuple[dict[str, float], str]:
    """Scores of a cell, or the error that it ended with."""
    quiet()
    try:
        return SUITES[name].run(cell, options), ""
    except Exception:  # one failure is a result, not the end
        return {}, traceback.format_exc(limit=-3).strip()


def run_apart(name: str, cell: Cell, options: Options) -> tuple[dict[str, float], str]:
    """As `run_cell`, in a fresh process: its memory and its death are its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(run_cell, name, cell, options).result()
        except BrokenProcessPool as error:  # out of memory, say
            return {}, f"{type(error).__name__}: {error}"
