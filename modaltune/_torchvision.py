"""Lets a CPU-only torch import the torchvision wheel that was built against CUDA.

That wheel's operators cannot be loaded there, and ``import torchvision`` then fails with
``operator torchvision::nms does not exist``, and with it timm and transformers' text models. None of the operators
(detection boxes) is used in this project; declaring the two that torchvision asks for is enough.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType


class _TorchvisionFinder(MetaPathFinder):
    """Finds nothing itself: declares the operators at the moment torchvision is looked for."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        if fullname == "torchvision":
            _declare_missing_operators()
        return None


def install() -> None:
    """Mend the coming ``import torchvision``; call it before timm or transformers is imported.

    Does nothing on a CUDA or ROCm build of torch, where the operators load, or when torchvision is absent.
    """
    if not any(isinstance(finder, _TorchvisionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchvisionFinder())


@functools.cache  # keeps the library object: the declarations vanish with it
def _declare_missing_operators() -> object:
    import torch  # only now: `import modaltune` stays light

    spec = PathFinder.find_spec("torchvision")
    if spec is None or spec.origin is None or torch.version.cuda or torch.version.hip:
        return None
    if _extension_loads(Path(spec.origin).parent) or hasattr(torch.ops.torchvision, "nms"):
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def _extension_loads(package: Path) -> bool:
    import torch

    for extension in package.glob("_C*"):
        if extension.suffix in {".so", ".pyd"}:
            try:
                torch.ops.load_library(str(extension))
            except OSError:
                continue
            return True
    return False
