"""The networks: the segmentation network ISNetDIS, and the GT encoder that supervises its features in training."""

from IS_Net.models.isnet import RSU, ConvBNReLU, ISNetDIS, ISNetGTEncoder

__all__ = ["RSU", "ConvBNReLU", "ISNetDIS", "ISNetGTEncoder"]
