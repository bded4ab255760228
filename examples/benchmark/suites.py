"""All suites, and running one cell of them in a process of its own."""

import traceback

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
}


def run_cell(name: str, cell: Cell, options: Options) -> tuple[dict[str, float], str]:
    """Scores of a cell, or the error that it ended with."""
    quiet()
    try:
        return SUITES[name].run(cell, options), ""
    except Exception:  # noqa: BLE001  one failure is a result, not the end
        return {}, traceback.format_exc(limit=-3).strip()
