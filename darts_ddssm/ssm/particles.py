r"""
Sequential Monte Carlo at gaps: paths of the states given incomplete data.

The encoder's posterior of a state given the one before is Gaussian. Where the data are
complete the exact one nearly is. In a gap several ways may be open, and which of them
leads to the next observation shows only there. Paths are therefore drawn in two ways
[1]_:

- where all of a step is observed, from the encoder;
- in a gap, and at the first few observations after it, from the transition. Where
  something is observed, a path has the weight :math:`p_\theta(x_t | z_t, u_t)`, by which
  whole histories are resampled. A step of which a part is observed, as of a patch that a
  gap begins or ends in, belongs to the gap.

The encoder would meet an observation from anywhere. But of a state that was no guess of
its own it knows little, and the density of its draws under the transition would have to be
found along the flow.

What comes after a gap counts once: the states before the gap are drawn given the data up to
it, and the weights do the rest. The state at the first observation after a gap knows a few
later ones by the choices made there, as in fixed-lag smoothing. From it on the encoder
leads.

Where few paths meet the observation, more are sent through that gap. A gap may be too
long, or an observation too precise, for any number of them. Some paths therefore are led
by the encoder, which knows what is observed later. They are kept where the others miss.

Letters as in :mod:`darts_ddssm.ssm`; N counts the paths of all series, series by series.

References
----------
.. [1] Chopin and Papaspiliopoulos, "An Introduction to Sequential Monte Carlo", Springer
       2020.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from darts_ddssm.ssm.context import Context, History
from darts_ddssm.ssm.encoder import Encoder
from darts_ddssm.ssm.transition import Transition
from darts_ddssm.ssm.window import Window, until_last

# Paths that are sent through a gap: more, while fewer than so many of them meet the
# observation after it. Paths count by their effective number.
GAP_PATHS, ENOUGH_PATHS = (128, 512, 2048), 40.0

# The most steps of all paths of a series through its gaps, beyond which no more are sent.
MAX_GAP_STEPS = 2**17

# Observations after a gap that paths have to meet: two ways may part little at the first.
# The first of these states knows the later ones by that, and the encoder leads on from it.
NUM_MEETINGS = 3

# Paths that meet the observation, below which those of the encoder are kept.
FEW_PATHS = 6.0

# The most states of all paths, to bound the memory: series by series, if need be.
MAX_STATES = 2**20

# Network evaluations for the predictive density of a step, which come one after another.
FLOW_STEPS = 48

# A function of what is observed at a step given states (N, D) of series (N,): its
# log-density in nats, (N,), or P(X <= x) of each of its values, (N, F).
OfEmission = Callable[[Tensor, Tensor, int], Tensor]


class States(NamedTuple):
    """Paths of the states given data, of N = S * B rows.

    Attributes
    ----------
    path
        The paths, (N, T, D).
    history
        What a forecast needs of them, at their last step.
    num_met
        Effective number of the paths that met the observation after a gap, the least over
        the gaps of each series, (B,). Infinite where there is none.
    """

    path: Tensor
    history: History
    num_met: Tensor

    @property
    def misses(self) -> Tensor:
        """Whether the encoder's paths were kept in a gap of each series, (B,)."""
        return self.num_met < FEW_PATHS


class Predictive(NamedTuple):
    """What the data before a step say of the values that are observed there.

    Attributes
    ----------
    log_density
        Log-density of all values of a step in nats, (B, T); 0 where nothing is observed.
    transform
        Probability integral transform of each value, P(X <= x), (B, T, F).
    """

    log_density: Tensor
    transform: Tensor


