"""What a run takes of its data: what the condition asks for, and what fits, known before the first step."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, normalizers
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import Metaspace, WhitespaceSplit

from data_modules.config import DataConfig, MixtureSource, SourceConfig
from data_modules.shards.manifest import Manifest
from data_modules.shards.sample import ShardSample
from data_modules.token_data import TokenDataModule
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.layout import compact_layout
from lumos_pl.tokenizers.text import HuggingFaceTokenizer
from tests.data_modules.fake_trainer import fake_trainer
from tests.data_modules.shards.shard_files import make_sample, open_writer
from tests.refusals import refused

LAYOUT = compact_layout(240)
CLIP = 3 + 4 * (4 * 9) + 4 * 3 - 4 * 9  # of make_sample(0), without text: 3 latent frames of 4 x 8


def clip(number: int, text: str, **changes: Any) -> ShardSample:
    return make_sample(0, key=f"clip-{number}", text=text, **changes)


def made(folder: Path, samples: list[ShardSample], **options: Any) -> Path:
    with open_writer(folder, samples_per_shard=2, **options) as writer:
        for sample in samples:
            writer.add(sample)
    return folder


def data(root: Path, *, step: int = 0, rank: int = 0, ranks: int = 1, **changes: Any) -> TokenDataModule:
    settings = {
        "root": str(root),
        "kind": "video",
        "num_workers": 0,
        "prompt": "{caption}",
        "caption_dropout": 0.0,
        "video": SourceConfig(frames=9, batch_size=2),
    }
    config = {name: value for name, value in {**settings, **changes}.items() if name != "max_length"}
    module = TokenDataModule(DataConfig(**config), LAYOUT, seed=1, max_length=changes.get("max_length"))
    module.setup()
    module.trainer = fake_trainer(step=step, rank=rank, ranks=ranks)
    return module


def keys(module: TokenDataModule, n: int = 12) -> list[str]:
    batches = list(islice(module.train_dataloader(), n))
    return [name.rpartition("/")[2] for batch in batches for name in batch.appearances]


def in_order(module: TokenDataModule) -> list[str]:
    """The keys of a validation."""
    return [name.rpartition("/")[2] for batch in module.test_dataloader() for name in batch.appearances]


def told(module: TokenDataModule, printed: Callable[[], Any]) -> str:
    module.tell_of_left_out()
    line: str = printed().err
    return line


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven clips with scores 0 to 10, of which those above 8 have none."""
    samples = [clip(n, f"text {n}", metadata={"score": n} if n < 9 else {"web": True}) for n in range(11)]
    return made(tmp_path_factory.mktemp("scored") / "shards", samples)


