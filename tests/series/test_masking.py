"""Random masking of windows."""

import pytest
import torch
from darts.utils.data.torch_datasets.utils import TorchTrainingBatch

from darts_ddssm.series.batches import training_window
from darts_ddssm.series.masking import mask_randomly, num_masked_rows
from darts_ddssm.ssm.window import Window
from tests.helpers import UNIT_SCALES


def test_masked_values_form_gaps():
    """Gaps of many lengths in the first rows; nothing that is missing comes back."""
    torch.manual_seed(0)
    num_rows, num_steps = 600, 24
    target = torch.randn(800, num_steps, 2)
    target[:, 3] = torch.nan
    empty = target[:, :0]
    window = training_window(
        TorchTrainingBatch(target, future_target=empty), 0, 1, UNIT_SCALES
    )
    hidden = mask_randomly(window, num_rows)
    assert torch.equal(hidden.observed[num_rows:], window.observed[num_rows:])
    assert not hidden.observed[:, 3].any()
    assert torch.equal(hidden.x, window.x) and torch.equal(hidden.weight, window.weight)
    seen = hidden.observed[:num_rows, 4:]
    # a quarter on average: half of the values in no row
    assert (1 - seen).mean().item() == pytest.approx(0.25, abs=0.04)
    assert (seen.mean((1, 2)) > 0.9).any() and (seen.mean((1, 2)) < 0.6).any()
    together = (seen[..., 0] == seen[..., 1]).all(1)
    assert 0.4 < together.double().mean() < 0.8
    lengths = set()
    for row in seen[..., 0].tolist():
        runs = "".join("01"[int(value)] for value in row).split("1")
        lengths.update(len(run) for run in runs)
    assert {1, 2, 3, 5, 8, 12} <= lengths


@pytest.mark.parametrize(
    "dtype, num_steps", [(torch.bfloat16, 1023), (torch.float16, 4095)]
)
def test_long_windows_of_half_precision_have_gaps_as_others_do(dtype, num_steps):
    """Steps beyond those that 16 bits tell apart are masked one by one, too."""
    torch.manual_seed(0)
    x = torch.randn(500, num_steps, 1, dtype=dtype)
    window = Window(x, torch.ones_like(x), x[..., :0], x[..., :0], torch.ones_like(x))
    hidden = mask_randomly(window, len(x))
    assert hidden.observed.dtype == dtype
    seen = hidden.observed.double()
    assert (1 - seen).mean().item() == pytest.approx(0.25, abs=0.04)
    # the last steps change as often as the first
    changes = seen.diff(dim=1).abs()
    size = num_steps // 4
    early, late = changes[:, :size].mean().item(), changes[:, -size:].mean().item()
    assert late == pytest.approx(early, rel=0.1)


@pytest.mark.parametrize("num_rows, share", [(1, 0.9), (2, 0.25), (3, 0.25), (5, 0.1)])
def test_share_of_the_rows_holds_in_small_batches(num_rows, share):
    """On average, within five standard errors."""
    torch.manual_seed(0)
    numbers = torch.tensor([num_masked_rows(share, num_rows) for _ in range(2000)]).float()
    assert set(numbers.tolist()) == {0.0, 1.0}
    error = numbers.std() / len(numbers) ** 0.5
    assert (numbers.mean() - share * num_rows).abs() <= 5 * error


@pytest.mark.parametrize(
    "num_rows, share, expected", [(32, 0.25, 8), (15, 0.25, 3), (2, 0.9, 1), (32, 0.0, 0)]
)
def test_share_of_the_rows_is_rounded_down(num_rows, share, expected):
    before = torch.get_rng_state()
    assert num_masked_rows(share, num_rows) == expected
    # nothing is drawn for it
    assert torch.equal(torch.get_rng_state(), before)
