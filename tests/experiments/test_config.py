from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from experiments import read_config as read_config_module
from experiments.cli import parse
from experiments.config import ExperimentConfig, TokenizerExperimentConfig, plain, to_yaml
from experiments.read_config import (
    config_to_resume,
    experiment_names,
    load_experiment,
    read_config,
    run_group,
    saved_config,
    with_overrides,
)
from lumos_pl.errors import ConfigError
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.sampling.config import ClipFormat
from lumos_pl.tokenizers.fsq import FsqTokenizer
from tests.refusals import refused


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_loads_and_builds(name: str) -> None:
    config = load_experiment(name)
    assert config.about
    with torch.device("meta"):
        if isinstance(config, TokenizerExperimentConfig):
            FsqTokenizer(config.tokenizer)
        else:
            LumosTransformer(config.model.build(config.layout.build()))


def test_names_of_the_recipe_are_there() -> None:
    stages = {"t2i_0.5b", "t2i_1b", "t2i_3b", "t2v_1b", "t2v_3b", "t2v_1b_384p", "t2v_3b_384p"}
    assert stages | {"debug", "real_tokens"} <= set(experiment_names())


def test_recipe_values() -> None:
    first, second, third = (load_experiment(name) for name in ("t2i_3b", "t2v_1b", "t2v_3b_384p"))
    assert (first.optimizer.lr, second.optimizer.lr, third.optimizer.lr) == (1e-4, 2.5e-5, 2.5e-5)
    assert (first.data.kind, second.data.kind, third.data.kind) == ("image", "joint", "joint")
    assert second.data.video.frames == 24 and second.data.image.batch_size == 6
    assert first.clip == ClipFormat(frames=1) and first.sampling.guidance == 16
    assert second.clip == ClipFormat() and second.sampling.guidance == 15
    assert third.clip == ClipFormat(width=672, height=384)
    assert first.init_from is None
    assert second.init_from == "runs/t2i_1b/latest/checkpoints/last.ckpt"
    assert third.init_from == "runs/t2v_3b/latest/checkpoints/last.ckpt"
    for config in (first, second, third):
        assert (config.optimizer.betas, config.optimizer.weight_decay, config.optimizer.grad_clip) == (
            [0.9, 0.95],
            0.1,
            4,
        )
        assert config.trainer.precision == "bf16-mixed" and config.mask.min_ratio == 0.7


def test_overrides_win_and_reach_what_refers_to_them() -> None:
    config = load_experiment("real_tokens", ["data.root=elsewhere", "optimizer.lr=1e-3", "run.name=a", "seed=5"])
    assert (config.data.root, config.data.val_root) == ("elsewhere", "elsewhere")
    assert (config.optimizer.lr, config.run.name, config.seed) == (1e-3, "a", 5)


def test_what_one_asks_for_the_next_does_not_get() -> None:
    before = load_experiment("debug")
    asked = ["mask.kind=random", "loggers=[csv]", "data.image.batch_size=9", "trainer.lightning.profiler=simple"]
    load_experiment("debug", asked)
    assert load_experiment("debug") == before


