"""What needs no services: the list of cases and the tables made of results."""

from __future__ import annotations

from typing import Any

from tests.chaos.__main__ import all_cases, markdown


def row(name: str, kind: str, passed: bool | None, **more: Any) -> dict[str, Any]:
    told = {"expected": "a line", "observed": "a | line", "seconds": 9.0}
    return {"name": name, "kind": kind, "passed": passed} | told | more


def test_every_case_has_a_name_of_its_own_and_an_expectation_of_one_line() -> None:
    cases = all_cases()
    assert len({case.name for case in cases}) == len(cases)
    assert {case.kind for case in cases} == {"fault", "attack"}
    assert all(case.expected and "\n" not in case.expected for case in cases)


def test_cases_that_could_not_run_are_shown_and_not_counted() -> None:
    text = markdown(
        [
            row("kill", "fault", True, recover_seconds=12.4),
            row("disk", "fault", None, recover_seconds=None),
            row("loris", "attack", False),
        ]
    )
    assert "Faults survived: 1 of 1 tried." in text
    assert "Attacks refused: 0 of 1 tried." in text
    assert "| kill | a line | a \\| line | yes | 12 |" in text
    assert "| disk | a line | a \\| line | not run |  |" in text
    assert "Not run yet: kill-serverapp-training" in text
    assert "| loris | a line | a \\| line | NO | 9 |" in text
