from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.utils
from PIL import Image
from safetensors.torch import load_file

import lumos_pl
from lumos_pl import LumosPipeline
from lumos_pl.checkpoints.conversion import export_released, import_released
from lumos_pl.errors import CheckpointError, ConfigError, DataError, LumosError
from lumos_pl.models import transformer
from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.sampling.generate import GenerationRequest
from lumos_pl.sampling.generated_clip import clip_seed
from lumos_pl.tokenizers.load import load_visual_tokenizer
from lumos_pl.tokenizers.text import PromptTemplate
from tests.refusals import refused
from tests.tiny_checkpoint import CLIP, write_checkpoint
from tests.tokenizers.chameleon import chameleon
from tests.tokenizers.cosmos_stand_in import write_stand_in

PROMPTS = ["a red circle", "a green square that grows"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run") / "tiny.ckpt", prefixes=("net.", "ema."))


@pytest.fixture(scope="module")
def lumos(checkpoint: Path) -> LumosPipeline:
    return LumosPipeline.load(checkpoint)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, lumos_pl; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="LumosPipelines"):
        lumos_pl.LumosPipelines  # noqa: B018


def test_clips_are_made_as_the_run_has_it(lumos: LumosPipeline) -> None:
    assert lumos.clip == ClipFormat(**CLIP)
    assert lumos.sampling == SamplingConfig(steps=2, guidance=2.0)
    clips = lumos.generate(PROMPTS, seed=3)
    for i, clip in enumerate(clips):
        assert clip.codes.shape == (3, 4, 4) and clip.codes.max() < 1000
        assert clip.frames.shape == (9, 32, 32, 3) and clip.frames.dtype == torch.uint8
        assert (clip.fps, clip.prompt, clip.seed) == (8, PROMPTS[i], clip_seed(3, i))
    assert not torch.equal(clips[0].codes, clips[1].codes)


def test_a_clip_depends_on_its_prompt_and_its_seed_alone(lumos: LumosPipeline) -> None:
    clips = lumos.generate(PROMPTS, seed=3)
    (again,) = lumos.generate(PROMPTS[1:], seed=[clips[1].seed])
    assert torch.equal(again.codes, clips[1].codes) and torch.equal(again.frames, clips[1].frames)
    (other,) = lumos.generate(PROMPTS[1:], seed=3)
    assert not torch.equal(other.codes, clips[1].codes)


