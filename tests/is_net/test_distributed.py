"""Runs of two processes against runs of one: the same weights, figures and samples, and one end for all."""

from __future__ import annotations

import csv
import functools
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from IS_Net import distributed
from IS_Net.checkpoint import load_state, save_weights
from IS_Net.errors import HyparError
from IS_Net.hypar import Settings
from IS_Net.lock import lock_folder
from IS_Net.losses import side_output_loss
from IS_Net.training_prompts import prepare_batch
from tests.conftest import write_dataset
from tests.process_group import Group
from tests.thin_networks import Thin, ThinGTEncoder

SMALL = {"cache_size": 128, "workers": 0, "device": "cpu", "model_digit": "full", "batch_size_train": 2}
FROZEN = {
    # batches of 2 from 3 pictures: one process gets nothing of the last one of an epoch
    **{"freeze_bn": True, "max_ite": 3, "model_save_fre": 2, "ema": 0.5, "lr": 1e-3, "weight_decay": 0.01},
    **{"orthogonal_weight": 1e-4, "edge_weight": 5.0, "copy_paste": 0.5},
}
HALF = {**FROZEN, "max_ite": 2}
TWO_BATCHES = {"interm_sup": False, "freeze_bn": True, "max_ite": 2, "lr": 1e-3, "random_flip_v": False}
BOTH_PHASES = {"gt_encoder_max_ite": 2, "gt_encoder_stop_f": 1.0, "max_ite": 2, "model_save_fre": 2, "ema": 0.5}


class Case(NamedTuple):
    """What the runs of one and of two processes share."""

    folder: Path
    data: dict[str, str]
    more: dict[str, str]
    """A fourth picture."""

    def run(self, name: str, **settings: Any) -> Any:
        """Run the script in the folder ``name``, with thin networks."""
        from IS_Net.train_valid_inference_main import main

        train = [self.data, self.more] if settings.pop("four", False) else [self.data]
        return main(train, [self.data], {**SMALL, **settings, "model_path": str(self.folder / name)})

    def state(self, name: str) -> dict[str, Any]:
        """Return the training state in the folder ``name``."""
        return load_state(self.folder / name / "last.pt")

    def rows(self, name: str) -> list[dict[str, str]]:
        """Return the lines of metrics.csv in the folder ``name``, without the time."""
        with (self.folder / name / "metrics.csv").open() as file:
            return [{key: row[key] for key in row if key != "seconds"} for row in csv.DictReader(file)]


def valid(case: Case, name: str) -> dict[str, dict[str, float]]:
    """Validate weights by mode ``valid`` and write the maps."""
    return case.run(
        name,
        mode="valid",
        restore_model=str(case.folder / "one/best.safetensors"),
        valid_out_dir=str(case.folder / name),
    )


def gradients(model: torch.nn.Module, network: torch.nn.Module, x: torch.Tensor, target: torch.Tensor, share: float):
    """Return the gradients of a training step in float64, and the BatchNorm statistics after it."""
    model.train()
    sides, _ = network(x)
    (share * side_output_loss(sides, target, 20, 0.5)).backward()
    return [p.grad for p in model.parameters()] + [b for b in model.buffers() if b.is_floating_point()]


def batch_in_float64(samples: int) -> tuple[Thin, torch.Tensor, torch.Tensor]:
    torch.manual_seed(samples)
    target = torch.zeros(samples, 1, 96, 96, dtype=torch.float64)
    target[:, :, 20:60, 30:70] = 1
    return Thin().double(), torch.rand(samples, 4, 96, 96, dtype=torch.float64), target


def shared_gradients(samples: int) -> list[torch.Tensor]:
    """Return what :func:`gradients` returns, each process with its share of the samples."""
    model, x, target = batch_in_float64(samples)
    model.recompute = samples == 3
    distributed.synchronize_batchnorm(model, torch.device("cpu"))
    network = distributed.parallel(model, torch.device("cpu"))
    mine = list(distributed.share(samples))
    return gradients(model, network, x[mine], target[mine], 2 * len(mine) / samples)


