"""Reading bags: random rows against fancy indexing, all rows against the raw file, and memory of many cases.

Times include opening the file; files are in the system's cache, so that what is compared is the reader, not the disk.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from modaltune.benchmarks.memory import forget_peak, in_own_process, peak_megabytes
from modaltune.data.bag_files import open_bag
from modaltune.data.batch import collate
from modaltune.data.features import slabs
from modaltune.data.loading import loaded_ahead
from modaltune.data.preprocessing import Preprocessing, TaskSpace, prepare
from modaltune.data.site import load_site
from modaltune.federation.inputs import SlideSpec, TextSpec
from modaltune.federation.study import Study
from modaltune.federation.task import Label, TaskSpec
from modaltune.seeds import numpy_generator

WIDTH = 1536
EDGE = 256
REPEATS = 3


def bench_bags(
    patches: int = 50_000, rows: int = 2_000, cases: int = 500, case_patches: int = 6_000
) -> dict[str, dict[str, float]]:
    """Rows of a half-precision bag, and a site of ``cases`` cases through the loader.

    Args:
        patches: of the bag.
        rows: drawn from it.
        cases: of the site; they share four feature files.
        case_patches: of each case.
    """
    with TemporaryDirectory(prefix="modaltune-bench-") as folder:
        contiguous, chunked = Path(folder) / "contiguous.h5", Path(folder) / "chunked.h5"
        _write(contiguous, patches)
        _write(chunked, patches, chunks=True)
        found = {
            "random rows": _random(contiguous, chunked, patches, rows),
            "all rows": _sequential(contiguous, patches),
        }
        contiguous.unlink()
        chunked.unlink()
        return found | {f"{cases} cases": _memory(Path(folder) / "site", cases, case_patches)}


def _write(path: Path, patches: int, *, chunks: bool = False, seed: int = 0) -> None:
    """A bag in TRIDENT's layout, contiguous or with a chunk a row as TRIDENT itself writes it."""
    generator = numpy_generator(seed, "bench-bags")
    place = np.arange(patches)
    coords = np.stack([place // 250, place % 250], axis=1) * EDGE
    with h5py.File(path, "w") as file:
        features = file.create_dataset("features", (patches, WIDTH), "f2", chunks=(1, WIDTH) if chunks else None)
        for start in range(0, patches, 2048):
            count = min(2048, patches - start)
            features[start : start + count] = generator.standard_normal((count, WIDTH), dtype=np.float32)
        features.attrs["encoder"] = "bench"
        file.create_dataset("coords", data=coords, chunks=(1, 2) if chunks else None)
        file["coords"].attrs["patch_size_level0"] = EDGE


def _random(contiguous: Path, chunked: Path, patches: int, rows: int) -> dict[str, float]:
    wanted = np.sort(numpy_generator(0, "bench-rows").choice(patches, rows, replace=False))

    def ours(path: Path) -> Callable[[], NDArray[Any]]:
        return lambda: open_bag(path)[0].features[wanted]

    def fancy(path: Path) -> Callable[[], NDArray[Any]]:
        def work() -> NDArray[Any]:
            with h5py.File(path, "r") as file:
                return np.asarray(file["features"][wanted], dtype=np.float32)

        return work

    if not np.array_equal(ours(contiguous)(), fancy(chunked)()):
        raise AssertionError("the readers disagree")
    ours_s, fancy_s = _best(ours(contiguous)), _best(fancy(chunked))
    ours_chunked_s, fancy_contiguous_s = _best(ours(chunked)), _best(fancy(contiguous))
    return {
        "ratio": fancy_s / ours_s,
        "ratio_same_contiguous_file": fancy_contiguous_s / ours_s,
        "ratio_same_chunked_file": fancy_s / ours_chunked_s,
        "ours_rows_per_s": rows / ours_s,
        "chunked_fancy_rows_per_s": rows / fancy_s,
    }


def _sequential(path: Path, patches: int) -> dict[str, float]:
    """All rows as float32 through the reader, and the bytes of the file as they are."""
    buffer = bytearray(2**24)

    def raw() -> None:
        with path.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass

    def ours() -> None:
        for _ in slabs(open_bag(path)[0].features):
            pass

    raw_s, ours_s = _best(raw), _best(ours)
    return {"share_of_raw": raw_s / ours_s, "ours_rows_per_s": patches / ours_s, "raw_rows_per_s": patches / raw_s}


def _best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def _memory(folder: Path, cases: int, patches: int) -> dict[str, float]:
    """Peak memory of a process of its own that takes a site's cases through the loader."""
    _write_site(folder, cases, patches)
    return in_own_process("modaltune.benchmarks.bags", folder)


def _write_site(folder: Path, cases: int, patches: int) -> None:
    (folder / "features").mkdir(parents=True)
    originals = [folder / f"original{number}.h5" for number in range(4)]
    for number, path in enumerate(originals):
        _write(path, patches, seed=number)
    ids = [f"case{number:06d}" for number in range(cases)]
    for number, name in enumerate(ids):
        os.link(originals[number % len(originals)], folder / "features" / f"{name}.h5")
    diagnosis = ["a" if number % 2 else "b" for number in range(cases)]
    pd.DataFrame({"case_id": ids, "split": "train", "diagnosis": diagnosis}).to_csv(folder / "cases.csv", index=False)
    slides = pd.DataFrame({"slide_id": ids, "case_id": ids, "file": [f"{name}.h5" for name in ids]})
    slides.to_csv(folder / "slides.csv", index=False)
    (folder / "site.toml").write_text(
        'name = "H1"\ntasks = ["diagnosis"]\n'
        '[paths]\ncases = "cases.csv"\nslides = "slides.csv"\nfeatures = "features"\n'
    )


def measure(folder: Path) -> dict[str, float]:
    """Peak memory above this process as it is now, in 10^6 bytes, and cases per second, of checking and loading."""
    labels = (Label(value="a", text="a"), Label(value="b", text="b"))
    task = TaskSpec(name="diagnosis", kind="nominal", template="{text}", labels=labels)
    slides, text = SlideSpec(in_width=WIDTH, sha256="0" * 64), TextSpec(sha256="0" * 64)
    study = Study(name="bench", tasks=(task,), roster=("H1",), slides=slides, text=text, clinical=())
    spaces = {"diagnosis": TaskSpace(candidates=("a", "b"), texts=("a", "b"))}
    forget_peak()
    before, started = peak_megabytes(), time.perf_counter()
    cohort = load_site(folder, split_salt="bench")
    checked = time.perf_counter()
    cases = prepare(cohort, study, Preprocessing(study=study.digest, tasks=spaces))
    total = sum(collate(group).patches.nbytes for group in loaded_ahead([case] for case in cases))
    return {
        "peak_mb": peak_megabytes() - before,
        "loaded_mb": total / 1e6,
        "check_s": checked - started,
        "load_s": time.perf_counter() - checked,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(Path(sys.argv[1]))))
