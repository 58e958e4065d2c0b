"""What a hospital refuses to do for a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.runtime import Site
from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import FederationError
from modaltune.federation.study import Study
from tests.integration.helpers import Finished

pytestmark = pytest.mark.integration


@pytest.fixture
def site(hospitals: dict[str, Path], study: Study) -> Site:
    return Site(hospitals["H1"], study)


def test_the_preprocessing_of_another_study(site: Site, federation: Finished) -> None:
    foreign = federation.result.preprocessing.model_copy(update={"study": "0" * 64})
    with pytest.raises(FederationError, match=r"the preprocessing of study 000000000000\.\.\., not of"):
        site.train(foreign, {}, 1)


def test_a_preprocessing_that_changes_in_the_middle_of_a_study(site: Site, federation: Finished) -> None:
    agreed = federation.result.preprocessing
    assert site.memory.agree(1, agreed.digest)
    changed: Preprocessing = agreed.model_copy(update={"expression": None})
    with pytest.raises(FederationError, match="round 2: the preprocessing is not the one that this study began with"):
        site.train(changed, {}, 2)
    with pytest.raises(FederationError, match="is not the one that this study began with"):
        site.evaluate(changed, {})