# -- data.where ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["score >= 5", "not score >= 5", "web or score == 0", "score in (2, 3)"])
def test_a_condition_takes_what_fulfils_it_and_nothing_else(
    scored: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = {
        "score >= 5": {5, 6, 7, 8},
        "not score >= 5": {0, 1, 2, 3, 4, 9, 10},
        "web or score == 0": {0, 9, 10},
        "score in (2, 3)": {2, 3},
    }[text]
    module = data(scored, where=text)
    assert set(keys(module)) == {f"clip-{number}" for number in expected}
    assert f"video: {11 - len(expected)} of 11 samples left out | data.where: {text}" in told(module, capsys.readouterr)


def test_sources_of_a_mixture_have_conditions_of_their_own(scored: Path) -> None:
    """Or that of all data, where they say none; one that cannot be is named by its key."""
    sources = {
        "low": MixtureSource(root=str(scored), where="score < 3"),
        "high": MixtureSource(root=str(scored), where="score >= 7"),
        "others": MixtureSource(root=str(scored)),
    }
    settings: dict[str, Any] = {"kind": "video", "video": SourceConfig(frames=9, batch_size=2), "num_workers": 0}
    module = TokenDataModule(DataConfig(sources=sources, where="web", **settings), LAYOUT)
    module.setup()
    found: dict[str, set[int]] = {name: set() for name in sources}
    for batch in islice(module.train_dataloader(), 24):
        for name, _, key in (appearance.split("/") for appearance in batch.appearances):
            found[name].add(int(key.removeprefix("clip-")))
    assert found == {"low": {0, 1, 2}, "high": {7, 8}, "others": {9, 10}}
    with refused(ConfigError, where="data.sources.low.where, character 8"):
        DataConfig(sources={"low": MixtureSource(root=str(scored), where="score >")}, **settings)


def test_all_that_is_taken_is_seen_once_an_epoch(scored: Path) -> None:
    batches = islice(data(scored, where="score >= 5").train_dataloader(), 10)
    seen = [tuple(name.split("/")[1:]) for batch in batches for name in batch.appearances]
    for epoch in "0", "1", "2":
        assert sorted(key for at, key in seen if at == epoch) == [f"clip-{number}" for number in (5, 6, 7, 8)]


def test_the_order_of_what_is_taken_goes_on_from_its_step_whatever_the_ranks(scored: Path) -> None:
    settings = {"where": "score >= 3", "video": SourceConfig(frames=9, batch_size=1, streams=2)}
    whole = keys(data(scored, **settings), 16)
    assert keys(data(scored, step=5, **settings), 6) == whole[10:]  # of two micro-batches a step
    ranks = [keys(data(scored, rank=rank, ranks=2, **settings), 6) for rank in range(2)]
    assert [key for pair in zip(*ranks, strict=True) for key in pair] == whole[:12]


def test_a_condition_is_a_part_of_the_stream(scored: Path) -> None:
    def fingerprint(**changes: Any) -> dict[str, Any]:
        values = data(scored, **changes).fingerprint()
        return {name: value for name, value in values.items() if name != "video.dealing"}  # which follows

    plain = fingerprint()
    assert not {"where", "captions", "too_long"} & plain.keys()
    for name, value in ("where", "score > 1"), ("too_long", "leave_out"):
        changed = fingerprint(**{name: value})
        assert changed[name] == value and {key for key in plain if changed[key] != plain[key]} <= {"video.dealing"}


def test_a_condition_that_cannot_be_is_refused_before_anything_is_read(scored: Path, tmp_path: Path) -> None:
    with refused(ConfigError, where="data.where, character 8"):
        DataConfig(where="score >")
    with refused(ConfigError, where="data.where", file=scored, expected="one of the columns: score, web"):
        data(scored, where="scores > 1")
    with refused(ConfigError, where="data.where: column score"):
        data(scored, where="score > 'a'")
    with refused(DataError, where="data.where", file=scored, got="score > 100, of 11 samples"):
        data(scored, where="score > 100")
    bare = made(tmp_path / "bare", [clip(n, "x") for n in range(3)])
    with refused(ConfigError, where="data.where", expected="one of the columns: none at all"):
        data(bare, where="score > 1")


def test_what_is_held_out_fulfils_the_condition_and_a_validation_set_is_as_it_is(scored: Path) -> None:
    def validated(**changes: Any) -> set[str]:
        return set(in_order(data(scored, where="score >= 3", **changes)))

    held = validated(val_share=0.5)
    assert held and held < {f"clip-{number}" for number in range(3, 9)}
    assert validated(val_root=str(scored)) == {f"clip-{number}" for number in range(11)}


def test_names_of_captions_must_be_there(tmp_path: Path, scored: Path) -> None:
    root = made(tmp_path / "two", [clip(n, "x", captions={"short": "x", "long": "x y"}) for n in range(3)])
    data(root, captions=["long"])
    with refused(ConfigError, where="data.captions", file=root, got="'lang'", expected="one of long, short"):
        data(root, captions=["short", "lang"])
    with refused(ConfigError, where="data.captions", file=scored, got="'short'"):
        data(scored, captions=["short"])


# -- data.too_long -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def word_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One id a word."""
    tokenizer = Tokenizer(WordLevel({"?": 0, "word": 1, "two": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    file = tmp_path_factory.mktemp("words") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


def words(n: int) -> str:
    return " ".join(["word"] * n)


LENGTHS = [3, 9, 1, 12, 10, 2]  # words of each clip


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = [clip(number, words(n)) for number, n in enumerate(LENGTHS)]
    return made(tmp_path_factory.mktemp("long") / "shards", samples)


def limit(n_words: int) -> int:
    """Tokens of a clip with so many words."""
    return CLIP + 2 + n_words


@pytest.fixture
def by_words(word_file: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a text vocabulary of words."""
    monkeypatch.setattr(HuggingFaceTokenizer, "check", lambda self, layout: None)
    return {"text_tokenizer": str(word_file)}


@pytest.mark.parametrize("most", [12, 13])
def test_what_fits_is_never_refused_for_its_bytes(long: Path, by_words: dict[str, Any], most: int) -> None:
    assert set(keys(data(long, max_length=limit(most), **by_words))) == {f"clip-{n}" for n in range(6)}


def test_what_does_not_fit_is_named_before_the_first_step(long: Path, by_words: dict[str, Any]) -> None:
    with refused(
        DataError,
        file=long / "shard-000001.tar",
        where="sample clip-3: data.too_long",
        got=f"{limit(12)} tokens, 14 of them for the text",
        expected=f"at most {limit(11)} (model.max_length)",
    ):
        data(long, max_length=limit(11), **by_words)


@pytest.mark.parametrize(("most", "left"), [(11, {0, 1, 2, 4, 5}), (9, {0, 1, 2, 5}), (1, {2})])
def test_what_does_not_fit_is_left_out_and_counted(
    long: Path, by_words: dict[str, Any], most: int, left: set[int], capsys: pytest.CaptureFixture[str]
) -> None:
    module = data(long, max_length=limit(most), too_long="leave_out", **by_words)
    assert set(keys(module)) == {f"clip-{number}" for number in left}
    expected = f"video: {6 - len(left)} of 6 samples left out | data.too_long: more than {limit(most)} tokens"
    assert expected in told(module, capsys.readouterr)


def test_nothing_that_fits_is_one_line(long: Path, by_words: dict[str, Any]) -> None:
    with refused(DataError, where="data.too_long", file=long):
        data(long, max_length=limit(0), too_long="leave_out", **by_words)


def test_the_budget_of_a_batch_counts_the_ids_where_the_bytes_would_not_fit(
    long: Path, by_words: dict[str, Any]
) -> None:
    def settings(most: int) -> dict[str, Any]:
        video = SourceConfig(frames=9, batch_size=2, max_tokens=limit(most))
        return {"video": video, "val_root": str(long), **by_words}

    assert sorted(in_order(data(long, **settings(12)))) == [f"clip-{number}" for number in range(6)]
    with refused(
        DataError, where="sample clip-3: data.too_long", expected=f"at most {limit(11)} (data.video.max_tokens)"
    ):
        data(long, **settings(11))
    left = data(long, too_long="leave_out", **settings(9))
    assert sorted(in_order(left)) == [f"clip-{number}" for number in (0, 1, 2, 5)]
    assert all(batch.tokens.numel() <= 2 * limit(9) for batch in islice(left.train_dataloader(), 8))


LONG_WORD = "\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}"  # three bytes, which NFKD makes 18 letters
LENGTHENED: dict[str, tuple[str, int, Any, Any]] = {  # text, its ids, normalizer, pre-tokenizer
    "a replacement": ("aaa", 6, normalizers.Replace("a", "bb"), None),
    "a pattern's": ("aaa", 6, normalizers.Replace(Regex("a"), "bb"), None),
    "another form": (LONG_WORD, 18, normalizers.NFKD(), None),
    "a beginning": ("aaa", 5, normalizers.Prepend("bb"), None),
    "a mark": ("aaa", 4, None, Metaspace(replacement="b", prepend_scheme="always")),
    "one after another": (
        "aaa",
        16,
        normalizers.Sequence(
            [normalizers.Prepend("a"), normalizers.Replace("a", "bb"), normalizers.Replace("b", "aa")]
        ),
        None,
    ),
}


@pytest.mark.parametrize("name", LENGTHENED)
def test_a_text_that_its_tokenizer_lengthens_is_known_to_be_too_long(
    tmp_path: Path, name: str, by_words: dict[str, Any]
) -> None:
    text, n_ids, normalizer, pre_tokenizer = LENGTHENED[name]
    letters = sorted({"a", "b", *unicodedata.normalize("NFKD", LONG_WORD)})
    tokenizer = Tokenizer(BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = by_words | {"text_tokenizer": str(tmp_path / "tokenizer.json"), "too_long": "leave_out"}
    folder = made(tmp_path / "shards", [clip(0, text), clip(1, "b")])
    assert set(keys(data(folder, max_length=limit(n_ids), **settings))) == {"clip-0", "clip-1"}
    assert set(keys(data(folder, max_length=limit(n_ids - 1), **settings))) == {"clip-1"}


def test_ids_counted_by_the_same_tokenizer_spare_the_reading(
    long: Path, tmp_path: Path, by_words: dict[str, Any], word_file: Path
) -> None:
    samples = [clip(number, words(n)) for number, n in enumerate(LENGTHS)]
    counted = made(tmp_path / "counted", samples, text_tokenizer=HuggingFaceTokenizer(word_file))
    assert Manifest.load(counted).shards == Manifest.load(long).shards  # and each text's bytes as ever
    for tar in counted.glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    data(counted, max_length=limit(12) + 9, prompt="{caption}", **by_words)
    for folder in counted, long:
        with refused(DataError, file=folder / "shard-000001.tar"):
            data(folder, max_length=limit(11), **by_words)
