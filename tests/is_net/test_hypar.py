"""The table of settings: what it accepts, what it fills in, and where paths start."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from IS_Net.errors import HyparError
from IS_Net.hypar import FIELDS, Settings, describe_settings, override, parse_assignments
from IS_Net.models import ISNetDIS, ISNetGTEncoder

DEFAULTS = {key: entry.default for key, entry in FIELDS.items()}
SIZES = ("cache_size", "input_size", "crop_size")


def check(hypar: dict[str, Any]) -> dict[str, Any]:
    """Return checked settings as they are saved; a network in place of its number of channels."""
    settings = Settings.from_hypar(hypar)
    return settings.as_dict() | {"model": settings.model}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the home folder, at which relative paths start; a folder of the test."""
    monkeypatch.setenv("DIS_SAM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


# the keys of the published hypar dict
PUBLISHED = {
    "mode": "train",
    "interm_sup": True,
    "valid_out_dir": "",
    "model_path": "../saved_models/your_model_weights",
    "restore_model": "",
    "start_ite": 0,
    "gt_encoder_model": "",
    "model_digit": "full",
    "seed": 0,
    "cache_size": [1024, 1024],
    "cache_boost_train": False,
    "cache_boost_valid": False,
    "input_size": [1024, 1024],
    "crop_size": [1024, 1024],
    "random_flip_h": 1,
    "random_flip_v": 1,
    "model": 5,
    "early_stop": 20,
    "model_save_fre": 2000,
    "batch_size_train": 6,
    "batch_size_valid": 1,
    "max_ite": 10000000,
    "max_epoch_num": 1000000,
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "weights" / "best.safetensors"
    path.parent.mkdir()
    path.touch()
    return path


# --- keys and types ---


@pytest.mark.parametrize("chosen", ["mae,hse", "f;wf"])
def test_metrics_are_checked(chosen: str):
    assert check({"metrics": "f, hce"})["metrics"] == "f, hce"
    with pytest.raises(HyparError, match=r"hypar\['metrics'\]: unknown metric .*expected f, wf, mae, .*, or all"):
        check({"metrics": chosen})
    with pytest.raises(HyparError, match=r"hypar\['metrics'\]: no metric was given"):
        check({"metrics": ""})


def test_defaults_pass_their_own_check():
    settings = Settings.from_hypar({})
    changed = {key for key in DEFAULTS if getattr(settings, key) != DEFAULTS[key]}
    assert changed == {"model_path", "input_size", "crop_size"}
    assert settings.as_dict().keys() == DEFAULTS.keys()


def test_settings_cannot_be_changed():
    settings = Settings.from_hypar({})
    with pytest.raises(FrozenInstanceError):
        settings.lr = 1.0
    settings.as_dict()["cache_size"].append(3)
    assert settings.cache_size == (1024, 1024)


def test_settings_are_saved_as_plain_values():
    with torch.device("meta"):
        saved = Settings.from_hypar({"model": ISNetDIS(5), "input_size": (512, 256)}).as_dict()
    assert saved["model"] == 5
    assert (saved["cache_size"], saved["input_size"], saved["crop_size"]) == ([1024, 1024], [512, 256], [512, 256])
    assert {type(value) for value in saved.values()} == {bool, int, float, str, list}
    assert Settings.from_hypar(saved).as_dict() == saved


def test_the_table_is_described_line_by_line():
    lines = describe_settings().splitlines()
    assert [line.split("=")[0].strip() for line in lines] == list(DEFAULTS)
    assert "  cache_size=1024,1024           size of the cached images" in lines
    assert all(entry.metadata["rule"].comment in line for entry, line in zip(FIELDS.values(), lines, strict=True))


def test_every_published_key_is_taken():
    checked = check(PUBLISHED)
    same = set(PUBLISHED) - {"model_path"}
    assert {key: checked[key] for key in same} == {key: PUBLISHED[key] for key in same}


def test_defaults_are_the_published_recipe():
    recipe = {"lr": 4e-5, "weight_decay": 0, "bce_weight": 20, "iou_weight": 0.5, "feature_weight": 1}
    recipe |= {"orthogonal_weight": 1e-8, "gt_encoder_lr": 1e-4, "gt_encoder_stop_f": 0.99, "accumulation": 1}
    recipe |= {**PUBLISHED, "model": 4, "model_digit": "auto", "input_size": (), "crop_size": ()}
    recipe["cache_size"] = (1024, 1024)
    assert {key: DEFAULTS[key] for key in recipe} == recipe


def test_the_scripts_hypar_has_known_keys_and_the_recipes_values():
    script = importlib.import_module("IS_Net.train_valid_inference_main")
    assert script.hypar.keys() <= DEFAULTS.keys()
    assert PUBLISHED.keys() <= script.hypar.keys()
    assert check(script.hypar) == check({})


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("batchsize_train", "batch_size_train"), ("max_iter", "max_ite"), ("cachesize", "cache_size"), ("Mode", "mode")],
)
def test_unknown_key_names_its_nearest(key: str, nearest: str):
    with pytest.raises(HyparError, match=f"no key '{key}'; did you mean '{nearest}'"):
        check({key: 1})
    with pytest.raises(HyparError, match=f"no key '{key}'; did you mean '{nearest}'"):
        parse_assignments([f"{key}=1"])


