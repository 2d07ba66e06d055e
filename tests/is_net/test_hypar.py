"""The settings: what is checked, what is filled in, and where paths lead."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from IS_Net import hypar as hypar_module
from IS_Net.errors import HyparError
from IS_Net.hypar import DEFAULTS, IS_NET_DIR, check, parse_assignments, resolve
from IS_Net.models import ISNetDIS, ISNetGTEncoder

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


@pytest.mark.parametrize("chosen", ["", "mae,hse", "f;wf"])
def test_metrics_are_checked(chosen: str):
    assert check({"metrics": "f, hce"})["metrics"] == "f, hce"
    with pytest.raises(HyparError, match=r"hypar\['metrics'\]: .*expected f, wf, mae, s, e, hce, iou, biou, or all"):
        check({"metrics": chosen})


def test_defaults_pass_their_own_check():
    checked = check({})
    assert checked.keys() == DEFAULTS.keys()
    changed = {key for key in DEFAULTS if checked[key] != DEFAULTS[key]}
    assert changed == {"model_path", "input_size", "crop_size"}


def test_defaults_are_not_handed_out():
    before = dict(DEFAULTS)
    check({})["cache_size"].append(3)
    assert before == DEFAULTS == {**before, "cache_size": [1024, 1024]}


def test_every_published_key_is_taken():
    checked = check(PUBLISHED)
    same = set(PUBLISHED) - {"model_path"}
    assert {key: checked[key] for key in same} == {key: PUBLISHED[key] for key in same}


def test_defaults_are_the_published_recipe():
    recipe = {"lr": 4e-5, "weight_decay": 0, "bce_weight": 20, "iou_weight": 0.5, "feature_weight": 1}
    recipe |= {"orthogonal_weight": 1e-8, "gt_encoder_lr": 1e-4, "gt_encoder_stop_f": 0.99, "accumulation": 1}
    recipe |= {**PUBLISHED, "model": 4, "model_digit": "auto", "input_size": [], "crop_size": []}
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
    with pytest.raises(HyparError, match=r"no key 'xyzzy'; known are accumulation, backgrounds, .* workers"):
        check({"xyzzy": 1})


WRONG = {
    bool: ["True", 2, -1, None, [], "1"],
    int: [1.5, "4", None, True, -1, [4]],
    float: ["1e-4", None, False, -1e-9, float("nan"), float("inf"), [0.1]],
    str: [1, None, True, ["train"]],
}


@pytest.mark.parametrize("key", [key for key in DEFAULTS if key not in hypar_module.SIZES])
def test_every_wrong_type_names_its_key(key: str):
    for value in WRONG[type(DEFAULTS[key])]:
        with pytest.raises(HyparError, match=rf"^hypar\['{key}'\]: expected"):
            check({key: value})


@pytest.mark.parametrize("key", hypar_module.SIZES)
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
    "key", ["batch_size_train", "batch_size_valid", "accumulation", "model_save_fre", "early_stop"]
)
def test_numbers_that_may_not_be_zero(key: str):
    with pytest.raises(HyparError, match=rf"hypar\['{key}'\]: expected a finite number of at least 1, found 0"):
        check({key: 0})


@pytest.mark.parametrize("key", ["copy_paste", "simulate_mask"])
def test_shares_are_of_0_to_1(key: str):
    assert [check({key: value})[key] for value in (0, 0.25, 1)] == [0.0, 0.25, 1.0]
    for value in (1.0001, 2, 50):
        with pytest.raises(HyparError, match=rf"^hypar\['{key}'\]: expected a share of 0 to 1, found {float(value)}"):
            check({key: value})


def test_nothing_is_made_up_frozen_or_decayed_unless_asked_for():
    wanted = {"copy_paste": 0, "simulate_mask": 0, "backgrounds": ""}
    wanted |= {"lr_decay": "none", "lr_stem_factor": 1, "freeze_bn": False, "mask_skip_logit": 0, "edge_weight": 0}
    assert {key: check({})[key] for key in wanted} == wanted


def test_cosine_needs_an_end_to_fall_to():
    with pytest.raises(HyparError, match=r"^hypar\['lr_decay'\]: cosine .* max_ite"):
        check({"lr_decay": "cosine"})
    assert check({"lr_decay": "cosine", "max_ite": 500})["lr_decay"] == "cosine"


def test_the_stems_rate_may_be_larger_or_none():
    assert [check({"lr_stem_factor": value})["lr_stem_factor"] for value in (0, 1, 25.5)] == [0.0, 1.0, 25.5]


def test_flips_may_be_written_as_numbers():
    checked = check({"random_flip_h": 1, "random_flip_v": 0})
    assert checked["random_flip_h"] is True
    assert checked["random_flip_v"] is False


def test_whole_numbers_do_for_fractions():
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
def test_model_of_another_kind(network: Any):
    if network is ISNetGTEncoder:
        network = ISNetGTEncoder()  # it has in_ch 1
    with pytest.raises(HyparError, match=r"hypar\['model'\]: expected"):
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


def test_relative_paths_start_at_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    checked = check({"model_path": "../saved_models/x", "valid_out_dir": Path("maps")})
    assert checked["model_path"] == str(IS_NET_DIR.parent / "saved_models" / "x")
    assert checked["valid_out_dir"] == str(IS_NET_DIR / "maps")
    assert resolve("~/x") == Path.home().resolve() / "x"
    assert check({"model_path": str(tmp_path)})["model_path"] == str(tmp_path)
    assert check({"backgrounds": "../data/streets"})["backgrounds"] == str(IS_NET_DIR.parent / "data" / "streets")
    assert check({"backgrounds": ""})["backgrounds"] == ""


@pytest.mark.parametrize("key", ["restore_model", "gt_encoder_model"])
def test_checkpoint_is_found_in_model_path(key: str, checkpoint: Path):
    assert check({"model_path": str(checkpoint.parent), key: checkpoint.name})[key] == str(checkpoint)
    assert check({key: str(checkpoint)})[key] == str(checkpoint)


def test_checkpoint_is_found_from_the_package(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hypar_module, "IS_NET_DIR", checkpoint.parent)
    monkeypatch.setattr(resolve, "__defaults__", (checkpoint.parent,))
    assert check({"restore_model": f"../weights/{checkpoint.name}"})["restore_model"] == str(checkpoint)
    found = check({"mode": "valid", "model_path": "", "restore_model": checkpoint.name})
    assert found["restore_model"] == str(checkpoint)


def test_checkpoint_in_neither_place(tmp_path: Path):
    with pytest.raises(HyparError, match=r"hypar\['restore_model'\]: no checkpoint 'nope\.pth'") as error:
        check({"model_path": str(tmp_path), "restore_model": "nope.pth"})
    assert str(tmp_path / "nope.pth") in str(error.value)
    assert str(IS_NET_DIR / "nope.pth") in str(error.value)


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


def test_further_keys_are_left_as_text():
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
    if key in hypar_module.PATHS:
        text = text.replace("\0", "").replace("~", "")  # the system's own errors
    try:
        checked = check(parse_assignments([f"{key}={text}"]))
    except HyparError as error:
        assert key in str(error) or "no key" in str(error) or "restore_model" in str(error)
    else:
        assert checked.keys() == DEFAULTS.keys()


def test_numpy_numbers_are_told_apart():
    with pytest.raises(HyparError, match=r"hypar\['seed'\]: expected int .* found int64"):
        check({"seed": np.int64(3)})
