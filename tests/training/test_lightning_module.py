"""The Lightning module in training: clipping, failure, metrics, precision, processes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from darts.utils.data.torch_datasets.utils import TorchTrainingBatch
from darts.utils.serialization import safe_globals
from pytorch_lightning.callbacks import Callback, EarlyStopping
from torchmetrics import MeanAbsoluteError, Metric, MetricCollection

from darts_ddssm import DDSSMModel
from darts_ddssm.series.batches import training_window
from darts_ddssm.ssm.state_space import AFTER_GAP_WEIGHT, StateSpaceModel
from darts_ddssm.ssm.transition import Transition
from darts_ddssm.ssm.window import Window
from darts_ddssm.training.losses import training_loss
from tests.helpers import TRAINER, UNIT_SCALES, noisy_sine


def test_gradient_is_clipped_by_default(tiny):
    norms = []

    class Norm(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(grads).item())

    series = 100 * noisy_sine()
    tiny({"callbacks": [Norm()]}).fit(series)
    assert max(norms) > 1.0
    norms.clear()

    class ClippedNorm(Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            if grads:
                norms.append(torch.nn.utils.get_total_norm(grads).item())

    tiny({"callbacks": [ClippedNorm()]}).fit(series)
    assert max(norms) <= 1.0 + 1e-4
    norms.clear()
    tiny({"callbacks": [ClippedNorm()], "gradient_clip_val": 0}).fit(series)
    assert max(norms) > 1.0


class Break(Callback):
    """Spoil the weights in the third epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            pl_module.ssm.decoder.bypass.weight.data.fill_(torch.nan)


def test_loss_that_becomes_non_finite_stops_training(tiny, tmp_path):
    """The checkpoint saved before the failure still loads and forecasts."""
    arguments = dict(save_checkpoints=True, work_dir=str(tmp_path), model_name="m")
    model = tiny({"callbacks": [Break()]}, n_epochs=5, **arguments)
    series = noisy_sine()
    with pytest.raises(RuntimeError, match="non-finite .* smaller learning rate"):
        model.fit(series, val_series=series)
    with safe_globals([Break]):
        loaded = DDSSMModel.load_from_checkpoint("m", str(tmp_path), best=False)
    assert np.isfinite(loaded.predict(3, series).values()).all()


def test_early_stopping_waits_for_the_validation_loss(tiny):
    stopping = EarlyStopping("val_loss", min_delta=1000.0, patience=1)
    model = tiny({"callbacks": [stopping]}, n_epochs=5)
    model.fit(noisy_sine(), val_series=noisy_sine(seed=1))
    assert model.epochs_trained == 2
    assert np.isfinite(model.predict(3).values()).all()


# --- metrics --------------------------------------------------------------------------


class Pairs(Metric):
    """Record the forecasts and the targets that a metric is given."""

    # darts makes copies of a metric, which share this
    seen = []

    def update(self, preds, target):
        self.seen.append((preds.clone(), target.clone()))

    def compute(self):
        return torch.tensor(0.0)


class Clear(Callback):
    """Keep what the last validation gives."""

    def on_validation_start(self, *args):
        Pairs.seen.clear()


def test_metrics_of_training_and_validation(tiny):
    series, val_series = noisy_sine(), noisy_sine(seed=1)
    logged = []
    for metrics in (MeanAbsoluteError(), MetricCollection([MeanAbsoluteError(), Pairs()])):
        model = tiny({"callbacks": [Clear()]}, torch_metrics=metrics)
        model.fit(series, val_series=val_series)
        logged.append(model.trainer.callback_metrics)
    # what a metric draws does not depend on how many there are
    for name in ("train_MeanAbsoluteError", "val_MeanAbsoluteError"):
        assert logged[0][name] == logged[1][name] > 0
    preds, target = (torch.cat(x) for x in zip(*Pairs.seen, strict=True))
    assert preds.shape == target.shape == (63 * 6, 1)
    error = (preds - target).abs().mean()
    torch.testing.assert_close(logged[1]["val_MeanAbsoluteError"], error)


