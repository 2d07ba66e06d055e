"""Run the benchmarks, each in a process of its own, and print and save one table of all rows.

python -m benchmarks [NAME ...] [--device auto] [--quick]

The table is written to benchmarks/results/DEVICE.json and .md. ``python -m benchmarks.NAME --help`` lists the options
of one benchmark.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.timing import Row, describe_machine, markdown
from IS_Net.device import pick_device
from IS_Net.files import atomic_file

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

ON_GPU = ("predict", "throughput", "train_step", "folder", "data_loading", "valid", "sam_masks", "cut", "ceilings")
"""In the order of what matters, in case the time on the machine ends."""
ON_CPU = (*ON_GPU, "metrics", "scoring")


def run(name: str, arguments: Sequence[str]) -> list[Row] | None:
    """Run a benchmark in its own process; return its rows, or None if it failed."""
    file = RESULTS / f"{name}.json"
    file.unlink(missing_ok=True)
    print(f"\n== {name}", flush=True)
    started = time.perf_counter()
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments, "--json", str(file)]
    code = subprocess.run(command, cwd=ROOT).returncode
    print(f"== {name}: {time.perf_counter() - started:.0f} s", flush=True)
    if code:
        print(f"{name} failed with exit code {code}", file=sys.stderr)
        return None
    return [Row(**found) for found in json.loads(file.read_text())["rows"]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks; return 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all; some of {', '.join(ON_CPU)}")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, not how fast it is")
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(ON_CPU):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected some of {', '.join(ON_CPU)}")
    device = pick_device(options.device)
    RESULTS.mkdir(exist_ok=True)
    arguments = [f"--device={device}", *(["--quick"] if options.quick else [])]
    rows, failed = [], False
    for name in options.names or (ON_GPU if device.type == "cuda" else ON_CPU):
        found = run(name, arguments)
        failed |= found is None
        rows += found or []
    machine = describe_machine(device)
    table = f"{', '.join(f'{key} {value}' for key, value in machine.items())}\n\n{markdown(rows)}\n"
    content = {"machine": machine, "rows": [vars(found) for found in rows]}
    stem = RESULTS / f"{device.type}{'_quick' if options.quick else ''}"
    for suffix, text in ((".md", table), (".json", json.dumps(content, indent=1))):
        with atomic_file(stem.with_suffix(suffix)) as file:
            file.write(text.encode())
    print(f"\n{table}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
