"""
The optimizer of the recipe: SOAP, which is Adam in the eigenbasis of Shampoo.

Adam gives each coordinate a rate of its own, which helps as far as the coordinates are
independent of each other. Entries of a weight matrix are not. Running means of the products
of the gradient's rows, and of its columns, have eigenvectors which turn the matrix into
coordinates that nearly are, and there Adam is used [1]_.

References
----------
.. [1] Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", arXiv 2409.11321.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# Matrices with fewer rows or columns are left to Adam, as are vectors, and an axis of more
# than so many is not turned: its basis would cost more than the update.
MIN_SIZE, MAX_SIZE = 16, 1024

# Updates from one step of the iteration for the eigenvectors to the next.
BASIS_PERIOD = 10


class SOAP(Optimizer):
    """Adam in the eigenbasis of Shampoo's preconditioner, for small networks.

    Matrices of one shape are handled together. A matrix of several square blocks in a row,
    such as those of the gates of a recurrent network, is as many matrices. Whatever is no
    matrix, or too small a one, is trained by Adam.

    Parameters
    ----------
    params
        Parameters, or groups of them.
    lr
        Learning rate, of the size that Adam's has.
    betas
        What the means of the gradient and of its square keep in an update.
    basis_decay
        What the means that give the eigenvectors keep in an update.
    eps
        Added to the root of the mean square.

    Examples
    --------
    >>> import torch
    >>> from darts_ddssm.training.soap import SOAP
    >>> network = torch.nn.Linear(16, 16)
    >>> optimizer = SOAP(network.parameters(), lr=0.01)
    >>> network(torch.ones(1, 16)).square().sum().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        basis_decay: float = 0.95,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "basis_decay": basis_decay, "eps": eps}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update, of parameters without a gradient as if it were zero.

        Parameters that require none are left where they are.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameters in _alike(group["params"]):
                self._update(parameters, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state and keep its precision.

        Parameters
        ----------
        state_dict
            As :meth:`state_dict` returns it.
        """
        # torch would give the state the precision of the parameters, which may be less
        super().load_state_dict(state_dict | {"state": {}})
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for key, parameter in zip(keys, parameters, strict=True):
            if key in state_dict["state"]:
                saved = state_dict["state"][key]
                self.state[parameter] = _on_device(saved, parameter.device)

    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Update parameters that are handled together."""
        # the state of all of them is kept with the first
        state = self.state[parameters[0]]
        gradient = _stacked(parameters)
        if "bases" not in state:
            # none yet, or that of another optimizer in an older checkpoint
            state.clear()
            state |= _first_state(gradient)
        gradient = gradient.to(state["mean"])
        self._follow_bases(state, gradient, group["basis_decay"])
        state["step"] += 1
        first, second = (1 - beta ** state["step"] for beta in group["betas"])
        state["mean"].lerp_(gradient, 1 - group["betas"][0])
        turned = _turned(gradient, state["bases"], inverse=False)
        state["square"].lerp_(turned.square(), 1 - group["betas"][1])
        change = _turned(state["mean"] / first, state["bases"], inverse=False)
        change /= (state["square"] / second).sqrt_().add_(group["eps"])
        change = _turned(change, state["bases"], inverse=True)
        parts = change.flatten().split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            # one that was frozen keeps its place in the state, and its momentum fades
            if parameter.requires_grad:
                parameter.sub_(group["lr"] * part.view_as(parameter))

    @staticmethod
    def _follow_bases(state: dict[str, Any], gradient: Tensor, decay: float) -> None:
        """Update the covariances and, at times, their eigenvectors."""
        for axis, covariance in state["covariances"].items():
            rows = _axis_first(gradient, axis)
            covariance.lerp_(rows @ rows.mT, 1 - decay)
            if state["step"] % BASIS_PERIOD == 0:
                # orthogonal iteration, which converges to the eigenvectors
                basis = state["bases"][axis]
                basis.copy_(_orthonormal(covariance @ basis))


def _on_device(value: Any, device: torch.device) -> Any:
    """Bring the tensors of a state to a device."""
    if isinstance(value, dict):
        return {key: _on_device(part, device) for key, part in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def _alike(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Put parameters together that are handled together."""
    alike: dict[tuple[int, ...], list[nn.Parameter]] = {}
    for parameter in parameters:
        alike.setdefault(_matrix_shape(parameter), []).append(parameter)
    return list(alike.values())


def _matrix_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Shape of the matrices that a parameter consists of, () where it is none."""
    if parameter.ndim != 2 or min(parameter.shape) < MIN_SIZE:
        return ()
    rows, columns = parameter.shape
    return (columns, columns) if rows % columns == 0 else (rows, columns)


def _stacked(parameters: list[nn.Parameter]) -> Tensor:
    """Gradients of parameters that are handled together: matrices (N, _, _), or (N,)."""
    shape = _matrix_shape(parameters[0])
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return torch.cat([gradient.reshape(-1, *shape) for gradient in gradients])


def _first_state(gradient: Tensor) -> dict[str, Any]:
    """Return the state before the first update, of single precision or better."""
    mean = torch.zeros_like(gradient, dtype=_at_least_single(gradient))
    covariances, bases = {}, {}
    for axis in range(1, mean.ndim):
        size = mean.shape[axis]
        if size <= MAX_SIZE:
            covariances[axis] = mean.new_zeros(len(mean), size, size)
            identity = torch.eye(size, dtype=mean.dtype, device=mean.device)
            bases[axis] = identity.repeat(len(mean), 1, 1)
    return {
        "step": 0,
        "mean": mean,
        "square": torch.zeros_like(mean),
        "covariances": covariances,
        "bases": bases,
    }


def _axis_first(x: Tensor, axis: int) -> Tensor:
    """Let an axis of matrices (N, _, _) be their rows; the inverse of itself."""
    return x if axis == 1 else x.mT


def _turned(x: Tensor, bases: dict[int, Tensor], inverse: bool) -> Tensor:
    """Coordinates in the bases of the axes, or back from there."""
    for axis, basis in bases.items():
        turn = basis if inverse else basis.mT
        x = _axis_first(turn @ _axis_first(x, axis), axis)
    return x


def _orthonormal(x: Tensor) -> Tensor:
    """Orthonormal bases of the columns of square matrices, (N, _, _)."""
    # on MPS it is slower than on the CPU, or not there
    device = "cpu" if x.device.type == "mps" else x.device
    return torch.linalg.qr(x.to(device, _at_least_single(x)))[0].to(x)


def _at_least_single(x: Tensor) -> torch.dtype:
    """Type of a tensor, or single precision where that is more."""
    return torch.promote_types(x.dtype, torch.float32)
