"""The two loops: validation against a plain loop, training, its ends, and its interruptions."""

from __future__ import annotations

import csv
import functools
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from IS_Net.checkpoint import load_isnet, load_state, load_weights, read_weights
from IS_Net.data_loader import DISDataset, TrainDataset, ValidDataset, train_loader, valid_loader
from IS_Net.engine import (
    GTEncoderTask,
    MetricsLog,
    Progress,
    Run,
    SegmentationTask,
    TrainingError,
    _stop_requests,
    fit,
    validate,
)
from IS_Net.hypar import check
from IS_Net.images import read_image, read_mask
from IS_Net.models import ISNetDIS, ISNetGTEncoder
from IS_Net.predictor import DISPredictor

METRICS = ("max_f_mean_pr", "max_f_mean_curve", "mae")
CPU = torch.device("cpu")
SIZE = (128, 128)


@pytest.fixture
def settings(tmp_path: Path):
    """Return a function that gives checked settings of a short run into a folder of the test's."""

    def make(**changes) -> dict:
        short = {"cache_size": 128, "batch_size_train": 2, "workers": 0, "max_ite": 4, "model_save_fre": 2}
        return check({**short, "model_path": str(tmp_path / "run"), "model_digit": "full", **changes})

    return make


@pytest.fixture
def make_run(make_dataset):
    """Return a function that gives the surroundings of a run on the small data set."""
    data = DISDataset(make_dataset(), 4, SIZE)

    def make(settings: dict, valid: bool = True) -> Run:
        train = TrainDataset([data], settings["seed"], settings["random_flip_h"], settings["random_flip_v"])
        make_loader = functools.partial(train_loader, train, settings["batch_size_train"], 0)
        loaders = [valid_loader(ValidDataset(data), settings["batch_size_valid"], 0)] if valid else []
        return Run(settings, CPU, None, loaders, make_loader, MetricsLog(Path(settings["model_path"])), 4)

    return make


class Canned(torch.nn.Module):
    """Stands in for a network where a test is not about networks: one parameter, logits from the mask channel."""

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
        # rounding to steps of 1/255 may fall either way where BatchNorm was folded
        assert np.abs(again * 255 - alpha).max() < 0.51


def test_validation_writes_maps_only_when_asked_and_leaves_the_mode_alone(make_dataset, isnet, settings, tmp_path):
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


# --- progress ---


def test_the_best_is_the_highest_f_and_ties_go_to_the_lower_mae():
    progress = Progress()
    results = [(0.5, 0.20), (0.6, 0.30), (0.6, 0.10), (0.6, 0.10), (0.4, 0.05)]
    best = [progress.record({"max_f_mean_pr": f, "mae": mae}) for f, mae in results]
    assert best == [True, True, True, False, False]
    assert (progress.best_f, progress.best_mae) == (0.6, 0.10)


def test_either_metric_improving_keeps_a_run_alive():
    progress = Progress()
    results = [(0.5, 0.2), (0.4, 0.1), (0.4, 0.3), (0.6, 0.3), (0.1, 0.3), (0.1, 0.3)]
    stale = []
    for f, mae in results:
        progress.record({"max_f_mean_pr": f, "mae": mae})
        stale.append(progress.stale)
    assert stale == [0, 0, 1, 0, 1, 2]


# --- the ends of a training ---


def test_a_run_ends_at_max_ite_validated_and_saved(make_run, settings):
    chosen = settings(max_ite=3)
    progress = fit(SegmentationTask(Canned(), None, chosen), make_run(chosen))
    assert (progress.done, progress.iteration, progress.batch) == ("max_ite", 3, 3)
    folder = Path(chosen["model_path"])
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["iteration"] for row in rows] == ["2", "3"]
    assert load_state(folder / "last.pt")["progress"]["iteration"] == 3
    weights, facts = read_weights(folder / "best.safetensors")
    assert set(weights) == {"gain"} and facts["input_size"] == [128, 128]
    assert facts["metrics"]["max_f_mean_pr"] == pytest.approx(progress.best_f)
    assert list((folder / "tensorboard").iterdir())


