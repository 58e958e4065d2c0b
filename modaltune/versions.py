"""Releases that a run was made with."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version

from modaltune import __version__

_PACKAGES = ("flwr", "torch", "transformers", "lifelines", "scikit-learn", "numpy", "pandas")


def installed_versions() -> dict[str, str]:
    """This package, Python, platform and the packages that numbers depend on, name -> release."""
    packages = {name: version(name) for name in _PACKAGES}
    return {"modaltune": __version__, "python": platform.python_version(), "platform": sys.platform} | packages
