r"""
The loss of forecasts, in training and in validation: their CRPS.

The ELBO trains each step of the transition given the step before, by states that have
seen the whole window. Errors that hardly matter there add up over a horizon. And where one
step of the past says nearly all about the next, the ELBO hardly asks what an earlier one
says. Windows are therefore also forecast as a user would, from the input chunk alone, and
the forecast is compared with the output chunk: overshooting, after [1]_, with a proper
score in place of a KL.

In validation the same score tells which epoch is the best: forecasts may long have become
worse while the ELBO, one step at a time, is still improving.

.. math::
    \mathrm{CRPS} = E |X - y| - \tfrac{1}{2} E |X - X'|

Letters as in :mod:`darts_ddssm.ssm`.

References
----------
.. [1] Hafner et al., "Learning Latent Dynamics for Planning from Pixels", ICML 2019.
"""

import torch
from torch import Tensor

from darts_ddssm.series.likelihoods import density
from darts_ddssm.series.model import NormalisedWindow, SeriesModel
from darts_ddssm.series.scaling import affine_weight


def forecast_loss(
    model: SeriesModel,
    normalised: NormalisedWindow,
    num_samples: int,
    num_solver_steps: int,
    max_windows: int | None = None,
    input_noise: float = 0.0,
) -> Tensor:
    """Mean CRPS of forecasts of the output chunk, a scalar in units of normalised values.

    With an affine instance normalisation these are the values before the affine map, whose
    weight would else be the unit of the score. Transition and decoder learn from it; the
    encoder and the affine map learn from the ELBO alone.

    Parameters
    ----------
    model
        The model. Its family must have reparametrised draws.
    normalised
        Training windows, B of I + G + n steps.
    num_samples
        Number S of samples of each window, at least 2.
    num_solver_steps
        Number of network evaluations for each state of a diffusion transition.
    max_windows
        The most windows that are forecast, a random choice of them. ``None`` for all.
    input_noise
        Standard deviation of the noise that is added to what the encoder sees.
    """
    window, n = normalised.window, model.output_chunk_length
    # a learned scale would bring forecasts and data together by making both small
    window = window._replace(x=window.x.detach())
    if max_windows is not None:
        rows = torch.randperm(len(window.x), device=window.x.device)[:max_windows]
        window = window.map(lambda x: x[rows])
    cut = model.training_patches
    patches = cut.fold_window(window.with_noise(input_noise))
    past = patches.map(lambda x: x[:, : cut.before])
    ahead = patches.map(lambda x: x[:, cut.before :])
    with torch.no_grad():
        # The encoder's path, in gaps too. Filtering would follow the transition there, as
        # a forecast does, step by step, which takes long.
        z = model.ssm.sample_posterior(past, num_samples).z
        history = model.ssm.transition.context.from_path(
            z, past.transition_inputs.repeat(num_samples, 1, 1)
        )
    # (B, ...) -> (S * B, ...)
    inputs = ahead.transition_inputs.repeat(num_samples, 1, 1)
    z = model.ssm.roll_out(history, inputs, num_solver_steps)
    num_ahead = model.output_chunk_shift + n
    raw = model.decode(z, ahead.u.repeat(num_samples, 1, 1), model.patches(0, num_ahead))
    raw = raw[:, -n:]
    actual = window.map(lambda x: x[:, -n:])
    draws: Tensor = density(model.likelihood, raw).rsample()
    # (S * B, n, C) -> (S, B, n, C)
    draws = draws.unflatten(0, (num_samples, -1))
    distance = (draws - actual.x).abs().mean(0)
    # of all pairs of two different samples
    spread = (draws.unsqueeze(1) - draws).abs().sum((0, 1))
    crps = distance - spread / (2 * num_samples * (num_samples - 1))
    norm = model.instance_norm
    if norm is not None and norm.affine:
        crps = crps / affine_weight(norm).detach()
    return (crps * actual.observed * actual.weight).mean()