def test_key_that_is_near_none():
    with pytest.raises(HyparError, match=r"no key 'xyzzy'; known names: accumulation, auto_batch, .* workers"):
        check({"xyzzy": 1})


WRONG = {
    bool: ["True", 2, -1, None, [], "1"],
    int: [1.5, "4", None, True, -1, [4]],
    float: ["1e-4", None, False, -1e-9, float("nan"), float("inf"), [0.1]],
    str: [1, None, True, ["train"]],
}


@pytest.mark.parametrize("key", [key for key in DEFAULTS if key not in SIZES])
def test_every_wrong_type_names_its_key(key: str):
    for value in WRONG[type(DEFAULTS[key])]:
        with pytest.raises(HyparError, match=rf"^hypar\['{key}'\]: expected"):
            check({key: value})


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize(
    "value", ["1024", 1024.0, True, None, [1024], [1024, 1024, 3], [1024, 1024.0], [1024, True], 127, [64, 256], -1]
)
def test_wrong_sizes(key: str, value: Any):
    with pytest.raises(HyparError, match=rf"^hypar\['{key}'\]: expected \[height, width\]"):
        check({key: value})


@pytest.mark.parametrize(
    ("key", "value", "choices"),
    [
        ("mode", "test", "train, valid, inference"),
        ("model_digit", "fp16", "auto, full, half"),
        ("lr_decay", "linear", "none, cosine"),
        ("model", 6, "3, 4, 5"),
        ("model", 1, "3, 4, 5"),
    ],
)
def test_choices(key: str, value: Any, choices: str):
    with pytest.raises(HyparError, match=rf"hypar\['{key}'\]: expected one of {choices}, found {value!r}"):
        check({key: value})


@pytest.mark.parametrize(
    "key", ["batch_size_train", "batch_size_valid", "accumulation", "model_save_fre", "early_stop", "max_epoch_num"]
)
def test_numbers_that_may_not_be_zero(key: str):
    with pytest.raises(HyparError, match=rf"hypar\['{key}'\]: expected a finite number of at least 1, found 0"):
        check({key: 0})


@pytest.mark.parametrize("key", ["copy_paste", "simulate_mask", "ema"])
def test_probabilities_are_0_to_1(key: str):
    assert [check({key: value})[key] for value in (0, 0.25, 1)] == [0.0, 0.25, 1.0]
    for value in (1.0001, 2, 50):
        with pytest.raises(
            HyparError, match=rf"^hypar\['{key}'\]: expected a finite number of 0 to 1, found {float(value)}"
        ):
            check({key: value})


def test_augmentations_and_training_options_are_off_by_default():
    wanted = {"copy_paste": 0, "simulate_mask": 0, "backgrounds": ""}
    wanted |= {"lr_decay": "none", "lr_stem_factor": 1, "freeze_bn": False, "mask_skip_logit": 0, "edge_weight": 0}
    wanted |= {"box_gain": 0}
    assert {key: check({})[key] for key in wanted} == wanted


