"""Annotation files of other tools: COCO, labelme, and CVAT's auto-annotation functions; see docs/annotations.md."""
