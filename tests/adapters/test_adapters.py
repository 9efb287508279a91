"""Adapters: the same decoder at first, the same numbers unmerged, merged and by PEFT alone; files of strangers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lumos_pl.adapters.config import AdapterConfig, adapter_shapes, targeted
from lumos_pl.adapters.fused_lora import dense
from lumos_pl.adapters.stored import CONFIG, OWN, WEIGHTS, write_adapter
from lumos_pl.adapters.training import (
    adapt,
    adapter_parameters,
    decoder_parameters,
    init_adapter,
    pack_frozen,
    whole_adapter,
)
from lumos_pl.checkpoints.conversion import export_released, merge_adapters
from lumos_pl.checkpoints.decoder import load_decoder, open_decoder
from lumos_pl.errors import CheckpointError, ConfigError, LumosError
from lumos_pl.layout import LayoutConfig
from lumos_pl.loss.masked_cross_entropy import LossConfig, masked_cross_entropy
from lumos_pl.models.config import ComputeConfig
from lumos_pl.models.flops import forward_flops, training_flops
from lumos_pl.models.parameters import adapter_count
from lumos_pl.models.transformer import LumosTransformer, visual_logits
from lumos_pl.module import LumosModule
from lumos_pl.pipeline import LumosPipeline
from lumos_pl.spans import SequenceSpans
from tests.models.counted_flops import counted
from tests.refusals import refused
from tests.tiny_checkpoint import write_checkpoint

SPANS = [SequenceSpans(5, 2, 2, 3)]
KINDS = {
    "lora": AdapterConfig(kind="lora", rank=3, alpha=6.0),
    "dora": AdapterConfig(kind="dora", rank=2, targets=["q_proj", "*.layers.1.mlp.*"]),
    "words": AdapterConfig(kind="lora", rank=2, targets=["o_proj"], words=[200, 7]),
    "codes": AdapterConfig(kind="lora", rank=2, targets=["o_proj"], words=[7], codes=[5, 0]),
}


@torch.no_grad()
def logits(net: LumosTransformer) -> Tensor:
    tokens = torch.randint(0, net.config.vocab_size, (SPANS[0].length,), generator=torch.Generator().manual_seed(3))
    tokens[:4] = torch.tensor([7, 8, 200, net.config.visual_offset + 5])
    result: Tensor = net.lm_head(net.eval()(tokens, SPANS), visual_logits)
    return result


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base") / "base.ckpt")


def adapted(base: Path, config: AdapterConfig) -> LumosTransformer:
    stored = open_decoder(base)
    with torch.device("meta"):
        net = LumosTransformer(stored.model)
        adapt(net, config)
    net.to_empty(device="cpu")
    stored.copy_into(net)
    init_adapter(net, seed=1)
    return net


@torch.no_grad()
def changed(net: LumosTransformer) -> LumosTransformer:
    """The same with other numbers in its adapter, as a training leaves it."""
    generator = torch.Generator().manual_seed(5)
    for _, parameter in adapter_parameters(net):
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return net


@pytest.fixture(scope="module", params=list(KINDS))
def trained(base: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An adapter's folder beside the decoder that it was written from."""
    config = KINDS[request.param]
    net = changed(adapted(base, config))
    folder = saved(tmp_path_factory.mktemp("adapter") / "adapter", base, config, net)
    return {"kind": request.param, "net": net, "folder": folder, "base": base}


