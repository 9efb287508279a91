"""A trained run or a released checkpoint, ready to make clips.

lumos = LumosPipeline.load()  # the small model that comes with the project; or "runs/demo/latest"
lumos.generate(["a red circle moves left"])[0].save("circle.mp4")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from lumos_pl.checkpoints.decoder import SavedDecoder, Weights, load_decoder
from lumos_pl.checkpoints.earlier_keys import in_current_keys
from lumos_pl.checkpoints.huggingface import is_released
from lumos_pl.checkpoints.named import EMBEDDED, resolve_named
from lumos_pl.devices import resolve_device
from lumos_pl.errors import CheckpointError, ConfigError
from lumos_pl.layout import TokenLayout
from lumos_pl.models.config import ComputeConfig
from lumos_pl.models.transformer import LumosTransformer, VisualHead
from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.sampling.generate import check_requests
from lumos_pl.sampling.text_to_video import GeneratedClip, TextToVideo
from lumos_pl.tokenizers import cosmos, text
from lumos_pl.tokenizers.load import load_text_tokenizer, load_visual_tokenizer
from lumos_pl.tokenizers.visual import VisualTokenizer

Precision = Literal["32-true", "bf16-mixed"]
TEXT_TOKENIZER = "tokenizer.json"  # beside the weights in a released folder
RELEASED_IMAGE_GUIDANCE = 16.0  # arXiv:2507.08801; 15 for videos

Settings = TypeVar("Settings", ClipFormat, SamplingConfig)


@dataclass(frozen=True, kw_only=True)
class LumosPipeline:
    """From prompts to clips.

    Args:
        saved: the decoder, on the device where it works.
        parts: what stands around it.
        clip, sampling: what `generate` takes where nothing else is asked for.
        precision: `32-true`, or `bf16-mixed` (autocast).
    """

    saved: SavedDecoder
    parts: TextToVideo
    clip: ClipFormat
    sampling: SamplingConfig
    precision: Precision

    @classmethod
    def load(
        cls,
        source: str | Path = EMBEDDED,
        *,
        weights: Weights = "model",
        visual_tokenizer: str | None = None,
        text_tokenizer: str | None = None,
        device: str = "auto",
        precision: Precision | None = None,
        compile: bool = False,
    ) -> Self:
        """Everything that `source` names, as the run had it; a released checkpoint needs both tokenizers.

        Args:
            source: a run's folder (`runs/EXP/latest` is the newest of EXP), a .ckpt, or a released folder;
                `embedded`: the small model that comes with the project.
            weights: the model's, or their running average (`ema`).
            visual_tokenizer: see `load_visual_tokenizer`.
            text_tokenizer: see `load_text_tokenizer`; else the run's, or a released folder's own tokenizer.json.
            device: `cpu`, `cuda`, `cuda:N`, or `auto`: a GPU if there is one.
            precision: the run's; of a released checkpoint bf16 on a GPU, fp32 on a CPU.
            compile: by torch.compile, which pays where many clips are made: the first takes a minute longer.
        Raises:
            CheckpointError, ConfigError: what is missing, damaged or does not fit.
        """
        device = resolve_device(device)
        path = resolve_named(Path(source))
        saved = load_decoder(path, weights=weights)
        run = _Values(in_current_keys(saved.config), saved.file)
        data = run.section("data")
        parts = TextToVideo(
            layout=saved.layout,
            prompt=text.PromptTemplate(data.text("prompt") or text.RELEASE_PROMPT),
            text_tokenizer=_text_tokenizer(
                text_tokenizer or data.text("text_tokenizer") or _beside(path, TEXT_TOKENIZER), saved.layout
            ),
            visual_tokenizer=_visual_tokenizer(visual_tokenizer or run.text("visual_tokenizer"), saved, device),
        )
        trained = run.section("trainer").text("precision") or ("32-true" if device == "cpu" else "bf16-mixed")
        precision = precision or ("bf16-mixed" if trained == "bf16-mixed" else "32-true")
        place_decoder(saved.net, device, precision)
        saved.net.compute_as(ComputeConfig(compile=compile))
        return cls(
            saved=saved,
            parts=parts,
            clip=run.settings("clip", ClipFormat),
            sampling=run.settings("sampling", SamplingConfig),
            precision=precision,
        )

    @property
    def device(self) -> torch.device:
        return self.saved.net.lm_head.weight.device

    def sampling_for(self, clip: ClipFormat) -> SamplingConfig:
        """The settings that are taken for clips of a format where none are given."""
        if clip.frames == 1 and not self.saved.config:
            return replace(self.sampling, guidance=RELEASED_IMAGE_GUIDANCE)
        return self.sampling

    def check(self, prompts: Sequence[str], *, clip: ClipFormat | None = None) -> None:
        """Raise what `generate` would raise of these prompts, without generating.

        Raises:
            DataError: a prompt, size or number that does not fit the model, with the prompt's place.
        """
        clip = clip or self.clip
        requests = [self.parts.request(prompt, clip, seed=0) for prompt in prompts]
        check_requests(self.saved.net, self.parts.layout, requests)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        clip: ClipFormat | None = None,
        sampling: SamplingConfig | None = None,
        given: Sequence[Tensor | None] | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[GeneratedClip]:
        """A clip for each prompt: an image where `clip.frames` is 1.

        Args:
            seed: of all, from which each has its own (`clip_seed`); or one for each. The clip of a prompt
                depends on its seed, not on what else is asked for.
            given: for each, its first frames as RGB uint8 [N, H, W, 3], or None: one frame for I2V,
                1 + 4k to continue a clip; the clip begins with them as the visual tokenizer renders them.
            on_step: called with (done, in all) after every refinement step.
        Raises:
            DataError: a prompt, size or number that does not fit the model.
        """
        if isinstance(prompts, str):
            raise ConfigError("one text where a list belongs", where="prompts", got=repr(prompts[:40]))
        clip = clip or self.clip
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            return self.parts.sample(
                self.saved.net,
                prompts,
                clip,
                sampling or self.sampling_for(clip),
                seed=seed,
                given=given,
                on_step=on_step,
            )


def place_decoder(net: LumosTransformer, device: str, precision: Precision) -> None:
    """Move a decoder to where it works, in a dtype that it can compute in."""
    # Halves are a way to save weights, not to compute with: autocast takes bf16.
    full = precision == "32-true" or net.lm_head.weight.dtype == torch.float16
    net.to(device, torch.float32 if full else None)
    if precision == "bf16-mixed":
        # What autocast would do anew in every pass: it keeps a cast only of weights that are trained.
        for module in net.modules():
            if isinstance(module, nn.Linear | VisualHead):
                module.weight.data = module.weight.data.to(torch.bfloat16)


class _Values:
    """What a checkpoint says of its run; nobody vouches for it."""

    def __init__(self, values: Mapping[str, Any], file: Path, prefix: str = "") -> None:
        self._values, self._file, self._prefix = values, file, prefix

    def section(self, name: str) -> _Values:
        return _Values(self._get(name, dict, {}), self._file, f"{self._prefix}{name}.")

    def text(self, name: str) -> str | None:
        value: str | None = self._get(name, str, None)
        return value

    def settings(self, name: str, kind: type[Settings]) -> Settings:
        """Settings with what is there, and defaults for the rest."""
        try:
            return kind(**self._get(name, dict, {}))
        except (TypeError, ConfigError) as error:
            raise CheckpointError(
                "unusable settings in the checkpoint", file=self._file, where=f"{self._prefix}{name}: {error}"
            ) from None

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


def _beside(folder: Path, name: str) -> str | None:
    return str(folder / name) if is_released(folder) and (folder / name).is_file() else None


def _text_tokenizer(source: str | None, layout: TokenLayout) -> text.TextTokenizer:
    if (tokenizer := load_text_tokenizer(source, layout)) is not None:
        return tokenizer
    published = text.PUBLISHED.get(layout.name, "the one it was trained with")
    raise ConfigError("no text tokenizer", where="text_tokenizer", fix=f"give a tokenizer.json: {published}")


def _visual_tokenizer(source: str | None, saved: SavedDecoder, device: str) -> VisualTokenizer:
    if source is None:
        fix = f"give the one it was trained with; of a release, the folder with the files of {cosmos.PUBLISHED}"
        raise ConfigError("no visual tokenizer", where="visual_tokenizer", fix=fix)
    tokenizer = load_visual_tokenizer(source, device=device)
    saved.check_visual_tokenizer(tokenizer)
    return tokenizer
