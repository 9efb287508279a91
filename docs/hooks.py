"""What of the site is made from the code: every setting, and the table of experiments."""

from __future__ import annotations

import html
import re
from itertools import groupby
from typing import Any

from experiments.config import ExperimentConfig, TokenizerExperimentConfig
from experiments.keys import Key, keys_of
from experiments.read_config import experiment_names, load_experiment
from experiments.study.config import load_study, study_names

SETTINGS, EXPERIMENTS = "<!-- settings -->", "<!-- experiments -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page: puts the tables where the page asks for them."""
    if SETTINGS in markdown:
        markdown = markdown.replace(SETTINGS, settings())
    if EXPERIMENTS in markdown:
        markdown = markdown.replace(EXPERIMENTS, experiments())
    return markdown


def settings() -> str:
    """A table for each section of the configurations, those of the tokenizer's that differ last."""
    lumos = keys_of(ExperimentConfig())
    known = set(lumos)
    own = [key for key in keys_of(TokenizerExperimentConfig()) if key not in known]
    return _tables(lumos) + "\n# Of a visual tokenizer's experiment\n\n" + _tables(own)


def _tables(keys: list[Key]) -> str:
    def section(key: Key) -> str:
        return key.name.rpartition(".")[0]

    parts = []
    for name, of_section in groupby(sorted(keys, key=section), key=section):
        rows = [
            f"| {_key(key.name)} | {_cell(key.about)}<br><small>{_cell(f'{key.kind}; default `{key.value}`')}</small> |"
            for key in of_section
        ]
        title = f"`{name}`" if name else "At the top"
        head = "| key | meaning; type, range and default |"
        parts.append("\n".join([f"## {title}", "", head, "|---|---|", *rows, ""]))
    return "\n".join(parts)


def experiments() -> str:
    rows = [f"| `{name}` | {_cell(load_experiment(name).about)} |" for name in experiment_names()]
    rows += [f"| study `{name}` | {_cell(load_study(name).about)} |" for name in study_names()]
    return "\n".join(["| name | what it is |", "|---|---|", *rows])


def _key(name: str) -> str:
    """A key that can be linked to, settings.html#data.root, and that breaks where a line of its cell ends."""
    breaking = html.escape(name).replace(".", ".<wbr>").replace("_", "_<wbr>")
    return f'<code id="{html.escape(name)}">{breaking}</code>'


def _cell(text: str) -> str:
    """A text that may stand in a cell of a table: what is between backticks is code, nothing else means anything."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    escaped = re.sub(r"[|*_\[\]\\]", lambda found: f"&#{ord(found[0])};", escaped)
    return re.sub(r"`+([^`]+)`+", r"<code>\1</code>", escaped)
