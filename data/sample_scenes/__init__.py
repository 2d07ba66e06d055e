"""Procedural pictures with exact ground truth: thin 3-D objects drawn into surroundings made from photographs.

`kinds` builds an object as a `mesh.Model` of `materials`, `render` draws it through a camera with its shadow,
`surroundings` makes the place, and `compose` puts both into one exposure. Colors are linear-light RGB throughout.
"""

from sample_scenes.compose import compose, make_pair
from sample_scenes.kinds import KINDS

__all__ = ["KINDS", "compose", "make_pair"]
