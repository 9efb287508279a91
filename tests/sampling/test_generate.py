from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import lumos_pl.sampling.generate as generate_module
from lumos_pl.errors import ConfigError, DataError, NumericError
from lumos_pl.layout import TokenLayout
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.sampling.config import SamplingConfig
from lumos_pl.sampling.generate import FrameInProgress, GenerationRequest, generate
from lumos_pl.sampling.unfinished_clip import HIDDEN, UnfinishedClip
from tests.reference.plain_sampler import plain_generate
from tests.refusals import refused

QUICK = SamplingConfig(steps=3, guidance=2.0)


def request(
    latent_frames: int = 3, rows: int = 4, cols: int = 4, text: str | None = "red", n_given: int = 0, seed: int = 0
) -> GenerationRequest:
    codes = torch.randint(60, (n_given, rows, cols), generator=torch.Generator().manual_seed(seed + 1))
    return GenerationRequest(
        text_ids=None if text is None else tuple(text.encode()),
        latent_frames=latent_frames,
        rows=rows,
        cols=cols,
        duration=1,
        fps=12,
        seed=seed,
        given_codes=codes if n_given else None,
    )


MIXED = [
    request(seed=1),
    request(text="a longer text than the others", seed=2),
    request(latent_frames=1, rows=8, text="x", seed=3),
    request(latent_frames=4, cols=8, n_given=2, seed=4),
    request(text=None, n_given=1, seed=5),
    request(seed=6),
]


@pytest.fixture
def net(make_decoder: Callable[..., LumosTransformer]) -> LumosTransformer:
    return make_decoder()


