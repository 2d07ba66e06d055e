"""render_models: catalogs, the held-out split, OBJ files, whole runs, and how they resume."""

from __future__ import annotations

import csv
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from IS_Net.images import read_image, read_mask
from recipes.starter import render_models as rm
from recipes.starter.raytrace import RenderError

CUBE = """mtllib c:\\authors\\own path\\Cube.mtl
v -1 0 -1
v 1 0 -1
v 1 0 1
v -1 0 1
v -1 4 -1
v 1 4 -1
v 1 4 1
v -1 4 1
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl skin
f 1/1 2/2 3/3 4/4
f 5/1 8/2 7/3 6/4
f 1/1 5/2 6/3 2/4
f 2/1 6/2 7/3 3/4
f 3/1 7/2 8/3 4/4
usemtl glass
f 4 8 5 1
usemtl nothing
f 1 2 7
"""
MATERIALS = """newmtl skin
Kd 0.5 0.5 0.5
Ns 96
map_Kd D:/Somewhere/Else/SKIN.png
newmtl glass
Kd 0.1 0.2 0.3
d 0.25
newmtl nothing
Kd 1 1 1
d 0.0
"""


@pytest.fixture
def renderer():
    """Skip the test where models cannot be rendered."""
    for module in ("embreex", "trimesh"):
        pytest.importorskip(module, reason="the extra `render` is not installed")


def picture(values: np.ndarray) -> bytes:
    return cv2.imencode(".png", values)[1].tobytes()


