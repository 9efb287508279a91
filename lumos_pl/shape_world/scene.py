"""Scenes of the world of shapes and their captions: what a clip shows, before anything is drawn.

    a red circle moves left
    a small red square left of a big blue circle, the circle moves up fast, on stripes

A scene is a pure function of (seed, split, number). Some combinations of colour, shape and motion
never occur in training: the split `heldout` is made of these alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from typing import Any, TypeVar

import torch

from lumos_pl.errors import ConfigError
from lumos_pl.seeding import generator
from lumos_pl.settings.kinds import check_kind, kind_field
from lumos_pl.settings.ranges import between, check_ranges
from lumos_pl.world import WORLDS, Split

Item = TypeVar("Item")

COLORS = {
    "red": (230, 35, 35),
    "green": (35, 200, 60),
    "blue": (50, 80, 245),
    "yellow": (235, 215, 30),
    "magenta": (225, 45, 215),
    "cyan": (35, 210, 220),
    "orange": (245, 130, 15),
    "lime": (150, 225, 20),
    "purple": (130, 50, 230),
}
SHAPES = ("circle", "square", "triangle")
# Words for a model to learn later: the one that comes with the project has read none of them. Its tokenizer has seen
# no such thing either and draws both all the same, which it does of few other colours and shapes: docs/finetune.md.
LATER_COLORS = {"kiwi": (100, 229, 34)}
LATER_SHAPES = ("bar",)
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # (x, y), y downwards
ZOOMS = {"grows": 1, "shrinks": -1}
MOTIONS = (*(f"moves {name}" for name in DIRECTIONS), *ZOOMS)
_PAIRS = [("moves left", "moves right"), ("moves up", "moves down"), ("grows", "shrinks")]
OPPOSITES = dict([*_PAIRS, *((back, there) for there, back in _PAIRS)])
STAYS = "stays"  # what the other one of a pair does
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
BACKGROUNDS = ("plain", "stripes", "checks", "gradient")
SIZES = {"": 1.0, "small": 0.8, "big": 1.0}
SPEEDS = {"": 1.0, "slowly": 0.5, "fast": 1.0}  # both in step with the cells, see TRAVEL
PHASES = 8  # of a pattern, in step with the cells like TRAVEL: drift takes it from one to another in a latent frame
HELDOUT_SHARE = 8  # one combination in so many is held out
_OPTIONAL = ("new", "apart")
_MOST_DRAWN = 10_000  # scenes of which none has the words that a world asks for


@dataclass(frozen=True, kw_only=True)
class Actor:
    """One object.

    Args:
        x, y, radius: at the first frame, as shares of the picture's side.
        size, speed: a word of `SIZES`, `SPEEDS`; the empty ones go unsaid.
    """

    color: str
    shape: str
    motion: str
    size: str
    speed: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One or two actors before a background.

    Args:
        relation: where the first actor is, seen from the second; None for one actor.
        phase: where the background's pattern starts, in [0, 1).
    """

    actors: tuple[Actor, ...]
    relation: str | None
    background: str
    phase: float

    @property
    def caption(self) -> str:
        words = [_join(actor.size, actor.color, actor.shape) for actor in self.actors]
        names = [f"an {name}" if name[0] in "aeiou" else f"a {name}" for name in words]
        moves = [_join(actor.motion, actor.speed) for actor in self.actors]
        if self.relation is None:
            text = f"{names[0]} {moves[0]}"
        else:
            mover = next((i for i, actor in enumerate(self.actors) if actor.motion != STAYS), 0)
            text = f"{names[0]} {self.relation} {names[1]}, the {self.actors[mover].shape} {moves[mover]}"
        return text if self.background == "plain" else f"{text}, on {self.background}"

    @property
    def words(self) -> set[str]:
        """Colours, shapes, motions and the relation."""
        of_actors = (word for actor in self.actors for word in (actor.color, actor.shape, actor.motion))
        return {*of_actors, *filter(None, [self.relation])}


