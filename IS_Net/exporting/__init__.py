"""Exports: the network with its pre- and post-processing as one model of another format.

:mod:`IS_Net.exporting.graph` is what an export computes, :mod:`IS_Net.exporting.formats` writes and opens the files,
and :mod:`IS_Net.exporting.parity` compares their alpha mattes with those of the checkpoint. This module imports nothing
heavy.
"""

from __future__ import annotations

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torchscript": ".pt", "coreml": ".mlpackage"}
"""By format: how the name of an export ends."""

FLIPS = 0.0005
"""Highest share of a picture's pixels that may change sides at .5."""
MEAN = 2.0
"""Highest mean difference of a picture, in steps of 1/255."""