def same(left: list[Tensor], right: list[Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(left, right, strict=True)]


@pytest.mark.parametrize("given_context", ["visible", "partial"])
@pytest.mark.parametrize(
    "asked", [request(), request(latent_frames=2, cols=8, text="up", n_given=1)], ids=["t2v", "i2v"]
)
@torch.no_grad()
def test_greedy_codes_equal_plain_loops(
    asked: GenerationRequest, given_context: str, net: LumosTransformer, layout: TokenLayout
) -> None:
    net.double()  # no tie is decided by rounding
    config = SamplingConfig(steps=4, guidance=3.0, partial_context=0.6, greedy=True, given_context=given_context)  # type: ignore[arg-type]
    (codes,) = generate(net, layout, [asked], config)
    plain = plain_generate(
        net, layout, asked, steps=4, guidance=3.0, partial_context=0.6, given_visible=given_context == "visible"
    )
    assert len(codes.unique()) > 4  # or there would be little to compare
    assert torch.equal(codes, plain)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_a_clip_does_not_depend_on_its_batch(autocast: bool, net: LumosTransformer, layout: TokenLayout) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        together = generate(net, layout, MIXED, QUICK)
        alone = [generate(net, layout, [asked], QUICK)[0] for asked in MIXED]
        reversed_ = generate(net, layout, MIXED[::-1], QUICK)[::-1]
    assert all(same(together, alone)) and all(same(together, reversed_))
    assert [list(codes.shape) for codes in together] == [[r.latent_frames, r.rows, r.cols] for r in MIXED]
    assert all(codes.min() >= 0 and codes.max() < layout.codebook_size for codes in together)


def test_splitting_into_passes_does_not_show(
    net: LumosTransformer, layout: TokenLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = generate(net, layout, MIXED, QUICK)
    monkeypatch.setattr(generate_module, "TOKENS_AT_ONCE", 30)
    assert all(same(together, generate(net, layout, MIXED, QUICK)))


def test_draws_follow_the_seed_alone(net: LumosTransformer, layout: TokenLayout) -> None:
    torch.manual_seed(1)
    first = generate(net, layout, [request(seed=7), request(seed=8)], QUICK)
    torch.manual_seed(2)
    again = generate(net, layout, [request(seed=7), request(seed=9)], QUICK)
    assert same(first, again) == [True, False]


@torch.no_grad()
def test_the_order_of_the_remaining_codes_does_not_show(net: LumosTransformer, layout: TokenLayout) -> None:
    """Near ties may come out in either order on a GPU: that must not swap the numbers drawn for them."""
    states = torch.randn(24, net.config.dim, generator=torch.Generator().manual_seed(0))
    blocks = []
    for flipped in False, True:
        clip = UnfinishedClip(net, layout, request().sequence, n_given=0, seed=0, config=replace(QUICK, guidance=1.0))
        clip.begin(0)
        clip.remaining = clip.remaining.flip(0) if flipped else clip.remaining
        clip.refine(0, [states])
        blocks.append(clip.block)
    assert torch.equal(*blocks)


def test_given_frames_are_kept_and_seen(net: LumosTransformer, layout: TokenLayout) -> None:
    asked = request(n_given=2)
    assert asked.given_codes is not None
    other = replace(asked, given_codes=(asked.given_codes + 1) % layout.codebook_size)
    codes, others = generate(net, layout, [asked, other], QUICK)
    assert torch.equal(codes[:2], asked.given_codes)
    assert not torch.equal(codes[2], others[2])


def test_without_guidance_the_branch_without_text_is_skipped(
    net: LumosTransformer, layout: TokenLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_tokens: list[int] = []
    net.model.register_forward_pre_hook(lambda _, inputs: n_tokens.append(len(inputs[0])))
    near = generate(net, layout, [request()], replace(QUICK, guidance=1 + 1e-7))
    both = n_tokens.copy()
    n_tokens.clear()
    assert all(same(generate(net, layout, [request()], replace(QUICK, guidance=1.0)), near))
    frame = 4 * 5 + 4
    assert both[1:] == [2 * frame] * (len(both) - 1) and n_tokens[1:] == [frame] * (len(both) - 1)


def test_guidance_zero_does_not_read_the_text(net: LumosTransformer, layout: TokenLayout) -> None:
    texts = [request(text="red"), request(text="blue and green"), request(text=None)]
    unguided = generate(net, layout, texts, replace(QUICK, guidance=0.0, greedy=True))
    assert all(same(unguided, unguided[:1] * 3))
    guided = generate(net, layout, texts, replace(QUICK, guidance=3.0, greedy=True))
    assert not any(same(guided[1:], guided[:1] * 2))


def test_settings_change_the_result(net: LumosTransformer, layout: TokenLayout) -> None:
    asked = [request(latent_frames=4, n_given=1)]
    base = generate(net, layout, asked, QUICK)
    for change in (
        {"steps": 5},
        {"partial_context": 0.2},
        {"given_context": "partial"},
        {"schedule": "linear"},
        {"temperature": 0.3},
        {"top_k": 1},
        {"top_p": 0.1},
        {"confidence_temperature": 0.0},
        {"confidence_anneal": "release"},
    ):
        assert not all(same(generate(net, layout, asked, replace(QUICK, **change)), base)), change


@pytest.mark.parametrize("greedy", [False, True])
def test_weights_that_give_no_finite_numbers_are_named_with_the_frame(
    greedy: bool, net: LumosTransformer, layout: TokenLayout
) -> None:
    def break_the_second_frame(done: int, in_all: int) -> None:
        if done == 4:  # one of its three steps is done
            net.model.norm.weight.data.fill_(3e38)
            net.lm_head.weight.data.fill_(3e38)

    sampling = replace(QUICK, greedy=greedy)
    with refused(NumericError, where="request 0, latent frame 1"):
        generate(net, layout, [request()], sampling, on_step=break_the_second_frame)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "square", "sigmoid", "arccos"])
@pytest.mark.parametrize("steps", [1, 40])
def test_every_code_is_drawn(schedule: str, steps: int, net: LumosTransformer, layout: TokenLayout) -> None:
    """Also with more steps than codes; a code left hidden would be far below 0."""
    (codes,) = generate(net, layout, [request(latent_frames=2)], SamplingConfig(steps=steps, schedule=schedule))
    assert codes.min() >= 0 and codes.max() < layout.codebook_size and codes.dtype == torch.int64


def test_the_most_confident_codes_stay(net: LumosTransformer, layout: TokenLayout) -> None:
    """Two greedy steps of one frame: what the first keeps are its most likely codes."""
    asked, config = request(latent_frames=1), SamplingConfig(steps=2, guidance=1.0, greedy=True)
    tokens: list[Tensor] = []
    net.model.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].clone()))
    states: list[Tensor] = []
    net.model.register_forward_hook(lambda *call: states.append(call[-1]))
    generate(net, layout, [asked], config)
    is_code = torch.tensor([layout.mask == token for token in tokens[1].tolist()])
    log_p = (states[1][is_code] @ net.lm_head.weight[layout.visual_offset :].T).log_softmax(-1).amax(-1)
    hidden_again = tokens[2][is_code] == layout.mask
    assert hidden_again.sum() == 11  # floor(16 cos(pi / 4))
    assert log_p[hidden_again].max() < log_p[~hidden_again].min()


