"""Names of patch encoders: tools, hubs and folders write one model in several ways."""

from __future__ import annotations

HUB = "hf-hub:"
_ALIASES = {"prov_gigapath": "gigapath"}


def encoder_model(name: str) -> str:
    """What a patch encoder's name is compared by: the model, without its owner on the hub or the path to it."""
    parts = [part for part in name.removeprefix(HUB).split("/") if part.strip(".")]
    model = (parts or [name])[-1].casefold().replace("-", "_")
    return _ALIASES.get(model, model)