def test_what_a_run_writes_down_reads_back_the_same(tmp_path: Path) -> None:
    config = load_experiment("t2v_1b", ["trainer.max_steps=7"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read_config(tmp_path / "config.yaml") == config
    assert yaml.safe_load(to_yaml(config)) == plain(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_step=3", "unknown key | command line | got trainer.max_step | did you mean trainer.max_steps?"),
        ("optimiser.lr=3", "unknown key | command line | got optimiser | did you mean optimizer?"),
        ("trainer.max_steps=many", "value does not fit | command line | trainer.max_steps"),
        ("mask.kind=cube", "unknown kind | mask.kind | got cube, expected one of tube, random, "),
        ("optimizer.lr=-1", "out of range | optimizer.lr | got -1.0, expected above 0"),
        ("optimizer.lr=nan", "out of range | optimizer.lr | got nan"),
        ("trainer.max_steps=0", "out of range | trainer.max_steps | got 0, expected 1 to 1000000000"),
        ("checkpoint.every_n_steps=-2", "out of range | checkpoint.every_n_steps"),
        ("data.caption_dropout=2", "out of range | data.caption_dropout | got 2.0, expected 0 to 1"),
        ("run.name=../x", "not a name for a run | run.name"),
        ("run.name=.x", "not a name for a run | run.name"),
        ("trainer.num_nodes=0", "out of range | trainer.num_nodes | got 0, expected 1 to 100000"),
        ("trainer.val_every_n_steps=-1", "out of range | trainer.val_every_n_steps"),
        ("trainer.shard_size=1", "of fsdp2 alone | trainer.shard_size | got 1 | trainer.strategy=fsdp2, or leave"),
        ("trainer.cpu_offload=true", "of fsdp2 alone | trainer.cpu_offload | got True | trainer.strategy=fsdp2, or"),
        ("seed", "not an override | got 'seed', expected key=value"),
        ("=3", "not an override | got '=3', expected key=value"),
        ("model=3", "value does not fit | command line"),
        ("seed=[", "value cannot be read | seed"),
        ("adapter.targets=q_proj", "not a list | command line | adapter.targets | got 'q_proj' | write [q_proj]"),
        ("init_from=${nowhere}", "configuration does not resolve"),
    ],
)
def test_bad_overrides_are_one_clear_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment("debug", [override])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["adapter.targets=[*.mlp.*]", "run.name=*.mlp"])
def test_signs_of_yaml_in_a_text_are_told_how_to_stand(override: str) -> None:
    with refused(ConfigError, where=override.partition("=")[0]) as caught:
        load_experiment("debug", [override])
    assert caught.value.fix is not None and "quotes" in caught.value.fix
    assert load_experiment("finetune_1b", ["init_from=x", 'adapter.targets=["*.mlp.*"]']).adapter.targets == ["*.mlp.*"]


@pytest.mark.parametrize(
    ("override", "decides"),
    [
        ("adapter.rank=16", "adapter.kind=none"),
        ("prior.captions=list.txt", "prior.share=0"),
        ("mask.other_share=[1,0]", "mask.other=null"),
        ("optimizer.min_lr_ratio=0.5", "optimizer.schedule=constant"),
        ("optimizer.muon_lr=0.1", "optimizer.kind=adamw"),
        ("data.given_max=3", "data.given_prob=0"),
        ("data.video.batch_size=3", "data.kind=image"),
        ("data.images_per_cycle=3", "data.kind=image"),
        ("data.synthetic.n_samples=3", "data.root=films"),
    ],
)
def test_what_changes_nothing_is_refused_unless_the_line_says_what_decides_so(override: str, decides: str) -> None:
    with refused(ConfigError) as caught:
        load_experiment("t2i_1b", [override])
    assert caught.value.where is not None and override.startswith(caught.value.where)
    load_experiment("t2i_1b", [override, decides])


@pytest.mark.parametrize(
    ("experiment", "said", "override"),
    [
        ("demo", [], "data.val_share=0.3"),  # it has clips of its own to validate with
        ("debug", [], "callbacks.sampled_clips_every_n_steps=5"),
        ("debug", ["sampling.greedy=true"], "sampling.temperature=2.0"),
        ("debug", ["sampling.confidence_temperature=0"], "sampling.confidence_anneal=release"),
        ("own_dictionary", [], "loss.margin_weight=0.2"),  # another section's setting decides it
        ("tokenizer_fsq", [], "callbacks.fidelity_captions=4"),
    ],
)
def test_so_it_is_of_a_run_that_is_read_again(experiment: str, said: list[str], override: str, tmp_path: Path) -> None:
    config, file, where = load_experiment(experiment, said), tmp_path / "config.yaml", override.partition("=")[0]
    file.write_text(to_yaml(config))
    for read in (
        lambda: with_overrides(config, [override]),
        lambda: read_config(file, [override]),
        lambda: config_to_resume(file, [override]),
    ):
        with refused(ConfigError, where=where):
            read()


