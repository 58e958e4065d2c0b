"""The command ``modaltune release-check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modaltune.console import console, emit_json
from modaltune.trust.keys import read_public
from modaltune.trust.release import verify_folder


def release_check(
    folder: Annotated[Path, typer.Argument(help="Signed model folder.")],
    public_key: Annotated[Path, typer.Option(help="Public key of the coordinator, received on another way.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Check that a model folder is complete, unchanged and signed by the owner of a public key."""
    release = verify_folder(folder, read_public(public_key))
    if json:
        emit_json(release.model_dump())
    else:
        console.print(f"{folder}: {len(release.files)} files, complete and signed", markup=False, soft_wrap=True)
        console.print(f"study {release.study}, signed {release.signed} by version {release.version}", soft_wrap=True)
        if release.override:
            said = f"released although its test scores speak against it: {release.override}"
            console.print(said, style="yellow", markup=False, soft_wrap=True)
