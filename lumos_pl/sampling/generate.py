"""The frame loop, over a packed batch of clips with any texts and sizes.

    text, given frames -> cache
    for each frame:
        every code MASK
        for each step:  forward, guidance, draw the remaining codes, hide the least confident again
       forward with part of the frame MASK -> cache          (partial-context masking)

Both guidance branches of all clips share one forward pass. Source: arXiv:2507.08801.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lumos_pl.errors import DataError, NumericError
from lumos_pl.layout import TokenLayout, TokenSequence
from lumos_pl.models.attention import AttentionCall
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.sampling.config import SamplingConfig
from lumos_pl.sampling.draw import LogitsBuffers
from lumos_pl.sampling.kv_cache import CachedAttention
from lumos_pl.sampling.unfinished_clip import HIDDEN, Branch, UnfinishedClip
from lumos_pl.settings.plain import check_function, check_instance, check_list
from lumos_pl.settings.ranges import at_least, check_ranges
from lumos_pl.spans import SequenceSpans

TOKENS_AT_ONCE = 4096  # of one guidance branch, in one forward pass

OnStep = Callable[[int, int], None]  # called with (done, total) after every refinement step


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameInProgress:
    """How far a latent frame has come, for whoever watches.

    Args:
        request: index of its request.
        frame: index of the latent frame in the clip, from 0, counting given ones.
        step: refinement steps done so far, from 1.
        codes: the current codes, HIDDEN where one is still to be drawn: [H, W] int64, a copy on the CPU.
    """

    request: int
    frame: int
    step: int
    codes: Tensor

    @property
    def done(self) -> bool:
        return not bool((self.codes == HIDDEN).any())


OnFrame = Callable[[FrameInProgress], None]  # called with every frame after each of its refinement steps


@dataclass(frozen=True, kw_only=True, eq=False)
class GenerationRequest:
    """One image or clip to make.

    Args:
        text_ids: the text without BOS and SEP; None for no text.
        latent_frames, rows, cols: latent shape T, H, W, given frames included; an image is one frame.
        duration: in whole seconds.
        fps: frames per second.
        seed: for every draw; the same request with the same seed gives the same codes.
        given_codes: codes of the leading latent frames to keep, [T0, H, W] with T0 < T: one for I2V, more for
            continuation.
    """

    text_ids: tuple[int, ...] | None
    latent_frames: int
    rows: int
    cols: int
    duration: int
    fps: int
    seed: int
    given_codes: Tensor | None = None

    def __post_init__(self) -> None:
        names = ("latent_frames", "rows", "cols", "duration", "fps")
        check_ranges("request", self, **dict.fromkeys(names, at_least(1)))
        shape = (self.n_given, self.rows, self.cols)
        if self.given_codes is not None and (self.given_codes.shape != shape or not 0 < shape[0] < self.latent_frames):
            raise DataError(
                "given frames do not fit the clip",
                where="request.given_codes",
                got=list(self.given_codes.shape),
                expected=f"[T, {self.rows}, {self.cols}] with 0 < T < {self.latent_frames}",
            )

    @classmethod
    def continuing(cls, start: TokenSequence, *, n_given: int, latent_frames: int, seed: int) -> Self:
        """A request to continue a sequence: keep its first `n_given` latent frames, make the rest of `latent_frames`.

        Args:
            start: gives the text, size, duration and frame rate; it may have codes for fewer latent frames than the
                clip, [T0, H, W] with T0 >= `n_given`.
        """
        rows, cols = start.codes.shape[1:]
        return cls(
            text_ids=start.text_ids,
            latent_frames=latent_frames,
            rows=rows,
            cols=cols,
            duration=start.duration,
            fps=start.fps,
            seed=seed,
            given_codes=start.codes[:n_given] if n_given else None,
        )

    @property
    def n_given(self) -> int:
        return 0 if self.given_codes is None else len(self.given_codes)

    @property
    def sequence(self) -> TokenSequence:
        """What the request says, with code 0 wherever one is still to be drawn."""
        codes = torch.zeros(self.latent_frames, self.rows, self.cols, dtype=torch.int64)
        if self.given_codes is not None:
            codes[: self.n_given] = self.given_codes
        return TokenSequence(text_ids=self.text_ids, codes=codes, duration=self.duration, fps=self.fps)


@torch.no_grad()
def generate(
    net: LumosTransformer,
    layout: TokenLayout,
    requests: Sequence[GenerationRequest],
    config: SamplingConfig,
    *,
    on_step: OnStep | None = None,
    on_frame: OnFrame | None = None,
) -> list[Tensor]:
    """Codes of every request, [T, H, W] int64 on the CPU, given frames included.

    Runs on the device of `net`, in its precision or that of the surrounding autocast. The result for a request does
    not depend on the others.

    Args:
        on_step: called with (done, total) after every refinement step.
        on_frame: called with every frame after each of its steps; it gets copies, so it cannot change the result.
            An exception raised by either one ends the work.
    Raises:
        DataError: a sequence longer than the model's context, or an id, code or number outside the layout.
        NumericError: the decoder's output for a frame is not finite.
    """
    check_instance(config, SamplingConfig, "sampling")
    check_function(on_step, "on_step")
    check_function(on_frame, "on_frame")
    requests = check_list(requests, "requests")
    check_requests(net, layout, requests)  # before any work
    batches = list(_batches(requests))
    total = config.steps * sum(max(r.latent_frames - r.n_given for r in batch) for batch in batches)
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if on_step is not None:
            on_step(done, total)

    was_training = net.training
    net.eval()
    try:
        made: list[Tensor] = []
        for batch in batches:
            made += _generate_batch(net, layout, batch, config, count, on_frame, first=len(made))
        return made
    finally:
        net.train(was_training)


def check_requests(net: LumosTransformer, layout: TokenLayout, requests: Sequence[GenerationRequest]) -> None:
    """Raise what `generate` would raise for these requests."""
    for number, request in enumerate(requests):
        check_instance(request, GenerationRequest, f"requests[{number}]")
        _check_length(request, number, layout, net.config.max_length)
        layout.build(request.sequence)


def _generate_batch(
    net: LumosTransformer,
    layout: TokenLayout,
    requests: Sequence[GenerationRequest],
    config: SamplingConfig,
    on_step: Callable[[], None],
    on_frame: OnFrame | None,
    *,
    first: int,
) -> list[Tensor]:
    buffers = LogitsBuffers()
    clips = [
        UnfinishedClip(net, layout, r.sequence, n_given=r.n_given, seed=r.seed, config=config, buffers=buffers)
        for r in requests
    ]
    starts = [
        (b, b.calls[: 1 + c.n_given], torch.cat([b.prefix, c.given_context()])) for c in clips for b in c.branches
    ]
    _forward(net, starts)
    for i in range(max(clip.latent_frames - clip.n_given for clip in clips)):
        active = [clip for clip in clips if clip.n_given + i < clip.latent_frames]
        for clip in active:
            clip.begin(clip.n_given + i)
        for step in range(config.steps):
            drawing = [clip for clip in active if len(clip.remaining)]  # with more steps than codes, some end early
            states = iter(_forward_frame(net, drawing, [clip.block for clip in drawing]))
            for clip in drawing:
                clip.refine(step, [next(states) for _ in clip.branches])
            if on_frame is not None:
                for number, clip in enumerate(clips, first):
                    if clip in drawing:
                        codes = clip.frame_codes()
                        on_frame(FrameInProgress(request=number, frame=clip.frame, step=step + 1, codes=codes))
            on_step()
        going_on = [clip for clip in active if clip.frame + 1 < clip.latent_frames]
        _forward_frame(net, going_on, [clip.frame_context() for clip in going_on])
    for number, clip in enumerate(clips, first):  # only at the end: checking every frame would make the GPU wait
        if (frame := clip.first_not_finite()) is not None:
            raise NumericError(
                "the decoder's logits are not finite",
                where=f"request {number}, latent frame {frame}",
                fix="weights or guidance are too large: take an earlier checkpoint, or less guidance",
            )
    return [clip.codes for clip in clips]


def _forward_frame(
    net: LumosTransformer, clips: Sequence[UnfinishedClip], tokens: Sequence[Tensor]
) -> Sequence[Tensor]:
    """The states of each clip's current frame in every branch, clip by clip, [frame_length, D] each."""
    pairs = zip(clips, tokens, strict=True)
    return _forward(net, [(b, b.calls[1 + clip.frame : 2 + clip.frame], t) for clip, t in pairs for b in clip.branches])