def _join(*words: str) -> str:
    return " ".join(word for word in words if word)


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """What occurs in a world, and the size of its clips.

    Args:
        kind: `shapes`, of which all words below are; or one of your own, by the dotted name of what builds a `World`.
        colors, shapes, motions, sizes, speeds, backgrounds: the words in use.
        new: words of which each clip has at least one; none for any clips.
        apart: motions and relations that the split `heldout` is made of, and no other; none: certain combinations of
            colour, shape and motion are, the same in every world.
        pairs: share of the clips with two actors, of different colour and shape, one of which moves.
        grid: places along a side where an actor may start, patterns then at one of `PHASES`; 0 for anywhere.
        radius_spread: how far radii vary around that of their size, as a share of it.
        side: pixels of the square picture.
        frames, fps: RGB frames of a clip, and their rate.
    """

    kind: str = kind_field("shapes", WORLDS)
    colors: list[str] = field(default_factory=lambda: list(COLORS)[:7])
    shapes: list[str] = field(default_factory=lambda: list(SHAPES))
    motions: list[str] = field(default_factory=lambda: list(MOTIONS))
    sizes: list[str] = field(default_factory=lambda: [""])
    speeds: list[str] = field(default_factory=lambda: [""])
    backgrounds: list[str] = field(default_factory=lambda: ["plain"])
    new: list[str] = field(default_factory=list)
    apart: list[str] = field(default_factory=list)
    pairs: float = 0.0
    grid: int = 16
    radius_spread: float = 0.0
    side: int = 64
    frames: int = 17
    fps: int = 8

    def __post_init__(self) -> None:
        check_kind(self.kind, WORLDS, "world.kind")
        words: list[tuple[str, Sequence[str], Sequence[str]]] = [
            ("colors", self.colors, [*COLORS, *LATER_COLORS]),
            ("shapes", self.shapes, [*SHAPES, *LATER_SHAPES]),
            ("motions", self.motions, MOTIONS),
            ("sizes", self.sizes, list(SIZES)),
            ("speeds", self.speeds, list(SPEEDS)),
            ("backgrounds", self.backgrounds, BACKGROUNDS),
            ("new", self.new, [*self.colors, *self.shapes]),
            ("apart", self.apart, [*self.motions, *RELATIONS]),
        ]
        for name, used, known in words:
            unknown = [word for word in used if word not in known]
            if unknown or not (used or name in _OPTIONAL):
                expected = f"some of {', '.join(word or repr('') for word in known)}"
                raise ConfigError("unknown word", where=f"world.{name}", got=unknown or "none", expected=expected)
        if self.pairs and min(len(self.colors), len(self.shapes)) < 2:
            raise ConfigError("two actors differ in colour and shape", where="world.pairs", got=self.pairs)
        check_ranges(
            "world",
            self,
            pairs=between(0, 1),
            grid=between(0, 1024),
            radius_spread=between(0, 0.2),
            side=between(32, 1024),
            frames=between(2, 1024),
            fps=between(1, 120),
        )
        if self.new:
            _ = self.old  # which has to be one: it is asked for once the new words are learned

    @property
    def old(self) -> WorldConfig:
        """The same world without its new words."""
        colors, shapes = ([word for word in words if word not in self.new] for words in (self.colors, self.shapes))
        return WorldConfig(**_drawn_by(self) | {"colors": colors, "shapes": shapes, "new": [], "apart": []})


def _drawn_by(world: WorldConfig) -> dict[str, Any]:
    return {item.name: getattr(world, item.name) for item in fields(WorldConfig)}


def described(world: WorldConfig) -> dict[str, Any]:
    """What a world is known by, of a subclass no more than that; what is not used goes unsaid, as before it existed."""
    drawn = _drawn_by(world)
    del drawn["kind"]  # which it always is
    return {name: value for name, value in drawn.items() if value or name not in _OPTIONAL}


