"""An opened model: everything needed to go from captions to clips.

lumos = LumosPipeline.load()  # the small model that comes with the project; or pass "runs/demo/latest"
lumos.generate(["a red circle moves left"])[0].save("circle.mp4")
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn

from lumos_pl.checkpoints.decoder import SavedDecoder, Weights, load_decoder
from lumos_pl.checkpoints.huggingface import is_released
from lumos_pl.checkpoints.named import EMBEDDED, resolve_named
from lumos_pl.checkpoints.run_settings import RunSettings
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.layout import TokenLayout, TokenSequence
from lumos_pl.machinery.devices import has_bf16, resolve_device
from lumos_pl.models.config import ComputeConfig
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.sampling.generate import TOKENS_AT_ONCE, GenerationRequest, OnFrame, OnStep, check_requests, generate
from lumos_pl.sampling.generated_clip import GeneratedClip, are_frames, clip_seed, in_words
from lumos_pl.settings.plain import check_instance, check_list, check_texts, fits, read_value
from lumos_pl.settings.ranges import between
from lumos_pl.spans import SequenceSpans
from lumos_pl.tokenizers.load import (
    need_text_tokenizer,
    need_visual_tokenizer,
    the_text_tokenizer,
    the_visual_tokenizer,
)
from lumos_pl.tokenizers.text import RELEASE_PROMPT, PromptTemplate, TextTokenizer, check_readable
from lumos_pl.tokenizers.visual import VisualTokenizer, check_visual_tokenizer

Precision = Literal["32-true", "bf16-mixed"]
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # by precision, in Lightning's words
TEXT_TOKENIZER = "tokenizer.json"  # beside the weights in a released folder
RELEASED_IMAGE_GUIDANCE = 16.0  # arXiv:2507.08801; 15 for videos


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LumosPipeline:
    """A decoder with its vocabulary, tokenizers and precision: turns captions into requests, and requests into clips.

    `load` opens a file; `LumosModule.pipeline` gives the model in training.

    Args:
        net: the decoder, on the device where it runs.
        layout: its vocabulary.
        prompt_template: how captions are worded.
        text_tokenizer: None if there are no captions; methods that need one then raise ConfigError.
        visual_tokenizer: None if only codes are used; methods that need one then raise ConfigError.
        precision: what the decoder computes in, in Lightning's words: `32-true`, `bf16-mixed`, ...
        clip, sampling: the defaults of calls that do not say otherwise.
        saved: the checkpoint it was opened from, with its file, digest, step and configuration; None if it was not
            opened from a file.
    Raises:
        ConfigError: `visual_tokenizer` is not a visual tokenizer, or its codes are not the model's.
    """

    net: LumosTransformer
    layout: TokenLayout
    prompt_template: PromptTemplate = field(default_factory=lambda: PromptTemplate(RELEASE_PROMPT))
    text_tokenizer: TextTokenizer | None = None
    visual_tokenizer: VisualTokenizer | None = None
    precision: str = "32-true"
    clip: ClipFormat = field(default_factory=ClipFormat)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    saved: SavedDecoder | None = None

    def __post_init__(self) -> None:
        if self.visual_tokenizer is not None:
            check_visual_tokenizer(self.visual_tokenizer, self.layout)
            if self.saved is not None:
                self.saved.check_visual_tokenizer(self.visual_tokenizer)

    def __repr__(self) -> str:
        """A summary of a few lines; print `net` for the decoder's layers."""
        size = f"{sum(parameter.numel() for parameter in self.net.parameters()):,} parameters"
        opened = "" if self.saved is None else f" of step {self.saved.step:,} from {self.saved.file}"
        of = f"{size}{opened}, on {self.device} in {self.precision}"
        return f"{type(self).__name__}({of},\n    clip={self.clip},\n    sampling={self.sampling})"

    @classmethod
    def load(
        cls,
        source: str | Path = EMBEDDED,
        *,
        adapters: Sequence[str | Path | tuple[str | Path, float]] = (),
        weights: Weights = "model",
        visual_tokenizer: VisualTokenizer | str | Path | None = None,
        text_tokenizer: TextTokenizer | str | Path | None = None,
        device: str | torch.device = "auto",
        precision: Precision | None = None,
        compile: bool = False,
    ) -> Self:
        """Open everything that `source` names, as the run had it; a released checkpoint needs both tokenizers given.

        Args:
            source: a run's folder (`runs/EXP/latest` is the newest of EXP), a .ckpt, or a released folder;
                `embedded` is the small model that comes with the project.
            adapters: to add to the decoder, each alone or as (adapter, weight): folders in PEFT's layout, or runs that
                trained one.
            weights: the trained weights (`model`), or their running average (`ema`); adapters from PEFT folders have
                only one set, which is used either way.
            visual_tokenizer: the object, or its name, see `load_visual_tokenizer`. By default the run's own, unless it
                is code, as Cosmos's is: nothing that a checkpoint names is ever executed.
            text_tokenizer: the object, or its name, see `load_text_tokenizer`. By default the run's own, or a released
                folder's tokenizer.json.
            device: `cpu`, `cuda`, `cuda:N`, or `auto`: a GPU if there is one.
            precision: by default the run's; for a released checkpoint bf16 on a GPU and fp32 on a CPU. On a device
                that cannot multiply in bf16 the default is always fp32.
            compile: use torch.compile. The first clip takes a minute longer, so it pays only for many clips.
        Raises:
            CheckpointError, ConfigError: something is missing, damaged or does not fit.
        """
        read_value(precision, Precision | None, "precision")
        read_value(weights, Weights, "weights")
        device = resolve_device(str(device))
        path = resolve_named(Path(read_value(source, str | Path, "source")))
        added = [_weighted(adapter, f"adapters[{i}]") for i, adapter in enumerate(check_list(adapters, "adapters"))]
        saved = load_decoder(path, weights=weights, adapters=added)
        run = RunSettings.read(saved.config, saved.file)
        if text_tokenizer is None:
            text_tokenizer = run.text_tokenizer or _beside(path, TEXT_TOKENIZER)
        named_by = saved.file if visual_tokenizer is None else None
        visual_tokenizer = run.visual_tokenizer if visual_tokenizer is None else visual_tokenizer
        trained = run.precision or ("32-true" if device == "cpu" else "bf16-mixed")
        bf16 = trained == "bf16-mixed" and has_bf16(device)
        saved.net.compute_as(ComputeConfig(compile=compile))
        return cls(
            net=saved.net,
            layout=saved.layout,
            prompt_template=run.prompt_template,
            text_tokenizer=need_text_tokenizer(the_text_tokenizer(text_tokenizer, saved.layout), saved.layout),
            visual_tokenizer=need_visual_tokenizer(
                the_visual_tokenizer(visual_tokenizer, device=device, named_by=named_by)
            ),
            precision=precision or ("bf16-mixed" if bf16 else "32-true"),
            clip=run.clip,
            sampling=run.sampling,
            saved=saved,
        ).place(device)

    def place(self, device: str) -> Self:
        """Move the decoder itself to the device, in a dtype that it can compute in there; the tokenizers stay put."""
        # fp16 is for storing weights, not for computing with them: autocast uses bf16. A decoder with an adapter merged
        # in has fp32 weights, and a norm refuses to mix those with the others in bf16.
        dtypes = {parameter.dtype for parameter in self.net.parameters()}
        full = self.precision == "32-true" or torch.float16 in dtypes or len(dtypes) > 1
        self.net.to(device, torch.float32 if full else None)
        if self.precision == "bf16-mixed":
            # Cast once, as autocast would in every pass: it caches casts only of weights that require a gradient.
            for module in self.net.modules():
                if isinstance(module, nn.Linear):
                    module.weight.data = module.weight.data.to(torch.bfloat16)
        return self

    @property
    def device(self) -> torch.device:
        return self.net.lm_head.weight.device

    def autocast(self) -> torch.autocast:
        """The decoder's own autocast, whatever surrounds it; visual tokenizers never run under one, see `encode`."""
        dtype = AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    # -- requests ------------------------------------------------------------------------------

    def wording(self, caption: str, clip: ClipFormat) -> str:
        """The text that the model reads."""
        return self.prompt_template.render(
            width=clip.width, height=clip.height, frames=clip.frames, fps=clip.fps, caption=caption
        )

    def request(self, caption: str, clip: ClipFormat, *, seed: int, given: Tensor | None = None) -> GenerationRequest:
        """A request for `generate_codes`, its caption worded as in training.

        Args:
            given: the clip's first frames, RGB uint8 [N, H, W, 3]: one for I2V, 1 + 4k for continuation.
        Raises:
            DataError: a size that the token grid cannot hold, a word that the text tokenizer does not know, or given
                frames that do not fit.
        """
        check_instance(clip, ClipFormat, "clip")
        rows, cols = self.layout.latent_size(clip.width, clip.height)
        text_tokenizer = need_text_tokenizer(self.text_tokenizer, self.layout)
        check_readable(text_tokenizer, read_value(caption, str, "caption"))
        start = TokenSequence(
            text_ids=tuple(text_tokenizer.encode(self.wording(caption, clip))),
            codes=torch.empty(0, rows, cols, dtype=torch.int64) if given is None else self._encode_given(given, clip),
            duration=clip.duration,
            fps=clip.fps,
        )
        latent_frames = self.layout.latent_frames(clip.frames)
        return GenerationRequest.continuing(start, n_given=len(start.codes), latent_frames=latent_frames, seed=seed)

    def _encode_given(self, given: Tensor, clip: ClipFormat) -> Tensor:
        stride = self.layout.strides[0]
        is_clip = are_frames(given) and given.shape[1:3] == (clip.height, clip.width)
        if not is_clip or len(given) % stride != 1 % stride:
            raise DataError(
                "given frames do not fit the clip",
                where="given",
                got=in_words(given),
                expected=f"[N, {clip.height}, {clip.width}, 3] torch.uint8 with N = 1 + {stride}k",
            )
        return self.encode(given)

    def check(self, prompts: Sequence[str], *, clip: ClipFormat | None = None) -> None:
        """Raise what `generate` would raise for these prompts, without generating.

        Raises:
            DataError: a prompt, size or number that does not fit the model; says which prompt.
        """
        clip = self.clip if clip is None else clip
        requests = [self.request(prompt, clip, seed=0) for prompt in check_texts(prompts, "prompts")]
        check_requests(self.net, self.layout, requests)

    def clips_at_once(self, clip: ClipFormat) -> int:
        """How many clips of this format are made in one pass."""
        check_instance(clip, ClipFormat, "clip")
        rows, cols = self.layout.latent_size(clip.width, clip.height)
        return max(1, TOKENS_AT_ONCE // SequenceSpans(0, 1, rows, cols).frame_length)

    def sampling_for(self, clip: ClipFormat) -> SamplingConfig:
        """The sampling settings used for clips of this format when none are given."""
        if clip.frames == 1 and self.saved is not None and not self.saved.config:
            return replace(self.sampling, guidance=RELEASED_IMAGE_GUIDANCE)
        return self.sampling

    # -- codes and clips -----------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        clip: ClipFormat | None = None,
        sampling: SamplingConfig | None = None,
        given: Sequence[Tensor | None] | None = None,
        on_step: OnStep | None = None,
    ) -> list[GeneratedClip]:
        """Make a clip for each prompt: an image if `clip.frames` is 1.

        Args:
            seed: one for the whole call, from which each clip's own is derived (`clip_seed`); or one for each prompt.
                A clip depends on its own seed, not on the other prompts.
            given: for each prompt, the clip's first frames as RGB uint8 [N, H, W, 3], or None: one frame for I2V,
                1 + 4k to continue a clip. The clip begins with them as the visual tokenizer renders them.
            on_step: called with (done, total) after every refinement step.
        Raises:
            DataError: a prompt, size or number that does not fit the model.
            ConfigError: no text tokenizer, or no visual tokenizer.
        """
        prompts = check_texts(prompts, "prompts")
        seeds = _seeds(seed, len(prompts))
        starts = [None] * len(prompts) if given is None else check_list(given, "given", length=len(prompts))
        clip = self.clip if clip is None else clip
        check_instance(clip, ClipFormat, "clip")
        sampling = self.sampling_for(clip) if sampling is None else sampling
        need_visual_tokenizer(self.visual_tokenizer)  # before any work is done
        requests = [
            self.request(prompt, clip, seed=own, given=start)
            for prompt, own, start in zip(prompts, seeds, starts, strict=True)
        ]
        made = self.generate_codes(requests, sampling, on_step=on_step)
        return [
            GeneratedClip(codes=codes, frames=self.decode(codes)[: clip.frames], fps=clip.fps, prompt=prompt, seed=own)
            for codes, prompt, own in zip(made, prompts, seeds, strict=True)
        ]

    def generate_codes(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingConfig | None = None,
        *,
        on_step: OnStep | None = None,
        on_frame: OnFrame | None = None,
    ) -> list[Tensor]:
        """Codes of every request, [T, H, W] int64 on the CPU, given frames included; requests do not affect each other.

        Args:
            on_step, on_frame: see `lumos_pl.sampling.generate.generate`: to watch the work, and to stop it early.
        Raises:
            DataError: a sequence longer than the model's context, or an id, code or number outside the layout.
        """
        config = self.sampling if sampling is None else sampling
        with self.autocast():
            return generate(self.net, self.layout, requests, config, on_step=on_step, on_frame=on_frame)

    def encode(self, frames: Tensor) -> Tensor:
        """Codes [T, H, W] int64 on the CPU of RGB uint8 [N, H, W, 3]: one clip, so that no clip depends on others.

        Never under autocast, which would change the codes; nor is `decode`, where it would change the pictures.
        """
        _, h, w = self.layout.strides
        if not are_frames(frames) or frames.shape[1] % h or frames.shape[2] % w:
            expected = f"[N, H, W, 3] torch.uint8, H a multiple of {h} and W of {w}"
            raise DataError("not the frames of a clip", where="frames", got=in_words(frames), expected=expected)
        with torch.autocast(self.device.type, enabled=False):
            return need_visual_tokenizer(self.visual_tokenizer).encode(frames[None])[0].cpu()

    def decode(self, codes: Tensor) -> Tensor:
        """RGB uint8 [1 + strides[0] * (T - 1), H, W, 3] on the CPU of codes [T, H, W]; see `encode`."""
        self.layout.check_codes(codes)
        with torch.autocast(self.device.type, enabled=False):
            return need_visual_tokenizer(self.visual_tokenizer).decode(codes[None])[0].cpu()


def _weighted(adapter: str | Path | tuple[str | Path, float], where: str) -> tuple[Path, float]:
    """An adapter's path, and the weight it is added with."""
    path, weight = adapter if isinstance(adapter, tuple) and len(adapter) == 2 else (adapter, 1.0)
    between(-100, 100).check(where, weight)
    return resolve_named(Path(read_value(path, str | Path, where))), weight


def _seeds(seed: int | Sequence[int], n: int) -> list[int]:
    """One seed for each of n clips; accepts the integers of any library."""
    if fits(seed, int):
        return [clip_seed(int(seed), i) for i in range(n)]  # type: ignore[arg-type]
    expected = "a whole number, or a list of one for each prompt"
    seeds = check_list(seed, "seed", length=n, expected=expected)
    if not fits(seeds, list[int]):
        raise ConfigError("value does not fit", where="seed", got=reprlib.repr(seed), expected=expected)
    return [int(own) for own in seeds]


def _beside(folder: Path, name: str) -> str | None:
    return str(folder / name) if is_released(folder) and (folder / name).is_file() else None
