"""hard_scenes: what its three sets hold, their coarse masks, and when they are made again."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from IS_Net.images import read_image, read_mask
from recipes.starter import hard_scenes as hs

SIZE = (168, 216)
SCATTERED = {"seedlings", "fallen"}


def kind(name):
    return next(kind for kinds in hs.KINDS.values() for kind in kinds if kind.name == name)


def draw(kind, seed=0, size=SIZE):
    return hs.make_scene(kind, np.random.default_rng(seed), size)


@pytest.fixture(scope="module")
def scenes():
    """Every kind once, small: {set: {kind: (image, alphas)}}."""
    return {name: {kind.name: draw(kind) for kind in kinds} for name, kinds in hs.KINDS.items()}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    out = tmp_path_factory.mktemp("hard") / "sets"
    assert hs.make_hard_scenes(out, seed=1, per_set=2, size=(96, 128))
    return out


def distance(image, alpha):
    """Color distance (CIE Lab) between an object's mean and that of a ring around it."""
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    ring = cv2.dilate(alpha, np.ones((15, 15), np.uint8)) & ~cv2.dilate(alpha, np.ones((3, 3), np.uint8))
    return float(np.linalg.norm(lab[alpha > 250].mean(0) - lab[ring > 250].mean(0)))


def test_image_and_ground_truth_fit_and_the_object_is_neither_nothing_nor_everything(scenes):
    for name, kinds in scenes.items():
        for kind, (image, alphas) in kinds.items():
            assert image.shape == (*SIZE, 3) and image.dtype == np.uint8
            assert len(alphas) == (2 if name == "touching" else 1)
            for alpha in alphas:
                assert alpha.shape == SIZE and alpha.dtype == np.uint8
                assert 0.002 < (alpha > 128).mean() < 0.6, kind


def test_every_set_has_at_least_five_kinds():
    assert all(len(kinds) >= 5 for kinds in hs.KINDS.values())


def test_scattered_kinds_have_many_components(scenes):
    assert scenes["many_parts"].keys() >= SCATTERED
    for kind in SCATTERED:
        _, (alpha,) = scenes["many_parts"][kind]
        assert cv2.connectedComponents((alpha > 128).astype(np.uint8))[0] - 1 >= 8, kind


def test_objects_of_low_salience_resemble_their_surroundings(scenes):
    low, many = (
        np.median([distance(image, alphas[0]) for image, alphas in scenes[name].values()])
        for name in ("low_salience", "many_parts")
    )
    assert low < 12 and low < many / 2


