"""ModalTune Federated: one multimodal pathology model trained across hospitals (research use only)."""

from __future__ import annotations

__version__ = "0.1.0"
