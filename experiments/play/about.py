"""What the page says of the model: its clips, its settings, and the words that it has seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.play.asked import CAPTION_CHARS, MOST_FRAMES, MOST_STEPS, UPLOAD_BYTES
from lumos_pl.checkpoints.earlier_keys import in_current_keys
from lumos_pl.errors import LumosError
from lumos_pl.pipeline import LumosPipeline
from lumos_pl.settings.plain import from_plain
from lumos_pl.shape_world.clips import WorldClipsConfig
from lumos_pl.shape_world.scene import RELATIONS, WorldConfig, draw_scene

EXAMPLES = 40
_SYNTAX = ["a", "an", "the", "on"]


def describe(pipeline: LumosPipeline, name: str) -> dict[str, Any]:
    """In plain values.

    Args:
        name: of the model, for the page.
    """
    clip, sampling, layout = pipeline.clip, pipeline.sampling, pipeline.layout
    rows, cols = layout.latent_size(clip.width, clip.height)
    world = _world({} if pipeline.saved is None else pipeline.saved.config)
    return {
        "name": name,
        "width": clip.width,
        "height": clip.height,
        "frames": clip.frames,
        "fps": clip.fps,
        "rows": rows,
        "cols": cols,
        "stride": layout.strides[0],
        "codebook_size": layout.codebook_size,
        "knobs": {
            "guidance": sampling.guidance,
            "steps": min(sampling.steps, MOST_STEPS),
            "partial_context": sampling.partial_context,
            "temperature": sampling.temperature,
        },
        "limits": {
            "caption": CAPTION_CHARS,
            "frames": MOST_FRAMES,
            "steps": MOST_STEPS,
            "upload": UPLOAD_BYTES,
        },
        "words": None if world is None else _words(world),
        "examples": [] if world is None else _examples(world),
    }


def _world(config: Mapping[str, Any]) -> WorldConfig | None:
    """The world of shapes whose clips the run made and was trained on, if it was: nobody vouches for the settings."""
    try:
        world = from_plain(WorldClipsConfig, in_current_keys(config).get("world", {}), "world")
    except LumosError:
        return None
    return world if world.train and world.kind == "shapes" else None


def _words(world: WorldConfig) -> dict[str, list[str]]:
    """The words of captions, in the order in which a caption says them."""
    relations = list(RELATIONS) if world.pairs else []
    return {
        "size": [word for word in world.sizes if word],
        "colour": list(world.colors),
        "shape": list(world.shapes),
        "motion": list(world.motions),
        "speed": [word for word in world.speeds if word],
        "place": relations,
        "ground": [f"on {word}" for word in world.backgrounds if word != "plain"],
        "": _SYNTAX,
    }


def _examples(world: WorldConfig) -> list[str]:
    try:
        return [draw_scene(world, seed=19, split="val", number=number).caption for number in range(EXAMPLES)]
    except LumosError:  # a world with no combination for it
        return []
