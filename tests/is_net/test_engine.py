"""The two loops: validation against a plain loop, training, its end conditions, and its interruptions."""

from __future__ import annotations

import csv
import errno
import functools
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from IS_Net.checkpoint import load_isnet, load_state, load_weights, read_weights
from IS_Net.data_loader import DISDataset, TrainDataset, ValidDataset, train_loader, valid_loader
from IS_Net.engine import EMA, Progress, Run, StopRequests, Training, fit, format_metrics, predict_maps, validate
from IS_Net.errors import ImageError, MissingExtraError, TrainingError
from IS_Net.hypar import Settings
from IS_Net.images import read_image, read_mask
from IS_Net.losses import side_output_loss
from IS_Net.metrics import MAE, FMeasure
from IS_Net.metrics.fmeasure import device_levels, f_curves
from IS_Net.metrics.mae import device_mae
from IS_Net.metrics.suite import Suite
from IS_Net.models import ISNetDIS, ISNetGTEncoder
from IS_Net.predictor import DISPredictor
from IS_Net.run_log import RunLog
from IS_Net.tasks import GTEncoderTask, SegmentationTask
from tests.thin_networks import Thin, ThinGTEncoder

METRICS = ("max_f_mean_pr", "max_f_mean_curve", "mae")
CPU = torch.device("cpu")
SIZE = (128, 128)


@pytest.fixture
def settings(tmp_path: Path):
    """Return a function that gives checked settings of a short run into a folder of the test."""

    def make(**changes) -> Settings:
        short = {"cache_size": 128, "batch_size_train": 2, "workers": 0, "max_ite": 4, "model_save_fre": 2}
        return Settings.from_hypar({**short, "model_path": str(tmp_path / "run"), "model_digit": "full", **changes})

    return make


@pytest.fixture
def make_run(make_dataset):
    """Return a function that gives what a run on the small data set is trained with."""
    data = DISDataset(make_dataset(), 4, SIZE)

    def make(settings: Settings) -> Run:
        train = TrainDataset([data], settings.seed, settings.random_flip_h, settings.random_flip_v)
        make_loader = functools.partial(train_loader, train, settings.batch_size_train, 0)
        loaders = [valid_loader(ValidDataset(data), settings.batch_size_valid, 0)]
        return Run(settings, CPU, None, loaders, make_loader, RunLog(Path(settings.model_path)))

    return make


class Canned(torch.nn.Module):
    """Stands in for a network in tests that are not about networks: one parameter, logits from the mask channel."""

    in_ch = 4

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor([[1.0]]))

    def predict_logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * (x[:, 3:4] * 8 - 4)

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return [self.predict_logits(x)], []


# --- validation ---


