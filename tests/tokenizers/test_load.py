"""Visual tokenizers by their names."""

from __future__ import annotations

import torch

from lumos_pl.tokenizers.load import is_data, load_visual_tokenizer


def test_general_comes_along_with_as_many_codes_as_the_release() -> None:
    tokenizer = load_visual_tokenizer("general")
    assert (tokenizer.codebook_size, tokenizer.strides) == (64_000, (4, 8, 8)) and is_data("general")
    assert tokenizer is load_visual_tokenizer("general")
    plain = torch.full((1, 5, 32, 32, 3), 120, dtype=torch.uint8)
    plain[:, :, :, 16:] = torch.tensor([200, 60, 30], dtype=torch.uint8)
    back = tokenizer.decode(tokenizer.encode(plain)).float()
    assert (back - plain).square().mean().sqrt() < 30
