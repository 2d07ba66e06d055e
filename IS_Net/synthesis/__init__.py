"""Synthetic training samples: copy-paste augmentation and simulated coarse masks."""
