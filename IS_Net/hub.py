"""Stage 2 on the Hugging Face Hub: ``from_pretrained``, ``save_pretrained`` and ``push_to_hub``.

:class:`IS_Net.predictor.DISPredictor` has these methods; they call this module, which needs the extra ``hub``. A model
is a folder, or a repository of the Hub, with ``model.safetensors`` (the checkpoint with its metadata), ``config.json``
and ``README.md`` (the model card). A folder is loaded without the network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from IS_Net.errors import CheckpointError, DatasetError, import_extra
from IS_Net.files import atomic_file, content_hash, is_existing_file, refuse_to_replace, require_writable
from IS_Net.paths import starter_weights

huggingface_hub = import_extra("huggingface_hub", "hub")

WEIGHTS, CONFIG = "model.safetensors", "config.json"
"""Files of a model."""

_CARD = "MODEL_CARD.md"
_MAX_VALUE = 400  # characters of a value of the metadata in a model card
_USE = """\
```python
from dis_sam import DISPredictor

predictor = DISPredictor.from_pretrained("{name}")  # or a folder
alpha = predictor.predict(image, mask)  # (H, W, 3) uint8 RGB, (H, W) -> (H, W) float32 in [0, 1]
```
"""


class HubModel(
    huggingface_hub.ModelHubMixin,
    library_name="dis-sam",
    pipeline_tag="image-segmentation",
    tags=["dichotomous-image-segmentation", "image-matting", "promptable-segmentation"],
):
    """The files of a model of stage 2.

    Args:
        checkpoint: A checkpoint that :meth:`IS_Net.predictor.DISPredictor.from_checkpoint` loads.
        settings: The content of ``config.json``: ``architecture``, ``in_ch`` and ``input_size``, [height, width].
        metadata: The metadata of the checkpoint, for the model card.
    """

    def __init__(
        self, checkpoint: Path, settings: Mapping[str, Any] | None = None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        self.checkpoint, self.metadata = checkpoint, dict(metadata or {})
        self._hub_mixin_config = dict(settings or {})

    @property
    def settings(self) -> dict[str, Any]:
        """The content of ``config.json``."""
        return self._hub_mixin_config

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: dict[str, Any] | None = None, **download: Any) -> HubModel:
        folder = Path(model_id)
        if not folder.is_dir():
            wanted = ("revision", "cache_dir", "force_download", "local_files_only", "token")
            options = {key: download[key] for key in wanted}
            return cls(Path(huggingface_hub.hf_hub_download(model_id, WEIGHTS, **options)), config)
        if not (folder / WEIGHTS).is_file():
            raise CheckpointError(
                f"{folder}: found no {WEIGHTS}; expected a folder that save_pretrained wrote. For a checkpoint, use "
                "from_checkpoint"
            )
        return cls(folder / WEIGHTS, config)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the files of the model; see :meth:`IS_Net.predictor.DISPredictor.save_pretrained`."""
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise DatasetError(f"{folder}: is a file; expected a folder for the files of the model")
        require_writable(folder / WEIGHTS)
        return super().save_pretrained(folder, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        path = save_directory / WEIGHTS
        refuse_to_replace([path], [self.checkpoint])
        if self.checkpoint.suffix == ".safetensors":
            with atomic_file(path) as file:
                file.write(self.checkpoint.read_bytes())
        else:
            from IS_Net.checkpoint import load_isnet, save_weights  # import PyTorch

            model, metadata = load_isnet(self.checkpoint)
            save_weights(path, model, metadata)
        with atomic_file(save_directory / CONFIG) as file:
            file.write(f"{json.dumps(self.settings, indent=2, sort_keys=True)}\n".encode())

    def generate_model_card(
        self, license: str | None = None, name: str = "USER/MODEL", **_: Any
    ) -> huggingface_hub.ModelCard:
        """Return the model card.

        Of the starter weights, it is their own card. Of other weights, it says what the checkpoint records about them.

        Args:
            license: The identifier of the weights' license, for example ``apache-2.0``; None takes that of the
                metadata, and says that it is not stated if there is none.
            name: The repository, for the example.
        """
        starter = starter_weights()
        is_starter = starter.is_file() and content_hash(starter) == content_hash(self.checkpoint)
        license = license or self.metadata.get("license") or ("other" if is_starter else None)
        info = self._hub_mixin_info.model_card_data.to_dict() | ({"license": license} if license else {})
        if is_starter and license == "other":
            info["license_name"] = "see-model-card"
        head = huggingface_hub.ModelCardData(**info)
        body = _starter_card(starter) if is_starter else self._card(license)
        return huggingface_hub.ModelCard(f"---\n{head}\n---\n\n{body}\n## Use\n\n{_USE.format(name=name)}")

    def _card(self, license: str | None) -> str:
        channels = {3: "image", 4: "image and coarse mask", 5: "image, coarse mask and box"}
        height, width = self.settings["input_size"]
        rows = "".join(f"| {key} | {_cell(value)} |\n" for key, value in sorted(self.metadata.items()))
        about = (
            f"What the checkpoint records:\n\n| | |\n|---|---|\n{rows}" if rows else "The checkpoint records nothing.\n"
        )
        stated = f"`{license}`" if license else "not stated. Ask who trained them before you use or redistribute them"
        return (
            f"# {self.checkpoint.stem}\n\n"
            f"Weights of DIS-SAM's second stage: an IS-Net with {self.settings['in_ch']} input channels "
            f"({channels[self.settings['in_ch']]}) that works at {width} x {height}. It returns the alpha matte of an "
            "object in a photograph.\n\n"
            f"License of the weights: {stated}.\n\n"
            "## Lineage\n\n"
            "The network is that of IS-Net (Qin et al., ECCV 2022), with the prompt as further input channels (Liu et "
            "al., [arXiv 2401.00248](https://arxiv.org/abs/2401.00248)). Weights that were trained on DIS5K, or from "
            "weights that were, fall under its terms: non-commercial use only.\n\n"
            f"## Training\n\n{about}"
        )


def _cell(value: Any) -> str:
    """Return a value of the metadata as the cell of a table."""
    text = value if isinstance(value, str) else json.dumps(value)
    text = text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]} ..."
    return " ".join(text.split()).replace("|", "\\|")