def in_two_processes(case: Case, home: str) -> dict[str, Any]:
    """Do everything that needs two processes, in one of them, and return what the tests look at."""
    from tests.fuzz.chaos import _use_thin_networks

    os.environ["DIS_SAM_HOME"] = home
    _use_thin_networks()
    found: dict[str, Any] = {}
    with distributed.joined():
        found["rank"] = distributed.rank()
        case.run("two", **FROZEN, gt_encoder_model=str(case.folder / "gt_encoder.safetensors"))
        case.run("one_then_two", **FROZEN, resume=True)  # as a cluster starts the same command again
        case.run("two_then_one", **HALF, gt_encoder_model=str(case.folder / "gt_encoder.safetensors"))
        exchanged = []
        original = distributed.unsynchronized
        distributed.unsynchronized = lambda network, active: exchanged.append(not active) or original(network, active)
        case.run("two_accumulated", **TWO_BATCHES, four=True, accumulation=2)
        found["exchanged"] = exchanged
        distributed.unsynchronized = original
        case.run("two_phases", **BOTH_PHASES)
        case.run("two_alone", **{**BOTH_PHASES, "sync_batchnorm": False, "interm_sup": False})
        found["valid"] = valid(case, "two_valid")
        found["gradients"] = {samples: shared_gradients(samples) for samples in (1, 3)}
        found["gathered"] = distributed.gather_shares([f"item {number}" for number in distributed.share(5)])
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Iterator[tuple[Case, list[dict[str, Any]]]]:
    """Run one process and two; yield the case and what the two returned."""
    folder = tmp_path_factory.mktemp("runs")
    case = Case(folder, write_dataset(folder), write_dataset(folder, "more", sizes=((140, 150),)))
    encoder = str(folder / "gt_encoder.safetensors")
    torch.manual_seed(5)
    save_weights(encoder, ThinGTEncoder(), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIS_SAM_HOME", str(folder / "home"))
        for module in ("checkpoint", "phases"):
            patch.setattr(f"IS_Net.{module}.ISNetDIS", Thin)
            patch.setattr(f"IS_Net.{module}.ISNetGTEncoder", ThinGTEncoder)
        case.run("one", **FROZEN, gt_encoder_model=encoder)
        case.run("one_then_two", **HALF, gt_encoder_model=encoder)
        case.run("one_at_once", **TWO_BATCHES, four=True, batch_size_train=4)
        case.run("one_phases", **BOTH_PHASES)
        results = Group(2, folder / "group", in_two_processes, case, str(folder / "home")).results()
        case.run("two_then_one", **FROZEN, restore_model="last.pt")
        yield case, results


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the largest difference of weights and statistics, and of their EMA."""
    pairs = [
        (one[key][name], other[key][name])
        for key in ("model", "ema_model")
        if one[key] is not None
        for name in one[key]
    ]
    assert len(pairs) > 100
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize("name", ["two", "one_then_two", "two_then_one"])
def test_the_weights_are_those_of_one_process(two, name):
    """The same global batches, also when a run is resumed with another number of processes."""
    case, _ = two
    one, other = case.state("one"), case.state(name)
    start = Thin().state_dict()
    assert max((one["model"][key] - start[key]).abs().max() for key in start if key.endswith("weight")) > 1e-3
    assert largest_difference(one, other) < 1e-6
    for key in ("iteration", "batch", "epoch", "patience_count"):
        assert one["progress"][key] == other["progress"][key]


def test_the_figures_of_validations_are_those_of_one_process(two):
    """Three images on two processes; only the last bits of the loss differ."""
    case, results = two
    for one, other in zip(case.rows("one"), case.rows("two"), strict=True):
        assert float(one.pop("loss")) == pytest.approx(float(other.pop("loss")), rel=1e-6)
        assert one == other
    one = valid(case, "one_valid")
    assert results[0]["valid"] == results[1]["valid"] == one and len(one["tiny"]) > 10
    maps = [sorted((case.folder / name / "tiny").iterdir()) for name in ("one_valid", "two_valid")]
    assert [[path.name for path in side] for side in maps] == [[f"ring_{i}.png" for i in range(3)]] * 2
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*maps, strict=True))


def test_accumulated_batches_equal_a_large_one_and_are_exchanged_once(two):
    case, results = two
    assert largest_difference(case.state("one_at_once"), case.state("two_accumulated")) < 1e-6
    assert [result["exchanged"] for result in results] == [[False, True] * 2] * 2


@pytest.mark.parametrize("samples", [1, 3])
def test_synchronized_batchnorm_gives_the_gradients_of_the_whole_batch(two, samples):
    """In float64, because rounding in BatchNorms over few values grows to percents of a float32 gradient."""
    _, results = two
    model, x, target = batch_in_float64(samples)
    expected = gradients(model, model, x, target, 1.0)
    for result in results:
        for found, wanted in zip(result["gradients"][samples], expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


def test_both_phases_train_with_synchronized_batchnorm(two):
    case, _ = two
    for one, other in zip(case.rows("one_phases"), case.rows("two_phases"), strict=True):
        assert one["phase"] == other["phase"] and one["iteration"] == other["iteration"]
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=1e-3)
    assert [row["phase"] for row in case.rows("two_phases")] == ["gt_encoder", "segmentation"]


def test_statistics_of_each_process_are_averaged_if_so_set(two):
    """The run validates and saves with statistics that all processes share, of fewer values than the whole batch."""
    case, _ = two
    alone, together = case.state("two_alone"), case.state("two_phases")
    assert alone["progress"]["done"] == "max_ite"
    statistics = [name for name in alone["model"] if name.endswith("running_var")]
    assert any(not torch.allclose(alone["model"][n], together["model"][n], rtol=0.01) for n in statistics)


def test_only_the_main_process_prints(two):
    case, results = two
    assert [result["rank"] for result in results] == [0, 1]
    printed = [(case.folder / "group" / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert "ended at iteration 3 (max_ite)" in printed[0] and "train segmentation" in printed[0]
    assert not any(word in printed[1] for word in ("ended", "model_path", "train segmentation", "valid tiny"))


def test_shares_are_gathered_in_order(two):
    assert all(result["gathered"] == [f"item {number}" for number in range(5)] for result in two[1])


# --- without processes ---


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch):
    """Return a function that lets this process take itself for one of several, which exchange nothing."""

    def be(rank: int, size: int) -> None:
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "size", lambda: size)

    return be


def test_prompts_do_not_depend_on_the_number_of_processes(pretend):
    changes = {"box_jitter": 0.2, "drop_mask": 0.4, "whole_frame": 0.5, "own_mask": 0.3, "window_share": 0.3}
    settings = Settings.from_hypar({"model": 5, "model_path": "x", "cache_size": 256, "input_size": 128, **changes})
    planes = torch.randint(0, 256, (7, 6, 256, 256), dtype=torch.uint8, generator=torch.manual_seed(0))
    planes[:, -2:] = 0
    planes[:, -2:, 40:200, 60:210] = 255

    def as_alpha(chosen: torch.Tensor) -> torch.Tensor:
        return chosen[:, :1].float() / 255

    for number in range(4):
        whole = prepare_batch(planes, 5, number, settings, as_alpha)
        for size in (2, 3, 8):
            for rank in range(size):
                pretend(rank, size)
                mine = prepare_batch(planes[rank::size], 5, number, settings, as_alpha, total=7)
                assert torch.equal(mine, whole[rank::size])
        pretend(0, 1)


def test_a_batch_that_cannot_be_divided_is_refused(pretend):
    pretend(0, 4)
    distributed.require_divisible("batch_size_train", 8)
    with pytest.raises(HyparError, match=r"batch_size_train.*6 .*divided by 4; use 4 or 8, or another number"):
        distributed.require_divisible("batch_size_train", 6)
    with pytest.raises(HyparError, match="use 4, or"):
        distributed.require_divisible("batch_size_train", 3)


def test_each_process_of_a_machine_has_a_gpu_of_its_own(pretend, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert distributed.local_device("auto") == "auto"
    pretend(3, 4)
    assert [distributed.local_device(name) for name in ("auto", "cuda", "cpu")] == ["cuda:3", "cuda:3", "cpu"]
    with pytest.raises(HyparError, match="'cuda:0' is one device, and 4 processes"):
        distributed.local_device("cuda:0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert distributed.local_device("auto") == "cpu"


def test_an_incomplete_environment_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(HyparError, match=r"WORLD_SIZE is 2, but .*MASTER_ADDR.* torchrun"), distributed.joined():
        pass


# --- failures and signals ---


def command(arguments: list[str], home: str, fail: str = "") -> None:
    """Run the command with thin networks; the second process fails at iteration 2 if asked to."""
    from IS_Net import engine, tasks
    from IS_Net.errors import ImageError
    from IS_Net.train_valid_inference_main import command_line
    from tests.fuzz.chaos import _use_thin_networks

    os.environ["DIS_SAM_HOME"] = home
    _use_thin_networks()
    steps = []
    if fail and os.environ["RANK"] == "1":

        def failing(original, error: Exception, *rest):
            steps.append(1)
            if len(steps) == 2:
                raise error
            return original(*rest)

        if fail == "data":
            step = engine.Training.step

            def of_bad_data(training, batches):
                original = functools.partial(next, batches)
                return step(training, iter(lambda: failing(original, ImageError("a.png: is damaged")), None))

            engine.Training.step = of_bad_data
        else:
            loss = tasks.SegmentationTask.loss
            tasks.SegmentationTask.loss = lambda *rest: failing(loss, RuntimeError("a bug"), *rest)
    sys.exit(command_line(arguments))


@pytest.fixture
def start(make_dataset, tmp_path: Path):
    """Return a function that starts the command in two processes, with an endless training by default."""
    folder = Path(make_dataset()["im_dir"]).parent
    groups = []

    def begin(*settings: str, fail: str = "", agent: bool = False) -> Group:
        endless = {**SMALL, "interm_sup": False, "freeze_bn": True, "max_ite": 1_000_000, "model_save_fre": 100_000}
        arguments = [f"{key}={value}" for key, value in endless.items()]
        arguments += [f"train_datasets={folder}", f"valid_datasets={folder}", f"model_path={tmp_path / 'run'}"]
        parameters = [*arguments, *settings], str(tmp_path / "home"), fail
        groups.append(Group(2, tmp_path / "group", command, *parameters, agent=agent))
        return groups[-1]

    yield begin
    for process in (process for group in groups for process in group.processes):
        if process.is_alive():
            process.kill()


def test_a_failure_of_data_in_one_process_saves_and_ends_all(start, tmp_path):
    group = start(fail="data")
    assert group.wait() == [1, 1]
    assert "error: segmentation, iteration 2: a.png: is damaged. The training is saved" in group.printed(1)
    assert not any(word in group.printed(0) for word in ("error:", "Traceback"))
    assert load_state(tmp_path / "run/last.pt")["progress"]["iteration"] == 1
    assert not (tmp_path / "run/.dis-sam.lock").exists()


def test_a_bug_in_one_process_ends_all_with_one_traceback(start, tmp_path):
    group = start(fail="bug")
    assert group.wait() == [1, 1]
    assert "RuntimeError: a bug" in group.printed(1)
    assert not any(word in group.printed(0) for word in ("error:", "Traceback"))
    assert load_state(tmp_path / "run/last.pt")["progress"]["iteration"] == 1


def test_an_error_of_all_processes_is_told_once(start):
    group = start("batch_size_train=3")
    assert group.wait() == [2, 2]
    told = [group.printed(rank).count("error: hypar['batch_size_train']: 3 is the number") for rank in (0, 1)]
    assert sorted(told) == [0, 1]


def test_an_error_of_the_main_process_is_told_although_torchrun_ends_all(start, tmp_path):
    with lock_folder(tmp_path / "run", "a training"):
        group = start(agent=True)
        assert group.wait()[0] == 2
    assert "run: is in use by a training" in group.printed(0) and "terminated" not in group.printed(0)
    assert not any(word in group.printed(1) for word in ("error:", "Traceback", "terminated"))


def wait_for_state(group: Group, folder: Path) -> None:
    """Wait until a training has been saved."""
    deadline = time.monotonic() + 120
    while not (folder / "run/last.pt").is_file():
        assert time.monotonic() < deadline and group.processes[0].is_alive(), group.printed(0)
        time.sleep(0.05)


def test_a_signal_to_one_process_saves_and_ends_all(start, tmp_path):
    group = start("save_minutes=0.0001")
    wait_for_state(group, tmp_path)
    os.kill(group.processes[1].pid, signal.SIGTERM)
    assert group.wait() == [143, 143]
    assert "terminated; restore_model=last.pt resumes the training" in group.printed(0)
    assert "restore_model" not in group.printed(1)
    iteration = load_state(tmp_path / "run/last.pt")["progress"]["iteration"]
    assert iteration >= 1 and f"stopped at iteration {iteration} (terminated)" in group.printed(0)


def test_a_process_that_is_killed_ends_all(start, tmp_path):
    group = start("save_minutes=0.0001")
    wait_for_state(group, tmp_path)
    group.processes[1].kill()
    assert group.wait() == [1, -signal.SIGKILL]
    assert "error: another process of this run ended without a message" in group.printed(0)
    assert "Traceback" not in group.printed(0)
    assert load_state(tmp_path / "run/last.pt")["progress"]["iteration"] >= 1
