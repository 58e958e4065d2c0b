from __future__ import annotations

from server.state import Validated


def scored(number: int, **losses: tuple[float, float]) -> Validated:
    return Validated(number=number, weights={}, losses=losses)


def test_weights_are_compared_over_the_hospitals_that_validated_both() -> None:
    first = scored(1, H1=(50.0, 10), H2=(200.0, 40))
    assert scored(2, H2=(8.0, 40)).beats(first), "a hospital that is away does not keep the first round's weights"
    assert not scored(3, H2=(300.0, 40)).beats(first)
    assert not scored(4, H1=(1.0, 10), H2=(260.0, 40)).beats(first)
    assert not scored(5, H3=(0.0, 10)).beats(first), "nobody validated both"
    assert first.beats(None)
