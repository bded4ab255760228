"""
The latent side of the face to darts: states, likelihood, gaps, simulation.

Letters: N histories, S samples, T time steps or states, C components, D latent dimension.
"""

from abc import ABC
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from darts import TimeSeries
from darts.utils.torch import random_method

from darts_ddssm.checks import check, check_positive_integer
from darts_ddssm.queries import (
    LastStates,
    LogLikelihood,
    NextStates,
    Simulation,
    SmoothedObservations,
    SmoothedStates,
)
from darts_ddssm.whole_series import Sample, Series, WholeSeriesModel, collate, part_of


class LatentStateModel(WholeSeriesModel, ABC):
    """A darts model that answers for its latent state, not for the future alone."""

    @random_method
    def infer_latents(
        self,
        series: Series | None = None,
        past_covariates: Series | None = None,
        future_covariates: Series | None = None,
        num_samples: int = 100,
        filtering: bool = False,
        batch_size: int | None = None,
        verbose: bool | None = None,
        random_state: int | None = None,
    ) -> Series:
        """Draw the latent states behind a series.

        Each sample is one joint path of the states: smoothed, given the whole series.
        With ``filtering=True`` each state is drawn by itself, given the series up to its
        step and no further: what a forecast from that step starts with.

        States have no units and no order; another training run turns and bends them.
        Compare them with something known only after a regression, and across series of
        one model only.

        The state at a step is Gaussian given the one before. Over a step whose state the
        data leave undecided between several values, as in a gap of a series with jumps,
        the paths follow one of them, and are surer than they should be.

        Parameters
        ----------
        series
            One or several series, of ``input_chunk_length`` steps or more; as long as you
            like, with NaN where a value is missing. ``None`` for the training series, if
            there was one.
        past_covariates
            As in training. Where they end before the series, they are unknown.
        future_covariates
            As in training; they have to cover the series.
        num_samples
            Number of samples of the states.
        filtering
            Whether to condition each state on the past alone. It then sees the last
            ``input_chunk_length + output_chunk_length`` steps.
        batch_size
            Number of series, or of the pasts of ``filtering``, that are treated at once.
            The training batch size by default.
        verbose
            Whether to show progress.
        random_state
            Seed of the samples.

        Returns
        -------
        TimeSeries or list of TimeSeries
            States of each series on its time index: components ``"z_0"``, ``"z_1"``, ...
            with ``num_samples`` samples. With ``patch_length`` above 1, smoothed states
            stand at the last step of each patch; the last patch ends with the series.

        Raises
        ------
        ValueError
            If the model is not fitted, a series is shorter than ``input_chunk_length``,
            or the covariates do not fit.

        References
        ----------
        Ruder and Wojnowicz, "Diffusion-Driven State Space Models", arXiv 2606.21036: the
        posterior that training fits.

        Examples
        --------
        >>> from darts.utils.timeseries_generation import sine_timeseries
        >>> from darts_ddssm import DDSSMModel
        >>> series = sine_timeseries(length=60, value_frequency=1 / 12)
        >>> model = DDSSMModel(
        ...     input_chunk_length=12,
        ...     output_chunk_length=6,
        ...     latent_dim=2,
        ...     n_epochs=1,
        ...     random_state=0,
        ...     pl_trainer_kwargs={"accelerator": "cpu", "enable_progress_bar": False},
        ... )
        >>> latents = model.fit(series).infer_latents(num_samples=20)
        >>> latents.components.to_list(), latents.n_timesteps, latents.n_samples
        (['z_0', 'z_1'], 60, 20)
        """
        check_positive_integer("num_samples", num_samples)
        sequence, samples, single = self._whole(
            "infer_latents", series, past_covariates, future_covariates
        )
        if filtering:
            states = self._filtered(samples, num_samples, batch_size, verbose)
        else:
            self._check_length("infer_latents", sequence)
            states = self._ask(SmoothedStates, samples, num_samples, batch_size, verbose)
        names = [f"z_{i}" for i in range(states[0].shape[-1])]
        # of its last step is the state of a patch
        every = 1 if filtering else self.model.patch_length
        latents = [
            # (S, T, D) -> (T, D, S)
            TimeSeries(
                times=one.time_index[(len(one) - 1) % every :: every],
                values=z.transpose(1, 2, 0),
                components=names,
            )
            for one, z in zip(sequence, states, strict=True)
        ]
        return latents[0] if single else latents

    def _filtered(
        self,
        samples: Sequence[Sample],
        num_samples: int,
        batch_size: int | None,
        verbose: bool | None,
    ) -> list[np.ndarray]:
        """States given the past of each step, one of (S, T, D) a series."""
        length = self._window_length
        pasts = [
            part_of(sample, slice(max(end - length, 0), end))
            for sample in samples
            for end in range(1, len(sample.past_target) + 1)
        ]
        states = self._ask(LastStates, pasts, num_samples, batch_size, verbose)
        ends = np.cumsum([len(sample.past_target) for sample in samples])[:-1]
        # T of (S, D) a series -> (S, T, D)
        return [z.swapaxes(0, 1) for z in np.split(np.stack(states), ends)]

    @random_method
    def log_likelihood(
        self,
        series: Series | None = None,
        past_covariates: Series | None = None,
        future_covariates: Series | None = None,
        num_samples: int = 32,
        batch_size: int | None = None,
        verbose: bool | None = None,
        random_state: int | None = None,
    ) -> float | list[float]:
        """Log-density of a series under the model, in nats a value.

        For the choice between models, on series that none was fitted to, and as a score
        of anomalies: a low value is an unusual series. Densities are those of the data
        in its own units; a change of units by a factor changes all by its logarithm.

        It is an importance-weighted estimate [1]_ over ``num_samples`` paths of the
        posterior, which on average does not exceed the truth and rises towards it with
        ``num_samples``. Densities of a diffusion transition are those of its
        probability flow [2]_, at a noise of 0.005 of the latent's scale.

        Parameters
        ----------
        series
            One or several series, of ``input_chunk_length`` steps or more. NaN where a
            value is missing: it is integrated out. ``None`` for the training series.
        past_covariates, future_covariates
            As for :meth:`infer_latents`.
        num_samples
            Number of paths.
        batch_size, verbose, random_state
            As for :meth:`infer_latents`.

        Returns
        -------
        float or list of float
            Log-density of each series over its number of observed values.

        Raises
        ------
        ValueError
            As :meth:`infer_latents`, and for a model with
            ``use_reversible_instance_norm``, in which a series' first values are not
            random but set the scale.

        Notes
        -----
        Above 16 latent dimensions the divergence of the flow is estimated by random
        probes (Hutchinson). Each log-density is then unbiased but noisy, and the noise
        raises the average over more than one path.

        References
        ----------
        .. [1] Burda et al., "Importance Weighted Autoencoders", ICLR 2016.
        .. [2] Song et al., "Score-Based Generative Modeling through Stochastic
               Differential Equations", ICLR 2021.

        Examples
        --------
        >>> from darts.utils.timeseries_generation import sine_timeseries
        >>> from darts_ddssm import DDSSMModel
        >>> series = sine_timeseries(length=60, value_frequency=1 / 12)
        >>> model = DDSSMModel(
        ...     input_chunk_length=12,
        ...     output_chunk_length=6,
        ...     latent_dim=2,
        ...     n_epochs=1,
        ...     random_state=0,
        ...     pl_trainer_kwargs={"accelerator": "cpu", "enable_progress_bar": False},
        ... )
        >>> model = model.fit(series)
        >>> usual, unusual = model.log_likelihood([series, series * 5], num_samples=4)
        >>> usual > unusual
        True
        """
        check_positive_integer("num_samples", num_samples)
        self._check_has_scale("log_likelihood")
        _, samples, single = self._whole(
            "log_likelihood", series, past_covariates, future_covariates
        )
        totals = self._ask(LogLikelihood, samples, num_samples, batch_size, verbose)
        means = [
            float(total / np.count_nonzero(~np.isnan(sample.past_target)))
            for total, sample in zip(totals, samples, strict=True)
        ]
        return means[0] if single else means

    @random_method
    def impute(
        self,
        series: Series | None = None,
        past_covariates: Series | None = None,
        future_covariates: Series | None = None,
        num_samples: int = 100,
        batch_size: int | None = None,
        verbose: bool | None = None,
        random_state: int | None = None,
    ) -> Series:
        """Fill the gaps of a series with samples given all that is observed.

        Before, after and beside a gap: each sample is one joint path over all time steps
        and components. Future covariates are heeded inside a gap; past covariates are not.

        A gap is filled along the states of :meth:`infer_latents`: where there are several
        distinct ways through it, the samples take one.

        Parameters
        ----------
        series
            One or several series, of ``input_chunk_length`` steps or more, with NaN where
            a value is missing. ``None`` for the training series.
        past_covariates, future_covariates
            As for :meth:`infer_latents`.
        num_samples
            Number of samples.
        batch_size, verbose, random_state
            As for :meth:`infer_latents`.

        Returns
        -------
        TimeSeries or list of TimeSeries
            Each series with ``num_samples`` samples. What was observed is the same in all
            of them.

        Raises
        ------
        ValueError
            As :meth:`infer_latents`.

        Examples
        --------
        >>> from darts.utils.timeseries_generation import sine_timeseries
        >>> from darts_ddssm import DDSSMModel
        >>> series = sine_timeseries(length=60, value_frequency=1 / 12)
        >>> values = series.values(copy=True)
        >>> values[20:24] = float("nan")
        >>> gappy = series.with_values(values)
        >>> model = DDSSMModel(
        ...     input_chunk_length=12,
        ...     output_chunk_length=6,
        ...     latent_dim=2,
        ...     n_epochs=1,
        ...     random_state=0,
        ...     pl_trainer_kwargs={"accelerator": "cpu", "enable_progress_bar": False},
        ... )
        >>> filled = model.fit(gappy).impute(num_samples=20)
        >>> spread = filled.quantile(0.9).values() - filled.quantile(0.1).values()
        >>> (spread[19:25, 0] > 0).tolist()
        [False, True, True, True, True, False]
        """
        check_positive_integer("num_samples", num_samples)
        sequence, samples, single = self._whole(
            "impute", series, past_covariates, future_covariates
        )
        self._check_length("impute", sequence)
        drawn = self._ask(SmoothedObservations, samples, num_samples, batch_size, verbose)
        filled = [
            # (S, T, C) -> (T, C, S)
            one.with_values(
                np.where(
                    np.isnan(one.all_values(copy=False)),
                    x.transpose(1, 2, 0),
                    one.all_values(copy=False),
                )
            )
            for one, x in zip(sequence, drawn, strict=True)
        ]
        return filled[0] if single else filled

    @random_method
    def simulate(
        self,
        n: int,
        num_samples: int = 100,
        future_covariates: TimeSeries | None = None,
        past_covariates: TimeSeries | None = None,
        static_covariates: pd.DataFrame | None = None,
        verbose: bool | None = None,
        random_state: int | None = None,
    ) -> TimeSeries:
        """Draw series from scratch, from the first state on.

        They begin as training windows do: anywhere in a series.

        Parameters
        ----------
        n
            Number of time steps.
        num_samples
            Number of series.
        future_covariates
            As in training, if the model was trained with any; the simulated series start
            with them. Otherwise they start with the training series.
        past_covariates
            Optionally, as in training; unknown otherwise.
        static_covariates
            As those of the training series, if the model uses them.
        verbose, random_state
            As for :meth:`infer_latents`.

        Returns
        -------
        TimeSeries
            The simulated series, one a sample.

        Raises
        ------
        ValueError
            If the model is not fitted, covariates are missing or do not fit, or for a
            model with ``use_reversible_instance_norm``, which knows no scale but that of
            a given series.

        Examples
        --------
        >>> from darts.utils.timeseries_generation import sine_timeseries
        >>> from darts_ddssm import DDSSMModel
        >>> series = sine_timeseries(length=60, value_frequency=1 / 12)
        >>> model = DDSSMModel(
        ...     input_chunk_length=12,
        ...     output_chunk_length=6,
        ...     latent_dim=2,
        ...     n_epochs=1,
        ...     random_state=0,
        ...     pl_trainer_kwargs={"accelerator": "cpu", "enable_progress_bar": False},
        ... )
        >>> simulated = model.fit(series).simulate(n=30, num_samples=10)
        >>> simulated.n_timesteps, simulated.n_samples
        (30, 10)
        """
        check_positive_integer("n", n)
        check_positive_integer("num_samples", num_samples)
        self._check_has_scale("simulate")
        blank = self._blank(n, future_covariates, static_covariates)
        sample = self._sample(
            "simulate", blank, past_covariates, future_covariates, ("past_covariates",)
        )
        (x,) = self._ask(Simulation, [sample], num_samples, None, verbose)
        # (S, n, C) -> (n, C, S)
        return blank.with_values(x.transpose(1, 2, 0))

    @random_method
    def sample_transition(
        self,
        state: np.ndarray,
        num_samples: int = 100,
        future_covariates: TimeSeries | None = None,
        past_covariates: TimeSeries | None = None,
        static_covariates: pd.DataFrame | None = None,
        verbose: bool | None = None,
        random_state: int | None = None,
    ) -> np.ndarray:
        """Draw the state that follows: the learned dynamics, to look at.

        With ``patch_length`` above 1 a state, given or drawn, is that of a patch of steps.

        Parameters
        ----------
        state
            One state, (D,); or a history of T states, oldest first, (T, D), of which the
            transition sees the last ``transition_order``; or N histories, (N, T, D). With
            ``transition_order=None`` a history says more than its last state.
        num_samples
            Number of draws, S, from each.
        future_covariates
            Optionally, as in training; of its values the last is that of the step that is
            drawn. Unknown otherwise.
        past_covariates
            Optionally, as in training; its last value is that of the last given state.
        static_covariates
            As those of the training series, if the model uses them.
        verbose, random_state
            As for :meth:`infer_latents`.

        Returns
        -------
        numpy.ndarray
            States of the next step, (S, D), or (S, N, D) for N histories.

        Raises
        ------
        ValueError
            If the model is not fitted, or ``state`` is not finite or has not
            ``latent_dim`` entries on its last axis.

        Examples
        --------
        >>> from darts.utils.timeseries_generation import sine_timeseries
        >>> from darts_ddssm import DDSSMModel
        >>> series = sine_timeseries(length=60, value_frequency=1 / 12)
        >>> model = DDSSMModel(
        ...     input_chunk_length=12,
        ...     output_chunk_length=6,
        ...     latent_dim=2,
        ...     n_epochs=1,
        ...     random_state=0,
        ...     pl_trainer_kwargs={"accelerator": "cpu", "enable_progress_bar": False},
        ... )
        >>> model.fit(series).sample_transition([0.0, 0.0], num_samples=50).shape
        (50, 2)
        """
        check_positive_integer("num_samples", num_samples)
        self._check_fitted("sample_transition")
        states = np.asarray(state, dtype=self._dtype)
        dim = self.model.ssm.latent_dim
        check(
            1 <= states.ndim <= 3 and states.shape[-1:] == (dim,) and states.size > 0,
            f"`state` must have shape `({dim},)`, `(T, {dim})` or `(N, T, {dim})`, got "
            f"`{states.shape}`.",
        )
        check(bool(np.isfinite(states).all()), "`state` must be finite.")
        # (D,), (T, D) or (N, T, D) -> (N, T, D)
        histories = states.reshape((-1, *np.atleast_2d(states).shape[-2:]))
        # of the given states, and of the one that follows too
        num_given = histories.shape[1] * self.model.patch_length
        num_steps = num_given + self.model.patch_length
        times = None
        if future_covariates is not None:
            times = future_covariates[-num_steps:]
        elif past_covariates is not None:
            check(
                len(past_covariates) >= num_given,
                f"`past_covariates` must cover the {num_given} steps of the given states, "
                f"got {len(past_covariates)}.",
            )
            times = past_covariates[-num_given:]
        blank = self._blank(num_steps, times, static_covariates)
        sample = self._sample(
            "sample_transition",
            blank,
            past_covariates,
            future_covariates,
            ("past_covariates", "historic_future_covariates", "static_covariates"),
            # without covariates, the state is at no time
            encode=times is not None,
        )
        batch = collate([sample] * len(histories))
        (draws,) = self._answers(
            [NextStates(batch, num_samples, torch.from_numpy(histories))], verbose
        )
        return draws if states.ndim == 3 else draws[:, 0]
