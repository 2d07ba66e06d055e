"""The data doctor: every kind of finding, a sound data set, copies, and the first look before a training."""

from __future__ import annotations

import json
import logging
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from IS_Net import doctor
from IS_Net.data_loader import DISDataset
from IS_Net.datalist import from_folder
from IS_Net.doctor import (
    ERROR,
    KINDS,
    Finding,
    Report,
    examine,
    find_truncated,
    looks_whole,
    require_usable,
    take_first_look,
)
from IS_Net.errors import DatasetError
from IS_Net.images import write_image, write_mask

Scene = tuple[np.ndarray, np.ndarray]

REAL = Path(__file__).resolve().parents[3] / "shared" / "real"


def scene(seed: int, height: int = 150, width: int = 200) -> Scene:
    """Return a photograph, (H, W, 3) uint8, of a shape without any symmetry, and the shape's ground truth."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(0, 90, (6, 8, 3)).astype(np.float32)
    image = cv2.resize(ground, (width, height), interpolation=cv2.INTER_CUBIC)
    points = [(0.1, 0.15), (0.5, 0.1), (0.85, 0.55), (0.5, 0.45), (0.35, 0.9), (0.15, 0.7)]
    corners = (np.array(points) + rng.uniform(-0.05, 0.05, (6, 2))) * (width, height)
    gt = np.zeros((height, width), np.uint8)
    cv2.fillPoly(gt, [corners.astype(np.int32)], 255)
    image[gt > 128] = rng.integers(150, 255, 3)
    return np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8), gt


def write(folder: Path, name: str, image: np.ndarray, gt: np.ndarray, mask: np.ndarray | None = None) -> None:
    write_image(folder / "im" / f"{name}.png", image)
    write_mask(folder / "gt" / f"{name}.png", gt)
    write_mask(folder / "mask" / f"{name}.png", gt if mask is None else mask)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a sound data set of three different photographs, with ground truths and masks."""
    for seed in range(3):
        write(tmp_path / "set", f"p{seed}", *scene(seed))
    return tmp_path / "set"


def look(*folders: Path, **options) -> Report:
    return examine([from_folder(folder) for folder in folders], progress=False, **options)


def only(report: Report, kind: str) -> Finding:
    """Return the only finding of a report that is not a note; its message must name all of its files."""
    (finding,) = (found for found in report.findings if found.severity != doctor.NOTE)
    assert finding.kind == kind, finding
    assert all(Path(file).name in finding.message for file in finding.files)
    return finding


def test_a_sound_data_set(data: Path):
    report = look(data)
    assert report.findings == [] and report.files == 9 and report.seconds > 0
    assert report.datasets == [{"name": "set", "im_dir": str(data / "im"), "images": 3, "gts": 3, "masks": 3}]


def test_the_report_as_json(data: Path):
    (data / "gt" / "p1.png").write_bytes(b"")
    values = json.loads(json.dumps(look(data).as_dict()))
    assert values["counts"] == {"truncated": 1} and values["files"] == 9
    (finding,) = values["findings"]
    assert finding["severity"] == "error" and finding["files"] == [str(data / "gt" / "p1.png")]


@pytest.mark.parametrize("workers", [1, 3])
def test_the_result_does_not_depend_on_the_workers(data: Path, workers: int):
    (data / "gt" / "p0.png").unlink()
    (data / "mask" / "p2.png").write_bytes(b"no image")
    assert look(data, workers=workers).findings == look(data).findings != []


# --- one file ---


@pytest.mark.parametrize("folder", ["im", "gt", "mask"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_truncated_files(data: Path, folder: str, kept: float):
    """Row 5 of the faults seen: a truncated PNG."""
    path = data / folder / "p1.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    assert only(look(data), "truncated").files == (str(path),)


def test_truncated_jpeg(data: Path):
    image = scene(1)[0]
    (data / "im" / "p1.png").unlink()
    write_image(data / "im" / "p1.jpg", image)
    whole = (data / "im" / "p1.jpg").read_bytes()
    (data / "im" / "p1.jpg").write_bytes(whole[:-200])
    only(look(data), "truncated")


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"x" * 900])
def test_unreadable_files(data: Path, content: bytes):
    (data / "gt" / "p2.png").write_bytes(content)
    only(look(data), "unreadable")


