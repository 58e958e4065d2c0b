"""Files that are either complete or absent, canonical JSON and content hashes."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modaltune.errors import FederationError, ModelFileError

if TYPE_CHECKING:  # torch takes seconds to import, and most of what imports this module writes text
    from torch import Tensor


def cache_folder() -> Path:
    """Where files that can be made again are kept: ``$MODALTUNE_CACHE`` or the user's cache folder."""
    root = (
        os.environ.get("MODALTUNE_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "modaltune"
    )
    return Path(root)


def cached(name: Path) -> Path:
    """Where a cached file is: in ``$MODALTUNE_READ_CACHE``, which others filled, or in the folder of one's own."""
    others = Path(os.environ.get("MODALTUNE_READ_CACHE") or cache_folder())
    return others / name if os.access(others / name, os.R_OK) else cache_folder() / name


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest_text(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_folder(folder: Path) -> str:
    """SHA-256 over names and contents of all files below a folder; hidden files and compiled Python do not count."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    total = hashlib.sha256()
    for name in names:
        if not any(part.startswith(".") or part == "__pycache__" for part in name.split("/")):
            total.update(f"{name}|{digest_file(folder / name)}\n".encode())
    return total.hexdigest()


def digest_state(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of a state, independent of its order."""
    import torch

    total = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        total.update(f"{name}|{tuple(value.shape)}|{value.dtype}|".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def write_bytes(path: Path, data: bytes, *, mode: int | None = None) -> None:
    """Write a file atomically: readers see the old content or the new one, never a part.

    Args:
        mode: rights of the file; without them one that is there keeps its own, and a new one gets those that the umask
            leaves.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with partial.open("xb") as stream:
            if mode is not None:
                os.fchmod(stream.fileno(), mode)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if mode is None and path.is_file():
            partial.chmod(stat.S_IMODE(path.stat().st_mode))
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _settle(path.parent)


def _settle(folder: Path) -> None:
    """Bring the names in a folder to the disk, where its file system knows how: a power cut then takes none away."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str, *, mode: int | None = None) -> None:
    """Write a text file atomically; ``mode`` as of :func:`write_bytes`."""
    write_bytes(path, text.encode(), mode=mode)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; not-a-number is refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def append_json_line(path: Path, value: Any) -> None:
    """Append one JSON object to a log with one object a line."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(value, allow_nan=False) + "\n")
        stream.flush()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of such a log; an absent one has none.

    Text after the last line end does not count: it is being written, or whoever wrote it was killed.

    Raises:
        FederationError: a whole line is not JSON.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise FederationError(f"{path.name}: line {number} is not valid JSON. Restore the file.") from error
    return rows


def save_state(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, atomically."""
    from safetensors.torch import save

    write_bytes(path, save({name: value.detach().cpu().contiguous() for name, value in state.items()}))


def load_state(path: Path) -> dict[str, Tensor]:
    """Read tensors from safetensors; a missing or truncated file is one clear error."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelFileError(f"{path}: no such weights file; expected a safetensors file written by a finished run")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path}: not a complete safetensors file ({error}); copy or export it again") from error
