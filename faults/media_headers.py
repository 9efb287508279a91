"""Numbers in the headers of media files, set to others."""

from __future__ import annotations

import random

TABLES = (b"moov", b"trak", b"mdia", b"minf", b"stbl")  # of an MP4, each inside the one before


def big(value: int) -> bytes:
    return value.to_bytes(4, "big")


def little(value: int) -> bytes:
    return value.to_bytes(4, "little")


def put(data: bytes, after: bytes, offset: int, value: bytes) -> bytes:
    """Write over what stands `offset` bytes behind the first occurrence of a name."""
    start = data.index(after) + len(after) + offset
    return data[:start] + value + data[start + len(value) :]


def with_durations(data: bytes, *runs: tuple[int, int]) -> bytes:
    """An MP4 whose header comes last, with frames that last as said: (how many, ticks) after each other."""
    start = data.index(b"stts") - 4
    size = int.from_bytes(data[start : start + 4], "big")
    table = b"stts" + bytes(4) + big(len(runs)) + b"".join(big(n) + big(ticks) for n, ticks in runs)
    out = data[:start] + big(len(table) + 4) + table + data[start + size :]
    for name in TABLES:
        at = out.index(name) - 4
        grown = int.from_bytes(out[at : at + 4], "big") + len(table) + 4 - size
        out = out[:at] + big(grown) + out[at + 4 :]
    return out


def nonsense_times(suffix: str, data: bytes, n_frames: int, draw: random.Random) -> tuple[bytes, str] | None:
    """A video whose header has times that cannot be, and what was done; None: of a container without such a header."""
    absurd = draw.choice([0x7FFFFFFF, 0x80000000, 0x40000000, 10**9])
    match suffix:
        case ".mp4" | ".mov":
            ticks = int.from_bytes(data[data.index(b"stts") + 16 :][:4])
            at = draw.randrange(n_frames // 2)
            runs = {
                "one frame of years": ((at, ticks), (1, absurd), (n_frames - at - 1, ticks)),
                "one frame of minutes": (
                    (at, ticks),
                    (1, 1000 * ticks),
                    (n_frames - at - 1, ticks),
                ),
                "no frame has a length": ((n_frames, 0),),
                "all frames of years": ((n_frames, absurd),),
                "all frames of a tick": ((n_frames, 1),),
            }
            fields = {
                "time scale": (b"mdhd", 12, draw.choice([0, 1, absurd])),
                "edit": (b"elst", 12, absurd),
                "edit's length": (b"elst", 8, draw.choice([0, 1])),
            }
            kind = draw.choice([*runs, *fields])
            if kind in runs:
                return with_durations(data, *((n, ticks) for n, ticks in runs[kind] if n)), kind
            name, offset, value = fields[kind]
            return put(data, name, offset, big(value)), f"{kind} {value:#x}"
        case ".avi":
            scale, rate = draw.choice([(0, 12), (1, 0), (1, absurd), (absurd, 1)])
            changed = put(put(data, b"strh", 24, little(scale)), b"strh", 28, little(rate))
            return changed, f"scale {scale}, rate {rate}"
        case ".mkv" | ".webm":
            nanoseconds = draw.randint(1, 5000)
            return put(data, b"\x2a\xd7\xb1\x83", 0, nanoseconds.to_bytes(3, "big")), f"ticks of {nanoseconds} ns"
    return None
