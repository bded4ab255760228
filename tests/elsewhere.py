"""
A device that no machine has to have, to test code for GPUs on a CPU.

Tensors that are *elsewhere* hold ordinary tensors and say that they are on another device.
Operations on them give the same numbers as on the CPU. But as on a GPU, tensors of both
places do not mix, and an operation that a GPU lacks fails. Each time that Python has to
wait for an answer is written down.

Letters as in :mod:`darts_ddssm.ssm`.
"""

import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy, StrategyRegistry
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# One whose gradients autograd computes in the calling thread.
ELSEWHERE = torch.device("meta")

aten = torch.ops.aten

# The shape or the value of what they return depends on numbers on the device.
WAITING = {
    aten._local_scalar_dense,
    aten.is_nonzero,
    aten.equal,
    aten._is_all_true,
    aten._is_any_true,
    aten.nonzero,
    aten.nonzero_numpy,
    aten.masked_select,
    aten._unique,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.unique_dim_consecutive,
    aten.bincount,
    aten._linalg_check_errors,
}

INDEXING = {
    aten.index,
    aten.index_put,
    aten.index_put_,
    aten._index_put_impl_,
    aten._unsafe_index,
}

# They reduce no truth values on a GPU, though they do on a CPU.
REDUCING = {aten.scatter_reduce, aten.scatter_reduce_}

# They look at the spreads on any device, inside of the operation.
CHECKED_DRAWS = {aten.normal.Tensor_Tensor, aten.normal.float_Tensor}


class Wait(NamedTuple):
    """One time that Python waited.

    Attributes
    ----------
    operation
        Name of the operation.
    files
        Files of the calls that led there, the innermost first.
    """

    operation: str
    files: list[str]

    def __repr__(self) -> str:
        own = [file for file in self.files if "/torch/" not in file]
        return f"{self.operation} from {', '.join(own[1:5])}"


class Far(torch.Tensor):
    """A tensor that is elsewhere."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> "Far":
        size, stride, offset = near.size(), near.stride(), near.storage_offset()
        far = torch.Tensor._make_wrapper_subclass(
            cls, size, stride, offset, dtype=near.dtype, device=ELSEWHERE
        )
        far.near = near
        return far

    def __repr__(self) -> str:
        return f"Far({self.near!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, *args: Any) -> Any:
        raise RuntimeError(f"{func} outside of `elsewhere`")


def _near(value: Any) -> Any:
    if isinstance(value, Far):
        return value.near
    is_elsewhere = isinstance(value, torch.device) and value == ELSEWHERE
    return torch.device("cpu") if is_elsewhere else value


def _far(value: Any) -> Any:
    is_near = isinstance(value, Tensor) and not isinstance(value, Far)
    return Far(value) if is_near else value


class Device(TorchDispatchMode):
    """What makes the operations, and what was waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []

    def wait(self, func: Any) -> None:
        """Write down that Python waited."""
        frames = traceback.walk_stack(sys._getframe(2))
        files = [frame.f_code.co_filename for frame, _ in frames]
        self.waits.append(Wait(str(func), files))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._can_decompose():
            # in inference mode torch leaves it to us
            with self:
                return func.decompose(*args, **kwargs)
        # 0-dim tensors of the CPU count as numbers
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        far = [x for x in tensors if isinstance(x, Far)]
        near = [x for x in tensors if not isinstance(x, Far) and x.dim() > 0]
        packet = func.overloadpacket
        moves_to = kwargs.get("device")
        if packet in (aten._to_copy, aten.copy_, aten.copy):
            if packet is aten._to_copy:
                to_far = bool(far) if moves_to is None else moves_to == ELSEWHERE
                from_far, blocking = bool(far), not kwargs.get("non_blocking", False)
            else:
                to_far, from_far = (isinstance(x, Far) for x in args[:2])
                blocking = not (len(args) > 2 and args[2])
            # what comes back is looked at, whether or not the copy waits
            if from_far and not to_far or to_far and not from_far and blocking:
                self.wait(func)
        else:
            to_far = bool(far) or moves_to == ELSEWHERE
            if far and near:
                raise RuntimeError(
                    f"{func}: Expected all tensors to be on the same device, but found "
                    f"at least two devices, {ELSEWHERE} and cpu."
                )
            if packet in REDUCING and far and far[0].dtype == torch.bool:
                raise NotImplementedError(f'{func} not implemented for "Bool"')
            if far:
                masks = packet in INDEXING and any(
                    x.dtype in (torch.bool, torch.uint8) for x in args[1] if x is not None
                )
                repeats = packet is aten.repeat_interleave and (
                    kwargs.get("output_size") is None
                )
                if packet in WAITING or func in CHECKED_DRAWS or masks or repeats:
                    self.wait(func)
        result = func(*tree_map(_near, args), **tree_map(_near, kwargs))
        if func._schema.name.endswith("_") or "out" in kwargs:
            # in place: the wrapper that was given
            if torch.Tag.inplace_view in func.tags:
                # the wrapper has a shape of its own
                with no_dispatch():
                    func(*args, **kwargs)
            return None if result is None else kwargs.get("out", args[0])
        return tree_map(_far, result) if to_far else result


class _Functions(TorchFunctionMode):
    """Functions that torch cuts short on the device whose name is used here."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None:
            del kwargs["device"]
            return func(*args, **kwargs).to(device)
        if func is torch.Tensor.__setitem__ and isinstance(args[0], Far):
            if not isinstance(args[2], Tensor):
                # a GPU gets the number in a copy that waits
                self.device.wait(func)
        if func is torch.Tensor.new_tensor and isinstance(args[0], Far):
            kwargs.setdefault("dtype", args[0].dtype)
            return torch.tensor(args[1], **kwargs).to(args[0].device)
        return func(*args, **kwargs)


class _Autocast(torch.autocast):
    """torch knows no mixed precision for the device whose name is used here."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == ELSEWHERE.type else device_type, **kwargs)


@contextmanager
def elsewhere() -> Iterator[Device]:
    """Let there be the device, and yield it."""
    with ExitStack() as stack:
        stack.enter_context(patch("torch.autocast", _Autocast))
        device = stack.enter_context(Device())
        stack.enter_context(_Functions(device))
        yield device


class _Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        pass


# by name, so that each trainer makes one of its own
StrategyRegistry.register("elsewhere", SingleDeviceStrategy, device=ELSEWHERE)


def trainer_elsewhere() -> dict[str, Any]:
    """Arguments of a trainer that works on the device."""
    return {"accelerator": _Accelerator(), "strategy": "elsewhere"}