def is_held_out(color: str, shape: str, motion: str) -> bool:
    """Whether a combination is kept from training; fixed for ever, whatever the seed or world."""
    digest = hashlib.blake2b(f"{color} {shape} {motion}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELDOUT_SHARE == 0


def draw_scene(world: WorldConfig, *, seed: int, split: Split, number: int) -> Scene:
    """The scene `number` of a split.

    The moving actor's combination is held out in `heldout`, and in the other splits it is not: or, where the world
    keeps words `apart`, such a word.
    """
    draws = generator(seed, "scene", split, number)
    held_out = split == "heldout"
    combinations = [
        (color, shape, motion)
        for color, shape, motion in product(world.colors, world.shapes, world.motions)
        if world.apart or is_held_out(color, shape, motion) == held_out
    ]
    if not combinations:
        raise ConfigError("no combination of this world is held out", where="world", fix="add colours or motions")
    chooses = bool(world.new or world.apart)
    # First, or held-out clips, which need one word of `apart`, would be pairs more often: they have more words.
    is_pair = _uniform(0, 1, generator(seed, "pair", split, number)) < world.pairs
    is_pair |= bool(held_out and world.apart and RELATIONS.keys() >= set(world.apart))
    for _ in range(_MOST_DRAWN):
        scene = _draw(world, combinations, draws)
        words = scene.words
        if not chooses or (
            (scene.relation is not None) == is_pair
            and not (world.new and words.isdisjoint(world.new))
            and (not world.apart or words.isdisjoint(world.apart) != held_out)
        ):
            return scene
    raise ConfigError("no such clip in this world", where="world.apart", got=world.apart, fix="name fewer words")


def _draw(world: WorldConfig, combinations: list[tuple[str, str, str]], draws: torch.Generator) -> Scene:
    mover = _pick(combinations, draws)
    background, phase = _pick(world.backgrounds, draws), _uniform(0, 1, draws)
    if world.grid:
        phase = math.floor(phase * PHASES) / PHASES
    if _uniform(0, 1, draws) >= world.pairs:
        actors = (_place(world, *mover, draws),)
        return Scene(actors=actors, relation=None, background=background, phase=phase)
    return _draw_pair(world, mover, background, phase, draws)


def _draw_pair(
    world: WorldConfig, mover: tuple[str, str, str], background: str, phase: float, draws: torch.Generator
) -> Scene:
    """The mover, and one that stays in the other half of the picture, across the line of motion."""
    color, shape, motion = mover
    other = (
        _pick([word for word in world.colors if word != color], draws),
        _pick([word for word in world.shapes if word != shape], draws),
        STAYS,
    )
    crossing = {"moves left": ("above", "below"), "moves right": ("above", "below")}
    upright = {"moves up": ("left of", "right of"), "moves down": ("left of", "right of")}
    relation = _pick((crossing | upright).get(motion, tuple(RELATIONS)), draws)
    dx, dy = RELATIONS[relation]
    actors = [
        _place(world, *mover, draws, half=(dx, dy)),
        _place(world, *other, draws, half=(-dx, -dy)),
    ]
    if _uniform(0, 1, draws) < 0.5:  # the one that stays is named first
        actors.reverse()
        relation = next(word for word, (x, y) in RELATIONS.items() if (x, y) == (-dx, -dy))
    return Scene(actors=tuple(actors), relation=relation, background=background, phase=phase)


# Share of the side that a motion covers at ordinary speed. In 17 frames of 64 px that is one cell of 8 px a latent
# frame, so that codes shift whole: far easier to learn than motion out of step with the cells.
TRAVEL = 0.5
ZOOM = 2.2  # ratio of the radii that growing covers at ordinary speed
# Radii of a big actor, alone or beside another, as shares of the side. At 64 px the smallest of a pair is then two
# cells wide: of smaller ones a tokenizer with 8-px cells keeps the colour, not the shape.
RADIUS, PAIR_RADIUS = 0.2, 0.17
MARGIN = 0.02


def zoom_factor(actor: Actor) -> float:
    """Radius at the last frame over radius at the first."""
    return float(ZOOM ** (ZOOMS.get(actor.motion, 0) * SPEEDS[actor.speed] ** 0.5))


def travel(actor: Actor) -> tuple[float, float]:
    """Way from the first frame to the last, in shares of the side."""
    dx, dy = DIRECTIONS.get(actor.motion.removeprefix("moves "), (0, 0))
    return dx * TRAVEL * SPEEDS[actor.speed], dy * TRAVEL * SPEEDS[actor.speed]


def way_back(scene: Scene) -> Scene:
    """The scene whose clip is this one's played backwards: before a plain background, as ordinary a scene as this."""
    return replace(scene, actors=tuple(map(_returning, scene.actors)))


def _returning(actor: Actor) -> Actor:
    (dx, dy), zoom = travel(actor), zoom_factor(actor)
    motion = OPPOSITES.get(actor.motion, actor.motion)
    return replace(actor, motion=motion, x=actor.x + dx, y=actor.y + dy, radius=actor.radius * zoom)


def _place(
    world: WorldConfig,
    color: str,
    shape: str,
    motion: str,
    draws: torch.Generator,
    half: tuple[int, int] = (0, 0),
) -> Actor:
    """An actor somewhere from where its whole motion stays in the picture, or in the half (x, y) of it."""
    size = _pick(world.sizes, draws)
    # The other of a pair stays, without a word about its speed.
    speed = _pick(world.speeds, draws) if motion != STAYS else ""
    base = (RADIUS if half == (0, 0) else PAIR_RADIUS) * SIZES[size]
    base *= _uniform(1 - world.radius_spread, 1 + world.radius_spread, draws)
    probe = Actor(color=color, shape=shape, motion=motion, size=size, speed=speed, x=0, y=0, radius=base)
    zoom = zoom_factor(probe)
    radius = base if zoom == 1 else base * 1.25 / max(1.0, zoom)  # the largest radius of a zoom is a bit more
    room = MARGIN + radius * max(1.0, zoom)
    place = []
    for way, side in zip(travel(probe), half, strict=True):
        low, high = room + max(0.0, -way), 1 - room - max(0.0, way)
        if side < 0:
            high = 0.5 - room
        elif side > 0:
            low = 0.5 + room
        place.append(_snap(_uniform(low, max(low, high), draws), low, high, world.grid))
    return Actor(color=color, shape=shape, motion=motion, size=size, speed=speed, x=place[0], y=place[1], radius=radius)


def _snap(value: float, low: float, high: float, grid: int) -> float:
    """The nearest place of the grid that lies in [low, high], if there is one."""
    if not grid:
        return value
    first, last = math.ceil(low * grid), math.floor(high * grid)
    return min(max(round(value * grid), first), last) / grid if first <= last else value


def _pick(items: Sequence[Item], draws: torch.Generator) -> Item:
    return items[int(torch.randint(len(items), (), generator=draws))]


def _uniform(low: float, high: float, draws: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=draws))
