"""What the benchmarks print is their table alone."""

import logging
import warnings


def quiet() -> None:
    """Silence warnings, and what darts and Lightning say on training."""
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "darts"):
        logging.getLogger(name).setLevel(logging.ERROR)
