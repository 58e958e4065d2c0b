"""Flower ServerApp of the coordinator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from modaltune.errors import ConfigError
from modaltune.federation.study import Study
from server.rounds import Federation, Result


def make_app(
    study: Study,
    out: Path,
    progress: Callable[[Mapping[str, Any]], None] | None = None,
    finished: Callable[[Result], None] | None = None,
) -> ServerApp:
    """A ServerApp that runs one study and writes into ``out``."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        result = Federation(grid, study, out, progress).run()
        if finished is not None:
            finished(result)

    return app


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study that the run configuration names: ``study`` (a file) and ``out`` (a folder)."""
    study, out = context.run_config.get("study"), context.run_config.get("out")
    if not study or not out:
        raise ConfigError(
            "run configuration needs study=FILE and out=FOLDER: flwr run . --run-config 'study=... out=...'"
        )
    folder = Path(str(out))
    folder.mkdir(parents=True, exist_ok=True)
    Federation(grid, Study.load(Path(str(study))), folder).run()