def test_cosine_needs_max_ite():
    with pytest.raises(HyparError, match=r"^hypar\['lr_decay'\]: 'cosine' .* max_ite"):
        check({"lr_decay": "cosine"})
    assert check({"lr_decay": "cosine", "max_ite": 500})["lr_decay"] == "cosine"
    with pytest.raises(HyparError, match=r"^hypar\['recompute'\]: does not work together with compile"):
        check({"recompute": True, "compile": True})
    assert check({"recompute": True})["recompute"]


def test_the_stem_factor_may_be_large_or_zero():
    assert [check({"lr_stem_factor": value})["lr_stem_factor"] for value in (0, 1, 25.5)] == [0.0, 1.0, 25.5]


def test_flips_may_be_written_as_numbers():
    checked = check({"random_flip_h": 1, "random_flip_v": 0})
    assert checked["random_flip_h"] is True
    assert checked["random_flip_v"] is False


def test_integers_are_accepted_as_floats():
    checked = check({"lr": 1, "weight_decay": 0})
    assert (checked["lr"], checked["weight_decay"]) == (1.0, 0.0)
    assert type(checked["lr"]) is float


@pytest.mark.parametrize("in_ch", [3, 4, 5])
def test_model_may_be_a_network(in_ch: int):
    with torch.device("meta"):
        network = ISNetDIS(in_ch)
    assert check({"model": network})["model"] is network
    assert check({"model": in_ch})["model"] == in_ch


@pytest.mark.parametrize("network", [nn.Linear(4, 1), ISNetGTEncoder, ISNetDIS])
def test_other_networks_are_refused(network: Any):
    if network is ISNetGTEncoder:
        network = ISNetGTEncoder()  # it has in_ch 1
    with pytest.raises(HyparError, match=r"hypar\['model'\]: expected int such as 4 or an ISNetDIS, found"):
        check({"model": network})


# --- sizes ---


@pytest.mark.parametrize("size", [512, [512, 512], (512, 512)])
def test_size_may_be_one_number(size: Any):
    checked = check({"cache_size": size})
    assert checked["cache_size"] == checked["input_size"] == checked["crop_size"] == [512, 512]


def test_empty_sizes_follow_the_one_before():
    assert check({"cache_size": [300, 400], "input_size": 256})["crop_size"] == [256, 256]
    assert check({"cache_size": [300, 400], "crop_size": [200, 400]})["input_size"] == [300, 400]


@pytest.mark.parametrize("crop", [[512, 513], [513, 512], 1024])
def test_crop_larger_than_the_input(crop: Any):
    with pytest.raises(HyparError, match=r"hypar\['crop_size'\]: .* is larger than input_size \[512, 512\]"):
        check({"cache_size": 1024, "input_size": 512, "crop_size": crop})


# --- modes ---


def test_training_needs_a_folder():
    with pytest.raises(HyparError, match=r"hypar\['model_path'\]: is empty"):
        check({"model_path": ""})


@pytest.mark.parametrize("mode", ["valid", "inference"])
def test_other_modes_need_weights(mode: str, tmp_path: Path):
    with pytest.raises(HyparError, match=rf"hypar\['restore_model'\]: is empty, but mode '{mode}'"):
        check({"mode": mode, "valid_out_dir": str(tmp_path)})


def test_inference_needs_a_folder_for_its_maps(checkpoint: Path):
    with pytest.raises(HyparError, match=r"hypar\['valid_out_dir'\]: is empty"):
        check({"mode": "inference", "restore_model": str(checkpoint)})
    assert check({"mode": "valid", "restore_model": str(checkpoint)})["valid_out_dir"] == ""


# --- paths ---


