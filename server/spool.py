"""Accepted updates of a round on disk, so that memory does not grow with the number of sites."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save

from modaltune.federation.average import Update


class Spool:
    """One file a site in a folder that is empty at first and gone at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.examples: dict[str, dict[str, int]] = {}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def put(self, site: str, update: Update) -> None:
        """Keep an update; one that could not be written is not counted.

        Raises:
            OSError: the disk is full, or broken.
        """
        self._path(site).write_bytes(save(update.arrays))  # save_file raises an error of its own for a full disk
        self.examples[site] = dict(update.examples)

    def take(self, site: str) -> Update:
        """Give an update back and forget it."""
        update = Update(arrays=load_file(self._path(site)), examples=self.examples.pop(site))
        self._path(site).unlink()
        return update

    def array(self, site: str, key: str) -> NDArray[np.float32]:
        """One parameter of a site."""
        with safe_open(self._path(site), framework="numpy") as file:
            return np.asarray(file.get_tensor(key))

    def contributors(self, key: str) -> list[str]:
        """Sites whose cases exercised a parameter, by name."""
        return [site for site in sorted(self.examples) if self.examples[site][key] > 0]

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, site: str) -> Path:
        return self.folder / f"{site}.safetensors"


class InOrder:
    """Hands updates on in the order of the sites' names, each as soon as all sites before it have answered."""

    def __init__(self, names: Iterable[str], spool: Spool, hand_on: Callable[[Update], None]) -> None:
        self._expected, self._spool, self._hand_on = deque(sorted(names)), spool, hand_on
        self._settled: set[str] = set()

    def put(self, site: str, update: Update) -> None:
        """An update has arrived."""
        if self._expected and self._expected[0] == site:
            self._expected.popleft()
            self._hand_on(update)
        else:
            self._spool.put(site, update)
            self._settled.add(site)
        self._advance(self._settled)

    def give_up(self, site: str) -> None:
        """Nothing will come from a site."""
        self._settled.add(site)
        self._advance(self._settled)

    def finish(self) -> None:
        """Hand on whatever still waits."""
        self._advance(set(self._expected))

    def _advance(self, settled: set[str]) -> None:
        while self._expected and self._expected[0] in settled:
            site = self._expected.popleft()
            if site in self._spool.examples:
                self._hand_on(self._spool.take(site))