def test_a_run_ends_after_max_epoch_num(make_run, settings):
    chosen = settings(max_ite=1000, max_epoch_num=2, model_save_fre=100)
    progress = fit(SegmentationTask(Canned(), None, chosen), make_run(chosen))
    assert (progress.done, progress.iteration) == ("max_epoch_num", 4)  # 3 samples in batches of 2


def test_a_run_stops_early(make_run, settings):
    chosen = settings(max_ite=1000, early_stop=3, model_save_fre=1, lr=0.0)
    progress = fit(SegmentationTask(Canned(), None, chosen), make_run(chosen))
    assert (progress.done, progress.iteration) == ("early_stop", 4)


def test_the_encoder_stops_where_it_is_good_enough(make_run, settings):
    chosen = settings(gt_encoder_stop_f=0.0, gt_encoder_max_ite=50, model_save_fre=1)
    progress = fit(GTEncoderTask(ISNetGTEncoder(), chosen), make_run(chosen))
    assert (progress.done, progress.iteration) == ("stop_f", 1)
    load_weights(ISNetGTEncoder(), Path(chosen["model_path"]) / "gt_encoder.safetensors")


def test_start_ite_numbers_the_iterations(make_run, settings):
    chosen = settings(start_ite=100, max_ite=102)
    progress = fit(SegmentationTask(Canned(), None, chosen), make_run(chosen))
    assert (progress.iteration, progress.batch) == (102, 2)