def _forward(net: LumosTransformer, parts: Sequence[tuple[Branch, list[AttentionCall], Tensor]]) -> Sequence[Tensor]:
    """One packed pass over parts of branches, writing their keys and values to the caches.

    Args:
        parts: a branch, the steps of its staircase to compute, and the tokens of these steps.
    Returns:
        the states of each part's tokens.
    """
    if not parts:
        return []
    branches, calls, tokens = zip(*parts, strict=True)
    positions = [b.positions[c[0].start : c[-1].end] for b, c in zip(branches, calls, strict=True)]
    attention = CachedAttention([branch.cache for branch in branches], calls)
    states: Tensor = net.model(torch.cat(tokens), torch.cat(positions), attention)
    of_parts: tuple[Tensor, ...] = states.split(attention.lengths)
    return of_parts


def _batches(requests: Sequence[GenerationRequest]) -> Iterator[list[GenerationRequest]]:
    """Requests in order, as many at once as fit one pass of `TOKENS_AT_ONCE`, but at least one."""
    batch: list[GenerationRequest] = []
    n_tokens = 0
    for request in requests:
        size = SequenceSpans(0, 1, request.rows, request.cols).frame_length
        if batch and n_tokens + size > TOKENS_AT_ONCE:
            yield batch
            batch, n_tokens = [], 0
        batch.append(request)
        n_tokens += size
    if batch:
        yield batch


def _check_length(request: GenerationRequest, number: int, layout: TokenLayout, limit: int) -> None:
    n_text = None if request.text_ids is None else len(request.text_ids)
    shape = (request.latent_frames, request.rows, request.cols)
    length = SequenceSpans(layout.prefix_length(n_text), *shape).length
    if length > limit:
        raise DataError(
            "clip does not fit the model's context",
            where=f"request {number}: {n_text or 0} text ids, {' x '.join(map(str, shape))} codes",
            got=f"{length} tokens",
            expected=f"at most {limit}",
            fix="ask for fewer frames, a smaller size or a shorter prompt",
        )
