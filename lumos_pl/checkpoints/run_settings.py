"""What a checkpoint says of how its run words captions and makes clips: values that nobody vouches for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from lumos_pl.checkpoints.description import said_by
from lumos_pl.checkpoints.earlier_keys import in_current_keys
from lumos_pl.errors import CheckpointError, ConfigError
from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.tokenizers.text import RELEASE_PROMPT, PromptTemplate

Settings = TypeVar("Settings", ClipFormat, SamplingConfig)


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
        run = _Values(in_current_keys(config), file)
        data = run.section("data")
        return cls(
            prompt_template=PromptTemplate(data.text("prompt") or RELEASE_PROMPT),
            text_tokenizer=data.text("text_tokenizer"),
            visual_tokenizer=run.text("visual_tokenizer"),
            precision=run.section("trainer").text("precision"),
            clip=run.settings("clip", ClipFormat),
            sampling=run.settings("sampling", SamplingConfig),
        )


class _Values:
    """A section of the configuration; `prefix` names it in messages."""

    def __init__(self, values: Mapping[str, Any], file: Path, prefix: str = "") -> None:
        self._values, self._file, self._prefix = values, file, prefix

    def section(self, name: str) -> _Values:
        return _Values(self._get(name, dict, {}), self._file, f"{self._prefix}{name}.")

    def text(self, name: str) -> str | None:
        value: str | None = self._get(name, str, None)
        return value

    def settings(self, name: str, kind: type[Settings]) -> Settings:
        """Settings with what is there, and defaults for the rest."""
        with said_by(self._file):
            try:
                return kind(**self._get(name, dict, {}))
            except TypeError as error:
                raise ConfigError("not its fields", where=f"{self._prefix}{name}", got=error) from None

    def _get(self, name: str, kind: type, default: Any) -> Any:
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, kind):
            raise CheckpointError(
                "unusable setting in the checkpoint",
                file=self._file,
                where=f"{self._prefix}{name}",
                got=type(value).__name__,
                expected=kind.__name__,
            )
        return value