def _starter_card(starter: Path) -> str:
    """Return the starter weights' own card without pictures; its links to files of the project become plain text."""
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)\n+", "", (starter.parent / _CARD).read_text(encoding="utf-8"))
    return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)\s]*\)", r"\1", text)


def find_model(name_or_path: str | Path, **download: Any) -> HubModel:
    """Find a model in a folder, or download it.

    Args:
        name_or_path: A folder that :meth:`HubModel.save_pretrained` wrote, or a repository of the Hub, ``USER/MODEL``.
        download: Options of ``ModelHubMixin.from_pretrained``: ``revision``, ``token``, ``cache_dir``,
            ``force_download``, ``local_files_only``.

    Raises:
        CheckpointError: If this is a file, the folder has no weights or a damaged ``config.json``, or the repository
            cannot be downloaded.
    """
    if is_existing_file(name_or_path):
        raise CheckpointError(
            f"{name_or_path}: is a file; expected a folder or USER/MODEL. For a checkpoint, use from_checkpoint"
        )
    is_folder = Path(name_or_path).is_dir()
    try:
        model = HubModel.from_pretrained(name_or_path, **download)
    except CheckpointError:
        raise
    except Exception as error:  # of the hub's client, its HTTP library, or JSON
        expected = "copy the folder again" if is_folder else "check the name and the network, or give a folder"
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"{name_or_path}: cannot be loaded ({reason}); {expected}") from error
    size = model.settings.get("input_size")
    valid = isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
    if size is not None and not valid:
        raise CheckpointError(f"{name_or_path}: {CONFIG}, key 'input_size': expected [height, width], found {size!r}")
    return model
