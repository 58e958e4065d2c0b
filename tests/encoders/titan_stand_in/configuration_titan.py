"""Configuration of a small model with the interface of TITAN's snapshot; see modeling_titan.py."""

from transformers import PretrainedConfig


class TitanConfig(PretrainedConfig):
    """Sizes of the stand-in."""

    model_type = "titan_stand_in"

    def __init__(self, in_width=6, width=16, depth=6, heads=2, positions="alibi", vocabulary=32, text_width=8, **rest):
        super().__init__(**rest)
        self.in_width, self.width, self.depth, self.heads = in_width, width, depth, heads
        self.positions, self.vocabulary, self.text_width = positions, vocabulary, text_width
