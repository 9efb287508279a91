from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from bench.gpu.steps import cudnn_allowed
from lumos_pl.errors import ConfigError
from lumos_pl.layout import TokenLayout, TokenSequence
from lumos_pl.models.attention import Attention, BlockCausalAttention, attend, attn_mask, token_ranges
from lumos_pl.models.attention_backend import (
    block_causal_attention,
    candidates,
    check_backend,
    fastest,
    has_flash_attn,
    measure_backends,
)
from lumos_pl.models.config import AttentionBackend
from lumos_pl.models.flex_attention import BLOCK, FlexAttention, block_mask
from lumos_pl.models.padded_attention import PaddedAttention, is_small
from lumos_pl.models.varlen_attention import VarlenAttention, varlen_calls
from lumos_pl.spans import SequenceSpans
from tests.fake_cuda import FakeCuda
from tests.reference.plain import may_attend, plain_attention
from tests.refusals import refused

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHAPES = [(3, 2, 3, 5), (1, 4, 2, 0), (2, 1, 1, None), (4, 2, 2, 12)]  # latent frames, rows, cols, text
RAGGED = [*SHAPES, (3, 2, 3, 9), (3, 2, 3, None)]  # three of one latent shape
LONG = [(3, 8, 9, 40), (1, 4, 2, 0), (2, 12, 10, 70)]  # frames begin and end anywhere in the blocks of a kernel

MakeSequence = Callable[..., TokenSequence]


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_staircase_is_what_the_rules_allow(
    shape: tuple[int, int, int, int | None], closed: bool, make_sequence: MakeSequence, layout: TokenLayout
) -> None:
    sequence = make_sequence(*shape)
    tokens = layout.build(sequence, closed=closed)
    assert torch.equal(attn_mask(layout.spans(sequence, closed=closed)), may_attend(tokens.tolist(), layout))


class Pack:
    """A ragged batch with queries, keys and values, and what plain loops make of them."""

    def __init__(
        self, sequences: Sequence[TokenSequence], layout: TokenLayout, *, closed: bool, head_dim: int = 8
    ) -> None:
        self.spans = [layout.spans(sequence, closed=closed) for sequence in sequences]
        length = sum(s.length for s in self.spans)
        draw = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.qkv = [draw(length, heads, head_dim, requires_grad=True) for heads in (4, 2, 2)]
        self.weight = draw(length, 4, head_dim)
        samples = zip(*(x.split([s.length for s in self.spans]) for x in self.qkv), strict=True)
        self.expected = torch.cat([
            plain_attention(*sample, may_attend(layout.build(sequence, closed=closed).tolist(), layout))
            for sequence, sample in zip(sequences, samples, strict=True)
        ])  # fmt: skip

    def check(
        self, attention: Attention, *, atol: float, device: torch.device = CPU, dtype: torch.dtype = torch.float64
    ) -> None:
        """Values and gradients are those of the plain loops."""
        qkv = [x.detach().to(device, dtype).requires_grad_() for x in self.qkv]
        out = attention(0, *qkv)
        self.check_values(out, atol=atol)
        gradients = torch.autograd.grad((out * self.weight.to(device, dtype)).sum(), qkv)
        expected = torch.autograd.grad((self.expected * self.weight).sum(), self.qkv)
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours.cpu().double(), theirs, atol=10 * atol, rtol=0)

    def check_values(self, out: Tensor, *, atol: float) -> None:
        torch.testing.assert_close(out.cpu().double(), self.expected, atol=atol, rtol=0)


def plain_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    most_q: int,
    most_k: int,
    causal: bool,
) -> Tensor:
    """What a kernel for ragged batches promises, a segment at a time, and what it asks for."""
    assert query_ends.dtype == key_ends.dtype == torch.int32 and len(query_ends) == len(key_ends)
    # The kernels go as far as they are told, and leave what lies behind as it was in memory.
    assert (most_q, most_k) == (max(2, query_ends.diff().max()), key_ends.diff().max())
    assert (query_ends[-1], key_ends[-1]) == (len(query), len(key))
    outputs = []
    for (q, q_end), (k, k_end) in zip(pairwise(query_ends.tolist()), pairwise(key_ends.tolist()), strict=True):
        if q < q_end:
            outputs.append(attend(query[q:q_end], key[k:k_end], value[k:k_end], causal=causal))
    return torch.cat(outputs)


