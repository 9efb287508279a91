from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lumos_pl.checkpoints.conversion import export_released, import_released, parse_size
from lumos_pl.checkpoints.decoder import load_decoder
from lumos_pl.checkpoints.digests import check_digest
from lumos_pl.checkpoints.huggingface import map_weights
from lumos_pl.checkpoints.initial import load_initial_weights
from lumos_pl.errors import CheckpointError, ConfigError, FileError
from lumos_pl.layout import lumos1_layout
from lumos_pl.machinery.own_files import partial_of
from lumos_pl.models.config import ModelConfig
from lumos_pl.models.transformer import LumosTransformer
from tests.refusals import refused
from tests.tiny_checkpoint import write_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed")  # saving the sharded one

EXCERPT = json.loads((Path(__file__).parents[1] / "golden_excerpt.json").read_text())
Make = Callable[..., LumosTransformer]


@pytest.fixture
def as_released(tmp_path: Path) -> Path:
    """A stand-in for a released checkpoint: its very config.json over a codebook of 8, weights of mixed dtypes."""
    folder = tmp_path / "as_released"
    folder.mkdir()
    config = EXCERPT["config"] | {"vocab_size": 65_544}
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        net = LumosTransformer(ModelConfig(size="debug").build(lumos1_layout(65_544)))
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(parameter.shape, generator=generator).to(torch.float32 if "norm" in name else torch.bfloat16)
        for name, parameter in net.named_parameters()
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def equal(folder: Path, other: Path) -> bool:
    """Whether two folders hold the same tensors, byte for byte."""
    own, reference = map_weights(folder), map_weights(other)
    return own.keys() == reference.keys() and all(
        own[name].dtype == tensor.dtype and torch.equal(own[name].view(torch.uint8), tensor.view(torch.uint8))
        for name, tensor in reference.items()
    )


def config_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def test_there_and_back_again(as_released: Path, tmp_path: Path) -> None:
    file, back = tmp_path / "deep" / "x.ckpt", tmp_path / "back"
    import_released(as_released, file)
    check_digest(file)
    export_released(file, back)
    assert equal(back, as_released)
    assert config_of(back) == config_of(as_released)
    assert sorted(path.name for path in file.parent.iterdir()) == ["x.ckpt", "x.ckpt.sha256"]
    assert sorted(path.name for path in back.iterdir()) == ["config.json", "model.safetensors"]
    assert len({path.stat().st_mode for path in back.iterdir()}) == 1  # the weights are as readable as the rest


@pytest.mark.parametrize("largest", [65_519.0, 65_520.0, -1e5])
def test_a_number_that_a_dtype_cannot_hold_is_refused_before_anything_is_written(
    as_released: Path, tmp_path: Path, largest: float
) -> None:
    """Rounded to float16 it would be infinite, from 65,520 on; what is below becomes the largest one."""
    weights, name = load_file(as_released / "model.safetensors"), "model.norm.weight"
    weights[name][3] = largest
    save_file(weights, as_released / "model.safetensors", {"format": "pt"})
    if largest == 65_519:
        export_released(as_released, tmp_path / "out", dtype=torch.float16)
        assert map_weights(tmp_path / "out")[name].max() == 65_504
        return
    with refused(CheckpointError, where=name, got=f"{largest:g}"):
        export_released(as_released, tmp_path / "out", dtype=torch.float16)
    assert not (tmp_path / "out").exists()
    export_released(as_released, tmp_path / "out", dtype=torch.bfloat16)


def test_the_golden_checkpoint_there_and_back_again(shared: Path, tmp_path: Path) -> None:
    golden = shared / "golden" / "lumos1_tiny"
    import_released(golden, tmp_path / "x.ckpt")
    export_released(tmp_path / "x.ckpt", tmp_path / "back")
    assert equal(tmp_path / "back", golden)
    assert config_of(tmp_path / "back") == config_of(golden)


