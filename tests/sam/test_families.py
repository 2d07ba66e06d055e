"""The families of models compared with each other and with their packages' own predictors; folders that do not fit."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_conformance import BOTH, BOX, POINT, POINTS, draw_image, predict
from tiny_families import (
    FAMILIES,
    export_sam,
    export_sam2,
    replace_dimensions,
    save_pretrained,
    tiny_hq_sam,
    tiny_hq_sam_of_transformers,
    tiny_mobile_sam,
    tiny_sam2,
    tiny_sam3,
    tiny_sam_of_transformers,
)
from tiny_sam import save_sam, tiny_sam

from IS_Net.errors import CheckpointError, DeviceError, MissingExtraError
from sam import backends
from sam.backends import available_model, find_checkpoint, found_weights, load_predictor, weight_files
from sam.backends.attention import fuse_attention
from sam.backends.base import StageOnePredictor
from sam.backends.promptable import hash_weights
from sam.prompts import Prompt

PROMPTS = [BOX, POINT, POINTS, BOTH]
IMAGE = draw_image(4)


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


def load(name: str, path: Path) -> StageOnePredictor:
    """Load one of FAMILIES from a path, and set the image."""
    with pytest.MonkeyPatch.context() as patch:
        replace_dimensions(patch, FAMILIES[name])
        predictor = load_predictor(FAMILIES[name].model, path, "cpu")
    predictor.set_image(IMAGE)
    return predictor


# --- agreement


NAMES_OF_TRANSFORMERS = {
    "image_encoder.": "vision_encoder.",
    "blocks.": "layers.",
    "patch_embed.proj.": "patch_embed.projection.",
    "neck.0": "neck.conv1",
    "neck.1": "neck.layer_norm1",
    "neck.2": "neck.conv2",
    "neck.3": "neck.layer_norm2",
    "point_embeddings": "point_embed",
    "mask_downscaling.0": "mask_embed.conv1",
    "mask_downscaling.1": "mask_embed.layer_norm1",
    "mask_downscaling.3": "mask_embed.conv2",
    "mask_downscaling.4": "mask_embed.layer_norm2",
    "mask_downscaling.6": "mask_embed.conv3",
    "norm_final_attn": "layer_norm_final_attn",
    ".norm": ".layer_norm",
    "output_upscaling.0": "upscale_conv1",
    "output_upscaling.1": "upscale_layer_norm",
    "output_upscaling.3": "upscale_conv2",
    "hf_token": "hq_token",
    "hf_mlp": "hq_mask_mlp",
    "compress_vit_feat.0": "compress_vit_conv1",
    "compress_vit_feat.1": "compress_vit_norm",
    "compress_vit_feat.3": "compress_vit_conv2",
    "embedding_encoder.0": "encoder_conv1",
    "embedding_encoder.1": "encoder_norm",
    "embedding_encoder.3": "encoder_conv2",
    "embedding_maskfeature.0": "mask_conv1",
    "embedding_maskfeature.1": "mask_norm",
    "embedding_maskfeature.3": "mask_conv2",
}
"""Parts of the names of tensors of SAM and HQ-SAM, and what transformers calls them."""


def to_transformers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the published tensors to those of SamModel and SamHQModel."""
    converted = {}
    for name, tensor in weights.items():
        if name == "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix":
            converted["shared_image_embedding.positional_embedding"] = tensor
            converted["prompt_encoder.shared_embedding.positional_embedding"] = tensor
            continue
        for old, new in NAMES_OF_TRANSFORMERS.items():
            name = name.replace(old, new)
        if any(part in name for part in ("output_hypernetworks_mlps", "iou_prediction_head", "hq_mask_mlp")):
            for old, new in (("layers.0", "proj_in"), ("layers.1", "layers.0"), ("layers.2", "proj_out")):
                if f".{old}." in name:
                    name = name.replace(old, new)
                    break
        converted[name] = tensor
    return converted


