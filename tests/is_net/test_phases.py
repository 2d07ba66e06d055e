"""The rules for resuming, what a state remembers of the data, and predictions of data sets with bad files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from IS_Net import phases
from IS_Net.checkpoint import load_state, save_state, save_weights
from IS_Net.data_loader import TrainDataset
from IS_Net.engine import Progress, Training
from IS_Net.errors import HyparError
from IS_Net.hypar import Settings
from IS_Net.images import read_mask
from IS_Net.phases import Session, evaluate, train
from IS_Net.tasks import GTEncoderTask
from tests.thin_networks import Thin, ThinGTEncoder

pytestmark = pytest.mark.usefixtures("one_thread")

Entry = dict[str, str]


@pytest.fixture(autouse=True)
def thin_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "ISNetDIS", Thin)
    monkeypatch.setattr(phases, "ISNetGTEncoder", ThinGTEncoder)


@pytest.fixture
def session(tmp_path: Path):
    """Return a function that gives the session of a short run without a GT encoder into a folder of the test."""

    def make(**changes) -> Session:
        short = {"cache_size": 128, "batch_size_train": 2, "batch_size_valid": 2, "workers": 0, "model_digit": "full"}
        short |= {"max_ite": 2, "model_save_fre": 2, "gt_encoder_max_ite": 2, "interm_sup": False}
        return Session(Settings.from_hypar({**short, "model_path": str(tmp_path / "run"), **changes}))

    return make


@pytest.fixture
def entry(make_dataset) -> Entry:
    return make_dataset(cache=False)


@pytest.fixture
def saved_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each phase save its state and be complete, without an iteration or a validation."""

    def fit(task, run, resume=None) -> Progress:
        training = Training(task, run, resume)
        training.save()
        save_weights(run.folder / task.weights_file, task.model, {})
        return training.progress

    monkeypatch.setattr(phases, "fit", fit)


def warnings_of(caplog: pytest.LogCaptureFixture) -> Sequence[str]:
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    caplog.clear()
    return messages


# --- the phase of a state ---


@pytest.mark.usefixtures("saved_at_once")
def test_a_state_of_phase_2_without_a_gt_encoder_is_not_replaced_by_phase_1(session, entry, tmp_path: Path):
    train(session(), [entry], [entry])
    state = (tmp_path / "run" / "last.pt").read_bytes()
    message = (
        r"hypar\['interm_sup'\]: is True, but .*last\.pt is a state of phase 2 without a GT encoder, expected False"
    )
    with pytest.raises(HyparError, match=message):
        train(session(interm_sup=True, restore_model="last.pt"), [entry], [entry])
    with pytest.raises(HyparError, match=message):
        train(session(interm_sup=True, resume=True), [entry], [entry])
    assert (tmp_path / "run" / "last.pt").read_bytes() == state

    save_weights(tmp_path / "gt.safetensors", ThinGTEncoder(), {})
    given = {"interm_sup": True, "gt_encoder_model": str(tmp_path / "gt.safetensors")}
    train(session(restore_model="last.pt", **given), [entry], [entry])
    assert load_state(tmp_path / "run" / "last.pt")["gt_encoder"]


