r"""
The forecast as a whole, in training and in validation: the CRPS of short roll-outs.

The evidence bound trains each step of the transition given the step before. Errors that
hardly matter there add up over a horizon, and where a step of the past says nearly all, it
hardly asks what an earlier one says. So a few windows of each batch are also forecast as
a user would, from the input chunk alone, and the forecast is compared with the output
chunk: overshooting, after [1]_, with a proper score in place of a divergence.

In validation the same score says which epoch is the best: forecasts of several steps may
long have become worse when the bound, one step at a time, is still improving.

.. math::
    \mathrm{CRPS} = E |X - y| - \tfrac{1}{2} E |X - X'|

Letters: B batch, S samples, I input chunk, G gap, n output chunk, C components,
K parameters.

References
----------
.. [1] Hafner et al., "Learning Latent Dynamics for Planning from Pixels", ICML 2019.
"""

import torch
from darts.utils.likelihood_models.torch import (
    GaussianLikelihood,
    GumbelLikelihood,
    LaplaceLikelihood,
    TorchLikelihood,
)
from torch import Tensor

from darts_ddssm.ssm.patches import Patches
from darts_ddssm.ssm.state_space import StateSpaceModel, Window

# Families that can be drawn from with a derivative, in any units, and have a mean.
OVERSHOOTING_FAMILIES = (GaussianLikelihood, LaplaceLikelihood, GumbelLikelihood)

# Windows and samples of each in training.
TRAINING_ROWS = 16
TRAINING_SAMPLES = 2
# Samples of all windows of a batch in validation, where a comparison should not be left to
# chance, and the least and the most of one window.
VALIDATION_PATHS = 512
MIN_VALIDATION_SAMPLES, MAX_VALIDATION_SAMPLES = 4, 32
NUM_SOLVER_STEPS = 5


def forecast_score(
    ssm: StateSpaceModel,
    likelihood: TorchLikelihood,
    window: Window,
    patches: Patches,
    output_length: int,
) -> Tensor:
    """Mean CRPS of forecasts, a scalar in units of the window's values.

    In training, of some windows. It teaches the transition and the emission; the encoder
    is the bound's affair.

    Parameters
    ----------
    ssm
        The model.
    likelihood
        One of ``OVERSHOOTING_FAMILIES``.
    window
        Normalised windows, B of I + G + n steps.
    patches
        How the windows are cut, I steps before the origin.
    output_length
        Number n of steps of the output chunk.
    """
    num_samples = TRAINING_SAMPLES
    if ssm.training:
        rows = torch.randperm(len(window.x), device=window.x.device)[:TRAINING_ROWS]
        window = Window(*(x[rows] for x in window))
    else:
        num_samples = VALIDATION_PATHS // len(window.x)
        num_samples = min(max(num_samples, MIN_VALIDATION_SAMPLES), MAX_VALIDATION_SAMPLES)
    folded = patches.window(window)
    past = Window(*(x[:, : patches.before] for x in folded))
    ahead = Window(*(x[:, patches.before :] for x in folded))
    with torch.no_grad():
        # in gaps too, where a forecast follows the transition: that would take long
        z, _ = ssm.encoded_paths(past, num_samples)
        history = ssm.transition.context.after(
            z, past.transition_inputs.repeat(num_samples, 1, 1)
        )
    # (B, ...) -> (S * B, ...)
    inputs = ahead.transition_inputs.repeat(num_samples, 1, 1)
    z = ssm.roll_out(history, inputs, NUM_SOLVER_STEPS)
    raw = ssm.decoder(z, ahead.u.repeat(num_samples, 1, 1))
    raw = patches._replace(num_before=0).unfold(raw)[:, -output_length:]
    actual = Window(*(x[:, -output_length:] for x in window))
    if not raw.isfinite().all():
        # no distribution, for the caller to see
        return raw.sum()
    parameters = likelihood._params_from_output(raw)
    draws = likelihood._distr_from_params(parameters).rsample()
    # (S * B, n, C) -> (S, B, n, C)
    draws = draws.unflatten(0, (num_samples, -1))
    distance = (draws - actual.x).abs().mean(0)
    # of all pairs of two different samples
    spread = (draws.unsqueeze(1) - draws).abs().sum((0, 1))
    crps = distance - spread / (2 * num_samples * (num_samples - 1))
    return (crps * actual.observed * actual.weight).mean()
