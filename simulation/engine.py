"""One federation on this machine: Flower's simulation engine (Ray), one virtual node a hospital, no process left."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from modaltune.errors import ModalTuneError, RunFailed
from modaltune.federation.study import Study

_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_worker_niceness": "0",  # Ray's 15 starves the hospitals for minutes on a machine that does something else too
    "RAY_prestart_worker_first_driver": "0",  # those workers lack our environment and would start for nothing
    "HF_HUB_OFFLINE": "1",
}
_OBJECT_STORE_BYTES = 160 * 1024 * 1024
Progress = Callable[[Mapping[str, Any]], None]


def cores() -> int:
    """Processor cores that this process may keep busy: ``$MODALTUNE_CORES``, or all."""
    return int(os.environ.get("MODALTUNE_CORES") or os.cpu_count() or 1)


def end_with_parent() -> None:
    """Let this worker process end when the one that started it has, killed or not: nobody waits for its result."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


class FolderOfPartition:
    """Finds the site folder of a virtual node; its number is its only identity in a simulation."""

    def __init__(self, folders: list[Path]) -> None:
        self.folders = folders

    def __call__(self, context: Any) -> Path:
        """Folder of the node that this context belongs to."""
        return self.folders[int(context.node_config["partition-id"])]


def run_federation(study: Study, folders: Mapping[str, Path], out: Path, progress: Progress | None = None) -> Any:
    """Run a study over site folders with Flower and Ray.

    Args:
        folders: site name -> folder, for every site of the roster.
        out: folder that receives study, preprocessing, round log and model.
        progress: called with each row of the round log.
    Returns:
        The coordinator's result (:class:`server.rounds.Result`).
    Raises:
        RunFailed: the federation ended without a model.
    """
    os.environ.update(_QUIET)
    from flwr.simulation import run_simulation

    from client.app import make_app as make_client
    from server.app import make_app as make_server

    results: list[Any] = []
    sites = [folders[site].resolve() for site in study.roster]
    coordinator = _Coordinator(make_server(study, out, progress, results.append))
    with _clean_engine(), coordinator.stopped_afterwards():
        try:
            run_simulation(
                server_app=coordinator.app(),
                client_app=make_client(FolderOfPartition(sites)),
                num_supernodes=len(sites),
                backend_config=_backend(len(sites)),
            )
        except ModalTuneError:
            raise
        except RuntimeError as error:
            raise RunFailed(f"the simulation engine stopped: {error}; run again with --debug for its log") from error
    if not results:
        raise RunFailed("the coordinator ended without a result; run again with --debug for its log")
    return results[0]


class _Coordinator:
    """A ServerApp that can be told to stop: an interrupted simulation leaves its thread waiting for replies."""

    def __init__(self, server: Any) -> None:
        self._server, self._stop, self._running = server, threading.Event(), threading.Lock()

    def app(self) -> Any:
        """The ServerApp to run."""
        from flwr.app import Context
        from flwr.serverapp import Grid, ServerApp

        app = ServerApp()

        @app.main()
        def main(grid: Grid, context: Context) -> None:
            with self._running:
                if not self._stop.is_set():
                    self._server(_StoppableGrid(grid, self._stop), context)

        return app

    @contextlib.contextmanager
    def stopped_afterwards(self) -> Iterator[None]:
        """When the block ends, however it ends, the coordinator has stopped writing."""
        try:
            yield
        finally:
            self._stop.set()
            with self._running:
                pass


class _StoppableGrid:
    """A Flower grid whose every use is an error once ``stop`` is set."""

    def __init__(self, grid: Any, stop: threading.Event) -> None:
        self._grid, self._stop = grid, stop

    def __getattr__(self, name: str) -> Any:
        if self._stop.is_set():
            raise RunFailed("the simulation was stopped")
        return getattr(self._grid, name)


def _backend(sites: int) -> Any:
    return {
        "init_args": {
            "num_cpus": max(1, min(sites, cores())),
            "num_gpus": 0,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
            "logging_level": logging.ERROR,
            "log_to_driver": logging.getLogger("modaltune").isEnabledFor(logging.DEBUG),
        },
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }


@contextlib.contextmanager
def _clean_engine() -> Iterator[None]:
    """Quiet logs inside; whatever happens, Ray's processes end and the environment is as before."""
    import ray

    flower, python_path = logging.getLogger("flwr"), os.environ.get("PYTHONPATH")
    level, others = flower.level, set(_descendants())
    flower.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        started = [process for process in _descendants() if process not in others]
        ray.shutdown()
        _end(started)
        flower.setLevel(level)
        if python_path is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = python_path


def _descendants() -> list[Any]:
    import psutil

    found: list[Any] = psutil.Process().children(recursive=True)
    return found


def _end(processes: list[Any]) -> None:
    """End what outlived Ray's shutdown: an interrupted start leaves helpers that Ray does not know of yet."""
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(processes, timeout=3)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
