"""What a site executes: the files of this installation that make up the Flower bundle.

Coordinator and hospital both build the bundle from what they have installed, so that the hash that a hospital approves
is one that it computed itself. A checkout and a wheel of one version give the same files, and so the same hash.
"""

from __future__ import annotations

from pathlib import Path

from modaltune.errors import ConfigError
from modaltune.tasks.vocabulary import configs_folder

PACKAGES = ("client", "modaltune", "server", "simulation")
DESCRIPTION = "pyproject.toml"
_PACKAGE = Path(__file__).resolve().parent


def bundle_files() -> dict[str, Path]:
    """Path in the bundle -> file of this installation, sorted: sources, shipped configuration, pyproject.toml.

    Raises:
        ConfigError: this installation is not complete.
    """
    files = {DESCRIPTION: _description()}
    for package in PACKAGES:
        files |= _below(_PACKAGE.parent / package, package, ".py")
    files |= _below(configs_folder(), "configs", ".toml", ".json")
    return dict(sorted(files.items()))


def _below(folder: Path, name: str, *suffixes: str) -> dict[str, Path]:
    found = {
        f"{name}/{path.relative_to(folder).as_posix()}": path
        for path in folder.rglob("*")
        if path.suffix in suffixes and "__pycache__" not in path.parts
    }
    if not found:
        raise ConfigError(f"{folder}: not installed; install the whole distribution modaltune-federated")
    return found


def _description() -> Path:
    """Inside the installed package, or beside it in a checkout."""
    places = (_PACKAGE / DESCRIPTION, _PACKAGE.parent / DESCRIPTION)
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise ConfigError(f"{places[0]}: not installed; install the whole distribution modaltune-federated")
    return found
