"""Checks of an installation: versions, devices, encoders, disk."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import get_args

from packaging.requirements import Requirement

from modaltune.doctor.finding import Finding, Found, error, ok, warning
from modaltune.federation.inputs import SlideSpec
from modaltune.storage import cache_folder
from modaltune.tasks.vocabulary import configs_folder

DISTRIBUTION = "modaltune-federated"
ROOMY, TIGHT = 10 * 10**9, 10**9
"""Free bytes below which a warning and an error are due."""
ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
INSTALL = "pip install -e . -c constraints.txt"


class Machine:
    """What the checks of an installation look at: this machine."""

    def __init__(self, constraints: Path | None = None) -> None:
        self.constraints = constraints or configs_folder().parent / "constraints.txt"


def python(_: Machine) -> Iterator[Finding]:
    """The interpreter."""
    found = platform.python_version()
    if tuple(map(int, platform.python_version_tuple()[:2])) < (3, 11):
        yield error(f"Python {found}; 3.11 or newer is needed", "make a new environment: make demo PYTHON=python3.12")
    else:
        yield ok(f"Python {found} on {platform.system()} {platform.machine()}")


def packages(machine: Machine) -> Iterator[Finding]:
    """Installed versions: within the ranges of this project, and those that its tests ran with."""
    try:
        needed = [Requirement(line) for line in requires(DISTRIBUTION) or ()]
    except PackageNotFoundError:
        yield warning(f"{DISTRIBUTION} is not installed here, only on the path", INSTALL)
        return
    needed = [entry for entry in needed if entry.marker is None or entry.marker.evaluate({"extra": ""})]
    absent = [entry.name for entry in needed if _version(entry.name) is None]
    if absent:
        yield error(f"not installed: {', '.join(absent)}", INSTALL)
    wrong = [
        f"{entry.name} {found} (needs {entry.specifier})"
        for entry in needed
        if (found := _version(entry.name)) is not None and not entry.specifier.contains(found, prereleases=True)
    ]
    if wrong:
        yield error(f"outside the range: {', '.join(wrong)}", INSTALL)
    other = _unlike_tested(machine.constraints, {entry.name.lower() for entry in needed})
    if other:
        yield warning(f"other than the tests ran with: {', '.join(other)}", INSTALL)
    if not absent and not wrong:
        yield ok(f"{len(needed)} packages within their ranges")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _unlike_tested(constraints: Path, names: set[str]) -> list[str]:
    if not constraints.is_file():
        return []
    lines = constraints.read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    found = {name: _version(name) for name in tested if name in names}
    return [
        f"{name} {here} (tested: {tested[name]})"
        for name, here in found.items()
        if here is not None and here.split("+")[0] != tested[name]
    ]


def device(_: object = None) -> Iterator[Finding]:
    """The GPU, if the machine has one, and the attention kernels."""
    if not any(Path(name).exists() for name in ACCELERATORS):
        yield ok("no GPU on this machine: training runs on the CPU")
        return
    import torch

    from modaltune.encoders.attention_kernels import available_kernels

    if not torch.cuda.is_available():
        yield warning(
            f"this machine has a GPU but torch {torch.__version__} does not see it",
            "install the torch build for its driver (pytorch.org), and check that nvidia-smi works",
        )
        return
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    kernels = ", ".join(available_kernels())
    yield ok(f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB; attention kernels: {kernels}")


def kernels(_: Machine) -> Iterator[Finding]:
    """The attention kernel that training would take gives what the plain one gives."""
    import torch

    from modaltune.encoders.attention_kernels import KERNELS, automatic
    from modaltune.training import training_device

    where = training_device()
    q, k, v = torch.randn(3, 1, 2, 32, 16, generator=torch.Generator().manual_seed(0)).to(where).unbind()
    chosen = automatic(where.type, q.dtype, masked=False)
    try:
        found = KERNELS[chosen].forward(q, k, v, None)[0]
    except (AttributeError, RuntimeError):  # private operators of torch that move with its releases
        yield error(f"attention kernel {chosen} does not run with torch {torch.__version__}", INSTALL)
        return
    if not torch.allclose(found, KERNELS["naive"].forward(q, k, v, None)[0], atol=1e-3):
        yield error(f"attention kernel {chosen} differs from the plain one", INSTALL)
    else:
        yield ok(f"torch {torch.__version__}, attention kernel {chosen} on {where.type}")


def text_encoder(_: Machine) -> Iterator[Finding]:
    """The text encoder that comes with the set-up."""
    from modaltune.encoders.text import text_encoder as built_in

    yield ok(f"minilm, sha256 {built_in().sha256[:12]}...")


def slide_encoders(_: Machine) -> Iterator[Finding]:
    """Which slide encoders have their weights here."""
    from modaltune.encoders.registry import weights_are_here
    from modaltune.encoders.slide import encoders_folder

    known = get_args(SlideSpec.model_fields["encoder"].annotation)
    here = [name for name in known if weights_are_here(name)]
    absent = [name for name in known if name not in here]
    note = f"; no weights of {', '.join(absent)} in {encoders_folder()}" if absent else ""
    yield ok(f"weights of {', '.join(here)}{note}")


def federation(_: Machine) -> Iterator[Finding]:
    """Flower and Ray; this package never imports them, so they are only looked for."""
    absent = [name for name in ("flwr", "ray") if importlib.util.find_spec(name) is None]
    if absent:
        yield error(f"not importable: {', '.join(absent)}", INSTALL)
    else:
        yield ok(f"Flower {version('flwr')}, Ray {version('ray')}")


def openslide(_: Machine) -> Iterator[Finding]:
    """The reader of whole-slide images, needed only where features are extracted."""
    try:
        import openslide as reader
    except (ImportError, OSError):  # OSError: the Python part without the library
        yield warning(
            "OpenSlide is not installed: whole-slide images cannot be read, feature files can",
            "pip install -e '.[slides]' -c constraints.txt",
        )
    else:
        yield ok(f"OpenSlide {reader.__library_version__}")


def folders(_: Machine) -> Iterator[Finding]:
    """Cache and temporary folder: free space and permission to write."""
    yield from room("cache", cache_folder())
    yield from room("temporary folder", Path(tempfile.gettempdir()))


def room(what: str, folder: Path) -> Iterator[Finding]:
    """Free space and permission to write in a folder that may not exist yet."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        yield error(f"{what}: no permission to write in {existing}", "change its owner or mode, or MODALTUNE_CACHE")
        return
    free = shutil.disk_usage(existing).free
    text = f"{what}: {free / 1e9:.0f} GB free in {existing}"
    if free < TIGHT:
        yield error(text, "free some space there")
    elif free < ROOMY:
        yield warning(text, f"free some space: {ROOMY / 1e9:.0f} GB is comfortable")
    else:
        yield ok(text)


CHECKS: Mapping[str, Callable[[Machine], Found]] = {
    "python": python,
    "packages": packages,
    "gpu": device,
    "kernels": kernels,
    "text encoder": text_encoder,
    "slide encoders": slide_encoders,
    "federation": federation,
    "openslide": openslide,
    "disk": folders,
}