def plain_scores(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Score (map, ground truth) pairs of uint8 with nothing but loops over thresholds."""
    precision, recall, errors = [], [], []
    for alpha, gt in pairs:
        truth = gt > 128
        hits = np.array([(alpha[truth] >= t).sum() for t in range(256)], float)
        found = np.array([(alpha >= t).sum() for t in range(256)], float)
        precision.append(np.divide(hits, found, out=np.zeros(256), where=found > 0))
        recall.append(hits / max(truth.sum(), 1))
        errors.append(np.abs(alpha / 255 - truth).mean())

    def f(p: np.ndarray, r: np.ndarray) -> np.ndarray:
        return np.divide(1.3 * p * r, 0.3 * p + r, out=np.zeros_like(p), where=p * r > 0)

    return {
        "max_f_mean_pr": f(np.mean(precision, 0), np.mean(recall, 0)).max(),
        "max_f_mean_curve": np.mean([f(p, r) for p, r in zip(precision, recall, strict=True)], 0).max(),
        "mae": np.mean(errors),
    }


@pytest.mark.parametrize("batch_size", [2, 50])
def test_validation_scores_the_maps_that_it_saves_at_any_batch_size(
    make_dataset, isnet, settings, tmp_path, batch_size
):
    data = DISDataset(make_dataset(), 4, SIZE)
    task = SegmentationTask(isnet, None, settings())
    found = validate(task, valid_loader(ValidDataset(data), batch_size, 0), CPU, None, tmp_path / "maps")

    maps = sorted((tmp_path / "maps" / "tiny").iterdir())
    assert [path.name for path in maps] == ["ring_0.png", "ring_1.png", "ring_2.png"]
    saved = [(read_mask(path), read_mask(sample.gt)) for path, sample in zip(maps, data.samples, strict=True)]
    assert found == pytest.approx(plain_scores(saved), abs=1e-9)

    predictor = DISPredictor(isnet, "cpu", "full", SIZE)
    for (alpha, _), sample in zip(saved, data.samples, strict=True):
        again = predictor.predict(read_image(sample.image), read_mask(sample.mask))
        # folding BatchNorm may change the rounding to steps of 1/255
        assert np.abs(again * 255 - alpha).max() < 0.51


def test_validation_gives_the_figures_of_the_full_suite(make_dataset, isnet, settings):
    data = DISDataset(make_dataset(), 4, SIZE)
    arguments = SegmentationTask(isnet, None, settings()), valid_loader(ValidDataset(data), 2, 0), CPU, None
    found, suite = validate(*arguments), Suite()
    for _, alpha, gt in predict_maps(*arguments):
        suite.update(alpha.numpy(), gt.numpy())
    assert found.keys() == set(METRICS)
    assert found == {key: suite.compute()[key] for key in METRICS}


def test_metrics_on_a_device_are_those_of_the_full_suite(make_dataset, isnet, settings):
    """These are the steps of a validation on a GPU; they run on the CPU too."""
    data = DISDataset(make_dataset(), 4, SIZE)
    arguments = SegmentationTask(isnet, None, settings()), valid_loader(ValidDataset(data), 2, 0), CPU, None
    f_measure, mae, suite = FMeasure(), MAE(), Suite()
    for _, alpha, gt in predict_maps(*arguments):
        f_measure.add(f_curves(device_levels(alpha, gt)))
        mae.add(device_mae(alpha, gt))
        suite.update(alpha.numpy(), gt.numpy())
    found = f_measure.compute() | mae.compute()
    assert found == pytest.approx({key: suite.compute()[key] for key in METRICS}, abs=1e-12)


def test_passes_are_those_of_the_predictor(make_dataset, isnet, settings):
    data = DISDataset(make_dataset(), 4, SIZE)
    predictor = DISPredictor(isnet, "cpu", "full", SIZE)
    task, maps = SegmentationTask(isnet, None, settings()), {}
    for passes in (1, 2):
        found = predict_maps(task, valid_loader(ValidDataset(data), 2, 0), CPU, None, passes=passes)
        for (name, alpha, _), sample in zip(found, data.samples, strict=True):
            expected = predictor.predict(read_image(sample.image), read_mask(sample.mask), passes=passes)
            assert np.abs(alpha.numpy() - expected * 255).max() <= 1.01
            maps[name, passes] = alpha.numpy()
    assert any(not np.array_equal(maps[name, 1], maps[name, 2]) for name, _ in maps)


def test_validation_writes_maps_only_if_requested_and_keeps_the_mode(make_dataset, isnet, settings, tmp_path):
    data = DISDataset(make_dataset(cache=False), 4, SIZE)
    task = SegmentationTask(isnet, None, settings())
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    validate(task, valid_loader(ValidDataset(data), 3, 0), CPU, None)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not isnet.training


def test_photographs_without_ground_truth_give_maps_and_no_scores(make_dataset, settings, tmp_path):
    data = DISDataset(make_dataset() | {"gt_dir": ""}, 4, SIZE, need_gt=False)
    task = SegmentationTask(Canned(), None, settings())
    scores = validate(task, valid_loader(ValidDataset(data), 2, 0), CPU, None, tmp_path / "maps")
    assert all(np.isnan(value) for value in scores.values())
    for sample in data.samples:
        assert read_mask(tmp_path / "maps" / "tiny" / f"{sample.name}.png").shape == read_mask(sample.mask).shape


def test_a_map_that_cannot_be_written_is_an_error(make_dataset, settings, tmp_path):
    (tmp_path / "maps").write_text("a file where a folder should be")
    data = DISDataset(make_dataset(), 4, SIZE)
    with pytest.raises(OSError, match="maps"):
        task = SegmentationTask(Canned(), None, settings())
        validate(task, valid_loader(ValidDataset(data), 2, 0), CPU, None, tmp_path / "maps")


def test_metrics_are_formatted_in_one_line():
    metrics = {"max_f_mean_pr": 0.91234, "max_f_mean_curve": 0.9, "mae": 0.03456}
    assert format_metrics(metrics) == "max F 0.9123 (mean precision and recall), 0.9000 (mean curve), MAE 0.0346"


# --- progress ---


def test_the_best_is_the_highest_f_and_ties_go_to_the_lower_mae():
    progress = Progress()
    results = [(0.5, 0.20), (0.6, 0.30), (0.6, 0.10), (0.6, 0.10), (0.4, 0.05)]
    best = [progress.record({"max_f_mean_pr": f, "mae": mae}) for f, mae in results]
    assert best == [True, True, True, False, False]
    assert (progress.best_f, progress.best_mae) == (0.6, 0.10)


def test_an_improvement_of_either_metric_resets_the_patience():
    progress = Progress()
    results = [(0.5, 0.2), (0.4, 0.1), (0.4, 0.3), (0.6, 0.3), (0.1, 0.3), (0.1, 0.3)]
    counts = []
    for f, mae in results:
        progress.record({"max_f_mean_pr": f, "mae": mae})
        counts.append(progress.patience_count)
    assert counts == [0, 0, 1, 0, 1, 2]


# --- end conditions ---


def test_a_run_ends_at_max_ite_validated_and_saved(make_run, settings):
    chosen = settings(max_ite=3)
    progress = fit(SegmentationTask(Canned(), None, chosen), make_run(chosen))
    assert (progress.done, progress.iteration, progress.batch) == ("max_ite", 3, 3)
    folder = Path(chosen.model_path)
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["iteration"] for row in rows] == ["2", "3"]
    assert load_state(folder / "last.pt")["progress"]["iteration"] == 3
    weights, metadata = read_weights(folder / "best.safetensors")
    assert set(weights) == {"gain"} and metadata["input_size"] == [128, 128]
    assert metadata["metrics"]["max_f_mean_pr"] == pytest.approx(progress.best_f)
    assert list((folder / "tensorboard").iterdir())


def test_a_run_ends_after_max_epoch_num(make_run, settings):
    chosen = settings(max_ite=1000, max_epoch_num=2, model_save_fre=100)
    progress = fit(SegmentationTask(Canned(), None, chosen), make_run(chosen))
    assert (progress.done, progress.iteration) == ("max_epoch_num", 4)  # 3 samples in batches of 2


def test_a_run_stops_early(make_run, settings):
    chosen = settings(max_ite=1000, early_stop=3, model_save_fre=1, lr=0.0)
    progress = fit(SegmentationTask(Canned(), None, chosen), make_run(chosen))
    assert (progress.done, progress.iteration) == ("early_stop", 4)


def test_a_run_ends_after_max_minutes_validated_and_resumes(make_run, settings):
    chosen = settings(max_ite=1000, model_save_fre=1000, max_minutes=5.0)
    run = make_run(chosen)
    make_loader = run.make_train_loader

    def make_late_loader(start: int) -> DataLoader:
        loader = make_loader(start)

        class Late(InterruptedLoader):
            def __iter__(self):
                for number, batch in enumerate(self.loader):
                    if number == 3:
                        run.started -= 5 * 60
                    yield batch

        return Late(loader, after=-1)

    run.make_train_loader = make_late_loader
    progress = fit(SegmentationTask(Canned(), None, chosen), run)
    assert (progress.done, progress.iteration, progress.validated) == ("max_minutes", 4, 4)
    assert progress.unfinished and not progress.interrupted
    state = load_state(Path(chosen.model_path) / "last.pt")
    longer = settings(max_ite=6, max_minutes=5.0)
    again = fit(SegmentationTask(Canned(), None, longer), make_run(longer), state)
    assert (again.done, again.iteration) == ("max_ite", 6)


def test_a_run_saves_every_save_minutes_without_validating(make_run, settings, monkeypatch):
    clock, events = [0.0], []
    monkeypatch.setattr("IS_Net.engine.time.monotonic", lambda: clock[0])

    def step(training: Training, *args, original=Training.step) -> None:
        original(training, *args)
        clock[0] += 50  # seconds

    def logged(name: str, original):
        return lambda training, *args: (events.append((name, training.progress.iteration)), original(training, *args))

    monkeypatch.setattr(Training, "step", step)
    monkeypatch.setattr(Training, "save", logged("save", Training.save))
    monkeypatch.setattr(Training, "validate", logged("validate", Training.validate))
    chosen = settings(max_ite=8, model_save_fre=1000, save_minutes=2.0)
    fit(SegmentationTask(Canned(), None, chosen), make_run(chosen))
    assert [event for event in events if event[1] < 8] == [("save", 3), ("save", 6)]  # the first one after 120 s
    assert events[-1] == ("save", 8) and events.count(("validate", 8)) == 1


def test_a_compiled_network_trains_alike(make_run, settings, monkeypatch, tmp_path):
    """Compiled by a backend that changes nothing, a run gives the same weights; their names do not change."""
    compiled = []

    def compile_module(module: torch.nn.Module) -> None:
        compiled.append(module)
        module._compiled_call_impl = torch.compile(module._call_impl, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_module)
    outcome = []
    for number, choice in enumerate((False, True)):
        chosen = settings(max_ite=2, lr=0.1, ema=0.5, compile=choice, model_path=str(tmp_path / str(number)))
        model = Canned()
        fit(SegmentationTask(model, None, chosen), make_run(chosen))
        assert compiled == [model] * choice
        outcome.append(read_weights(tmp_path / str(number) / "last.pt")[0])
    assert outcome[0].keys() == outcome[1].keys()
    assert torch.allclose(outcome[0]["gain"], outcome[1]["gain"])


def test_a_run_that_recomputes_gives_the_same_weights(make_run, settings, tmp_path):
    outcome = []
    for recompute in (False, True):
        path = str(tmp_path / str(recompute))
        chosen = settings(max_ite=2, gt_encoder_max_ite=2, lr=1e-3, ema=0.5, recompute=recompute, model_path=path)
        torch.manual_seed(0)
        model, gt_encoder = Thin(), ThinGTEncoder()
        fit(GTEncoderTask(gt_encoder, chosen), make_run(chosen))
        fit(SegmentationTask(model, gt_encoder, chosen), make_run(chosen))
        assert model.recompute == gt_encoder.recompute == recompute
        state = load_state(Path(path) / "last.pt")
        outcome.append({**state["model"], **{f"ema.{name}": tensor for name, tensor in state["ema_model"].items()}})
    for name, expected in outcome[0].items():
        torch.testing.assert_close(outcome[1][name], expected, rtol=1e-4, atol=1e-6)


def test_the_gt_encoder_stops_above_its_max_f(make_run, settings):
    chosen = settings(gt_encoder_stop_f=0.0, gt_encoder_max_ite=50, model_save_fre=1)
    progress = fit(GTEncoderTask(ISNetGTEncoder(), chosen), make_run(chosen))
    assert (progress.done, progress.iteration) == ("stop_f", 1)
    load_weights(ISNetGTEncoder(), Path(chosen.model_path) / "gt_encoder.safetensors")


def test_start_ite_numbers_the_iterations(make_run, settings):
    chosen = settings(start_ite=100, max_ite=102)
    progress = fit(SegmentationTask(Canned(), None, chosen), make_run(chosen))
    assert (progress.iteration, progress.batch) == (102, 2)


def test_a_loss_that_is_not_finite_is_an_error_and_spoils_no_checkpoint(make_run, settings):
    chosen = settings(max_ite=20, model_save_fre=4)
    model = Canned()
    run = make_run(chosen)
    fit(SegmentationTask(model, None, settings(max_ite=4, model_save_fre=4)), run)
    good = (Path(chosen.model_path) / "best.safetensors").read_bytes()
    with torch.no_grad():
        model.gain.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"not finite at iteration 1, batch 0 \(tiny/"):
        fit(SegmentationTask(model, None, chosen), run)
    assert (Path(chosen.model_path) / "best.safetensors").read_bytes() == good


class InterruptedLoader:
    """A loader that presses Ctrl-C during batch number ``after``."""

    def __init__(self, loader: DataLoader, after: int, signal_number: int = signal.SIGINT) -> None:
        self.loader, self.after, self.signal_number = loader, after, signal_number
        self.batch_sampler, self.dataset = loader.batch_sampler, loader.dataset

    def __iter__(self):
        for number, batch in enumerate(self.loader, start=1):
            if number == self.after:
                signal.raise_signal(self.signal_number)
            yield batch


class FailingLoader(InterruptedLoader):
    """A loader that raises an error instead of batch number ``after``."""

    def __init__(self, loader: DataLoader, after: int, error: Exception) -> None:
        super().__init__(loader, after)
        self.error = error

    def __iter__(self):
        for number, batch in enumerate(self.loader, start=1):
            if number == self.after:
                raise self.error
            yield batch


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), r"process that loads data ended.*workers=0"),
        (RuntimeError("DataLoader timed out after 600 seconds"), "no batch arrived in 10 minutes.*loader_minutes"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory; reduce batch_size"),
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            r"out of memory; reduce batch_size_train \(2\).* set model_digit to 'half' or recompute to True",
        ),
        (MemoryError(), "out of memory"),
        (
            ImageError("Caught ImageError in DataLoader worker 0.\nTraceback ..\nImageError: a.png: is damaged"),
            "iteration 3: a.png: is damaged. The training is saved",
        ),
    ],
    ids=["worker", "timeout", "memory", "cuda", "memory error", "image"],
)
def test_a_failure_of_memory_or_data_is_saved_and_named(make_run, settings, error, message):
    """A worker that dies loses no iteration (row 4d of the list of faults), nor does missing memory (row 48)."""
    chosen = settings(max_ite=100, model_save_fre=50)
    run = make_run(chosen)
    make_loader = run.make_train_loader
    run.make_train_loader = lambda start: FailingLoader(make_loader(start), 3, error)
    with pytest.raises(TrainingError, match=message) as raised:
        fit(SegmentationTask(Canned(), None, chosen), run)
    assert "Traceback" not in str(raised.value)
    assert load_state(Path(chosen.model_path) / "last.pt")["progress"]["iteration"] == 2


def test_another_error_of_a_step_is_not_hidden(make_run, settings):
    run = make_run(settings())
    make_loader = run.make_train_loader
    run.make_train_loader = lambda start: FailingLoader(make_loader(start), 2, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match=r"^shapes do not match$"):
        fit(SegmentationTask(Canned(), None, settings()), run)


def spoil_gradient(model: Canned, step: int) -> None:
    """Make the gradient of a network infinite at a step, counted from 1; the loss stays finite."""
    calls = []

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * float("inf") if len(calls) == step else gradient

    model.gain.register_hook(hook)


def test_an_infinite_gradient_never_reaches_the_weights(make_run, settings):
    """A NaN gradient in the step before a save (row 44 of the list of faults)."""
    chosen = settings(max_ite=8, model_save_fre=4, ema=0.5)
    model = Canned()
    spoil_gradient(model, 8)
    with pytest.raises(TrainingError, match=r"not finite at iteration 8, batch 7 \(tiny/"):
        fit(SegmentationTask(model, None, chosen), make_run(chosen))
    assert torch.isfinite(model.gain).all()
    state = load_state(Path(chosen.model_path) / "last.pt")
    assert state["progress"]["iteration"] == 4 and torch.isfinite(state["model"]["gain"]).all()


def test_an_infinite_gradient_is_skipped_if_so_set(make_run, settings, caplog):
    chosen = settings(max_ite=6, model_save_fre=3, on_nonfinite="skip")
    model, seen = Canned(), []
    spoil_gradient(model, 2)
    run = make_run(chosen)
    training = Training(SegmentationTask(model, None, chosen), run)
    batches = iter(run.make_train_loader(0))
    for _ in range(3):
        training.step(batches)
        seen.append(model.gain.item())
    assert seen[0] == seen[1] != seen[2]
    training.save()
    assert "not finite at iteration 2, batch 1" in caplog.text and "1 iterations were skipped" in caplog.text
    assert load_state(Path(chosen.model_path) / "last.pt")["progress"]["iteration"] == 3


def test_the_message_names_the_samples_of_all_batches_of_an_iteration(make_run, settings):
    chosen = settings(max_ite=4, model_save_fre=4, batch_size_train=1, accumulation=3)
    model, run = Canned(), make_run(chosen)
    spoil_gradient(model, 5)  # the second of the batches 3 to 5
    with pytest.raises(TrainingError, match=r"not finite at iteration 2, batches 3 to 5 \(") as raised:
        fit(SegmentationTask(model, None, chosen), run)
    loader = run.make_train_loader(0)
    names = [loader.dataset.names(loader.batch_sampler.batch(number))[0] for number in (3, 4, 5)]
    assert f"({', '.join(names)})" in str(raised.value) and len(set(names)) == 3


@pytest.mark.parametrize("finite_loss", [False, True])
def test_an_overflow_of_the_forward_pass_leaves_weights_and_statistics_as_they_are(make_run, settings, finite_loss):
    """Also if BatchNorm turns values whose variance overflows into zeros, so that the loss is finite."""
    chosen = settings(max_ite=4, model_save_fre=4, on_nonfinite="skip", ema=0.5)
    model, run, seen = small(), make_run(chosen), []
    training = Training(SegmentationTask(model, None, chosen), run)
    batches = iter(run.make_train_loader(0))
    for step in range(3):
        hook = model.conv_in.register_forward_hook(
            lambda _layer, _inputs, out, step=step: out * (1.0 if step != 1 else 1e30 if finite_loss else float("inf"))
        )
        training.step(batches)
        hook.remove()
        floats = {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        seen.append(floats)
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])
    assert all(torch.isfinite(tensor).all() for tensor in seen[2].values())
    assert not torch.equal(seen[1]["bn.running_var"], seen[2]["bn.running_var"])
    assert all(torch.isfinite(tensor).all() for tensor in training.ema_model.state_dict().values())
    training.save()
    assert load_state(Path(chosen.model_path) / "last.pt")["progress"]["iteration"] == 3


def test_weights_that_are_not_finite_are_not_saved(make_run, settings):
    """A learning rate of 1e30 (row 44 of the list of faults)."""
    chosen = settings()
    training = Training(SegmentationTask(Canned(), None, chosen), make_run(chosen))
    training.save()
    before = (Path(chosen.model_path) / "last.pt").read_bytes()
    with torch.no_grad():
        training.task.model.gain.fill_(float("inf"))
    with pytest.raises(TrainingError, match="the weights are not finite"):
        training.save()
    assert (Path(chosen.model_path) / "last.pt").read_bytes() == before


def test_a_state_is_saved_before_it_is_validated(make_run, settings, monkeypatch):
    """A validation that fails loses no iteration (row 5 of the list of faults)."""
    chosen = settings(max_ite=4, model_save_fre=4)

    def fail(*_arguments, **_options):
        raise ImageError("x.png: is damaged")

    monkeypatch.setattr("IS_Net.engine.validate", fail)
    with pytest.raises(TrainingError):
        fit(SegmentationTask(Canned(), None, chosen), make_run(chosen))
    assert load_state(Path(chosen.model_path) / "last.pt")["progress"]["iteration"] == 4


@pytest.mark.parametrize("at", ["period", "end", "resumed"])
def test_a_file_that_became_unreadable_is_named_by_the_validation(make_run, settings, monkeypatch, at):
    """At each of the three places where a training is validated, with a worker, whose error holds a traceback."""
    chosen = settings(max_ite=3 if at == "end" else 4, model_save_fre=100 if at == "end" else 4)
    iteration, (run, valid) = chosen.max_ite, (make_run(chosen), Training.validate)
    dataset = run.valid_loaders[0].dataset
    run.valid_loaders = [valid_loader(dataset, 2, workers=1)]
    image = dataset.dataset.samples[1].image

    def validate_damaged(training: Training, stop: StopRequests | None = None) -> None:
        image.write_bytes(b"x")
        dataset.dataset._cache = None
        valid(training, stop)

    monkeypatch.setattr(Training, "validate", validate_damaged)
    state = None
    if at == "resumed":
        interrupted = make_run(chosen)
        Training(SegmentationTask(Canned(), None, chosen), interrupted).save()
        state = load_state(Path(chosen.model_path) / "last.pt")
        state["progress"]["iteration"] = 4
    message = rf"^segmentation, validation at iteration {iteration}: {image}: cannot be read.*restore_model=last\.pt"
    with pytest.raises(TrainingError, match=message) as raised:
        fit(SegmentationTask(Canned(), None, chosen), run, state)
    assert raised.value.exit_code == 1 and "Traceback" not in str(raised.value)
    if at != "resumed":
        assert load_state(Path(chosen.model_path) / "last.pt")["progress"]["iteration"] == iteration


def test_missing_memory_in_a_validation_names_its_batch_size(make_run, settings, monkeypatch):
    chosen = settings(max_ite=2, model_save_fre=2, batch_size_valid=3)

    def fail(*_arguments: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    model = Canned()
    model.forward = lambda x: ([model.gain * (x[:, 3:4] * 8 - 4)], [])
    model.predict_logits = fail
    with pytest.raises(TrainingError, match=r"out of memory; reduce batch_size_valid \(3\)") as raised:
        fit(SegmentationTask(model, None, chosen), make_run(chosen))
    assert "batch_size_train" not in str(raised.value) and "recompute" not in str(raised.value)
    assert load_state(Path(chosen.model_path) / "last.pt")["progress"]["iteration"] == 2


def test_another_error_of_a_validation_is_not_hidden(make_run, settings, monkeypatch):
    def fail(*_arguments, **_options):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("IS_Net.engine.validate", fail)
    with pytest.raises(RuntimeError, match=r"^shapes do not match$"):
        fit(SegmentationTask(Canned(), None, settings()), make_run(settings()))


@pytest.mark.parametrize("file", ["last.pt", "metrics.csv", "curves"])
def test_a_full_disk_keeps_the_former_state_and_is_named(make_run, settings, monkeypatch, file, caplog):
    """Row 23 of the list of faults."""
    chosen = settings(max_ite=4, model_save_fre=2)
    folder = Path(chosen.model_path)
    run = make_run(chosen)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*_arguments, **_options):
        raise full

    fit(SegmentationTask(Canned(), None, settings(max_ite=2, model_save_fre=2)), run)
    before, state = (folder / "last.pt").read_bytes(), load_state(folder / "last.pt")
    if file == "curves":
        monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", fail)
        assert fit(SegmentationTask(Canned(), None, chosen), run, state).done == "max_ite"
        assert caplog.text.count("curves are no longer written: [Errno 28]") == 1
        return
    monkeypatch.setattr("csv.DictWriter.writerow" if file == "metrics.csv" else "os.fsync", fail)
    run.log.begin = lambda *_: None  # it writes, too
    with pytest.raises(TrainingError, match=rf"No space left on device.*{file}.*restore_model=last\.pt resumes"):
        fit(SegmentationTask(Canned(), None, chosen), run, state)
    if file == "last.pt":
        assert (folder / "last.pt").read_bytes() == before
    assert load_state(folder / "last.pt")["progress"]["iteration"] == (2 if file == "last.pt" else 4)


def test_a_disk_that_is_full_from_the_start(make_run, settings, monkeypatch):
    chosen = settings(max_ite=2, model_save_fre=2)
    run = make_run(chosen)

    def fail(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", fail)
    run.log.begin = lambda *_: None  # it writes, too
    with pytest.raises(TrainingError, match=r"No space left on device.* Nothing had been saved before"):
        fit(SegmentationTask(Canned(), None, chosen), run)


@pytest.mark.parametrize("limit", [4, 5])
def test_a_request_during_a_validation_is_answered_and_the_validation_repeated(make_run, settings, tmp_path, limit):
    """Ctrl-C during the validation of thousands of images (row 32 of the list of faults)."""

    def rows(folder: str) -> list[dict]:
        with (tmp_path / folder / "metrics.csv").open() as file:
            return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]

    def start(folder: str) -> tuple[SegmentationTask, Run]:
        chosen = settings(model_path=str(tmp_path / folder), max_ite=limit, model_save_fre=4)
        return SegmentationTask(Canned(), None, chosen), make_run(chosen)

    fit(*start("whole"))
    task, run = start("stopped")
    run.valid_loaders = [InterruptedLoader(run.valid_loaders[0], 2)]
    progress = fit(task, run)
    assert (progress.done, progress.iteration, progress.validated) == ("interrupted", 4, -1)
    state = load_state(tmp_path / "stopped" / "last.pt")
    task, run = start("stopped")
    task.model.load_state_dict(state["model"])
    assert fit(task, run, state).done == "max_ite"
    assert rows("stopped") == rows("whole")
    ends = [load_state(tmp_path / folder / "last.pt") for folder in ("whole", "stopped")]
    assert ends[0]["progress"] == ends[1]["progress"] and torch.equal(*(end["model"]["gain"] for end in ends))


def test_a_request_during_the_last_save_of_a_phase_ends_the_run(make_run, settings, monkeypatch):
    """Ctrl-C or SIGTERM at the seam of the two phases (row 45 of the list of faults)."""
    chosen = settings(gt_encoder_max_ite=2)
    save = Training.save

    def save_and_stop(training: Training) -> None:
        save(training)
        if training.progress.done == "max_ite":
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Training, "save", save_and_stop)
    progress = fit(SegmentationTask(Canned(), None, settings(max_ite=2)), make_run(chosen))
    assert progress.done == "terminated" and progress.unfinished
    assert load_state(Path(chosen.model_path) / "last.pt")["progress"]["done"] == "max_ite"


def test_a_torn_line_of_the_metrics_does_not_keep_a_run_from_resuming(make_run, settings, caplog):
    """The file system lost the end of metrics.csv (row 51 of the list of faults)."""
    chosen = settings(max_ite=4)
    fit(SegmentationTask(Canned(), None, chosen), make_run(chosen))
    path = Path(chosen.model_path) / "metrics.csv"
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[1][:-3])
    fit(SegmentationTask(Canned(), None, chosen), make_run(chosen), load_state(path.with_name("last.pt")))
    assert path.read_text() == whole
    assert "1 incomplete lines are removed" in caplog.text


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_is_answered_between_iterations(make_run, settings, signal_number):
    chosen = settings(max_ite=1000, model_save_fre=500)
    run = make_run(chosen)
    make_loader = run.make_train_loader
    run.make_train_loader = lambda start: InterruptedLoader(make_loader(start), 5, signal_number)
    handler = signal.getsignal(signal_number)
    progress = fit(SegmentationTask(Canned(), None, chosen), run)
    expected = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[signal_number]
    assert (progress.done, progress.iteration) == (expected, 5)
    assert load_state(Path(chosen.model_path) / "last.pt")["progress"]["iteration"] == 5
    assert not (Path(chosen.model_path) / "metrics.csv").exists()
    assert signal.getsignal(signal_number) is handler


def test_a_signal_during_the_exchange_of_requests_is_not_lost(monkeypatch: pytest.MonkeyPatch):
    """All processes may get it there: then nobody would stop."""

    def exchange(number: int) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return number

    with StopRequests() as requests:
        monkeypatch.setattr("IS_Net.distributed.highest", exchange)
        assert requests.agree() == ""
        monkeypatch.setattr("IS_Net.distributed.highest", lambda number: number)
        assert requests.agree() == "terminated"


def test_a_second_request_stops_at_once(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(KeyboardInterrupt), StopRequests() as requests:
        signal.raise_signal(signal.SIGINT)
        assert requests.reason == "interrupted"
        monkeypatch.setattr(StopRequests, "REPEAT_SECONDS", -1.0)
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_is_passed_on_by_another_process_is_one_request(monkeypatch: pytest.MonkeyPatch):
    """The recipes pass SIGTERM on to their trainings, which may have it from the cluster already."""
    monkeypatch.setattr(StopRequests, "REPEAT_SECONDS", 60.0)
    with StopRequests() as requests:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert requests.reason == "terminated"


# --- resuming ---


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(make_run, settings, tmp_path):
    def start(folder: str) -> tuple[GTEncoderTask, Run]:
        chosen = settings(model_path=str(tmp_path / folder), gt_encoder_max_ite=5, model_save_fre=2, accumulation=2)
        torch.manual_seed(0)
        return GTEncoderTask(ThinGTEncoder(), chosen), make_run(chosen)

    def outcome(folder: str) -> tuple[dict, list[dict]]:
        with (tmp_path / folder / "metrics.csv").open() as file:
            rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
        return read_weights(tmp_path / folder / "last.pt")[0], rows

    fit(*start("whole"))

    task, run = start("resumed")
    make_loader = run.make_train_loader
    run.make_train_loader = lambda first: InterruptedLoader(make_loader(first), after=6)
    assert fit(task, run).done == "interrupted"
    # what a run that was killed later would have logged is removed
    run.log.validation({"phase": "gt_encoder", "iteration": 4, "data_set": "gone", **dict.fromkeys(METRICS, 0)})
    state = load_state(tmp_path / "resumed" / "last.pt")
    task, run = start("resumed")
    task.model.load_state_dict(state["model"])
    fit(task, run, state)

    (whole, whole_rows), (resumed, resumed_rows) = outcome("whole"), outcome("resumed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert whole_rows == resumed_rows and len(whole_rows) == 3


def test_a_finished_run_does_nothing_until_its_limit_is_raised(make_run, settings):
    chosen = settings(max_ite=4)
    fit(SegmentationTask(Canned(), None, chosen), make_run(chosen))
    path = Path(chosen.model_path) / "last.pt"
    again = fit(SegmentationTask(Canned(), None, chosen), make_run(chosen), load_state(path))
    assert (again.done, again.iteration) == ("max_ite", 4)
    longer = settings(max_ite=7)
    again = fit(SegmentationTask(Canned(), None, longer), make_run(longer), load_state(path))
    assert (again.done, again.iteration) == ("max_ite", 7)


def test_an_interrupted_run_that_is_resumed_at_its_limit_is_validated(make_run, settings):
    chosen = settings(max_ite=100, model_save_fre=50)
    run = make_run(chosen)
    make_loader = run.make_train_loader
    run.make_train_loader = lambda start: InterruptedLoader(make_loader(start), 3)
    fit(SegmentationTask(Canned(), None, chosen), run)
    folder = Path(chosen.model_path)
    assert not (folder / "best.safetensors").exists()
    over = settings(max_ite=3, model_save_fre=50)
    progress = fit(SegmentationTask(Canned(), None, over), make_run(over), load_state(folder / "last.pt"))
    assert (progress.done, progress.iteration, progress.validated) == ("max_ite", 3, 3)
    assert (folder / "best.safetensors").exists()


def test_the_patience_may_be_raised(make_run, settings):
    chosen = settings(max_ite=1000, early_stop=2, model_save_fre=1, lr=0.0)
    fit(SegmentationTask(Canned(), None, chosen), make_run(chosen))
    state = load_state(Path(chosen.model_path) / "last.pt")
    assert (state["progress"]["done"], state["progress"]["iteration"]) == ("early_stop", 3)
    again = fit(SegmentationTask(Canned(), None, chosen), make_run(chosen), state)
    assert (again.done, again.iteration) == ("early_stop", 3)
    patient = settings(max_ite=1000, early_stop=4, model_save_fre=1, lr=0.0)
    again = fit(SegmentationTask(Canned(), None, patient), make_run(patient), state)
    assert (again.done, again.iteration) == ("early_stop", 5)


def test_a_resumed_run_uses_the_current_learning_rate(make_run, settings):
    chosen = settings(max_ite=2, lr=0.0)
    fit(SegmentationTask(Canned(), None, chosen), make_run(chosen))
    state = load_state(Path(chosen.model_path) / "last.pt")
    model, faster = Canned(), settings(max_ite=4, lr=0.5)
    model.load_state_dict(state["model"])
    assert model.gain.item() == 1
    fit(SegmentationTask(model, None, faster), make_run(faster), state)
    assert abs(model.gain.item() - 1) > 0.1


def test_another_batch_size_resumes_at_the_same_fraction_of_the_epoch(make_run, settings):
    chosen = settings(batch_size_train=1, max_ite=5)  # 3 batches an epoch: in the second one
    fit(SegmentationTask(Canned(), None, chosen), make_run(chosen))
    state = load_state(Path(chosen.model_path) / "last.pt")
    larger = settings(batch_size_train=3, max_ite=5)
    progress = fit(SegmentationTask(Canned(), None, larger), make_run(larger), state)
    assert (progress.epoch, progress.batch) == (1, 1)


def test_a_diverged_network_is_not_saved_when_the_run_is_stopped(make_run, settings):
    chosen = settings(max_ite=100, model_save_fre=3)
    model, run = Canned(), make_run(chosen)
    make_loader = run.make_train_loader
    model.gain.register_hook(lambda grad: grad * (float("nan") if run.folder.joinpath("last.pt").exists() else 1))
    run.make_train_loader = lambda start: InterruptedLoader(make_loader(start), 5)
    with pytest.raises(TrainingError):
        fit(SegmentationTask(model, None, chosen), run)
    state = load_state(Path(chosen.model_path) / "last.pt")
    assert state["progress"]["iteration"] == 3 and state["model"]["gain"].isfinite().all()


def test_accumulated_batches_are_one_step_of_their_mean(make_run, settings):
    """Two accumulated batches give the gradient of one batch of both, for a loss that is a mean over samples."""
    moved = []
    for batch_size, accumulation in ((4, 1), (2, 2)):
        chosen = settings(
            batch_size_train=batch_size,
            accumulation=accumulation,
            max_ite=1,
            orthogonal_weight=0.0,
            random_flip_h=False,
            random_flip_v=False,
            weight_decay=0.0,
        )
        model, run = Canned(), make_run(chosen)
        planes = torch.from_numpy(np.stack([run.make_train_loader(0).dataset.dataset[i % 3] for i in range(4)]))
        loader = InterruptedLoader(run.make_train_loader(0), after=-1)
        loader.loader = planes.split(batch_size)
        run.make_train_loader = lambda start, loader=loader: loader
        captured = {}
        model.gain.register_post_accumulate_grad_hook(lambda p, captured=captured: captured.update(grad=p.grad.clone()))
        fit(SegmentationTask(model, None, chosen), run)
        moved.append(captured["grad"].item())
    assert moved[0] == pytest.approx(moved[1], rel=1e-5)


# --- learning rates and frozen BatchNorm ---


class Small(torch.nn.Module):
    """Stands in for IS-Net in tests about its kinds of layers: first convolution, BatchNorm, side output."""

    in_ch = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = torch.nn.Conv2d(4, 3, 3, padding=1)
        self.bn = torch.nn.BatchNorm2d(3)
        self.inner = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3))
        self.side = torch.nn.Conv2d(3, 1, 1)
        self.modes: list[tuple[bool, ...]] = []

    def predict_logits(self, x: torch.Tensor) -> torch.Tensor:
        self.modes.append((self.training, self.bn.training, self.inner[1].training))
        return self.side(self.inner(self.bn(self.conv_in(x)).relu()))

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return [self.predict_logits(x)], []


def small() -> Small:
    torch.manual_seed(0)
    return Small()


def of_batchnorm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.items() if name.startswith(("bn.", "inner.1."))}


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batchnorm_does_not_change(make_run, settings, frozen):
    """In steps before and after a validation; weight decay must not change it either."""
    chosen = settings(freeze_bn=frozen, max_ite=4, model_save_fre=2, lr=0.01, weight_decay=0.1)
    model = small()
    before, rest = of_batchnorm(model.state_dict()), model.side.weight.detach().clone()
    fit(SegmentationTask(model, None, chosen), make_run(chosen))
    changed = {
        name for name, tensor in of_batchnorm(model.state_dict()).items() if not torch.equal(tensor, before[name])
    }
    assert changed == (set() if frozen else set(before)) and len(before) == 10
    assert not torch.equal(model.side.weight, rest)
    step, valid = (True, not frozen, not frozen), (False, False, False)
    assert model.modes == [step] * 2 + [valid] * 3 + [step] * 2 + [valid] * 3


def test_a_networks_batchnorm_can_be_frozen(settings):
    model = ISNetDIS(4)
    task = SegmentationTask(model, None, settings(freeze_bn=True))
    task.train()
    norms = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert len(norms) > 100 and model.training and model.stage1.training
    assert not any(layer.training or layer.weight.requires_grad or layer.bias.requires_grad for layer in norms)
    others = [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert all(layer.training and layer.weight.requires_grad for layer in others)


def test_every_parameter_is_trained_once(settings):
    """Independent of what is frozen: a saved state must fit the groups of a run that freezes other layers."""
    for frozen in (False, True):
        model = ISNetDIS(4)
        rest, stem = SegmentationTask(model, None, settings(freeze_bn=frozen, lr_stem_factor=3.0)).parameters()
        assert {id(p) for p in stem["params"]} == {id(p) for p in model.conv_in.parameters()}
        assert (rest["factor"], stem["factor"]) == (1.0, 3.0)
        both = [id(p) for p in rest["params"] + stem["params"]]
        assert sorted(both) == sorted(id(p) for p in model.parameters())


def record_rates(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[float, int]]]:
    """Return a list that records, at each optimizer step, the learning rate and the size of each group."""
    rates, step = [], torch.optim.AdamW.step

    def noted(optimizer, *args, **kwargs):
        rates.append([(group["lr"], len(group["params"])) for group in optimizer.param_groups])
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    return rates


@pytest.mark.parametrize("decay", ["none", "cosine"])
def test_the_learning_rate_of_each_iteration(make_run, settings, monkeypatch, decay):
    rates, total = record_rates(monkeypatch), 12
    chosen = settings(lr=0.02, lr_decay=decay, lr_stem_factor=5.0, max_ite=total, model_save_fre=50)
    fit(SegmentationTask(small(), None, chosen), make_run(chosen))
    share = [(1 + np.cos(np.pi * k / total)) / 2 if decay == "cosine" else 1 for k in range(total)]
    assert [[lr for lr, _ in groups] for groups in rates] == [pytest.approx([0.02 * s, 0.1 * s]) for s in share]
    assert {tuple(size for _, size in groups) for groups in rates} == {(8, 2)}  # the stem: a weight and a bias
    assert (rates[-1][0][0] < 0.02 * 0.02) == (decay == "cosine")


def test_cosine_decay_starts_at_start_ite(make_run, settings, monkeypatch):
    rates = record_rates(monkeypatch)
    chosen = settings(lr=1.0, lr_decay="cosine", start_ite=6, max_ite=8)
    fit(SegmentationTask(small(), None, chosen), make_run(chosen))
    assert [groups[0][0] for groups in rates] == pytest.approx([(1 + np.cos(np.pi * k / 8)) / 2 for k in (6, 7)])


def test_phase_1_has_a_constant_learning_rate(make_run, settings, monkeypatch):
    rates = record_rates(monkeypatch)
    changes = {"gt_encoder_lr": 0.3, "gt_encoder_max_ite": 1, "gt_encoder_stop_f": 2.0}
    chosen = settings(lr_decay="cosine", lr_stem_factor=7.0, freeze_bn=True, **changes)
    model = ISNetGTEncoder()
    before = model.conv_in.bn.running_mean.clone()
    fit(GTEncoderTask(model, chosen), make_run(chosen))
    assert [[lr for lr, _ in groups] for groups in rates] == [[0.3]]
    assert not torch.equal(model.conv_in.bn.running_mean, before)


def test_the_ema_is_validated_and_saved(make_run, settings, monkeypatch):
    chosen = settings(lr=0.05, max_ite=3, ema=0.2)
    model = small()
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    passed, take = [], Training.step

    def step(training, batches):
        take(training, batches)
        passed.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    monkeypatch.setattr(Training, "step", step)
    fit(SegmentationTask(model, None, chosen), make_run(chosen))
    for number, now in enumerate(passed, 1):
        decay = min(0.2, number / (number + 10))
        for name, tensor in now.items():
            mean = expected[name]
            expected[name] = decay * mean + (1 - decay) * tensor if mean.is_floating_point() else tensor
    saved, _ = read_weights(Path(chosen.model_path) / "best.safetensors")
    assert saved.keys() == expected.keys() and len(passed) == 3
    assert all(torch.allclose(saved[name], expected[name], atol=1e-6) for name in saved)
    assert not torch.allclose(saved["side.weight"], model.side.weight, atol=1e-6)
    assert model.modes[-1] != (False, False, False)  # the EMA was validated, not the network


def test_a_stem_factor_of_0_keeps_the_stem_fixed(make_run, settings):
    chosen = settings(lr=0.01, lr_stem_factor=0.0, max_ite=3)
    model = small()
    stem, side = model.conv_in.weight.detach().clone(), model.side.weight.detach().clone()
    fit(SegmentationTask(model, None, chosen), make_run(chosen))
    assert torch.equal(model.conv_in.weight, stem) and not torch.equal(model.side.weight, side)


def test_ema_by_hand():
    model = torch.nn.BatchNorm1d(1)
    ema = EMA(model, 0.5)
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    with torch.no_grad():
        model.weight.fill_(12.0)
        model.num_batches_tracked.fill_(7)
    ema.update(model, 1)  # decay 1/11 at first, 0.5 at most
    assert ema.model.weight.item() == pytest.approx(1 / 11 + 12 * 10 / 11)
    assert ema.model.num_batches_tracked.item() == 7
    before = ema.model.weight.item()
    ema.update(model, 1000)
    assert ema.model.weight.item() == pytest.approx((before + 12) / 2)


def rewrite_as_version_1(path: Path) -> None:
    """Rename the parts of a training state to what the first versions of this project wrote."""
    state = torch.load(path, weights_only=True)
    names = {"metadata": "facts", "ema_model": "average", "gt_encoder": "teacher"}
    old = {names.get(key, key): value for key, value in state.items()} | {"version": 1}
    old["progress"]["stale"] = old["progress"].pop("patience_count")
    keys = {"copy_paste": "composite", "mask_skip_logit": "mask_path", "lr_stem_factor": "lr_stem"}
    old["settings"] = {keys.get(key, key): value for key, value in old["settings"].items()}
    assert len(old) == len(state) and not {"metadata", "ema_model", "gt_encoder"} & old.keys()
    torch.save(old, path)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("frozen", "ema"), [(True, 0.0), (False, 0.9)])
def test_a_resumed_cosine_run_equals_an_uninterrupted_one(make_run, settings, tmp_path, frozen, ema, version):
    def start(folder: str) -> tuple[SegmentationTask, Run]:
        changes = {
            "lr": 0.02,
            "lr_decay": "cosine",
            "lr_stem_factor": 4.0,
            "freeze_bn": frozen,
            "accumulation": 2,
            "ema": ema,
        }
        chosen = settings(model_path=str(tmp_path / folder), max_ite=7, model_save_fre=3, **changes)
        return SegmentationTask(small(), None, chosen), make_run(chosen)

    fit(*start("whole"))
    task, run = start("resumed")
    make_loader = run.make_train_loader
    run.make_train_loader = lambda first: InterruptedLoader(make_loader(first), after=7)
    progress = fit(task, run)
    assert (progress.done, progress.iteration) == ("interrupted", 4)
    if version == 1:
        rewrite_as_version_1(tmp_path / "resumed" / "last.pt")
    state = load_state(tmp_path / "resumed" / "last.pt")
    task, run = start("resumed")
    task.model.load_state_dict(state["model"])
    fit(task, run, state)

    whole, resumed = (load_state(tmp_path / folder / "last.pt") for folder in ("whole", "resumed"))
    assert all(torch.equal(whole["model"][name], resumed["model"][name]) for name in whole["model"])
    assert [g["lr"] for g in whole["optimizer"]["param_groups"]] == [
        g["lr"] for g in resumed["optimizer"]["param_groups"]
    ]
    if ema:
        assert all(torch.equal(whole["ema_model"][name], resumed["ema_model"][name]) for name in whole["ema_model"])
        assert not torch.equal(whole["ema_model"]["side.weight"], whole["model"]["side.weight"])
    else:
        assert whole["ema_model"] is None
    assert not torch.equal(whole["model"]["side.weight"], state["model"]["side.weight"])


def test_a_resumed_run_uses_the_current_stem_factor_and_freezing(make_run, settings, monkeypatch):
    chosen = settings(lr=0.1, max_ite=2, lr_stem_factor=2.0)
    fit(SegmentationTask(small(), None, chosen), make_run(chosen))
    state = load_state(Path(chosen.model_path) / "last.pt")
    rates = record_rates(monkeypatch)
    other = settings(lr=0.1, max_ite=3, lr_stem_factor=30.0, freeze_bn=True)
    fit(SegmentationTask(small(), None, other), make_run(other), state)
    assert [[lr for lr, _ in groups] for groups in rates] == [pytest.approx([0.1, 3.0])]


# --- learning ---


@pytest.mark.slow
def test_the_frozen_gt_encoder_does_not_change(make_run, settings):
    chosen = settings(max_ite=1)
    gt_encoder = ThinGTEncoder()
    before = {name: tensor.clone() for name, tensor in gt_encoder.state_dict().items()}
    fit(SegmentationTask(Thin(4), gt_encoder.train(), chosen), make_run(chosen))
    assert all(torch.equal(tensor, before[name]) for name, tensor in gt_encoder.state_dict().items())
    assert not gt_encoder.training and all(p.grad is None for p in gt_encoder.parameters())


def test_the_loss_is_the_recipe_s(make_dataset, settings):
    data = DISDataset(make_dataset(), 4, SIZE)
    planes = torch.from_numpy(np.stack([data.planes(0), data.planes(1)]))
    torch.manual_seed(0)
    model, gt_encoder = ISNetDIS(4), ISNetGTEncoder().eval()
    task = SegmentationTask(model, gt_encoder, settings())
    torch.manual_seed(0)
    reference = ISNetDIS(4)  # BatchNorm in training mode changes with each pass

    x = torch.cat((planes[:, :3] / 255 - 0.5, planes[:, 3:4] / 255), 1)
    gt = planes[:, 4:] / 255
    sides, features = reference(x)
    wanted = torch.zeros(())
    for side in sides:
        p = side.sigmoid()
        inside, union = (p * gt).sum((1, 2, 3)), (p + gt - p * gt).sum((1, 2, 3))
        wanted = wanted - 20 * (gt * p.log() + (1 - gt) * (1 - p).log()).mean()
        wanted = wanted + 0.5 * (1 - (inside + 1) / (union + 1)).mean()
    with torch.no_grad():
        targets = gt_encoder(gt)[1]
    wanted = wanted + sum(((a - b) ** 2).mean() for a, b in zip(features, targets, strict=True))
    assert task.loss(planes).item() == pytest.approx(wanted.item(), rel=1e-4)


def test_edge_weight_is_passed_to_the_loss(make_dataset, settings):
    planes = torch.from_numpy(DISDataset(make_dataset(), 4, SIZE).planes(0).copy())[None]
    model = ISNetDIS(4)
    with torch.no_grad():
        for level in range(
            1, 7
        ):  # an untrained network predicts about 0.5 everywhere, and all pixel weights give the same mean
            model.get_submodule(f"side{level}").weight.mul_(100)
    given = settings(edge_weight=3.0, interm_sup=False, freeze_bn=True)
    task = SegmentationTask(model, None, given)
    task.train()
    target = planes[:, 4:] / 255
    sides, _ = model(task.input(planes))
    assert task.loss(planes).item() == pytest.approx(side_output_loss(sides, target, 20.0, 0.5, 3.0).item(), rel=1e-4)
    assert task.loss(planes).item() != pytest.approx(side_output_loss(sides, target, 20.0, 0.5).item(), rel=1e-3)


@pytest.mark.slow
def test_a_network_learns_two_samples_by_heart(make_dataset, settings):
    """The coarse mask is a disc; the hole of each ring can only be learned from the image."""
    data = DISDataset(make_dataset(sizes=((128, 128), (140, 150))), 4, SIZE)
    train = TrainDataset([data], 0, flip_h=False, flip_v=False)
    chosen = settings(max_ite=30, model_save_fre=30, lr=1e-3, orthogonal_weight=0.0)
    loaders = [valid_loader(ValidDataset(data), 2, 0)]
    run = Run(
        chosen,
        CPU,
        None,
        loaders,
        lambda start: train_loader(train, 2, 0, start),
        RunLog(Path(chosen.model_path)),
    )
    torch.manual_seed(0)
    model = ISNetDIS(4)
    # with two samples the running statistics lag behind the weights; a larger momentum prevents that
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5
    progress = fit(SegmentationTask(model, None, chosen), run)
    coarse = [(data.planes(i)[3], data.planes(i)[4]) for i in range(2)]
    assert plain_scores(coarse)["max_f_mean_pr"] < 0.85
    assert progress.best_f > 0.95
    loaded, _ = load_isnet(Path(chosen.model_path) / "best.safetensors")
    again = validate(SegmentationTask(loaded, None, chosen), loaders[0], CPU, None)
    assert again["max_f_mean_pr"] == pytest.approx(progress.best_f, abs=0.01)


# --- the log ---


def test_a_missing_tensorboard_ends_the_run_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"'tensorboard' is not installed.*pip install 'dis-sam\[train\]'"):
        RunLog(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_began_without_a_gradient_scaler_is_resumed_with_one(make_run, settings):
    """Row 20 of the faults seen: begun in full or bf16, resumed where auto is float16."""
    chosen = settings()
    training = Training(SegmentationTask(Canned(), None, chosen), make_run(chosen))
    training.save()
    state = load_state(Path(chosen.model_path) / "last.pt")
    assert state["scaler"] == {}
    resumed = Training(SegmentationTask(Canned(), None, chosen), make_run(chosen))
    resumed.scaler = torch.amp.GradScaler("cpu", enabled=True)
    scale = resumed.scaler.get_scale()
    resumed._load(state)
    assert resumed.scaler.get_scale() == scale