def test_steps_are_counted_and_the_mode_comes_back(net: LumosTransformer, layout: TokenLayout) -> None:
    counted: list[tuple[int, int]] = []
    net.train()
    generate(net, layout, MIXED, QUICK, on_step=lambda done, total: counted.append((done, total)))
    assert counted == [(i, 9) for i in range(1, 10)]  # the longest makes 3 frames in 3 steps each
    assert net.training and all(p.grad is None for p in net.parameters())
    with pytest.raises(DataError):
        generate(net, layout, [request(text="x" * 100_000)], QUICK)
    assert net.training


@pytest.mark.parametrize("at_once", [1, 4096], ids=["one by one", "together"])
def test_looking_on_shows_every_step_and_changes_nothing(
    at_once: int, net: LumosTransformer, layout: TokenLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate_module, "TOKENS_AT_ONCE", at_once)
    unseen = generate(net, layout, MIXED, QUICK)
    seen: list[FrameInProgress] = []

    def look(state: FrameInProgress) -> None:
        seen.append(replace(state, codes=state.codes.clone()))
        state.codes.zero_()  # a copy

    made = generate(net, layout, MIXED, QUICK, on_frame=look)
    assert all(same(made, unseen))
    for number, (asked, codes) in enumerate(zip(MIXED, made, strict=True)):
        own = [state for state in seen if state.request == number]
        places = [(state.frame, state.step) for state in own]
        assert places == [(t, step) for t in range(asked.n_given, asked.latent_frames) for step in (1, 2, 3)]
        for state in own:
            shown = state.codes != HIDDEN
            assert state.done == bool(shown.all()) == (state.step == 3)
            assert shown.any() and state.codes[shown].min() >= 0 and state.codes[shown].max() < layout.codebook_size
            assert not state.done or torch.equal(state.codes, codes[state.frame])


def test_who_looks_on_may_end_the_work(net: LumosTransformer, layout: TokenLayout) -> None:
    net.train()

    def enough(state: FrameInProgress) -> None:
        raise InterruptedError(f"{state.frame}, {state.step}")

    with pytest.raises(InterruptedError, match="0, 1"):
        generate(net, layout, [request()], QUICK, on_frame=enough)
    assert net.training


def test_a_clip_beyond_the_context_is_refused_before_any_work(
    make_decoder: Callable[..., LumosTransformer], layout: TokenLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate_module, "TOKENS_AT_ONCE", 1)  # one after the other
    net = make_decoder(max_length=5 + 3 + 2 * 24)
    fits = request(latent_frames=2)
    assert len(generate(net, layout, [fits], QUICK)) == 1
    steps: list[int] = []
    with refused(DataError, where="request 1: 4 text ids, 2 x 4 x 4 codes", got="57 tokens", expected="at most 56"):
        generate(net, layout, [fits, replace(fits, text_ids=(1, 2, 3, 4))], QUICK, on_step=lambda *_: steps.append(1))
    with refused(DataError, where="text position 0"):
        generate(net, layout, [fits, replace(fits, text_ids=(layout.mask,))], QUICK, on_step=lambda *_: steps.append(1))
    assert not steps


def test_requests_that_cannot_be_met_are_refused() -> None:
    for name in "rows", "duration", "fps":
        with refused(ConfigError, where=f"request.{name}"):
            replace(request(), **{name: 0})
    for given in torch.zeros(3, 4, 4), torch.zeros(1, 4, 5), torch.zeros(0, 4, 4), torch.zeros(4, 4):
        with refused(DataError, where="request.given_codes"):
            replace(request(), given_codes=given)
