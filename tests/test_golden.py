"""Parity with the release, on an excerpt of its numbers and on all of them where they are at hand."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.cli import main
from experiments.verify_golden import max_error, off, verify_generation
from lumos_pl.checkpoints.huggingface import read_shape
from lumos_pl.layout import TokenLayout, lumos1_layout
from lumos_pl.loss.frame_loss import frame_loss_sums
from lumos_pl.loss.masked_cross_entropy import LossConfig, masked_cross_entropy
from lumos_pl.models.attention import attn_mask
from lumos_pl.models.mm_rope import rope_cos_sin
from lumos_pl.models.transformer import LumosTransformer, visual_logits
from tests.refusals import told

EXCERPT = json.loads((Path(__file__).parent / "golden_excerpt.json").read_text())
TOLERANCE = 2e-5

Content = dict[str, Any]

CASES = pytest.mark.parametrize("case", EXCERPT["cases"], ids=lambda case: case["name"])


def golden_weight(name: str, shape: torch.Size) -> torch.Tensor:
    """The formula of the golden checkpoint's weights."""
    if name.endswith("norm.weight") or "layernorm.weight" in name:
        scale, offset = 0.3, 1.0
    elif name.endswith("norm.bias"):
        scale, offset = 0.2, 0.0
    elif "embed_tokens" in name:
        scale, offset = 0.5, 0.0
    elif "lm_head" in name:
        scale, offset = 0.06, 0.0
    else:
        scale, offset = 1.5 / np.sqrt(shape[-1]), 0.0
    normal = np.random.RandomState((zlib.crc32(name.encode()) + 1) % 2**32).standard_normal(shape)
    return torch.from_numpy((offset + scale * normal).astype(np.float32)).bfloat16()


@pytest.fixture(scope="module")
def golden_layout() -> TokenLayout:
    return lumos1_layout(65_536 + EXCERPT["codebook_size"])


@pytest.fixture(scope="module")
def golden_model(golden_layout: TokenLayout, tmp_path_factory: pytest.TempPathFactory) -> LumosTransformer:
    folder = tmp_path_factory.mktemp("golden")
    (folder / "config.json").write_text(json.dumps(EXCERPT["config"]))
    model = LumosTransformer(read_shape(folder, golden_layout))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(golden_weight(name, parameter.shape))
    return model


@CASES
def test_positions_and_attention(
    case: dict[str, Any], golden_layout: TokenLayout, golden_model: LumosTransformer
) -> None:
    tokens = torch.tensor(case["tokens"])
    sequence = golden_layout.parse(tokens)
    spans = golden_layout.spans(sequence)
    assert torch.equal(golden_layout.build(sequence), tokens)
    assert golden_model.positions(spans).tolist() == case["positions"]
    attend = torch.arange(len(tokens)) < torch.tensor(case["attend_until"])[:, None]
    assert torch.equal(attn_mask(spans), attend)


