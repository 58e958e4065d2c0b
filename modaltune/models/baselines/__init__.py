"""The models of the published tables beside ModalTune, each a trunk with one head per task (docs/baselines.md)."""
