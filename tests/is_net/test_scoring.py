"""Measuring in worker processes, the cache of ground truths, and the suite of all metrics."""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_sample
from PIL import Image

from IS_Net.errors import ScoringError
from IS_Net.images import write_mask
from IS_Net.metric_names import ALL, METRIC_NAMES, choose
from IS_Net.metrics import MAE, FMeasure, GroundTruth
from IS_Net.metrics.pair import PARTS
from IS_Net.metrics.suite import FAMILIES, FIGURES, Suite, mean_figures
from IS_Net.scoring import GTCache, Job, Scorer

SIZES = ((60, 80), (97, 64), (31, 45), (70, 70))


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """Return four ground truths as files, with the maps of two methods: one rough, one perfect."""
    made = []
    for index, size in enumerate(SIZES):
        _, gt, mask = draw_sample(index, *size)
        gt, name = (gt > 128).astype(np.uint8) * np.uint8(255), f"ring_{index}"
        soft = (0.6 * mask + 0.3 * gt + np.random.default_rng(index).uniform(0, 25, size)).astype(np.uint8)
        for folder, plane in (("gt", gt), ("rough", soft), ("perfect", gt)):
            write_mask(tmp_path / folder / f"{name}.png", plane)
        files = [tmp_path / folder / f"{name}.png" for folder in ("gt", "rough", "perfect")]
        made.append(Job(name, files[0], {"rough": files[1], "perfect": files[2]}))
    return made


def totals(jobs: list[Job], **settings) -> dict[str, dict]:
    """Return the results of the jobs by method: figures, curves and the measures of each image."""
    suites: dict[str, Suite] = {}
    measures: dict[str, list] = {}
    with Scorer(**settings) as scorer:
        for job, outcome in zip(jobs, scorer.measure(iter(jobs)), strict=True):
            assert outcome.name == job.name and not outcome.problems
            for method, measured in outcome.measured.items():
                suites.setdefault(method, Suite()).add(measured)
                # bytes, not values: not even roundings may differ
                plain = {key: np.asarray(value, np.float64).tobytes() for key, value in measured.items()}
                measures.setdefault(method, []).append(plain)
    return {
        method: {
            "figures": suite.compute(),
            "curves": {key: curve.tolist() for key, curve in suite.curves().items()},
            "measures": measures[method],
        }
        for method, suite in suites.items()
    }


# --- the suite ---


def test_a_choice_of_metrics():
    assert choose("all") == tuple(FAMILIES) == METRIC_NAMES
    assert choose(" hce, f ,f") == ("f", "hce")
    with pytest.raises(ValueError, match=r"unknown metric 'wff'; expected f, wf, .*did you mean 'wf'"):
        choose("f,wff")
    with pytest.raises(ValueError, match="no metric was given"):
        choose(" , ")


def test_the_suite_computes_the_figures_of_the_tables():
    suite = Suite()
    assert all(math.isnan(value) for value in suite.compute().values())
    _, gt, mask = draw_sample(0, 60, 80)
    suite.update(mask, gt)
    assert list(suite.compute()) == list(FIGURES)
    assert suite.images == 1
    published = ", ".join(figure.heading for figure in FIGURES.values() if figure.published)
    f = "max F (mean curve), max F (mean P, R)"
    assert published == f"{f}, wF, MAE, Sm, mean Em, HCE, mIoU, pooled IoU, mBIoU, mBA"
    assert {key: curve.shape for key, curve in suite.curves().items()} == dict.fromkeys(
        ("f", "precision", "recall", "e"), (256,)
    )
    assert Suite("mae").compute().keys() == {"mae"} and not Suite("mae").curves()


