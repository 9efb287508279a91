"""What the page asks for: every field named, every number within bounds."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lumos_pl.errors import ConfigError
from lumos_pl.machinery.json_file import first_problem, parse_json

CAPTION_CHARS = 500
MOST_STEPS = 64
MOST_FRAMES = 129  # RGB, of a clip with all that it was continued by
REQUEST_BYTES = 16 << 10
UPLOAD_BYTES = 8 << 20

Id = Annotated[str, Field(min_length=8, max_length=64)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Knobs(_Asked):
    """The fields of SamplingConfig that have a slider."""

    guidance: float = Field(ge=0, le=30)
    steps: int = Field(ge=1, le=MOST_STEPS)
    partial_context: float = Field(ge=0, le=1)
    temperature: float = Field(gt=0, le=4)


class Asked(_Asked):
    """A clip to make, or two with other knobs and the same seed.

    Args:
        frames: RGB frames to make, those given included.
        knobs: one, or two to compare.
        picture: id of the uploaded picture that it begins with.
        clip: id of the clip that it goes on from.
    """

    caption: str = Field(max_length=CAPTION_CHARS)
    seed: int = Field(ge=0, lt=1 << 53)
    frames: int = Field(ge=1, le=MOST_FRAMES)
    knobs: list[Knobs] = Field(min_length=1, max_length=2)
    picture: Id | None = None
    clip: Id | None = None

    @classmethod
    def read(cls, body: bytes) -> Asked:
        """From JSON.

        Raises:
            DataError: it is none.
            ConfigError: the first field that is not as it should be.
        """
        value = parse_json(body, dict[str, Any])
        try:
            asked = cls.model_validate(value)
        except ValidationError as error:
            found = first_problem(error, value)
            raise ConfigError(**found.parts | {"what": f"cannot be asked for: {found.what}"}) from None
        if not asked.caption.strip():
            raise ConfigError("no caption", where="caption", fix="say what the clip is to show")
        if asked.picture is not None and asked.clip is not None:
            raise ConfigError("two beginnings", where="picture", fix="begin with a picture, or continue a clip")
        return asked
