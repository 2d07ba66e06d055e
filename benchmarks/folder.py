"""Time a folder of 12-megapixel JPEGs, from files to cut-outs, against the predictions alone.

``dis_sam.batch.run`` reads the photographs, segments the object in each one's box, estimates the colors of soft edges,
and writes PNG files with alpha. The predictions alone take the decoded photographs and end with the alpha mattes. The
model is loaded before.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from benchmarks.samples import draw_several
from benchmarks.timing import Benchmark, Row, compare, idle_share, row
from dis_sam.batch import Options, run
from dis_sam.destination import Destination
from dis_sam.inputs import Request, Task
from dis_sam.model_choice import ModelChoice
from dis_sam.pipeline import DISSAM
from IS_Net.images import read_image, write_image
from IS_Net.paths import starter_weights
from IS_Net.predictor import DISPredictor
from sam.backends.box import BoxPredictor


@dataclass(frozen=True)
class Loaded(ModelChoice):
    """A model that is loaded already."""

    model: DISSAM | None = None

    def load(self) -> DISSAM:
        """Return the model."""
        return self.model


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yield one row."""
    device = options.device
    predictor = DISPredictor.from_checkpoint(starter_weights(), device, input_size=(options.size, options.size))
    model = DISSAM(BoxPredictor(), predictor)
    choice = Loaded(starter_weights(), device=str(device), model=model)
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name, "photographs"), Path(name, "out")
        tasks = []
        for index, sample in enumerate(draw_several(options.height, options.width, options.images)):
            path = folder / f"{index:04}.jpg"
            write_image(path, sample.image)
            tasks.append(Task(path.stem, path, (Request(path.stem, box=tuple(map(float, sample.box))),)))
        photographs = [(read_image(task.image), task.requests[0].box) for task in tasks]

        def predict() -> None:
            for image, box in photographs:
                model.dis.predict(image, box=box)

        def cut() -> None:
            for path in out.glob("*.png"):
                path.unlink()
            found = run(tasks, Destination(out, ("rgba",)), choice, Options(), workers=options.workers or None)
            if found.failed:
                raise SystemExit(f"failed: {found.failed}")

        times = compare(predict, cut, device, options.runs)
        image, box = photographs[0]
        expected = np.rint(255 * model.dis.predict(image, box=box))
        written = cv2.imread(str(next(out.glob(f"{tasks[0].name}*.png"))), cv2.IMREAD_UNCHANGED)[..., 3]
        difference = f"at most {np.abs(written - expected).max():.0f}/255"
        rates = [60 * len(tasks) / min(values) for values in (times.baseline, times.ours)]
        note = f"{len(tasks)} photographs; {rates[1]:.3g} a minute at best, {rates[0]:.3g} predicted alone"
        if device.type == "cuda":
            note += f"; device idle {100 * idle_share(cut, device):.1f} %"
        yield row(
            f"folder of {options.width} x {options.height} JPEGs",
            ("predictions alone", "decode to PNG"),
            times,
            difference,
            note,
            as_long=True,
        )


BENCHMARK = Benchmark(
    __doc__,
    rows,
    options={
        "images": (4, "number of photographs"),
        "size": (1024, "side of the network's input"),
        "width": (4000, "of the photographs"),
        "height": (3000, "of the photographs"),
        "runs": (2, "timed runs of each side"),
        "workers": (0, "reader threads, and writer threads; 0: as the command does"),
    },
    quick={"images": 2, "size": 128, "width": 400, "height": 300, "runs": 1},
    cuda={"images": 48, "runs": 3, "workers": 8},
)

if __name__ == "__main__":
    BENCHMARK.main()
