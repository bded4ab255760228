"""
What the model decides by itself: size of states, patches, and how it is trained.
"""

import math
from functools import cache

from darts.logging import get_logger

from darts_ddssm.estimator.windows import ChunkLengths

logger = get_logger(__name__)

# Dimension of the latent state for one component, for each more, and at most: components of
# their own seasons and levels need states of their own.
LATENT_DIM, LATENT_DIM_PER_COMPONENT, MAX_LATENT_DIM = 8, 4, 64

# A window has about NUM_PATCHES states, or fewer where patches would be shorter than
# MIN_PATCH_LENGTH, and one of fewer than MIN_PATCHED_STEPS has a state at each step.
NUM_PATCHES, MIN_PATCH_LENGTH, MIN_PATCHED_STEPS = 24, 3, 36

# Updates of a training whose length is left open: the fewest, up to so many examples, and
# the most. In between their number rises with the square root of the examples.
MIN_UPDATES, FEW_EXAMPLES, MAX_UPDATES = 400, 300, 3500

# Up to so many windows, their season is taken out, and some have other trends or are turned
# upside down in training. From more the model learns by itself what may follow.
FEW_WINDOWS = 900

# Where their season is taken out, the season needs no learning, and a training has this
# share of the updates.
SHARE_WITHOUT_SEASON = 0.5

# Standard deviation of these trends, up to so many windows. From there on it is inverse to
# their number.
TREND_AUGMENTATION, FEWEST_WINDOWS = 1.0, 150

# Peak of the learning rate with few windows, and with many. With few, a high rate soon
# knows them by heart.
MIN_LEARNING_RATE, MAX_LEARNING_RATE, MANY_WINDOWS = 2e-3, 5e-3, 625


@cache
def say_once(message: str) -> None:
    """Log what was decided, so that a plain script shows it, and once only.

    A level below that of a warning would show nowhere, and a backtest that trains many
    models would repeat it for each.
    """
    logger.warning(message)


def automatic_latent_dim(num_components: int) -> int:
    """Return the dimension of the latent state for series of so many components."""
    dim = LATENT_DIM + LATENT_DIM_PER_COMPONENT * (num_components - 1)
    return min(dim, MAX_LATENT_DIM)


def automatic_patch_length(lengths: ChunkLengths) -> int:
    """Return the length of patches for training windows, 1 for a state at each step.

    Parameters
    ----------
    lengths
        Steps of the parts of a window.
    """
    if lengths.window < MIN_PATCHED_STEPS:
        return 1
    longest = max(math.ceil(lengths.window / NUM_PATCHES), MIN_PATCH_LENGTH)
    return even_patch_length(lengths.output, min(longest, lengths.input))


def even_patch_length(output_length: int, longest: int) -> int:
    """Return the length of patches that divide an output chunk most evenly.

    Parameters
    ----------
    output_length
        Steps of the output chunk.
    longest
        The most steps of a patch, which decides how many patches there are.
    """
    return math.ceil(output_length / math.ceil(output_length / longest))


def automatic_num_updates(
    num_windows: int,
    num_steps: int,
    num_series: int,
    steps_count: bool,
    predictable: bool,
    season_is_known: bool,
) -> int:
    """Return the number of updates of a training, in hundreds.

    Parameters
    ----------
    num_windows, num_steps, num_series
        Windows, observed steps and series of the training set.
    steps_count
        Whether the observed steps are the examples, not the windows. Many short series have
        few windows, of which each step tells something new. Where it does not, a long
        training learns the windows by heart.
    predictable
        Whether the past says much of what follows. If not, the steps of a long series count
        less, the more there are.
    season_is_known
        Whether the season of each window is taken out.
    """
    num_examples: float = num_steps if steps_count else num_windows
    if not predictable:
        num_examples /= math.sqrt(max(num_examples / num_series / FEW_EXAMPLES, 1.0))
    updates = MIN_UPDATES * math.sqrt(num_examples / FEW_EXAMPLES)
    updates = min(max(updates, MIN_UPDATES), MAX_UPDATES)
    if season_is_known:
        updates *= SHARE_WITHOUT_SEASON
    return 100 * round(updates / 100)


def automatic_n_epochs(num_updates: int, num_batches: int, per_update: int) -> int:
    """Return the number of epochs that make about so many updates, at least one.

    Parameters
    ----------
    num_updates, num_batches
        Updates of the training and batches of an epoch.
    per_update
        Number of batches of an update. The last update of an epoch may have fewer.
    """
    return max(round(num_updates / math.ceil(num_batches / per_update)), 1)


def automatic_trend_augmentation(num_windows: int, share_left: float) -> float:
    """Return the standard deviation of the trends that are added to training windows.

    Parameters
    ----------
    num_windows
        Windows of the training set.
    share_left
        Share of the trend of a window that is left when it is normalised.
    """
    if share_left == 0 or num_windows > FEW_WINDOWS:
        return 0.0
    return TREND_AUGMENTATION * min(FEWEST_WINDOWS / num_windows, 1.0)


def may_reflect(num_windows: int, ends_at_level: bool, has_inputs: bool) -> bool:
    """Tell whether half of the training windows may be turned upside down.

    A walk may as well fall as rise, but a season has its shape, and covariates act in one
    direction.

    Parameters
    ----------
    num_windows
        Windows of the training set.
    ends_at_level
        Whether the level of each window is the last value of its input chunk, without a
        season.
    has_inputs
        Whether there are covariates.
    """
    return ends_at_level and not has_inputs and num_windows <= FEW_WINDOWS


def automatic_learning_rate(num_windows: int) -> float:
    """Return the peak of the learning rate for so many windows."""
    rate = MAX_LEARNING_RATE * math.sqrt(num_windows / MANY_WINDOWS)
    return min(max(rate, MIN_LEARNING_RATE), MAX_LEARNING_RATE)