def test_touching_objects_are_disjoint_and_adjacent(scenes):
    for kind, (_, (a, b)) in scenes["touching"].items():
        assert (a.astype(int) + b).max() <= 256, kind
        grown = cv2.dilate((a > 128).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        assert (grown & (b > 128)).any(), kind


@pytest.mark.parametrize("name", ["seedlings", "towel", "cup"])
def test_equal_seeds_give_equal_pixels(name):
    (image, alphas), (again, alphas_again), (other, _) = (draw(kind(name), seed) for seed in (5, 5, 6))
    assert np.array_equal(image, again) and np.array_equal(alphas, alphas_again)
    assert not np.array_equal(image, other)


def test_sizes_vary_between_700_and_1400():
    image, _ = draw(kind("card"), 0, None)
    assert all(700 <= side <= 1400 for side in image.shape[:2])


def test_the_box_replaces_a_mask_that_holds_nothing(monkeypatch):
    monkeypatch.setattr(hs, "sam_like", lambda gt, image, rng: gt > 255)
    gt = np.zeros((60, 80), np.uint8)
    cv2.circle(gt, (40, 30), 10, 255, -1)
    found = hs.coarse_mask(np.zeros((60, 80, 3), np.uint8), gt, np.random.default_rng(0))
    expected = np.zeros_like(gt)
    expected[20:41, 30:51] = 255
    assert np.array_equal(found, expected)


def test_coarse_masks_are_near_the_target_and_not_exact():
    image, (gt, _) = draw(kind("apple"))
    mask = hs.coarse_mask(image, gt, np.random.default_rng(0))
    assert set(np.unique(mask)) == {0, 255}
    overlap = ((mask > 0) & (gt > 128)).sum() / ((mask > 0) | (gt > 128)).sum()
    assert 0.5 < overlap < 0.999


def test_the_sets_hold_the_data_contract(sets):
    for name in hs.KINDS:
        stems = sorted(path.stem for path in (sets / name / "im").glob("*.jpg"))
        assert len(stems) == 2
        for folder in ("gt", "sim"):
            assert sorted(path.stem for path in (sets / name / folder).glob("*.png")) == stems
        for stem in stems:
            image = read_image(sets / name / "im" / f"{stem}.jpg")
            for folder in ("gt", "sim"):
                mask = cv2.imread(str(sets / name / folder / f"{stem}.png"), cv2.IMREAD_UNCHANGED)
                assert mask.dtype == np.uint8 and mask.shape == image.shape[:2] and mask.any()
                assert folder == "gt" or set(np.unique(mask)) <= {0, 255}
    a, b = sorted((sets / "touching" / "im").iterdir())
    assert (a.stem[:-1], b.stem[:-1]) == (a.stem[:-1],) * 2 and a.read_bytes() == b.read_bytes()
    assert not np.array_equal(*(read_mask(sets / "touching" / "gt" / f"{path.stem}.png") for path in (a, b)))
    assert (sets / "contact_sheet.jpg").is_file()


def test_a_second_run_finds_the_sets_and_other_settings_replace_them(sets):
    before = (sets / "hard.json").stat().st_mtime_ns
    assert not hs.make_hard_scenes(sets, seed=1, per_set=2, size=(96, 128))
    assert (sets / "hard.json").stat().st_mtime_ns == before
    assert hs.make_hard_scenes(sets, seed=1, per_set=1, size=(96, 128))
    assert json.loads((sets / "hard.json").read_text())["per_set"] == 1
    assert len(list((sets / "many_parts" / "im").iterdir())) == 1
    assert [path.name for path in sets.parent.iterdir()] == [sets.name]


def test_files_beside_the_scenes_are_kept(tmp_path, capsys):
    """Row 4c of the list of faults, its kind: other settings removed the masks of stage 1."""
    (tmp_path / "hard.json").write_text("{}")
    mask = tmp_path / "touching" / "mask" / "a.png"
    mask.parent.mkdir(parents=True)
    mask.write_text("precious")
    assert hs.main(["--out", str(tmp_path)]) == 2
    assert "mask/a.png: was not made by this program" in capsys.readouterr().err and mask.read_text() == "precious"


def test_changed_scenes_and_files_of_others_among_them_are_kept(tmp_path, capsys):
    """They were removed without a word."""
    out = tmp_path / "hard"
    command = ["--out", str(out), "--per-set", "1"]
    assert hs.make_hard_scenes(out, seed=0, per_set=1, size=(96, 96))
    for changed in (out / "mine" / "im" / "a.jpg", next((out / "many_parts" / "gt").iterdir())):
        before = changed.read_bytes() if changed.exists() else None
        changed.parent.mkdir(parents=True, exist_ok=True)
        changed.write_bytes(b"precious")
        assert hs.main([*command, "--seed", "1"]) == 2
        assert f"{changed}: was not made by this program, or was changed since" in capsys.readouterr().err
        assert changed.read_bytes() == b"precious"
        changed.unlink() if before is None else changed.write_bytes(before)
    (out / "many_parts" / "box").mkdir()  # box_prompts makes it again
    (out / "many_parts" / "box" / "manifest.jsonl").write_text("{}")
    assert hs.make_hard_scenes(out, seed=1, per_set=1, size=(96, 96))


def test_a_foreign_folder_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    assert hs.main(["--out", str(tmp_path), "--per-set", "1"]) == 2
    assert "did not make" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(hs, "_write_scene", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    assert hs.main(["--out", str(tmp_path / "hard")]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [["--per-set", "0"], ["--seed", "-1"], ["--per-set", "x"]])
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(SystemExit) as stop:
        hs.main(wrong)
    assert stop.value.code == 2
