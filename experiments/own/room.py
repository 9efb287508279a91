"""Whether clips and their captions fit the model's context: known before any work."""

from __future__ import annotations

from collections.abc import Sequence

from data_modules.tokenizing.media_item import MediaItem
from experiments.config import ExperimentConfig
from experiments.own.settings import OwnSettings
from experiments.read_config import load_experiment
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.spans import SequenceSpans
from lumos_pl.tokenizers.load import load_text_tokenizer, load_visual_tokenizer
from lumos_pl.tokenizers.visual import VisualTokenizer

UNIT = 1024  # that a longer context is proposed in


def too_long(items: Sequence[MediaItem], settings: OwnSettings) -> dict[str, str]:
    """The videos whose captions have no room beside a clip, by their keys, each with what is wrong.

    Raises:
        ConfigError: the clip alone has none, or its size does not fit the tokenizer.
        DataError: no caption has any.
    """
    tokenizer = load_visual_tokenizer(settings.tokenizer)
    config = load_experiment("own", [*settings.overrides, strides_of(tokenizer, "layout")])
    assert isinstance(config, ExperimentConfig)
    layout, most = config.layout.build(), config.model.max_length
    _, h, w = tokenizer.strides
    if settings.width % w or settings.height % h:
        expected = f"a width in multiples of {w} px, a height in multiples of {h}"
        raise ConfigError("size does not fit the tokenizer", where="--size", got=settings.size, expected=expected)
    cells = settings.height // h, settings.width // w
    clip = SequenceSpans(layout.prefix_length(0), layout.latent_frames(settings.frames), *cells).length
    room = most - clip
    longer = "a smaller --size, fewer --frames, or model.max_length"
    if room < 1:
        got, expected = f"{clip} tokens", f"fewer than {most} (model.max_length)"
        fix = f"{longer}={UNIT * (2 + clip // UNIT)}"
        raise ConfigError("a clip is longer than the model's context", got=got, expected=expected, fix=fix)
    text = load_text_tokenizer(config.data.text_tokenizer, layout)
    lengths = {item.key: len(item.caption if text is None else text.encode(item.caption)) for item in items}
    if min(lengths.values()) > room:
        got, expected = f"{min(lengths.values())} tokens or more", f"at most {room}, beside a clip of {clip}"
        raise DataError("every caption is too long", got=got, expected=expected, fix=f"shorten them; or {longer}")
    return {key: f"caption of more than {room} tokens" for key, length in lengths.items() if length > room}


def strides_of(tokenizer: VisualTokenizer, section: str) -> str:
    """The setting of a section that is the tokenizer's strides."""
    return f"{section}.strides=[{','.join(map(str, tokenizer.strides))}]"