def test_the_suite_agrees_with_its_metrics():
    suite, single = Suite("f,mae"), (FMeasure(), MAE())
    for index, size in enumerate(SIZES):
        _, gt, mask = draw_sample(index, *size)
        for metric in (suite, *single):
            metric.update(mask // 2 + 9, gt)
    figures = suite.compute()
    for metric in single:
        assert metric.compute().items() <= figures.items()


def test_the_mean_of_data_sets():
    assert mean_figures([{"mae": 0.0, "hce": 4.0}, {"mae": 0.5, "hce": 8.0}]) == {"mae": 0.25, "hce": 6.0}


# --- scoring ---


def test_perfect_maps_are_perfect(jobs: list[Job]):
    figures = totals(jobs)["perfect"]["figures"]
    expected = {"mae": 0, "hce": 0, **dict.fromkeys(("weighted_f", "s_measure", "iou", "boundary_iou", "max_e"), 1)}
    expected |= dict.fromkeys(("max_f_mean_curve", "max_f_mean_pr", "pooled_iou", "mba"), 1)
    assert {key: figures[key] for key in expected} == pytest.approx(expected, abs=1e-12)
    assert all(figures[key] <= 1 for key in figures if key != "hce")


def test_nothing_depends_on_workers_or_cache(jobs: list[Job], tmp_path: Path):
    plain = totals(jobs, cache_dir="")
    assert plain["rough"]["figures"]["mae"] > 0.05
    for workers in (0, 1, 2):
        cache = tmp_path / f"cache_{workers}"
        assert totals(jobs, workers=workers, cache_dir=cache) == plain  # cold
        assert len(list(cache.iterdir())) == 2 * len(jobs)
        assert totals(jobs, workers=workers, cache_dir=cache) == plain  # warm
    assert totals(jobs, workers=2, cache_dir="") == plain


def test_arrays_and_files_score_the_same(jobs: list[Job], tmp_path: Path):
    from IS_Net.images import read_mask

    in_memory = [Job(job.name, read_mask(job.gt), {m: read_mask(path) for m, path in job.maps.items()}) for job in jobs]
    assert totals(in_memory, workers=1) == totals(jobs)
    as_bool = [Job(job.name, job.gt > 128, job.maps) for job in in_memory]
    assert totals(as_bool) == totals(jobs)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("form", [np.uint8(1), np.uint16(255), np.float32(255), np.uint16(4095)], ids=str)
def test_row_10_all_metrics_read_a_map_alike(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, form: np.generic, workers: int
):
    """Fault 10: max F of .97 beside wF of .007, for maps of 0/1 and the like; a warning names what is rescaled."""
    plane = np.zeros((40, 60), np.uint8)
    plane[5:25, 5:35] = 1
    write_mask(tmp_path / "gt.png", plane * np.uint8(255))
    Image.fromarray(plane.astype(form.dtype) * form).save(tmp_path / "map.tif")
    with Scorer(ALL, workers) as scorer, caplog.at_level(logging.WARNING):
        (outcome,) = scorer.measure([Job("a", tmp_path / "gt.png", {"m": tmp_path / "map.tif"})])
    suite = Suite(ALL)
    suite.add(outcome.measured["m"])
    scores = suite.compute()
    found = [scores[key] for key in ("max_f_mean_curve", "weighted_f", "iou", "mae")]
    assert found == pytest.approx([1, 1, 1, 0])
    assert (f"{tmp_path / 'map.tif'}: holds 0 and {form:g}" in caplog.text) == (form.dtype != np.float32)


@pytest.mark.parametrize("workers", [0, 1])
def test_files_that_cannot_be_measured_are_named_and_the_others_are_measured(
    jobs: list[Job], tmp_path: Path, workers: int
):
    jobs[0].maps["rough"].write_bytes(b"no image")
    write_mask(jobs[1].maps["rough"], np.zeros((5, 6), np.uint8))
    content = jobs[2].gt.read_bytes()
    jobs[2].gt.write_bytes(content[: len(content) // 2])
    with Scorer("mae", workers) as scorer:
        outcomes = list(scorer.measure(jobs))
    assert [sorted(outcome.measured) for outcome in outcomes] == [["perfect"], ["perfect"], [], ["perfect", "rough"]]
    assert [len(outcome.problems) for outcome in outcomes] == [1, 1, 1, 0]
    for outcome, path in zip(outcomes, (jobs[0].maps["rough"], jobs[1].maps["rough"], jobs[2].gt), strict=False):
        assert str(path) in outcome.problems[0]
    assert "6 x 5 pixels, but its ground truth is 64 x 97 pixels" in outcomes[1].problems[0]


def test_only_a_few_jobs_are_drawn_ahead(jobs: list[Job]):
    drawn = []

    def endless():
        while True:
            drawn.append(jobs[0])
            yield jobs[0]

    with Scorer("mae", 1) as scorer:
        outcomes = scorer.measure(endless())
        for taken in range(1, 6):
            next(outcomes)
            assert len(drawn) <= taken + 2


def test_no_jobs_start_no_process():
    with Scorer("mae", 2) as scorer:
        assert not list(scorer.measure([]))
        assert not scorer._pool._processes


def test_a_worker_that_dies_is_reported(jobs: list[Job]):
    with Scorer("mae", 1) as scorer:
        outcomes = scorer.measure(job for job in jobs * 50)
        next(outcomes)
        for pid in list(scorer._pool._processes):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(ScoringError, match="fewer workers"):
            list(outcomes)


def test_one_of_two_workers_that_dies_does_not_leave_the_run_waiting(jobs: list[Job]):
    """A scoring worker that is killed (row 43 of the list of faults)."""
    with Scorer("mae", 2) as scorer:
        outcomes = scorer.measure(job for job in jobs * 50)
        next(outcomes)
        os.kill(min(scorer._pool._processes), signal.SIGKILL)
        with ThreadPoolExecutor(1) as pool, pytest.raises(ScoringError, match="fewer workers"):
            pool.submit(list, outcomes).result(timeout=60)


def test_a_worker_that_hangs_ends_the_run(jobs: list[Job], monkeypatch: pytest.MonkeyPatch):
    with Scorer("mae", 1) as scorer:
        outcomes = scorer.measure(job for job in jobs * 50)
        next(outcomes)
        monkeypatch.setattr("IS_Net.scoring._PATIENCE", 3.0)
        for pid in scorer._pool._processes:
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(ScoringError, match="no map was scored in 0 minutes"):
            list(outcomes)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unexpected_error_names_the_file(jobs: list[Job], workers: int):
    odd = Job("odd", jobs[0].gt, None)
    with Scorer("mae", workers) as scorer, pytest.raises(ScoringError, match=f"{jobs[0].gt}: cannot be scored \\(Attr"):
        list(scorer.measure([odd]))


@pytest.mark.parametrize("stdin", [False, True], ids=["file", "stdin"])
def test_scripts_need_no_guard(jobs: list[Job], tmp_path: Path, stdin: bool):
    code = (
        "from pathlib import Path\nfrom IS_Net.scoring import Job, Scorer\n"
        "print('started')\n"
        "with Scorer('mae', 2, '') as scorer:\n"
        f"    job = Job('a', Path({str(jobs[0].gt)!r}), {{'m': Path({str(jobs[0].gt)!r})}})\n"
        "    print([outcome.measured for outcome in scorer.measure([job] * 3)])\n"
        "import __main__\n"
        "print(getattr(__main__, '__file__', '')[-9:])\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    ended = subprocess.run(
        [sys.executable, "-" if stdin else script], input=code, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0] == "started" and lines[1].count("'mae'") == 3
    assert stdin or lines[2] == script.name
    assert len(lines) == 3


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_workers_end_with_a_killed_main_process(jobs: list[Job], tmp_path: Path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom IS_Net.scoring import Job, Scorer\n"
        "if __name__ == '__main__':\n"
        "    scorer = Scorer('mae', 2)\n"
        f"    job = Job('a', Path({str(jobs[0].gt)!r}), {{}})\n"
        "    list(scorer.measure([job] * 4))\n"
        "    print(*scorer._pool._processes, flush=True)\n"
        "    time.sleep(60)\n"
    )
    (tmp_path / "script.py").write_text(code)
    process = subprocess.Popen([sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert workers
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


# --- the cache ---


def same(one: GroundTruth, other: GroundTruth) -> bool:
    return all((array == other.arrays()[key]).all() for key, array in one.arrays().items())


def test_the_cache_depends_on_the_content(tmp_path: Path):
    cache = GTCache(tmp_path / "gt")
    mask = draw_sample(3, 40, 60)[1] > 128
    first = cache.ground_truth(mask)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "gt").iterdir()}
    assert before.keys() == set(cache.paths(mask).values()) and len(before) == 2
    again = cache.ground_truth(mask.copy())
    assert "skeleton" in vars(again) and "band" in vars(again)  # everything was read
    assert same(first, again) and same(first, GroundTruth(mask))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "gt").iterdir()} == before
    others = [~mask, mask.T, mask.reshape(60, 40)]
    assert len({path for other in [mask, *others] for path in cache.paths(other).values()}) == 8


@pytest.mark.parametrize("gt", [np.zeros((7, 9), bool), np.ones((7, 9), bool), np.ones((1, 1), bool)])
def test_empty_and_full_ground_truths_are_cached_too(tmp_path: Path, gt: np.ndarray):
    cache = GTCache(tmp_path)
    first, again = cache.ground_truth(gt), cache.ground_truth(gt)
    assert same(first, again) and list(tmp_path.glob("*.npz"))


@pytest.mark.parametrize("part", PARTS)
def test_damaged_entries_are_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, part: str):
    cache = GTCache(tmp_path)
    mask = draw_sample(3, 40, 60)[1] > 128
    truth = GroundTruth(mask)
    cache.ground_truth(mask)
    path = cache.paths(mask)[part]
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    cases = [b"", b"no archive", whole[: len(whole) // 2], whole[:-3], whole[len(whole) // 3 :]]
    for _ in range(60):
        bits = np.frombuffer(whole, np.uint8).copy()
        bits[rng.integers(0, bits.size, 3)] ^= rng.integers(1, 256, 3, dtype=np.uint8)
        cases.append(bits.tobytes())
    repaired = 0
    for content in cases:
        path.write_bytes(content)
        caplog.clear()
        assert same(cache.ground_truth(mask), truth)
        repaired += "is damaged" in caplog.text
        assert same(cache.ground_truth(mask), truth)
    assert repaired > 30  # some bytes of the archive headers have no effect
    # the file of another ground truth
    cache.ground_truth(mask[:, :50])
    cache.paths(mask[:, :50])[part].replace(path)
    assert same(cache.ground_truth(mask), truth)
    assert not list(tmp_path.glob(".*"))


def test_a_cache_that_cannot_be_written_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("in the way")
    cache = GTCache(tmp_path / "file" / "gt")
    with caplog.at_level(logging.WARNING):
        for size in SIZES:
            mask = draw_sample(0, *size)[1] > 128
            assert same(cache.ground_truth(mask), GroundTruth(mask))
    assert caplog.text.count("cannot be written") == 1


def test_only_what_needs_it_is_cached(jobs: list[Job], tmp_path: Path):
    list(Scorer("f,mae,s,e,iou,biou,mba", 0, tmp_path / "cache").measure(jobs))
    assert not (tmp_path / "cache").exists()
    kept = set()
    for metrics, part in (("hce,mae", "skeleton"), ("wf", "distance"), ("all", None)):
        list(Scorer(metrics, 0, tmp_path / "cache").measure(jobs))
        added = set((tmp_path / "cache").iterdir()) - kept
        assert len(added) == (len(jobs) if part else 0) and all(path.stem.endswith(f"_{part}") for path in added)
        kept |= added
    known = GTCache(tmp_path, ["skeleton"]).ground_truth(draw_sample(3, 40, 60)[1] > 128)
    assert "skeleton" in vars(known) and "squared_distance" not in vars(known)  # the rest is not computed


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(np.lib.format, "write_array", interrupted)
    with pytest.raises(KeyboardInterrupt):
        GTCache(tmp_path / "gt").ground_truth(draw_sample(0, 40, 60)[1] > 128)
    assert not list((tmp_path / "gt").iterdir())
