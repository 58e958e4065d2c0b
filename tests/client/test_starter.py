"""The process of which client apps are forks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.client.stack import until
from tests.conftest import REPOSITORY

SCRIPT = """
import json, os, sys
from pathlib import Path
from flwr.supernode.runtime import run_clientapp as flower

def write_down(token, folder):
    seen = {"pid": os.getpid(), "modules": sorted(sys.modules)}
    Path(folder, f".{token}").write_text(json.dumps(seen))
    Path(folder, f".{token}").rename(Path(folder, token))

flower.run_clientapp = write_down
from client.starter import Nursery
nursery = Nursery()
for token in ("first", "second"):
    nursery.order(token=token, folder=sys.argv[1])
nursery.orders.close()
os.wait()
"""


def test_apps_begin_with_libraries_and_without_our_packages(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT, tmp_path], check=True, cwd=REPOSITORY, timeout=120)
    files = [tmp_path / "first", tmp_path / "second"]
    until(lambda: all(path.exists() for path in files), "the apps did not run")
    first, second = (json.loads(path.read_text()) for path in files)
    assert first["pid"] != second["pid"]
    for seen in (first, second):
        tops = {name.split(".")[0] for name in seen["modules"]}
        assert {"torch", "pandas", "flwr", "h5py"} < tops
        assert not tops & {"client", "modaltune", "server"}
