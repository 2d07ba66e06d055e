"""On the path of a process that a test starts: the model that is loaded computes nothing (fake_model.py)."""

from fake_model import FakeModel

from dis_sam.model_choice import ModelChoice


class Slow(FakeModel):
    """Takes time, so that a process can be killed in the middle."""

    def __init__(self) -> None:
        super().__init__(seconds=0.05)


ModelChoice.load = lambda _: Slow()
