"""Patches of many cases in bounded memory: a small cohort is held, a large one is read case by case, ahead of use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from modaltune.data.batch import CaseTensors

MEMORY_LIMIT = 2**29
"""Bytes of patches that a site holds in memory; those of further cases are read each time they are needed."""


def held(cases: Iterable[CaseTensors], limit: int | None = None) -> list[CaseTensors]:
    """The cases, with their patches in memory while these fit.

    Args:
        limit: bytes, default :data:`MEMORY_LIMIT`.
    """
    out, left = [], MEMORY_LIMIT if limit is None else limit
    for case in cases:
        stored = case.stored
        if stored is not None and stored.fixed and stored.nbytes <= left:
            left -= stored.nbytes
            out.append(case.loaded())
        else:
            out.append(case)
    return out


def loaded_ahead(groups: Iterable[Sequence[CaseTensors]]) -> Iterator[list[CaseTensors]]:
    """Each group with its patches in memory; a thread reads the next group while the caller works on this one."""
    with ThreadPoolExecutor(1) as reader:
        ready: Future[list[CaseTensors]] | None = None
        for group in groups:
            coming = reader.submit(_loaded, group)
            if ready is not None:
                yield ready.result()
            ready = coming
        if ready is not None:
            yield ready.result()


def _loaded(cases: Sequence[CaseTensors]) -> list[CaseTensors]:
    return [case.loaded() for case in cases]