def test_an_import_keeps_a_small_vocabulary(released: Path, tmp_path: Path, make_decoder: Make) -> None:
    import_released(released, tmp_path / "x.ckpt")
    saved = load_decoder(tmp_path / "x.ckpt")
    assert saved.layout.name == "compact" and saved.config == {}
    net = make_decoder(seed=2)
    load_initial_weights(net, source=tmp_path / "x.ckpt")
    for loaded, weight in zip(net.parameters(), make_decoder(seed=1).parameters(), strict=True):
        assert torch.equal(loaded, weight.bfloat16().float())


@pytest.mark.parametrize(("weights", "seed"), [("model", 1), ("ema", 5)])
@pytest.mark.parametrize("kind", ["own", "sharded"])
def test_any_checkpoint_is_exported(
    kind: str, weights: Any, seed: int, request: pytest.FixtureRequest, tmp_path: Path, make_decoder: Make
) -> None:
    export_released(request.getfixturevalue(kind), tmp_path / "out", weights=weights)
    saved = load_decoder(tmp_path / "out")
    assert saved.layout.name == "compact" and saved.net.config == make_decoder().config
    for loaded, weight in zip(saved.net.parameters(), make_decoder(seed=seed).parameters(), strict=True):
        assert torch.equal(loaded, weight)
    assert config_of(tmp_path / "out")["model_type"] == "lumos_pl"  # no other reader takes it for the release's


def test_the_runs_configuration_goes_with_it(own: Path, tmp_path: Path) -> None:
    """So that an exported model is sampled as the run was, without a word about tokenizers or prompt."""
    export_released(own, tmp_path / "out")
    assert load_decoder(tmp_path / "out").config == {"seed": 0}
    import_released(tmp_path / "out", tmp_path / "back.ckpt")
    assert load_decoder(tmp_path / "back.ckpt").config == {"seed": 0}


@pytest.mark.parametrize(("own", "where"), [([], "lumos"), ({"config": 1}, "config"), ({"layout": "x"}, "layout")])
def test_a_description_that_is_none_is_refused(own: Any, where: str, as_released: Path) -> None:
    (as_released / "config.json").write_text(json.dumps(config_of(as_released) | {"lumos": own}))
    with refused(CheckpointError, file="config.json", where=where):
        load_decoder(as_released)


@pytest.mark.parametrize("rope", ["1d", "3d_block", "3d_block_scaled", "3d_distributed"])
def test_the_rotation_survives(rope: str, content: dict[str, Any], tmp_path: Path) -> None:
    content["lumos"]["identity"]["model"] = content["lumos"]["identity"]["model"] | {"rope": rope}
    torch.save(content, tmp_path / "x.ckpt")
    export_released(tmp_path / "x.ckpt", tmp_path / "out")
    assert load_decoder(tmp_path / "out").net.config.rope == rope