def test_what_changes_something_is_taken() -> None:
    load_experiment("debug", ["callbacks.sampled_clips_every_n_steps=0", "data.synthetic.n_samples=3"])
    load_experiment("t2v_1b", ["data.val_share=0.3", "sampling.temperature=2.0"])
    load_experiment("own_dictionary", ["loss.margin_weight=0.2", "tokenizer.kind=fsq"])
    load_experiment("tokenizer_fsq", ["loss.margin_weight=0.2", "callbacks.fidelity_captions=0"])
    tuned = load_experiment("finetune_1b", ["init_from=x", "adapter.rank=2", "optimizer.min_lr_ratio=0.5"])
    assert (tuned.adapter.rank, tuned.optimizer.min_lr_ratio) == (2, 0.5)


@pytest.mark.parametrize("size", [0, 3, 8])
def test_shards_that_do_not_divide_the_processes_are_refused(size: int) -> None:
    four = ["trainer.strategy=fsdp2", "trainer.devices=2", "trainer.num_nodes=2"]
    assert load_experiment("debug", [*four, "trainer.shard_size=2"]).trainer.shard_size == 2
    with refused(ConfigError, where="trainer.shard_size", got=size, expected="a divisor of 4 (devices x num_nodes)"):
        load_experiment("debug", [*four, f"trainer.shard_size={size}"])


def test_an_experiment_may_be_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: debug\nmodel: {rope: 1d}\n")
    assert load_experiment(str(file), ["seed=3"]) == load_experiment("debug", ["model.rope=1d", "seed=3"])
    assert run_group(str(file)) == "mine" and run_group("debug") == "debug"
    with refused(ConfigError, file="yours.yaml"):
        load_experiment(str(tmp_path / "yours.yaml"))


def test_unknown_experiment_names_the_nearest_and_lists_all() -> None:
    with refused(ConfigError, got="'t2v_1'", fix="did you mean t2v_1b?") as caught:
        load_experiment("t2v_1")
    assert all(name in str(caught.value.expected) for name in experiment_names())
    with refused(ConfigError, got="'../experiments/debug'"):
        load_experiment("../experiments/debug")


@pytest.mark.parametrize("content", [None, "- 1", "a: ["])
def test_a_file_that_is_no_configuration_is_refused(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    if content is not None:
        file.write_text(content)
    with refused(ConfigError, file="c.yaml"):
        read_config(file)


def test_experiments_based_on_each_other_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_config_module, "FOLDER", tmp_path)
    for name, base in ("xy", "yz", "zx"):
        (tmp_path / f"{name}.yaml").write_text(f"base: {base}")
    with refused(ConfigError, file="x.yaml"):
        load_experiment("x")


def test_defaults_are_valid() -> None:
    assert ExperimentConfig().mask.kind == "tube"


ANY_SETTING = {
    "seed": st.integers(-(2**31), 2**31),
    "trainer.max_steps": st.integers(1, 10**9),
    "trainer.devices": st.integers(1, 64),
    "optimizer.lr": st.floats(1e-9, 1.0),
    "data.caption_dropout": st.floats(0, 1),
    "data.video.frames": st.integers(1, 400),
    "data.video.max_tokens": st.none() | st.integers(1, 10**6),
    "data.image.bucket": st.booleans(),
    "checkpoint.keep": st.integers(0, 9),
    "mask.kind": st.sampled_from(["tube", "random"]),
    "run.name": st.none() | st.from_regex(r"[a-z][a-z0-9-]{0,9}", fullmatch=True).filter(lambda name: name != "latest"),
}


