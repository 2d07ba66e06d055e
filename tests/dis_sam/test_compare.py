"""The figure of ``dis-sam compare``: what it shows, what it chooses to magnify, and what the command says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dis_sam import comparison, figure
from dis_sam.cli import main
from dis_sam.figure import Row, choose_crop, choose_view, draw, wrap
from IS_Net.errors import ImageError
from IS_Net.images import write_image, write_mask
from IS_Net.preprocess import Window


def comb(height: int = 120, width: int = 160) -> np.ndarray:
    """Return a block with teeth in its lower right corner: (H, W) uint8."""
    mask = np.zeros((height, width), np.uint8)
    mask[20:80, 20:140] = 255
    mask[80:100, 100:140:4] = 255
    return mask


def block() -> np.ndarray:
    """Return the same without gaps between the teeth."""
    mask = comb()
    mask[80:100, 100:140] = 255
    return mask


def row(**values: Any) -> Row:
    photograph = np.full((120, 160, 3), 90, np.uint8)
    return Row(**{"name": "thing", "photograph": photograph, "maps": {"a": comb(), "b": block()}, **values})


def inside(inner: Window, outer: Window) -> bool:
    return (
        outer.top <= inner.top
        and outer.left <= inner.left
        and inner.top + inner.height <= outer.top + outer.height
        and inner.left + inner.width <= outer.left + outer.width
    )


# --- what is shown ---


@pytest.mark.parametrize("truth", [None, comb()])
def test_the_magnified_part_is_where_edges_are_dense_and_maps_differ(truth):
    whole = Window(0, 0, 120, 160)
    found = choose_crop(row(truth=truth), whole)
    assert inside(found, whole) and found.width < 40
    teeth = np.zeros((120, 160), bool)
    teeth[76:104, 96:144] = True
    assert found.crop(teeth).mean() > 0.6
    assert found == choose_crop(row(truth=truth), whole)


def test_a_filled_box_does_not_decide_what_is_magnified():
    box = np.zeros((120, 160), np.uint8)
    box[20:100, 20:140] = 255
    whole = Window(0, 0, 120, 160)
    for truth in (None, comb()):
        expected = choose_crop(row(truth=truth), whole)
        assert choose_crop(row(maps={"box": box, "a": comb(), "b": block()}, truth=truth), whole) == expected
    assert 0 < choose_crop(row(maps={"box": box}), whole).crop(box).mean() < 255


def test_the_magnified_part_is_at_an_edge_where_all_agree():
    found = choose_crop(row(maps={"a": comb()}, truth=comb()), Window(0, 0, 120, 160))
    assert 0 < found.crop(comb()).mean() < 255
    found = choose_crop(row(maps={"a": "no map"}), Window(0, 0, 120, 160))  # nothing to choose by: the middle
    assert abs(found.left + found.width / 2 - 80) <= 1 and abs(found.top + found.height / 2 - 60) <= 1


def test_a_small_object_is_shown_with_its_surroundings_and_with_false_positives():
    photograph, small = np.zeros((600, 2000, 3), np.uint8), np.zeros((600, 2000), np.uint8)
    small[100:130, 400:440] = 255
    view = choose_view(row(photograph=photograph, maps={"a": small}))
    assert inside(Window(100, 400, 30, 40), view) and view.width < 200 and view.height < 200
    wrong = small.copy()
    wrong[590:595, 1990:1995] = 255
    assert inside(Window(590, 1990, 5, 5), choose_view(row(photograph=photograph, maps={"a": small, "b": wrong})))
    assert inside(
        Window(300, 900, 1, 1), choose_view(row(photograph=photograph, maps={"a": small}, points=[(900, 300)]))
    )
    assert choose_view(row(photograph=photograph, maps={})) == Window(0, 0, 600, 2000)


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 3), (40, 41), (200, 1300), (1300, 200)])
def test_photographs_of_all_shapes_fit_their_cells(size):
    levels = np.zeros(size, np.uint8)
    levels[size[0] // 3 : size[0] // 2 + 1, size[1] // 3 : size[1] // 2 + 1] = 255
    shown = row(photograph=np.full((*size, 3), 120, np.uint8), maps={"a": levels}, truth=levels, box=(0, 0, 0, 0))
    pixels = draw([shown], ["a"], 200)
    assert pixels.shape[1] == 2 * 16 + 3 * 210 - 10
    gaps = pixels[:, [216, 219, 222, 225]]  # between the first two columns; the caption is short
    assert (gaps == 255).all()
    assert pixels.shape[0] < 620


def test_cells_show_the_maps_and_say_what_is_missing():
    full = np.full((120, 160), 255, np.uint8)
    shown = row(maps={"a": full, "b": "no map", "c": np.zeros_like(full)}, box=(40, 30, 100, 90))
    pixels = draw([shown], ["a", "b", "c"], 200)
    middle = [pixels[120, 16 + place * 210 + 100].tolist() for place in range(4)]
    assert middle[1] == [255, 255, 255] and middle[3] == [0, 0, 0]
    assert (pixels[60:300, 16 + 420 : 16 + 620] == figure._EMPTY).all(axis=-1).mean() > 0.8
    photograph = pixels[:, 16:216].reshape(-1, 3)
    for color in (figure._PROMPT, figure._CROP):
        assert (photograph == color).all(axis=-1).sum() > 100
    assert not (pixels[60:180, 226:] == figure._PROMPT).all(axis=-1).any()  # the prompt is drawn into the photograph


def test_points_masks_and_boxes_are_drawn():
    plain = draw([row()], ["a"])
    for prompt in ({"points": [(30, 30)], "labels": [1]}, {"mask": block()}, {"box": (10, 10, 150, 110)}):
        assert (draw([row(**prompt)], ["a"]) != plain).any()


@pytest.mark.parametrize("text", ["a", "", "a name of several words", "x" * 300, "long_file_name_" * 20, "-> " * 50])
@pytest.mark.parametrize("lines", [1, 2, 4])
def test_long_names_are_broken_and_shortened(text, lines):
    found = wrap(text, 200, 16, lines)
    assert len(found) <= lines and all(figure._width(line, 16) <= 200 for line in found)
    if figure._width(text, 16) <= 200:
        assert "".join(found) == text
    else:
        assert found[0][:3] == text.strip()[:3]


def test_characters_without_a_glyph_do_not_become_boxes():
    assert wrap("ab\u4e2d\u6587", 200, 16, 1) == ["ab??"]
    assert wrap("Caf\u0065\u0301 \u00fc", 200, 16, 1) in (["Caf\u00e9 \u00fc"], ["Cafe u"])


def test_a_figure_that_no_file_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(figure, "MAX_SIDE", 1000)
    with pytest.raises(figure.FigureError, match="fewer methods"):
        draw([row()], ["a", "b", "c", "d"])
    with pytest.raises(figure.FigureError, match="after 3 objects of 9; compare fewer photographs"):
        draw([row()] * 9, ["a"])


def test_the_best_score_is_marked_unless_all_are_equal():
    scores = {name: {"iou": 0.9, "mae": error, "hce": 7.0} for name, error in (("a", 0.02), ("b", 0.01))}
    assert figure._best(scores) == {"iou": set(), "mae": {"b"}, "hce": set()}
    assert figure._figure_texts({"iou": 0.9, "mae": 1.0, "hce": 12.34, "pooled_iou": 0.9}) == {
        **{"iou": "IoU .900", "mae": "MAE 1.000", "hce": "HCE 12.3"}
    }
    assert figure._best({"a": {"iou": 0.9}}) == {"iou": set()}


# --- the command ---


class Network:
    """Stands for a network: returns the mask, or half of the box."""

    def __init__(self, in_ch: int = 4) -> None:
        self.in_ch, self.calls = in_ch, []

    def prepare(self, image: np.ndarray) -> np.ndarray:
        return image

    def predict(self, image: np.ndarray, mask: np.ndarray | None, box: Any, detail: str) -> np.ndarray:
        self.calls.append((mask, box, detail))
        if mask is not None:
            return mask.astype(np.float32) / 255
        alpha = np.zeros(image.shape[:2], np.float32)
        if box is not None:
            x0, y0, x1, y1 = map(int, box)
            alpha[y0 : y1 + 1, x0 : (x0 + x1 + 1) // 2] = 1
        return alpha


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    found = Network()
    monkeypatch.setattr(comparison.DISPredictor, "from_checkpoint", lambda *_, **__: found)
    monkeypatch.setattr(comparison, "available_model", lambda: "box")
    return found


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """Return a list that the rows of the next figure are added to."""
    found: list[Row] = []
    drawn = comparison.draw

    def note(given: list[Row], *arguments: Any) -> np.ndarray:
        found.extend(given)
        return drawn(given, *arguments)

    monkeypatch.setattr(comparison, "draw", note)
    return found


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write two photographs, one with two objects, their ground truths and maps; work beside them."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, objects in {"a": ["a"], "b": ["b_left", "b_right"]}.items():
        write_image(tmp_path / "im" / f"{name}.png", rng.integers(0, 255, (60, 90, 3), dtype=np.uint8))
        for number, found in enumerate(objects):
            mask = np.zeros((60, 90), np.uint8)
            mask[10:50, 5 + 40 * number : 40 + 40 * number] = 255
            write_mask(tmp_path / "gt" / f"{found}.png", mask)
            mask[10:20] = 0
            write_mask(tmp_path / "maps" / f"{found}.png", mask)
    return tmp_path


def test_methods_are_compared_with_the_boxes_of_the_ground_truths(photos, network, rows, capsys):
    methods = ["starter", "coarse", "box", "other=maps"]
    assert main(["compare", "im", "--gt", "gt", "--methods", *methods, "-o", "out/figure.png"]) == 0
    assert "wrote out/figure.png: 3 objects, 4 methods" in capsys.readouterr().out
    with Image.open("out/figure.png") as image:
        assert image.size[0] == 2 * 16 + 6 * 290 - 10
    assert [found.name for found in rows] == ["a", "b_left", "b_right"]
    assert rows[2].box == (45, 10, 79, 49)
    assert [mask for mask, _, _ in network.calls] == [None] * 3  # the box alone, instead of the filled box
    for found in rows:
        assert list(found.scores) == ["starter weights", "coarse mask", "filled box", "other"]
        assert found.scores["coarse mask"]["iou"] == found.scores["filled box"]["iou"] == 1
        assert found.scores["other"]["iou"] == pytest.approx(30 / 40)
        assert found.scores["other"]["mae"] == pytest.approx(10 * 35 / (60 * 90))
        assert found.scores["starter weights"]["iou"] == pytest.approx(17 / 35)


def test_the_defaults_are_the_coarse_masks_and_the_starter_weights(photos, network, rows):
    assert main(["compare", "im/a.png", "--box", "5,10,39,49", "--detail", "max"]) == 0
    assert Path("compare.jpg").is_file() and list(rows[0].maps) == ["coarse mask", "starter weights"]
    assert network.calls == [(None, (5, 10, 39, 49), "max")] and not rows[0].scores
    assert main(["compare", "im/a.png"]) == 0  # without a prompt
    assert list(rows[1].maps) == ["starter weights"]


def test_masks_are_refined_and_drawn(photos, network, rows):
    assert main(["compare", "im", "-m", "maps", "--gt", "gt", "--metrics", "f,hce"]) == 0
    assert all(found.maps["coarse mask"] is found.mask for found in rows) and len(rows) == 3
    assert all((mask == found.mask).all() for (mask, _, _), found in zip(network.calls, rows, strict=True))
    assert {"max_f_mean_pr", "hce"} <= rows[0].scores["starter weights"].keys()
    assert main(["compare", "im/a.png", "-m", "maps", "--methods", "box"]) == 0
    assert (rows[-1].maps["filled box"] == rows[0].mask).all()  # the box of the mask, which is one
    write_mask(photos / "maps" / "a.png", np.zeros((60, 90), np.uint8))
    assert main(["compare", "im/a.png", "-m", "maps", "--methods", "box"]) == 1
    assert rows[-1].maps["filled box"] == "no prompt"


def test_a_network_without_a_mask_channel_needs_no_prompt(photos, network, rows):
    network.in_ch = 3
    Path("plain.safetensors").touch()
    assert main(["compare", "im/a.png", "--methods", "IS-Net=plain.safetensors"]) == 0
    assert list(rows[0].maps) == ["IS-Net"] and network.calls == [(None, None, "auto")]


def test_models_of_stage_1_encode_a_photograph_once_and_take_points(photos, network, rows, monkeypatch):
    class Sam:
        box_only = False

        def set_image(self, image: np.ndarray) -> None:
            self.size = image.shape[:2]
            encoded.append(self)

        def predict_prompts(self, prompts: list[Any]) -> Any:
            for prompt in prompts:
                asked.append((prompt.box, prompt.points, prompt.labels))
                mask = np.zeros(self.size, bool)
                mask[10:50, 5:40] = True
                yield mask, 0.9

    def load(model: str, device: str) -> Sam:
        loaded.append(model)
        return Sam()

    encoded, asked, loaded = [], [], []
    monkeypatch.setattr(comparison, "load_predictor", load)
    monkeypatch.setattr(comparison, "find_checkpoint", lambda *_: None)
    Path("prompts.json").write_text(
        '{"b": [{"object": "left", "box": [5, 10, 39, 49]}, {"object": "right", "points": [[9, 9]], "labels": [1]}]}'
    )
    arguments = ["compare", "im", "--prompts", "prompts.json", "--gt", "gt", "--sam", "vit_l"]
    assert main([*arguments, "--methods", "vit_l", "Mine=vit_b=some.pth", "starter"]) == 0
    assert loaded == ["vit_b=some.pth", "vit_l"]
    assert len(encoded) == 2 and len(asked) == 4  # the weights get what is in the first column
    assert list(rows[0].maps) == ["SAM vit_l", "Mine", "starter weights"]
    assert rows[0].scores["SAM vit_l"]["iou"] == 1 and rows[1].scores["SAM vit_l"]["iou"] == 0
    assert rows[1].points == ((9.0, 9.0),) and rows[1].box is None
    assert [mask.any() for mask, _, _ in network.calls] == [True, True]


def test_what_is_missing_is_named_and_the_rest_is_drawn(photos, network, rows, capsys):
    (photos / "maps" / "b_left.png").unlink()
    write_mask(photos / "maps" / "a.png", np.zeros((5, 9), np.uint8))
    (photos / "im" / "c.png").write_bytes(b"no image")
    write_mask(photos / "gt" / "c.png", comb())
    assert main(["compare", "im", "--gt", "gt", "--methods", "maps", "box", "-o", "f.jpg"]) == 1
    assert Path("f.jpg").is_file()
    errors = capsys.readouterr().err
    assert "maps: found no map named b_left" in errors and "maps/a.png" in errors and "im/c.png" in errors
    assert [found.maps["maps"] if isinstance(found.maps["maps"], str) else "" for found in rows] == [
        "map of another size",
        "no map",
        "",
    ]
    assert list(rows[0].scores) == ["filled box"]


def test_missing_ground_truths_and_prompts_are_named(photos, network, rows, capsys):
    (photos / "gt" / "a.png").unlink()
    assert main(["compare", "im", "--gt", "gt", "-o", "f.jpg"]) == 1
    assert "im/a.png: found no ground truth a.png or a_OBJECT.png in gt" in capsys.readouterr().err
    prompts = Path("prompts.csv")
    prompts.write_text("name,object,x0,y0,x1,y1\na,,5,10,39,49\n")
    assert main(["compare", "im", "--prompts", "prompts.csv", "--gt", "gt", "-o", "f.jpg"]) == 1
    assert "gt: found no ground truth named a" in capsys.readouterr().err
    assert rows[-1].truth is None and not rows[-1].scores
    assert main(["compare", "im", "--box", "5,10,39,49", "--box", "500,1,600,9", "-o", "f.jpg"]) == 1
    assert "a_2" in capsys.readouterr().err and [found.name for found in rows[-2:]] == ["a_1", "b_1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["im", "--methods", "vit_x"], "did you mean 'vit_"),
        (["im", "--methods", "vit_l"], "dis-sam fetch vit_l"),
        (["im", "--methods", "maps", "maps=gt"], "two methods are named 'maps'"),
        (["im", "--methods", "ground truth=gt"], "column of its own"),
        (["im", "--methods", "=gt"], "NAME=METHOD"),
        (["nowhere"], "does not exist"),
        (["im/a.png", "--point", "9,9"], "need SAM"),
        (["im/a.png", "--box", "1,1,5,5", "-o", "im/a.png"], "would replace the input"),
        (["im", "--box", "1,1,5,5", "-m", "maps"], "either --mask"),
        (["im", "--metrics", "f"], "no effect without --gt"),
        (["im", "--sam", "vit_h"], "--sam vit_h has no effect without a prompt"),
        (["im", "-m", "gt", "--sam", "vit_h"], "--sam vit_h has no effect where masks are given"),
        (["im/a.png", "--gt", "gt/a.png"], "gt/a.png: is a file; expected a folder of ground truths"),
        (["im/a.png", "others/a.png", "--box", "1,1,5,5", "--gt", "gt"], "have the same name, so gt does not say"),
        (["im", "-o", "figure.gif"], "ends in .jpg or .png"),
        (["im", "--column", "20"], "at least 160"),
        (["im", "--methods", "coarse", "-o", "im/a.png/figure.jpg"], "im/a.png/figure.jpg"),
    ],
)
def test_a_run_that_cannot_start_says_why(arguments, message, photos, network, capsys, monkeypatch):
    monkeypatch.setattr("sam.backends._find_weights", lambda _: None)
    shutil.copytree("im", "others")
    assert main(["compare", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(Path().glob("*.jpg"))


def test_a_photograph_that_stage_1_cannot_take_does_not_stop_the_others(photos, network, rows, capsys, monkeypatch):
    class Picky:
        box_only = True

        def set_image(self, image: np.ndarray) -> None:
            if not failed:
                failed.append(1)
                raise ImageError("too long and too thin")

        def predict_prompts(self, prompts: list[Any]) -> Any:
            return iter([(np.ones((60, 90), bool), 0.5)] * len(prompts))

    failed: list[int] = []
    monkeypatch.setattr(comparison, "load_predictor", lambda *_, **__: Picky())
    assert main(["compare", "im", "--box", "5,10,39,49", "--methods", "box", "-o", "f.jpg"]) == 1
    assert "a: too long and too thin" in capsys.readouterr().err
    assert rows[0].maps["filled box"] == "not for this model" and rows[1].maps["filled box"].all()


def test_a_faulty_box_is_named_by_its_photograph(photos, capsys):
    assert main(["compare", "im/a.png", "--box", "500,500,600,600", "--sam", "box", "--methods", "coarse"]) == 2
    assert "error: a: box: [500.0, 500.0, 600.0, 600.0] lies outside" in capsys.readouterr().err
