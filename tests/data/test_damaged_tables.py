"""Tables damaged at random: a site folder is read, or refused in one line; nothing else ever happens."""

from __future__ import annotations

import gzip
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modaltune.data.site import load_site
from modaltune.errors import ModalTuneError
from tests.data import tool_files as tools
from tests.data.tool_sites import SITES, make_site

FIELDS = [b"", b"x", b"-1", b"inf", b"1e400", b"NA", b"'--", b'"', b"True", b"2026-01-01", b"0", b"\xff"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sound")
    return {kind: make_site(kind, folder / kind) for kind in SITES}


def damaged(raw: bytes, data: st.DataObject) -> bytes:
    """A cut, a byte, a line lost or twice, two fields changed."""
    lines = raw.split(b"\n")
    separator = b"\t" if b"\t" in raw else b","
    row = data.draw(st.integers(0, len(lines) - 1))
    how = data.draw(st.sampled_from(["cut", "byte", "lose", "twice", "field", "shuffle"]))
    if how == "cut":
        return raw[: data.draw(st.integers(0, len(raw)))]
    if how == "byte":
        place = data.draw(st.integers(0, len(raw) - 1))
        return raw[:place] + bytes([data.draw(st.integers(0, 255))]) + raw[place + 1 :]
    fields = lines[row].split(separator)
    if how == "field":
        fields[data.draw(st.integers(0, len(fields) - 1))] = data.draw(st.sampled_from(FIELDS))
    changed = {
        "lose": [],
        "twice": [lines[row], lines[row]],
        "field": [separator.join(fields)],
        "shuffle": [separator.join(data.draw(st.permutations(fields)))],
    }[how]
    return b"\n".join([*lines[:row], *changed, *lines[row + 1 :]])


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_table_is_read_or_refused_in_one_line_without_a_patient(
    sound: dict[str, Path], data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from(sorted(SITES)))
    with tempfile.TemporaryDirectory() as temporary:
        site = shutil.copytree(sound[kind], Path(temporary) / "H1")
        files = sorted(path for path in site.rglob("*") if path.is_file() and path.suffix != ".h5")
        path = data.draw(st.sampled_from(files))
        packed = path.suffix == ".gz" and data.draw(st.booleans())
        raw = damaged(gzip.decompress(path.read_bytes()) if packed else path.read_bytes(), data)
        path.write_bytes(gzip.compress(raw) if packed else raw)
        message = ""
        try:
            load_site(site, split_salt="s", labels=tools.LABELS)
        except ModalTuneError as error:
            message = str(error)
    assert "\n" not in message
    assert not any(case in message for case in tools.CASES)
