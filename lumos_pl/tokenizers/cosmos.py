"""NVIDIA's Cosmos DV4x8x8, the visual tokenizer of the released models (arXiv:2501.03575).

    encoder.jit    pictures in [-1, 1], [B, 3, 1 + 4k, H, W] -> (codes int32 [B, 1 + k, H / 8, W / 8], ..)
    decoder.jit    codes -> pictures [B, 3, 1 + 4k, H, W]

A code is a number whose six digits (FSQ levels 8, 8, 8, 5, 5, 5) quantize one channel each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from lumos_pl.errors import CheckpointError, ConfigError, LumosError
from lumos_pl.machinery.torchscript import open_program, read_program
from lumos_pl.tokenizers.visual import Strides, pad_frames, to_rgb, to_unit

FILES = ("encoder.jit", "decoder.jit")
PUBLISHED = "https://huggingface.co/nvidia/Cosmos-0.1-Tokenizer-DV4x8x8"
STRIDES: Strides = (4, 8, 8)
CODEBOOK_SIZE = 64_000

# Latent frames that a window shares with the one before. A window's first latent frame is decoded as a lone
# picture although it stands for four; with two in common, the pictures next to that one are dropped too.
CONTEXT = 2


class CosmosTokenizer:
    """Implements `VisualTokenizer`; see `load`.

    Clips longer than the window are cut into windows of 1 + 4k frames, so that memory is bounded:

        latent frames    0 1 2 3 4 5 6              window 25: seven at a time,
                                   5 6 7 8 9 10 11  of which the first two were there before

    A window's first picture is the last one of a latent frame, so groups of four are the same as in
    one call over the whole clip. Near the seams codes differ a little from that call's, because the
    networks look back further than one window.
    """

    strides = STRIDES
    codebook_size = CODEBOOK_SIZE

    def __init__(self, encoder: Any, decoder: Any, *, fingerprint: str, window: int, device: str) -> None:
        self._encoder, self._decoder = encoder, decoder
        self._latent_window = 1 + (window - 1) // STRIDES[0]
        self._device, self._dtype = device, torch.float32
        self.fingerprint = fingerprint

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu", window: int = 25) -> Self:
        """Open NVIDIA's two published files and try them on a small clip.

        They are programs and are executed, so use only NVIDIA's own files. They run in bf16 on a GPU; on a
        CPU in fp32, or in bf16 if that is built in.

        Args:
            folder: holds `encoder.jit` and `decoder.jit`.
            window: frames that are encoded or decoded at once, 1 + 4k; the codes of longer clips depend on
                it, so it is part of the fingerprint.
        Raises:
            ConfigError: a file is missing, or a setting is invalid.
            CheckpointError: a file is damaged, or does not behave like the tokenizer's.
        """
        stride = STRIDES[0]
        if window % stride != 1 or window < 1 + stride * CONTEXT:
            expected = f"1 + {stride}k, at least {1 + stride * CONTEXT}"
            raise ConfigError("wrong window of the visual tokenizer", where="window", got=window, expected=expected)
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise ConfigError("no GPU for the visual tokenizer", where="device", got=device, fix="use cpu")
        contents = [read_program(folder / name, what="the visual tokenizer", fix=FIX) for name in FILES]
        digests = [hashlib.sha256(content).hexdigest() for content in contents]
        digest = hashlib.sha256(" ".join([*digests, str(window)]).encode()).hexdigest()
        encoder, decoder = (
            open_program(folder / name, content, device=device, fix=FIX)
            for name, content in zip(FILES, contents, strict=True)
        )
        fingerprint = f"cosmos-dv4x8x8-{digest[:12]}"
        tokenizer = cls(encoder, decoder, fingerprint=fingerprint, window=window, device=device)
        tokenizer._try_out(folder)
        return tokenizer

    # -- the protocol --------------------------------------------------------------------------

    @torch.inference_mode()
    def encode(self, frames: Tensor) -> Tensor:
        """See `VisualTokenizer`; the codes are on the tokenizer's device."""
        stride = STRIDES[0]
        frames = pad_frames(frames, stride)
        parts = []
        for start, new, end in self._windows(1 + frames.shape[1] // stride):
            codes = self._encode_window(frames[:, stride * start : stride * (end - 1) + 1])
            parts.append(codes[:, new - start :].long())
        return torch.cat(parts, dim=1)

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """See `VisualTokenizer`; the frames are on the tokenizer's device."""
        parts = []
        for start, new, end in self._windows(codes.shape[1]):
            pictures = self._decode_window(codes[:, start:end])
            seen = max(0, 1 + STRIDES[0] * (new - start - 1))
            parts.append(to_rgb(pictures[:, :, seen:]))
        return torch.cat(parts, dim=1)

    def _windows(self, latent_frames: int) -> Iterator[tuple[int, int, int]]:
        """(start, new, end) per call: it covers latent frames start..end - 1, of which those from `new` on are new."""
        new = 0
        while new < latent_frames:
            start = max(0, new - CONTEXT)
            end = min(latent_frames, start + self._latent_window)
            yield start, new, end
            new = end

    def _encode_window(self, frames: Tensor) -> Tensor:
        codes: Tensor = self._encoder(to_unit(frames.to(self._device)).to(self._dtype))[0]
        return codes

    def _decode_window(self, codes: Tensor) -> Tensor:
        pictures: Tensor = self._decoder(codes.to(self._device, torch.int32))
        return pictures

    # -- the trial -----------------------------------------------------------------------------

    def _try_out(self, folder: Path) -> None:
        """Choose the precision, and check that a small clip becomes codes and pictures of the right kind."""
        failure = ""
        # A file may have casts to bf16 built in, which are incompatible with fp32 weights.
        precisions = [torch.float32, torch.bfloat16] if torch.device(self._device).type == "cpu" else [torch.bfloat16]
        for dtype in precisions:
            self._dtype = dtype
            self._encoder.to(dtype)
            self._decoder.to(dtype)
            try:
                return self._check(folder)
            except LumosError:
                raise
            except Exception as error:  # a foreign program may raise anything
                failure = str(error).strip().rpartition("\n")[2]
        raise CheckpointError("the visual tokenizer fails on a small clip", file=folder, where=failure, fix=FIX)

    @torch.inference_mode()
    def _check(self, folder: Path) -> None:
        encoder, decoder = (folder / name for name in FILES)
        shades = torch.arange(9 * 64 * 64 * 3).remainder(256).to(torch.uint8)
        codes = self._encode_window(shades.view(1, 9, 64, 64, 3))
        _require(codes.dtype == torch.int32, encoder, "type of the codes", codes.dtype, torch.int32)
        _require(codes.shape == (1, 3, 8, 8), encoder, "shape of the codes", list(codes.shape), [1, 3, 8, 8])
        low, high = int(codes.min()), int(codes.max())
        in_range = low >= 0 and high < CODEBOOK_SIZE
        _require(in_range, encoder, "range of the codes", f"{low} to {high}", f"0 to {CODEBOOK_SIZE - 1}")
        pictures = self._decode_window(codes)
        size = [1, 3, 9, 64, 64]
        _require(list(pictures.shape) == size, decoder, "shape of the pictures", list(pictures.shape), size)
        _require(bool(pictures.isfinite().all()), decoder, "pictures", "NaN or infinity", "finite numbers")


FIX = f"put {' and '.join(FILES)} there as published at {PUBLISHED}"


def _require(right: bool, path: Path, what: str, got: object, expected: object) -> None:
    if not right:
        wrong = "not the Cosmos DV4x8x8 tokenizer"
        raise CheckpointError(wrong, file=path, where=what, got=got, expected=expected, fix=FIX)
