"""Building blocks of the networks."""

import torch

from darts_ddssm.ssm.networks import MLP, frozen


def test_frozen_modules_pass_gradients_and_take_none():
    torch.manual_seed(0)
    network, other = MLP(2, 4, 1), MLP(2, 2, 2)
    network[0].bias.requires_grad_(False)
    x = torch.randn(3, 2)
    with frozen(network):
        network(other(x)).sum().backward()
    assert all(p.grad is None for p in network.parameters())
    assert all(p.grad.any() for p in other.parameters())
    # as they were, also what did not learn before
    learns = [p.requires_grad for p in network.parameters()]
    assert learns == [True, False, True, True]
    network(x).sum().backward()
    assert network[0].weight.grad.any() and network[0].bias.grad is None


def test_frozen_modules_learn_again_after_an_error():
    network = MLP(2, 4, 1)
    try:
        with frozen(network):
            raise RuntimeError
    except RuntimeError:
        pass
    assert all(p.requires_grad for p in network.parameters())