def test_a_flipped_bit_in_the_pixels_is_found(data: Path):
    path = data / "im" / "p0.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    assert only(look(data), "unreadable").files == (str(path),)


@pytest.mark.parametrize("folder", ["gt", "mask"])
def test_another_size_than_the_image(data: Path, folder: str):
    write_mask(data / folder / "p0.png", np.pad(scene(0)[1], ((0, 1), (0, 0))))
    assert "200 x 151 pixels, but its image p0.png is 200 x 150" in only(look(data), "mis-sized").message


@pytest.mark.parametrize(("value", "kind"), [(0, "empty"), (255, "full")])
def test_empty_and_full_masks(data: Path, value: int, kind: str):
    write_mask(data / "mask" / "p1.png", np.full((150, 200), value, np.uint8))
    assert only(look(data), kind).severity == "warning"


def test_soft_values_are_counted_and_legal(data: Path):
    gt = scene(0)[1]
    gt[0, :30] = 7
    write_mask(data / "gt" / "p0.png", gt)
    (finding,) = look(data).findings
    assert (finding.kind, finding.severity) == ("not binary", "note")
    assert "0.1% of the pixels" in finding.message  # 30 of 30,000


# --- orientation ---


def exif_image(path: Path, image: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(path, exif=exif)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_of_the_picture_before_its_exif_orientation(data: Path, orientation: int):
    exif_image(data / "im" / "p0.png", scene(0)[0], orientation)
    (data / "mask" / "p0.png").unlink()
    shutil.rmtree(data / "mask")
    assert f"EXIF orientation ({orientation})" in only(look(data), "turned").message


@pytest.mark.parametrize(("orientation", "size"), [(2, (150, 200)), (3, (150, 200)), (4, (150, 200)), (6, (160, 160))])
def test_a_mask_whose_size_fits_though_the_picture_is_turned(data: Path, orientation: int, size: tuple[int, int]):
    """Row 11 of the faults seen: a photograph turned by 180 degrees, or a square one, and a mask that was not."""
    image, gt = scene(0, *size)
    write(data, "p0", image, gt)
    exif_image(data / "im" / "p0.png", image, orientation)
    shutil.rmtree(data / "mask")
    finding = only(look(data), "doubtful orientation")
    assert f"EXIF orientation {orientation}" in finding.message and finding.files == (str(data / "gt" / "p0.png"),)


def test_a_coarse_mask_turned_against_its_ground_truth(data: Path):
    write_mask(data / "mask" / "p1.png", scene(1)[1][::-1])
    assert "when it is flipped upside down" in only(look(data), "doubtful orientation").message


def test_symmetric_objects_are_not_doubted(tmp_path: Path):
    for index, radius in enumerate((30, 50, 60)):
        gt = np.zeros((160, 160), np.uint8)
        cv2.circle(gt, (80, 80), radius, 255, -1)
        image = np.where(gt[..., None] > 0, np.uint8([200, 90 + 40 * index, 30]), np.uint8([20, 40, 60 * index]))
        write(tmp_path / "set", f"c{index}", image, gt)
    assert look(tmp_path / "set").findings == []


# --- partners ---


@pytest.mark.parametrize(
    ("remove", "message"),
    [("gt/p1.png", "p1.png: no ground truth"), ("mask/p1.png", "p1.png: no coarse mask"), ("im/p1.png", "no image")],
)
def test_files_without_a_partner(data: Path, remove: str, message: str):
    (data / remove).unlink()
    found = [finding for finding in look(data).findings if finding.kind == "mispaired"]
    assert found and all("p1.png" in finding.message for finding in found)
    assert any(message in finding.message for finding in found)
    assert len(found) == (2 if remove.startswith("im") else 1)


@pytest.mark.parametrize("folder", ["gt", "mask"])
def test_a_folder_without_files_is_no_sound_data_set(data: Path, folder: str):
    for path in (data / folder).iterdir():
        path.unlink()
    finding = only(look(data), "mispaired")
    assert f"{data / folder}: holds no file of" in finding.message


def test_files_of_another_extension_are_no_sound_data_set(data: Path):
    entry = {**from_folder(data), "gt_ext": ".tif"}
    messages = [finding.message for finding in examine([entry], progress=False).findings]
    assert f"{data / 'gt'}: holds no .tif file of ground truths; check the folder and gt_ext" in messages


def test_a_name_that_is_nearly_right_is_suggested(data: Path):
    (data / "gt" / "p1.png").rename(data / "gt" / "P1_mask.png")
    messages = [finding.message for finding in look(data).findings]
    assert any(message.endswith("is 'P1_mask' meant?") for message in messages)
    assert any(message.endswith("is 'p1' meant?") for message in messages)


def test_names_in_both_unicode_forms_are_one(data: Path):
    """Row 25 of the faults seen: a name in NFC, its partner's in NFD."""
    (data / "im" / "p1.png").rename(data / "im" / "Caf\u00e9.png")
    for folder in ("gt", "mask"):
        (data / folder / "p1.png").rename(data / folder / "Cafe\u0301.png")
    assert look(data).findings == []


def test_two_files_of_one_name(data: Path):
    write_image(data / "im" / "p1.jpg", scene(1)[0])
    assert {Path(file).name for file in only(look(data), "mispaired").files} == {"p1.jpg", "p1.png"}


def test_files_that_are_left_out_are_noted(data: Path):
    (data / "im" / "p9.psd").write_bytes(b"x")
    (data / "im" / "notes.txt").write_text("x")
    (data / "im" / "more").mkdir()
    (finding,) = look(data).findings
    assert finding.kind == "ignored" and finding.files == (str(data / "im" / "p9.psd"),)


def test_a_folder_that_is_no_data_set(tmp_path: Path, data: Path):
    with pytest.raises(DatasetError, match=r"does not exist; .*FOLDER/im"):
        look(tmp_path)
    for path in (data / "im").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match="holds no image"):
        look(data)


