from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from client.memory import Memory, RoundMemory, TrainingReply


def a_memory(value: int, round_number: int | None = None) -> Memory:
    return Memory(
        optimiser={"weight|exp_avg": torch.full((2, 3), float(value)), "weight|step": torch.tensor(value)},
        rounding={"weight": np.full((2, 3), -value, dtype=np.float32), "scale": np.asarray(value, dtype=np.float32)},
        drift={
            "weight|alone": torch.full((2, 3), value / 3),
            "weight|rates": torch.tensor(value / 3, dtype=torch.float64),
        },
        round_number=value if round_number is None else round_number,
    )


def assert_same(found: Memory, expected: Memory) -> None:
    for part in ("optimiser", "rounding", "drift"):
        pair = [{k: v.tolist() for k, v in getattr(memory, part).items()} for memory in (found, expected)]
        assert pair[0] == pair[1], part
    assert found.round_number == expected.round_number


def test_a_round_starts_from_the_memory_of_the_round_before(tmp_path: Path) -> None:
    memory = RoundMemory(tmp_path / "digest")
    assert_same(memory.before(1), Memory())
    for number in (1, 2, 3):
        memory.keep(a_memory(number))
    assert_same(memory.before(4), a_memory(3))
    assert_same(memory.before(3), a_memory(2))


def test_two_rounds_stay_and_a_repeated_round_forgets_later_ones(tmp_path: Path) -> None:
    memory = RoundMemory(tmp_path)
    for number in (1, 2, 3):
        memory.keep(a_memory(number))
    assert len(list(tmp_path.iterdir())) == 2
    memory.keep(a_memory(20, 2))
    assert_same(memory.before(9), a_memory(20, 2))


def test_nothing_to_remember_writes_nothing(tmp_path: Path) -> None:
    RoundMemory(tmp_path / "digest").keep(Memory(round_number=1))
    assert not (tmp_path / "digest").exists()


def test_a_study_keeps_the_preprocessing_it_began_with(tmp_path: Path) -> None:
    memory = RoundMemory(tmp_path)
    assert memory.agree(3, "first"), "a site that joins late takes what it sees"
    assert memory.agree(4, "first")
    assert not memory.agree(5, "other")
    assert memory.agree(1, "other"), "a study that starts again may have another"
    assert not RoundMemory(tmp_path).agree(2, "first")


def a_reply(value: float) -> TrainingReply:
    arrays = {"weight": np.full((2, 3), value, np.float16), "scale": np.asarray(value, np.float16)}
    return TrainingReply(arrays=arrays, examples={"weight": 3, "scale": 0}, metrics={"loss": value, "steps": 2.0})


def test_the_last_reply_is_found_again_by_its_question_only(tmp_path: Path) -> None:
    memory = RoundMemory(tmp_path)
    assert memory.journalled("first") is None
    memory.journal("first", a_reply(0.1))
    memory.journal("second", a_reply(0.2))
    assert RoundMemory(tmp_path).journalled("first") is None
    found = RoundMemory(tmp_path).journalled("second")
    assert found is not None
    assert (found.examples, found.metrics) == (a_reply(0.2).examples, a_reply(0.2).metrics)
    for name, value in a_reply(0.2).arrays.items():
        assert found.arrays[name].dtype == value.dtype
        assert found.arrays[name].shape == value.shape
        assert np.array_equal(found.arrays[name], value)


def test_a_journal_does_not_disturb_the_memory_of_rounds(tmp_path: Path) -> None:
    memory = RoundMemory(tmp_path)
    memory.keep(a_memory(1))
    memory.journal("question", a_reply(0.1))
    assert_same(memory.before(2), a_memory(1))


@pytest.mark.parametrize("size", [0, 7, 100])
def test_a_damaged_journal_counts_as_none(tmp_path: Path, size: int) -> None:
    memory = RoundMemory(tmp_path)
    memory.journal("question", a_reply(0.1))
    (file,) = (tmp_path / "journal").iterdir()
    file.write_bytes(file.read_bytes()[:size])
    assert memory.journalled("question") is None