def test_relative_paths_start_in_the_home(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    checked = check({"model_path": "../saved_models/x", "valid_out_dir": Path("maps")})
    assert checked["model_path"] == str(home / "saved_models" / "x")
    assert checked["valid_out_dir"] == str(home / "IS_Net" / "maps")
    assert check({"model_path": "~/x"})["model_path"] == str(Path.home().resolve() / "x")
    assert check({"model_path": str(tmp_path)})["model_path"] == str(tmp_path)
    assert check({"backgrounds": "../data/streets", "copy_paste": 0.5})["backgrounds"] == str(home / "data" / "streets")
    assert check({"backgrounds": ""})["backgrounds"] == ""


def test_the_home_is_the_checkout_unless_another_is_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DIS_SAM_HOME", raising=False)
    root = Path(__file__).resolve().parents[2]
    assert check({})["model_path"] == str(root / "saved_models" / "your_model_weights")


@pytest.mark.parametrize("key", ["restore_model", "gt_encoder_model"])
def test_checkpoint_is_found_in_model_path(key: str, checkpoint: Path):
    assert check({"model_path": str(checkpoint.parent), key: checkpoint.name})[key] == str(checkpoint)
    assert check({key: str(checkpoint)})[key] == str(checkpoint)


def test_checkpoint_is_found_in_the_home(home: Path):
    checkpoint = home / "weights" / "best.safetensors"
    for path in (checkpoint, home / "IS_Net" / "best.safetensors"):
        path.parent.mkdir(parents=True)
        path.touch()
    assert check({"restore_model": "../weights/best.safetensors"})["restore_model"] == str(checkpoint)
    found = check({"mode": "valid", "model_path": "", "restore_model": checkpoint.name})
    assert found["restore_model"] == str(home / "IS_Net" / "best.safetensors")


def test_model_path_comes_first(home: Path, checkpoint: Path):
    (home / "IS_Net").mkdir(parents=True)
    (home / "IS_Net" / checkpoint.name).touch()
    found = check({"model_path": str(checkpoint.parent), "restore_model": checkpoint.name})
    assert found["restore_model"] == str(checkpoint)


def test_checkpoint_in_neither_place(home: Path, tmp_path: Path):
    with pytest.raises(HyparError, match=r"hypar\['restore_model'\]: there is no checkpoint 'nope\.pth'") as error:
        check({"model_path": str(tmp_path), "restore_model": "nope.pth"})
    assert str(tmp_path / "nope.pth") in str(error.value)
    assert str(home / "IS_Net" / "nope.pth") in str(error.value)


# --- key=value ---


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("mode=valid", "valid"),
        ("seed=7", 7),
        ("max_ite=1e6", 1_000_000),
        ("max_ite=2_000", 2000),
        ("lr=3e-4", 3e-4),
        ("weight_decay=0", 0.0),
        ("interm_sup=false", False),
        ("interm_sup=True", True),
        ("random_flip_h=0", False),
        ("random_flip_h=1", True),
        ("cache_size=512", [512, 512]),
        ("cache_size=512,256", [512, 256]),
        ("cache_size=[512, 256]", [512, 256]),
        ("input_size=[]", [1024, 1024]),
        ("model=5", 5),
        ("device=cuda:0", "cuda:0"),
        ("workers=2", 2),
        ("copy_paste=0.5", 0.5),
        ("simulate_mask=1", 1.0),
        ("freeze_bn=true", True),
        ("lr_decay=none", "none"),
    ],
)
def test_assignments_are_read_by_type(argument: str, value: Any, checkpoint: Path):
    given = parse_assignments([argument, f"restore_model={checkpoint}"])
    checked = check(given)[argument.partition("=")[0]]
    assert checked == value
    assert type(checked) is type(value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("mode", "expected key=value, found 'mode'"),
        ("--mode=valid", "no key '--mode'; did you mean 'mode'"),
        ("seed=seven", "seed: cannot read 'seven'"),
        ("seed=", "seed: cannot read ''"),
        ("lr={[]: 1}", "lr: cannot read"),
        ("interm_sup=yes", "interm_sup: cannot read 'yes'"),
        ("cache_size=512x512", "cache_size: cannot read"),
        ("lr=__import__('os')", "lr: cannot read"),
        ("max_ite=1.5", r"hypar\['max_ite'\]: expected int"),
        ("max_ite=1e999", r"hypar\['max_ite'\]: expected int"),
        ("batch_size_train=True", r"hypar\['batch_size_train'\]: expected int"),
        ("cache_size=512,512,3", r"hypar\['cache_size'\]: expected"),
        ("interm_sup=2", r"hypar\['interm_sup'\]: expected True or False"),
    ],
)
def test_assignments_that_cannot_be_read(argument: str, message: str):
    with pytest.raises(HyparError, match=message):
        check(parse_assignments([argument]))


def test_extra_keys_are_returned_as_text():
    assert parse_assignments(["valid_datasets=a,b=c"], extra=["valid_datasets"]) == {"valid_datasets": "a,b=c"}
    with pytest.raises(HyparError, match="did you mean 'valid_datasets'"):
        parse_assignments(["valid_dataset=a"], extra=["valid_datasets"])