def test_weights_that_share_their_memory_are_written_apart(tmp_path: Path) -> None:
    content = torch.load(write_checkpoint(tmp_path / "own.ckpt"), weights_only=True)
    one, other = (f"net.model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1))
    content["state_dict"][one] = content["state_dict"][other]
    torch.save(content, tmp_path / "x.ckpt")
    export_released(tmp_path / "x.ckpt", tmp_path / "out")
    weights = map_weights(tmp_path / "out")
    assert torch.equal(weights[one.removeprefix("net.")], content["state_dict"][other])
    assert torch.equal(weights[other.removeprefix("net.")], content["state_dict"][other])


def test_a_dtype_is_asked_for(own: Path, tmp_path: Path, make_decoder: Make) -> None:
    export_released(own, tmp_path / "out", dtype=torch.bfloat16)
    for loaded, weight in zip(
        load_decoder(tmp_path / "out").net.parameters(), make_decoder(seed=1).parameters(), strict=True
    ):
        assert torch.equal(loaded, weight.bfloat16())
    assert config_of(tmp_path / "out")["torch_dtype"] == "bfloat16"


def test_large_weights_become_several_files(as_released: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", []
    export_released(
        as_released, out, max_shard_bytes=100_000, on_progress=lambda done, total: seen.append((done, total))
    )
    names = sorted(path.name for path in out.glob("*.safetensors"))
    assert names == [f"model-{i:05d}-of-{len(names):05d}.safetensors" for i in range(1, len(names) + 1)]
    assert len(names) == 4  # embedding, two of layers, head
    assert equal(out, as_released)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    total = 0
    for name in names:
        with safe_open(out / name, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            assert {tensor for tensor, home in index["weight_map"].items() if home == name} == set(file.keys())
            sizes = [file.get_tensor(tensor).nbytes for tensor in file.keys()]  # noqa: SIM118
        assert sum(sizes) <= 100_000 or len(sizes) == 1
        total += sum(sizes)
    assert index["metadata"] == {"total_size": total}
    assert [done for done, _ in seen] == sorted({done for done, _ in seen}) and seen[-1] == (total, total)
    import_released(out, tmp_path / "x.ckpt", on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (total, total)
    export_released(tmp_path / "x.ckpt", tmp_path / "whole")
    assert equal(tmp_path / "whole", as_released)


def test_nothing_that_is_there_is_written_over(released: Path, tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"mine")
    with refused(ConfigError, file="x.ckpt", where="--out"):
        import_released(released, tmp_path / "x.ckpt")
    for out in tmp_path / "x.ckpt", released:
        with refused(ConfigError, where="--out"):
            export_released(released, out)
    assert (tmp_path / "x.ckpt").read_bytes() == b"mine"
    (tmp_path / "empty").mkdir()
    export_released(released, tmp_path / "empty")
    assert equal(tmp_path / "empty", released)


def _lack_a_number(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(config_of(folder) | {"hidden_size": None}))


def _be_cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def _lack_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors")


def _have_a_tensor_too_many(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.extra": torch.ones(1)}, folder / "model.safetensors")


def _have_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _have_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    "fault",
    [_lack_a_number, _be_cut_short, _lack_a_tensor, _have_a_tensor_too_many, _have_no_weights, _have_no_config],
)
def test_from_a_bad_folder_nothing_is_written(fault: Callable[[Path], None], released: Path, tmp_path: Path) -> None:
    fault(released)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError):
        import_released(released, tmp_path / "new" / "x.ckpt")
    with pytest.raises(CheckpointError):
        export_released(released, tmp_path / "new" / "out")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 50 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_what_cannot_be_finished_is_taken_back(released: Path, tmp_path: Path, full_disk: None) -> None:
    before = sorted(tmp_path.rglob("*"))
    with refused(FileError, file="x.ckpt", got=os.strerror(errno.EFBIG)):
        import_released(released, tmp_path / "x.ckpt")
    with refused(FileError, file="out"):
        export_released(released, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_may_only_be_read_is_told_as_such(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the system refuses to remove a file as well, also one that is not there."""

    def read_only(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    for method in "mkdir", "unlink":
        monkeypatch.setattr(Path, method, read_only)
    for write, name in (import_released, "x.ckpt"), (export_released, "out"):
        with refused(FileError, file=name, got=os.strerror(errno.EROFS)):
            write(released, tmp_path / name)


def test_an_interruption_leaves_nothing_and_a_kills_rest_is_cleared(released: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    left = partial_of(tmp_path / "out")
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    partial_of(tmp_path / "x.ckpt").write_bytes(b"half")
    (tmp_path / "x.ckpt.partial").write_bytes(b"theirs")
    with pytest.raises(KeyboardInterrupt):
        import_released(released, tmp_path / "x.ckpt", on_progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_released(released, tmp_path / "out", on_progress=interrupt)
    assert {path.name for path in tmp_path.iterdir()} == {"released", "x.ckpt.partial"}


def test_sizes_are_read() -> None:
    assert [parse_size(text) for text in ("5GB", "500MB", "1KB")] == [5 * 10**9, 500 * 10**6, 1000]


@pytest.mark.parametrize("text", ["", "5", "0GB", "-1GB", "1.5GB", "5GiB", "9999999GB", "GB", "٣GB"])
def test_a_size_that_is_none(text: str) -> None:
    with refused(ConfigError, where="--max-shard-size"):
        parse_size(text)
