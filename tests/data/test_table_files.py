from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pytest

from modaltune.data.tables import read_table
from modaltune.errors import DataError

TABLE = pd.DataFrame({"id": ["001", "02"], "age": [50.0, None], "note": ['says "x, y"', "z"]})


def read(path: Path) -> pd.DataFrame:
    return read_table(path, where="t", error=DataError, text=["id", "note"])


def write(path: Path) -> None:
    separator = "," if ".csv" in path.name.lower() else "\t"
    if path.suffix == ".parquet":
        TABLE.to_parquet(path)
    elif path.suffix == ".xlsx":
        TABLE.to_excel(path, index=False)
    else:
        TABLE.to_csv(path, sep=separator, index=False)


@pytest.mark.parametrize(
    "name", ["t.parquet", "t.csv", "t.tsv", "t.txt", "t.csv.gz", "t.tsv.gz", "t.txt.gz", "t.xlsx", "T.CSV"]
)
def test_every_format_gives_the_same_table(name: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    pd.testing.assert_frame_equal(read(tmp_path / name), TABLE, check_dtype=False)


def test_a_byte_order_mark_and_comment_lines_are_passed_over(tmp_path: Path) -> None:
    text = "#about\tthis\n# and that\nid\tage\n001\t5#0\n"
    (tmp_path / "t.tsv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read(tmp_path / "t.tsv").to_dict("list") == {"id": ["001"], "age": ["5#0"]}


@pytest.mark.parametrize("start", [0, 1])
def test_an_unnamed_first_column_that_counts_the_rows_is_passed_over(start: int, tmp_path: Path) -> None:
    TABLE.set_axis(range(start, start + 2)).to_csv(tmp_path / "t.csv")
    assert list(read(tmp_path / "t.csv").columns) == list(TABLE.columns)


def test_a_file_that_was_cut_off_is_found_unless_quotes_hide_it(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,age,note\n1,2,3\n4,5")
    with pytest.raises(DataError, match="the last row has 2 of 3 fields; the file is cut off"):
        read(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text('id,age,note\n1,2,"two\nlines"\n')
    assert read(tmp_path / "t.csv")["note"].tolist() == ["two\nlines"]


@pytest.mark.parametrize("header", ["id\tage\tnote", '"id\tage\tnote'])
def test_rows_that_a_single_quotation_mark_swallows_are_missed(header: str, tmp_path: Path) -> None:
    notes = ["none", '"left lobe', "none", '"right lobe', "none"]
    rows = [f"p{row}\t{50 + row}\t{note}" for row, note in enumerate(notes)]
    (tmp_path / "t.tsv").write_text("\n".join([header, *rows]) + "\n")
    with pytest.raises(DataError, match="t: ") as caught:
        read(tmp_path / "t.tsv")
    assert "lobe" not in str(caught.value)


def test_a_header_without_its_closing_quotation_mark_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('"id,age,note\n' + "p1,50,none\n" * 20_000)
    with pytest.raises(DataError, match="not a readable csv table"):
        read(tmp_path / "t.csv")


def test_a_cut_gzip_file_is_found(tmp_path: Path) -> None:
    raw = gzip.compress(b"id,age,note\n" + b"1,2,3\n" * 500)
    (tmp_path / "t.csv.gz").write_bytes(raw[:-12])
    with pytest.raises(DataError, match="not a readable csv table"):
        read(tmp_path / "t.csv.gz")
