"""A world to learn in that nobody drew for it: six games of an old console, whose memory says what a clip shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from examples.games.catalogue import GAMES, HELD_OUT
from examples.games.judge import histogram, nearest_game, track_of
from examples.games.motion import motion_of
from examples.games.play import Scene, glimpses, play
from lumos_pl.errors import ConfigError, did_you_mean
from lumos_pl.seeding import derive_seed
from lumos_pl.shape_world.scene import WorldConfig
from lumos_pl.world import WORLDS, Frames, Split

KIND = "examples.games.world.Games"


class Games:
    """`world: {kind: examples.games.world.Games}`: of the section, `side`, `frames` and `fps` say what clips are like.

    Args:
        games: by their names in `GAMES`; the clips of a split are of each in turn.
    """

    old = None
    pix_fmt = "yuv444p"  # a ball is two pixels wide

    def __init__(self, config: WorldConfig, games: Sequence[str] = tuple(GAMES)) -> None:
        unknown = [name for name in games if name not in GAMES]
        if unknown or not games:
            fix = did_you_mean(unknown[0], GAMES) if unknown else None
            expected = f"some of {', '.join(GAMES)}"
            raise ConfigError("unknown game", where="games", got=unknown or "none", expected=expected, fix=fix)
        self._config, self._games = config, tuple(games)

    @property
    def described(self) -> Mapping[str, Any]:
        config = self._config
        size = {"side": config.side, "frames": config.frames, "fps": config.fps}
        return {"kind": config.kind, "games": list(self._games), **size}

    def scene(self, split: Split, number: int, *, seed: int) -> Scene:
        """The next game's turn: one of its things, moving in one of its ways, by chance."""
        known = {name: captions(name, split) for name in self._games}
        games = [name for name in self._games if known[name]]
        if not games:
            raise ConfigError("nothing of these games is held out", where="games", got=", ".join(self._games))
        game = games[number % len(games)]
        draws = np.random.default_rng(derive_seed(seed, "game", split, number))
        thing, motion = known[game][int(draws.integers(len(known[game])))]
        return play(game, thing, motion, self._config.frames, draws)

    def film(self, scene: Scene) -> Frames:
        return self._sized(scene.field)

    def _sized(self, field: Frames) -> Frames:
        size = (self._config.side, self._config.side)
        pictures = (Image.fromarray(picture).resize(size, Image.Resampling.BOX) for picture in field)
        return np.stack([np.asarray(picture) for picture in pictures])

    def judge(self, scene: Scene, frames: Frames) -> dict[str, bool]:
        """`game`, by its colours, and `motion`, of the caption's thing where that game would have it."""
        game = GAMES[scene.game]
        thing = game.things[scene.thing]
        right = {"game": nearest_game(frames, self._known) == scene.game}
        right["motion"] = motion_of(track_of(game, thing, frames), thing.motions) == scene.motion
        return right | {"joint": all(right.values())}

    @cached_property
    def _known(self) -> dict[str, NDArray[np.float64]]:
        """Colours of pictures of each game."""
        return {name: np.stack([histogram(self._sized(one)) for one in glimpses(name)]) for name in self._games}


def captions(game: str, split: Split) -> list[tuple[str, str]]:
    """Things and motions of a game that a split has."""
    return [
        (thing, motion)
        for thing, described in GAMES[game].things.items()
        for motion in described.motions
        if ((game, thing, motion) in HELD_OUT) == (split == "heldout")
    ]


WORLDS[KIND] = Games  # for who imports this file himself; a configuration imports what it names
