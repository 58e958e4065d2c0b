"""Combining the updates of a round: one at a time against all at once, and against the speed of memory."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np

from modaltune.federation.average import KeywiseMean, State, Update
from modaltune.federation.manifest import Manifest
from modaltune.federation.wire import Packed, decode_update, message_manifest, pack
from modaltune.seeds import numpy_generator

ARRAYS = 20
BYTES_TOUCHED = 2 + 4 + 8 + 8  # a fp16 change and fp32 weights read, a float64 sum read and written
REPEATS = 3


def bench_aggregate(parameters: int = 10_000_000, sites: tuple[int, ...] = (4, 16)) -> dict[str, dict[str, float]]:
    """Seconds and memory of combining fp16 updates of ``parameters`` numbers.

    ``seconds_a_site`` is everything that happens to a reply: both manifests, decoding, adding. ``floor_s`` is the time
    in which memory moves the bytes that adding it must touch.
    """
    draw = numpy_generator(0, "bench-aggregate")
    size = parameters // ARRAYS
    state: State = {f"array{n:02d}": draw.standard_normal(size, dtype=np.float32) for n in range(ARRAYS)}
    change = pack("fp16", {name: value * np.float32(0.01) for name, value in state.items()})
    manifest = Manifest(shapes={name: value.shape for name, value in state.items()})
    bandwidth = _bandwidth(parameters)
    floor = BYTES_TOUCHED * parameters / bandwidth
    out: dict[str, dict[str, float]] = {"memory": {"GB_per_s": bandwidth / 1e9}}
    for count in sites:
        ours_s, ours_mb = _measured(partial(_one_at_a_time, state, change, manifest, count))
        naive_s, naive_mb = _measured(partial(_all_at_once, state, change, count))
        out[f"{count} sites"] = {
            "memory_ratio": ours_mb / naive_mb,
            "speedup": naive_s / ours_s,
            "times_floor": ours_s / count / floor,
            "seconds_a_site": ours_s / count,
            "floor_s": floor,
            "peak_mb": ours_mb,
        }
    return out


def _one_at_a_time(state: State, change: Packed, manifest: Manifest, sites: int) -> State:
    mean, travelling = KeywiseMean(state), message_manifest("fp16", manifest)
    for _ in range(sites):
        travelling.check("a site", change)
        weights = decode_update("fp16", change, state)
        manifest.check("a site", weights)
        mean.add(Update(arrays=weights, examples=dict.fromkeys(weights, 7)))
    return mean.result()


def _all_at_once(state: State, change: Packed, sites: int) -> State:
    """Decode all, stack, average: nothing checked."""
    updates = [decode_update("fp16", change, state) for _ in range(sites)]
    return {
        name: np.asarray(np.mean([update[name] for update in updates], axis=0, dtype=np.float64), dtype=np.float32)
        for name in state
    }


def _measured(work: Callable[[], State]) -> tuple[float, float]:
    """Best of some runs in seconds, and the most memory that one more run takes, in 10^6 bytes."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return min(times), peak / 1e6


def _bandwidth(numbers: int) -> float:
    """Bytes per second that memory moves when float64 numbers are copied: read and written."""
    source = np.ones(numbers)
    target = np.empty_like(source)
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - started)
    return 16 * numbers / min(times)
