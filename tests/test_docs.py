"""What README and the pages of the site say can be done: their commands, keys, code, links and lines."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from experiments import cli
from experiments.config import ExperimentConfig
from experiments.merging import merge
from experiments.read_config import experiment_names, load_experiment
from lumos_pl.sampling.config import SamplingConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MAKE_VARIABLES = {"EXP", "ARGS", "RUN", "RUNS", "NAME", "PROMPT", "VIDEOS", "MINUTES", "OUT", "PYTHON", "CPU_TORCH"}
OF_A_RUN = ("train", "plan", "config")  # their key=value are an experiment's


def blocks(language: str) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for found, content in FENCE.findall(page.read_text()):
            if found == language:
                yield page.name, content


def commands() -> Iterator[tuple[str, list[str]]]:
    """The words of every command in the pages' shell blocks, comments and continued lines put right, of `make` amid
    a sentence, and of jobs."""
    for page in PAGES:
        for found in re.findall(r"`(make [a-z][^`]*)`", FENCE.sub("", page.read_text())):
            yield page.name, shlex.split(found)
    for page, block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield page, words
    for page, block in blocks("yml"):  # of a cluster
        for container in yaml.safe_load(block)["spec"]["template"]["spec"]["containers"]:
            yield page, [*container["command"], *container["args"]]


def lumos_words(words: list[str]) -> list[str] | None:
    """What `lumos` would get, of a line that starts it in any way."""
    for start in (["lumos"], ["-m", "experiments.cli"]):
        for place in range(len(words) - len(start) + 1):
            if words[place : place + len(start)] == start:
                return words[place + len(start) :]
    return None


COMMANDS = list(commands())
OF_LUMOS = [(page, words) for page, line in COMMANDS if (words := lumos_words(line)) is not None]
OF_MAKE = [(page, line[1:]) for page, line in COMMANDS if line[0] == "make"]


def test_the_first_page_is_one_that_one_reads() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160
    assert (ROOT / "docs" / "figures" / "clips.gif").stat().st_size < 1_500_000


@pytest.mark.parametrize(
    ("page", "words"), OF_LUMOS, ids=lambda value: value if isinstance(value, str) else " ".join(value)[:60]
)
def test_commands_are_what_the_parser_takes(page: str, words: list[str]) -> None:
    options = cli.parse(words)
    if words[0] in OF_A_RUN and options.experiment in experiment_names():
        own = [word for word in options.overrides if words[0] != "plan" or "." in word.partition("=")[0]]
        load_experiment(options.experiment, own)


@pytest.mark.parametrize(
    ("page", "words"), OF_MAKE, ids=lambda value: value if isinstance(value, str) else " ".join(value)[:60]
)
def test_make_has_these_targets(page: str, words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    given = dict(word.split("=", 1) for word in words if "=" in word)
    assert {word for word in words if "=" not in word} <= set(targets)
    assert given.keys() <= MAKE_VARIABLES
    if given.get("EXP") in experiment_names():
        load_experiment(given["EXP"], [word for word in shlex.split(given.get("ARGS", "")) if "." in word])


@pytest.mark.parametrize(("page", "code"), list(blocks("python")))
def test_code_parses_and_imports_what_there_is(page: str, code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, name.name) for name in node.names)


@pytest.mark.seconds
@pytest.mark.parametrize("page", ["README.md", "sample.md", "your_own_trainer.md"])
def test_code_of_a_page_runs_from_its_top_to_its_end(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands but for what takes long: steps and epochs."""
    monkeypatch.chdir(tmp_path)
    quick = [(r"max_steps=\d+", "max_steps=2"), (r"val_check_interval=\d+", "val_check_interval=2")]
    quick += [(r"max_epochs=\d+", "max_epochs=1"), (r" steps=\d+", " steps=2"), (r"seed=0\)", "seed=0, sampling=few)")]
    codes = torch.zeros(2, 2, 2, dtype=torch.int64)
    names: dict[str, Any] = {"mine": [("a red circle", codes)] * 4, "few": SamplingConfig(steps=2, guidance=1.0)}
    for name, code in blocks("python"):
        if name == page:
            for pattern, short in quick:
                code = re.sub(pattern, short, code)
            exec(compile(code, page, "exec"), names)


@pytest.mark.parametrize(("page", "content"), list(blocks("yaml")))
def test_settings_have_these_keys(page: str, content: str) -> None:
    given = yaml.safe_load(content)
    if "grid" not in given:  # not a study's
        given.pop("base", None)
        own = {key for key in ("mask", "loggers", "callbacks") if "own." in str(given.get(key))}  # a user's own parts
        known = {key: value for key, value in given.items() if key not in own}
        merge(ExperimentConfig, {}, known, source=page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_of_the_tree_exist(page: Path) -> None:
    for path in re.findall(
        r"`((?:lumos_pl|data_modules|callbacks|experiments|tests|faults|bench)/[\w./]*)`", page.read_text()
    ):
        assert "EXP" in path or (ROOT / path).exists(), path


def test_troubleshooting_knows_lines_that_there_are() -> None:
    lines = re.findall(r"^\| `([^`]+)`", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    folders = ("lumos_pl", "data_modules", "callbacks", "experiments")
    sources = " ".join(file.read_text() for folder in folders for file in (ROOT / folder).rglob("*.py"))
    assert [line for line in lines if line not in sources] == []


def test_commands_of_the_pages_run(capsys: pytest.CaptureFixture[str]) -> None:
    for _, words in OF_LUMOS:
        if words[0] in ("plan", "config", "experiments") and "mine.yaml" not in words:
            assert cli.main(words) == 0, words
    assert capsys.readouterr().out


def build(folder: Path, *, pages: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Build the site as `make docs` does, of the mkdocs.yml in `pages`."""
    mkdocs = Path(sys.executable).with_name("mkdocs")
    if not mkdocs.is_file():
        pytest.skip("mkdocs is not installed")
    (words,) = re.findall(r"\$\(BIN\)/mkdocs (build.*?)(?:  #.*)?\n", (ROOT / "Makefile").read_text())
    command = [mkdocs, *words.split(), "--config-file", pages / "mkdocs.yml", "--site-dir", folder]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_a_link_that_leads_nowhere_stops_the_build(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    with (tmp_path / "docs" / "play.md").open("a") as page:
        page.write("\n[a page](nowhere.md), [a part of one](train.md#nothing)\n")
    done = build(tmp_path / "site", pages=tmp_path)
    assert done.returncode == 1 and "nowhere.md" in done.stderr and "#nothing" in done.stderr


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_reads_nothing_from_elsewhere(site: Path) -> None:
    assert "loss_frame" not in (site / "index.html").read_text()
    for page in site.glob("*.html"):
        read = re.findall(
            r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)", page.read_text()
        )
        assert not read, page.name


@pytest.mark.slow
def test_the_site_is_searched_from_a_folder(site: Path, browser: Any) -> None:
    """As who opens the page without a server, and without a network."""
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((site / "index.html").as_uri())
    page.locator(".md-search-result__meta", has_text="Type to start").wait_for(state="attached")  # it is ready
    page.locator("[data-md-component=search-query]").press_sequentially("quarantine")  # it listens to keys
    page.locator('.md-search-result__link[href*="data.html"]').first.wait_for(state="attached")
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()
