"""From darts' batches to windows."""

import torch
from darts.utils.data.torch_datasets.utils import TorchTrainingBatch

from darts_ddssm.series.batches import training_window
from darts_ddssm.ssm.patches import Patches
from tests.helpers import UNIT_SCALES


def test_past_covariates_act_on_the_next_patch():
    """A patch is told those of the whole patch before it, as far as they are known."""
    past = torch.arange(1.0, 5.0).reshape(1, 4, 1)
    batch = TorchTrainingBatch(
        torch.zeros(1, 4, 1), future_target=torch.zeros(1, 4, 1), past_covariates=past
    )
    folded = Patches(2, 4, 4).fold_window(training_window(batch, 0, 2, UNIT_SCALES))
    # value and flag of each step
    expected = [[0, 0, 0, 0], [1, 1, 2, 1], [3, 1, 4, 1], [0, 0, 0, 0]]
    assert folded.past[0].tolist() == expected