@pytest.mark.seconds
def test_compiled_it_makes_the_same_clips(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # the very same kernels
    transformer.compiled.cache_clear()
    plain, compiled = (LumosPipeline.load(checkpoint, compile=compile) for compile in (False, True))
    counts = torch._dynamo.utils.counters["stats"]
    for lumos in plain, compiled:
        counts.clear()
        (clip,) = lumos.generate(PROMPTS[:1], seed=3)
        assert bool(counts["unique_graphs"]) is (lumos is compiled)
        assert torch.equal(clip.codes, plain.generate(PROMPTS[:1], seed=3)[0].codes)
    transformer.compiled.cache_clear()


def test_seeds_do_not_meet() -> None:
    seeds = {clip_seed(seed, index, sample) for seed in range(4) for index in range(4) for sample in range(4)}
    assert len(seeds) == 64


@pytest.mark.parametrize(("frames", "latent"), [(2, 2), (5, 2), (6, 3)])
def test_a_clip_has_the_frames_that_are_asked_for(lumos: LumosPipeline, frames: int, latent: int) -> None:
    """Also where the last group of the tokenizer's has more."""
    (clip,) = lumos.generate(PROMPTS[:1], clip=replace(lumos.clip, frames=frames))
    assert len(clip.codes) == latent and len(clip.frames) == frames


def test_an_image_and_its_video(lumos: LumosPipeline) -> None:
    """T2I, I2V and continuation: the clip begins with what is given."""
    (image,) = lumos.generate(PROMPTS[:1], clip=replace(lumos.clip, frames=1, fps=1))
    assert image.codes.shape == (1, 4, 4) and image.frames.shape == (1, 32, 32, 3)
    tokenizer = lumos.visual_tokenizer
    for given in image.frames, lumos.generate(PROMPTS[:1])[0].frames[:5]:
        free, clip = lumos.generate([PROMPTS[0]] * 2, given=[None, given])
        kept = tokenizer.encode(given[None])[0]
        assert torch.equal(clip.codes[: len(kept)], kept)
        assert not torch.equal(free.codes[: len(kept)], kept)
        assert clip.codes.shape == (3, 4, 4)


@pytest.mark.parametrize("n", [0, 2, 9])
def test_given_frames_that_do_not_fit(lumos: LumosPipeline, n: int) -> None:
    with refused(DataError):
        lumos.generate(PROMPTS[:1], given=[torch.zeros(n, 32, 32, 3, dtype=torch.uint8)])


def test_given_frames_of_another_size_or_type(lumos: LumosPipeline) -> None:
    for bad in torch.zeros(1, 64, 32, 3, dtype=torch.uint8), torch.zeros(1, 32, 32, 3):
        with refused(DataError, where="given", expected="[N, 32, 32, 3] torch.uint8 with N = 1 + 4k"):
            lumos.generate(PROMPTS[:1], given=[bad])


def test_files_by_their_names(lumos: LumosPipeline, tmp_path: Path) -> None:
    (clip,) = lumos.generate(PROMPTS[:1])
    (image,) = lumos.generate(PROMPTS[:1], clip=replace(lumos.clip, frames=1, fps=1))
    clip.save(tmp_path / "clip.mp4")
    clip.save(tmp_path / "clip.gif")
    image.save(str(tmp_path / "image.png"))
    assert (tmp_path / "clip.mp4").read_bytes()[4:8] == b"ftyp"
    with Image.open(tmp_path / "clip.gif") as animation:
        assert animation.n_frames == 9
    with Image.open(tmp_path / "image.png") as picture:
        assert picture.size == (32, 32)
    for name in "clip.png", "clip.avi", "clip":
        with refused(ConfigError, where="suffix", expected=".mp4, .gif for 9 frames"):
            clip.save(tmp_path / name)
    with refused(ConfigError, where="file"):
        clip.save(None)  # type: ignore[arg-type]
    clip.save(tmp_path / "shouted.MP4")
    assert (tmp_path / "shouted.MP4").read_bytes() == (tmp_path / "clip.mp4").read_bytes()
    with refused(ConfigError, where="clip.frames", got="32 x 31 px"):
        replace(clip, frames=clip.frames[:, 1:]).save(tmp_path / "odd.mp4")
    assert len(list(tmp_path.iterdir())) == 4
    for frames in clip.frames / 255, clip.frames.numpy(), clip.frames[0], clip.frames[:0]:
        with refused(ConfigError, where="clip.frames"):
            replace(clip, frames=frames)
    for fps in 0, -1, math.nan, 1.5:
        with refused(ConfigError, where="clip.fps"):
            replace(clip, fps=fps)


def test_what_a_cell_ends_with_is_shown_in_a_few_lines(lumos: LumosPipeline, checkpoint: Path) -> None:
    clips = lumos.generate(PROMPTS)
    assert all(
        repr(prompt) in line for prompt, line in zip(PROMPTS, repr(clips).split("GeneratedClip")[1:], strict=True)
    )
    assert "tensor" not in repr(clips) and str(clips[0].seed) in repr(clips)
    assert len(repr(lumos).splitlines()) < 5 and str(checkpoint) in repr(lumos)


def test_averaged_weights_and_precision(checkpoint: Path, lumos: LumosPipeline) -> None:
    codes = lumos.generate(PROMPTS)[0].codes
    averaged = LumosPipeline.load(checkpoint, weights="ema")
    assert not torch.equal(averaged.generate(PROMPTS)[0].codes, codes)
    half = LumosPipeline.load(checkpoint, precision="bf16-mixed")
    seen: list[bool] = []
    half.net.model.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    half.generate(PROMPTS[:1])
    assert seen and all(seen)


@pytest.mark.parametrize(("has_unit", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_bf16_is_for_processors_that_multiply_in_it(
    has_unit: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lumos_pl.pipeline.has_bf16", lambda device: has_unit)
    assert LumosPipeline.load().precision == precision
    assert LumosPipeline.load(precision="bf16-mixed").precision == "bf16-mixed"


def test_codes_need_no_tokenizers_and_what_needs_one_says_so(lumos: LumosPipeline) -> None:
    (clip,) = lumos.generate(PROMPTS[:1])
    request = lumos.request(PROMPTS[0], lumos.clip, seed=clip.seed)
    bare = replace(lumos, text_tokenizer=None, visual_tokenizer=None)
    assert torch.equal(bare.generate_codes([request])[0], clip.codes)
    with refused(ConfigError, where="text_tokenizer"):
        bare.request(PROMPTS[0], lumos.clip, seed=0)
    for call in (
        lambda: replace(lumos, visual_tokenizer=None).generate(PROMPTS, on_step=lambda *_: pytest.fail("too late")),
        lambda: bare.encode(clip.frames),
        lambda: bare.decode(clip.codes),
    ):
        with refused(ConfigError, where="visual_tokenizer"):
            call()


def test_a_caption_and_its_sequence_ask_for_the_same(lumos: LumosPipeline) -> None:
    """One clip, continued from its frames and from its codes."""
    (clip,) = lumos.generate(PROMPTS[:1])
    asked = lumos.request(PROMPTS[0], lumos.clip, seed=5, given=clip.frames[:5])
    kept = lumos.encode(clip.frames[:5])
    start = replace(asked.sequence, codes=torch.cat([kept, clip.codes[2:]]))
    again = GenerationRequest.continuing(start, n_given=len(kept), latent_frames=len(clip.codes), seed=5)
    assert torch.equal(*(lumos.generate_codes([request])[0] for request in (asked, again)))
    assert GenerationRequest.continuing(start, n_given=0, latent_frames=7, seed=5).sequence.codes.shape == (7, 4, 4)


def test_one_text_is_not_a_list(lumos: LumosPipeline) -> None:
    with refused(ConfigError, where="prompts"):
        lumos.generate("a red circle")


def test_a_prompt_that_does_not_fit(lumos: LumosPipeline) -> None:
    with refused(DataError, got="20077 tokens", expected="at most 16384"):
        lumos.check(["x" * 20_000])


def test_what_is_missing_is_said(checkpoint: Path, tmp_path: Path) -> None:
    bare = write_checkpoint(tmp_path / "bare.ckpt", visual_tokenizer=None)
    with refused(ConfigError, where="visual_tokenizer"):
        LumosPipeline.load(bare)
    LumosPipeline.load(bare, visual_tokenizer="embedded")
    with refused(ConfigError, where="visual_tokenizer", got="64000 codes, strides (4, 8, 8)"):
        LumosPipeline.load(checkpoint, visual_tokenizer=str(write_stand_in(tmp_path / "cosmos")))
    with refused(CheckpointError, file="nothing"):
        LumosPipeline.load(tmp_path / "nothing")
    with refused(ConfigError, where="device", got="tpu"):
        LumosPipeline.load(checkpoint, device="tpu")


def test_a_model_takes_the_visual_tokenizer_that_made_its_data(tmp_path: Path) -> None:
    """Another of as many codes would make noise of them; so it is with what is exported and imported again."""
    own = load_visual_tokenizer("embedded").fingerprint
    of_another = write_checkpoint(tmp_path / "other.ckpt", codes_of="fsq-0123456789ab")
    export_released(of_another, tmp_path / "exported")
    import_released(tmp_path / "exported", tmp_path / "imported.ckpt")
    for source in of_another, tmp_path / "exported", tmp_path / "imported.ckpt":
        with refused(ConfigError, file=source, got=own, expected="fsq-0123456789ab"):
            LumosPipeline.load(source)
    export_released(write_checkpoint(tmp_path / "own.ckpt", codes_of=own), tmp_path / "own")
    for source in tmp_path / "own.ckpt", tmp_path / "own":
        assert LumosPipeline.load(source).saved.visual_tokenizer == own


def test_what_a_checkpoint_says_of_its_data_may_be_anything(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "bad.ckpt", codes_of=["x"])
    with refused(CheckpointError, where="visual_tokenizer", got="['x']"):
        LumosPipeline.load(checkpoint)


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"clip": 3}, "clip"),
        ({"clip": {"width": -1}}, "clip.width"),
        ({"sampling": {"stepz": 1}}, "sampling"),
        ({"data": {"prompt": 3}}, "data.prompt"),
        ({"visual_tokenizer": ["x"]}, "visual_tokenizer"),
    ],
)
def test_a_configuration_that_nobody_vouches_for(tmp_path: Path, config: dict[str, object], where: str) -> None:
    with refused(CheckpointError, file="bad.ckpt", where=where):
        LumosPipeline.load(write_checkpoint(tmp_path / "bad.ckpt", **config))


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chameleon(tmp_path_factory.mktemp("chameleon") / "tokenizer.json")


