"""Stage 2 of DIS-SAM: a modified IS-Net turns an image and its coarse SAM mask into an accurate mask."""
