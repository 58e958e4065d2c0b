from __future__ import annotations

from tests.prediction.conftest import released, run

__all__ = ["released", "run"]
