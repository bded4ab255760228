"""Missing values in the target: training, context, forecasts."""

import numpy as np
import torch
from conftest import noisy_sine, with_gaps
from darts.utils.data.torch_datasets.utils import TorchTrainingBatch

from darts_ddssm.window import training_window


def test_missing_values_in_training_and_context(tiny):
    rng = np.random.default_rng(0)
    series = noisy_sine(num_components=2)
    gaps = rng.random((80, 2)) < 0.3
    gaps[-4:] = True
    model = tiny().fit(with_gaps(series, gaps), val_series=with_gaps(series, gaps))
    assert np.isfinite(model.trainer.callback_metrics["val_loss"].item())
    assert np.isfinite(model.predict(6, num_samples=3).all_values()).all()


def test_a_gap_says_nothing(tiny):
    """Windows whose gaps hold different values give one loss."""
    target = torch.randn(4, 12, 2)
    target[:, 5:8] = torch.nan
    batch = TorchTrainingBatch(past_target=target, future_target=torch.randn(4, 6, 2))
    window = training_window(batch, gap=0)
    assert torch.isfinite(window.x).all()
    module = tiny().fit(noisy_sine(num_components=2)).model.eval()
    losses = []
    for value in (0.0, 1e6):
        x = torch.where(window.observed > 0, window.x, value)
        torch.manual_seed(0)
        losses.append(module.negative_elbo(window._replace(x=x), kl_weight=1.0))
    assert losses[0] == losses[1]
