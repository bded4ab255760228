"""The optimizer, beside Adam and the exact eigenvectors."""

import copy

import pytest
import torch
from torch import nn

from darts_ddssm.training import soap
from darts_ddssm.training.soap import SOAP


def matrix(rows: int, columns: int, seed: int) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(rows, columns, generator=generator).double())


def random_orthogonal(size: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(matrix(size, size, seed).detach())[0]


def train(optimizer, parameter, gradients) -> None:
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()


def gradients_of(rows: int, columns: int, count: int) -> list[torch.Tensor]:
    """Random gradients whose entries depend on each other."""
    left, right = matrix(rows, rows, 1).detach(), matrix(columns, columns, 2).detach()
    return [left @ matrix(rows, columns, 3 + i).detach() @ right for i in range(count)]


@pytest.mark.parametrize("shape", [(7,), (), (8, 40), (40, 8), (3, 20, 20)])
def test_what_is_no_matrix_is_trained_by_adam(shape):
    ours, theirs = (nn.Parameter(torch.ones(shape).double()) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator).double() for _ in range(25)]
    train(SOAP([ours], lr=0.1), ours, gradients)
    train(torch.optim.Adam([theirs], lr=0.1, betas=(0.9, 0.99)), theirs, gradients)
    torch.testing.assert_close(ours, theirs)


def test_it_is_adam_where_every_axis_is_too_long(monkeypatch):
    monkeypatch.setattr(soap, "MAX_SIZE", 15)
    ours, theirs = matrix(16, 24, 0), matrix(16, 24, 0)
    gradients = gradients_of(16, 24, 25)
    train(SOAP([ours], lr=0.1), ours, gradients)
    train(torch.optim.Adam([theirs], lr=0.1, betas=(0.9, 0.99)), theirs, gradients)
    torch.testing.assert_close(ours, theirs)


def test_bases_are_the_eigenvectors_of_the_covariances():
    parameter = matrix(16, 24, 0)
    optimizer = SOAP([parameter], lr=0.1, basis_decay=0.9)
    gradient = gradients_of(16, 24, 1)[0]
    train(optimizer, parameter, [gradient] * 300)
    state = optimizer.state[parameter]
    for axis, square in ((1, gradient @ gradient.mT), (2, gradient.mT @ gradient)):
        basis = state["bases"][axis][0]
        found = basis.mT @ square @ basis
        values = torch.linalg.eigvalsh(square).flip(0)[:16]
        torch.testing.assert_close(
            found.diagonal()[:16], values, rtol=1e-3, atol=1e-6 * float(values[0])
        )


def last_change(optimizer, parameter, gradients) -> torch.Tensor:
    """Change of the last update, after others that change nothing."""
    before = parameter.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.0
    train(optimizer, parameter, gradients[:-1])
    optimizer.param_groups[0]["lr"] = 1.0
    train(optimizer, parameter, gradients[-1:])
    return parameter.detach() - before


def test_turning_the_weights_turns_the_updates():
    """In the eigenbasis of the gradients it does not matter how the weights are turned."""
    turn = random_orthogonal(16, 5)
    gradient = gradients_of(16, 24, 1)[0]

    def both(kind) -> tuple[torch.Tensor, torch.Tensor]:
        plain, turned = matrix(16, 24, 0), matrix(16, 24, 0)
        ours = last_change(kind([plain]), plain, [gradient] * 400)
        return ours, last_change(kind([turned]), turned, [turn @ gradient] * 400)

    ours, theirs = both(SOAP)
    assert (turn @ ours - theirs).norm() < 0.02 * ours.norm()
    ours, theirs = both(torch.optim.Adam)
    assert (turn @ ours - theirs).norm() > 0.5 * ours.norm()


@pytest.mark.parametrize("shape", [(48, 16), (32, 16)])
def test_blocks_of_gates_are_matrices_of_their_own(shape):
    rows, size = shape
    whole = matrix(rows, size, 0)
    parts = [nn.Parameter(part.clone()) for part in whole.detach().split(size)]
    gradients = gradients_of(rows, size, 25)
    train(SOAP([whole], lr=0.1), whole, gradients)
    optimizer = SOAP(parts, lr=0.1)
    for gradient in gradients:
        for part, own in zip(parts, gradient.split(size), strict=True):
            part.grad = own.clone()
        optimizer.step()
    torch.testing.assert_close(whole, nn.Parameter(torch.cat(parts)))