def sample_states(
    transition: Transition,
    encoder: Encoder,
    encode: Callable[[Window], Tensor],
    projection: Tensor,
    window: Window,
    share_observed: Tensor,
    log_emission: OfEmission,
    num_samples: int,
    num_solver_steps: int,
    filtering: bool = False,
) -> States:
    """Draw paths of the states given data, which may be incomplete.

    Parameters
    ----------
    transition, encoder
        Parts of the state-space model.
    encode
        The encoder's output of a window, (T, B, 2 * H).
    projection
        That of the data.
    window
        The data, B series.
    share_observed
        Share of each step that is observed, (B, T), on the CPU. Where it is all of every
        step, the paths are the encoder's.
    log_emission
        Log-density of what is observed.
    num_samples
        Number S of paths of each series.
    num_solver_steps
        Number of network evaluations for each step of a diffusion transition.
    filtering
        Whether the last state is all that is asked for. The observations after a gap soon
        tell where it led: no more paths are sent through it, and the encoder leads from its
        end on, since it has seen few long gaps.

    Returns
    -------
    States
        Paths of S * B rows, sample by sample.
    """
    num_steps, num_series, _ = projection.shape
    num_met = projection.new_full((num_series, num_steps), torch.inf)

    def of_encoder(projection: Tensor) -> Tensor:
        floor = transition.min_std(num_steps)
        return encoder.sample_path(projection, floor, num_samples).z

    def with_history(path: Tensor) -> States:
        # (B, T, U) -> (S * B, T, U)
        inputs = window.transition_inputs.repeat(num_samples, 1, 1)
        history = transition.context.from_path(path, inputs)
        return States(path, history, num_met.amin(1))

    complete = (share_observed == 1).all(1)
    if complete.all():
        return with_history(of_encoder(projection))
    # of each path, the number of its series
    owners: list[Tensor] = []
    paths: list[Tensor] = []
    if complete.any():
        rows = complete.nonzero().squeeze(-1).to(projection.device)
        owners.append(rows.repeat(num_samples))
        paths.append(of_encoder(projection[:, rows]))
    series = (~complete).nonzero().squeeze(-1).to(projection.device)
    gaps = Gaps.of(share_observed)
    projection = knowing_no_more(encode, projection, window, gaps)
    gaps = gaps.to(projection.device)
    num_paths = torch.full_like(gaps.number, GAP_PATHS[0])
    for more_paths in (None,) if filtering else (*GAP_PATHS[1:], None):
        missed = []
        most = max(int(num_paths[series].max()), num_samples)
        for rows in series.split(max(MAX_STATES // (most * num_steps), 1)):

            def of_rows(z: Tensor, local: Tensor, t: int, rows: Tensor = rows) -> Tensor:
                return log_emission(z, rows[local], t)

            particles = Particles(
                transition,
                encoder,
                projection[:, rows],
                Window(*(x[rows] for x in window)),
                gaps.rows(rows),
                of_rows,
                num_samples,
                num_solver_steps,
                num_paths[rows],
                filtering,
            )
            particles.run()
            num_met[rows] = particles.num_met
            again = torch.zeros_like(rows, dtype=torch.bool)
            if more_paths is not None:
                narrow = gaps.rows(rows).anywhere(particles.num_met < ENOUGH_PATHS)
                more = torch.where(narrow, more_paths, num_paths[rows])
                affordable = (more * gaps.inside[rows]).sum(1) <= MAX_GAP_STEPS
                again = narrow.any(1) & affordable
                num_paths[rows] = more
            kept = ~again[particles.owner]
            owners.append(rows[particles.owner[kept]])
            paths.append(particles.paths.last(num_steps)[kept])
            missed.append(rows[again])
        series = torch.cat(missed)
        if len(series) == 0:
            break
    # (B * S,) -> (S * B,)
    places = torch.cat(owners).argsort(stable=True)
    places = places.unflatten(0, (-1, num_samples)).T.flatten()
    return with_history(torch.cat(paths)[places])


def knowing_no_more(
    encode: Callable[[Window], Tensor],
    projection: Tensor,
    window: Window,
    gaps: "Gaps",
) -> Tensor:
    """Let what is before a gap know nothing of what comes after it.

    Paths are weighted by what is observed after a gap. The states before it would count
    that twice.

    Parameters
    ----------
    encode, projection, window
        As for :func:`sample_states`.
    gaps
        The gaps of the B series, on the CPU.

    Returns
    -------
    Tensor
        The output at each step before a gap, and not in one, of the window that ends where
        the gap begins; else that of the whole window, (T, B, 2 * H).
    """
    num_steps = gaps.inside.shape[1]
    # the first step of the gap that a step is before, (B, T)
    end = torch.where(gaps.inside, torch.arange(num_steps), num_steps)
    end = end.flip(1).cummin(1).values.flip(1)
    projection = projection.clone()
    for length in end[~gaps.inside].unique().tolist():
        before = (end == length) & ~gaps.inside
        if length == num_steps:
            continue
        rows = before.any(1).nonzero().squeeze(-1).to(projection.device)
        shorter = encode(Window(*(x[rows, :length] for x in window)))
        # (B', T') -> (T', B', 1)
        known = before[:, :length].to(projection.device)[rows].T.unsqueeze(-1)
        whole = projection[:length, rows]
        projection[:length, rows] = torch.where(known, shorter.to(whole.dtype), whole)
    return projection


class Gaps(NamedTuple):
    """The gaps of some series.

    Attributes
    ----------
    inside
        Whether a step is in a gap that ends, (B, T): nothing or only a part of it is
        observed. The first step is, if nothing is.
    number
        Number of the gap that a step is in or after, 0 before the first one, (B, T).
    """

    inside: Tensor
    number: Tensor

    @classmethod
    def of(cls, share_observed: Tensor) -> "Gaps":
        """Find the gaps of series, given the share of each step that is observed."""
        inside = (share_observed < 1) & until_last(share_observed > 0)
        inside[:, 0] &= share_observed[:, 0] == 0
        before = torch.nn.functional.pad(inside, (1, 0))[:, :-1]
        return cls(inside, (inside & ~before).cumsum(1))

    def rows(self, rows: Tensor) -> "Gaps":
        """Return the gaps of some of the series."""
        return Gaps(self.inside[rows], self.number[rows])

    def to(self, device: torch.device) -> "Gaps":
        """Return the same on a device."""
        return Gaps(self.inside.to(device), self.number.to(device))

    def anywhere(self, steps: Tensor) -> Tensor:
        """Mark all steps of gaps in or after which one is marked: (B, T) -> (B, T)."""
        # of each gap, how many steps are marked: a GPU has no maximum of truth values
        num_series, num_steps = self.number.shape
        marked = self.number.new_zeros(num_series, num_steps + 1)
        marked = marked.scatter_add(1, self.number, steps.to(marked))
        return marked.gather(1, self.number) > 0


def resample(log_weights: Tensor, owner: Tensor, num_samples: int) -> Tensor:
    """Draw S paths of each series by their weights, evenly.

    Parameters
    ----------
    log_weights
        Logarithms of the weights, (N,), of any sum.
    owner
        Number of the series of each path, in rising order, (N,).
    num_samples
        Number S of paths that each series is left with.

    Returns
    -------
    Tensor
        Places of the paths that are drawn, S for each series, in rising order.
    """
    series, local = owner.unique_consecutive(return_inverse=True)
    weights = _normalised(log_weights, local, len(series))
    # one draw and even steps from it leave least to chance
    starts = torch.rand_like(weights[: len(series), None])
    steps = (starts + torch.arange(num_samples, device=weights.device)) / num_samples
    # the weights of each series sum to one
    edges = weights.cumsum(0)
    points = torch.arange(len(series), device=steps.device).unsqueeze(-1)
    points = (steps + points).flatten()
    places = torch.searchsorted(edges, points)
    # rounding may lead to a neighbour
    counts = local.bincount(minlength=len(series))
    last = counts.cumsum(0)
    bounds = torch.stack([last - counts, last - 1]).repeat_interleave(num_samples, dim=1)
    return places.maximum(bounds[0]).minimum(bounds[1])


def _normalised(log_weights: Tensor, local: Tensor, num_series: int) -> Tensor:
    """Weights (N,), those of each series summing to one."""
    # 16 bits are too few for sums
    dtype = torch.promote_types(log_weights.dtype, torch.float32)
    log_weights = log_weights.to(dtype).nan_to_num(nan=-torch.inf)
    highest = log_weights.new_full((num_series,), -torch.inf)
    highest = highest.scatter_reduce(0, local, log_weights, "amax")
    # where no weight is finite, all are alike
    lost = highest.isinf()[local]
    relative = torch.where(lost, 0.0, log_weights - highest[local])
    weights = relative.exp()
    total = torch.zeros_like(highest).scatter_add(0, local, weights)
    return weights / total[local]


def effective_number(log_weights: Tensor, owner: Tensor, num_series: int) -> Tensor:
    """Effective number of the weights of each series, (B,): 1 / sum w^2.

    It is 0 where no path has a weight.
    """
    squares = _normalised(log_weights, owner, num_series).square()
    number = 1 / squares.new_zeros(num_series).scatter_add(0, owner, squares)
    has_weight = (log_weights > -torch.inf).to(number.dtype)
    return number * number.new_zeros(num_series).scatter_reduce(
        0, owner, has_weight, "amax"
    )


def predictive(
    transition: Transition,
    encoder: Encoder,
    encode: Callable[[Window], Tensor],
    window: Window,
    log_emission: OfEmission,
    cumulative: OfEmission | None,
    num_samples: int,
    num_solver_steps: int,
    num_context: int,
) -> Predictive:
    """Predict each observation from those before it, by a particle filter.

    A state is drawn from the encoder, given the data up to its step, or from the
    transition, half of the paths each. Its weight is the density of transition and emission
    over that of the draw, at most twice that of the emission. The mean weight estimates the
    predictive density; the product over all steps is an unbiased estimate of the
    likelihood. Draws of the transition alone, with the weights that their histories have,
    are draws of what is predicted: over them the transforms are averaged.

    Parameters
    ----------
    transition, encoder
        Parts of the state-space model.
    encode
        The encoder's output of a window, (T, B, 2 * H).
    window
        The data, B series.
    log_emission
        Log-density of what is observed.
    cumulative
        What the transforms are the mean of. ``None`` for no transforms, F = 0.
    num_samples
        Number S of paths of each series.
    num_solver_steps
        Number of network evaluations for each step of a diffusion transition.
    num_context
        Number of steps that the encoder is given, at most.
    """
    num_series, num_steps, _ = window.x.shape
    owner = torch.arange(num_series, device=window.x.device)
    owner = owner.repeat_interleave(num_samples)
    paths = Paths(transition.context, window.transition_inputs, owner, window.x)
    log_weights = window.x.new_zeros(len(owner))
    floor, seen = transition.min_std(num_steps), window.observed.any(-1)
    log_densities = []
    transforms = [window.x.new_zeros(num_series, 0)] * num_steps
    for t in range(num_steps):
        past = Window(*(x[:, max(t + 1 - num_context, 0) : t + 1] for x in window))
        history, u = paths.history, paths.inputs
        projection = encode(past)[-1]
        mean, std = encoder.moments(history.previous, projection[owner], floor[t])
        # the weights below are of the density itself
        drawn = transition.sample(history, u, num_solver_steps, in_full=True)
        from_encoder = (torch.rand_like(mean[:, :1]) < 0.5) & seen[owner, t].unsqueeze(-1)
        z = torch.where(from_encoder, mean + std * torch.randn_like(mean), drawn)
        added = torch.zeros_like(log_weights)
        rows = seen[owner, t].nonzero().squeeze(-1)
        if len(rows) > 0:
            some = History(*(x[rows] for x in history))
            log_p = transition.log_prob_next(some, z[rows], u[rows], FLOW_STEPS)
            log_q = torch.distributions.Normal(mean[rows], std[rows]).log_prob(z[rows])
            log_x = log_emission(z[rows], owner[rows], t)
            log_drawn = torch.logaddexp(log_q.sum(-1), log_p) - math.log(2)
            added[rows] = (log_p + log_x - log_drawn).to(added.dtype)
        # (B * S,) -> (B, S)
        relative = log_weights.unflatten(0, (num_series, -1))
        before = relative.logsumexp(1)
        if cumulative is not None:
            # (B * S, F) -> (B, S, F) -> (B, F)
            each = cumulative(drawn, owner, t).unflatten(0, (num_series, -1))
            mean = torch.einsum("bs,bsf->bf", relative.softmax(1), each)
            # weights may add up to a little more
            transforms[t] = mean.clamp(max=1)
        log_weights = log_weights + added
        after = log_weights.unflatten(0, (num_series, -1)).logsumexp(1)
        log_densities.append(after - before)
        paths.add(z)
        few = effective_number(log_weights, owner, num_series) < num_samples / 2
        if few.any():
            drawn = resample(log_weights, owner, num_samples)
            places = torch.arange(len(owner), device=owner.device)
            paths.keep(torch.where(few[owner], drawn, places))
            log_weights = torch.where(few[owner], 0.0, log_weights)
    log_density = torch.stack(log_densities, 1).to(window.x.dtype)
    return Predictive(log_density, torch.stack(transforms, 1))


class Paths:
    """Paths of the states as they grow, and what the transition needs of them.

    Parameters
    ----------
    context
        The context network of the transition.
    inputs
        Inputs of the transition, (B, T, U).
    owner
        Number of the series of each path, in rising order, (N,).
    like
        A tensor of the type of the states.
    """

    def __init__(
        self, context: Context, inputs: Tensor, owner: Tensor, like: Tensor
    ) -> None:
        self.context, self.all_inputs, self.owner = context, inputs, owner
        self.num_steps = 0
        # the last state of each path, zero before the first, (N, D)
        self.previous = like.new_zeros(len(owner), context.latent_dim)
        # States between two choices, (N', k, D), and the places that were kept of them:
        # to copy whole paths at each choice would take longer than to draw them.
        self._before: list[tuple[Tensor, Tensor]] = []
        # states since the last choice, (N, D) each
        self._since: list[Tensor] = []
        self._history: History | None = None
        # number of states in the history
        self._num_known = 0

    @property
    def inputs(self) -> Tensor:
        """Inputs of the transition at the next step, (N, U)."""
        return self.all_inputs[self.owner, self.num_steps]

    @property
    def history(self) -> History:
        """Histories of all paths, made when they are first asked for."""
        if self._history is None:
            number = self.context.num_seen(self.num_steps)
            if number == 0:
                self._history = self.context.init(len(self.owner), self.previous)
            else:
                last = slice(self.num_steps - number, self.num_steps)
                inputs = self.all_inputs[self.owner, last]
                self._history = self.context.from_path(self.last(number), inputs)
            self._num_known = number
        return self._history

    def last(self, number: int) -> Tensor:
        """Return the last states of each path, at least one, (N, number, D)."""
        parts, length = [], len(self._since)
        if length > 0:
            parts.append(torch.stack(self._since, 1))
        places = None
        for states, kept in reversed(self._before):
            if length >= number:
                break
            places = kept if places is None else kept[places]
            parts.append(states[places])
            length += states.shape[1]
        return torch.cat(parts[::-1], 1)[:, -number:]

    def add(self, z: Tensor) -> None:
        """Go on by one step, to states (N, D)."""
        if self._history is not None:
            self._history = self.context.update(self._history, z, self.inputs)
            self._num_known += 1
            if self._num_known == self.context.reach:
                # it is made anew, of fewer states
                self._history = None
        self.previous = z
        self._since.append(z)
        self.num_steps += 1

    def replace(self, rows: Tensor, z: Tensor) -> None:
        """Put other states (N', k, D) in place of the last k ones of some paths, (N',)."""
        number = z.shape[1]
        states = self.last(number)
        states[rows] = z
        self._drop(number)
        self._since += states.unbind(1)
        self.previous, self._history = states[:, -1], None

    def _drop(self, number: int) -> None:
        """Forget the last states of all paths."""
        in_since = min(number, len(self._since))
        del self._since[len(self._since) - in_since :]
        number, places = number - in_since, None
        while number > 0:
            states, kept = self._before.pop()
            places = kept if places is None else kept[places]
            left = max(states.shape[1] - number, 0)
            number -= states.shape[1] - left
            if left > 0:
                self._before.append((states[:, :left], places))
                places = None
        if places is not None and self._before:
            states, kept = self._before[-1]
            self._before[-1] = states, kept[places]

    def keep(self, places: Tensor) -> None:
        """Keep the paths at some places, as often as these are named."""
        self.owner, self.previous = self.owner[places], self.previous[places]
        if self._history is not None:
            self._history = self._history.map(lambda x: x[places])
        if self._since:
            self._before.append((torch.stack(self._since, 1), places))
            self._since = []
        elif self._before:
            states, kept = self._before[-1]
            self._before[-1] = states, kept[places]


class Particles:
    """Paths of the states of some series, as they grow step by step.

    Parameters
    ----------
    transition, encoder
        Parts of the state-space model.
    projection, window, log_emission, num_samples, num_solver_steps
        As for :func:`sample_states`.
    gaps
        The gaps of the series.
    num_paths
        Number of paths through each gap, at least, at each of its steps, (B, T).
    filtering
        Whether paths that are led by the encoder are so from the end of a gap on.
    """

    def __init__(
        self,
        transition: Transition,
        encoder: Encoder,
        projection: Tensor,
        window: Window,
        gaps: Gaps,
        log_emission: OfEmission,
        num_samples: int,
        num_solver_steps: int,
        num_paths: Tensor,
        filtering: bool = False,
    ) -> None:
        self.transition, self.encoder = transition, encoder
        self.projection, self.log_emission = projection, log_emission
        self.num_samples, self.num_solver_steps = num_samples, num_solver_steps
        self.filtering = filtering
        # of each path so many follow the transition into a gap
        self.factor = -(-num_paths // num_samples)
        self.floor = transition.min_std(len(projection))
        self.inside, self.seen = gaps.inside, window.observed.any(-1)
        # of which a part is observed, and soon after a gap
        self.meets = self.seen & (
            gaps.inside | self._soon_after(1 if filtering else NUM_MEETINGS)
        )
        self.num_series = projection.shape[1]
        owner = torch.arange(self.num_series, device=projection.device)
        owner = owner.repeat_interleave(num_samples)
        inputs = window.transition_inputs
        self.paths = Paths(transition.context, inputs, owner, projection)
        # paths that are led by the encoder through the present gap
        self.guided = torch.zeros_like(owner, dtype=torch.bool)
        # number of observations in a row that were met after a gap, of each series, (B,)
        self.num_meetings = torch.zeros_like(self.seen[:, 0], dtype=torch.long)
        # effective number of the paths that meet the first observation after a gap
        self.num_met = projection.new_full(self.seen.shape, torch.inf)

    @property
    def owner(self) -> Tensor:
        """Number of the series of each path, in rising order, (N,)."""
        return self.paths.owner

    def run(self) -> None:
        """Draw all steps."""
        before = torch.zeros_like(self.inside[:, 0])
        steps = zip(self.inside.unbind(1), self.meets.unbind(1), strict=True)
        for t, (inside, meets) in enumerate(steps):
            begins = (inside | meets) & ~before
            if begins.any():
                self._branch(t, begins)
            self._step(t, meets)
            if meets.any():
                self._select(t, meets, before & meets)
            self._hand_over(t)
            before = inside & ~meets

    def _soon_after(self, num_steps: int) -> Tensor:
        """Whether a step is at most so many steps after one in a gap, (B, T)."""
        later = torch.nn.functional.pad(self.inside, (num_steps, 0))
        # (B, T, R)
        return later.unfold(1, num_steps, 1)[:, : self.seen.shape[1]].any(-1)

    def _branch(self, t: int, begins: Tensor) -> None:
        """Make more paths of the series (B,) that the transition is about to lead."""
        # the copies that follow the transition, and one that is led by the encoder
        counts = torch.where(begins, self.factor[:, t] + 1, 1)[self.owner]
        places = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        first = torch.nn.functional.pad(places[1:] != places[:-1], (1, 0), value=True)
        self._keep(places)
        self.guided |= first & begins[self.owner]

    def _step(self, t: int, meets: Tensor) -> None:
        """Draw a step of all paths, at which some series, (B,), meet an observation."""
        owner = self.owner
        mean, std = self.encoder.moments(
            self.paths.previous, self.projection[t, owner], self.floor[t]
        )
        z = mean + std * torch.randn_like(mean)
        missing, guided = ~self.seen[owner, t], self.guided
        from_transition = (missing | meets[owner]) & ~guided
        if self.filtering:
            from_transition |= missing
        rows = from_transition.nonzero().squeeze(-1)
        if len(rows) > 0:
            history = self.paths.history.map(lambda x: x[rows])
            u = self.paths.inputs[rows]
            drawn = self.transition.sample(history, u, self.num_solver_steps)
            z[rows] = drawn.to(z.dtype)
        self.paths.add(z)

    def _select(self, t: int, meets: Tensor, ended: Tensor) -> None:
        """Resample the paths of the series that meet an observation, (B,).

        For some of them, (B,), it is the first one after a gap.
        """
        chosen = meets[self.owner]
        kept, rows = (~chosen).nonzero().squeeze(-1), chosen.nonzero().squeeze(-1)
        owner, guided = self.owner[rows], self.guided[rows]
        log_weights = self.log_emission(self.paths.previous[rows], owner, t)
        log_weights = log_weights.masked_fill(guided, -torch.inf)
        number = effective_number(log_weights, owner, self.num_series).to(self.num_met)
        self.num_met[:, t] = torch.where(ended, number, torch.inf)
        of_encoder = torch.where(guided, 0.0, -torch.inf).to(log_weights)
        misses = (number < FEW_PATHS)[owner]
        log_weights = torch.where(misses, of_encoder, log_weights)
        drawn = rows[resample(log_weights, owner, self.num_samples)]
        self.guided = self.guided & ~chosen
        places = torch.cat([kept, drawn])
        self._keep(places[self.owner[places].argsort(stable=True)])

    def _hand_over(self, t: int) -> None:
        """Let the encoder lead from the first observation on that was met after a gap.

        Those that were met after it have chosen the paths.
        """
        in_row = self.meets[:, t] & ~self.inside[:, t]
        self.num_meetings = torch.where(in_row, self.num_meetings + 1, 0)
        goes_on = torch.zeros_like(in_row)
        if t + 1 < len(self.projection):
            goes_on = self.meets[:, t + 1] & ~self.inside[:, t + 1]
        number = torch.where(goes_on, 0, self.num_meetings - 1).clamp(min=0)
        for steps in range(1, NUM_MEETINGS):
            rows = (number == steps)[self.owner].nonzero().squeeze(-1)
            if len(rows) > 0:
                self._lead_by_encoder(t, steps, rows)

    def _lead_by_encoder(self, t: int, num_steps: int, rows: Tensor) -> None:
        """Draw the last steps of some paths, (N',), anew from the encoder."""
        owner, z = self.owner[rows], self.paths.last(num_steps + 1)[rows, 0]
        drawn = []
        for step in range(t + 1 - num_steps, t + 1):
            projection = self.projection[step, owner]
            mean, std = self.encoder.moments(z, projection, self.floor[step])
            z = mean + std * torch.randn_like(mean)
            drawn.append(z)
        self.paths.replace(rows, torch.stack(drawn, 1))

    def _keep(self, places: Tensor) -> None:
        """Keep the paths at some places, as often as these are named."""
        self.paths.keep(places)
        self.guided = self.guided[places]
