"""What the benchmarks print is their table alone."""

import logging
import warnings


def quiet() -> None:
    """Silence warnings, and what a training says."""
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "darts", "darts_ddssm"):
        logging.getLogger(name).setLevel(logging.ERROR)
