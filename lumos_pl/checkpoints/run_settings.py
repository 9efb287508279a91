"""What a checkpoint says of how its run words captions and makes clips: values that nobody vouches for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

from lumos_pl.checkpoints.description import said_by
from lumos_pl.checkpoints.earlier_keys import in_current_keys
from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.settings.plain import from_plain, read_value
from lumos_pl.tokenizers.text import RELEASE_PROMPT, PromptTemplate


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """
    Args:
        prompt_template: how captions are worded.
        text_tokenizer, visual_tokenizer: the word or path that names each; None: it does not say.
        precision: of the training; None: it does not say.
        clip, sampling: how it made clips; what it does not say is as in the release.
    """

    prompt_template: PromptTemplate
    text_tokenizer: str | None
    visual_tokenizer: str | None
    precision: str | None
    clip: ClipFormat
    sampling: SamplingConfig

    @classmethod
    def read(cls, config: Mapping[str, Any], file: Path) -> Self:
        """From the configuration that a checkpoint holds, {} where it holds none.

        Raises:
            CheckpointError: a value of another kind, or settings that cannot be; the file and the field.
        """
        run = in_current_keys(config)
        with said_by(file):
            data, trainer = (
                read_value(run.get(name), dict[str, Any] | None, name) or {} for name in ("data", "trainer")
            )
            return cls(
                prompt_template=PromptTemplate(_text(data, "prompt", "data.") or RELEASE_PROMPT),
                text_tokenizer=_text(data, "text_tokenizer", "data."),
                visual_tokenizer=_text(run, "visual_tokenizer"),
                precision=_text(trainer, "precision", "trainer."),
                clip=from_plain(ClipFormat, run.get("clip"), "clip"),
                sampling=from_plain(SamplingConfig, run.get("sampling"), "sampling"),
            )


def _text(section: Mapping[str, Any], name: str, prefix: str = "") -> str | None:
    return cast(str | None, read_value(section.get(name), str | None, f"{prefix}{name}"))
