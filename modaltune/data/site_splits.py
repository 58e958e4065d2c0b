"""The splits of a site's cases on their own: read in no time, without labels, expression and features."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from modaltune.data.site import SITE_FILE, load_cases, read_site_config, split_cases


def case_splits(folder: Path, *, split_salt: str) -> pd.Series:
    """Which split each case of a site is in, by the rule of :func:`modaltune.data.site.load_site`.

    Args:
        folder: folder with ``site.toml``.
        split_salt: salt of the hash split, used when the site has no splits of its own.
    Returns:
        ``train``, ``val`` or ``test``, index ``case_id``; also of cases that ``load_site`` leaves out.
    Raises:
        DataError: one line that says what is wrong where, and how to correct it.
    """
    config = read_site_config(folder).model_copy(update={"tasks": ()})
    return split_cases(folder, config, load_cases(folder, config, {}), split_salt)["split"]


def split_files(folder: Path) -> list[Path]:
    """The files that decide which split a case is in."""
    config = read_site_config(folder)
    names = [SITE_FILE, config.paths.cases]
    if config.splits is not None:
        names += [config.splits.file, *([] if config.paths.slides is None else [config.paths.slides])]
    return [folder / name for name in names]