@pytest.mark.parametrize(
    ("backend", "closed"), [("sdpa", True), ("sdpa", False), ("padded", False), ("varlen", True), ("varlen", False)]
)
def test_ragged_batch_equals_plain_loops_in_values_and_gradients(
    backend: str, closed: bool, make_sequence: MakeSequence, layout: TokenLayout
) -> None:
    pack = Pack([make_sequence(*shape) for shape in RAGGED], layout, closed=closed)
    attention: dict[str, Callable[[Sequence[SequenceSpans]], Attention]] = {
        "sdpa": BlockCausalAttention,
        "padded": PaddedAttention,
        "varlen": partial(VarlenAttention, device=CPU, kernel=plain_varlen),
    }
    pack.check(attention[backend](pack.spans), atol=1e-10)


def test_ragged_batches_take_as_many_calls_as_the_longest_staircase_has_steps() -> None:
    short, long = (
        SequenceSpans(prefix=3, latent_frames=2, rows=1, cols=1),
        SequenceSpans(prefix=9, latent_frames=5, rows=2, cols=2),
    )
    calls = varlen_calls([short, long, short, short])
    assert len(calls) == 1 + long.latent_frames
    assert sorted(block for call in calls for block in call.blocks) == list(range(1 + long.latent_frames + 3 * (1 + 2)))
    assert [call.causal for call in calls] == [True, False, False, False, False, False]
    assert calls[-1].keys == (short.length, short.length + long.length)  # no key of those that are done


def dense_kernel(query: Tensor, key: Tensor, value: Tensor, *rest: object) -> Tensor:
    """A kernel for ragged batches of one sample."""
    return attend(query, key, value, causal=bool(rest[-1]))


@pytest.mark.parametrize("attention", [BlockCausalAttention, partial(VarlenAttention, device=CPU, kernel=dense_kernel)])
def test_gradients_of_keys_are_rounded_once_and_no_slice_makes_one_of_full_size(
    attention: Callable[..., Attention], make_sequence: MakeSequence, layout: TokenLayout
) -> None:
    """Keys of the first frames, which many frames see: in bf16 their gradients are those of fp32, rounded."""
    spans = [layout.spans(make_sequence(12, 2, 2, 5))]
    exact = [
        torch.randn(spans[0].length, heads, 8, generator=torch.Generator().manual_seed(heads)).bfloat16()
        for heads in (4, 2, 2)
    ]
    gradients = {}
    for dtype in torch.bfloat16, torch.float32:
        q, k, v = (x.to(dtype).requires_grad_() for x in exact)
        out = attention(spans)(0, q, k, v)
        assert not backward_functions(out) & {"SliceBackward0", "SelectBackward0", "IndexBackward0"}
        gradients[dtype] = torch.autograd.grad(out.sum(), (k, v))[1]
    error = (gradients[torch.bfloat16].float() - gradients[torch.float32]).abs() / gradients[torch.float32].abs()
    assert error.median() < 2**-9  # half of bf16's step on average; a sum in bf16 is off by more


def backward_functions(out: Tensor) -> set[str]:
    """The names of all functions in the graph of a tensor."""
    seen, stack = set(), [out.grad_fn]
    while stack:
        function = stack.pop()
        if function is not None and function not in seen:
            seen.add(function)
            stack += [follower for follower, _ in function.next_functions]
    return {function.name() for function in seen}


def test_overlapping_ranges_share_one_gradient() -> None:
    x = torch.arange(4.0, dtype=torch.float64).requires_grad_()
    ranges = [(0, 2), (0, 4), (3, 4), (1, 1)]
    views = token_ranges(x, ranges)
    assert [view.tolist() for view in views] == [[0, 1], [0, 1, 2, 3], [3], []]
    (gradient,) = torch.autograd.grad(views[0].sum() + 2 * views[1].sum(), x)  # the third is not used
    assert gradient.tolist() == [3, 3, 2, 2]
    assert torch.autograd.gradcheck(lambda x: torch.cat(token_ranges(x, ranges)), x)


