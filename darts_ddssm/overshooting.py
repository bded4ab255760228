r"""
Training the forecast as a whole: the CRPS of short roll-outs.

The evidence bound trains each step of the transition given the step before. Errors that
hardly matter there add up over a horizon, and where a step of the past says nearly all, it
hardly asks what an earlier one says. So a few windows of each batch are also forecast as
a user would, from the input chunk alone, and the forecast is compared with the output
chunk: overshooting, after [1]_, with a proper score in place of a divergence.

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

from darts_ddssm.ssm.state_space import StateSpaceModel, Window

# Families that can be drawn from with a derivative, in any units, and have a mean.
OVERSHOOTING_FAMILIES = (GaussianLikelihood, LaplaceLikelihood, GumbelLikelihood)

NUM_ROWS = 16
NUM_SAMPLES = 2
NUM_SOLVER_STEPS = 6


def overshooting_score(
    ssm: StateSpaceModel,
    likelihood: TorchLikelihood,
    window: Window,
    input_length: int,
    output_length: int,
) -> Tensor:
    """Mean CRPS of forecasts of some windows, a scalar in units of the window's values.

    It teaches the transition and the emission. The encoder is the bound's affair.

    Parameters
    ----------
    ssm
        The model.
    likelihood
        One of ``OVERSHOOTING_FAMILIES``.
    window
        Normalised windows, B of I + G + n steps. Random ones of them are taken.
    input_length, output_length
        I and n.
    """
    rows = torch.randperm(len(window.x), device=window.x.device)[:NUM_ROWS]
    window = Window(*(x[rows] for x in window))
    past = Window(*(x[:, :input_length] for x in window))
    with torch.no_grad():
        # in gaps too, where a forecast follows the transition: that would take long
        z, _ = ssm.encoded_paths(past, NUM_SAMPLES)
        history = ssm.transition.context.after(
            z, past.transition_inputs.repeat(NUM_SAMPLES, 1, 1)
        )
    inputs = window.transition_inputs[:, input_length:]
    # (B, G + n, ...) -> (S * B, G + n, ...)
    z = ssm.roll_out(history, inputs.repeat(NUM_SAMPLES, 1, 1), NUM_SOLVER_STEPS)
    ahead = Window(*(x[:, -output_length:] for x in window))
    raw = ssm.decoder(z[:, -output_length:], ahead.u.repeat(NUM_SAMPLES, 1, 1))
    if not raw.isfinite().all():
        # no distribution, for the caller to see
        return raw.sum()
    parameters = likelihood._params_from_output(raw)
    draws = likelihood._distr_from_params(parameters).rsample()
    # (S * B, n, C) -> (S, B, n, C)
    first, second = draws.unflatten(0, (NUM_SAMPLES, -1))
    distance = ((first - ahead.x).abs() + (second - ahead.x).abs()) / 2
    crps = distance - (first - second).abs() / 2
    weight = ahead.observed * ahead.weight
    return (crps * weight).sum() / weight.sum().clamp(min=1)