def test_metrics_see_forecasts_from_the_input_chunk_alone(tiny):
    """Another output chunk gives other errors of the same forecast."""
    one = noisy_sine(18, num_components=2, seed=1)
    values = one.values(copy=True)
    values[12:] += 100
    values[14, 0] = np.nan
    other = one.with_values(values)
    seen = []
    for val_series in (one, other):
        metrics = MetricCollection([Pairs(), MeanAbsoluteError()])
        model = tiny({"callbacks": [Clear()]}, torch_metrics=metrics)
        model.fit(noisy_sine(num_components=2), val_series=val_series)
        (pair,) = Pairs.seen
        seen.append(pair)
    (preds, target), (other_preds, other_target) = seen
    # the step with the missing value is left out
    rows = [0, 1, 3, 4, 5]
    torch.testing.assert_close(other_preds, preds[rows], rtol=0, atol=0)
    torch.testing.assert_close(other_target, target[rows] + 100)
    error = model.trainer.callback_metrics["val_MeanAbsoluteError"]
    torch.testing.assert_close(error, (other_preds - other_target).abs().mean())


# --- precision ------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_precision_of_training(tiny, precision):
    """The forecast follows the sine in the precision of the weights."""
    dtype = np.float64 if precision == "64-true" else np.float32
    series, future = (noisy_sine(92).astype(dtype)[i] for i in (slice(80), slice(80, 92)))
    trainer = {"precision": precision}
    model = tiny(trainer, n_epochs=20, optimizer_kwargs={"lr": 2e-2}).fit(series)
    assert all(
        p.numpy().dtype == dtype for p in map(torch.detach, model.model.parameters())
    )
    forecast = model.predict(12, num_samples=100)
    assert forecast.dtype == dtype
    median = forecast.quantile(0.5).values()[:, 0]
    assert np.corrcoef(median, future.values()[:, 0])[0, 1] > 0.8


# --- gaps -----------------------------------------------------------------------------


def test_a_gap_says_nothing(tiny):
    """Windows whose gaps hold different values give one loss."""
    target = torch.randn(4, 12, 2)
    target[:, 5:8] = torch.nan
    batch = TorchTrainingBatch(past_target=target, future_target=torch.randn(4, 6, 2))
    window = training_window(batch, 0, 1, UNIT_SCALES)
    assert torch.isfinite(window.x).all()
    model = tiny().fit(noisy_sine(num_components=2)).model.series_model
    losses = []
    for value in (0.0, 1e6):
        x = torch.where(window.observed > 0, window.x, value)
        torch.manual_seed(0)
        normalised = model.normalise(window._replace(x=x))
        losses.append(model.negative_elbo(normalised, model.posterior(normalised)))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("gap", [slice(0), slice(5, 8)])
def test_training_alone_weighs_the_kl_of_gaps(tiny, gap):
    """Validation, and a training of complete windows, have the ELBO itself."""
    target = torch.randn(4, 12, 1)
    target[:, gap] = torch.nan
    batch = TorchTrainingBatch(past_target=target, future_target=torch.randn(4, 6, 1))
    # whose KL is exact
    model = tiny(transition="gaussian").fit(noisy_sine()).model.series_model
    normalised = model.normalise(training_window(batch, 0, 1, UNIT_SCALES))
    posterior = model.posterior(normalised)

    def kl_part() -> torch.Tensor:
        losses = [model.negative_elbo(normalised, posterior, w) for w in (0.0, 1.0)]
        return losses[1] - losses[0]

    kl = model.ssm.elbo_terms(*posterior)[1].detach()
    with torch.no_grad():
        torch.testing.assert_close(kl_part(), kl.sum() / 72)
    kl[:, gap] = 0.0
    kl[:, gap.stop] *= AFTER_GAP_WEIGHT if gap.start else 1.0
    torch.testing.assert_close(kl_part(), kl.sum() / 72)


