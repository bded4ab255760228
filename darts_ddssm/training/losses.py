"""
What a training update minimises, and by what validation chooses.

Letters as in :mod:`darts_ddssm.ssm`.
"""

import torch
from torch import Tensor

from darts_ddssm.series.augmentation import add_random_trends, reflect_randomly
from darts_ddssm.series.forecast_loss import forecast_loss
from darts_ddssm.series.masking import mask_randomly, num_masked_rows
from darts_ddssm.series.model import SeriesModel
from darts_ddssm.ssm.state_space import weights_of_moments
from darts_ddssm.ssm.window import Window

# Steps of all windows whose KL makes a steady estimate for a batch. Training evaluates no
# more of them, and validation, where a comparison should not be left to chance, no fewer.
KL_ROWS = 2048

# The most windows whose forecasts are trained in an update, and the samples of all. A
# roll-out is a long row of small operations, which cost about the same for fewer paths.
FORECAST_WINDOWS, FORECAST_PATHS = 64, 128
# Samples of all windows of a batch in validation, and the least and the most of one window.
VALIDATION_PATHS = 512
MIN_VALIDATION_SAMPLES, MAX_VALIDATION_SAMPLES = 4, 32
# Network evaluations for each state of these forecasts.
FORECAST_SOLVER_STEPS = 7


def training_loss(
    model: SeriesModel,
    window: Window,
    observed: Tensor | None,
    kl_weight: float,
    forecast_weight: float,
    gap_augmentation: float,
    input_noise: float,
    trend_augmentation: float,
    reflects: bool,
) -> tuple[Tensor, Tensor]:
    """Return the loss of training windows, and the negative ELBO that is a part of it.

    It is called once an update: the transition tracks the moments of the latents, and the
    model the range of its inputs.

    Parameters
    ----------
    model
        The model that is trained.
    window
        Training windows, B of I + G + n steps.
    observed
        Their flags, (B, I + G + n, C), on the CPU, where a look at them waits for no
        device. ``None`` if they are not there.
    kl_weight
        Weight of the KL in the negative ELBO.
    forecast_weight
        Weight of the loss of forecasts, which take no time where it is 0.
    gap_augmentation
        Share of the windows of which a copy with randomly masked values is added, from
        which the encoder alone learns: by the ELBO or, where the window has gaps of its
        own that are as long as a state, from the posterior given all that is known.
    input_noise
        Standard deviation of the noise that is added to what the encoder sees, in units of
        normalised values. What the latents must explain is free of it, so that copying the
        data, noise and all, explains less than the dynamics do.
    trend_augmentation
        Standard deviation of the trends that are added to some of the windows, as for
        :func:`~darts_ddssm.series.augmentation.add_random_trends`. They have none where the
        likelihood is that of values in their own units, such as counts.
    reflects
        Whether some of the windows are turned upside down. None are where the likelihood is
        that of values in their own units.
    """
    window = _augmented(model, window, trend_augmentation, reflects)
    flags = window.observed.cpu() if observed is None else observed
    number = num_masked_rows(gap_augmentation, len(flags))
    # windows with a state of which nothing is known
    has_guess = (model.training_patches.share(flags[:number]) == 0).any(1)
    copied, matched = (rows.nonzero().squeeze(-1) for rows in (~has_guess, has_guess))
    num_masked = len(copied)

    def with_copies(x: Tensor) -> Tensor:
        return torch.cat([x[copied.to(x.device, non_blocking=True)], x])

    normalised = model.normalise(window.map(with_copies))
    # an encoder that the user has frozen learns of no wider range
    if any(p.requires_grad for p in model.ssm.encoder.parameters()):
        model.track_inputs(normalised.window)
    masked = normalised._replace(window=mask_randomly(normalised.window, num_masked))
    posterior = model.posterior(masked, input_noise)
    transition = model.ssm.transition
    # a transition that the user has frozen keeps its moments
    if any(p.requires_grad for p in transition.parameters()):
        path = posterior.path.rows(slice(num_masked, None))
        if observed is not None and observed.all():
            transition.track_moments(path)
        else:
            share = model.training_patches.share(window.observed)
            transition.track_moments(path, weights_of_moments(share))
    negative_elbo = model.negative_elbo(
        masked,
        posterior,
        kl_weight,
        num_encoder_rows=num_masked,
        max_rows=KL_ROWS,
        observed=None if observed is None else with_copies(observed),
    )
    loss = negative_elbo
    if len(matched) > 0:
        loss = loss + kl_weight * _distance_of_guesses(model, window, matched, input_noise)
    if forecast_weight == 0:
        return loss, negative_elbo
    num_windows = min(len(window.x), FORECAST_WINDOWS)
    num_samples = max(FORECAST_PATHS // num_windows, 2)
    normalised = model.normalise(window)
    crps = forecast_loss(
        model, normalised, num_samples, FORECAST_SOLVER_STEPS, num_windows, input_noise
    )
    return loss + forecast_weight * crps, negative_elbo


def _augmented(
    model: SeriesModel, window: Window, trend_augmentation: float, reflects: bool
) -> Window:
    """Turn some of the windows upside down and add trends to some of them."""
    if not model.family.location_scale or not (reflects or trend_augmentation > 0):
        return window
    # which may be learned: the data do not depend on it
    scale = model.normalise(window).scale.detach()
    x = window.x
    if reflects:
        first = -model.input_chunk_length
        x = reflect_randomly(x, scale.to_data(torch.zeros_like(x), first))
    if trend_augmentation > 0:
        x = add_random_trends(x, scale.spread, trend_augmentation, model.input_chunk_length)
    return window._replace(x=x)


def _distance_of_guesses(
    model: SeriesModel, window: Window, rows: Tensor, input_noise: float
) -> Tensor:
    """Distance of the posterior of masked copies from that of the windows, a scalar.

    Per value of all windows, as the negative ELBO is. It is taken of these ``rows`` alone.
    """
    rows = rows.to(window.x.device, non_blocking=True)
    shown = model.normalise(window.map(lambda x: x[rows]))
    hidden = mask_randomly(shown.window, len(rows))
    distance = model.posterior_matching(shown, hidden, input_noise)
    # weighted as their ELBO would be
    distance = distance * shown.window.weight.amax((1, 2))
    return distance.sum() / window.x.numel()


def validation_score(
    model: SeriesModel, window: Window, has_forecast_loss: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the score of windows, and the negative ELBO if that is another one.

    The score is the loss of forecasts or, where there is none, the negative ELBO.

    Parameters
    ----------
    model
        The model, with averaged weights.
    window
        Windows of the validation set, B of I + G + n steps.
    has_forecast_loss
        Whether forecasts are trained.
    """
    normalised = model.normalise(window)
    posterior = model.posterior(normalised)
    num_rows = posterior.path.z.shape[:2].numel()
    negative_elbo = model.negative_elbo(
        normalised, posterior, num_draws=max(KL_ROWS // num_rows, 1)
    )
    if not has_forecast_loss:
        return negative_elbo, None
    num_samples = VALIDATION_PATHS // len(window.x)
    num_samples = min(max(num_samples, MIN_VALIDATION_SAMPLES), MAX_VALIDATION_SAMPLES)
    crps = forecast_loss(model, normalised, num_samples, FORECAST_SOLVER_STEPS)
    return crps, negative_elbo
