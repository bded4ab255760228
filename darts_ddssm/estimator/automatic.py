"""
What the model decides by itself: the length of patches and that of its training.
"""

import math
from functools import cache

from darts.logging import get_logger

logger = get_logger(__name__)

# A window of at most MAX_SINGLE_STEPS steps has a state at each of them, a longer one has
# about NUM_PATCHES states.
MAX_SINGLE_STEPS = 48
NUM_PATCHES = 12

# Updates of a training whose length is left open. Where one epoch has more, it is one.
NUM_UPDATES = 600


@cache
def say_once(message: str) -> None:
    """Log what was decided, so that a plain script shows it, and once only.

    A level below that of a warning would show nowhere, and a backtest that trains many
    models would repeat it for each.
    """
    logger.warning(message)


def automatic_patch_length(window_length: int, output_length: int) -> int:
    """Return the length of patches for windows of a length, 1 for a state at each step.

    In a long window it is a twelfth of the window, shortened so that the output chunk is
    divided evenly.

    Parameters
    ----------
    window_length, output_length
        Steps of a training window and of its output chunk.
    """
    if window_length <= MAX_SINGLE_STEPS:
        return 1
    num_after = math.ceil(output_length / (window_length // NUM_PATCHES))
    return math.ceil(output_length / num_after)


def automatic_n_epochs(num_windows: int, batch_size: int) -> int:
    """Return the number of epochs of a training of about NUM_UPDATES updates.

    Parameters
    ----------
    num_windows, batch_size
        Windows of the training set and of one update.
    """
    return max(round(NUM_UPDATES / math.ceil(num_windows / batch_size)), 1)