@pytest.mark.parametrize("case", [c for c in EXCERPT["cases"] if "rope_rows" in c], ids=lambda case: case["name"])
def test_rotary_angles(case: dict[str, Any]) -> None:
    positions = torch.tensor(case["positions"])[case["rope_rows"]]
    cos, sin = rope_cos_sin(positions, kind="mm", head_dim=32, theta=10_000.0)
    torch.testing.assert_close(cos, torch.tensor(case["rope_cos"]), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(sin, torch.tensor(case["rope_sin"]), atol=TOLERANCE, rtol=0)


@CASES
@torch.no_grad()
def test_logits_and_losses(case: dict[str, Any], golden_layout: TokenLayout, golden_model: LumosTransformer) -> None:
    tokens, index = torch.tensor(case["tokens"]), torch.tensor(case["loss_positions"])
    spans = golden_layout.spans(golden_layout.parse(tokens))
    states = golden_model(torch.tensor(case["masked_tokens"]), [spans])[index]
    logits = golden_model.lm_head(states[:1], visual_logits)
    objective = partial(
        masked_cross_entropy, targets=tokens[index] - golden_layout.visual_offset, config=LossConfig(chunk_size=32)
    )
    loss, token_loss = golden_model.lm_head(states, objective)
    sums, counts = frame_loss_sums(token_loss, (index - spans.prefix) // spans.frame_length, spans.latent_frames)
    close = partial(torch.testing.assert_close, atol=TOLERANCE, rtol=0, check_dtype=False)
    close(logits[0, ::8], torch.tensor(case["first_logits_every8"]))
    close(token_loss, torch.tensor(case["token_loss"]))
    close(loss, torch.tensor(case["loss"]))
    close(sums / counts, torch.tensor(case["frame_loss"]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", EXCERPT["generation"], ids=lambda case: case["name"])
def test_generated_tokens(
    case: dict[str, Any], dtype: torch.dtype, golden_layout: TokenLayout, golden_model: LumosTransformer
) -> None:
    tokens = {name: torch.tensor(case[name]) for name in ("prompt", "generated")}
    golden_model.to(dtype)
    try:
        assert verify_generation(golden_model, golden_layout, case, tokens) == {"greedy_mismatch": 0}
        tokens["generated"][20] += 1
        assert verify_generation(golden_model, golden_layout, case, tokens) == {"greedy_mismatch": 1}
    finally:
        golden_model.float()


@pytest.mark.parametrize("bad", [{"tokens_wrong": 1}, {"loss_err": 3e-5}, {"loss_err": math.nan}])
def test_one_deviation_is_not_golden(bad: dict[str, int | float]) -> None:
    good = {"tokens_wrong": 0, "loss_err": 1e-6}
    assert off(good) == {}
    assert off(good | bad).keys() == bad.keys()


def test_a_nan_among_the_numbers_is_the_largest_error() -> None:
    assert max_error(torch.tensor([1.0, math.nan]), torch.ones(2)) == math.inf


def test_verify_golden_command(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-golden", str(shared / "golden" / "lumos1_tiny")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["positions_wrong"] == printed["attend_wrong"] == 0
    assert printed["greedy_mismatch"] == printed["greedy_mismatch_fp64"] == 0
    assert max(printed[key] for key in printed if "_err" in key) < TOLERANCE


def test_verify_golden_notices_a_wrong_number(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def damage(cases: Content, tensors: Content) -> None:
        cases["cases"][1]["loss"] += 1e-3

    golden(shared, tmp_path, damage)
    assert main(["verify-golden", str(tmp_path)]) != 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["loss_err"] > 9e-4
    _, file, compared = told(printed.err)
    assert file == str(tmp_path) and "loss_err 0.00" in compared and "token_loss" not in compared


def without(name: str) -> Callable[[Content], None]:
    return lambda content: content.pop(name)


def changed(**fields: Any) -> Callable[[Content], None]:
    return lambda content: content.update(fields)


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        (without("loss"), "cases[0].loss"),
        (changed(loss="1"), "cases[0].loss"),
        (changed(frame_loss_exact=[1.0]), "case0: frame_loss_exact"),  # which would be compared with all of them
        (changed(name="nobody"), "nobody: tokens"),
    ],
)
def test_damaged_cases_are_told_by_name(
    edit: Callable[[Content], None], where: str, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def damage(cases: Content, tensors: Content) -> None:
        edit(cases["cases"][0])

    assert main(["verify-golden", str(golden(shared, tmp_path, damage))]) == 3
    assert where in told(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("case0.tokens", lambda tensor: tensor[:-5]),
        ("case0.attend", lambda tensor: tensor[:1]),
        ("case0.visual_logits_every8", lambda tensor: tensor[:1]),
        ("case0.loss_positions", lambda tensor: tensor + 10**6),
        ("case0.masked_tokens", lambda tensor: tensor - 10**6),
        ("case0.token_loss", lambda tensor: tensor[:0]),
        ("gen_t2v.generated", lambda tensor: tensor[:-1].contiguous()),
        ("gen_t2v.prompt", None),
    ],
)
def test_damaged_tensors_are_told_by_name(
    name: str,
    edit: Callable[[torch.Tensor], torch.Tensor] | None,
    shared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def damage(cases: Content, tensors: Content) -> None:
        tensors |= {name: edit(tensors[name])} if edit else {}
        if edit is None:
            del tensors[name]

    assert main(["verify-golden", str(golden(shared, tmp_path, damage))]) == 3
    case = name.partition(".")[0]
    _, file, where, *_ = told(capsys.readouterr().err)
    assert file.endswith("cases.safetensors") and where.startswith(f"{case}: ")


def golden(shared: Path, folder: Path, damage: Callable[[Content, Content], None]) -> Path:
    """A folder of golden cases with other cases and tensors."""
    source = shared / "golden" / "lumos1_tiny"
    for name in "config.json", "model.safetensors":
        (folder / name).symlink_to(source / name)
    cases, tensors = json.loads((source / "cases.json").read_text()), load_file(source / "cases.safetensors")
    damage(cases, tensors)
    (folder / "cases.json").write_text(json.dumps(cases))
    save_file(tensors, folder / "cases.safetensors")
    return folder