def write_catalog(path: Path, titles: list[str], extra: str = "", files: dict[str, bytes] | None = None) -> Path:
    """Write a catalog whose models all use the same cube; `extra` is appended to its list."""
    lines = ["# a comment", "name=Test", "license=CC \\u00a9 Somebody", "provider=Provider"]
    for number, title in enumerate(titles, 1):
        lines += [
            f"name#{number}={title}",
            f"model#{number}=/shapes/cube/cube.obj",
            f"creator#{number}=Author {number}",
        ]
        lines += [f"height#{number}=200.5", f"elevation#{number}=10", f"doorOrWindow#{number}=false"]
    contents = {
        rm.CATALOG: ("\n".join(lines) + "\n" + extra).encode("latin-1"),
        "shapes/cube/cube.obj": CUBE.encode(),
        "shapes/cube/Cube.mtl": MATERIALS.encode(),
        "shapes/cube/skin.png": picture(np.full((4, 4, 3), 130, np.uint8)),
        **(files or {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    return write_catalog(tmp_path / "models" / "Shapes.sh3f", ["Iron railing", "Box", "Chair"])


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(30, 220, (9, 12, 3), np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), cv2.resize(noise, (96, 72), interpolation=cv2.INTER_CUBIC))
    return folder


def models(titles: list[str]) -> list[rm.Model]:
    return [rm.Model(f"m{k:03d}", title, "", "", Path("a"), "f") for k, title in enumerate(titles)]


def run(catalog: Path, photographs: Path, out: Path, *more: str) -> int:
    arguments = ["--models", str(catalog), "--backgrounds", str(photographs), "--out", str(out), "--size", "96"]
    return rm.main([*arguments, *more])


# --- catalogs ---


def test_properties_are_read_as_java_writes_them():
    text = (
        "# no=1\n! no=2\n a = b \nname#1=Caf\\u00e9 \\: 50\\u20ac\nlatin=\xe9\nlong=one \\\n   two\nempty=\nnothing\n"
    )
    found = rm.read_properties(text.encode("latin-1"))
    assert found == {"a": "b", "name#1": "Café : 50€", "latin": "é", "long": "one two", "empty": ""}


def test_a_catalog_names_models_authors_and_licenses(catalog: Path):
    write_catalog(catalog, ["Box", "Chair"], "license#2=CC0\nmodelRotation#2=1 0 0 0 0 1 0 -1 0\ndoorOrWindow#2=true\n")
    first, second = rm.list_models(catalog.parent)
    assert (first.name, second.name) == ("Shapes-cube", "Shapes-cube-")
    assert (first.title, first.author, first.license) == ("Box", "Author 1", "CC © Somebody")
    assert second.license == "CC0" and second.pane and not first.pane
    assert (first.height, first.elevation) == (200.5, 10)
    assert second.rotation == (1, 0, 0, 0, 0, 1, 0, -1, 0)
    assert rm.list_models(catalog) == [first, second]


def test_plates_and_markings_are_left_out(catalog: Path):
    write_catalog(catalog, ["Round type G plug", "Parking slot 45\\u00b0", "Plug-in lamp bill", "Chair"])
    assert [model.title for model in rm.list_models(catalog)] == ["Chair"]


@pytest.mark.parametrize("content", [b"no archive", b""])
def test_a_damaged_catalog_is_named(tmp_path: Path, photographs: Path, capsys, content: bytes):
    path = tmp_path / "x.sh3f"
    path.write_bytes(content)
    with pytest.raises(RenderError, match=r"x\.sh3f.*expected a \.sh3f"):
        rm.list_models(path)


def test_bad_numbers_are_named(catalog: Path):
    write_catalog(catalog, ["Chair"], "modelRotation#1=1 0 0\n")
    with pytest.raises(RenderError, match="model 1: a rotation has 9 numbers, found 3"):
        rm.list_models(catalog)


def test_a_folder_without_catalogs_is_named(tmp_path: Path):
    with pytest.raises(RenderError, match="sweethome3d-furniture"):
        rm.list_models(tmp_path)


# --- the split ---


def test_the_held_out_models_are_mostly_thin_and_always_the_same():
    found = models(["Iron railing", "Bicycle", "Ficus"] * 60 + ["Sofa", "Box", "Milk"] * 200)
    train, held = rm.split_models(found)
    assert len(held) == rm.HELD_OUT and len(train) + len(held) == len(found)
    assert not {model.name for model in train} & {model.name for model in held}
    assert sum(bool(rm.THIN.search(model.title)) for model in held) >= 45
    assert rm.split_models(found[::-1])[1] == held[::-1]


def test_a_models_place_in_the_split_does_not_depend_on_the_others():
    found = models(["Chair", "Box"] * 100)
    held = {model.name for model in rm.split_models(found)[1]}
    fewer = [model for model in found if model.name in held or int(model.name[1:]) % 3]
    assert {model.name for model in rm.split_models(fewer)[1]} == held


def test_windows_are_not_held_out():
    found = [model._replace(pane=index < 100) for index, model in enumerate(models(["Light chair"] * 200))]
    assert not any(model.pane for model in rm.split_models(found)[1])


def test_photographs_are_divided_too():
    paths = [Path(f"p{k}.jpg") for k in range(200)]
    train, held = (rm.split_photographs(paths, which) for which in (False, True))
    assert sorted(train + held) == sorted(paths) and 10 < len(held) < 45
    assert rm.split_photographs(paths[:1], True) == paths[:1] == rm.split_photographs(paths[:1], False)


def test_every_round_of_views_shows_every_model():
    found = models(["Box"] * 7)
    job = rm.Job(found, [], Path("o"), 64, 3, False)
    rounds = [[rm._target(job, turn * 7 + k).name for k in range(7)] for turn in range(3)]
    assert all(sorted(names) == [model.name for model in found] for names in rounds)
    assert rounds[0] != rounds[1]
    assert len({rm.picture_name(job, k) for k in range(21)}) == 21


# --- pictures ---


def test_the_lens_blurs_alpha_and_picture_alike():
    coverage = np.zeros((40, 60), np.float32)
    coverage[10:30, 20:45] = 1
    rng = np.random.default_rng(0)
    image, alpha = rm.expose(np.full((40, 60, 3), 0.2, np.float32) * coverage[..., None], coverage, rng)
    assert image.dtype == alpha.dtype == np.uint8 and image.shape == (40, 60, 3)
    assert alpha[20, 30] == 255 and alpha[5, 5] == 0
    assert alpha.sum() / 255 == pytest.approx(coverage.sum(), rel=1e-3)
    gray = (image / 255.0).mean(2) ** 2.2
    np.testing.assert_allclose(gray[20, 18:23] / gray[15:25, 28:38].mean(), alpha[20, 18:23] / 255, atol=0.08)


@pytest.mark.parametrize("size", [(64, 96), (301, 77), (40, 40)])
def test_crops_have_the_size_of_the_frame(size):
    photograph = np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8)
    for seed in range(5):
        crop = rm._crop(photograph, size, np.random.default_rng(seed))
        assert crop.shape == (*size, 3) and crop.dtype == np.uint8


@pytest.mark.parametrize("value", [0, 3, 255])
def test_any_photograph_gives_a_light(value: int):
    for seed in range(4):
        light = rm.make_light(np.full((20, 30, 3), value, np.uint8), np.random.default_rng(seed))
        assert np.isfinite(light.sky).all() and np.isfinite(light.sun_color).all()
        assert np.linalg.norm(light.sun) == pytest.approx(1, abs=1e-5) and light.sun[1] > 0


def test_light_comes_from_the_side_where_the_photograph_is_bright():
    photograph = np.full((60, 90, 3), 20, np.uint8)
    photograph[:, 60:] = (250, 180, 90)
    light = rm.make_light(photograph, np.random.default_rng(0))
    way = rm.unfold(64)
    right, left = light.sky[way[..., 0] > 0.5].mean(0), light.sky[way[..., 0] < -0.5].mean(0)
    assert right.sum() > 5 * left.sum() and right[0] > right[2]


# --- models ---


def test_a_model_is_scaled_centered_and_stands_on_the_floor(renderer, catalog: Path):
    mesh = rm.load_model(rm.list_models(catalog)[0])
    low, high = mesh.bounds()
    np.testing.assert_allclose(low, [-0.25, 0, -0.25], atol=1e-6)
    np.testing.assert_allclose(high, [0.25, 1, 0.25], atol=1e-6)
    assert len(mesh.triangles) == 12  # the triangle that cannot be seen is left out
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=2), 1, atol=1e-5)


