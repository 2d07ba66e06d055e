"""Drivers: what runs the parts of a run over many pictures, the same for all verbs that have ``--shard``.

- ``--processes N``: N processes of this command on this machine, each with ``--shard K/N``.
- ``--driver env``: this process does the shard that torchrun or Slurm gave it.
- ``--driver ray``: actors of Ray take pictures from Ray Data in small batches. Only paths and prompts go to them, and
  only a line for each picture comes back; files are read and written where the actors run.

This module imports nothing heavy.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from IS_Net import shards
from IS_Net.command_line import DONE, FAILED, NOT_STARTED, print_error
from IS_Net.errors import UserError, import_extra
from IS_Net.lock import lock_folder
from IS_Net.machine import available_cores

Call = Callable[[list[str]], int]
Plan = Callable[[list[str]], Sequence[shards.Work]]

_OPTIONS = ("--processes", "--driver")
_ROWS = "--rows"
_BATCH = 16
"""Highest number of pictures that an actor is given at a time: less is lost when it dies, and the others wait less."""
_RESUMES = "all files written so far are complete, and the same command does what is left"
_STOP_SECONDS = 30.0
_RESTARTS = 3
"""How often Ray starts an actor again, and a batch: a picture that ends every process must not do so for ever."""
_CHILD = "import sys; from dis_sam import cli, sharding; sharding.begin_worker(); sys.exit(cli.main(sys.argv[1:]))"


class DriverError(UserError, RuntimeError):
    """A run whose workers were lost."""

    exit_code = 1


def drive(verb: str, arguments: list[str], call: Call, plan: Plan) -> int:
    """Run a verb on many processes or machines, if its arguments ask for that.

    Args:
        verb: The verb.
        arguments: What follows it.
        call: Runs the verb in this process.
        plan: Returns the verb's work.

    Returns:
        The exit code: 0 done; 1 pictures failed, each named, or a process was lost; 2 no process could start.
    """
    if not any(argument.partition("=")[0] in _OPTIONS for argument in arguments):
        return call(arguments)
    parser = argparse.ArgumentParser(prog=f"dis-sam {verb}", add_help=False, allow_abbrev=False)
    shards.add_options(parser)
    parser.set_defaults(rows=None)
    if verb == "evaluate":
        parser.add_argument(_ROWS)
    options, rest = parser.parse_known_args(arguments)
    if options.shard:
        parser.error("expected either --shard, or --processes and --driver")
    if options.driver == "env":
        if options.processes:
            parser.error("--driver env: torchrun or srun starts the processes; omit --processes")
        rows = [] if options.rows is None else [_ROWS, options.rows]
        return call(["--shard", str(shards.Shard.from_environment()), *rows, *rest])
    if options.driver != "ray" and not options.processes:
        parser.error("--driver local: expected --processes N")
    if verb != "evaluate":
        return _run_driver(options, verb, rest, plan)
    with tempfile.TemporaryDirectory(prefix="dis-sam-") as folder:
        rest = [_ROWS, options.rows or folder, *rest]
        code = _run_driver(options, verb, rest, plan)
        return call(rest) if code == DONE else code  # all is measured: the tables are made of the rows


def _run_driver(options: argparse.Namespace, verb: str, arguments: list[str], plan: Plan) -> int:
    works = plan(["--shard", f"0/{options.processes or 1}", *arguments])  # what is wrong is said once, before the start
    if options.driver == "ray":
        return _run_ray(works, options.processes)
    return _run_local(verb, arguments, min(options.processes, max(len(work.items()) for work in works)))


# --- processes on this machine ---


def _run_local(verb: str, arguments: Sequence[str], count: int) -> int:
    threads = str(max(1, available_cores() // count))
    processes: list[subprocess.Popen] = []
    try:
        for index in range(count):
            environment = {"OMP_NUM_THREADS": threads, **os.environ}
            environment |= {"LOCAL_RANK": str(index), "LOCAL_WORLD_SIZE": str(count), "TQDM_POSITION": str(index)}
            command = [sys.executable, "-c", _CHILD, verb, "--shard", f"{index}/{count}", *arguments]
            processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, env=environment))
        codes = [process.wait() for process in processes]
    except BaseException:  # Ctrl-C reached the processes, too; SIGTERM may not have
        _stop(processes)
        raise
    for index, code in enumerate(codes):
        if code not in (DONE, FAILED, NOT_STARTED):
            print_error(f"shard {index}/{count} {_end(code)}; {_RESUMES}")
    return NOT_STARTED if set(codes) == {NOT_STARTED} else FAILED if any(codes) else DONE


def _end(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _stop(processes: Sequence[subprocess.Popen]) -> None:
    deadline = time.monotonic() + _STOP_SECONDS
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def begin_worker() -> None:
    """Prepare a process that :func:`drive` has started, before it runs the verb.

    It ends when the pipe to its parent closes, which it does even if the parent was killed. What is noticed while the
    work is planned is not logged, because the parent has planned it, too; :func:`IS_Net.shards.run_shard` ends that.
    """
    logging.disable(logging.WARNING)

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(FAILED)

    threading.Thread(target=watch, daemon=True).start()


# --- Ray ---


class _Actor:
    """Does the batches that Ray gives it. What it recorded is merged when it has ended, as that of other workers.

    Args:
        works: What is done.
    """

    def __init__(self, works: Sequence[shards.Work]) -> None:
        from IS_Net.command_line import escape_unprintable

        escape_unprintable()
        name = f"ray-{os.uname().nodename if hasattr(os, 'uname') else 'node'}-{os.getpid()}"
        self.works = works
        self.parts = [shards.open_part(work, name) for work in works]
        self.open = [part.__enter__() for part in self.parts]  # the system frees the locks when the actor ends

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Do the items of a batch; return a line for each status, and the errors."""
        lines: list[str] = []
        for index in dict.fromkeys(map(int, batch["work"])):
            part = self.open[index]
            part.counts.clear()
            part.errors.clear()
            items = [pickle.loads(x) for w, x in zip(batch["work"], batch["item"], strict=True) if int(w) == index]
            self.works[index].run(items, part)
            lines += [f"{status} {number}" for status, number in part.counts.items()]
            lines += [f"error {message}" for message in part.errors]
        return {"line": lines}


