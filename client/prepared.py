"""A site's cases as a model reads them, prepared once for all messages, on as many patches as the GPU has room for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from client.memory import RoundMemory
from modaltune.data.batch import CaseTensors
from modaltune.data.cohort import Cohort
from modaltune.data.fewer_patches import fewer, with_fewer_patches
from modaltune.data.preprocessing import Preprocessing, prepare
from modaltune.errors import DeviceError
from modaltune.federation.study import Study
from modaltune.models.learner import Learner
from modaltune.models.prefix import with_cached_prefix


class PreparedCases:
    """The cases of a cohort in a study.

    Args:
        cache: folder for the output of frozen layers.
    """

    def __init__(self, cohort: Cohort, study: Study, memory: RoundMemory, cache: Path) -> None:
        self.cohort, self.study, self.memory, self.cache = cohort, study, memory, cache
        self._known: tuple[str, int | None] | None = None
        self._cases: list[CaseTensors] = []
        self._largest = 0

    def of(self, learner: Learner, preprocessing: Preprocessing) -> list[CaseTensors]:
        """All cases, in the order of the cohort."""
        wanted, spec = (preprocessing.digest, self.memory.most_patches), self.study.slides
        if self._known != wanted:
            self._known, self._cases = None, []
            cases = self._limited(prepare(self.cohort, self.study, preprocessing))
            self._largest = max((case.patch_count for case in cases), default=0)
            self._cases = with_cached_prefix(
                learner.modaltune, spec.sha256, cases, self.cache, embedding=spec.cache_embedding
            )
            self._known = wanted
        return self._cases

    def with_fewer_patches(self) -> int:
        """Halve the patches of the largest case, for this study and until it begins anew; how many are left.

        Raises:
            DeviceError: they would be too few, or there were none on the GPU when its memory ran out.
        """
        if not self._largest:
            raise DeviceError(
                "the GPU runs out of memory before it holds a patch: the model itself does not fit on it; use a larger"
                " one, or [compute] device = 'cpu' in site.toml"
            )
        limit = fewer(self._largest)
        self.memory.limit_patches(limit)
        return limit

    def _limited(self, cases: Sequence[CaseTensors]) -> list[CaseTensors]:
        limit, seed = self.memory.most_patches, self.study.seed
        return list(cases) if limit is None else [with_fewer_patches(case, limit, seed) for case in cases]
