"""A world to learn in that nobody drew for it: six games of an old console, whose memory says what a clip shows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from examples.games.catalogue import GAMES, HELD_OUT
from examples.games.play import Scene, play
from lumos_pl.seeding import derive_seed


def draw_scene(*, games: tuple[str, ...], frames: int, seed: int, split: str, number: int) -> Scene:
    combinations = [
        (game, thing, motion)
        for game in games
        for thing, of_thing in GAMES[game].things.items()
        for motion in of_thing.motions
        if ((game, thing, motion) in HELD_OUT) == (split == "heldout")
    ]
    draws = np.random.default_rng(derive_seed(seed, "game", split, number))
    chosen = [games_ for games_ in games if any(c[0] == games_ for c in combinations)]
    game = chosen[number % len(chosen)]
    of_game = [c for c in combinations if c[0] == game]
    return play(*of_game[int(draws.integers(len(of_game)))], frames, draws)


def film(scene: Scene, side: int) -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.BOX)) for p in scene.field])
