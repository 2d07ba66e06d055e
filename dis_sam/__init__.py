"""DIS-SAM: a box around a thing in a photograph becomes a pixel-accurate mask of it."""