@pytest.mark.seconds
@settings(max_examples=4)
@given(
    chosen=st.fixed_dictionaries({}, optional=ANY_SETTING),
    earlier=st.fixed_dictionaries({}, optional=ANY_SETTING),
    shuffled=st.randoms(use_true_random=False),
)
def test_any_overrides_merge(
    chosen: dict[str, object], earlier: dict[str, object], shuffled: Random, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The last value of a key wins, the order of keys does not matter, and what is written down reads back."""

    def words(values: dict[str, object]) -> list[str]:
        said = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        shuffled.shuffle(said)
        return said

    merged = load_experiment("debug", [*words(earlier), *words(chosen)])
    expected = plain(load_experiment("debug"))
    for key, value in (earlier | chosen).items():
        OmegaConf.update(found := OmegaConf.create(expected), key, value)
        expected = OmegaConf.to_container(found)
    assert plain(merged) == expected
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_text(to_yaml(merged))
    assert read_config(file) == merged


@pytest.mark.parametrize(
    ("words", "video", "keep"),
    [
        (["data.video.frames=9", "checkpoint.keep=2", "data.video.batch_size=3"], (9, 3), 2),
        (["data.video.frames=9", "data={video: {frames: 5}}", "data.video.batch_size=3"], (5, 3), 1),
        (["data={video: {frames: 5}, val_batches: 1}", "checkpoint.keep=2", "data.video.frames=9"], (9, 1), 2),
    ],
)
def test_words_of_one_section_are_taken_in_their_order(words: list[str], video: tuple[int, int], keep: int) -> None:
    config = load_experiment("debug", ["data.video.batch_size=1", "checkpoint.keep=1", *words])
    assert isinstance(config, ExperimentConfig)
    assert (config.data.video.frames, config.data.video.batch_size) == video and config.checkpoint.keep == keep


def test_a_word_that_does_not_fit_is_refused_though_a_later_one_takes_it_back() -> None:
    with refused(ConfigError, where="optimizer.lr"):
        load_experiment("debug", ["optimizer.lr=x", "seed=1", "optimizer.lr=0.1"])


def test_what_words_say_is_the_same_however_often_they_are_asked() -> None:
    words = ["data.video={frames: 9}", "data.video.batch_size=3"]
    first, again = load_experiment("debug", words), load_experiment("debug", words[:1])
    assert load_experiment("debug", words) == first != again == load_experiment("debug", words[:1])


# -- keys of before -------------------------------------------------------------------------------


def test_what_was_written_in_earlier_keys_is_read_as_todays() -> None:
    made_before = Path(__file__).parents[1] / "made_before"
    run = read_config(made_before / "run" / "config.yaml")
    assert isinstance(run, ExperimentConfig)
    assert (run.world.folder, run.world.val, run.world.side) == ("data/clips", 64, 64)
    assert (run.clip.frames, run.sampling.steps, run.sampling.guidance) == (9, 2, 3.0)
    assert (run.data.given_prob, run.sampling.given_context) == (0.3, "visible")
    exported = json.loads((made_before / "config.json").read_text())["lumos"]["config"]
    shipped = saved_config(exported, made_before / "config.json")
    assert isinstance(shipped, ExperimentConfig)
    assert shipped.world.pairs == exported["clips"]["world"]["pairs"] and shipped.world.train == 16000
    assert shipped.sampling.given_context == "partial"
    assert saved_config(plain(shipped), made_before / "config.json") == shipped


def test_a_tokenizers_run_of_before_is_read_without_what_meant_nothing_to_it() -> None:
    before = {
        "task": "tokenizer",
        "clips": {"train": 3, "world": {"side": 32}},
        "callbacks": {"log_every_n_steps": 3, "clip": {"width": 64}, "sampling": {"steps": 2}},
    }
    config = saved_config(before, Path("config.yaml"))
    assert (config.world.train, config.world.side, config.callbacks.log_every_n_steps) == (3, 32, 3)


@pytest.mark.parametrize(("saved", "read"), [(0.0, 0), (0.5, 0), (1000, 1000)])
def test_what_a_world_remembers_was_once_a_share(saved: float, read: int) -> None:
    config = saved_config({"world": {"remembered": saved}}, Path("config.yaml"))
    assert isinstance(config, ExperimentConfig) and config.world.remembered == read


@pytest.mark.parametrize(
    "damaged",
    [
        {"clips": 3},
        {"callbacks": [1]},
        {"clips": {"world": 3}},
        {"world": 3, "clips": {}},
        {"callbacks": {"sampling": 3}},
        {"sampling": [1]},
        {"sampling": {"given_frames": {"visible": 1}}},
        {"data": {"given_frames_prob": "often"}},
    ],
)
def test_damage_in_earlier_keys_is_one_line_as_any_other(damaged: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        saved_config(damaged, Path("config.yaml"))


@pytest.mark.parametrize(
    ("earlier", "now"),
    [
        ("callbacks.sampling.steps=3", "sampling.steps"),
        ("callbacks.clip.width=32", "clip.width"),
        ("clips.train=3", "world.train"),
        ("clips.world.side=32", "world.side"),
        ("sampling.given_frames=partial", "sampling.given_context"),
        ("callbacks.sampling.given_frames=partial", "sampling.given_context"),
        ("data.given_frames_prob=0.5", "data.given_prob"),
        ("data.given_frames_max=2", "data.given_max"),
        ("guidance=3", "sampling.guidance"),
    ],
)
def test_a_user_who_writes_earlier_keys_is_told_todays(earlier: str, now: str, tmp_path: Path) -> None:
    key, _, value = earlier.partition("=")
    (tmp_path / "mine.yaml").write_text(OmegaConf.to_yaml(OmegaConf.from_dotlist([f"{key}={value}"])))
    for name, overrides in ("debug", [earlier]), (str(tmp_path / "mine.yaml"), []):
        with pytest.raises(ConfigError) as caught:
            load_experiment(name, overrides)
        assert caught.value.got == key and now in (caught.value.fix or "")


PLACES = [
    "run.dir",
    "world.folder",
    "data.cache.dir",
    "data.text_tokenizer",
    "visual_tokenizer",
    "init_from",
    "prior.captions",
    "prior.folder",
]


@pytest.mark.parametrize("url", ["s3://bucket/runs", "gs://b", "file:///tmp/x", "hf://datasets/x", "s3:/bucket/runs"])
@pytest.mark.parametrize("place", PLACES)
def test_a_url_is_no_path(place: str, url: str) -> None:
    with refused(ConfigError, where=place, got=repr(url)) as caught:
        load_experiment("demo", [f"{place}={url}"])
    assert (place == "run.dir") == ("checkpoint.upload" in str(caught.value.fix))


def test_every_setting_that_looks_like_a_place_is_known_to_take_urls_or_not() -> None:
    """One that is added later is either in the list above, or takes URLs."""
    words = ("dir", "root", "folder", "tokenizer", "init_from", "path", "prior.captions")
    found = {key for key in keys_of(plain(load_experiment("demo"))) if key.endswith(words)}
    assert found == {*PLACES, "data.root", "data.val_root"}


@pytest.mark.parametrize("place", ["data.root", "data.val_root"])
def test_shards_may_lie_in_a_store_whose_url_says_nothing_of_rights(place: str) -> None:
    for url in "s3://bucket/data", "gs://bucket/part-*", "https://host/data", "file:///data":
        load_experiment("demo", [f"{place}={url}"])
    for url in "s3:/bucket/data", "s3://key:secret@bucket/data", "https://host/data?sig=secret":
        with refused(ConfigError, where=place) as caught:
            load_experiment("demo", [f"{place}={url}"])
        assert "secret" not in str(caught.value)


def keys_of(content: dict[str, object], before: str = "") -> set[str]:
    keys = set()
    for name, value in content.items():
        keys |= keys_of(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}"}
    return keys


@pytest.mark.parametrize(
    "command",
    [
        ["resume", "s3://b/run"],
        ["sample", "--ckpt", "s3://b/x.ckpt", "--prompt", "x"],
        ["sample", "--prompt", "x", "--out", "gs://b/x"],
        ["eval", "s3://b/run"],
        ["import-tokens", "tokens", "--out", "s3://b/x"],
        ["export-hf", "run", "--out", "s3://b/x"],
    ],
)
def test_a_url_is_no_path_on_the_command_line(command: list[str]) -> None:
    with refused(ConfigError):
        parse(command)


@pytest.mark.parametrize("name", [name for name in experiment_names() if name.startswith(("t2i", "t2v"))])
def test_the_recipes_validate_and_sample(name: str) -> None:
    """Of shards that are never trained on, and with a batch for each of the 48 GPUs."""
    config = load_experiment(name)
    assert isinstance(config, ExperimentConfig)
    assert config.data.has_validation and config.trainer.val_every_n_steps
    assert config.data.val_batches >= 48
    assert config.callbacks.prompts and config.callbacks.sampled_clips_every_n_steps
    other = load_experiment(name, ["data.val_root=mine"])
    assert isinstance(other, ExperimentConfig) and not any(source.held_out for source in other.data.all_sources)
