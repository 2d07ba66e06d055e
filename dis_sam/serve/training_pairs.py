"""Save results as training samples: image, ground truth and coarse mask in the layout of the data sets."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from dis_sam.pipeline import Result
from IS_Net.files import require_writable
from IS_Net.images import IMAGE_EXTENSIONS, atomic_file, binarize, encode_image, write_mask

FOLDERS = ("im", "gt", "mask")
_lock = threading.Lock()


def require_folder(folder: Path) -> None:
    """Find out whether training pairs can be written into a folder, which may be missing.

    Raises:
        OSError: If not; the message names the folder.
    """
    for part in FOLDERS:
        require_writable(folder / part / "NAME.png")


def save_pair(folder: Path, name: str, result: Result, jpeg: bytes | None = None) -> dict[str, Path]:
    """Write ``im/NAME.jpg``, ``gt/NAME.png`` and ``mask/NAME.png``. No file is ever replaced.

    Args:
        folder: The folder of the split; missing folders are created.
        name: ``-2``, ``-3`` and so on is appended if a file of this name exists.
        result: The ground truth is its alpha matte, the mask its coarse mask, or its own mask if there is none.
        jpeg: The content of the JPEG file that the image was read from, which is kept as it is; None encodes the image.

    Returns:
        The files by folder.

    Raises:
        OSError: If a file cannot be written.
    """
    coarse = result.mask if result.coarse is None else result.coarse
    mask = coarse if coarse.dtype == bool else binarize(coarse)
    image = encode_image(result.image, ".jpg", quality=97) if jpeg is None else jpeg
    with _lock:
        stem = _free_name(folder, name)
        files = {part: folder / part / f"{stem}.{'jpg' if part == 'im' else 'png'}" for part in FOLDERS}
        write_mask(files["gt"], np.rint(result.alpha * 255).astype(np.uint8))
        write_mask(files["mask"], mask)
        with atomic_file(files["im"]) as file:  # last: a sample exists when its image does
            file.write(image)
    return files


def _free_name(folder: Path, name: str) -> str:
    taken = {
        path.stem.lower()
        for part in FOLDERS
        if (folder / part).is_dir()
        for path in (folder / part).iterdir()
        if path.suffix.lower() in IMAGE_EXTENSIONS
    }
    candidates = (name if k == 1 else f"{name}-{k}" for k in range(1, len(taken) + 2))
    return next(candidate for candidate in candidates if candidate.lower() not in taken)
