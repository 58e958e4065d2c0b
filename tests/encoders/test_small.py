from __future__ import annotations

import torch

from modaltune.encoders.small import small_slide_encoder
from modaltune.storage import digest_state


def test_weights_are_the_same_whatever_was_drawn_before() -> None:
    torch.manual_seed(1)
    first = digest_state(small_slide_encoder(6).state_dict())
    torch.manual_seed(2)
    torch.rand(7)
    assert digest_state(small_slide_encoder(6).state_dict()) == first


def test_weights_depend_on_every_size() -> None:
    sizes = [(6, 64, 4), (7, 64, 4), (6, 32, 4), (6, 64, 2)]
    digests = {digest_state(small_slide_encoder(w, width=width, depth=d).state_dict()) for w, width, d in sizes}
    assert len(digests) == len(sizes)


def test_a_deeper_encoder_does_not_begin_like_a_shallow_one() -> None:
    shallow, deep = small_slide_encoder(6, depth=1), small_slide_encoder(6, depth=2)
    assert not torch.equal(shallow.patch_embed.proj.weight, deep.patch_embed.proj.weight)


def test_the_encoder_is_frozen_and_in_evaluation_mode() -> None:
    encoder = small_slide_encoder(6)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not any(module.training for module in encoder.modules())


def test_slides_that_differ_get_vectors_that_differ() -> None:
    encoder = small_slide_encoder(6)
    patches = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
    cells = torch.zeros(3, 5, 2, dtype=torch.long)
    vectors = encoder.norm(encoder(patches, cells))[:, 0]
    assert torch.pdist(vectors).min() > 0.1
