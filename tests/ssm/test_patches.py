"""Patches: how a window is cut and joined again."""

import pytest
import torch

from darts_ddssm.ssm.patches import Patches
from darts_ddssm.ssm.window import Window


def window_of(num_steps: int, num_components: int = 2) -> Window:
    torch.manual_seed(0)
    x = torch.randn(3, num_steps, num_components)
    weight = torch.rand(3, num_steps, num_components)
    inputs = torch.randn(3, num_steps, 2)
    return Window(x, torch.ones_like(x), inputs, inputs, weight)


@pytest.mark.parametrize("length", [1, 2, 3, 5])
@pytest.mark.parametrize("num_before, num_after", [(12, 6), (7, 4), (7, 0), (0, 5)])
def test_what_is_cut_is_joined_again(length, num_before, num_after):
    patches = Patches(length, num_before, num_after)
    window = window_of(num_before + num_after)
    folded = patches.fold_window(window)
    assert folded.x.shape == (3, patches.before + patches.after, 2 * length)
    # two parameters of each value
    joined = patches.unfold(torch.stack([folded.x, folded.observed], dim=-1))
    assert torch.equal(joined, torch.stack([window.x, window.observed], dim=-1))


def test_a_forecast_starts_with_a_patch():
    """The steps of a patch, by hand: the past ends and the future starts with one."""
    patches = Patches(3, 4, 5)
    steps = torch.arange(1.0, 10.0).reshape(1, 9, 1)
    expected = [[0, 0, 1], [2, 3, 4], [5, 6, 7], [8, 9, 0]]
    assert patches.fold(steps)[0].tolist() == expected
    assert (patches.before, patches.after) == (2, 2)


def test_nothing_is_observed_outside_the_window():
    """There the weight is that of the nearest step: part of a patch weighs as a whole."""
    window = window_of(9, 1)
    folded = Patches(3, 4, 5).fold_window(window)
    assert folded.observed[0].tolist() == [[0, 0, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0]]
    assert (folded.weight[:, 0, :2] == window.weight[:, :1, 0]).all()
    assert (folded.weight[:, -1, 2] == window.weight[:, -1, 0]).all()


def test_a_patch_of_one_step_changes_nothing():
    window = window_of(9)
    folded = Patches(1, 4, 5).fold_window(window)
    assert all(torch.equal(a, b) for a, b in zip(folded, window, strict=True))
