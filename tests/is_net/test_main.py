"""The training script, by its command line and by its main()."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from IS_Net import data_loader, evaluate, phases
from IS_Net import train_valid_inference_main as script
from IS_Net.checkpoint import load_isnet, load_state, read_weights, save_weights
from IS_Net.data_loader import EndlessBatches
from IS_Net.datalist import find_datasets, from_folder
from IS_Net.engine import Progress, Training
from IS_Net.errors import DatasetError
from IS_Net.images import read_mask
from IS_Net.metrics.suite import FIGURES
from IS_Net.models import ISNetDIS
from IS_Net.predictor import DISPredictor
from IS_Net.samples import find_samples
from IS_Net.tasks import SegmentationTask
from IS_Net.train_valid_inference_main import command_line, main

SHORT = [
    *("cache_size=128", "batch_size_train=2", "batch_size_valid=2", "workers=0"),
    *("max_ite=2", "gt_encoder_max_ite=1", "model_save_fre=2"),
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep caches out of the project; return the home folder, which holds them instead."""
    monkeypatch.setenv("DIS_SAM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(make_dataset) -> Path:
    """Return a folder in the data contract's layout."""
    return Path(make_dataset()["im_dir"]).parent


def maps_of(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: read_mask(path) for path in folder.iterdir()}


# --- errors: one message, exit code 2 ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mode=vald"], "expected one of train, valid, inference, found 'vald'"),
        (["batch_size_tran=4"], "did you mean 'batch_size_train'"),
        (["mode"], "expected key=value, found 'mode'"),
        (["valid_datasets=dataset_te9"], "'dataset_te9' is neither a data set"),
        (["valid_datasets="], "valid_datasets is empty"),
        (["train_datasets="], "train_datasets is empty"),
        (["device=cuda:7"], "cuda:7.*was requested"),
        (["mode=valid"], "'restore_model'.*is empty"),
        (["mode=valid", "restore_model=gone.pth"], "no checkpoint 'gone.pth'"),
        (["mode=inference", "restore_model=gone.pth"], "'valid_out_dir'.*is empty"),
        (["crop_size=2048"], "larger than input_size"),
    ],
)
def test_errors_are_printed_without_a_traceback(arguments, message, capsys, tmp_path):
    assert command_line([f"model_path={tmp_path / 'run'}", *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and "Traceback" not in printed
    assert re.search(message, printed), printed


def test_missing_data_is_an_error(tmp_path, capsys, monkeypatch):
    nowhere = {"name": "gone", "im_dir": str(tmp_path / "gone" / "im"), "gt_dir": "x", "mid_dir": "y", "im_ext": ".jpg"}
    monkeypatch.setattr(script, "train_datasets", [nowhere])
    assert command_line([f"model_path={tmp_path / 'run'}"]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_a_folder_without_ground_truth_needs_a_folder_for_its_maps(folder, weights, capsys):
    shutil.rmtree(folder / "gt")
    assert command_line(["mode=valid", f"restore_model={weights}", f"valid_datasets={folder}", "cache_size=128"]) == 2
    assert "no ground truth to score against" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["train", "valid"])
@pytest.mark.parametrize("kind", ["im", "gt", "mask"])
def test_a_checked_run_names_a_bad_file_before_it_starts(
    mode, kind, make_dataset, weights, tmp_path, monkeypatch, capsys
):
    for name in ("fit", "load_weights"):
        monkeypatch.setattr(phases, name, None)
    folders = {name: Path(make_dataset(name)["im_dir"]).parent for name in ("train", "valid")}
    damaged = folders[mode] / kind / "ring_1.png"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1  # its end is whole: only decoding finds it
    damaged.write_bytes(content)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    sets = [f"{name}_datasets={folder}" for name, folder in folders.items()]
    arguments = [f"mode={mode}", f"restore_model={weights}" if mode == "valid" else "interm_sup=False", *SHORT, *sets]
    assert command_line([*arguments, "check=True", f"model_path={tmp_path / 'run'}"]) == 2
    printed = capsys.readouterr().err
    assert f"error: 1 files of the data sets cannot be used:\n  unreadable: {damaged}: " in printed
    assert "Traceback" not in printed
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_help_lists_the_settings(capsys):
    assert command_line(["mode=train", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "mode=valid" in printed
    assert "copy_paste=0.0                 probability of copy-paste augmentation" in printed


def test_help_needs_no_heavy_package():
    code = (
        "import sys\nfrom IS_Net.train_valid_inference_main import command_line\ncommand_line(['--help'])\n"
        "print(sorted({'torch', 'numpy', 'cv2', 'PIL'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.endswith("\n[]\n")


def test_by_default_the_script_trains_on_dis_tr_and_validates_on_dis_vd():
    assert [entry["im_dir"] for entry in script.train_datasets] == ["../data/DIS5K/DIS-TR/im"]
    assert [entry["im_dir"] for entry in script.valid_datasets] == ["../data/DIS5K/DIS-VD/im"]


# --- validation and inference ---


def test_valid_mode_scores_and_writes_maps(folder, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [f"restore_model={weights}", "valid_datasets=tiny", "valid_out_dir=maps", "cache_size=128", "workers=0"]
    assert command_line(["mode=valid", "model_digit=full", *arguments]) == 0
    printed = capsys.readouterr().out
    assert f"valid_out_dir: {tmp_path / 'maps'}" in printed and "max F" in printed and "tiny" in printed
    maps = maps_of(tmp_path / "maps" / "tiny")
    assert set(maps) == {"ring_0", "ring_1", "ring_2"}
    assert maps["ring_2"].shape == (131, 177)


@pytest.mark.parametrize("workers", [0, 2])
def test_valid_mode_gives_the_figures_of_evaluate(make_dataset, weights, tmp_path, capsys, workers):
    folders = [Path(make_dataset(name)["im_dir"]).parent for name in ("one", "two")]
    hypar = {"mode": "valid", "restore_model": str(weights), "valid_out_dir": tmp_path / "maps", "cache_size": 128}
    found = main([], [from_folder(folder) for folder in folders], {**hypar, "workers": workers, "batch_size_valid": 2})
    printed = capsys.readouterr().out
    report = tmp_path / "report.json"
    pred = ["--pred", str(tmp_path / "maps"), "--workers", "0"]
    assert evaluate.main(["--gt", *map(str, folders), *pred, "--json", str(report)]) == 0
    assert found == {result["data_set"]: result["figures"] for result in json.loads(report.read_text())["results"]}
    assert found.keys() == {"one", "two"} and found["one"].keys() == FIGURES.keys()
    table = capsys.readouterr().out.removesuffix(f"wrote {report}\n")
    assert len(table.splitlines()) == 4 and printed.endswith(table)  # a heading, two data sets, their mean


def test_valid_mode_scores_all_data_sets_with_the_same_workers(make_dataset, weights, monkeypatch):
    made = []

    class Counted(phases.Scorer):
        def __init__(self, *settings):
            made.append(settings)
            super().__init__(*settings)

    monkeypatch.setattr(phases, "Scorer", Counted)
    sets = [from_folder(Path(make_dataset(name)["im_dir"]).parent) for name in ("one", "two")]
    hypar = {"mode": "valid", "restore_model": str(weights), "cache_size": 128, "workers": 0, "metrics": "mae"}
    assert main([], sets, hypar).keys() == {"one", "two"}
    assert len(made) == 1


def test_a_data_set_called_mean_is_refused(make_dataset, weights, capsys):
    folder = Path(make_dataset("mean")["im_dir"]).parent
    assert command_line(["mode=valid", f"restore_model={weights}", f"valid_datasets={folder}", "cache_size=128"]) == 2
    assert "a data set is named 'mean'" in capsys.readouterr().err


def test_valid_mode_computes_the_metrics_of_the_setting(folder, weights, capsys):
    arguments = ["mode=valid", f"restore_model={weights}", f"valid_datasets={folder}", "cache_size=128", "workers=0"]
    assert command_line([*arguments, "metrics=hce,mae"]) == 0
    head, _ = capsys.readouterr().out.splitlines()[-2:]
    assert head.split() == ["data", "set", "MAE", "HCE"]
    assert command_line([*arguments, "metrics=hce,maw"]) == 2
    assert "hypar['metrics']: unknown metric 'maw'" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mode", ["valid", "inference"])
def test_images_that_cannot_be_read_are_named_and_skipped(
    make_dataset, weights, tmp_path, capsys, caplog, workers, mode
):
    folder = Path(make_dataset(sizes=[(150, 200)] * 4)["im_dir"]).parent
    for name in ("ring_1", "ring_2"):
        file = folder / "im" / f"{name}.png"
        file.write_bytes(file.read_bytes()[:500])  # the header is intact, the pixels are not
    arguments = [f"restore_model={weights}", f"valid_datasets={folder}", f"valid_out_dir={tmp_path / 'maps'}"]
    arguments += ["cache_size=128", f"workers={workers}", "batch_size_valid=2", "metrics=mae"]
    assert command_line([f"mode={mode}", *arguments]) == 1
    assert set(maps_of(tmp_path / "maps" / "tiny")) == {"ring_0", "ring_3"}
    problems = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [Path(problem.split(": ")[0]).name for problem in problems] == ["ring_1.png", "ring_2.png"]
    printed = capsys.readouterr()
    assert printed.err.endswith("error: 2 images failed (see above)\n")
    assert ("MAE" in printed.out) == (mode == "valid")


def test_inference_does_not_read_ground_truth(folder, weights, tmp_path, capsys):
    (folder / "gt" / "ring_0.png").unlink()
    arguments = [f"restore_model={weights}", f"valid_datasets={folder}", f"valid_out_dir={tmp_path / 'maps'}"]
    assert command_line(["mode=inference", *arguments, "cache_size=128", "workers=0"]) == 0
    assert "max F" not in capsys.readouterr().out
    assert set(maps_of(tmp_path / "maps" / "tiny")) == {"ring_0", "ring_1", "ring_2"}


def test_several_masks_of_an_image_give_several_maps(folder, weights, tmp_path):
    shutil.rmtree(folder / "gt")
    (folder / "mask" / "ring_1.png").rename(folder / "mask" / "ring_1_a.png")
    shutil.copy(folder / "mask" / "ring_1_a.png", folder / "mask" / "ring_1_b.png")
    hypar = {"mode": "inference", "restore_model": str(weights), "valid_out_dir": str(tmp_path / "maps")}
    main([], [from_folder(folder)], {**hypar, "cache_size": 128, "workers": 0})
    maps = maps_of(tmp_path / "maps" / "tiny")
    assert set(maps) == {"ring_0", "ring_1_a", "ring_1_b", "ring_2"}
    assert np.array_equal(maps["ring_1_a"], maps["ring_1_b"])


def test_the_model_may_be_a_network(folder, isnet, weights):
    hypar = {"mode": "valid", "model": isnet, "restore_model": str(weights), "cache_size": 128, "workers": 0}
    results = main([], [from_folder(folder)], hypar)
    assert 0 < results["tiny"]["max_f_mean_pr"] < 1


def test_two_data_sets_of_one_name_are_refused(folder, weights, tmp_path, capsys):
    other = tmp_path / "elsewhere" / folder.name
    shutil.copytree(folder, other)
    assert command_line(["mode=valid", f"restore_model={weights}", f"valid_datasets={folder},{other}"]) == 2
    assert "two data sets share a name (tiny, tiny)" in capsys.readouterr().err


def test_a_training_set_given_twice_is_used_twice_per_epoch(folder, weights, tmp_path):
    hypar = {"restore_model": str(weights), "cache_size": 128, "workers": 0, "batch_size_train": 8, "max_ite": 1}
    hypar |= {"model_path": str(tmp_path / "run"), "interm_sup": False, "freeze_bn": True}
    sizes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_loader, "EndlessBatches", lambda n, *rest: sizes.append(n) or EndlessBatches(n, *rest))
        main([from_folder(folder)] * 2, [from_folder(folder)], hypar)
    assert set(sizes) == {2 * len(list((folder / "im").iterdir()))}


def test_another_size_than_in_training_is_logged(folder, weights, caplog):
    hypar = {"mode": "valid", "restore_model": str(weights), "cache_size": 160, "workers": 0}
    main([], [from_folder(folder)], hypar)
    assert "was trained at [128, 128] (height, width) and runs at [160, 160]" in caplog.text


# --- training ---


@pytest.mark.slow
def test_both_phases_are_trained_and_resumed(folder, tmp_path, capsys, caplog):
    run = tmp_path / "run"
    sets = [f"train_datasets={folder}", f"valid_datasets={folder}"]
    arguments = [*SHORT, *sets, f"model_path={run}", f"valid_out_dir={tmp_path / 'maps'}"]
    assert command_line(arguments) == 0
    assert {path.name for path in run.iterdir()} == {
        *("best.safetensors", "gt_encoder.safetensors", "last.pt", "metrics.csv", "tensorboard")
    }
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["phase"], row["iteration"]) for row in rows] == [("gt_encoder", "1"), ("segmentation", "2")]
    assert set(maps_of(tmp_path / "maps" / "tiny")) == {"ring_0", "ring_1", "ring_2"}
    state = load_state(run / "last.pt")
    encoder, _ = read_weights(run / "gt_encoder.safetensors")
    assert all((state["gt_encoder"][name] == encoder[name]).all() for name in encoder)

    # a new run does not overwrite it ...
    capsys.readouterr()
    best = (run / "best.safetensors").read_bytes()
    assert command_line(arguments) == 2
    assert "already holds a training run" in capsys.readouterr().err
    assert (run / "best.safetensors").read_bytes() == best

    # ... but it can be resumed, without training phase 1 again
    assert command_line([*arguments, "restore_model=last.pt", "max_ite=3"]) == 0
    assert load_state(run / "last.pt")["progress"]["iteration"] == 3
    with (run / "metrics.csv").open() as file:
        assert [row["phase"] for row in csv.DictReader(file)] == ["gt_encoder", "segmentation", "segmentation"]

    # not in another folder or with another network; other settings are logged
    assert command_line([*arguments, f"restore_model={run / 'last.pt'}", f"model_path={tmp_path / 'new'}"]) == 2
    assert "can only be resumed in its own folder" in capsys.readouterr().err
    assert command_line([*arguments, "restore_model=last.pt", "model=5"]) == 2
    assert "is of a network with 4 input channels" in capsys.readouterr().err
    assert command_line([*arguments, "restore_model=last.pt", "max_ite=3", "batch_size_train=3"]) == 0
    assert "other settings than before: batch_size_train 2 -> 3" in caplog.text

    # its weights alone start another run, with the existing GT encoder
    other = [*SHORT, *sets, f"model_path={tmp_path / 'other'}", f"restore_model={run / 'best.safetensors'}"]
    assert command_line([*other, f"gt_encoder_model={run / 'gt_encoder.safetensors'}", "max_ite=1"]) == 0
    assert not (tmp_path / "other" / "gt_encoder.safetensors").exists()
    assert load_isnet(tmp_path / "other" / "best.safetensors")[1]["iteration"] == 1
    assert DISPredictor.from_checkpoint(tmp_path / "other" / "best.safetensors").input_size == (128, 128)


def test_phase_2_starts_from_the_given_weights_after_interruptions_of_phase_1(
    folder, weights, isnet, tmp_path, monkeypatch
):
    started = []

    def fit(task, run, resume=None):
        """Interrupt phase 1 twice, finish it in the third attempt, and record what phase 2 starts from."""
        if isinstance(task, SegmentationTask):
            started.append(task.model.state_dict()["conv_in.weight"].clone())
            return Progress(done="max_ite")
        tries.append(task)
        Training(task, run, resume).save()
        save_weights(run.folder / task.weights_file, task.model, {})
        return Progress(done="interrupted" if len(tries) < 3 else "stop_f")

    tries: list = []
    monkeypatch.setattr(phases, "fit", fit)
    arguments = [*SHORT, f"train_datasets={folder}", f"valid_datasets={folder}", f"model_path={tmp_path / 'run'}"]
    assert command_line([*arguments, f"restore_model={weights}"]) == 130
    assert command_line([*arguments, "restore_model=last.pt"]) == 130
    assert not started
    assert command_line([*arguments, "restore_model=last.pt"]) == 0
    assert (started[0] == isnet.state_dict()["conv_in.weight"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["IS_Net", "elsewhere"])
def test_the_script_runs_from_any_folder_and_stops_on_ctrl_c(folder, tmp_path, where):
    """As users run it: in its own process, interrupted in phase 1 and resumed."""
    path = Path(script.__file__)
    start = [sys.executable, path.name if where == "IS_Net" else str(path)]
    sets = [f"train_datasets={folder}", f"valid_datasets={folder}", f"model_path={tmp_path / 'run'}"]
    long = ["gt_encoder_max_ite=10000000", "model_save_fre=50000"]
    process = subprocess.Popen(
        [*start, *SHORT, *sets, *long],
        cwd=path.parent if where == "IS_Net" else tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    printed = ""
    while " 3it " not in printed:
        printed += (letter := process.stderr.read(1))
        assert letter, printed
    process.send_signal(signal.SIGINT)
    assert "restore_model=last.pt resumes the training" in process.communicate()[1]
    assert process.returncode == 130
    state = load_state(tmp_path / "run" / "last.pt")
    assert state["phase"] == "gt_encoder" and state["progress"]["done"] == "interrupted"
    assert state["progress"]["iteration"] >= 3
    if where == "elsewhere":
        iteration = state["progress"]["iteration"] + 1
        end = [f"gt_encoder_max_ite={iteration}", "max_ite=1", "restore_model=last.pt"]
        assert subprocess.run([*start, *SHORT, *sets, *end], cwd=tmp_path, check=False).returncode == 0
        assert load_state(tmp_path / "run" / "last.pt")["phase"] == "segmentation"


@pytest.mark.slow
def test_a_killed_training_leaves_complete_files(folder, tmp_path):
    """A run that is killed while it writes checkpoints all the time leaves complete files."""
    sets = [f"train_datasets={folder}", f"valid_datasets={folder}", f"model_path={tmp_path / 'run'}"]
    often = ["gt_encoder_max_ite=100000", "model_save_fre=1", "gt_encoder_stop_f=2", "early_stop=100000"]
    process = subprocess.Popen(
        [sys.executable, script.__file__, *SHORT, *sets, *often],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    printed = ""
    while "iteration 3" not in printed:
        printed += (letter := process.stderr.read(1))
        assert letter, printed
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert load_state(tmp_path / "run" / "last.pt")["progress"]["iteration"] >= 2
    read_weights(tmp_path / "run" / "gt_encoder.safetensors")
    assert command_line([*SHORT, *sets, "restore_model=last.pt", "gt_encoder_max_ite=1", "max_ite=1"]) == 0


@pytest.mark.parametrize("name", ["last.pt", "best.safetensors"])
def test_a_training_that_fails_has_exit_code_1(folder, tmp_path, capsys, name):
    sets = [f"train_datasets={folder}", f"valid_datasets={folder}", f"model_path={tmp_path / 'run'}"]
    assert command_line([*SHORT, *sets, "interm_sup=False", "lr=1e38", "weight_decay=1e38"]) == 1
    assert re.search(r"error: segmentation: loss, gradient .* not finite at iteration 2", capsys.readouterr().err)
    assert not (tmp_path / "run" / name).exists()


def test_simulating_some_masks_still_needs_the_others(folder, tmp_path, capsys):
    shutil.rmtree(folder / "mask")
    sets = [f"train_datasets={folder}", f"valid_datasets={folder}", f"model_path={tmp_path / 'run'}"]
    assert command_line([*SHORT, *sets, "simulate_mask=0.5"]) == 2
    assert "coarse masks" in capsys.readouterr().err


def test_a_missing_folder_of_backgrounds_is_an_error(folder, tmp_path, capsys):
    sets = [f"train_datasets={folder}", f"valid_datasets={folder}", f"model_path={tmp_path / 'run'}"]
    copy_paste = ["copy_paste=0.5", f"backgrounds={tmp_path / 'streets'}"]
    assert command_line([*SHORT, *sets, *copy_paste]) == 2
    assert "streets: the folder does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_on_simulated_masks_needs_no_mask_files(make_dataset, weights, isnet, home, tmp_path, capsys):
    """From given weights, with frozen BatchNorm, copy-paste with other backgrounds, and cosine decay."""
    train = Path(make_dataset("train")["im_dir"]).parent
    shutil.rmtree(train / "mask")
    valid = Path(make_dataset("valid")["im_dir"]).parent
    streets = Path(make_dataset("streets")["im_dir"]).parent
    run = tmp_path / "run"
    sets = [f"train_datasets={train}", f"valid_datasets={valid}", f"backgrounds={streets}", f"model_path={run}"]
    options = [
        "copy_paste=0.5",
        "simulate_mask=1.0",
        "freeze_bn=True",
        "lr_decay=cosine",
        "lr_stem_factor=10",
        "edge_weight=5",
    ]
    arguments = [*SHORT, *sets, *options, "interm_sup=False", f"restore_model={weights}"]
    assert command_line(arguments) == 0
    assert "ended at iteration 2 (max_ite)" in capsys.readouterr().out
    trained, metadata = read_weights(run / "best.safetensors")
    assert (metadata["in_ch"], metadata["iteration"]) == (4, 2)
    before = isnet.state_dict()
    norms = [name for name in before if ".bn_s1." in name]
    assert norms and all((trained[name] == before[name]).all() for name in norms)
    assert not (trained["conv_in.weight"] == before["conv_in.weight"]).all()
    rates = [group["lr"] for group in load_state(run / "last.pt")["optimizer"]["param_groups"]]
    assert rates == pytest.approx([2e-5, 2e-4])  # of the second of two iterations: half of 4e-5, and ten times that
    caches = {path.name.rpartition("-")[0] for path in (home / "data" / "cache").iterdir()}
    assert caches == {"train", "streets"}


def test_weights_of_3_channels_get_a_mask_skip_if_its_logit_is_set(make_dataset, tmp_path, caplog):
    torch.manual_seed(0)
    save_weights(tmp_path / "isnet.safetensors", ISNetDIS(3), {"input_size": [128, 128]})
    valid = Path(make_dataset("valid")["im_dir"]).parent
    arguments = ["mode=inference", f"restore_model={tmp_path / 'isnet.safetensors'}", f"valid_datasets={valid}"]
    arguments += [f"valid_out_dir={tmp_path / 'maps'}", "cache_size=128", "device=cpu", "workers=0"]
    means = []
    for logit in (0, 40):
        with caplog.at_level("WARNING"):
            assert command_line([*arguments, f"mask_skip_logit={logit}"]) == 0
        assert ("a mask skip connection" in caplog.messages[-1]) == bool(logit)
        maps = {path.name: read_mask(path) for path in (tmp_path / "maps").glob("*/*.png")}
        masks = {name: read_mask(valid / "mask" / name) > 128 for name in maps}
        means.append(np.mean([(maps[name] > 128)[masks[name]].mean() for name in maps]))
    assert means[1] > 0.9


def test_coarse_masks_of_another_folder_are_a_separate_data_set(make_dataset):
    folder = Path(make_dataset("photos")["im_dir"]).parent
    (folder / "mask").rename(folder / "grabcut")
    (entry,) = find_datasets(f"{folder}:grabcut", cache=False)
    assert (entry["name"], Path(entry["mid_dir"])) == (f"{folder.name}-grabcut", folder / "grabcut")
    assert len(find_samples(entry, need_mask=True, need_gt=True)) > 0
    with pytest.raises(DatasetError, match="neither a data set"):
        find_datasets(f"{folder}:gone", cache=False)


def test_maps_never_replace_the_files_of_a_data_set(folder, weights, tmp_path):
    """Row 1 of the list of faults, its kind: valid_out_dir/NAME is the folder of masks, under another name."""
    (tmp_path / "maps").mkdir()
    for kind in ("mask", "gt", "im"):
        (tmp_path / "maps" / "tiny").symlink_to(folder / kind)
        entry = {**from_folder(folder), "name": "tiny"}
        before = {path: path.read_bytes() for path in folder.rglob("*.*")}
        for mode in ("valid", "inference"):
            hypar = {"mode": mode, "restore_model": str(weights), "valid_out_dir": str(tmp_path / "maps")}
            with pytest.raises(DatasetError, match=r"maps/tiny: the output would replace the input"):
                main([], [entry], hypar)
        assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before
        (tmp_path / "maps" / "tiny").unlink()


@pytest.mark.parametrize("name", ["../x", "/x", "..", "a/b", "a\0b", ""])
def test_the_name_of_a_data_set_cannot_lead_out_of_the_folder_of_maps(folder, weights, tmp_path, name):
    """Row 53: a data set named ../x wrote its maps beside valid_out_dir."""
    hypar = {"mode": "inference", "restore_model": str(weights), "valid_out_dir": str(tmp_path / "maps")}
    with pytest.raises(DatasetError, match="name of a data set becomes a folder"):
        main([], [{**from_folder(folder), "name": name}], hypar)


def test_a_folder_of_maps_that_cannot_be_written_is_tried_first(folder, weights, tmp_path, monkeypatch):
    """Row 23: for maps, the error came only after the first prediction."""
    (tmp_path / "file").touch()
    monkeypatch.setattr("IS_Net.phases.load_weights", None)
    hypar = {"mode": "inference", "restore_model": str(weights), "valid_out_dir": str(tmp_path / "file" / "maps")}
    with pytest.raises(OSError, match=r"file/maps.*NAME.png"):
        main([], [from_folder(folder)], hypar)
