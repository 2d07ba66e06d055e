"""Run a function in processes that find the environment which torchrun gives to its own."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

PRELOADED = ["IS_Net.train_valid_inference_main", "IS_Net.phases", "tests.thin_networks", "torch.utils.tensorboard"]


class Group:
    """Processes of one run.

    Args:
        size: Their number.
        folder: For what they print and return.
        function: Runs in each of them, with ``arguments``.
        agent: Whether to do what torchrun's agent does, beside starting them: hold the store, and end all processes as
            soon as one of them has failed.
    """

    def __init__(
        self, size: int, folder: Path, function: Callable[..., Any], *arguments: Any, agent: bool = False
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)  # so that a process has imported PyTorch when it starts
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        of_agent = {}
        if agent:
            from torch.distributed import TCPStore

            self.store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
            of_agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.processes = []
        for rank in range(size):
            variables = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "RANK": rank, "LOCAL_RANK": rank}
            variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
            (folder / f"{rank}.txt").touch()
            environment = {name: str(value) for name, value in variables.items()} | of_agent
            process = context.Process(target=_run, args=(folder, environment, function, arguments))
            process.start()
            self.processes.append(process)
        self._agent = threading.Thread(target=self._end_together, daemon=True) if agent else None
        if self._agent:
            self._agent.start()

    def _end_together(self) -> None:
        running = {process.sentinel: process for process in self.processes}
        while running:
            for ended in connection.wait(running):
                if running.pop(ended).exitcode:
                    for process in running.values():
                        process.terminate()

    def printed(self, rank: int) -> str:
        """Return what a process has printed."""
        return (self.folder / f"{rank}.txt").read_text(encoding="utf-8")

    def wait(self, seconds: float = 240) -> list[int]:
        """Wait until all have ended, and return their exit codes.

        Raises:
            AssertionError: If one hangs.
        """
        if self._agent:  # a process tells its exit code once, and of two threads that ask, one gets 255
            self._agent.join(seconds)
        for process in self.processes:
            process.join(seconds)
        hanging = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        for rank in hanging:
            self.processes[rank].kill()
        assert not hanging, f"processes that hang: {hanging}; {[self.printed(rank) for rank in hanging]}"
        return [process.exitcode for process in self.processes]

    def results(self) -> list[Any]:
        """Return what the function returned in each process, once all have ended well."""
        codes = self.wait()
        assert not any(codes), "\n".join(self.printed(rank) for rank in range(len(codes)))
        return [pickle.loads((self.folder / f"{rank}.pkl").read_bytes()) for rank in range(len(codes))]


def _run(folder: Path, environment: dict[str, str], function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    os.environ.update(environment)
    output = (folder / f"{environment['RANK']}.txt").open("w", encoding="utf-8", buffering=1)
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    import torch

    torch.set_num_threads(1)
    try:
        result = function(*arguments)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        sys.exit(1)
    (folder / f"{environment['RANK']}.pkl").write_bytes(pickle.dumps(result))
