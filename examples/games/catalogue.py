"""The games: what can be seen in each, where its memory says that things are, and how it is played.

Positions are columns and rows of the console's screen of 160 x 210, of a thing's centre. Each address was found by
playing 3,000 frames at random, and correlating every byte of the 128 with the mean place of the pixels that have
exactly the thing's colour: those named here follow it with a correlation of at least 0.98, to within about two pixels
(a boxer's centre moves as he strikes, a paddle's as it leaves the field). `tests/examples/test_games.py`
checks them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FIELD = 160  # columns of the screen, and rows of it that are shown: those of a game's field, without score and lives

Color = tuple[int, int, int]
Axis = tuple[int, float] | float
"""A coordinate: the address of a byte and what to add to it, or where it always is."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """What a caption can speak of.

    Args:
        color: all that has it within `within` is the thing.
        others: colours of what else may pass there.
        within: left, top, right and bottom end of where it can be.
        size: columns and rows.
        motions: those that captions tell of it; of a thing with two of them, only that axis counts.
    """

    color: Color
    x: Axis
    y: Axis
    within: tuple[int, int, int, int]
    size: tuple[int, int]
    motions: tuple[str, ...]
    others: tuple[Color, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Game:
    """
    Args:
        top: first row of the field.
        ground: the colour behind the things.
        every: frames of the console, 60 a second, from one picture of a clip to the next: so many that a thing crosses
            a good part of the field, and no more, in 17 pictures.
        things: by the words for them.
        steered: which of them the player moves.
        keys: the joystick for each of its motions.
        chased: what the player follows when nothing is asked of his own thing.
        taps: frames for which a key is pressed at most, where a thing goes on in its way and turns round if it is held.
    """

    top: int
    ground: Color
    every: int
    things: Mapping[str, Thing]
    steered: str
    keys: Mapping[str, str]
    chased: str | None = None
    taps: int | None = None


SIDEWAYS, UPRIGHT = ("moves left", "moves right"), ("moves up", "moves down")
_CROSS = {"moves left": "LEFT", "moves right": "RIGHT", "moves up": "UP", "moves down": "DOWN"}
_LEFT_RIGHT = {"moves left": "LEFT", "moves right": "RIGHT"}

GAMES = {
    "pong": Game(
        top=34,
        ground=(144, 72, 17),
        every=3,
        things={
            "ball": Thing(
                color=(236, 236, 236),
                x=(49, -48.4),
                y=(54, -12.3),
                within=(20, 35, 140, 193),
                size=(2, 4),
                motions=SIDEWAYS,
                others=((213, 130, 74), (92, 186, 92)),
            ),
            "green paddle": Thing(
                color=(92, 186, 92),
                x=141.5,
                y=(51, -5),
                within=(136, 34, 148, 194),
                size=(4, 16),
                motions=UPRIGHT,
                others=((236, 236, 236),),
            ),
            "orange paddle": Thing(
                color=(213, 130, 74),
                x=17.5,
                y=(50, -7),
                within=(12, 34, 24, 194),
                size=(4, 16),
                motions=UPRIGHT,
                others=((236, 236, 236),),
            ),
        },
        steered="green paddle",
        keys={"moves up": "RIGHT", "moves down": "LEFT"},
        chased="ball",
    ),
    "breakout": Game(
        top=34,
        ground=(0, 0, 0),
        every=3,
        things={
            "ball": Thing(
                color=(200, 72, 72),
                x=(99, -48.5),
                y=(101, 10.9),
                within=(8, 96, 152, 187),
                size=(2, 4),
                motions=UPRIGHT,
                others=((142, 142, 142), (66, 72, 200)),
            ),
            "paddle": Thing(
                color=(200, 72, 72), x=(72, -40), y=190.5, within=(8, 189, 152, 193), size=(16, 4), motions=SIDEWAYS
            ),
        },
        steered="paddle",
        keys=_LEFT_RIGHT,
        chased="ball",
    ),
    "space invaders": Game(
        top=36,
        ground=(0, 0, 0),
        every=6,
        things={
            "cannon": Thing(
                color=(50, 132, 50),
                x=(28, 2.1),
                y=190.5,
                within=(30, 184, 130, 195),
                size=(7, 10),
                motions=SIDEWAYS,
                others=((142, 142, 142), (162, 134, 56)),
            ),
        },
        steered="cannon",
        keys=_LEFT_RIGHT,
    ),
    "boxing": Game(
        top=28,
        ground=(110, 156, 66),
        every=4,
        things={
            "white boxer": Thing(
                color=(214, 214, 214),
                x=(32, 13),
                y=(34, 61),
                within=(34, 38, 126, 176),
                size=(16, 46),
                motions=(*SIDEWAYS, *UPRIGHT),
                others=((0, 0, 0),),
            ),
        },
        steered="white boxer",
        keys=_CROSS,
    ),
    "seaquest": Game(
        top=30,
        ground=(0, 28, 136),
        every=4,
        things={
            "submarine": Thing(
                color=(187, 187, 53),
                x=(70, 7.9),
                y=(97, 38),
                within=(8, 46, 160, 154),
                size=(16, 12),
                motions=(*SIDEWAYS, *UPRIGHT),
                others=((45, 50, 184), (66, 72, 200), (92, 186, 92), (170, 170, 170), (0, 68, 0)),
            ),
        },
        steered="submarine",
        keys=_CROSS,
    ),
    "skiing": Game(
        top=30,
        ground=(236, 236, 236),
        every=6,
        things={
            "skier": Thing(
                color=(214, 92, 92),
                x=(25, 4.4),
                y=48,
                within=(8, 38, 152, 58),
                size=(8, 18),
                motions=SIDEWAYS,
                others=((82, 126, 45), (158, 208, 101), (72, 160, 72), (110, 156, 66), (66, 72, 200), (192, 192, 192)),
            ),
        },
        steered="skier",
        keys=_LEFT_RIGHT,
        taps=24,
    ),
}

# Kept from training, each word of them known from others: (game, thing, motion).
HELD_OUT = {
    ("pong", "orange paddle", "moves up"),
    ("breakout", "paddle", "moves right"),
    ("boxing", "white boxer", "moves up"),
    ("seaquest", "submarine", "moves left"),
}
