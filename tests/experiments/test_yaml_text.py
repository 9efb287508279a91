"""YAML and `key=value` that nobody vouches for: one line with the file or the key, whatever they say."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.config import plain, to_yaml
from experiments.merging import text_override
from experiments.read_config import load_experiment, read_config, with_overrides
from experiments.run_folder import NAME_VARIABLE, RunFolder
from lumos_pl.errors import ConfigError
from tests.refusals import refused, told

TEXTS = {
    "no value": "seed: ???",
    "a number as key": "1: 2",
    "a word that is a truth value as key": "yes: 2",
    "such a key further down": "trainer: {profiler: {1: 2}}",
    "a tag that does not fit": "seed: !!int x",
    "a number of 5000 digits": "seed: " + "9" * 5000,
    "a number beyond 64 bits": "seed: " + "9" * 30,
    "deep": "loggers: " + "[" * 20_000,
    "a mapping as task": "task: {a: 1}",
    "bytes": "about: !!binary aGk=",
    "a list of itself": "loggers: &a [*a]",
    "aliases that double": "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
    "a key twice": "seed: 1\nseed: 2",
    "a tab": "\tseed: 1",
    "NUL": 'about: "\\0"',
    "two documents": "seed: 1\n---\nseed: 2",
    "a call": "about: !!python/object/apply:os.getpid []",
    "a base that is a list": "base: [debug]",
    "not fp32": "optimizer: {lr: 1e39}",
    "many workers": "data: {num_workers: 100000}",
    "layers": "model: {n_layers: 100000000000}",
    "a folder's name that is too long": f"run: {{dir: {'a' * 300}}}",
    "another folder": "run: {name: ../../x}",
    "an open brace": "about: ${",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", TEXTS)
def test_a_yaml_that_cannot_be_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(TEXTS[name] + "\n")
    assert main(["plan", str(file)]) == 2
    assert len(" | ".join(told(capsys.readouterr().err))) < 1000


@pytest.mark.timeout(60)
def test_only_a_regular_file_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"about: \xe4\n")
    for name in "fifo", "zero", "folder", "latin", "absent":
        assert main(["plan", str(tmp_path / f"{name}.yaml")]) == 2
        assert told(capsys.readouterr().err)[1].endswith(f"{name}.yaml")


@pytest.mark.parametrize(
    "override",
    ["base=demo", "1=2", "seed=???", "seed=!!int x", "run.dir=\udcff", "x\0=1", "loggers.0=csv", "a." * 3000 + "b=1"],
    ids=lambda override: repr(override[:20]),
)
def test_an_override_that_cannot_be_is_one_line(override: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "debug", override]) == 2
    told(capsys.readouterr().err)


def test_merge_keys_and_aliases_are_taken_as_they_are_meant(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "base: debug\ndata:\n  image: &some {batch_size: 3, streams: 2}\n  video: {<<: *some, frames: 9}\n"
    )
    data = load_experiment(str(tmp_path / "mine.yaml")).data
    assert (data.image.batch_size, data.video.batch_size, data.video.streams, data.video.frames) == (3, 3, 2, 9)


def test_the_name_from_the_environment_obeys_the_rules_of_every_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "../../escape", ".", "latest", "a/b", "x" * 300:
        monkeypatch.setenv(NAME_VARIABLE, name)
        with refused(ConfigError, where=NAME_VARIABLE):
            RunFolder.named("debug", load_experiment("debug"))


def test_what_settings_say_is_never_filled_in_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "told")
    file = tmp_path / "config.yaml"
    for about in "${oc.env:SECRET}", "${", "1e3":
        file.write_text(to_yaml(load_experiment("debug")).replace("about: ", f"about: {about!r}\nx: ", 1))
        text = file.read_text()
        file.write_text("\n".join(line for line in text.splitlines() if not line.startswith("x: ")) + "\n")
        config = read_config(file)
        assert config.about == about
        assert plain(with_overrides(config, ["seed=3"])) == plain(config) | {"seed": 3}
        file.write_text(to_yaml(config))
        assert read_config(file) == config


def test_no_backslash_has_the_environment_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "told")
    config = replace(load_experiment("debug"), about="")
    for n in range(5):
        file = tmp_path / f"{n}.yaml"
        file.write_text(to_yaml(config).replace("about: ''", f"about: '{n * chr(92)}${{oc.env:SECRET}}'"))
        assert "told" not in read_config(file).about and "SECRET" in read_config(file).about


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("run.name=1e5", "run.name"),
        ("run.name=true", "run.name"),
        ("about=[a]", "about"),
        ("callbacks.prompts=[a,{b: 1}]", "callbacks.prompts[1]"),
    ],
)
def test_what_is_no_text_is_not_written_out_as_one(override: str, where: str) -> None:
    with refused(ConfigError, where=where):
        load_experiment("debug", [override])


@pytest.mark.parametrize(
    ("override", "name"), [("run.name=1", "1"), ("run.name='1e5'", "1e5"), ("run.name=null", None)]
)
def test_texts_are_taken(override: str, name: str | None) -> None:
    assert load_experiment("debug", [override]).run.name == name


@pytest.mark.parametrize(
    "name", ["a b", "ü", "a\nb", "a: b", "a #b", "[x]", "null", "'q'", '"', "a=b", "\\L", "*x", "- x", " x ", "\a"]
)
def test_a_text_is_a_setting_whatever_signs_are_in_it(name: str) -> None:
    words = [text_override("run.dir", f"own/{name}/runs"), text_override("data.root", name)]
    config = load_experiment("debug", words)
    assert (config.run.dir, config.data.root) == (f"own/{name}/runs", name)


def test_a_text_that_no_setting_can_be_is_refused() -> None:
    for text in "own/${oc.env:HOME}", "own/\udcff":
        with refused(ConfigError, where="run.dir"):
            text_override("run.dir", text)
