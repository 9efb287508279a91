"""Plays a game until a thing moves as a caption says, seen from the console's memory: no picture is asked for it.

A scene is a pure function of its seed: the console is put back into the state after its start, and every action
follows from the seed.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.games.catalogue import FIELD, GAMES, Axis, Game, Thing
from examples.games.motion import RECORDED, WAYS, Track, motion_of
from lumos_pl.errors import ConfigError

ATTEMPTS, LONGEST = 10, 6000  # times that a game is begun, and frames of the console each time
WARM_UP = 40, 400  # frames before a clip may begin: somewhere in between
AWAY, THERE = (20, 120), (100, 250)  # frames for which a player goes one way and the other
PACE = 0.4, 1.0  # share of them in which he presses the key
FIRES = 0.03  # share of the frames
GLIMPSES, GLIMPSES_SEED = 8, 2_000_003  # of each game; no clip to learn from is played so
TAKEN = 0.2  # share of the moments that would do
NEAR = 3  # pixels around a thing's place in which its colour is looked for


def emulator() -> Any:
    """The package ale_py. Raises ConfigError where it is not installed; what plays no game does not need it."""
    try:
        import ale_py.roms
    except ImportError as error:
        what, fix = "games are played by an emulator, ale-py", "pip install 'lumos_pl[games]'"
        raise ConfigError(what, where="world.kind", got=str(error), fix=fix) from None
    return ale_py


@dataclass(frozen=True, kw_only=True)
class Scene:
    """
    Args:
        track: where the thing is, from the game's memory.
        packed: its pictures, compressed: a data set holds thousands of scenes at a time.
    """

    game: str
    thing: str
    motion: str
    track: Track
    packed: bytes

    @property
    def field(self) -> NDArray[np.uint8]:
        """RGB, [N, FIELD, FIELD, 3]."""
        return np.frombuffer(zlib.decompress(self.packed), np.uint8).reshape(-1, FIELD, FIELD, 3)

    @property
    def caption(self) -> str:
        return f"{self.game}, the {self.thing} {self.motion}"


class Console:
    """A console with a game in it, that can be begun again."""

    def __init__(self, name: str) -> None:
        self._package = emulator()
        self._package.ALEInterface.setLoggerMode(self._package.LoggerMode.Error)
        self._ale = self._package.ALEInterface()
        self._ale.setInt("random_seed", 0)
        self._ale.setFloat("repeat_action_probability", 0.0)  # every action is taken
        rom = self._package.roms.get_rom_path(name.replace(" ", "_"))
        assert rom is not None, "ale-py brings the games of the catalogue"
        self._ale.loadROM(rom)
        self._start = self._ale.cloneSystemState()  # with its source of chance

    def begin(self) -> None:
        self._ale.restoreSystemState(self._start)

    def act(self, action: str) -> bool:
        """Whether the game goes on; if not, it was begun anew."""
        self._ale.act(getattr(self._package.Action, action))
        if not self._ale.game_over():
            return True
        self._ale.reset_game()
        return False

    @property
    def memory(self) -> NDArray[np.uint8]:
        ram: NDArray[np.uint8] = self._ale.getRAM().copy()
        return ram

    @property
    def screen(self) -> NDArray[np.uint8]:
        """RGB [210, 160, 3]."""
        picture: NDArray[np.uint8] = self._ale.getScreenRGB()
        return picture


@cache
def console(name: str) -> Console:
    return Console(name)


def place(thing: Thing, memory: NDArray[np.uint8]) -> tuple[float, float]:
    """Column and row of a thing's centre on the screen."""

    def along(axis: Axis) -> float:
        return float(memory[axis[0]]) + axis[1] if isinstance(axis, tuple) else axis

    return along(thing.x), along(thing.y)


