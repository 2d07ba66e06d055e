"""data/make_sample.py and data/sample_scenes: the files, their ground truth, and the renderer."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from IS_Net.images import read_image, read_mask, write_image
from IS_Net.lock import lock_folder

DATA = Path(__file__).resolve().parents[2] / "data"
sys.path.insert(0, str(DATA))

import make_sample as ms  # noqa: E402
from sample_scenes import compose, make_pair  # noqa: E402
from sample_scenes.kinds import KINDS  # noqa: E402
from sample_scenes.materials import Material  # noqa: E402
from sample_scenes.mesh import Model  # noqa: E402
from sample_scenes.photographs import REGIONS, motorcycle  # noqa: E402
from sample_scenes.render import Camera, Cutout, Light, rasterize, render  # noqa: E402

SMALL = ms.Settings(train=1, valid=1, test=2, seed=3, size=128)


@pytest.fixture(scope="module", autouse=True)
def no_network():
    """Any attempt to reach the network fails the tests."""

    def refuse(*args, **kwargs):
        raise AssertionError("the sample must not need the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "create_connection", refuse)
        yield


@pytest.fixture(scope="module")
def sample(tmp_path_factory, no_network):
    out = tmp_path_factory.mktemp("sample")
    assert ms.make_sample(out, SMALL, workers=1)
    return out


def contents(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def pairs(out):
    for split in ms.SPLITS.values():
        for path in sorted((out / split / "im").iterdir()):
            yield read_image(path), read_mask(out / split / "gt" / f"{path.stem}.png")


def test_every_image_has_a_ground_truth_of_its_size(sample):
    for split, count in (("DIS-TR", 1), ("DIS-VD", 1), ("DIS-TE1", 2)):
        names = sorted(p.stem for p in (sample / split / "im").glob("*.jpg"))
        assert len(names) == count
        assert names == sorted(p.stem for p in (sample / split / "gt").glob("*.png"))
    for image, gt in pairs(sample):
        assert image.shape == (*gt.shape, 3)
        assert max(gt.shape) == SMALL.size


def test_ground_truth_is_antialiased_and_holds_both_classes(sample):
    for _, gt in pairs(sample):
        assert gt.max() > 200 and gt.min() == 0
        assert ((gt > 20) & (gt < 235)).mean() > 0.002
        assert 0.01 < (gt > 128).mean() < 0.9


def test_no_picture_and_no_name_is_in_two_splits(sample):
    images = [p.read_bytes() for p in sample.glob("DIS-*/im/*.jpg")]
    assert len(set(images)) == len(images)
    assert len({json.dumps(region) for region in REGIONS.values()}) == 3


def test_backgrounds_of_splits_come_from_parts_that_do_not_overlap():
    boxes = list(REGIONS.values())
    for k, (x0, y0, x1, y1) in enumerate(boxes):
        for u0, v0, u1, v1 in boxes[k + 1 :]:
            assert x1 <= u0 or u1 <= x0 or y1 <= v0 or v1 <= y0


def test_another_seed_gives_another_sample():
    first, again, second = (make_pair("trellis", "DIS-TR", np.random.default_rng(seed), 64) for seed in (0, 0, 1))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert first[0].shape != second[0].shape or not np.array_equal(first[0], second[0])


def test_two_workers_write_the_same_bytes_as_one(sample, tmp_path):
    # a process of its own: spawned workers start from its main module
    command = [sys.executable, str(DATA / "make_sample.py"), "--out", str(tmp_path), "--train", "1", "--valid", "1"]
    command += ["--test", "2", "--seed", "3", "--size", "128", "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == contents(sample)


def test_a_second_run_reuses_the_sample(sample, capsys):
    before = {p: p.stat().st_mtime_ns for p in sample.rglob("*")}
    arguments = ["--out", str(sample), "--train", "1", "--valid", "1", "--test", "2", "--seed", "3", "--size", "128"]
    assert ms.main([*arguments, "--workers", "1"]) == 0
    assert "already complete" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in sample.rglob("*")}


def test_other_settings_an_interruption_or_a_lost_file_call_for_a_new_sample(tmp_path, monkeypatch):
    settings = ms.Settings(train=2, valid=0, test=0, size=64)
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)

    monkeypatch.setattr(ms, "make_pair", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ms.make_sample(tmp_path, settings, 1)
    assert not ms.is_complete(tmp_path, settings)
    (tmp_path / "DIS-TR" / "im" / "stale_0009.jpg").write_bytes(b"left over")
    assert ms.make_sample(tmp_path, settings, 1)
    assert ms.is_complete(tmp_path, settings)
    assert not (tmp_path / "DIS-TR" / "im" / "stale_0009.jpg").exists()
    assert not list(tmp_path.rglob("*.part"))
    assert not ms.is_complete(tmp_path, ms.Settings(train=2, valid=0, test=0, size=64, seed=1))
    next((tmp_path / "DIS-TR" / "gt").iterdir()).unlink()
    assert not ms.is_complete(tmp_path, settings)


def test_what_else_lies_in_the_folder_stays(tmp_path):
    kept = tmp_path / "notes.txt"
    kept.write_text("mine")
    ms.make_sample(tmp_path, ms.Settings(train=0, valid=0, test=0), 1)
    assert kept.read_text() == "mine"


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--train", "-1"], ["--size", "8"], ["--seed", "x"], ["--contact-sheet", "sheet.txt"]),
        ["--contact-sheet", "sheet.png", "--train", "0", "--valid", "0", "--test", "0"],
    ],
)
def test_wrong_arguments_exit_with_two(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        ms.main(arguments)
    assert error.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_missing_photograph_is_named_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ms, "PHOTOS", {"nothing": ("nothing.png", "thing", (0, 0, 1, 1))})
    assert ms.main(["--out", str(tmp_path / "new"), "--workers", "1"]) == 2
    assert "nothing.png" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(
    os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="the administrator may write anywhere"
)
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert ms.main(["--out", str(tmp_path / "new"), "--train", "1", "--workers", "1", "--size", "64"]) == 2
    assert "error:" in capsys.readouterr().err


def light() -> Light:
    way = np.array([0.6, 0.7, 0.4])
    return Light(way / np.linalg.norm(way), np.ones(3), 0.3, np.full((4, 4, 3), 0.4, np.float32))


def built(kind: str, rng: np.random.Generator) -> Model:
    model = Model(rng)
    KINDS[kind](model)
    return model


def draw_alone(kind: str, seed: int, size: int) -> Cutout:
    """Draw an object in the middle of a frame of (size, size), which it does not fill."""
    rng = np.random.default_rng(seed)
    model = built(kind, rng)
    low, high = model.bounds()
    camera = Camera(3.2 * size, 0.75 * float(high[1]), (size / 2, size / 2))
    middle = np.array([0, camera.height, -4 * float((high - low).max())]) - (low + high) / 2
    return render(model, camera, light(), middle, (size, size), rng)


@pytest.mark.parametrize("kind", ms.KINDS)
def test_each_kind_is_thin_or_perforated_and_shaded(kind):
    cutout = draw_alone(kind, 2, 256)
    alpha = np.round(cutout.rgba[..., 3] * 255).astype(np.uint8)
    solid = np.pad((alpha > 128).astype(np.uint8), 1)
    assert ((alpha > 20) & (alpha < 235)).any()
    contours, hierarchy = cv2.findContours(solid, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    holes = int((hierarchy[0, :, 3] >= 0).sum())
    outline = sum(cv2.arcLength(c, True) for c in contours)
    # a disc of the same area has a ratio of one
    ratio = outline / np.sqrt(4 * np.pi * solid.sum())
    assert ratio > 2 or holes >= 3
    shown = np.clip(cutout.rgba[..., :3], 0, 1) ** (1 / 2.2) * 255
    assert shown[alpha > 200].std(0).max() > 8


def test_equal_generators_draw_equal_objects_and_others_differ():
    first, again, other = (draw_alone("chair", seed, 64).rgba for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


def ball(target: int = 0, x: float = 0.0, z: float = 0.0, model: Model | None = None) -> Model:
    model = model or Model(np.random.default_rng(0))
    model.target = target
    model.ball((x, 0, z), 0.3, Material((0.5, 0.5, 0.5)), detail=41)
    return model


def draw_ball(model: Model, at: tuple[float, float] = (0.0, 0.0), frame: tuple[int, int] = (100, 100)) -> Cutout | None:
    """Draw balls from so far away that 100 pixels span a meter."""
    camera = Camera(1e4, 5.0, (frame[1] / 2, frame[0] / 2))
    return render(model, camera, light(), np.array([at[0], 5 + at[1], -100.0]), frame, np.random.default_rng(0))


def test_ground_truth_is_the_share_of_the_pixel_that_is_covered():
    _, gts = compose(np.zeros((100, 100, 3)), [draw_ball(ball())], np.random.default_rng(0))
    assert gts.shape == (1, 100, 100) and gts.dtype == np.uint8
    assert gts.sum() / 255 == pytest.approx(np.pi * 30**2, rel=0.005)


def test_nearer_parts_cover_further_ones_and_belong_to_their_own_target():
    model = ball(0, -0.2)
    ball(1, 0.2, model=model)
    ball(-1, 0.0, 0.5, model=model)  # of no target, before both
    _, (a, b) = compose(np.zeros((100, 100, 3)), [draw_ball(model)], np.random.default_rng(0))
    assert a[50, 10] == 255 and b[50, 90] == 255 and b[50, 10] == 0
    assert a[50, 40] == b[50, 40] == a[50, 50] == b[50, 60] == 0
    assert (a.astype(int) + b).max() <= 256


def test_a_nearer_cutout_covers_the_targets_behind_it():
    _, gts = compose(
        np.zeros((100, 100, 3)), [draw_ball(ball()), draw_ball(ball(-1), (0.2, 0))], np.random.default_rng(0)
    )
    assert gts.shape[0] == 1 and gts[0][50, 25] == 255 and gts[0][50, 70] == 0


@pytest.mark.parametrize("at", [(-0.5, 0.3), (0.49, -0.4), (0.6, 0.0)])
def test_objects_may_reach_out_of_the_frame(at):
    cutout = draw_ball(ball(), at, (90, 100))
    (x, y), (h, w) = cutout.corner, cutout.shadow.shape
    assert x >= 0 and y >= 0 and x + w <= 100 and y + h <= 90
    assert cutout.targets.max() == pytest.approx(1)


def test_shadows_darken_the_image_but_are_not_ground_truth():
    background = np.full((60, 80, 3), 0.5, np.float32)
    rgba = np.zeros((20, 40, 4), np.float32)
    rgba[:, :20] = (0.1, 0.2, 0.1, 1)
    shadow = np.zeros((20, 40), np.float32)
    shadow[:, 20:] = 0.7
    cutout = Cutout(rgba, shadow, rgba[..., 3:].copy(), (10, 30))
    image, (gt,) = compose(background, [cutout], np.random.default_rng(0))
    assert image[40, 42].mean() < image[10, 42].mean() - 30
    assert gt[40, 42] == 0 and gt[40, 20] == 255
    assert (gt > 128).sum() == 20 * 20


def draw_at(kind: str, offset: tuple[float, float, float]) -> Cutout | None:
    rng = np.random.default_rng(0)
    return render(built(kind, rng), Camera(300, 1.0, (80, 30)), light(), np.array(offset), (160, 160), rng)


def test_rendered_shadow_reaches_beyond_the_object():
    cutout = draw_at("chair", (0, 0, -2.5))
    beyond = cutout.rgba[..., 3] == 0
    assert cutout.shadow[beyond].max() > 0.3
    assert cutout.rgba.shape[:2] == cutout.shadow.shape == cutout.targets.shape[:2]
    assert np.isfinite(cutout.rgba).all() and cutout.shadow.min() >= 0 and cutout.shadow.max() <= 1


def test_nothing_is_drawn_outside_the_frame():
    assert draw_at("chair", (50.0, 0, -2.5)) is None


def test_rasterize_finds_the_nearest_triangle():
    far = [(0, 0, 1.0), (10.2, 0, 1.0), (0, 10.2, 1.0)]
    near = [(0, 0, 2.0), (5.2, 0, 2.0), (0, 5.2, 2.0)]
    face, nearness = rasterize(np.array([far, near], float), (10, 10))
    assert face[1, 1] == 1 and face[1, 6] == 0 and face[9, 9] == -1
    assert nearness[1, 1] == pytest.approx(2) and nearness[1, 6] == pytest.approx(1) and nearness[9, 9] == -np.inf
    swapped, _ = rasterize(np.array([near, far[::-1]], float), (10, 10))
    assert np.array_equal(swapped >= 0, face >= 0) and swapped[1, 1] == 0


def test_rasterize_covers_each_pixel_of_a_tiling_once():
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.linspace(0, 40, 7), np.linspace(0, 40, 7), indexing="ij"), -1)
    grid[1:-1, 1:-1] += rng.uniform(-2, 2, (5, 5, 2))
    a, b, c, d = grid[:-1, :-1], grid[1:, :-1], grid[:-1, 1:], grid[1:, 1:]
    flat = np.concatenate([np.stack([a, b, c], 2).reshape(-1, 3, 2), np.stack([d, c, b], 2).reshape(-1, 3, 2)])
    face, _ = rasterize(np.concatenate([flat, np.ones((len(flat), 3, 1))], -1), (40, 40))
    assert (face >= 0).mean() > 0.999  # pixel centers on an edge may round away


def test_rasterize_interpolates_nearness_across_a_triangle():
    _, nearness = rasterize(np.array([[(0, 0, 0), (40, 0, 4), (0, 40, 0)]], float), (20, 20))
    assert np.allclose(nearness[:15, :15], (np.arange(15) + 0.5) / 10, atol=1e-6)


@pytest.mark.parametrize("split", ["DIS-VD", "DIS-TE1"])
@pytest.mark.parametrize("kind", ms.KINDS)
def test_objects_to_validate_and_test_on_are_wholly_inside_the_frame(kind, split):
    _, gt = make_pair(kind, split, np.random.default_rng(7), 320)
    assert not np.concatenate([gt[0], gt[-1], gt[:, 0], gt[:, -1]]).any()


def test_motorcycle_mask_is_the_motorcycle():
    image, mask = motorcycle()
    assert image.shape == (500, 741, 3) and mask.shape == (500, 741) and mask.dtype == bool
    assert 0.2 < mask.mean() < 0.32
    y, x = np.nonzero(mask)
    assert 85 < x.min() < 100 and 680 < x.max() < 692 and 445 < y.max() < 457
    assert mask[250, 300] and mask[150, 540] and mask[390, 200]  # side cover, headlamp, rear tire
    assert not mask[470, 100] and not mask[100, 100] and not mask[230, 600]  # floor, bench, boxes
    assert not mask[361, 626]  # the floor seen between the front wheel's spokes
    holes, _ = cv2.connectedComponents((~mask).astype(np.uint8), connectivity=4)
    assert holes > 10


def test_motorcycle_is_a_pair_of_the_test_split(sample):
    names = [p.stem for p in (sample / "DIS-TE1" / "im").glob("motorcycle_*.jpg")]
    assert len(names) == 1
    assert not list(sample.glob("DIS-[TV][RD]/im/motorcycle*"))


def test_prompts_are_tight_boxes_inside_their_photographs(sample):
    prompts = json.loads((sample / "photos" / "prompts.json").read_text())
    assert {p.stem for p in (sample / "photos" / "im").iterdir()} == set(prompts)
    assert {"astronaut", "chelsea", "coffee", "rocket", "motorcycle"} == set(prompts)
    for name, things in prompts.items():
        h, w = read_image(sample / "photos" / "im" / f"{name}.png").shape[:2]
        for thing in things:
            x0, y0, x1, y1 = thing["box"]
            assert 0 <= x0 < x1 < w and 0 <= y0 < y1 < h
            assert thing["object"]


def test_overview_shows_all_pairs(sample):
    sheet = ms.overview(sample, SMALL, height=60, columns=3)
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    assert 2 * 60 < sheet.shape[0] < 3 * 60  # four pairs in two rows, with captions


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bicycle", "trellis"])  # the others take up to half a minute
def test_full_size_pairs_are_large_and_detailed(kind):
    image, gt = make_pair(kind, "DIS-TR", np.random.default_rng(5))
    assert max(image.shape) >= 1024
    assert (gt == 255).any() and ((gt > 20) & (gt < 235)).any()


# --- what others wrote


TINY = ms.Settings(train=2, valid=0, test=0, size=64)


@pytest.fixture
def quick(monkeypatch):
    """Replace the drawing by pictures that differ with the settings."""

    def draw(kind, split, rng, size):
        return rng.integers(0, 255, (64, 64, 3), dtype=np.uint8), np.full((64, 64), 200, np.uint8)

    monkeypatch.setattr(ms, "make_pair", draw)


def command(out: Path, seed: int = 0) -> list[str]:
    sizes = ["--train", "2", "--valid", "0", "--test", "0", "--size", "64", "--workers", "1"]
    return ["--out", str(out), "--seed", str(seed), *sizes]


def test_data_sets_of_the_same_names_are_never_removed(tmp_path, quick, capsys):
    """Row 2 of the list of faults: real DIS-TR, DIS-VD and DIS-TE1 in the folder were removed."""
    for split in ("DIS-TR", "DIS-TE1"):
        write_image(tmp_path / split / "im" / "1#Accessories#1#Bag.jpg", np.zeros((4, 4, 3), np.uint8))
    before = contents(tmp_path)
    assert ms.main(command(tmp_path)) == 2
    assert "1#Accessories#1#Bag.jpg" in (message := capsys.readouterr().err) and "choose another folder" in message
    assert contents(tmp_path) == before


def test_masks_and_corrections_survive_another_setting(tmp_path, quick, capsys):
    """Row 4c: another setting removed the masks of stage 1, and corrected ground truths."""
    assert ms.main(command(tmp_path)) == 0
    gt = sorted((tmp_path / "DIS-TR" / "gt").iterdir())[0]
    for path in (tmp_path / "DIS-TR" / "mask" / "a.png", gt, tmp_path / "DIS-TR" / "im" / "mine.jpg"):
        original = path.read_bytes() if path.exists() else None
        write_image(path, np.full((64, 64), 9, np.uint8))
        before = contents(tmp_path)
        assert ms.main(command(tmp_path, seed=1)) == 2
        assert path.name in capsys.readouterr().err and contents(tmp_path) == before
        path.unlink() if original is None else path.write_bytes(original)
    assert ms.main(command(tmp_path, seed=1)) == 0  # only its own files are there: they are replaced
    assert ms.is_complete(tmp_path, ms.Settings(train=2, valid=0, test=0, size=64, seed=1))


def test_a_changed_sample_is_not_complete_and_not_replaced(tmp_path, quick, capsys):
    """Row 4c and 40: the record vouches for the content, not for the names alone."""
    assert ms.main(command(tmp_path)) == 0
    gt = sorted((tmp_path / "DIS-TR" / "gt").iterdir())[0]
    gt.write_bytes(b"")  # a power cut
    assert not ms.is_complete(tmp_path, TINY)
    assert ms.main(command(tmp_path)) == 0 and ms.is_complete(tmp_path, TINY)
    write_image(gt, np.full((64, 64), 9, np.uint8))
    assert not ms.is_complete(tmp_path, TINY)
    assert ms.main(command(tmp_path)) == 2
    assert "changed since: DIS-TR/gt/" in capsys.readouterr().err


def test_a_sample_of_an_earlier_version_is_complete_and_replaceable(tmp_path, quick):
    """Its record has no hashes."""
    assert ms.main(command(tmp_path)) == 0
    record = json.loads((tmp_path / "sample.json").read_text())
    del record["files"]
    (tmp_path / "sample.json").write_text(json.dumps(record))
    assert ms.is_complete(tmp_path, TINY)
    assert ms.main(command(tmp_path, seed=1)) == 0


def test_two_runs_in_one_folder(tmp_path, quick, capsys):
    """Row 52, its kind."""
    with lock_folder(tmp_path, "another run"):
        assert ms.main(command(tmp_path)) == 2
    assert "is in use by another run" in capsys.readouterr().err