def saved(folder: Path, base: Path, config: AdapterConfig, net: LumosTransformer) -> Path:
    """The adapter of a decoder, written into a folder."""
    named = replace(config, targets=targeted(config, dict(decoder_parameters(net))))
    of_base: Any = {"named": str(base), "weights": open_decoder(base).weights_sha256()}
    write_adapter(folder, named, whole_adapter(net), visual_offset=net.config.visual_offset, base=of_base, step=7)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_is_the_base_at_first_and_alone_is_trained(base: Path, kind: str) -> None:
    net = adapted(base, KINDS[kind])
    assert torch.equal(logits(net), logits(load_decoder(base).net))
    shapes = {name: tuple(parameter.shape) for name, parameter in decoder_parameters(net)}
    expected = adapter_shapes(KINDS[kind], shapes, net.config.visual_offset)
    got = [(name, tuple(parameter.shape)) for name, parameter in adapter_parameters(net)]
    assert got == list(expected.items()), "in the order in which an optimizer numbers them"
    assert {name for name, parameter in net.named_parameters() if parameter.requires_grad} == expected.keys()
    assert net.state_dict().keys() == expected.keys()
    assert adapter_count(net.config, KINDS[kind]) == sum(parameter.numel() for _, parameter in adapter_parameters(net))


def test_no_gradient_of_a_frozen_matrix_is_computed(base: Path) -> None:
    net = adapted(base, KINDS["lora"])
    tokens = torch.zeros(SPANS[0].length, dtype=torch.int64)

    def step() -> None:
        objective = partial(masked_cross_entropy, targets=torch.zeros(4, dtype=torch.int64), config=LossConfig())
        net.lm_head(net(tokens, SPANS)[-4:], objective)[0].backward()

    done = counted(step)
    n_adapter = adapter_count(net.config, KINDS["lora"])
    planned = training_flops(forward_flops(net.config, SPANS, 4), n_tokens=len(tokens), n_adapter=n_adapter)
    whole = training_flops(forward_flops(net.config, SPANS, 4), n_tokens=len(tokens))
    assert done < planned.total * 1.02, "the first layer's inputs need no gradient either"
    assert done < 0.85 * whole.total
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("n_tokens", [3, 300])  # fewer than inputs, and more
def test_a_layer_in_training_is_the_sum_of_both_products(base: Path, n_tokens: int) -> None:
    layer = changed(adapted(base, KINDS["lora"])).get_submodule("model.layers.0.mlp.up_proj")
    w, a, b = (layer.get_parameter(f"{part}.weight") for part in ("base_layer", "lora_A.default", "lora_B.default"))
    x = torch.randn(n_tokens, w.shape[1], generator=torch.Generator().manual_seed(1), requires_grad=True)
    wanted = torch.randn(n_tokens, w.shape[0], generator=torch.Generator().manual_seed(2))
    expected = x @ w.T + 2 * (x @ a.T) @ b.T  # alpha / rank
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
    computed, exact = (torch.autograd.grad((y * wanted).sum(), (x, a, b)) for y in (layer(x), expected))
    for one, other in zip(computed, exact, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


def test_rows_of_codes_have_the_gradients_of_the_whole_decoder(base: Path) -> None:
    config = KINDS["codes"]
    nets = [adapted(base, config), load_decoder(base).net.requires_grad_()]
    offset = nets[0].config.visual_offset
    tokens = offset + torch.tensor([5, 5, 0, 9]).repeat(SPANS[0].length)[: SPANS[0].length]
    objective = partial(masked_cross_entropy, targets=torch.tensor([5, 3, 0, 9]), config=LossConfig())
    for net in nets:
        net.lm_head(net(tokens, SPANS)[-4:], objective)[0].backward()
    for module, ids in config.rows(offset).items():
        rows = nets[0].get_parameter(f"{module}.trainable_tokens_delta.default.weight").grad
        whole = nets[1].get_parameter(f"{module}.weight").grad
        assert rows is not None and whole is not None
        torch.testing.assert_close(rows, whole[ids])
        assert rows[-2:].abs().amax(1).min() > 0
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in nets[0].parameters())