def is_visible(thing: Thing, column: float, row: float, screen: NDArray[np.uint8]) -> bool:
    """Whether the picture has the thing's colour where the memory says that it is, within where it can be."""
    left, top, right, bottom = thing.within
    if not (left <= column < right and top <= row < bottom):
        return False
    (width, height), (x, y) = thing.size, (round(column), round(row))
    rows = slice(max(top, y - height // 2 - NEAR), min(bottom, y + height // 2 + NEAR + 1))
    columns = slice(max(left, x - width // 2 - NEAR), min(right, x + width // 2 + NEAR + 1))
    return bool((screen[rows, columns] == np.array(thing.color, np.uint8)).all(-1).sum() * 3 >= width * height)


def play(name: str, thing: str, motion: str, frames: int, draws: np.random.Generator) -> Scene:
    """The first clip of a game of chance in which the thing moves so, plainly and visibly all the while.

    Raises:
        ConfigError: it never does, as where so few frames are asked for that nothing gets far.
    """
    game, wanted, machine = GAMES[name], GAMES[name].things[thing], console(name)
    for _ in range(ATTEMPTS):
        machine.begin()
        keys = _steer(game, motion, draws)
        warm_up = int(draws.integers(*WARM_UP))
        shown: deque[tuple[tuple[float, float], NDArray[np.uint8]]] = deque(maxlen=frames)
        for number in range(LONGEST):
            follows = game.chased if thing != game.steered else None
            key = next(keys) if follows is None else _follow(game, follows, machine.memory)
            if not machine.act("FIRE" if draws.random() < FIRES else key):
                shown.clear()
            if number < warm_up or number % game.every:
                continue
            shown.append((place(wanted, machine.memory), machine.screen))
            if len(shown) < frames or draws.random() > TAKEN:
                continue
            if (scene := _scene(name, thing, motion, shown)) is not None:
                return scene
    short = f"{frames} pictures, {game.every} frames of the game apart"
    raise ConfigError(f"no clip of {name} where the {thing} {motion}", where="frames", got=short, fix="ask for more")


def glimpses(name: str) -> Iterator[NDArray[np.uint8]]:
    """Pictures of a game, [1, FIELD, FIELD, 3], each of another time and from other actions."""
    game, machine = GAMES[name], console(name)
    for number in range(GLIMPSES):
        machine.begin()
        draws = np.random.default_rng([GLIMPSES_SEED, number])
        for _ in range(int(draws.integers(*WARM_UP))):
            machine.act(str(draws.choice(["FIRE", *game.keys.values()])))
        yield machine.screen[None, game.top : game.top + FIELD]


def _scene(
    name: str, thing: str, motion: str, shown: deque[tuple[tuple[float, float], NDArray[np.uint8]]]
) -> Scene | None:
    """What was shown, if it is what is wanted."""
    game, wanted = GAMES[name], GAMES[name].things[thing]
    track = (np.array([at for at, _ in shown]) + 0.5 - (0, game.top)) / FIELD
    if motion_of(track, wanted.motions, RECORDED) != motion:
        return None
    if not all(is_visible(wanted, *at, screen) for at, screen in shown):
        return None
    field = np.stack([screen[game.top : game.top + FIELD] for _, screen in shown])
    return Scene(game=name, thing=thing, motion=motion, track=track, packed=zlib.compress(field.tobytes(), 1))


def _steer(game: Game, motion: str, draws: np.random.Generator) -> Iterator[str]:
    """Keys, one a frame of the console: another way, so that there is room, then as it is wanted, and so on."""
    others = [way for way in game.keys if way != motion]
    while True:
        for way, length in (str(draws.choice(others)), AWAY), (motion, THERE):
            pace, held = draws.uniform(*PACE), int(draws.integers(*length))
            pressed = held if game.taps is None else int(draws.integers(1, game.taps + 1))
            for number in range(held):
                yield game.keys[way] if number < pressed and draws.random() < pace else "NOOP"


def _follow(game: Game, other: str, memory: NDArray[np.uint8]) -> str:
    """The key that brings the player's thing nearer to the other one."""
    axis = WAYS[next(iter(game.keys))][0]
    gap = place(game.things[other], memory)[axis] - place(game.things[game.steered], memory)[axis]
    wanted = (axis, np.sign(gap))
    return "NOOP" if abs(gap) < NEAR else next(key for way, key in game.keys.items() if WAYS[way] == wanted)
