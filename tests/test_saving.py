"""Saving and loading, checkpoints, weights, finetuning."""

import torch
from conftest import noisy_sine, same

from darts_ddssm import DDSSMModel


def test_validation_and_best_checkpoint(tiny, tmp_path):
    series = noisy_sine()
    arguments = dict(save_checkpoints=True, work_dir=str(tmp_path), model_name="m")
    model = tiny(**arguments).fit(series, val_series=series, load_best=True)
    loaded = DDSSMModel.load_from_checkpoint("m", str(tmp_path), best=True)
    forecasts = [
        m.predict(4, series, num_samples=3, random_state=1) for m in (model, loaded)
    ]
    assert same(*forecasts)


def test_save_and_load(tiny, tmp_path):
    model = tiny().fit(noisy_sine())
    forecast = model.predict(4, num_samples=3, random_state=1)
    path = str(tmp_path / "model.pt")
    model.save(path)
    loaded = DDSSMModel.load(path)
    assert same(forecast, loaded.predict(4, num_samples=3, random_state=1))
    weights = tiny()
    weights.load_weights(path)
    assert same(forecast, weights.predict(4, noisy_sine(), num_samples=3, random_state=1))


def test_forecasts_use_averaged_weights(tiny, tmp_path):
    """With a large step the last weights jump about; the average does not."""
    arguments = dict(
        save_checkpoints=True,
        work_dir=str(tmp_path),
        model_name="m",
        n_epochs=4,
        optimizer_kwargs={"lr": 0.05},
    )
    model = tiny(**arguments).fit(noisy_sine())
    (path,) = (tmp_path / "m" / "checkpoints").glob("last-*")
    checkpoint = torch.load(path, weights_only=False)
    name = "ssm.decoder.bypass.weight"
    average, last = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert not torch.equal(average[name], last[name])
    used = model.model.state_dict()[name]
    torch.testing.assert_close(used, average[name])
