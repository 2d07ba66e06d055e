"""Every family of models in small, with random weights of its real classes, for the tests.

A function ``save_...(path)`` writes weights as they are published: a file, or the files of a folder.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tiny_sam import SIDE, save_sam, tiny_sam
from torch import nn

from sam.backends import BACKENDS

# --- segment-anything-hq


def tiny_hq_sam() -> nn.Module:
    """Build HQ-SAM with a ViT, with input of SIDE pixels."""
    modeling = pytest.importorskip("segment_anything_hq.modeling")
    plain = tiny_sam()
    return modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            img_size=SIDE,
            embed_dim=32,
            depth=2,
            num_heads=2,
            out_chans=32,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=3,
            global_attn_indexes=(1,),
        ),
        prompt_encoder=plain.prompt_encoder,
        mask_decoder=modeling.MaskDecoderHQ(
            transformer_dim=32, transformer=plain.mask_decoder.transformer, iou_head_hidden_dim=32, vit_dim=32
        ),
    )


def _tiny_vit(encoder: Callable[..., nn.Module]) -> nn.Module:
    """Build a TinyViT; its input of 1024 pixels, its last width and its 256 channels of output cannot be changed."""
    return encoder(img_size=1024, num_classes=1, embed_dims=[8, 8, 8, 320], depths=[1] * 4, num_heads=[1] * 4)


def _plain_sam(image_encoder: nn.Module, mask_decoder: Callable[..., nn.Module]) -> nn.Module:
    from segment_anything.modeling import PromptEncoder, Sam, TwoWayTransformer

    transformer = TwoWayTransformer(depth=1, embedding_dim=256, num_heads=2, mlp_dim=16)
    return Sam(
        image_encoder=image_encoder,
        prompt_encoder=PromptEncoder(256, (64, 64), (1024, 1024), mask_in_chans=16),
        mask_decoder=mask_decoder(transformer_dim=256, transformer=transformer, iou_head_hidden_dim=32),
    )


def tiny_light_hq_sam() -> nn.Module:
    """Build Light HQ-SAM."""
    modeling = pytest.importorskip("segment_anything_hq.modeling")
    return _plain_sam(_tiny_vit(modeling.TinyViT), partial(modeling.MaskDecoderHQ, vit_dim=8))


def tiny_mobile_sam() -> nn.Module:
    """Build MobileSAM."""
    from segment_anything.modeling import MaskDecoder

    from sam.backends.mobile_sam import ImageEncoder

    return _plain_sam(_tiny_vit(ImageEncoder), MaskDecoder)


# --- transformers


def _sam_config(name: str, **mask_decoder: int) -> Any:
    import transformers

    vision = {"hidden_size": 32, "output_channels": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": SIDE, "window_size": 3, "global_attn_indexes": [1], "num_pos_feats": 16, "mlp_dim": 128}
    prompt = {"hidden_size": 32, "image_size": SIDE, "image_embedding_size": SIDE // 16}
    decoder = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32, **mask_decoder}
    return getattr(transformers, f"{name}Config")(
        vision_config={**vision, "initializer_range": 0.02},
        prompt_encoder_config={**prompt, "mask_input_channels": 16},
        mask_decoder_config=decoder,
    )


def tiny_sam_of_transformers() -> Any:
    """Build SamModel with the dimensions of :func:`tiny_sam.tiny_sam`."""
    import transformers

    return transformers.SamModel(_sam_config("Sam"))


def tiny_hq_sam_of_transformers() -> Any:
    """Build SamHQModel with the dimensions of :func:`tiny_hq_sam`."""
    import transformers

    return transformers.SamHQModel(_sam_config("SamHQ", vit_dim=32))


def tiny_sam2() -> Any:
    """Build Sam2Model."""
    import transformers

    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=16,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 4, 2],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=32,
    )
    return transformers.Sam2Model(
        transformers.Sam2Config(
            vision_config=vision,
            prompt_encoder_config={"hidden_size": 32, "image_size": SIDE},
            mask_decoder_config=_SMALL_DECODER,
        )
    )


def tiny_sam3() -> Any:
    """Build Sam3TrackerModel."""
    import transformers

    backbone = transformers.Sam3ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=112,
        window_size=4,
        global_attn_indexes=[1],
        pretrain_image_size=56,
    )
    vision = transformers.Sam3VisionConfig(
        backbone_config=backbone, fpn_hidden_size=32, backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]]
    )
    return transformers.Sam3TrackerModel(
        transformers.Sam3TrackerConfig(
            vision_config=vision,
            prompt_encoder_config={"hidden_size": 32, "image_size": 112, "patch_size": 14},
            mask_decoder_config=_SMALL_DECODER,
        )
    )


_SMALL_DECODER = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}


def save_pretrained(folder: Path, build: Callable[[], Any]) -> Path:
    """Save a model of transformers and its image processor."""
    import transformers

    network = build()
    side = network.config.prompt_encoder_config.image_size
    square = {"height": side, "width": side}
    if network.config.model_type in ("sam", "sam_hq"):
        processor = transformers.SamImageProcessor(size={"longest_edge": side}, pad_size=square)
    else:
        of_sam2 = network.config.model_type == "sam2"
        processor = (transformers.Sam2ImageProcessor if of_sam2 else transformers.Sam3ImageProcessor)(size=square)
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
        network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


# --- ONNX


def export_sam(folder: Path, sam: nn.Module | None = None) -> Path:
    """Export SAM as samexporter does."""
    pytest.importorskip("onnx")
    from segment_anything.utils.onnx import SamOnnxModel

    sam = (sam or tiny_sam()).eval()
    grid = SIDE // 16
    inputs = {
        "image_embeddings": torch.randn(1, 32, grid, grid),
        "point_coords": torch.rand(1, 5, 2) * SIDE,
        "point_labels": torch.randint(0, 4, (1, 5)).float(),
        "mask_input": torch.randn(1, 1, 4 * grid, 4 * grid),
        "has_mask_input": torch.ones(1),
        "orig_im_size": torch.tensor([150.0, 225.0]),
    }
    dynamic = {"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}}
    folder.mkdir(parents=True, exist_ok=True)
    image = {"input_image": torch.randn(1, 3, SIDE, SIDE)}
    _export(sam.image_encoder, image, folder / "encoder.onnx", ["image_embeddings"])
    outputs = ["masks", "iou_predictions", "low_res_masks"]
    _export(SamOnnxModel(sam, return_single_mask=False), inputs, folder / "decoder.onnx", outputs, dynamic)
    return folder


class _Sam2Encoder(nn.Module):
    def __init__(self, sam2: Any) -> None:
        super().__init__()
        self.sam2 = sam2

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.sam2.get_image_embeddings(image))


class _Sam2Decoder(nn.Module):
    """Has the inputs and outputs of samexporter's decoder for SAM 2."""

    def __init__(self, sam2: Any) -> None:
        super().__init__()
        self.sam2 = sam2

    def forward(
        self,
        image_embed: torch.Tensor,
        high_res_feats_0: torch.Tensor,
        high_res_feats_1: torch.Tensor,
        point_coords: torch.Tensor,
        point_labels: torch.Tensor,
        mask_input: torch.Tensor,
        has_mask_input: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        encoder = self.sam2.prompt_encoder
        sparse = encoder._embed_points(point_coords[None], point_labels[None].long(), pad=True)
        without = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        dense = has_mask_input * encoder.mask_embed(mask_input) + (1 - has_mask_input) * without
        masks, scores, *_ = self.sam2.mask_decoder(
            image_embeddings=image_embed,
            image_positional_embeddings=self.sam2.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
            high_resolution_features=[high_res_feats_0, high_res_feats_1],
        )
        return masks[0].clamp(-32, 32), scores[0]


def export_sam2(folder: Path, sam2: Any = None) -> Path:
    """Export SAM 2 in the layout of samexporter."""
    pytest.importorskip("onnx")
    sam2 = (sam2 or tiny_sam2()).eval()
    folder.mkdir(parents=True, exist_ok=True)
    features = ["high_res_feats_0", "high_res_feats_1", "image_embed"]
    image = torch.randn(1, 3, SIDE, SIDE)
    _export(_Sam2Encoder(sam2), {"image": image}, folder / "encoder.onnx", features)
    with torch.no_grad():
        values = dict(zip(features, sam2.get_image_embeddings(image), strict=True))
    side = SIDE // 4
    inputs = {
        "image_embed": values["image_embed"],
        "high_res_feats_0": values["high_res_feats_0"],
        "high_res_feats_1": values["high_res_feats_1"],
        "point_coords": torch.rand(1, 5, 2) * SIDE,
        "point_labels": torch.randint(0, 4, (1, 5)).float(),
        "mask_input": torch.randn(1, 1, side, side),
        "has_mask_input": torch.ones(1),
    }
    dynamic = {
        "point_coords": {0: "num_labels", 1: "num_points"},
        "point_labels": {0: "num_labels", 1: "num_points"},
        "mask_input": {0: "num_labels"},
        "has_mask_input": {0: "num_labels"},
    }
    _export(_Sam2Decoder(sam2), inputs, folder / "decoder.onnx", ["masks", "iou_predictions"], dynamic)
    return folder


def _export(network: nn.Module, inputs: dict, path: Path, outputs: list[str], dynamic: dict | None = None) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes=dynamic,
            opset_version=18,
            dynamo=False,
        )