@pytest.mark.parametrize(
    ("published", "folder", "build", "build_of_transformers"),
    [
        ("SAM", "SAM, folder", tiny_sam, tiny_sam_of_transformers),
        ("HQ-SAM", "HQ-SAM, folder", tiny_hq_sam, tiny_hq_sam_of_transformers),
    ],
    ids=["SAM", "HQ-SAM"],
)
def test_file_and_folder_of_the_same_weights_agree(
    published: str, folder: str, build: Callable, build_of_transformers: Callable, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    checkpoint = save_sam(tmp_path / "sam.pth", seed=5, build=build)

    def converted() -> Any:
        network = build_of_transformers()
        network.load_state_dict(to_transformers(torch.load(checkpoint)))
        return network

    plain = load(published, checkpoint)
    other = load(folder, save_pretrained(tmp_path / "folder", converted))
    for prompt in PROMPTS:
        masks, scores, logits = predict(plain, prompt)
        others, other_scores, other_logits = predict(other, prompt)
        others, other_scores = others[: len(masks)], other_scores[: len(masks)]  # HQ-SAM's own package keeps the best
        np.testing.assert_allclose(other_scores, scores, atol=1e-3)
        np.testing.assert_allclose(other_logits[: len(masks)], logits, atol=0.02 * np.abs(logits).max())
        for mask, again in zip(masks, others, strict=True):
            assert 0.01 < mask.mean() < 0.99 and iou(mask, again) > 0.999
    for (mask, score), (again, again_score) in zip(
        plain.predict_prompts(PROMPTS), other.predict_prompts(PROMPTS), strict=True
    ):
        assert iou(mask, again) > 0.999 and score == pytest.approx(again_score, abs=1e-3)


@pytest.mark.parametrize("build", [tiny_hq_sam, tiny_mobile_sam])
def test_published_packages_agree_with_their_own_predictors(build: Callable, tmp_path: Path) -> None:
    hq = pytest.importorskip("segment_anything_hq")
    from segment_anything import SamPredictor

    name, reference_class = ("HQ-SAM", hq.SamPredictor) if build is tiny_hq_sam else ("MobileSAM", SamPredictor)
    checkpoint = save_sam(tmp_path / "sam.pth", seed=5, build=build)
    ours = load(name, checkpoint)
    network = build()
    network.load_state_dict(torch.load(checkpoint))
    reference = reference_class(network.eval())
    reference.set_image(IMAGE)
    for prompt in (BOX, POINTS):
        for multimask in (True, False):
            masks, scores, _ = predict(reference, prompt, multimask_output=multimask)
            found, found_scores, _ = predict(ours, prompt, multimask_output=multimask)
            np.testing.assert_allclose(found_scores, scores, atol=1e-4)
            assert found.shape == masks.shape and (found != masks).mean() < 1e-4


@pytest.mark.parametrize("build", [tiny_sam_of_transformers, tiny_sam2, tiny_sam3])
def test_folders_agree_with_the_processors_of_transformers(build: Callable, tmp_path: Path) -> None:
    """The processors of transformers scale prompts and masks themselves."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(6)
    folder = save_pretrained(tmp_path / "folder", build)
    name = {tiny_sam_of_transformers: "SAM, folder", tiny_sam2: "SAM 2", tiny_sam3: "SAM 3"}[build]
    kind = {"SAM, folder": "Sam", "SAM 2": "Sam2", "SAM 3": "Sam3Tracker"}[name]
    network = getattr(transformers, f"{kind}Model").from_pretrained(folder).eval()
    images = transformers.AutoImageProcessor.from_pretrained(folder)
    processor = getattr(transformers, f"{kind}Processor")(images)
    ours = load(name, folder)
    for prompt in (BOX, POINTS):
        inputs = processor(
            images=IMAGE,
            input_boxes=prompt.box and [[list(prompt.box)]],
            input_points=prompt.points and [[[list(map(float, point)) for point in prompt.points]]],
            input_labels=prompt.labels and [[list(prompt.labels)]],
            return_tensors="pt",
        )
        with torch.no_grad():
            output = network(**{key: value for key, value in inputs.items() if "sizes" not in key})
        sizes = [inputs[key] for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
        masks = processor.post_process_masks(output.pred_masks, *sizes)
        found, scores, _ = predict(ours, prompt)
        np.testing.assert_allclose(scores, output.iou_scores[0, 0].numpy(), atol=1e-4)
        assert (found != masks[0][0].numpy()).mean() < 1e-3
        assert 0.01 < found.mean() < 0.99


@pytest.mark.parametrize(("name", "build"), [("SAM 2", tiny_sam2), ("SAM 3", tiny_sam3)], ids=["SAM 2", "SAM 3"])
def test_published_folders_hold_the_models_for_video_too(name: str, build: Callable, tmp_path: Path) -> None:
    """The weights of SAM 2 and SAM 3 are published in this form, of which only a part is read."""
    pytest.importorskip("transformers")
    from safetensors.torch import save_file

    torch.manual_seed(7)
    network = build()
    folder = save_pretrained(tmp_path / "folder", lambda: network)
    expected = [mask for mask, _ in load(name, folder).predict_prompts(PROMPTS)]
    weights = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    config = json.loads((folder / "config.json").read_text())
    if name == "SAM 2":
        config |= {"model_type": "sam2_video", "memory_attention_num_layers": 1}
        weights["memory_attention.layer_norm.weight"] = torch.ones(32)
    else:
        config = {"model_type": "sam3_video", "tracker_config": config}
        of_others = {
            "vision_encoder.backbone.": "detector_model.vision_encoder.backbone.",
            "vision_encoder.neck.": "tracker_neck.",
        }
        moved = {}
        for key, tensor in weights.items():
            old = next((old for old in of_others if key.startswith(old)), "")
            moved[of_others.get(old, "tracker_model.") + key.removeprefix(old)] = tensor
        weights = {**moved, "detector_model.text_encoder.weight": torch.ones(3)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    found = [mask for mask, _ in load(name, folder).predict_prompts(PROMPTS)]
    for mask, again in zip(expected, found, strict=True):
        np.testing.assert_array_equal(mask, again)


def test_onnx_export_agrees_with_sam(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    checkpoint = save_sam(tmp_path / "sam.pth", seed=5)
    network = tiny_sam()
    network.load_state_dict(torch.load(checkpoint))
    _require_agreement(load("SAM", checkpoint), load("SAM, ONNX", export_sam(tmp_path / "onnx", network)))


def test_onnx_export_agrees_with_sam2(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("transformers")
    torch.manual_seed(5)
    network = tiny_sam2()
    folder = save_pretrained(tmp_path / "sam2", lambda: network)
    # the image processor of transformers resizes with another function
    _require_agreement(
        load("SAM 2", folder), load("SAM 2, ONNX", export_sam2(tmp_path / "onnx", network)), tolerance=0.02
    )


def test_an_onnx_encoder_in_onnxruntimes_own_format(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = export_sam(tmp_path / "onnx")
    expected = load("SAM, ONNX", folder)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "encoder.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(folder / "encoder.onnx", options, providers=["CPUExecutionProvider"])
    (folder / "encoder.onnx").unlink()
    loaded = load("SAM, ONNX", folder)
    _require_agreement(expected, loaded)
    assert [path.name for path in weight_files(folder)] == ["decoder.onnx", "encoder.ort"]
    assert loaded.checkpoint == hash_weights([folder / "decoder.onnx", folder / "encoder.ort"])
    (folder / "encoder.ort").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"encoder\.ort: onnxruntime cannot load it"):
        load_predictor("onnx", folder)


def _require_agreement(plain: StageOnePredictor, onnx: StageOnePredictor, tolerance: float = 1e-3) -> None:
    for image in (IMAGE, draw_image(1, (170, 100))):  # wide and tall
        plain.set_image(image)
        onnx.set_image(image)
        for prompt in PROMPTS:
            masks, scores, _ = predict(plain, prompt)
            found, found_scores, logits = predict(onnx, prompt)
            np.testing.assert_allclose(found_scores, scores, atol=tolerance)
            assert found.shape == masks.shape and (found != masks).mean() < tolerance
            assert 0.01 < found.mean() < 0.99
            refined, _, _ = predict(onnx, prompt, mask_input=logits[:1])
            assert (refined != found).any()


# --- attention


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("size", [(8, 8), (3, 3), (5, 7)])
def test_fused_attention_agrees(positions: bool, size: tuple[int, int]) -> None:
    """Sizes that differ from the table of relative positions are interpolated alike."""
    torch.manual_seed(0)
    encoder = tiny_sam().image_encoder.eval()
    for block in encoder.blocks:
        block.attn.use_rel_pos = positions
        torch.nn.init.normal_(block.attn.rel_pos_h)
        torch.nn.init.normal_(block.attn.rel_pos_w)
    attention = encoder.blocks[1].attn
    x = torch.randn(2, *size, 32)
    with torch.inference_mode():
        expected = attention(x)
        fuse_attention(encoder)
        found = attention(x)
    assert type(attention).__name__ == "FusedAttention"
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_loaded_models_use_fused_attention(tmp_path: Path) -> None:
    for name, build in (("SAM", tiny_sam), ("HQ-SAM", tiny_hq_sam)):
        if name == "HQ-SAM":
            pytest.importorskip("segment_anything_hq")
        predictor = load(name, save_sam(tmp_path / "sam.pth", build=build))
        assert {type(block.attn).__name__ for block in predictor.model.image_encoder.blocks} == {"FusedAttention"}


# --- where weights are, and what does not fit


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(backends, "sam_checkpoint_folders", lambda: [tmp_path / "saved_models"])
    (tmp_path / "saved_models").mkdir()
    return tmp_path / "saved_models"


def test_weights_are_found_by_name(folder: Path) -> None:
    assert found_weights() == {} and available_model() == "box"
    for model, name in (("mobile", "mobile_sam.pt"), ("sam2", "sam2/"), ("vit_b", "vit_b/"), ("hq_vit_l", "hq_vit_l/")):
        path = folder / name
        path.mkdir() if name.endswith("/") else path.touch()
        assert find_checkpoint(model) == path
    (folder / "hq_light").mkdir()  # this model is a file
    (folder / "sam3").touch()  # and this one is a folder
    assert list(found_weights()) == ["hq_vit_l", "sam2", "vit_b", "mobile"]
    assert available_model() == "hq_vit_l"
    published = folder / "sam_vit_b_01ec64.pth"
    published.touch()
    assert find_checkpoint("vit_b") == published


def test_paths_after_names(folder: Path, tmp_path: Path) -> None:
    given = tmp_path / "a=b"
    given.mkdir()
    assert find_checkpoint(f"sam2={given}") == given
    assert find_checkpoint("sam2", given) == given
    with pytest.raises(FileNotFoundError, match=r"SAM sam3: .*nothing does not exist; download it from .*, sam3=P"):
        find_checkpoint("sam3=nothing")
    with pytest.raises(FileNotFoundError, match=r"SAM onnx: found no onnx in .*saved_models; get SAM 2 .*fetch_sam2"):
        find_checkpoint("onnx")
    with pytest.raises(FileNotFoundError, match=r"found no sam_hq_vit_b\.pth or hq_vit_b in .*SysCV/sam-hq"):
        find_checkpoint("hq_vit_b")
    with pytest.raises(ValueError, match="unknown model 'sam4'"):
        find_checkpoint(f"sam4={given}")
    with pytest.raises(CheckpointError, match=r"found a folder, expected a file for mobile; download it from"):
        find_checkpoint(f"mobile={given}")
    (tmp_path / "sam2.1_hiera_large.pt").touch()
    with pytest.raises(CheckpointError, match=r"large\.pt: found a file, expected a folder for sam2; .*sam2\.1-hiera"):
        find_checkpoint("sam2", tmp_path / "sam2.1_hiera_large.pt")


@pytest.mark.parametrize(
    ("package", "module", "model", "name", "extra"),
    [
        ("transformers", "sam.backends.transformers", "sam2", "folder/", "transformers"),
        ("onnxruntime", "sam.backends.onnx", "onnx", "folder/", "onnx"),
        ("segment_anything_hq.build_sam", "sam.backends.hq_sam", "hq_light", "file", "hq"),
        ("timm", "sam.backends.hq_sam", "hq_vit_l", "file", "hq"),
    ],
)
def test_missing_packages(
    package: str, module: str, model: str, name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    path.mkdir() if name.endswith("/") else path.touch()
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    root = package.partition(".")[0]
    with pytest.raises(MissingExtraError, match=rf"'{root}' is not installed.*pip install 'dis-sam\[{extra}\]'"):
        load_predictor(model, path, "cpu")


def _write_config(folder: Path, **values: object) -> None:
    (folder / "config.json").write_text(json.dumps(values))


def test_folders_of_other_models(tmp_path: Path) -> None:
    pytest.importorskip("transformers")

    def error(model: str) -> str:
        with pytest.raises(CheckpointError) as found:
            load_predictor(model, tmp_path, "cpu")
        return str(found.value)

    assert "found no config.json; expected a folder as save_pretrained writes it, with Sam2Model" in error("sam2")
    (tmp_path / "config.json").write_text("{")
    assert "config.json: found no model_type" in error("sam2")
    _write_config(tmp_path, model_type="sam_hq")
    assert "found the model_type 'sam_hq', expected 'sam2'; choose the model hq_vit_l" in error("sam2")
    _write_config(tmp_path, model_type="bert")
    assert "found the model_type 'bert', expected 'sam'; expected a folder" in error("vit_b")
    _write_config(tmp_path, model_type="sam", vision_config={"hidden_size": 1024})
    assert "width 1024, not that of vit_b; choose the model vit_l" in error("vit_b")
    _write_config(tmp_path, model_type="sam_hq")
    assert "width 768, not that of hq_vit_l; choose the model hq_vit_b" in error("hq_vit_l")
    _write_config(tmp_path, model_type="sam2_video")
    assert "found no model.safetensors" in error("sam2")


def test_damaged_folders(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from safetensors.torch import load_file, save_file

    folder = save_pretrained(tmp_path / "sam2", tiny_sam2)
    weights = folder / "model.safetensors"
    state = load_file(weights)
    name = "mask_decoder.iou_token.weight"
    without = {key: value for key, value in state.items() if key != name}
    for content, message in [
        (without, "1 tensors of Sam2Model are missing or have another shape, such as mask_decoder.iou_token.weight"),
        ({**state, name: torch.zeros(1, 64)}, "mask_decoder.iou_token.weight|cannot be loaded"),
        ({**state, name: torch.full((1, 32), torch.nan)}, "holds values that are not finite"),
    ]:
        save_file(content, weights, {"format": "pt"})
        with pytest.raises(CheckpointError, match=message):
            load_predictor("sam2", folder, "cpu")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"sam2: cannot be loaded"):
        load_predictor("sam2", folder, "cpu")
    save_file(state, weights, {"format": "pt"})
    assert load_predictor("sam2", folder, "cpu").name == "sam2"
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    processor["size"] = {"height": 1024, "width": 1024}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(CheckpointError, match="resizes to 1024 pixels, and the network takes 128"):
        load_predictor("sam2", folder, "cpu")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"sam2: found no image processor .*preprocessor_config\.json"):
        load_predictor("sam2", folder, "cpu")


def test_onnx_folders_that_do_not_fit(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder = export_sam(tmp_path / "onnx")
    encoder, decoder = folder / "encoder.onnx", folder / "decoder.onnx"

    def error(device: str = "cpu") -> str:
        with pytest.raises((CheckpointError, DeviceError)) as found:
            load_predictor("onnx", folder, device)
        return str(found.value)

    assert "ONNX files; use auto, cpu" in error("mps")
    decoder.rename(tmp_path / "decoder")
    assert "found 1 files with the extension .onnx or .ort (encoder.onnx), expected an image" in error()
    decoder.write_bytes(encoder.read_bytes())
    assert "found no pair (decoder.onnx takes input_image; encoder.onnx takes input_image)" in error()
    decoder.write_bytes(b"nothing")
    assert "decoder.onnx: onnxruntime cannot load it" in error()
    import onnx

    graph = onnx.load(tmp_path / "decoder")
    graph.graph.output.pop()
    onnx.save(graph, decoder)
    assert "decoder.onnx: found the inputs" in error() and "as samexporter writes them" in error()


def test_an_onnx_encoder_with_the_decoder_of_another_model(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    sam, sam2 = export_sam(tmp_path / "sam"), export_sam2(tmp_path / "sam2")
    (sam / "encoder.onnx").rename(tmp_path / "encoder")
    (sam2 / "encoder.onnx").rename(sam / "encoder.onnx")
    (tmp_path / "encoder").rename(sam2 / "encoder.onnx")
    with pytest.raises(CheckpointError, match=r"encoder.onnx: found the outputs high_res.*expected image_embeddings"):
        load_predictor("onnx", sam)
    with pytest.raises(CheckpointError, match=r"encoder.onnx: found the outputs .*expected high_res_feats_0"):
        load_predictor("onnx", sam2)


def test_a_checkpoint_of_hq_sam_is_not_one_of_sam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("segment_anything_hq")
    replace_dimensions(monkeypatch, FAMILIES["SAM"])
    path = save_sam(tmp_path / "sam.pth", build=tiny_hq_sam)
    with pytest.raises(CheckpointError, match=r"weights of SAM vit_b \(0 tensors are missing, 25 are unknown"):
        load_predictor("vit_b", path, "cpu")


def test_several_prompts_of_equal_form_are_decoded_together(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    predictor = load("SAM 2", save_pretrained(tmp_path / "sam2", tiny_sam2))
    calls = []
    hook = predictor.network.mask_decoder.register_forward_hook(lambda *_: calls.append(1))
    prompts = [Prompt("x", str(n), (n, n, 60 + n, 70 + n)) for n in range(30)]
    assert len(list(predictor.predict_prompts(prompts))) == 30
    hook.remove()
    assert calls == [1]