# -- flex ------------------------------------------------------------------------------------------


def written_out(mask: BlockMask, length: int) -> Tensor:
    """What a kernel makes of a block mask: full blocks whole, partial ones token by token, [S, S]."""
    zero = torch.tensor(0)
    token = torch.arange(length)
    allowed = torch.zeros(length, length, dtype=torch.bool)
    for number, columns, is_full in (
        (mask.kv_num_blocks, mask.kv_indices, False),
        (mask.full_kv_num_blocks, mask.full_kv_indices, True),
    ):
        for row in range(math.ceil(length / BLOCK)):
            rows = token[row * BLOCK : (row + 1) * BLOCK, None]
            for column in columns[0, 0, row, : number[0, 0, row]].tolist():
                keys = token[None, column * BLOCK : (column + 1) * BLOCK]
                block = allowed[rows, keys]
                assert not block.any()  # no block is listed twice
                allowed[rows, keys] = True if is_full else mask.mask_mod(zero, zero, rows, keys)
                assert allowed[rows, keys].any()  # nor for nothing
    return allowed


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("shapes", [RAGGED, LONG, [(1, 7, 16, 2)], [(2, 7, 16, 121)]])  # the last two fill blocks
def test_block_mask_is_the_staircases(
    shapes: Sequence[tuple[int, int, int, int | None]],
    closed: bool,
    make_sequence: MakeSequence,
    layout: TokenLayout,
) -> None:
    spans = [layout.spans(make_sequence(*shape), closed=closed) for shape in shapes]
    length = sum(s.length for s in spans)
    mask = block_mask(spans, CPU)
    assert torch.equal(written_out(mask, length), torch.block_diag(*map(attn_mask, spans)).bool())
    torchs = create_block_mask(mask.mask_mod, None, None, length, length, device="cpu", BLOCK_SIZE=BLOCK)
    for name in "kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks":
        assert torch.equal(getattr(mask, name), getattr(torchs, name)), name


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_plain_loops_in_values(make_sequence: MakeSequence, layout: TokenLayout) -> None:
    pack = Pack([make_sequence(*shape) for shape in LONG], layout, closed=True)
    out = FlexAttention(pack.spans, CPU)(0, *(x.detach() for x in pack.qkv))
    pack.check_values(out, atol=1e-10)


# -- on a GPU --------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("backend", ["sdpa", "varlen", "flex", "flash"])
def test_backends_on_a_gpu_equal_plain_loops_in_values_and_gradients(
    backend: AttentionBackend, dtype: torch.dtype, make_sequence: MakeSequence, layout: TokenLayout
) -> None:
    if backend in ("flash", "varlen"):
        pytest.importorskip("flash_attn" if backend == "flash" else "torch.nn.attention.varlen")
        if dtype == torch.float32:
            pytest.skip("kernels for ragged batches have no fp32")
    pack = Pack([make_sequence(*shape) for shape in [*LONG, *RAGGED]], layout, closed=True, head_dim=32)
    attention = block_causal_attention(pack.spans, CUDA, dtype, backend)
    pack.check(attention, atol=1e-5 if dtype == torch.float32 else 3e-2, device=CUDA, dtype=dtype)


# -- the choice ------------------------------------------------------------------------------------


def test_only_small_open_samples_are_padded() -> None:
    small = SequenceSpans(prefix=20, latent_frames=5, rows=8, cols=8)
    large = replace(small, rows=80)
    assert is_small(small) and not is_small(replace(small, closing=2)) and not is_small(large)
    assert not is_small(replace(small, prefix=2000))
    assert isinstance(block_causal_attention([small], CPU, torch.float32), PaddedAttention)
    assert isinstance(block_causal_attention([small, large], CPU, torch.float32), BlockCausalAttention)
    assert isinstance(block_causal_attention([small], CPU, torch.float32, "sdpa"), BlockCausalAttention)
    with refused(ConfigError, where="model.attention"):
        block_causal_attention([small, large], CPU, torch.float32, "padded")