def test_a_rotation_turns_a_model_upright(renderer, catalog: Path):
    write_catalog(catalog, ["Chair"], "modelRotation#1=0 1 0 -1 0 0 0 0 1\n")
    low, high = rm.load_model(rm.list_models(catalog)[0]).bounds()
    np.testing.assert_allclose(high - low, [1, 0.5, 0.5], atol=1e-6)


def test_materials_are_found_under_their_authors_paths(renderer, catalog: Path):
    surfaces = sorted(rm.load_model(rm.list_models(catalog)[0]).surfaces, key=lambda surface: surface.opacity)
    assert [surface.opacity for surface in surfaces] == [0.25, 1.0]
    assert surfaces[0].texture is None and surfaces[0].color[0] < surfaces[0].color[2]
    assert (surfaces[1].texture == 130).all() and surfaces[1].opacity_map is None
    assert surfaces[1].roughness < surfaces[0].roughness


def test_a_texture_with_holes_has_an_opacity_map_and_an_even_one_is_glass(renderer, catalog: Path):
    holes = np.full((4, 4, 4), 255, np.uint8)
    holes[:2, :, 3] = 0
    write_catalog(catalog, ["Chair"], files={"shapes/cube/skin.png": picture(holes)})
    (skin,) = (s for s in rm.load_model(rm.list_models(catalog)[0]).surfaces if s.texture is not None)
    assert not skin.opacity_map[:2].any() and skin.opacity_map[2:].all() and skin.opacity == 1
    holes[..., 3] = 102
    write_catalog(catalog, ["Chair"], files={"shapes/cube/skin.png": picture(holes)})
    (skin,) = (s for s in rm.load_model(rm.list_models(catalog)[0]).surfaces if s.texture is not None)
    assert skin.opacity_map is None and skin.opacity == pytest.approx(0.4)


@pytest.mark.parametrize(
    "content", [b"", b"v 0 0 0\n", b"v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", b"\xff\x00\xfe nonsense"]
)
def test_a_model_without_triangles_is_named(renderer, catalog: Path, content: bytes):
    write_catalog(catalog, ["Chair"], files={"shapes/cube/cube.obj": content})
    with pytest.raises(RenderError, match=r"Shapes\.sh3f: shapes/cube/cube\.obj: "):
        rm.load_model(rm.list_models(catalog)[0])


@pytest.mark.parametrize("large", [False, True])
def test_the_target_has_its_share_of_the_frame(renderer, catalog: Path, large: bool):
    """Large targets fill most of the frame and are never cut; others are smaller, or cut now and then."""
    (model, *_), inside = rm.list_models(catalog), 0
    for seed in range(30):
        view = rm.compose_view(model, [], (100, 140), np.random.default_rng(seed), large=large)
        seen = view.camera.project(view.scene.triangles.reshape(-1, 3))[:, :2]
        first, last = seen.min(0), seen.max(0)
        fill = ((last - first) / (140, 100)).max()
        whole = (first >= 0).all() and (last <= (140, 100)).all()
        inside += whole
        assert (0.69 if large else 0.37) < fill < (0.97 if whole else 1.51)
        assert view.distractor is None and view.scene.objects == 1
    assert inside == 30 if large else 18 < inside < 30


# --- runs ---


