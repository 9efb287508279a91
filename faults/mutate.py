"""Damage to bytes, as disks, networks and careless hands do it."""

from __future__ import annotations

import random


def mutate(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Other bytes than `data` (which has at least two), and what was done to them."""
    while True:
        kind = draw.choice(
            ["flip a bit", "set bytes", "zero a block", "cut", "remove a block", "double a block", "grow"]
        )
        start = draw.randrange(len(data))
        length = min(draw.choice([1, 16, 512, 4096]), len(data) - start)
        end = start + length
        match kind:
            case "flip a bit":
                changed = data[:start] + bytes([data[start] ^ 1 << draw.randrange(8)]) + data[start + 1 :]
            case "set bytes":
                changed = data[:start] + draw.randbytes(length) + data[end:]
            case "zero a block":
                changed = data[:start] + bytes(length) + data[end:]
            case "cut":
                changed = data[:start]
            case "remove a block":
                changed = data[:start] + data[end:]
            case "double a block":
                changed = data[:end] + data[start:]
            case _:
                changed = data + draw.randbytes(length)
        if changed != data:
            return changed, f"{kind} at {start}, {length} bytes"