def test_the_transition_tracks_steps_that_teach_it(tiny, monkeypatch):
    """No guesses in gaps, and nothing after the last observation."""
    tracked = []

    def spy(transition, path, weight=None):
        tracked.append(weight)
        assert weight is None or weight.shape == path.z.shape[:2]

    monkeypatch.setattr(Transition, "track_moments", spy)
    model = tiny().fit(noisy_sine()).model.series_model
    assert set(tracked) == {None}
    target = torch.randn(4, 18, 1)
    target[1, 5:8] = torch.nan
    target[2, 14:] = torch.nan
    batch = TorchTrainingBatch(past_target=target[:, :12], future_target=target[:, 12:])
    window = training_window(batch, 0, 1, UNIT_SCALES)
    expected = torch.ones(4, 18)
    expected[1, 5:9] = 0
    expected[2, 14:] = 0
    for observed in (None, window.observed):
        training_loss(model, window, observed, 1.0, 0.0, 0.25, 0.0, 0.0, False)
        assert torch.equal(tracked[-1], expected)
    # hardly a step is observed after another one: guesses count until the last observation
    target[:, ::2] = torch.nan
    window = training_window(batch, 0, 1, UNIT_SCALES)
    training_loss(model, window, window.observed, 1.0, 0.0, 0.25, 0.0, 0.0, False)
    expected[1] = 1
    assert torch.equal(tracked[-1], expected)


@pytest.mark.parametrize("share, rows", [(0, 0), (0.25, 4), (0.75, 12)])
def test_masked_copies_of_a_share_of_each_batch_are_added(tiny, monkeypatch, share, rows):
    seen = []

    def spy(model, window, path, num_encoder_rows, **kwargs):
        hidden = (window.observed == 0).any((1, 2))
        copies, batch = hidden.tensor_split([num_encoder_rows])
        original = window.x.tensor_split([num_encoder_rows])[1]
        assert torch.equal(window.x[:num_encoder_rows], original[:num_encoder_rows])
        seen.append((len(copies), int(copies.sum()), len(batch), int(batch.sum())))
        return elbo_terms(model, window, path, num_encoder_rows, **kwargs)

    elbo_terms = StateSpaceModel.elbo_terms
    monkeypatch.setattr(StateSpaceModel, "elbo_terms", spy)
    # 63 windows: three batches of 16 and one of 15
    tiny(n_epochs=1, batch_size=16, gap_augmentation=share).fit(noisy_sine())
    copies, hidden, batch, hidden_in_batch = zip(*seen, strict=True)
    assert batch == (16, 16, 16, 15)
    assert sum(hidden_in_batch) == 0
    assert copies == (rows,) * 3 + (int(share * 15),)
    # a copy may be lucky and lose nothing
    assert 0.5 * sum(copies) <= sum(hidden) <= sum(copies)


