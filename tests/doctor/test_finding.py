from __future__ import annotations

import pytest

from modaltune.doctor.finding import DOCS, from_error
from modaltune.errors import DataError


@pytest.mark.parametrize(
    ("text", "finding", "fix"),
    [
        ("event is 2; write 1 or 0", "event is 2", "write 1 or 0"),
        ("a; b; write 1", "a; b", "write 1"),
        (
            "event is 2; expected 1 or 0 (event: 1 = death; censorship: 1 = none)",
            "event is 2",
            "expected 1 or 0 (event: 1 = death; censorship: 1 = none)",
        ),
        (
            "expected 1 or 0 (event: 1 = death; censorship: 1 = none), or Alive",
            "expected 1 or 0 (event: 1 = death; censorship: 1 = none), or Alive",
            DOCS,
        ),
        ("Not a table. Write one", "Not a table", "Write one"),
        ("nothing to split", "nothing to split", DOCS),
    ],
)
def test_the_fix_is_behind_the_last_mark_outside_parentheses(text: str, finding: str, fix: str) -> None:
    found = from_error(DataError(text))
    assert (found.finding, found.fix) == (finding, fix)
