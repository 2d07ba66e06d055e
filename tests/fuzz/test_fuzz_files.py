"""Damaged files end in a result or a clear error; `make fuzz` runs more cases."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.fuzz_files import TARGETS, _seeds, fuzz, make_case, mutate


@pytest.mark.slow
def test_damaged_files_end_in_a_result_or_a_clear_error():
    report = fuzz(range(2000))
    assert sum(report.counts.values()) == 2000
    assert not report.failures, "\n".join(
        f"case {outcome.number}: {outcome.target} {outcome.name}: {outcome.result}\n{outcome.detail}"
        for outcome in report.failures[:5]
    )
    for target in TARGETS:  # the changes neither damage everything nor nothing
        assert report.counts[target, "clear error"] > 10
    assert report.counts["photograph", "result"] > 10


@pytest.mark.parametrize("target", TARGETS)
def test_valid_files_are_read(target: str, tmp_path):
    for name, content in _seeds(target).items():
        (tmp_path / name).write_bytes(content)
        if name != "last.pt":  # a training state of no network
            TARGETS[target].read(tmp_path / name)


def test_a_case_depends_on_its_number_only():
    assert make_case(7, 0) == make_case(7, 0)
    assert len({make_case(number, 0)[2] for number in range(50)}) > 45


def test_files_are_changed():
    rng = random.Random(0)
    for content in _seeds("mask").values():
        assert sum(mutate(content, content, rng) != content for _ in range(20)) > 15
