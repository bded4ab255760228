"""
A sampler of few network evaluations, distilled from the transition of a fitted model.

Letters as in :mod:`darts_ddssm.ssm`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from darts.logging import get_logger
from darts.models.forecasting.torch_forecasting_model import MixedCovariatesTorchModel

from darts_ddssm.estimator.data_checks import chunk_lengths
from darts_ddssm.estimator.questions import answers
from darts_ddssm.estimator.sequences import Sample, collate, part_of
from darts_ddssm.estimator.windows import NUM_WINDOWS
from darts_ddssm.series.inference import Distillation
from darts_ddssm.ssm.distillation import FewStepSampler
from darts_ddssm.ssm.transition import DiffusionTransition, Transition
from darts_ddssm.validation import check

logger = get_logger(__name__)

# Draws of the transition for each update: with 1,024 rows in an update, each is seen
# sixteen times.
DRAWS_PER_UPDATE = 64

# Distance of the draws, in units of their own, from which forecasts may suffer.
POOR_DISTANCE = 0.1


def distil_transition(
    model: MixedCovariatesTorchModel,
    samples: Sequence[Sample],
    num_evaluations: int,
    num_updates: int,
    verbose: bool | None,
) -> None:
    """Give the transition of a fitted model a distilled sampler, and tell how good it is.

    Parameters
    ----------
    model
        A fitted model with a diffusion transition. A sampler that it has is replaced.
    samples
        Whole series with their covariates.
    num_evaluations, num_updates, verbose
        Arguments of the method that asks.
    """
    windows = _windows(samples, chunk_lengths(model).window)
    check(
        len(windows) > 0,
        "`series` must have one of at least `input_chunk_length + output_chunk_shift + "
        f"output_chunk_length`, {chunk_lengths(model).window}, steps.",
    )
    transition = model.model.ssm.transition
    question = Distillation(
        collate(windows),
        num_samples=1,
        num_solver_steps=model.num_solver_steps,
        num_evaluations=num_evaluations,
        num_updates=num_updates,
        num_draws=DRAWS_PER_UPDATE * num_updates,
    )
    # what is distilled is the full transition
    former, transition.sampler = transition.sampler, None
    try:
        (answer,) = answers(model, [question], verbose)
    except BaseException:
        transition.sampler = former
        raise
    *_, distance = answer
    transition.sampler = _with_weights(transition.new_sampler(num_evaluations), answer[:-1])
    message = (
        f"The distilled sampler's draws are {distance:.1%} off those of the full solver, "
        "in units of the mean distance of two draws."
    )
    if distance > POOR_DISTANCE:
        message += (
            " This is much: compare its forecasts with those of the full solver "
            "(`distill(None)`), or try more of `num_evaluations` or `num_updates`."
        )
    # a level below that of a warning would show nowhere
    logger.warning(message)


def drop_sampler(transition: Transition) -> None:
    """Drop the distilled sampler of a transition that is to be trained, and say so."""
    if isinstance(transition, DiffusionTransition) and transition.sampler is not None:
        transition.sampler = None
        logger.warning(
            "Training changes the transition and drops its distilled sampler: call "
            "`distill()` again after `fit()`."
        )


def _windows(samples: Sequence[Sample], length: int) -> list[Sample]:
    """Return evenly spaced windows of all series, of those that have one."""
    counts = [max(len(sample.past_target) - length + 1, 0) for sample in samples]
    total, ends = sum(counts), np.cumsum(counts)
    places = np.linspace(0, total - 1, min(total, NUM_WINDOWS)).astype(int)
    windows = []
    for place in places:
        i = int(np.searchsorted(ends, place, side="right"))
        start = place - (ends[i] - counts[i])
        windows.append(part_of(samples[i], slice(start, start + length)))
    return windows


def _with_weights(sampler: FewStepSampler, weights: np.ndarray) -> FewStepSampler:
    parameters = list(sampler.parameters())
    values = torch.from_numpy(weights).to(parameters[0])
    torch.nn.utils.vector_to_parameters(values, parameters)
    return sampler