# --- all of them


class Tiny(NamedTuple):
    """A model in small.

    Attributes:
        model: Its name in :data:`sam.backends.BACKENDS`.
        packages: What must be installed.
        save: Writes its weights to a path, and returns the path.
        build: Builds the network in place of the module's ``BUILDERS``, if it has them.
    """

    model: str
    packages: tuple[str, ...]
    save: Callable[[Path], Path]
    build: Callable[[], nn.Module] | None = None


def _of_file(model: str, build: Callable[[], nn.Module], *packages: str) -> Tiny:
    return Tiny(model, packages, lambda path: save_sam(path, seed=3, build=build), build)


def _of_folder(model: str, build: Callable[[], Any]) -> Tiny:
    return Tiny(model, ("transformers",), partial(save_pretrained, build=build))


_HQ = ("segment_anything_hq", "timm")
FAMILIES = {
    "SAM": _of_file("vit_b", tiny_sam),
    "HQ-SAM": _of_file("hq_vit_b", tiny_hq_sam, *_HQ),
    "Light HQ-SAM": _of_file("hq_light", tiny_light_hq_sam, *_HQ),
    "MobileSAM": _of_file("mobile", tiny_mobile_sam, *_HQ),
    "SAM, folder": _of_folder("vit_b", tiny_sam_of_transformers),
    "HQ-SAM, folder": _of_folder("hq_vit_b", tiny_hq_sam_of_transformers),
    "SAM 2": _of_folder("sam2", tiny_sam2),
    "SAM 3": _of_folder("sam3", tiny_sam3),
    "SAM, ONNX": Tiny("onnx", ("onnx", "onnxruntime"), export_sam),
    "SAM 2, ONNX": Tiny("onnx", ("onnx", "onnxruntime", "transformers"), export_sam2),
}
"""Every module, and every class of network that a module loads. Models that differ in dimensions only are one."""


def replace_dimensions(patch: pytest.MonkeyPatch, tiny: Tiny) -> None:
    """Let the project take a model in small for the published one."""
    if tiny.build is not None:
        module = importlib.import_module(BACKENDS[tiny.model].of_file)
        patch.setitem(module.BUILDERS, tiny.model, tiny.build)
    elif BACKENDS[tiny.model].of_folder == "sam.backends.transformers":
        module = importlib.import_module("sam.backends.transformers")
        patch.setitem(module.SIZES, 32, tiny.model.removeprefix("hq_"))