def test_it_learns_faster_than_adam_where_weights_depend_on_each_other():
    """A least-squares problem whose Hessian is a Kronecker product, badly conditioned."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -2, 24)
    before = random_orthogonal(24, 1).float() * spread @ random_orthogonal(24, 2).float()
    after = random_orthogonal(24, 3).float() * spread @ random_orthogonal(24, 4).float()
    goal = torch.randn(24, 24, generator=generator)

    def loss_of(kind, lr: float) -> float:
        weight = nn.Parameter(torch.zeros(24, 24))
        optimizer = kind([weight], lr=lr)
        for i in range(500):
            optimizer.param_groups[0]["lr"] = lr * (1 - i / 500)
            loss = (before @ (weight - goal) @ after).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    rates = (0.01, 0.03, 0.1)
    ours = min(loss_of(SOAP, lr) for lr in rates)
    theirs = min(loss_of(torch.optim.Adam, lr) for lr in rates)
    assert ours < theirs / 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_training_goes_on_from_a_saved_state(dtype):
    """The state has single precision where the parameters have half of it."""
    parameter = nn.Parameter(matrix(16, 24, 0).detach().to(dtype))
    optimizer = SOAP([parameter], lr=0.1)
    gradients = [gradient.to(dtype) for gradient in gradients_of(16, 24, 30)]
    train(optimizer, parameter, gradients[:13])
    again = nn.Parameter(parameter.detach().clone())
    resumed = SOAP([again], lr=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, parameter, gradients[13:])
    train(resumed, again, gradients[13:])
    assert parameter.isfinite().all()
    torch.testing.assert_close(parameter, again)
    state = resumed.state[again]
    assert state["mean"].dtype == torch.promote_types(dtype, torch.float32)
    for basis in state["bases"].values():
        identity = torch.eye(basis.shape[-1], dtype=basis.dtype).expand_as(basis)
        torch.testing.assert_close(basis.mT @ basis, identity, rtol=0, atol=1e-5)


def test_the_state_of_adam_is_replaced():
    """As in checkpoints of earlier versions."""
    parameter, fresh = matrix(16, 24, 0), matrix(16, 24, 0)
    adam = torch.optim.Adam([parameter], lr=0.0)
    train(adam, parameter, gradients_of(16, 24, 3))
    resumed = SOAP([parameter])
    resumed.load_state_dict(
        adam.state_dict() | {"param_groups": resumed.state_dict()["param_groups"]}
    )
    gradients = gradients_of(16, 24, 12)
    train(resumed, parameter, gradients)
    train(SOAP([fresh]), fresh, gradients)
    torch.testing.assert_close(parameter, fresh)


def test_parameters_without_gradients_stay():
    parameter, other = matrix(16, 24, 0), matrix(16, 24, 1)
    before = other.detach().clone()
    optimizer = SOAP([parameter, other], lr=0.1)
    train(optimizer, parameter, gradients_of(16, 24, 12))
    torch.testing.assert_close(other.detach(), before)


def test_what_is_frozen_in_training_stays():
    """And what is trained on beside it is as if it had a gradient of zero."""
    parameters, others = (
        [matrix(16, 24, 0), matrix(16, 24, 1), nn.Parameter(torch.ones(3).double())]
        for _ in range(2)
    )
    optimizers = [SOAP(each, lr=0.1) for each in (parameters, others)]
    gradients = gradients_of(16, 24, 20)

    def train_all(gradients: list[torch.Tensor], trained: int) -> None:
        for gradient in gradients:
            for each, optimizer in zip((parameters, others), optimizers, strict=True):
                optimizer.zero_grad()
                for parameter in each[:trained]:
                    part = gradient.flatten()[: parameter.numel()]
                    parameter.grad = part.view_as(parameter)
                optimizer.step()

    train_all(gradients[:10], 3)
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters[1:]:
        parameter.requires_grad_(False)
    train_all(gradients[10:], 1)
    for parameter, other, start in zip(parameters, others, before, strict=True):
        assert not torch.equal(other, start)
        assert torch.equal(parameter, start if parameter is not parameters[0] else other)


def test_half_precision_is_trained_with_a_state_of_single_precision():
    parameter = nn.Parameter(matrix(16, 24, 0).detach().bfloat16())
    optimizer = SOAP([parameter], lr=0.1)
    before = parameter.detach().clone()
    train(optimizer, parameter, [g.bfloat16() for g in gradients_of(16, 24, 12)])
    assert optimizer.state[parameter]["mean"].dtype == torch.float32
    assert parameter.dtype == torch.bfloat16
    assert parameter.isfinite().all() and not parameter.equal(before)


def test_a_closure_gives_the_loss():
    parameter = matrix(16, 24, 0)
    optimizer = SOAP([parameter], lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first