def test_a_run_writes_pairs_and_what_they_are_made_of(
    renderer, catalog: Path, photographs: Path, tmp_path: Path, capsys
):
    out = tmp_path / "out"
    assert run(catalog, photographs, out, "--held-out", "--views", "4") == 0
    assert "4 views rendered, 0 already there, 0 failed" in capsys.readouterr().out
    names = [path.stem for path in sorted((out / "im").iterdir())]
    assert names == [path.stem for path in sorted((out / "gt").iterdir())] and len(names) == 4
    for name in names:
        image, alpha = read_image(out / "im" / f"{name}.jpg"), read_mask(out / "gt" / f"{name}.png")
        assert image.shape[:2] == alpha.shape and all(96 <= side <= 120 for side in alpha.shape)
        assert 0.004 < (alpha / 255).mean() < 1
    with (out / "LICENSES.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["picture"] for row in rows} == set(names)
    for name in names:
        roles = [row["role"] for row in rows if row["picture"] == name]
        assert roles.count("target") == 1 and roles.count("background") == 1
    target = next(row for row in rows if row["role"] == "target")
    assert target["license"] == "CC © Somebody" and target["author"].startswith("Author ") and target["title"]


def content(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.*")}


def test_a_run_resumes_with_what_is_missing(renderer, catalog: Path, photographs: Path, tmp_path: Path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(catalog, photographs, whole, "--held-out", "--views", "3", "--workers", "2") == 0
    assert run(catalog, photographs, parts, "--held-out", "--views", "2") == 0
    first = sorted((parts / "gt").iterdir())[0]
    first.unlink()
    before = {path: path.stat().st_mtime_ns for path in (parts / "im").iterdir()}
    capsys.readouterr()
    assert run(catalog, photographs, parts, "--held-out", "--views", "3") == 0
    assert "2 views rendered, 1 already there, 0 failed" in capsys.readouterr().out
    kept = [path for path, time in before.items() if path.stat().st_mtime_ns == time]
    assert [path.stem for path in kept] == [sorted(before)[1].stem]
    assert content(parts) == content(whole)
    assert run(catalog, photographs, parts, "--held-out", "--views", "3") == 0
    assert "0 views rendered, 3 already there" in capsys.readouterr().out


def test_views_of_other_settings_are_not_mixed(renderer, catalog: Path, photographs: Path, tmp_path: Path, capsys):
    out = tmp_path / "views"
    assert run(catalog, photographs, out, "--held-out", "--views", "1") == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for other in (["--size", "90"], ["--seed", "5"]):
        assert run(catalog, photographs, out, "--held-out", "--views", "1", *other) == 2
        assert "settings.json: holds views of" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_an_interrupted_run_leaves_whole_pairs(
    renderer, catalog: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    out, write, calls = tmp_path / "out", rm.write_mask, []

    def stop_at_the_second(path: Path, mask: np.ndarray) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(path, mask)

    monkeypatch.setattr(rm, "write_mask", stop_at_the_second)
    assert run(catalog, photographs, out, "--held-out", "--views", "3") == 130
    assert "resumes" in capsys.readouterr().err
    assert len(list((out / "im").iterdir())) == len(list((out / "gt").iterdir())) == 1
    monkeypatch.undo()
    assert run(catalog, photographs, out, "--held-out", "--views", "3") == 0
    assert "2 views rendered, 1 already there" in capsys.readouterr().out


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_model_that_fails_is_named_and_the_others_are_rendered(
    renderer, catalog: Path, photographs: Path, tmp_path: Path, capsys, workers: str
):
    extra = "name#9=Lamp\nmodel#9=/shapes/missing.obj\n"
    write_catalog(catalog, ["Chair"], extra)
    out = tmp_path / "out"
    assert run(catalog, photographs, out, "--held-out", "--views", "2", "--seed", "1", "--workers", workers) == 1
    printed = capsys.readouterr()
    assert "shapes/missing.obj: cannot be read" in printed.err and "1 views rendered" in printed.out
    assert len(list((out / "im").iterdir())) == 1


def test_training_needs_more_models_than_are_held_out(
    renderer, catalog: Path, photographs: Path, tmp_path: Path, capsys
):
    assert run(catalog, photographs, tmp_path / "out") == 2
    assert "more than 60" in capsys.readouterr().err
    write_catalog(catalog, ["Box"] * 61)
    assert run(catalog, photographs, tmp_path / "out", "--views", "1") == 0


def test_what_cannot_start_is_said(renderer, catalog: Path, photographs: Path, tmp_path: Path, capsys):
    assert run(tmp_path / "none", photographs, tmp_path / "out") == 2
    assert "none" in capsys.readouterr().err
    assert run(catalog, tmp_path / "nowhere", tmp_path / "out", "--held-out") == 2
    assert "nowhere" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "LICENSES.csv").write_text("a,b\n")
    assert run(catalog, photographs, tmp_path / "out", "--held-out") == 2
    assert "expected picture, role" in capsys.readouterr().err


def test_without_the_packages_the_extra_is_named(
    catalog: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setitem(sys.modules, "embreex", None)
    monkeypatch.setitem(sys.modules, "embreex.rtcore_scene", None)
    assert run(catalog, photographs, tmp_path / "out", "--held-out") == 2
    assert "dis-sam[render]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_files_of_a_model_are_found_by_the_last_part_of_their_path(catalog: Path):
    with zipfile.ZipFile(catalog) as archive:
        files = rm._Files(archive, "shapes/cube/cube.obj")
        assert files["C:\\x\\SKIN.PNG"] == files["skin.png"] and "a/b/cube.MTL" in files and "other.png" not in files
        assert files["cube.obj"] == CUBE.encode()
