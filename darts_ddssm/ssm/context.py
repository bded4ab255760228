"""
The context network: what the transition sees of the past latents, the last j or all.

It turns the past latents, their inputs and the inputs u_t into a context vector for z_t.
Past inputs are among them so that the latent need not remember an input that acts with a
delay. The network works in two ways that give the same result: over a whole path at once,
in training, and step by step with a carried :class:`History`, in forecasts.

Letters as in :mod:`darts_ddssm.ssm`; U counts all inputs of the transition.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from darts_ddssm.ssm.networks import MLP

# Rows of which a recurrent network runs through whole paths at a time: what it keeps of
# more of them is beyond the cache of a processor, and takes half as long again.
GRU_ROWS = 512

# One sum of past inputs for so many dimensions of the latent.
INPUT_SHARE = 4


class History(NamedTuple):
    """What is carried from step to step along a path.

    Attributes
    ----------
    previous
        The last latent, zero before the first, (N, D).
    started
        1 where there is a last latent and 0 before the first step, (N, 1).
    memory
        The context network's own state, (N, ...).
    past
        The part of that state which was fixed when the forecast began, (N, ...). It is
        kept apart because copying it at each step would cost more than the networks.
    """

    previous: Tensor
    started: Tensor
    memory: Tensor
    past: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "History":
        """Return the history of what a function makes of each part."""
        return History(*(function(part) for part in self))

    def split(self, num_rows: int) -> Iterator["History"]:
        """Yield the histories of at most so many rows after another."""
        parts = (part.split(num_rows) for part in self)
        return (History(*part) for part in zip(*parts, strict=True))

    def repeat(self, num_samples: int) -> "History":
        """Return S copies of all histories, sample by sample: (S * N, ...)."""
        return self.map(lambda part: part.repeat(num_samples, 1))


def shift_right(z: Tensor) -> Tensor:
    """Delay a path by one step, zero first: (N, T, D) -> (N, T, D)."""
    return nn.functional.pad(z, (0, 0, 1, 0))[:, :-1]


def started_along(z: Tensor) -> Tensor:
    """Return 0 at the first step of paths (N, T, D) and 1 later: (N, T, 1)."""
    return shift_right(torch.ones_like(z[..., :1]))


class Context(nn.Module, ABC):
    """Context of z_t from the latents and the inputs before t, and the inputs at t.

    Parameters
    ----------
    latent_dim
        Dimension D of the latent.
    input_size
        Number U of inputs known at each step; may be 0.
    hidden_size
        Width H of the network and size of the context.
    """

    network: nn.Module
    # The most latents of a history, if there is a bound, and of how many of its last ones a
    # history is made anew that has as many.
    reach: int | None = None
    num_context: int

    def __init__(self, latent_dim: int, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.input_size = input_size
        self.context_size = hidden_size

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        """Contexts of a whole path: (N, T, D) and (N, T, U) -> (N, T, H)."""
        return self.network(self.features(z, u))

    @abstractmethod
    def features(self, z: Tensor, u: Tensor) -> Tensor:
        """Inputs of ``network`` at each step: (N, T, D), (N, T, U) -> (N, T, F)."""

    def num_seen(self, num_steps: int) -> int:
        """Return of how many of the last latents of a path the context knows."""
        return num_steps

    def see_lags(self) -> None:
        """See covariates of any earlier step directly from now on, if it did not."""
        return

    @abstractmethod
    def init(self, num_rows: int, like: Tensor) -> History:
        """Return the empty history of ``num_rows`` paths, of the type of ``like``."""

    @abstractmethod
    def from_path(self, z: Tensor, u: Tensor) -> History:
        """Return the history after a whole path: (N, T, D) and (N, T, U)."""

    @abstractmethod
    def output(self, history: History, u: Tensor) -> Tensor:
        """Return the context of the next step, given its inputs (N, U): (N, H)."""

    @abstractmethod
    def update(self, history: History, z: Tensor, u: Tensor) -> History:
        """Return the history with one more latent, (N, D), and its inputs, (N, U)."""


class MarkovContext(Context):
    """Context of a transition of order j: a perceptron on the last j steps.

    Slots before the first step are zero and flagged, so that the same network serves
    p(z_1) and every p(z_t | fewer than j latents).

    Parameters
    ----------
    latent_dim, input_size, hidden_size
        As for :class:`Context`.
    order
        Number j of latents that are seen.
    """

    def __init__(
        self, latent_dim: int, input_size: int, hidden_size: int, order: int
    ) -> None:
        super().__init__(latent_dim, input_size, hidden_size)
        self.order = order
        self.slot_size = latent_dim + 1 + input_size
        self.network = MLP(order * self.slot_size + input_size, hidden_size, hidden_size)

    def features(self, z: Tensor, u: Tensor) -> Tensor:
        num_steps = z.shape[1]
        steps = torch.cat([z, torch.ones_like(z[..., :1]), u], dim=-1)
        padded = nn.functional.pad(steps, (0, 0, self.order, 0))
        # (N, j + T, D + 1 + U) -> (N, T, j * (D + 1 + U)), oldest slot first
        slots = [padded[:, i : i + num_steps] for i in range(self.order)]
        return torch.cat([*slots, u], dim=-1)

    def init(self, num_rows: int, like: Tensor) -> History:
        return History(
            previous=like.new_zeros(num_rows, self.latent_dim),
            started=like.new_zeros(num_rows, 1),
            memory=like.new_zeros(num_rows, self.order * self.slot_size),
            past=like.new_zeros(num_rows, 0),
        )

    def from_path(self, z: Tensor, u: Tensor) -> History:
        steps = torch.cat([z, torch.ones_like(z[..., :1]), u], dim=-1)
        slots = nn.functional.pad(steps, (0, 0, self.order, 0))[:, -self.order :]
        # (N, j, D + 1 + U) -> (N, j * (D + 1 + U)), oldest slot first
        started = torch.ones_like(z[:, -1, :1])
        return History(z[:, -1], started, slots.flatten(1), started[:, :0])

    def output(self, history: History, u: Tensor) -> Tensor:
        return self.network(torch.cat([history.memory, u], dim=-1))

    def update(self, history: History, z: Tensor, u: Tensor) -> History:
        started = torch.ones_like(history.started)
        kept = history.memory[:, self.slot_size :]
        memory = torch.cat([kept, z, started, u], dim=-1)
        return History(z, started, memory, history.past)


class LagKernel(nn.Module):
    """Weighted sums of the last R latents: a linear autoregression of order R.

    A latent of many steps ago, such as a season's, is one weight away here. A recurrent
    network would have to carry it along. The same holds for an input that acts with a
    delay (a distributed lag), once :meth:`see_inputs` was called. What is constant, as
    flags and static covariates mostly are, would rather tell how long the path is, which
    a forecast that starts again does not share with the training windows.

    Parameters
    ----------
    latent_dim, input_size
        Dimension D of the latent, and number U of inputs.
    reach
        Number R of past steps.
    num_sums
        Number A of sums.
    lagged
        Which of the inputs may act with a delay, U' in all. ``None`` for all of them.
    """

    def __init__(
        self,
        latent_dim: int,
        input_size: int,
        reach: int,
        num_sums: int,
        lagged: Sequence[slice] | None = None,
    ) -> None:
        super().__init__()
        self.latent_dim, self.reach = latent_dim, reach
        # slices, since a list of numbers would wait for the device
        self.lagged = [slice(0, input_size)] if lagged is None else list(lagged)
        # of R steps ago first
        self.weight = nn.Parameter(torch.zeros(reach, latent_dim, num_sums))
        self.input_weight: nn.Parameter | None = None
        self.register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
            _with_inputs
        )

    def see_inputs(self) -> None:
        """See past inputs, too, from now on, with weights of zero to begin with.

        They are in the first of the sums alone. In all of them they would tell training
        windows apart, which a network learns by heart.
        """
        if self.input_weight is not None:
            return
        num_sums = min(max(self.latent_dim // INPUT_SHARE, 1), self.weight.shape[-1])
        num_lagged = sum(part.stop - part.start for part in self.lagged)
        zeros = self.weight.new_zeros(self.reach, num_lagged, num_sums)
        self.input_weight = nn.Parameter(zeros)

    def steps(self, z: Tensor, u: Tensor) -> Tensor:
        """What is seen of latents (..., D) and inputs (..., U): (..., F)."""
        if self.input_weight is None:
            return z
        return torch.cat([z, *(u[..., part] for part in self.lagged)], dim=-1)

    @property
    def weights(self) -> Tensor:
        """Weights of all that is seen, of R steps ago first: (R, F, A)."""
        if self.input_weight is None:
            return self.weight
        num_others = self.weight.shape[-1] - self.input_weight.shape[-1]
        of_inputs = nn.functional.pad(self.input_weight, (0, num_others))
        return torch.cat([self.weight, of_inputs], dim=1)

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        """Sums before each step of a path: (N, T, D) and (N, T, U) -> (N, T, A).

        By Fourier transform, so that the cost hardly grows with R.
        """
        steps, num_steps = self.steps(z, u), z.shape[1]
        size = num_steps + self.reach
        with torch.autocast(steps.device.type, enabled=False):
            # 16 bits have no transform
            dtype = torch.promote_types(self.weight.dtype, torch.float32)
            path = torch.fft.rfft(shift_right(steps).to(dtype), size, dim=1)
            kernel = torch.fft.rfft(self.weights.to(dtype).flip(0), size, dim=0)
            sums = torch.einsum("nfd,fdo->nfo", path, kernel)
            return torch.fft.irfft(sums, size, dim=1)[:, :num_steps].to(steps.dtype)

    def last(self, past: Tensor, recent: Tensor) -> Tensor:
        """Sums after R steps and r <= R further ones, (N, A).

        Parameters
        ----------
        past
            R steps, oldest first, (N, R * F). The oldest r of them are out of reach.
        recent
            The r steps after them, oldest first, (N, r * F).
        """
        weight = self.weights.flatten(0, 1)
        of_past, of_recent = weight.tensor_split([len(weight) - recent.shape[-1]])
        return past[:, recent.shape[-1] :] @ of_past + recent @ of_recent


def _with_inputs(kernel: LagKernel, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let a kernel see past inputs where the one that was saved did.

    A weight that is there stays: an optimizer may hold it.
    """
    if f"{prefix}input_weight" in state:
        kernel.see_inputs()
    else:
        kernel.input_weight = None


