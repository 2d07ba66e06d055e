"""The networks: the segmentation network ISNetDIS and the encoder of ground truths that supervises it."""

from IS_Net.models.isnet import RSU, ConvBNReLU, ISNetDIS, ISNetGTEncoder

__all__ = ["RSU", "ConvBNReLU", "ISNetDIS", "ISNetGTEncoder"]
