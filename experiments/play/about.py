"""What the page says of the model: its clips, its settings, and the words that it has seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_modules.shards.manifest import Manifest
from data_modules.shards.shards import read_shard
from data_modules.shards.writer import KIND_FOLDERS
from experiments.play.asked import CAPTION_CHARS, MOST_FRAMES, MOST_STEPS, UPLOAD_BYTES
from lumos_pl.checkpoints.earlier_keys import in_current_keys
from lumos_pl.errors import LumosError
from lumos_pl.machinery.store import is_url
from lumos_pl.pipeline import LumosPipeline
from lumos_pl.settings.plain import from_plain
from lumos_pl.shape_world.clips import WorldClipsConfig
from lumos_pl.shape_world.scene import RELATIONS, WorldConfig, draw_scene

EXAMPLES = 40
MOST_SHARD_BYTES = 64 << 20  # that are read for them
_SYNTAX = ["a", "an", "the", "on"]


def describe(pipeline: LumosPipeline, name: str) -> dict[str, Any]:
    """In plain values.

    Args:
        name: of the model, for the page.
    """
    clip, sampling, layout = pipeline.clip, pipeline.sampling, pipeline.layout
    rows, cols = layout.latent_size(clip.width, clip.height)
    config = {} if pipeline.saved is None else in_current_keys(pipeline.saved.config)
    world = _world(config)
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
        "examples": _captions_of_clips(config) if world is None else _examples(world),
    }


def _world(config: Mapping[str, Any]) -> WorldConfig | None:
    """The world of shapes whose clips the run made and was trained on, if it was: nobody vouches for the settings."""
    try:
        world = from_plain(WorldClipsConfig, config.get("world", {}), "world")
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


def _captions_of_clips(config: Mapping[str, Any]) -> list[str]:
    """Captions of the run's own validation clips, each once, where a shard of them lies on this machine."""
    data = config.get("data")
    root = data.get("val_root") if isinstance(data, Mapping) else None
    if not isinstance(root, str) or is_url(root):
        return []
    for folder in Path(root), *(Path(root) / kind for kind in KIND_FOLDERS):
        try:
            manifest = Manifest.load(folder)
            is_small = manifest.shards[0].n_bytes <= MOST_SHARD_BYTES
            samples = read_shard(folder, manifest, 0) if is_small else []
        except (LumosError, OSError, ValueError, IndexError):  # none there, or none that is sound: nothing is shown
            continue
        texts = dict.fromkeys(sample.text for sample in samples if isinstance(sample.text, str))
        if captions := [text for text in texts if 0 < len(text) <= CAPTION_CHARS]:
            return captions[:EXAMPLES]
    return []