def test_a_release_needs_both_tokenizers_and_has_its_own_settings(shared: Path, text_file: Path) -> None:
    folder = shared / "golden" / "lumos1_tiny"
    with refused(ConfigError, where="text_tokenizer"):
        LumosPipeline.load(folder, visual_tokenizer="embedded")
    with refused(ConfigError, where="visual_tokenizer"):
        LumosPipeline.load(folder, text_tokenizer=str(text_file))
    released = LumosPipeline.load(folder, visual_tokenizer="embedded", text_tokenizer=str(text_file))
    assert released.clip == ClipFormat() and released.sampling_for(released.clip) == SamplingConfig()
    assert released.sampling_for(ClipFormat(frames=1)) == SamplingConfig(guidance=16.0)
    assert ClipFormat(frames=1).fps == 1
    assert released.precision == ("bf16-mixed" if torch.cuda.is_available() else "32-true")


def test_a_released_folder_with_its_text_tokenizer(shared: Path, text_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "release"
    shutil.copytree(shared / "golden" / "lumos1_tiny", folder)
    shutil.copy(text_file, folder / "tokenizer.json")
    LumosPipeline.load(folder, visual_tokenizer="embedded")


@pytest.mark.parametrize("name", ["gen_t2v", "gen_t2i", "gen_i2v", "gen_t2v_rho03"])
def test_the_released_format_gives_the_codes_of_the_release(shared: Path, text_file: Path, name: str) -> None:
    """The prompts of the cases are ids at random, which no text becomes: they take the place of the tokenizer."""
    folder = shared / "golden" / "lumos1_tiny"
    case = next(c for c in json.loads((folder / "cases.json").read_text())["generation"] if c["name"] == name)
    tensors = load_file(folder / "cases.safetensors")
    tokens, prompt = tensors[f"{name}.generated"].long(), tensors[f"{name}.prompt"].long().tolist()
    released = LumosPipeline.load(folder, visual_tokenizer="embedded", text_tokenizer=str(text_file), device="cpu")
    layout = released.layout
    text_ids = prompt[1 : prompt.index(layout.sep)]
    expected = layout.parse(torch.cat([torch.tensor(prompt[: len(text_ids) + 2]), tokens, torch.tensor([layout.sep])]))
    codes = expected.codes
    width, height = case["resolution_wh"]
    given = torch.zeros(1, height, width, 3, dtype=torch.uint8) if name == "gen_i2v" else None
    as_in_the_case = replace(
        released,
        prompt_template=PromptTemplate("{caption}"),
        text_tokenizer=SimpleNamespace(fingerprint="ids", encode=lambda text: text_ids),
        visual_tokenizer=SimpleNamespace(
            fingerprint="codes of the case",
            codebook_size=layout.codebook_size,
            strides=layout.strides,
            encode=lambda frames: codes[None, :1],
            decode=lambda made: torch.zeros(1, 9, 1, 1, 3, dtype=torch.uint8),
        ),
        saved=None,
    )
    (clip,) = as_in_the_case.generate(
        ["as in the case"],
        clip=ClipFormat(width=width, height=height, frames=1 + 4 * (len(codes) - 1), fps=case["fps"]),
        sampling=SamplingConfig(
            steps=case["steps"], guidance=case["guidance"], partial_context=case["context_mask_ratio"], greedy=True
        ),
        given=[given],
    )
    assert torch.equal(clip.codes, codes)


@pytest.mark.parametrize(
    ("asked", "where"),
    [
        ({"prompts": PROMPTS[0]}, "prompts"),
        ({"prompts": {"caption": PROMPTS}}, "prompts"),
        ({"prompts": [PROMPTS[0], None]}, "prompts[1]"),
        ({"seed": None}, "seed"),
        ({"seed": "17"}, "seed"),
        ({"seed": ["1", "7"]}, "seed"),
        ({"seed": [1]}, "seed"),
        ({"seed": True}, "seed"),
        ({"seed": np.array(3)}, "seed"),
        ({"given": [None]}, "given"),
        ({"clip": {"width": 32}}, "clip"),
        ({"sampling": {"steps": 2}}, "sampling"),
        ({"sampling": {}}, "sampling"),
        ({"on_step": "print"}, "on_step"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(asked: dict[str, Any], where: str, checkpoint: Path) -> None:
    """Texts and mappings can be gone through too, and would be taken for lists of what they are made of."""
    lumos = LumosPipeline.load(checkpoint, device="cpu")
    with refused(ConfigError, where=where) as caught:
        lumos.generate(**({"prompts": PROMPTS} | asked))
    assert caught.value.expected is not None


@pytest.mark.parametrize(
    ("call", "where"),
    [
        (lambda lumos: lumos.request(1.5, lumos.clip, seed=0), "caption"),
        (lambda lumos: lumos.request(PROMPTS[0], "wide", seed=0), "clip"),
        (lambda lumos: lumos.request(PROMPTS[0], lumos.clip, seed="x"), "request.seed"),
        (lambda lumos: lumos.check(PROMPTS, clip={}), "clip"),
        (lambda lumos: lumos.clips_at_once(9), "clip"),
        (lambda lumos: lumos.generate_codes(["red"]), "requests[0]"),
        (lambda lumos: lumos.generate_codes(None), "requests"),
        (lambda lumos: lumos.generate_codes([], {}), "sampling"),
        (lambda lumos: lumos.generate_codes([], on_frame=1), "on_frame"),
        (lambda lumos: lumos.encode("clip.mp4"), "frames"),
        (lambda lumos: lumos.encode(torch.zeros(1, 32, 32, 3)), "frames"),
        (lambda lumos: lumos.encode(torch.zeros(1, 30, 32, 3, dtype=torch.uint8)), "frames"),
        (lambda lumos: lumos.encode(torch.zeros(0, 32, 32, 3, dtype=torch.uint8)), "frames"),
        (lambda lumos: lumos.decode([[[1]]]), "codes"),
        (lambda lumos: lumos.decode(torch.full((1, 2, 2), 1000)), "codes[0, 0, 0]"),
    ],
)
def test_every_call_names_what_it_cannot_take(
    call: Callable[[LumosPipeline], object], where: str, lumos: LumosPipeline
) -> None:
    with refused(LumosError, where=where) as caught:
        call(lumos)
    assert caught.value.expected is not None


def test_requests_may_be_any_that_can_be_gone_through(lumos: LumosPipeline) -> None:
    request = lumos.request(PROMPTS[0], lumos.clip, seed=0)
    (codes,) = lumos.generate_codes(one for one in [request])
    assert torch.equal(codes, lumos.generate_codes([request])[0])


def test_given_frames_that_are_no_tensor_are_refused(checkpoint: Path) -> None:
    with refused(DataError, where="given"):
        LumosPipeline.load(checkpoint).generate(PROMPTS[:1], given=["frame.png"])  # type: ignore[list-item]


def test_what_is_broken_off_leaves_the_pipeline_as_it_was(lumos: LumosPipeline) -> None:
    """Ctrl-C in a notebook, and the same cell again."""

    def interrupt(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    expected = [clip.codes for clip in lumos.generate(PROMPTS)]
    with pytest.raises(KeyboardInterrupt):
        lumos.generate(PROMPTS, on_step=interrupt)
    assert all(torch.equal(clip.codes, codes) for clip, codes in zip(lumos.generate(PROMPTS), expected, strict=True))


def test_prompts_of_numpy_are_prompts(lumos: LumosPipeline) -> None:
    assert [clip.prompt for clip in lumos.generate(np.array(PROMPTS))] == PROMPTS  # type: ignore[arg-type]


def test_a_seed_of_numpy_is_a_seed(checkpoint: Path) -> None:
    lumos = LumosPipeline.load(checkpoint, device=torch.device("cpu"))
    for seed, same in ((np.int64(3), 3), ([np.int64(3)], [3])):
        (clip,) = lumos.generate(PROMPTS[:1], seed=seed)  # type: ignore[arg-type]
        (again,) = lumos.generate(PROMPTS[:1], seed=same)
        assert torch.equal(clip.codes, again.codes) and clip.seed == again.seed


@pytest.mark.parametrize(
    ("asked", "where"),
    [
        ({"precision": "fp16"}, "precision"),  # it would have been taken for fp32
        ({"weights": "average"}, "weights"),
        ({"visual_tokenizer": 5}, "visual_tokenizer"),
        ({"adapters": "mine"}, "adapters"),
        ({"adapters": Path("mine")}, "adapters"),
        ({"adapters": [("mine", float("nan"))]}, "adapters[0]"),
    ],
)
def test_what_cannot_be_loaded_so_is_refused(asked: dict[str, Any], where: str, checkpoint: Path) -> None:
    with refused(ConfigError, where=where):
        LumosPipeline.load(checkpoint, **asked)