def test_copies_of_windows_with_gaps_are_matched(tiny, monkeypatch):
    """With what is known of them; copies of complete windows have an ELBO."""
    model = tiny().fit(noisy_sine()).model.series_model
    # which takes notice of what it sees
    torch.nn.init.normal_(model.ssm.encoder.out.weight, std=0.02)
    target = torch.randn(64, 18, 1)
    target[1::2, 5] = torch.nan
    batch = TorchTrainingBatch(past_target=target[:, :12], future_target=target[:, 12:])
    window = training_window(batch, 0, 1, UNIT_SCALES)
    copied, matched = [], []

    def elbo_spy(model, window, path, num_encoder_rows, **kwargs):
        copied.append(window.x[:num_encoder_rows])
        return elbo_terms(model, window, path, num_encoder_rows, **kwargs)

    def matching_spy(model, hidden, shown):
        assert (hidden.observed <= shown.observed).all()
        matched.append(shown)
        return posterior_matching(model, hidden, shown)

    elbo_terms = StateSpaceModel.elbo_terms
    posterior_matching = StateSpaceModel.posterior_matching
    monkeypatch.setattr(StateSpaceModel, "elbo_terms", elbo_spy)
    monkeypatch.setattr(StateSpaceModel, "posterior_matching", matching_spy)

    def losses(window: Window, observed: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        return training_loss(model, window, observed, 1.0, 0.0, 0.5, 0.0, 0.0, False)

    for observed in (None, window.observed):
        loss, negative_elbo = losses(window, observed)
        assert torch.equal(copied[-1], model.normalise(window).window.x[:32:2])
        assert torch.equal(matched[-1].observed, window.observed[1:32:2])
        assert loss > negative_elbo
    # a window without a weight teaches nothing
    weight = window.weight.clone()
    weight[1::2] = 0
    loss, negative_elbo = losses(window._replace(weight=weight), window.observed)
    assert loss == negative_elbo and len(matched) == 3
    # all are complete
    losses(window._replace(observed=torch.ones_like(window.observed)), None)
    assert len(copied[-1]) == 32 and len(matched) == 3


# --- several processes ----------------------------------------------------------------


TWO_PROCESSES = """
import sys
import torch
from tests.helpers import TRAINER, noisy_sine
from pytorch_lightning.callbacks import Callback, EarlyStopping
from darts_ddssm import DDSSMModel

folder = sys.argv[1]


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


class Record(Callback):
    def __init__(self):
        self.batches, self.states = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append(batch.past_target)
        self.states.append(state(pl_module))


record = Record()
model = DDSSMModel(
    12,
    6,
    latent_dim=2,
    hidden_size=8,
    n_epochs=2,
    batch_size=8,
    random_state=0,
    optimizer_kwargs={"lr": 0.05},
    pl_trainer_kwargs=TRAINER
    | {"devices": 2, "strategy": "ddp", "callbacks": [record]},
)
model.fit(noisy_sine(), val_series=noisy_sine(seed=1))
rank = model.trainer.global_rank
# each process a file of its own; the first one alone writes the weights
model.save(f"{folder}/model{rank}.pt", clean=True)
record.states.append(state(model.model))
torch.save((record.batches, record.states), f"{folder}/record{rank}.pt")
"""


def run_script(tmp_path: Path, source: str) -> None:
    """Run a script with the folder as its argument."""
    script = tmp_path / "script.py"
    script.write_text(source)
    # of this package, installed or not, and of its tests
    root = str(Path(__file__).parents[2])
    process = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": root},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    """They see different windows and hold the same weights and scales all the time."""
    run_script(tmp_path, TWO_PROCESSES)
    records = [torch.load(tmp_path / f"record{i}.pt") for i in range(2)]
    batches, states = zip(*records, strict=True)
    # 63 windows, 64 with one twice: four updates an epoch, and then the average
    assert [len(x) for x in batches] == [8, 8] and [len(x) for x in states] == [9, 9]
    for one, other in zip(*batches, strict=True):
        assert not torch.equal(one, other)
    for one, other in zip(*states, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    scales = [state["ssm.transition.squared_scale"] for state in states[0][:-1]]
    assert len(torch.stack(scales).unique(dim=0)) == 8
    settings = TRAINER | {"enable_checkpointing": False}
    path = str(tmp_path / "model0.pt")
    loaded = DDSSMModel.load(path, pl_trainer_kwargs=settings)
    average = states[0][-1]
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, average[name])
    name = "ssm.decoder.bypass.weight"
    assert not torch.equal(average[name], states[0][-2][name])
    forecast = loaded.predict(4, noisy_sine(), num_samples=3)
    assert np.isfinite(forecast.all_values()).all()


ONE_RANK_FAILS = """
import sys
import torch
from pytorch_lightning.callbacks import Callback
from darts_ddssm import DDSSMModel
from tests.helpers import TRAINER, noisy_sine


class Break(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and batch_idx == 1:
            batch.future_target.fill_(1e30)


model = DDSSMModel(
    12,
    6,
    latent_dim=2,
    hidden_size=8,
    n_epochs=1,
    batch_size=8,
    random_state=0,
    pl_trainer_kwargs=TRAINER
    | {"devices": 2, "strategy": "ddp", "callbacks": [Break()]},
)
try:
    model.fit(noisy_sine())
except RuntimeError as error:
    open(f"{sys.argv[1]}/rank{model.model.global_rank}", "w").write(str(error))
"""


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_all_processes(tmp_path):
    """And none of them waits for one that has stopped."""
    run_script(tmp_path, ONE_RANK_FAILS)
    for rank in range(2):
        message = (tmp_path / f"rank{rank}").read_text()
        assert message.startswith("The training loss became non-finite")