class RecurrentContext(Context):
    """Context of a transition of unbounded order: a GRU over all past steps.

    It was trained on paths of R latents. Along a longer one it therefore starts again, from
    as many latents as a forecast does, whenever it has seen R.

    Parameters
    ----------
    latent_dim, input_size, hidden_size
        As for :class:`Context`.
    reach
        Number R of past latents that are also seen directly, through a
        :class:`LagKernel`.
    num_context
        Number of the last latents that it starts again from, fewer than R.
    lagged
        As for :class:`LagKernel`.
    """

    reach: int

    def __init__(
        self,
        latent_dim: int,
        input_size: int,
        hidden_size: int,
        reach: int,
        num_context: int,
        lagged: Sequence[slice] | None = None,
    ) -> None:
        super().__init__(latent_dim, input_size, hidden_size)
        self.reach, self.num_context = reach, num_context
        num_sums = max(hidden_size // 4, 1)
        self.gru = nn.GRU(latent_dim + input_size, hidden_size, batch_first=True)
        self.kernel = LagKernel(latent_dim, input_size, reach, num_sums, lagged)
        # The latent of one step ago also goes past the GRU, which bounds what it keeps.
        size = hidden_size + num_sums + latent_dim + 1 + input_size
        self.network = MLP(size, hidden_size, hidden_size)

    def see_lags(self) -> None:
        self.kernel.see_inputs()

    def num_seen(self, num_steps: int) -> int:
        if num_steps < self.reach:
            return num_steps
        since = (num_steps - self.reach) % (self.reach - self.num_context)
        return self.num_context + since

    def features(self, z: Tensor, u: Tensor) -> Tensor:
        if z.shape[1] <= self.reach:
            return self._features(z, u)
        parts = [self._features(z[:, : self.reach], u[:, : self.reach])]
        num_steps = self.reach - self.num_context
        for start in range(self.reach, z.shape[1], num_steps):
            steps = slice(start - self.num_context, start + num_steps)
            parts.append(self._features(z[:, steps], u[:, steps])[:, self.num_context :])
        return torch.cat(parts, dim=1)

    def _features(self, z: Tensor, u: Tensor) -> Tensor:
        """As :meth:`features`, of a path of R steps at most."""
        memory = shift_right(self.gru(torch.cat([z, u], dim=-1))[0])
        parts = [memory, self.kernel(z, u), shift_right(z), started_along(z), u]
        return torch.cat(parts, dim=-1)

    def init(self, num_rows: int, like: Tensor) -> History:
        return History(
            previous=like.new_zeros(num_rows, self.latent_dim),
            started=like.new_zeros(num_rows, 1),
            memory=like.new_zeros(num_rows, self.context_size),
            past=like.new_zeros(num_rows, self.kernel.weights.shape[:2].numel()),
        )

    def from_path(self, z: Tensor, u: Tensor) -> History:
        number = self.num_seen(z.shape[1])
        z, u = z[:, -number:], u[:, -number:]
        steps = torch.cat([z, u], dim=-1)
        rows = GRU_ROWS if steps.device.type == "cpu" else len(steps)
        # (1, N, H) -> (N, H)
        hidden = torch.cat([self.gru(part)[1].squeeze(0) for part in steps.split(rows)])
        reach = self.kernel.reach
        past = nn.functional.pad(self.kernel.steps(z, u), (0, 0, reach, 0))[:, -reach:]
        # (N, R, F) -> (N, R * F)
        started = torch.ones_like(z[:, -1, :1])
        return History(z[:, -1], started, hidden, past.flatten(1))

    def output(self, history: History, u: Tensor) -> Tensor:
        hidden, recent = self._split(history)
        sums = self.kernel.last(history.past, recent)
        parts = [hidden, sums, history.previous, history.started, u]
        return self.network(torch.cat(parts, dim=-1))

    def update(self, history: History, z: Tensor, u: Tensor) -> History:
        hidden, recent = self._split(history)
        # (N, D + U) -> (N, 1, D + U), one step of the sequence
        step = torch.cat([z, u], dim=-1).unsqueeze(1)
        _, hidden = self.gru(step, hidden.unsqueeze(0).contiguous())
        seen = self.kernel.steps(z, u)
        if recent.shape == history.past.shape:
            # the oldest step makes room
            recent = recent[:, seen.shape[-1] :]
        memory = torch.cat([hidden.squeeze(0), recent, seen], dim=-1)
        return History(z, torch.ones_like(history.started), memory, history.past)

    def _split(self, history: History) -> tuple[Tensor, Tensor]:
        """Split the memory: state of the GRU (N, H), the r steps after ``past``."""
        hidden, recent = history.memory.tensor_split([self.context_size], dim=-1)
        return hidden, recent