def test_a_state_of_phase_1_is_not_replaced_by_phase_2(session, entry, tmp_path: Path, monkeypatch):
    def interrupted(task, run, resume=None):
        Training(task, run, resume).save()
        return Progress(done="interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(phases, "fit", interrupted)
        train(session(interm_sup=True), [entry], [entry])
    state = (tmp_path / "run" / "last.pt").read_bytes()
    with pytest.raises(
        HyparError, match=r"'interm_sup'\]: is False, but .*last\.pt is a state of phase 1.*resume with"
    ):
        train(session(restore_model="last.pt"), [entry], [entry])
    assert (tmp_path / "run" / "last.pt").read_bytes() == state
    with monkeypatch.context() as patch:
        patch.setattr(phases, "fit", interrupted)
        assert train(session(interm_sup=True, restore_model="last.pt"), [entry], [entry]).done == "interrupted"


# --- the data sets of a state ---


@pytest.mark.usefixtures("saved_at_once")
def test_other_training_data_are_logged_and_the_best_is_kept(session, entry, make_dataset, tmp_path: Path, caplog):
    train(session(), [entry], [entry])
    path = tmp_path / "run" / "last.pt"
    state = load_state(path)
    save_state(path, {**state, "progress": state["progress"] | {"best_f": 0.9}})
    other = make_dataset("other", sizes=((150, 160),) * 2, cache=False)
    with caplog.at_level(logging.WARNING):
        train(session(restore_model="last.pt"), [other, entry], [entry])
    (message,) = warnings_of(caplog)
    expected = "other data sets than before: train_datasets tiny (3 samples) -> other (2 samples) + tiny (3 samples)"
    assert message.endswith(expected)
    state = load_state(path)
    assert state["progress"]["best_f"] == 0.9
    assert state["datasets"] == {"train_datasets": [["other", 2], ["tiny", 3]], "valid_datasets": [["tiny", 3]]}


def test_other_validation_sets_begin_a_new_bar(session, entry, make_dataset, tmp_path: Path, caplog):
    other = make_dataset("other", sizes=((150, 160),) * 2, cache=False)
    train(session(), [entry], [entry, other])
    path = tmp_path / "run" / "last.pt"
    state = load_state(path)
    reached = {"best_f": 1.0, "best_mae": 0.0, "lowest_mae": 0.0, "last_f": 1.0, "patience_count": 3}
    save_state(path, {**state, "progress": state["progress"] | reached})
    weights = (tmp_path / "run" / "best.safetensors").read_bytes()

    with caplog.at_level(logging.WARNING):  # another order is the same mean
        kept = train(session(restore_model="last.pt"), [entry], [other, entry])
        assert not warnings_of(caplog)
    assert (kept.best_f, kept.patience_count) == (1.0, 3)

    with caplog.at_level(logging.WARNING):
        progress = train(session(restore_model="last.pt", max_ite=4), [entry], [entry])
    settings, changed, bar = warnings_of(caplog)
    assert settings.endswith("with other settings than before: max_ite 2 -> 4")
    assert changed.endswith("than before: valid_datasets other (2 samples) + tiny (3 samples) -> tiny (3 samples)")
    assert bar.startswith("the best validation so far (max F 1.0000) was on other data sets")
    assert "best.safetensors is replaced" in bar
    assert 0 <= progress.best_f < 1 and progress.lowest_mae > 0 and progress.patience_count == 0
    assert (tmp_path / "run" / "best.safetensors").read_bytes() != weights


@pytest.mark.usefixtures("saved_at_once")
def test_a_state_that_does_not_know_its_data_sets_resumes(session, entry, make_dataset, tmp_path: Path, caplog):
    train(session(), [entry], [entry])
    path = tmp_path / "run" / "last.pt"
    state = load_state(path)
    del state["datasets"]
    save_state(path, state)
    other = make_dataset("other", cache=False)
    with caplog.at_level(logging.WARNING):
        train(session(restore_model="last.pt"), [other], [other])
    assert not caplog.records
    assert load_state(path)["datasets"]["valid_datasets"] == [["other", 3]]


# --- auto_batch ---


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list:
    """Let 3 samples fit into the memory; return what happens: samples that are made, and GT encoders of trials."""
    events: list = []

    class OnGPU(TrainDataset):
        """Says that its samples are made on a GPU, which they are not."""

        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            self.device = torch.device("cuda")

        def __getitem__(self, key):
            events.append("data sets on the GPU")
            self.device = torch.device("cpu")
            return super().__getitem__(key)

    def find(_model, _settings, _device, _dtype, _most, gt_encoder=None) -> int:
        torch.rand(7)
        events.append(gt_encoder)
        return 3

    monkeypatch.setattr(phases, "TrainDataset", OnGPU)
    monkeypatch.setattr(phases, "find_batch_size", find)
    return events


@pytest.mark.parametrize("supervised", [True, False])
def test_auto_batch_tries_after_the_data_sets_are_on_the_gpu_and_with_the_gt_encoder(
    session, entry, trials, monkeypatch, supervised
):
    encoders = []

    def fit(task, run, resume=None):
        if isinstance(task, GTEncoderTask):
            encoders.append(task.model)
        return Progress(done="interrupted")

    monkeypatch.setattr(phases, "fit", fit)
    train(session(auto_batch=True, interm_sup=supervised), [entry], [entry])
    assert trials[0] == "data sets on the GPU" and len(trials) == 2
    assert isinstance(trials[1], ThinGTEncoder) == supervised
    if supervised:  # the trial draws no numbers from the generator of new weights
        train(session(batch_size_train=3, interm_sup=True), [entry], [entry])
        auto, plain = (encoder.state_dict() for encoder in encoders)
        assert all(torch.equal(auto[name], plain[name]) for name in plain)


@pytest.mark.usefixtures("saved_at_once")
def test_a_resumed_run_keeps_its_batch_without_a_warning(session, entry, trials, tmp_path: Path, caplog):
    train(session(auto_batch=True), [entry], [entry])
    assert load_state(tmp_path / "run" / "last.pt")["settings"]["batch_size_train"] == 3
    with caplog.at_level(logging.WARNING):
        train(session(auto_batch=True, batch_size_train=6, restore_model="last.pt"), [entry], [entry])
        assert not warnings_of(caplog)
        train(session(batch_size_train=2, restore_model="last.pt"), [entry], [entry])
    assert "other settings than before: batch_size_train 3 -> 2" in caplog.text
    assert len(trials) == 2


# --- predictions ---


@pytest.mark.parametrize("cache", [False, True])
def test_a_bad_file_does_not_keep_the_others_from_being_predicted(session, make_dataset, tmp_path: Path, cache, caplog):
    entry = make_dataset(cache=cache)
    save_weights(tmp_path / "w.safetensors", Thin(), {"input_size": [128, 128] if cache else None})
    path = Path(entry["im_dir"]) / "ring_1.png"
    path.write_bytes(path.read_bytes()[:3000])
    for mode in ("inference", "valid"):
        maps = tmp_path / mode
        settings = {"mode": mode, "restore_model": str(tmp_path / "w.safetensors"), "valid_out_dir": str(maps)}
        found = evaluate(session(**settings, metrics="mae"), [entry])
        assert [problem.split(": ")[0] for problem in found.problems] == [str(path)]
        assert sorted(file.name for file in (maps / "tiny").iterdir()) == ["ring_0.png", "ring_2.png"]
    assert (f"samples cannot be used:\n  {path}: " in caplog.text) == cache
    with pytest.raises(ValueError, match=r"ring_1\.png"):  # a training needs all of its files
        train(session(check=True), [entry], [entry])

    whole = make_dataset("tiny", cache=False)
    settings = {"mode": "inference", "restore_model": str(tmp_path / "w.safetensors")}
    evaluate(session(**settings, valid_out_dir=str(tmp_path / "whole")), [whole])
    for name in ("ring_0.png", "ring_2.png"):
        assert (read_mask(tmp_path / "whole" / "tiny" / name) == read_mask(maps / "tiny" / name)).all()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("out of memory"), r"data set 'tiny': out of memory; reduce batch_size_valid \(3\)"),
        (RuntimeError("another fault"), "^another fault$"),
    ],
)
def test_missing_memory_in_mode_valid_names_its_batch_size(
    session, make_dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
):
    save_weights(tmp_path / "w.safetensors", Thin(), {"input_size": [128, 128]})

    def fail(*_arguments: torch.Tensor) -> torch.Tensor:
        raise error

    monkeypatch.setattr(Thin, "predict_logits", fail)
    settings = {"mode": "valid", "restore_model": str(tmp_path / "w.safetensors"), "batch_size_valid": 3}
    with pytest.raises(RuntimeError, match=message) as raised:
        evaluate(session(**settings, metrics="mae"), [make_dataset()])
    assert getattr(raised.value, "exit_code", None) == (None if raised.value is error else 1)
