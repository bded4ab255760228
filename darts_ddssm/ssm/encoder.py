r"""
The variational posterior q_phi(z_{1:T} | x_{1:T}), structured as the exact one is.

.. math::
    q_\phi(z_{1:T} | x_{1:T}) = \prod_t q_\phi(z_t | z_{t-1}, x_{1:T}) , \qquad
    q_\phi(z_t | z_{t-1}, x_{1:T})
        = N(\kappa z_{t-1} + g(z_{t-1}, h_t), \mathrm{diag}\, s^2(z_{t-1}, h_t)) ,

with :math:`h_t` the state of a bidirectional GRU over the data and :math:`\kappa` a fixed
share. Given :math:`z_{t-1}` a Markov model needs :math:`x_{t:T}` alone. But where the
transition remembers more than one latent, so does the exact posterior: the data before t
stand for the earlier latents. At a missing value they tell where the series was heading.

Letters as in :mod:`darts_ddssm.ssm`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Weights of the recursion: the share of z_{t-1} that is kept, and those of z_{t-1}, of the
# output and its bias.
Weights = tuple[Tensor, Tensor, Tensor, Tensor]


class PosteriorPath(NamedTuple):
    """A path drawn from q with the moments of q at each of its steps.

    Attributes
    ----------
    z
        The path, (N, T, D).
    mean, std
        Mean and standard deviation of q(z_t | z_{t-1}, x_{1:T}), (N, T, D) each.
    """

    z: Tensor
    mean: Tensor
    std: Tensor

    def log_prob(self) -> Tensor:
        """Log-density of each latent given the one before, in nats: (N, T)."""
        return torch.distributions.Normal(self.mean, self.std).log_prob(self.z).sum(-1)

    def rows(self, rows: slice) -> "PosteriorPath":
        """Return some of the paths."""
        return PosteriorPath(*(part[rows] for part in self))


def _posterior_step(
    z: Tensor, projection: Tensor, noise: Tensor, floor: Tensor, weights: Weights
) -> tuple[Tensor, ...]:
    """One step of the recursion, from z_{t-1}, (..., D), to z_t and what made it."""
    share_kept, weight_in, weight_out, bias_out = weights
    hidden = projection + z @ weight_in.T
    raw = nn.functional.linear(nn.functional.glu(hidden), weight_out, bias_out)
    change, raw_std = raw.chunk(2, dim=-1)
    mean = torch.addcmul(change, share_kept, z)
    std = nn.functional.softplus(raw_std) + floor
    return torch.addcmul(mean, std, noise), mean, std, hidden, raw_std


class _PosteriorPath(torch.autograd.Function):
    """The recursion over t with its derivative by back-propagation through time.

    Written by hand because this loop is the one part of the model that cannot be
    batched over t. Automatic differentiation would record a dozen small operations per
    step. Here each direction runs a handful of them, and the derivatives of the weights
    are single products over all steps.

    All sequences are time-major: projection (T, B, 2 * H), noise (T, B, D), floor (T,).
    """

    @staticmethod
    def forward(
        ctx: Any,
        projection: Tensor,
        noise: Tensor,
        floor: Tensor,
        share_kept: Tensor,
        weight_in: Tensor,
        weight_out: Tensor,
        bias_out: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights = (share_kept, weight_in, weight_out, bias_out)
        z = torch.zeros_like(noise[0])
        steps = []
        for projection_t, noise_t, floor_t in zip(projection, noise, floor, strict=True):
            steps.append(_posterior_step(z, projection_t, noise_t, floor_t, weights))
            z = steps[-1][0]
        path, mean, std, hidden, raw_std = (
            torch.stack(x) for x in zip(*steps, strict=True)
        )
        ctx.save_for_backward(
            path, noise, hidden, raw_std, share_kept, weight_in, weight_out
        )
        return path, mean, std

    @staticmethod
    def backward(
        ctx: Any, grad_path: Tensor, grad_mean: Tensor, grad_std: Tensor
    ) -> tuple[Tensor | None, ...]:
        path, noise, hidden, raw_std, share_kept, weight_in, weight_out = ctx.saved_tensors
        value, gate = hidden.chunk(2, dim=-1)
        gate = gate.sigmoid()
        activation = value * gate
        slope = torch.stack([gate, activation * (1 - gate)], dim=-2)
        slope_std = raw_std.sigmoid()
        carry = torch.zeros_like(path[0])
        grad_raw = torch.empty_like(torch.cat([path, path], dim=-1))
        grad_hidden = torch.empty_like(slope)
        for t in reversed(range(len(path))):
            grad_z = grad_path[t] + carry
            change = grad_mean[t] + grad_z
            std = torch.addcmul(grad_std[t], grad_z, noise[t])
            torch.cat([change, std * slope_std[t]], dim=-1, out=grad_raw[t])
            # (B, H) -> (B, 2, H), through value and gate
            grad_activation = (grad_raw[t] @ weight_out).unsqueeze(-2)
            torch.mul(grad_activation, slope[t], out=grad_hidden[t])
            carry = torch.addmm(share_kept * change, grad_hidden[t].flatten(1), weight_in)
        # (T, B, 2, H) -> (T, B, 2 * H)
        grad_hidden = grad_hidden.flatten(2)
        # (T, B, ...) -> (T * B, ...)
        flat_raw, flat_hidden = grad_raw.flatten(0, 1), grad_hidden.flatten(0, 1)
        previous = nn.functional.pad(path, (0, 0, 0, 0, 1, 0))[:-1].flatten(0, 1)
        return (
            grad_hidden,
            None,
            None,
            None,
            flat_hidden.T @ previous,
            flat_raw.T @ activation.flatten(0, 1),
            flat_raw.sum(0),
        )


# How much wider than usual the weights of the gates start. Where the transition has
# several modes, the posterior given z_{t-1} is a step function of the data: it belongs
# near one mode or near another. Gates that are sharp from the start find it; from the
# usual ones training settles on copying the data, noise and all, into the latent.
GATE_GAIN = 10.0

# Of more states than MANY_STATES a path keeps only this share from step to step, apart from
# g. With all of it, the noise of a long window adds up before anything is learned, and a
# little weight on z_{t-1} is soon an explosion.
MANY_STATES, SHARE_KEPT = 48, 0.97

# softplus of it, 0.2, is the standard deviation that every step starts with.
INITIAL_RAW_STD = -1.5


def _with_later_weights(
    module: "Encoder", state: dict[str, Tensor], prefix: str, *args: Any
) -> None:
    """Add to loaded weights what those of earlier versions do not have.

    All was kept from step to step, and what follows a gap was seen by the GRU alone.
    """
    state.setdefault(prefix + "share_kept", torch.ones_like(module.share_kept))
    state.setdefault(prefix + "weight_after", torch.zeros_like(module.weight_after))


class Encoder(nn.Module):
    """Bidirectional GRU over the data and the recursion that draws latent paths.

    Parameters
    ----------
    num_components
        Number C of observed components.
    input_size
        Number F of features per step: values, flags, inputs.
    latent_dim
        Dimension D of the latent.
    hidden_size
        Width H of the GRU and of g.
    reach
        Number R of steps of a training window, at least 2.
    """

    share_kept: Tensor

    def __init__(
        self,
        num_components: int,
        input_size: int,
        latent_dim: int,
        hidden_size: int,
        reach: int,
    ) -> None:
        super().__init__()
        self.latent_dim, self.reach = latent_dim, reach
        self.gru = nn.GRU(input_size, hidden_size, bidirectional=True)
        # of h_t and, past the GRU and its saturation, of the data at t
        size = 2 * hidden_size + input_size
        self.project = nn.Linear(size, 2 * hidden_size)
        self.project_first = nn.Linear(size, 2 * hidden_size)
        self.weight_in = nn.Parameter(torch.empty(2 * hidden_size, latent_dim))
        self.out = nn.Linear(hidden_size, 2 * latent_dim)
        with torch.no_grad():
            parts: list[tuple[Tensor, int]] = [(self.weight_in, latent_dim)]
            for project in (self.project, self.project_first):
                parts.append((project.weight[:, 2 * hidden_size :], input_size))
            for weight, fan_in in parts:
                weight.uniform_(-(fan_in**-0.5), fan_in**-0.5)
                weight[hidden_size:] *= GATE_GAIN
            # as random as those of the values, of which they are copies in another order
            first = 2 * hidden_size
            of_values = self.project_first.weight[:, first : first + num_components]
            # (2 * H, C) -> (2, H, C) and back
            after = of_values.unflatten(0, (2, -1)).flip(1).flatten(0, 1)
        self.weight_after = nn.Parameter(after.clone())
        share_kept = 1.0 if reach <= MANY_STATES else SHARE_KEPT
        self.register_buffer("share_kept", torch.tensor(share_kept))
        self.register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
            _with_later_weights
        )
        # g and the change of s start at zero: dz_t / dz_{t-1} is then at most the identity,
        # and no product of Jacobians explodes over a long window.
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        nn.init.constant_(self.out.bias[latent_dim:], INITIAL_RAW_STD)

    @property
    def _weights(self) -> Weights:
        return self.share_kept, self.weight_in, self.out.weight, self.out.bias

    def forward(self, features: Tensor, after: Tensor | None = None) -> Tensor:
        """Compute all that does not depend on z.

        Parameters
        ----------
        features
            Values, 0 where missing, flags and inputs, (B, T, F).
        after
            Where a value is missing, the next one that is not, (B, T, C). It tells, past
            the GRU and its saturation, which way through a gap leads to it. ``None`` where
            none is missing.

        Returns
        -------
        Tensor
            (T, B, 2 * H).
        """
        # (B, T, F) -> (T, B, F)
        features = features.transpose(0, 1)
        # (T, B, F) -> (T, B, 2 * H) -> (T, B, 2 * H + F)
        h = torch.cat([self._look_around(features), features], dim=-1)
        projection = torch.cat([self.project_first(h[:1]), self.project(h[1:])])
        if after is None:
            return projection
        # (B, T, C) -> (T, B, C) -> (T, B, 2 * H)
        return projection + nn.functional.linear(after.transpose(0, 1), self.weight_after)

    def _look_around(self, features: Tensor) -> Tensor:
        """Run the GRU in both directions: (T, B, F) -> (T, B, 2 * H).

        It was trained on R steps. Of more it sees windows of as many, which overlap by
        half, each step in that whose middle is nearest.
        """
        num_steps, reach = len(features), self.reach
        if num_steps <= reach:
            return self.gru(features)[0]
        last, half = num_steps - reach, reach // 2
        starts = [min(start, last) for start in range(0, last + half, half)]
        # (R, K * B, F) -> (R, K * B, 2 * H) -> (R, K, B, 2 * H)
        windows = torch.cat([features[start : start + reach] for start in starts], dim=1)
        h = self.gru(windows)[0].unflatten(1, (len(starts), -1))
        steps = torch.arange(num_steps, device=h.device)
        first = torch.tensor(starts, device=h.device)
        middle = first + (reach - 1) / 2
        nearest = (steps.unsqueeze(-1) - middle).abs().argmin(1)
        return h[steps - first[nearest], nearest]

    def sample_path(
        self, projection: Tensor, floor: Tensor, num_samples: int = 1
    ) -> PosteriorPath:
        """Draw paths of each window.

        Parameters
        ----------
        projection
            Output of :meth:`forward`, (T, B, 2 * H).
        floor
            Least standard deviation of each step, (T,).
        num_samples
            Number S of paths of each window.

        Returns
        -------
        PosteriorPath
            Paths, (S * B, T, D), sample by sample.
        """
        num_steps, num_windows, _ = projection.shape
        with torch.autocast(projection.device.type, enabled=False):
            projection = projection.to(self.weight_in.dtype)
            shape = num_steps, num_samples * num_windows, self.latent_dim
            noise = torch.randn_like(projection.new_empty(shape))
            if torch.is_grad_enabled():
                copies = projection.repeat(1, num_samples, 1)
                steps = _PosteriorPath.apply(  # type: ignore[no-untyped-call]
                    copies, noise, floor, *self._weights
                )
            else:
                steps = self._loop(projection, noise, floor)
        # (T, S * B, D) -> (S * B, T, D)
        return PosteriorPath(*(x.transpose(0, 1) for x in steps))

    def _loop(self, projection: Tensor, noise: Tensor, floor: Tensor) -> list[Tensor]:
        """The recursion where no derivative is asked for: it keeps what it returns.

        Noise (T, S * B, D) to path, mean and standard deviation.
        """
        # (T, S * B, D) -> (T, S, B, D): the projection serves all samples
        noise = noise.unflatten(1, (-1, projection.shape[1]))
        z, steps = torch.zeros_like(noise[0]), []
        for each in zip(projection, noise, floor, strict=True):
            z, mean, std, *_ = _posterior_step(z, *each, self._weights)
            steps.append((z, mean, std))
        # (T, S, B, D) -> (T, S * B, D)
        return [torch.stack(x).flatten(1, 2) for x in zip(*steps, strict=True)]

    def moments_along(
        self, z: Tensor, projection: Tensor, floor: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of q at each step of paths, (B, T, D) each.

        Parameters
        ----------
        z
            Paths, (B, T, D).
        projection
            Output of :meth:`forward`, (T, B, 2 * H).
        floor
            Least standard deviation of each step, (T,).
        """
        previous = nn.functional.pad(z, (0, 0, 1, 0))[:, :-1].transpose(0, 1)
        floor = floor.view(-1, 1, 1)
        # (T, B, ...) -> (B, T, ...)
        mean, std = (x.transpose(0, 1) for x in self.moments(previous, projection, floor))
        return mean, std

    def moments(
        self, z: Tensor, projection: Tensor, floor: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of z_t given z_{t-1}, (..., N, D) each.

        Parameters
        ----------
        z
            Latents of the step before, (..., N, D).
        projection
            Output of :meth:`forward` at this step, (..., N, 2 * H).
        floor
            Least standard deviation, a scalar, or (..., 1, 1).
        """
        # as along a path
        with torch.autocast(z.device.type, enabled=False):
            z, projection = (x.to(self.weight_in.dtype) for x in (z, projection))
            noise = torch.zeros_like(z)
            _, mean, std, *_ = _posterior_step(z, projection, noise, floor, self._weights)
        return mean, std