def _run_ray(works: Sequence[shards.Work], actors: int | None) -> int:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use over the network
    ray = import_extra("ray", "ray")
    data = import_extra("ray.data", "ray")
    from tqdm import tqdm

    started = not ray.is_initialized()
    if started:  # RAY_ADDRESS names a cluster; without it, Ray starts here
        here = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
        ray.init(**here, log_to_driver=False, logging_level=logging.WARNING)
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = sum(node.get("GPU", 0) for node in nodes)
        actors = actors or int(gpus) or 1
        items = [(index, item) for index, work in enumerate(works) for item in work.items()]
        actors = min(actors, len(items))
        cores = int(min(node.get("CPU", 1) for node in nodes)) // math.ceil(actors / len(nodes))
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)  # it would tell of each step of its plan
        size = max(1, min(_BATCH, len(items) // (4 * actors)))
        rows = [{"work": index, "item": pickle.dumps(item)} for index, item in items]
        results = data.from_items(rows).map_batches(
            _Actor,
            fn_constructor_args=([work.without_items() for work in works],),
            batch_size=size,
            compute=data.ActorPoolStrategy(size=actors),
            num_cpus=max(1, cores),
            num_gpus=min(1, gpus / actors),
            max_restarts=_RESTARTS,
            max_task_retries=_RESTARTS,
        )
        counts, errors = Counter(), [message for work in works for message in work.left_out]
        with tqdm(total=len(items), desc="pictures", unit="picture") as bar:
            for row in results.iter_rows():
                kind, _, text = row["line"].partition(" ")
                if kind == "error":
                    errors.append(text)
                else:
                    counts[kind] += int(text)
                    bar.update(int(text))
    except Exception as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError):
            raise cause from error
        if isinstance(error, ray.exceptions.RayError) and not isinstance(error, ray.exceptions.RayTaskError):
            reason = str(error).splitlines()[0].rstrip(".")
            raise DriverError(f"Ray: {reason}; {_RESUMES}") from error
        raise
    finally:
        if started:
            ray.shutdown()
    _merge(works)
    shards.print_results(f"{actors} {'actor' if actors == 1 else 'actors'}", counts, errors)
    return FAILED if errors else DONE


def _merge(works: Sequence[shards.Work]) -> None:
    """Merge what the actors have left, as soon as they have ended."""
    deadline = time.monotonic() + _STOP_SECONDS
    for work in works:
        while True:
            with lock_folder(work.out, f"{work.what} (merge)", wait=shards.PATIENCE):
                working = shards.finish(work)
            if not working or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        if working:
            print_error(
                f"{work.out}: the workers {', '.join(working)} have not ended; the next start merges their rows",
                prefix="warning: ",
            )
