"""Freed memory is kept or returned, in processes of their own."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from IS_Net import allocator

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about glibc")

SCRIPT = """
import resource
import sys
from IS_Net.allocator import reuse_freed_memory

largest = int(sys.argv[1])
if largest:
    reuse_freed_memory(largest)

def new_pages(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for size in (48 * 2**20, 96 * 2**20):
    new_pages(size)
    print(new_pages(size) * resource.getpagesize() > size / 2)
"""


@pytest.mark.skipif(
    tuple(map(int, (platform.libc_ver()[1] or "0.0").split("."))) < (2, 35), reason="glibc then keeps 32 MiB at most"
)
@pytest.mark.parametrize(
    ("largest", "new"),
    [(0, ["True", "True"]), (48 * 2**20, ["False", "True"]), (96 * 2**20, ["False"] * 2), (2**31 - 1, ["False"] * 2)],
)
def test_memory_up_to_a_size_is_used_again(largest: int, new: list[str]):
    """Pieces of 48 and 96 MiB are made, freed and made again: are their pages new?"""
    command = [sys.executable, "-c", SCRIPT, str(largest)]
    root = Path(__file__).parents[2]
    printed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    assert printed.split() == new


def test_without_a_threshold_for_pieces_nothing_is_set(monkeypatch: pytest.MonkeyPatch):
    """An old glibc refuses large thresholds; the threshold for trimming alone would make it keep less than before."""
    for accepted, expected in (
        (2**31, [(-3, 2**20 + 4096), (-1, -1), (-8, 1)]),
        (32 * 2**20, [(-3, 2**27 + 4096), (-3, 2**25), (-1, -1), (-8, 1)]),
        (0, [(-3, 2**27 + 4096), (-3, 2**25)]),
    ):
        calls = []

        class Library:
            @staticmethod
            def mallopt(parameter: int, value: int, calls: list = calls, accepted: int = accepted) -> int:
                calls.append((parameter, value))
                return int(parameter != -3 or value <= accepted)

        monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _, library=Library: library)
        allocator.reuse_freed_memory(2**20 if accepted == 2**31 else 2**27)
        assert calls == expected