def test_typed_paths_start_at_the_current_folder(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    folder = checkpoint.parent
    monkeypatch.chdir(folder)
    typed = ["model_path=run", "valid_out_dir=../maps", "backgrounds=streets", f"restore_model={checkpoint.name}"]
    assert parse_assignments(typed) == {
        "model_path": str(folder / "run"),
        "valid_out_dir": str(folder.parent / "maps"),
        "backgrounds": str(folder / "streets"),
        "restore_model": str(checkpoint),
    }
    assert parse_assignments(["valid_out_dir="]) == {"valid_out_dir": ""}


def test_typed_bare_name_is_looked_for_in_model_path(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # where no such file lies
    given = parse_assignments([f"model_path={checkpoint.parent}", f"restore_model={checkpoint.name}"])
    assert check(given)["restore_model"] == str(checkpoint)


@settings(deadline=None)
@given(key=st.sampled_from(list(DEFAULTS)), text=st.text(max_size=12))
def test_any_text_is_a_setting_or_a_hypar_error(key: str, text: str):
    if FIELDS[key].metadata["rule"].path:
        text = text.replace("\0", "").replace("~", "")  # the system's own errors
    try:
        checked = check(parse_assignments([f"{key}={text}"]))
    except HyparError as error:
        assert key in str(error) or "no key" in str(error) or "restore_model" in str(error)
    else:
        assert checked.keys() == DEFAULTS.keys()


def test_sizes_given_as_text_reset_the_sizes_derived_from_them():
    script = {"cache_size": [1024, 1024], "input_size": [1024, 1024], "crop_size": [1024, 1024], "lr": 0.1}
    sizes = [
        [Settings.from_hypar(override(script, parse_assignments(given))).as_dict()[key] for key in SIZES]
        for given in (["cache_size=256"], ["input_size=256"], ["crop_size=256"], ["cache_size=512", "crop_size=256"])
    ]
    small, half, large = [256, 256], [512, 512], [1024, 1024]
    assert sizes == [[small] * 3, [large, small, small], [large, large, small], [half, half, small]]
    assert override(script, {"lr": 0.5}) == {**script, "lr": 0.5}


def test_the_table_needs_no_heavy_package():
    code = "import sys, IS_Net.hypar; print({'torch', 'numpy', 'cv2', 'PIL'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_numpy_numbers_are_refused():
    with pytest.raises(HyparError, match=r"hypar\['seed'\]: expected int .* found int64"):
        check({"seed": np.int64(3)})


def test_a_checkpoint_may_lie_in_the_current_folder(tmp_path, monkeypatch):
    """Row 36 of the faults seen: the current folder is not among the places where a checkpoint is looked for."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HyparError, match=rf"no checkpoint 'nosuch\.pth' \(searched .*{tmp_path / 'nosuch.pth'}\)"):
        Settings.from_hypar({"mode": "valid", "restore_model": "nosuch.pth"})
    (tmp_path / "here.pth").touch()
    assert Settings.from_hypar({"mode": "valid", "restore_model": "here.pth"}).restore_model == str(
        tmp_path / "here.pth"
    )


def test_a_seed_that_is_too_large():
    """Row 36 of the faults seen: a seed beyond 64 bits."""
    with pytest.raises(HyparError, match=r"hypar\['seed'\]: expected a finite number of 0 to"):
        Settings.from_hypar({"seed": 99999999999999999999})
    assert Settings.from_hypar({"seed": 2**63 - 1}).seed == 2**63 - 1


@pytest.mark.parametrize("key", ["model_path", "restore_model", "backgrounds"])
@pytest.mark.parametrize(("path", "reason"), [("~no-such-user/x", "the home folder of ~"), ("a\0b", "a NUL character")])
def test_a_text_that_is_no_path_is_named(key: str, path: str, reason: str):
    message = rf"hypar\['{key}'\]: expected a path, found {re.escape(repr(path))}.*{reason}"
    with pytest.raises(HyparError, match=message):
        check({key: path})
    with pytest.raises(HyparError, match=message):
        parse_assignments([f"{key}={path}"])