# --- the manifest ---


def record(data: Path, name: str, **changes) -> None:
    from IS_Net.manifest import identify
    from IS_Net.preprocess import box_from_mask

    gt = cv2.imread(str(data / "gt" / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
    entry = {"mask": name, "image": name, "object": None, "model": "box", "select": "score", "num_masks": 1}
    entry |= identify(data / "im" / f"{name}.png", "image") | identify(data / "gt" / f"{name}.png", "gt")
    entry |= {"box": box_from_mask(gt), **changes}
    with (data / "mask" / "manifest.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def test_masks_that_are_up_to_date(data: Path):
    for name in ("p0", "p1", "p2"):
        record(data, name)
    assert look(data).findings == []


def test_masks_of_a_copied_data_set_are_up_to_date(data: Path, tmp_path: Path):
    """Row 4b of the faults seen: the content of an image is its identity, and not its time."""
    record(data, "p0")
    shutil.copytree(data, tmp_path / "copied", copy_function=shutil.copyfile)
    assert look(tmp_path / "copied").findings == []


def test_a_mask_older_than_its_picture(data: Path):
    record(data, "p0")
    image = scene(0)[0]
    image[:20] = 99
    write_image(data / "im" / "p0.png", image)
    assert "p0.png has changed" in only(look(data), "stale").message


def test_a_mask_made_from_another_box_than_the_ground_truth_has_now(data: Path):
    record(data, "p1", box=[3, 4, 50, 60])
    finding = only(look(data), "stale")
    assert "the box [3, 4, 50, 60]" in finding.message and finding.files == (str(data / "mask" / "p1.png"),)


@pytest.mark.parametrize("folder", ["im", "gt", "mask"])
def test_a_link_to_nothing_is_one_finding(data: Path, folder: str):
    """With a manifest, it ended the examination: the age of a mask was asked of an image that is not there."""
    record(data, "p0")
    (data / folder / "p0.png").unlink()
    (data / folder / "p0.png").symlink_to(data / "nothing.png")
    only(look(data), "unreadable")
    with pytest.raises(DatasetError, match=r"unreadable: .*p0\.png"):
        require_usable([from_folder(data)], [])


# --- copies ---


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Return a second sound data set."""
    for seed in (10, 11):
        write(tmp_path / "test", f"q{seed}", *scene(seed))
    return tmp_path / "test"


def as_copy(image: np.ndarray, how: str) -> tuple[np.ndarray, dict]:
    if how == "small":
        return cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), {}
    if how == "large":
        return cv2.resize(image, None, fx=1.4, fy=1.4, interpolation=cv2.INTER_LINEAR), {}
    return image, {"quality": 30} if how == "jpeg" else {}


@pytest.mark.parametrize("how", ["same", "jpeg", "small", "large"])
def test_copies_within_and_between_data_sets(data: Path, other: Path, how: str):
    image, gt = scene(1)
    copy, options = as_copy(image, how)
    gt = cv2.resize(gt, copy.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    for folder, kind in ((data, "duplicate"), (other, "leak")):
        write(folder, "copy", copy, gt)
        if options:
            (folder / "im" / "copy.png").unlink()
            Image.fromarray(copy).save(folder / "im" / "copy.jpg", **options)
        finding = only(look(data, other), kind)
        assert {Path(file).stem for file in finding.files} == {"p1", "copy"}
        assert ("the same pixels" in finding.message) == (how == "same")
        for file in folder.rglob("copy.*"):
            file.unlink()


def test_the_frames_of_a_film_are_compared_with_the_first(data: Path, other: Path):
    """Three hundred frames gave 44,850 findings, one for each pair."""
    image, gt = scene(5)
    rng = np.random.default_rng(0)
    for folder, count in ((data, 5), (other, 2)):
        for number in range(count):
            noise = rng.normal(0, 3, image.shape)
            write(folder, f"film{number}", np.clip(image + noise, 0, 255).astype(np.uint8), gt)
    found = {(finding.kind, *(Path(file).stem for file in finding.files)) for finding in look(data, other).findings}
    assert found == {
        *(("duplicate", "film0", f"film{number}") for number in (1, 2, 3, 4)),
        *(("leak", "film0", f"film{number}") for number in (0, 1)),
    }
    assert len(look(data, other).findings) == 7  # with the duplicate in the other data set


def test_a_copy_of_a_copy_is_found_though_it_differs_from_the_first(data: Path, other: Path):
    image, gt = scene(6)
    for folder, name, change in ((data, "a", 0), (data, "b", 4), (other, "c", 8)):
        write(folder, name, np.clip(image.astype(int) // 2 + 50 + change, 0, 255).astype(np.uint8), gt)
    found = {(finding.kind, *(Path(file).stem for file in finding.files)) for finding in look(data, other).findings}
    assert found == {("duplicate", "a", "b"), ("leak", "b", "c")}


def test_the_memory_of_finding_copies():
    rng = np.random.default_rng(0)
    copies, count = doctor._Copies([SimpleNamespace(name="set")], ["role"]), 2000
    for number in range(count):
        signature = doctor._Signature(number.to_bytes(16, "big"), int(rng.integers(1 << 63)), rng.bytes(16 * 16 * 3))
        copies.add(doctor._Item(0, Path(f"{number}.png"), None, ()), signature)
    tracemalloc.start()
    try:
        assert copies.find() == []
        assert tracemalloc.get_traced_memory()[1] < 1000 * count
    finally:
        tracemalloc.stop()


def test_names_without_a_partner_are_not_compared_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    count, calls = 30, []
    for number in range(count):
        for name in (f"im/{number}.png", f"gt/gt{number}x.png"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"")
    normalize = doctor.unicodedata.normalize

    def counted(form: str, text: str) -> str:
        calls.append(text)
        return normalize(form, text)

    monkeypatch.setattr(doctor.unicodedata, "normalize", counted)
    assert sum(finding.kind == "mispaired" for finding in look(tmp_path).findings) == 2 * count
    assert len(calls) < 10 * count


def test_different_pictures_are_no_copies(tmp_path: Path):
    for seed in range(20):
        write(tmp_path / "set", f"p{seed}", *scene(seed))
    assert look(tmp_path / "set").findings == []


def test_a_link_into_the_test_set_is_a_leak(data: Path, other: Path):
    (other / "im" / "linked.png").symlink_to(data / "im" / "p0.png")
    for folder in ("gt", "mask"):
        shutil.copy(data / folder / "p0.png", other / folder / "linked.png")
    assert only(look(data, other), "leak").dataset == "test"


def test_an_enriched_data_set_may_hold_its_pictures_again(data: Path):
    enriched = data.with_name("set-enriched")
    for number in (0, 1):
        write(enriched, f"p0_comp_{number}", *scene(0))
    assert look(data, enriched).findings == []


def test_roles_tell_what_is_a_leak(data: Path, tmp_path: Path):
    shutil.copytree(data, tmp_path / "more")
    assert look(data, tmp_path / "more", roles=["train", "train"]).findings == []
    found = look(data, tmp_path / "more", roles=["train", "valid"]).findings
    assert [finding.kind for finding in found] == ["leak"] * 3


def test_the_number_of_bits():
    values = np.array([[0, 1, 2**64 - 1], [3, 1 << 63, 0xF0F0]], np.uint64)
    assert doctor._count_bits(values).tolist() == [[0, 1, 64], [2, 1, 8]]


# --- before a run ---


def test_the_end_of_a_file_tells_whether_it_is_whole(tmp_path: Path):
    image = scene(0)[0]
    for name, expected in (("a.png", True), ("a.jpg", True), ("a.bmp", None)):
        write_image(tmp_path / name, image)
        assert looks_whole(tmp_path / name) is expected
        content = (tmp_path / name).read_bytes()
        (tmp_path / f"cut-{name}").write_bytes(content[: len(content) // 2])
        (tmp_path / f"more-{name}").write_bytes(content + b"appended " * 50)
    problems = find_truncated(tmp_path.iterdir())
    names = sorted(Path(problem.partition(": ")[0]).name for problem in problems)
    assert names == [
        "cut-a.bmp",
        "cut-a.jpg",
        "cut-a.png",
    ]


@pytest.fixture
def open_dataset() -> Callable[[Path], DISDataset]:
    return lambda folder: DISDataset(from_folder(folder), 4, (128, 128))


def test_the_first_look_finds_what_would_end_a_training(data: Path, other: Path, open_dataset):
    """Row 5 of the faults seen: a truncated PNG in a validation set without cache."""
    train, valid = open_dataset(data), open_dataset(other)
    take_first_look([train], [valid], 0.99)
    for folder in (other, data):
        path = next((folder / "gt").iterdir())
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DatasetError, match=rf"data set '{folder.name}': 1 files cannot be used:\n  .*{path.name}"):
            take_first_look([train], [valid], None)
        path.write_bytes(whole)


def test_damage_in_the_middle_of_a_validation_file_is_found(data: Path, other: Path, open_dataset):
    path = other / "im" / "q10.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"q10\.png"):
        take_first_look([open_dataset(data)], [open_dataset(other)], None)


@pytest.mark.parametrize("cache", [False, True])
def test_too_many_empty_ground_truths_for_phase_1(tmp_path: Path, caplog: pytest.LogCaptureFixture, cache: bool):
    """Row 30 of the faults seen: more than 1 % of empty ground truths, and a goal of .99."""
    for seed in range(4):
        write(tmp_path / "set", f"p{seed}", *scene(seed))
    write_mask(tmp_path / "set" / "gt" / "p2.png", np.zeros((150, 200), np.uint8))
    entry = from_folder(tmp_path / "set") | {"cache_dir": str(tmp_path / "cache") if cache else ""}
    dataset = DISDataset(entry, 4, (128, 128))
    with caplog.at_level(logging.WARNING):
        take_first_look([], [dataset], 0.75)
        take_first_look([], [dataset], None)
        assert not caplog.messages
        take_first_look([], [dataset], 0.76)
    (message,) = caplog.messages
    assert "1 of 4 ground truths are empty" in message and "set gt_encoder_stop_f below 0.750" in message


def test_usable_data_sets_pass_and_doubts_are_logged(data: Path, other: Path, caplog: pytest.LogCaptureFixture):
    entries = [from_folder(data)], [from_folder(other)]
    assert require_usable(*entries).findings == []
    shutil.copy(data / "im" / "p0.png", other / "im" / "q10.png")
    require_usable(*entries)
    assert any(message.startswith("leak: ") for message in caplog.messages)
    (other / "gt" / "q11.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"1 files of the data sets cannot be used:\n  truncated: .*q11\.png"):
        require_usable(*entries)


def test_all_kinds_have_a_severity():
    assert {Finding(kind, "", (), "").severity for kind in KINDS} == {ERROR, doctor.WARNING, doctor.NOTE}


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the photographs beside the checkout")
def test_real_photographs_are_not_doubted():
    folders = [REAL / name for name in ("grabcut", "alphamatting_lowres")]
    assert not [finding for finding in look(*folders).findings if finding.severity != doctor.NOTE]
