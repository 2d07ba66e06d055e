"""Cut an object out of a photograph with an export and onnxruntime alone: no PyTorch, no DIS-SAM.

pip install onnxruntime pillow
python onnx_python.py dis_sam_starter.onnx photo.jpg cutout.png 120 80 900 1400    # x0 y0 x1 y1, in pixels
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, photo, out, *box = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
inputs = {
    "image": np.asarray(image),
    "mask": np.zeros((image.height, image.width), np.uint8),  # zeros: there is no mask
    "box": np.array(box or [0] * 4, np.float32),  # zeros: there is no box
}
names = [found.name for found in session.get_inputs()]
for _ in range(2):  # the second pass refines the result of the first
    [alpha] = session.run(["alpha"], {name: inputs[name] for name in names})
    inputs["mask"] = np.rint(255 * alpha).astype(np.uint8)
image.putalpha(Image.fromarray(inputs["mask"]))
image.save(out)