@pytest.mark.parametrize(("frozen", "bits", "off"), [("int8", 8, 0.02), ("nf4", 4, 0.2)])
def test_beside_matrices_of_few_bits_it_learns_as_beside_what_these_say(
    base: Path, frozen: Literal["int8", "nf4"], bits: int, off: float
) -> None:
    pytest.importorskip("torchao")
    config = replace(KINDS["lora"], frozen=frozen)
    packed, rounded = (changed(adapted(base, config)) for _ in range(2))
    pack_frozen(packed, config)
    n_numbers = n_bytes = 0
    for name, matrix in rounded.named_parameters():
        if name.endswith("_proj.base_layer.weight"):
            few = packed.get_parameter(name)
            n_numbers += matrix.numel()
            n_bytes += sum(getattr(few, part).nbytes for part in few.__tensor_flatten__()[0] if "data" in part)
            before = matrix.clone()
            with torch.no_grad():
                matrix.copy_(dense(few, torch.float32))
            assert 0 < (matrix - before).norm() < off * before.norm()
    assert n_bytes == bits / 8 * n_numbers
    torch.testing.assert_close(logits(packed), logits(rounded), atol=1e-4, rtol=1e-4)
    objective = partial(masked_cross_entropy, targets=torch.tensor([5, 3, 0, 9]), config=LossConfig())
    for net in packed, rounded:
        net.lm_head(net(torch.arange(SPANS[0].length) + 400, SPANS)[-4:], objective)[0].backward()
    for one, other in zip(*map(adapter_parameters, (packed, rounded)), strict=True):
        torch.testing.assert_close(one[1].grad, other[1].grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("recomputed", ["selective", "full"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_recomputed_it_learns_the_same(base: Path, kind: str, recomputed: Any, mixed: bool) -> None:
    objective = partial(masked_cross_entropy, targets=torch.tensor([5, 3, 0, 9]), config=LossConfig())
    nets = [changed(adapted(base, KINDS[kind])) for _ in range(2)]
    nets[1].compute_as(ComputeConfig(activation_checkpointing=recomputed))
    for net in nets:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            net.lm_head(net(torch.arange(SPANS[0].length) + 400, SPANS)[-4:], objective)[0].backward()
    for one, other in zip(*map(adapter_parameters, nets), strict=True):
        torch.testing.assert_close(one[1].grad, other[1].grad, atol=0, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_compiled_it_learns_the_same(base: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # all but the kernels
    objective = partial(masked_cross_entropy, targets=torch.tensor([5, 3, 0, 9]), config=LossConfig())
    nets = [changed(adapted(base, KINDS[kind])) for _ in range(2)]
    nets[1].compute_as(ComputeConfig(compile=True))
    for net in nets:
        net.lm_head(net(torch.arange(SPANS[0].length) + 400, SPANS)[-4:], objective)[0].backward()
    for one, other in zip(*map(adapter_parameters, nets), strict=True):
        torch.testing.assert_close(one[1].grad, other[1].grad, atol=1e-5, rtol=1e-4)


def test_merged_unmerged_and_in_peft_alone_it_computes_the_same(trained: dict[str, Any]) -> None:
    from peft import PeftModel

    expected, base = logits(trained["net"]), load_decoder(trained["base"]).net
    assert (expected - logits(base)).abs().max() > 0.01
    merged = load_decoder(trained["base"], adapters=[(trained["folder"], 1.0)]).net
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=0)
    alone = PeftModel.from_pretrained(base, str(trained["folder"]))  # type: ignore[arg-type]
    computed = logits(alone.base_model.model)  # of all of the vocabulary, where it has rows of the head
    assert torch.equal(computed[:, -expected.shape[1] :], expected)


@pytest.mark.parametrize(
    "chosen",
    [
        {"target_modules": ["q_proj"], "use_rslora": True},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": r".*_proj", "exclude_modules": ["k_proj"], "use_dora": True},
        {"target_modules": ["up_proj"], "init_lora_weights": "gaussian", "lora_dropout": 0.1},
    ],
)
def test_what_others_chose_in_peft_is_taken(base: Path, tmp_path: Path, chosen: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    net = get_peft_model(load_decoder(base).net, LoraConfig(r=4, lora_alpha=3, **chosen))  # type: ignore[arg-type]
    changed(net)  # type: ignore[arg-type]
    net.save_pretrained(str(tmp_path))
    expected = logits(net.base_model.model)
    assert (expected - logits(load_decoder(base).net)).abs().max() > 0.01
    merged = logits(load_decoder(base, adapters=[(tmp_path, 1.0)]).net)
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=0)


def test_one_checkpoint_and_the_released_format_hold_what_was_sampled(trained: dict[str, Any], tmp_path: Path) -> None:
    adapters = [(trained["folder"], 1.0)]
    expected = logits(load_decoder(trained["base"], adapters=adapters).net)
    merge_adapters(trained["base"], tmp_path / "one.ckpt", adapters=adapters)
    assert torch.equal(logits(load_decoder(tmp_path / "one.ckpt").net), expected)
    export_released(tmp_path / "one.ckpt", tmp_path / "released")
    assert torch.equal(logits(load_decoder(tmp_path / "released").net), expected)
    with refused(ConfigError, where="--adapter"):
        merge_adapters(trained["base"], tmp_path / "two.ckpt")
    too_much, file = [(trained["folder"], 1e9)], trained["base"].resolve().name
    with refused(CheckpointError, file=file):  # what would be infinite
        merge_adapters(trained["base"], tmp_path / "three.ckpt", adapters=too_much, dtype=torch.float16)
    assert not (tmp_path / "three.ckpt").exists()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["lora", "codes"])
def test_clips_are_made_beside_a_base_in_16_bits(
    base: Path, tmp_path: Path, kind: str, dtype: torch.dtype, precision: Any
) -> None:
    export_released(base, tmp_path / "short", dtype=dtype)
    net = changed(adapted(tmp_path / "short", KINDS[kind]))
    folder = saved(tmp_path / "adapter", tmp_path / "short", KINDS[kind], net)
    lumos = LumosPipeline.load(tmp_path / "short", adapters=[folder], device="cpu", precision=precision)
    (clip,) = lumos.generate(["a dog"])
    assert len(clip.frames) == 9


@pytest.mark.parametrize("kind", KINDS)
def test_a_sum_that_is_not_finite_is_refused_before_anything_is_made_of_it(
    base: Path, tmp_path: Path, kind: str
) -> None:
    net = changed(adapted(base, KINDS[kind]))
    with torch.no_grad():
        for _, parameter in adapter_parameters(net):
            parameter *= 1e30
    large = saved(tmp_path / "adapter", base, KINDS[kind], net)
    for use in (
        lambda: merge_adapters(base, tmp_path / "one.ckpt", adapters=[(large, 1.0)]),
        lambda: load_decoder(base, adapters=[(large, 1.0)]),
    ):
        with refused(CheckpointError, file=large):
            use()
    assert not (tmp_path / "one.ckpt").exists()


def test_several_add_up_with_their_weights(trained: dict[str, Any]) -> None:
    folder, base = trained["folder"], trained["base"]
    whole = load_decoder(base, adapters=[(folder, 1.0)])
    halves = load_decoder(base, adapters=[(folder, 0.25), (folder, 0.75)])
    torch.testing.assert_close(logits(halves.net), logits(whole.net), atol=1e-5, rtol=0)
    none = LumosPipeline.load(base, adapters=[(folder, 0)], device="cpu")
    assert torch.equal(logits(none.net), logits(load_decoder(base).net))
    assert len({whole.digest, halves.digest, load_decoder(base).digest}) == 3


def test_several_come_to_the_same_in_any_order(trained: dict[str, Any], tmp_path: Path) -> None:
    base, one = trained["base"], (trained["folder"], 0.7)
    other = (written(tmp_path, base, open_decoder(base).weights_sha256()), 0.1)
    nets = [logits(load_decoder(base, adapters=order).net) for order in ([one, other], [other, one])]
    torch.testing.assert_close(nets[0], nets[1], atol=1e-5, rtol=0)
    assert (nets[0] - logits(load_decoder(base, adapters=[one]).net)).abs().max() > 0.01


def test_is_refused_on_another_base(trained: dict[str, Any], tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other.ckpt", seed=9)
    with refused(CheckpointError, file=str(trained["folder"]), where="base") as caught:
        load_decoder(other, adapters=[(trained["folder"], 1.0)])
    assert str(other) in str(caught.value.got) and str(trained["base"]) in str(caught.value.expected)


def _in_config(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(content | changes))

    return damage


def _in_weights(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / OWN).unlink()
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)

    return damage


def _file(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def _weights_of(content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / OWN).unlink()
        (folder / WEIGHTS).write_bytes(content)

    return damage


def _first(tensors: dict[str, Tensor]) -> str:
    return min(tensors)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "another kind": (_in_config(peft_type="LOHA"), "peft_type"),
    "a class to import": (_in_config(auto_mapping=None, megatron_config=None, layer_replication=[[0, 1]]), "layer_rep"),
    "words of another matrix": (_in_config(trainable_token_indices={"q_proj": [1]}), "trainable_token_indices"),
    "a word of the head": (_in_config(trainable_token_indices={"lm_head": [1]}), "rows in another order"),
    "a code that is none": (
        _in_config(trainable_token_indices={"embed_tokens": [1392], "lm_head": [1392]}),
        "adapter.codes | got [1000]",
    ),
    "a code of the embedding alone": (_in_config(trainable_token_indices=[400]), "rows in another order"),
    "a row that is none": (_in_config(trainable_token_indices=[10**9]), "rows in another order"),
    "a word of a text": (_in_config(trainable_token_indices={"embed_tokens": ["__import__"]}), "trainable_token_ind"),
    "words without rows": (_in_config(trainable_token_indices=[3]), "missing"),
    "a module trained whole": (_in_config(modules_to_save=["lm_head"]), "modules_to_save"),
    "code of a hub": (_in_config(trust_remote_code=True), "trust_remote_code"),
    "a path for a kind": (_in_config(peft_type="../../peft.so"), "peft_type"),
    "a rank for each layer": (_in_config(rank_pattern={"q_proj": 9}), "rank_pattern"),
    "a scale for each layer": (_in_config(alpha_pattern={"q_proj": 9}), "alpha_pattern"),
    "deep JSON": (_file(CONFIG, b"[" * 100_000), "not JSON"),
    "scaled by a text": (_in_config(use_rslora="true"), "use_rslora"),
    "a changed base": (_in_config(init_lora_weights="pissa"), "init_lora_weights"),
    "rank of a text": (_in_config(r="3"), "r | got"),
    "wrong rank": (_in_config(r=5), "another shape"),
    "huge rank": (_in_config(r=1 << 40), "r | got"),
    "scale of NaN": (_file(CONFIG, b'{"peft_type": "LORA", "r": 1, "lora_alpha": NaN}'), "finite"),
    "no JSON": (_file(CONFIG, b"\x80\x04."), "not UTF-8"),
    "a pickle for weights": (_weights_of(b"\x80\x04."), "cannot be read"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "no weights"),
    "weights of another": (_file(WEIGHTS, b""), "the adapter is damaged"),
    "a matrix missing": (_in_weights(lambda t: {n: v for n, v in t.items() if n != _first(t)}), "missing"),
    "one too many": (_in_weights(lambda t: t | {"base_model.model.lm_head.weight": torch.zeros(1)}), "unexpected"),
    "not finite": (_in_weights(lambda t: t | {_first(t): t[_first(t)] * torch.nan}), "not finite"),
    "of integers": (_in_weights(lambda t: t | {_first(t): t[_first(t)].long()}), "floating-point"),
    "another rank in one layer": (_in_weights(lambda t: t | {_first(t): t[_first(t)].repeat(2, 1)}), "another shape"),
    "half a pair, twice": (
        _in_weights(lambda t: t | {f"{_first(t)}.lora_A.weight": t[_first(t)].clone()}),
        "unexpected",
    ),
    "larger than it is": (_weights_of((1 << 62).to_bytes(8, "little") + b"{}"), "cannot be read"),
    "of another model": (_in_weights(lambda t: {f"x.{n}": v for n, v in t.items()}), "no matrix of this decoder"),
}


def written(tmp_path: Path, base: Path, weights: str) -> Path:
    """An adapter beside a base's matrices, that says that it belongs to weights of this digest."""
    config = KINDS["lora"]
    shapes = {name: tuple(tensor.shape) for name, tensor in open_decoder(base).tensors.items()}
    tensors = {name: torch.ones(shape) for name, shape in adapter_shapes(config, shapes, 392).items()}
    named, of_base = replace(config, targets=targeted(config, shapes)), {"named": None, "weights": weights}
    write_adapter(tmp_path / "adapter", named, tensors, visual_offset=392, base=of_base, step=0)  # type: ignore[arg-type]
    return tmp_path / "adapter"


def test_another_base_is_told_before_its_shapes(base: Path, tmp_path: Path) -> None:
    folder = written(tmp_path, base, "0" * 64)
    _in_config(r=5)(folder)
    with pytest.raises(CheckpointError) as caught:
        load_decoder(base, adapters=[(folder, 1.0)])
    assert "another base" in str(caught.value) and "0" * 12 in str(caught.value)


def test_only_ids_of_words_have_rows_of_their_own() -> None:
    released = LayoutConfig()
    for word, fix in (8710, False), (65_536, True):  # a marker; a code, which has a setting of its own
        with refused(ConfigError, where="adapter.words[1]", got=word) as caught:
            LumosModule(layout=released, adapter=AdapterConfig(kind="lora", words=[3, word]))
        assert (caught.value.fix is not None) == fix
    with refused(ConfigError, where="adapter.codes", got="[0, 64000]"):
        LumosModule(layout=released, adapter=AdapterConfig(kind="lora", codes=[0, 64_000]))


def test_names_in_a_file_are_texts_that_nothing_follows(base: Path, tmp_path: Path) -> None:
    folder = written(tmp_path, base, open_decoder(base).weights_sha256())
    code = {"base_model_class": "Popen", "parent_library": "antigravity"}
    _in_config(auto_mapping=code, base_model_name_or_path="someone/model", target_modules=["q_proj", "q_proj"])(folder)
    expected = logits(load_decoder(base, adapters=[(folder, 1.0)]).net)
    assert (expected - logits(load_decoder(base).net)).abs().max() > 0.01
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_strange_file_is_one_line(base: Path, tmp_path: Path, kind: str) -> None:
    folder = written(tmp_path, base, open_decoder(base).weights_sha256())
    damage, words = DAMAGE[kind]
    damage(folder)
    with pytest.raises(LumosError) as caught:
        load_decoder(base, adapters=[(folder, 1.0)])
    assert words in str(caught.value) and str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"targets": ["q_proj", "q_prj"]}, "adapter.targets[1]"),
        ({"targets": []}, "adapter.targets"),
        ({"rank": 0}, "adapter.rank"),
        ({"dropout": 1.0}, "adapter.dropout"),
        ({"words": [3, 3]}, "adapter.words"),
        ({"words": [-1]}, "adapter.words"),
        ({"codes": [-1]}, "adapter.codes"),
        ({"frozen": "nf4", "dropout": 0.1}, "adapter.frozen"),
    ],
)
def test_settings_that_cannot_be_are_named(base: Path, settings: dict[str, Any], where: str) -> None:
    with refused(ConfigError, where=where):
        adapted(base, AdapterConfig(kind="lora", **settings))
