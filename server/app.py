"""Flower ServerApp of the coordinator."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from modaltune.errors import ConfigError
from modaltune.federation.study import Study
from server.alone import alone
from server.coordinator.home import Home
from server.coordinator.journal import RunJournal
from server.finish import finish
from server.label_query import ask_sites
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
        Federation(grid, study, out, progress).run(finished)

    return app


SETTINGS = ("study", "out", "nodes", "home", "query")
"""Run configuration; Flower refuses a key that pyproject.toml does not declare."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study that the run configuration names, or go on with it.

    Run configuration: ``study`` (a file), ``out`` (the run folder), and from a coordinator ``nodes`` (a JSON file, site
    -> node, as admitted) and ``home`` (its home folder, for the audit log). With ``query`` (a folder with a label
    query) the run is finished already, and its sites are asked that.
    """
    named = {name: Path(str(value)) for name in SETTINGS if (value := context.run_config.get(name))}
    if not {"study", "out"} <= set(named):
        raise ConfigError("run configuration needs study=FILE and out=FOLDER; modaltune-server run STUDY sets both")
    study, out = Study.load(named["study"]), named["out"]
    out.mkdir(parents=True, exist_ok=True)
    nodes = admitted_nodes(named["nodes"]) if "nodes" in named else None
    journal = RunJournal(Home(named["home"]), out.name) if "home" in named else None
    if "query" in named:
        ask_sites(grid, study, out / "model", named["query"], journal.round if journal else None, nodes)
        return
    federation = Federation(grid, study, out, journal.round if journal else None, nodes)
    with ExitStack() as stack:
        stack.enter_context(alone(out))
        facts = stack.enter_context(journal.until_the_end()) if journal else {}
        result = federation.run(lambda result: finish(result, study, out))
        facts |= {"status": result.status, "weights": result.weights_hash}


def admitted_nodes(path: Path) -> dict[str, int]:
    """Which Flower node belongs to which site, from a JSON file."""
    try:
        nodes = json.loads(path.read_text(encoding="utf-8"))
        return {str(site): int(node) for site, node in nodes.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        raise ConfigError(f"{path}: expected a JSON object, site -> node; modaltune-server run writes it") from None