def test_what_may_be_taken_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "lumos_pl.models.attention_backend"
    spans = [SequenceSpans(prefix=3, latent_frames=1, rows=1, cols=1)]
    for has_flash, has_varlen, expected in (
        (False, False, ["sdpa"]),
        (True, False, ["flash", "sdpa"]),
        (True, True, ["flash", "sdpa", "varlen"]),
        (False, True, ["sdpa", "varlen"]),
    ):
        monkeypatch.setattr(f"{module}.has_flash_attn", lambda there=has_flash: there)
        monkeypatch.setattr(f"{module}.varlen_attention", lambda there=has_varlen: there or None)
        assert candidates(spans, CUDA, torch.bfloat16) == expected
        assert candidates(spans, CUDA, torch.bfloat16, compiled=True) == [*expected, "flex"]
        assert candidates(spans, CUDA, torch.float32) == ["sdpa"]
    assert isinstance(block_causal_attention(spans, CUDA, torch.bfloat16), BlockCausalAttention)
    for backend in "varlen", "flash":
        monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=None))
        with refused(ConfigError, where="model.attention", got=f"{backend} in torch.float32"):
            block_causal_attention(spans, CUDA, torch.float32, backend)


def test_the_fastest_is_taken_if_it_is_clearly_faster_and_what_fails_is_left_out() -> None:
    times: dict[AttentionBackend, float] = {"flash": 1.0, "sdpa": 0.97, "varlen": 2.0}

    def time_of(backend: AttentionBackend) -> float:
        if backend not in times:
            raise RuntimeError("no kernel image is available")
        return times[backend]

    measured = measure_backends(["flash", "sdpa", "varlen", "flex"], time_of)
    assert measured == times
    assert fastest(measured) == "flash"
    assert fastest(times | {"sdpa": 0.9}) == "sdpa"
    assert fastest({}) == "sdpa"


@pytest.mark.parametrize(
    ("backend", "device", "got"),
    [
        ("flex", CPU, "flex on cpu"),
        ("flash", CPU, "flash on cpu"),
        ("varlen", CPU, "varlen on cpu"),
        ("padded", CUDA, "padded on cuda"),
    ],
)
def test_a_backend_that_cannot_run_there_is_refused(backend: AttentionBackend, device: torch.device, got: str) -> None:
    with refused(ConfigError, where="model.attention", got=got):
        check_backend(backend, device)


def test_flash_without_the_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with refused(ConfigError, where="model.attention"):
        check_backend("flash", CUDA)


def test_a_torch_without_ragged_attention_says_which_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lumos_pl.models.varlen_attention.varlen_attention", lambda: None)
    with refused(ConfigError, where="model.attention"):
        check_backend("varlen", CUDA)


def test_a_flash_attn_that_cannot_be_imported_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, expected in (None, False), (SimpleNamespace(flash_attn_varlen_func=None), True):
        has_flash_attn.cache_clear()
        monkeypatch.setitem(sys.modules, "flash_attn", package)
        assert has_flash_attn() is expected
    has_flash_attn.cache_clear()


@pytest.mark.parametrize("allowed", [False, True])
def test_on_a_gpu_torch_is_offered_no_kernel_that_prepares_itself_for_every_length(
    allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But where the benchmark asks for it."""
    offered: list[SDPBackend] = []
    monkeypatch.setattr(
        "lumos_pl.models.attention.sdpa_kernel", lambda kernels: offered.extend(kernels) or nullcontext()
    )
    with FakeCuda() as gpu, cudnn_allowed(allowed):
        q, k = (torch.ones(3, heads, 8, device=gpu.device, dtype=torch.bfloat16) for heads in (4, 2))
        attend(q, k, k)
    assert (SDPBackend.CUDNN_ATTENTION in offered) is allowed
    assert SDPBackend.FLASH_ATTENTION in offered
