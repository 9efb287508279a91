"""Loads a visual or text tokenizer by the word or path that names it."""

# ruff: noqa: PTH110, PTH112, PTH113
from __future__ import annotations

from functools import cache
from importlib.resources import as_file, files
from os.path import exists, isdir, isfile  # pathlib raises for names that no file can have
from pathlib import Path

from lumos_pl.checkpoints.named import EMBEDDED, resolve_latest
from lumos_pl.errors import CheckpointError, ConfigError
from lumos_pl.layout import TokenLayout
from lumos_pl.tokenizers import cosmos, text
from lumos_pl.tokenizers.cosmos import FIX, CosmosTokenizer
from lumos_pl.tokenizers.text import BYTES, ByteTokenizer, HuggingFaceTokenizer, TextTokenizer
from lumos_pl.tokenizers.tokenizer_file import read_tokenizer
from lumos_pl.tokenizers.visual import VisualTokenizer

VISUAL_TOKENIZER_FILE = "tokenizer.safetensors"  # in the folder of a run that trained one
GENERAL = "general"
NAMED = (EMBEDDED, GENERAL)  # visual tokenizers that come with the project
TEXT_TOKENIZER_FILE = "tokenizer.json"  # may be next to the weights of a model


def load_visual_tokenizer(source: str, *, device: str = "cpu", named_by: Path | None = None) -> VisualTokenizer:
    """Load the visual tokenizer that `source` names.

    Args:
        source: `embedded`: the small one that comes with the project, for its own drawn world; `general`: the one that
            comes along for videos of any kind (see docs/tokenizers.md); a safetensors file of our own, or the folder
            of the run that made it (`make train EXP=tokenizer_fsq`; `runs/tokenizer_fsq/latest` is the newest); or a
            folder with Cosmos's encoder.jit and decoder.jit.
        named_by: the checkpoint or run's file that names it, which may be anybody's; None: the user does. Cosmos's
            files are programs, and nothing is executed because a file names it.
    Raises:
        ConfigError, CheckpointError: it does not exist, is not a tokenizer, or a file names code.
    """
    if source in NAMED:
        return _coming_along(source, device)
    path = _visual_path(source)
    if isfile(path / "config.yaml"):
        raise ConfigError("a run without a visual tokenizer", file=path, expected=f"{VISUAL_TOKENIZER_FILE} in it")
    if isdir(path):
        if named_by is not None:
            raise _refusal(source, named_by)
        return CosmosTokenizer.load(path, device=device)
    if not exists(path):
        own = " or ".join(f"`{name}`" for name in NAMED)
        expected = f"{own}, a .safetensors file, its run, or a folder with Cosmos's encoder.jit and decoder.jit"
        raise ConfigError("no such visual tokenizer", file=source, expected=expected, fix=f"Cosmos's: {FIX}")
    return read_tokenizer(path, device=device)


def refuse_code(source: str | None, named_by: Path) -> None:
    """Raise CheckpointError if a file names a visual tokenizer that is code; see `load_visual_tokenizer`."""
    if source is not None and source not in NAMED and isdir(_visual_path(source)):
        raise _refusal(source, named_by)


def _refusal(source: str, named_by: Path) -> CheckpointError:
    fix = "if you trust it, name it yourself: visual_tokenizer=DIR (`lumos sample`: --tokenizer DIR)"
    what, got = "a file names a visual tokenizer that is code to execute", repr(source[:200])
    return CheckpointError(what, file=named_by, where="visual_tokenizer", got=got, fix=fix)


def _visual_path(source: str) -> Path:
    """The path for a name not in `NAMED`: a file of our own, or a folder without one."""
    path = resolve_latest(Path(source), holding=VISUAL_TOKENIZER_FILE)
    return path / VISUAL_TOKENIZER_FILE if isfile(path / VISUAL_TOKENIZER_FILE) else path


def is_data(source: object) -> bool:
    """Whether a name stands for a visual tokenizer that is only data; Cosmos's is code, which loading executes."""
    if not isinstance(source, str):
        return False
    in_a_run = isfile(Path(source, VISUAL_TOKENIZER_FILE))
    return source in NAMED or in_a_run or (source.endswith(".safetensors") and not isdir(source))


def load_text_tokenizer(source: str | None, layout: TokenLayout) -> TextTokenizer | None:
    """Load the text tokenizer that `source` names, for texts of this layout.

    Args:
        source: `embedded`: words of the demo's captions, and letters for other words; a `tokenizer.json` or its folder;
            or None: bytes, if the layout's text vocabulary is bytes.
    Returns:
        None if `source` is None and the text vocabulary is not bytes.
    Raises:
        ConfigError: it cannot be read, or has another vocabulary.
    """
    if source is None:
        return ByteTokenizer() if layout.n_text == BYTES else None
    tokenizer = open_text_tokenizer(source)
    tokenizer.check(layout)
    return tokenizer


def open_text_tokenizer(source: str) -> HuggingFaceTokenizer:
    """Load the text tokenizer that `source` names, for texts of any layout; see `load_text_tokenizer`."""
    if source == EMBEDDED:
        with as_file(files("lumos_pl.tokenizers") / "embedded.json") as path:
            return HuggingFaceTokenizer(path)
    path = resolve_latest(Path(source), holding=TEXT_TOKENIZER_FILE)
    return HuggingFaceTokenizer(path / TEXT_TOKENIZER_FILE if isdir(path) else path)


def the_visual_tokenizer(
    source: VisualTokenizer | str | Path | None, *, device: str = "cpu", named_by: Path | None = None
) -> VisualTokenizer | None:
    """The tokenizer itself, or the one named, see `load_visual_tokenizer`; other objects are not checked here."""
    if isinstance(source, str | Path):
        return load_visual_tokenizer(str(source), device=device, named_by=named_by)
    return source


def the_text_tokenizer(source: TextTokenizer | str | Path | None, layout: TokenLayout) -> TextTokenizer | None:
    """The tokenizer itself, or the one named, see `load_text_tokenizer`.

    Raises:
        ConfigError: it is not a text tokenizer; or as `load_text_tokenizer`.
    """
    if source is None or isinstance(source, str | Path):
        return load_text_tokenizer(None if source is None else str(source), layout)
    if not (hasattr(source, "fingerprint") and callable(getattr(source, "encode", None))):
        got, expected = type(source).__name__, "what TextTokenizer says: fingerprint and encode"
        raise ConfigError("no text tokenizer", where="text_tokenizer", got=got, expected=expected)
    return source


def need_visual_tokenizer(tokenizer: VisualTokenizer | None) -> VisualTokenizer:
    """Return the tokenizer; raise ConfigError if it is None."""
    if tokenizer is not None:
        return tokenizer
    fix = f"give the one it was trained with; of a release, the folder with the files of {cosmos.PUBLISHED}"
    raise ConfigError("no visual tokenizer", where="visual_tokenizer", fix=fix)


def need_text_tokenizer(tokenizer: TextTokenizer | None, layout: TokenLayout) -> TextTokenizer:
    """Return the tokenizer; raise ConfigError if it is None, as there is none for texts of this layout."""
    if tokenizer is not None:
        return tokenizer
    published = text.PUBLISHED.get(layout.name, "the one it was trained with")
    raise ConfigError("no text tokenizer", where="text_tokenizer", fix=f"give a tokenizer.json: {published}")


@cache
def _coming_along(name: str, device: str) -> VisualTokenizer:
    with as_file(files("lumos_pl.tokenizers") / f"{name}.safetensors") as path:
        return read_tokenizer(path, device=device)