def test_a_loss_that_is_not_finite_is_an_error_and_spoils_no_checkpoint(make_run, settings):
    chosen = settings(max_ite=20, model_save_fre=4)
    model = Canned()
    run = make_run(chosen)
    fit(SegmentationTask(model, None, settings(max_ite=4, model_save_fre=4)), run)
    good = (Path(chosen["model_path"]) / "best.safetensors").read_bytes()
    with torch.no_grad():
        model.gain.fill_(float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan"):
        fit(SegmentationTask(model, None, chosen), run)
    assert (Path(chosen["model_path"]) / "best.safetensors").read_bytes() == good


class InterruptedLoader:
    """A loader during whose batch number ``after`` Ctrl-C is pressed."""

    def __init__(self, loader: DataLoader, after: int, signal_number: int = signal.SIGINT) -> None:
        self.loader, self.after, self.signal_number = loader, after, signal_number
        self.batch_sampler = loader.batch_sampler

    def __iter__(self):
        for number, batch in enumerate(self.loader, start=1):
            if number == self.after:
                signal.raise_signal(self.signal_number)
            yield batch


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_is_answered_between_iterations(make_run, settings, signal_number):
    chosen = settings(max_ite=1000, model_save_fre=500)
    run = make_run(chosen)
    make_loader = run.make_train_loader
    run.make_train_loader = lambda start: InterruptedLoader(make_loader(start), 5, signal_number)
    handler = signal.getsignal(signal_number)
    progress = fit(SegmentationTask(Canned(), None, chosen), run)
    assert (progress.done, progress.iteration) == ("interrupted", 5)
    assert load_state(Path(chosen["model_path"]) / "last.pt")["progress"]["iteration"] == 5
    assert not (Path(chosen["model_path"]) / "metrics.csv").exists()
    assert signal.getsignal(signal_number) is handler


def test_a_second_request_stops_at_once():
    with pytest.raises(KeyboardInterrupt), _stop_requests() as requested:
        signal.raise_signal(signal.SIGINT)
        assert requested()
        signal.raise_signal(signal.SIGINT)


# --- going on ---


@pytest.mark.slow
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(make_run, settings, tmp_path):
    def start(folder: str) -> tuple[GTEncoderTask, Run]:
        chosen = settings(model_path=str(tmp_path / folder), gt_encoder_max_ite=5, model_save_fre=2, accumulation=2)
        torch.manual_seed(0)
        return GTEncoderTask(ISNetGTEncoder(), chosen), make_run(chosen)

    def outcome(folder: str) -> tuple[dict, list[dict]]:
        with (tmp_path / folder / "metrics.csv").open() as file:
            rows = [{k: v for k, v in row.items() if k not in ("seconds", "loss")} for row in csv.DictReader(file)]
        return read_weights(tmp_path / folder / "last.pt")[0], rows

    fit(*start("whole"))

    task, run = start("resumed")
    make_loader = run.make_train_loader
    run.make_train_loader = lambda first: InterruptedLoader(make_loader(first), after=6)
    assert fit(task, run).done == "interrupted"
    # what a run that was killed later would have noted is dropped
    run.log.validation({"phase": "gt_encoder", "iteration": 4, "data_set": "gone", **dict.fromkeys(METRICS, 0)})
    state = load_state(tmp_path / "resumed" / "last.pt")
    task, run = start("resumed")
    task.model.load_state_dict(state["model"])
    fit(task, run, state)

    (whole, whole_rows), (resumed, resumed_rows) = outcome("whole"), outcome("resumed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert whole_rows == resumed_rows and len(whole_rows) == 3


def test_a_run_that_reached_its_end_does_nothing_more_until_the_end_is_moved(make_run, settings):
    chosen = settings(max_ite=4)
    fit(SegmentationTask(Canned(), None, chosen), make_run(chosen))
    path = Path(chosen["model_path"]) / "last.pt"
    again = fit(SegmentationTask(Canned(), None, chosen), make_run(chosen), load_state(path))
    assert (again.done, again.iteration) == ("max_ite", 4)
    longer = settings(max_ite=7)
    again = fit(SegmentationTask(Canned(), None, longer), make_run(longer), load_state(path))
    assert (again.done, again.iteration) == ("max_ite", 7)


def test_an_interrupted_run_that_is_asked_for_no_more_is_validated_all_the_same(make_run, settings):
    chosen = settings(max_ite=100, model_save_fre=50)
    run = make_run(chosen)
    make_loader = run.make_train_loader
    run.make_train_loader = lambda start: InterruptedLoader(make_loader(start), 3)
    fit(SegmentationTask(Canned(), None, chosen), run)
    folder = Path(chosen["model_path"])
    assert not (folder / "best.safetensors").exists()
    over = settings(max_ite=3, model_save_fre=50)
    progress = fit(SegmentationTask(Canned(), None, over), make_run(over), load_state(folder / "last.pt"))
    assert (progress.done, progress.iteration, progress.validated) == ("max_ite", 3, 3)
    assert (folder / "best.safetensors").exists()


def test_early_stop_may_be_put_off(make_run, settings):
    chosen = settings(max_ite=1000, early_stop=2, model_save_fre=1, lr=0.0)
    fit(SegmentationTask(Canned(), None, chosen), make_run(chosen))
    state = load_state(Path(chosen["model_path"]) / "last.pt")
    assert (state["progress"]["done"], state["progress"]["iteration"]) == ("early_stop", 3)
    again = fit(SegmentationTask(Canned(), None, chosen), make_run(chosen), state)
    assert (again.done, again.iteration) == ("early_stop", 3)
    patient = settings(max_ite=1000, early_stop=4, model_save_fre=1, lr=0.0)
    again = fit(SegmentationTask(Canned(), None, patient), make_run(patient), state)
    assert (again.done, again.iteration) == ("early_stop", 5)


def test_a_resumed_run_takes_the_learning_rate_that_is_asked_for(make_run, settings):
    chosen = settings(max_ite=2, lr=0.0)
    fit(SegmentationTask(Canned(), None, chosen), make_run(chosen))
    state = load_state(Path(chosen["model_path"]) / "last.pt")
    model, faster = Canned(), settings(max_ite=4, lr=0.5)
    model.load_state_dict(state["model"])
    assert model.gain.item() == 1
    fit(SegmentationTask(model, None, faster), make_run(faster), state)
    assert abs(model.gain.item() - 1) > 0.1


def test_other_batches_go_on_at_the_same_part_of_the_epoch(make_run, settings):
    chosen = settings(batch_size_train=1, max_ite=5)  # 3 batches an epoch: in the second one
    fit(SegmentationTask(Canned(), None, chosen), make_run(chosen))
    state = load_state(Path(chosen["model_path"]) / "last.pt")
    larger = settings(batch_size_train=3, max_ite=5)
    progress = fit(SegmentationTask(Canned(), None, larger), make_run(larger), state)
    assert (progress.epoch, progress.batch) == (1, 1)


def test_a_network_that_broke_is_not_saved_when_the_run_is_stopped(make_run, settings):
    chosen = settings(max_ite=100, model_save_fre=3)
    model, run = Canned(), make_run(chosen)
    make_loader = run.make_train_loader
    model.gain.register_hook(lambda grad: grad * (float("nan") if run.folder.joinpath("last.pt").exists() else 1))
    run.make_train_loader = lambda start: InterruptedLoader(make_loader(start), 5)
    with pytest.raises(TrainingError):
        fit(SegmentationTask(model, None, chosen), run)
    state = load_state(Path(chosen["model_path"]) / "last.pt")
    assert state["progress"]["iteration"] == 3 and state["model"]["gain"].isfinite().all()


def test_accumulated_batches_are_one_step_of_their_mean(make_run, settings):
    """Two batches accumulated move a parameter as one batch of both does, where the loss is a mean over samples."""
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
        planes = torch.from_numpy(np.stack([run.make_train_loader(0).dataset.all[i % 3] for i in range(4)]))
        loader = InterruptedLoader(run.make_train_loader(0), after=-1)
        loader.loader = planes.split(batch_size)
        run.make_train_loader = lambda start, loader=loader: loader
        captured = {}
        model.gain.register_post_accumulate_grad_hook(lambda p, captured=captured: captured.update(grad=p.grad.clone()))
        fit(SegmentationTask(model, None, chosen), run)
        moved.append(captured["grad"].item())
    assert moved[0] == pytest.approx(moved[1], rel=1e-5)


# --- learning ---


@pytest.mark.slow
def test_the_frozen_encoder_stays_as_it_is(make_run, settings):
    chosen = settings(max_ite=1)
    teacher = ISNetGTEncoder()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    fit(SegmentationTask(ISNetDIS(4), teacher.train(), chosen), make_run(chosen))
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not teacher.training and all(p.grad is None for p in teacher.parameters())


def test_the_loss_is_the_recipe_s(make_dataset, settings):
    data = DISDataset(make_dataset(), 4, SIZE)
    planes = torch.from_numpy(np.stack([data.planes(0), data.planes(1)]))
    torch.manual_seed(0)
    model, teacher = ISNetDIS(4), ISNetGTEncoder().eval()
    task = SegmentationTask(model, teacher, settings())
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
        targets = teacher(gt)[1]
    wanted = wanted + sum(((a - b) ** 2).mean() for a, b in zip(features, targets, strict=True))
    assert task.loss(planes).item() == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.slow
def test_a_network_learns_two_samples_by_heart(make_dataset, settings):
    """What the coarse mask (a disc) does not tell, the image does: the hole of each ring."""
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
        MetricsLog(Path(chosen["model_path"])),
        4,
    )
    torch.manual_seed(0)
    model = ISNetDIS(4)
    # with two samples the running statistics lag behind the weights; a larger momentum lets them follow
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5
    progress = fit(SegmentationTask(model, None, chosen), run)
    coarse = [(data.planes(i)[3], data.planes(i)[4]) for i in range(2)]
    assert plain_scores(coarse)["max_f_mean_pr"] < 0.85
    assert progress.best_f > 0.95
    loaded, _ = load_isnet(Path(chosen["model_path"]) / "best.safetensors")
    again = validate(SegmentationTask(loaded, None, chosen), loaders[0], CPU, None)
    assert again["max_f_mean_pr"] == pytest.approx(progress.best_f, abs=0.01)
