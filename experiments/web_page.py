"""Pages that the project writes: one file each, with all that it shows inside, in the look of `lumos play`."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

LOOK = Path(__file__).parent / "play" / "page"  # with look.css


def render_page(template: Path, **content: Any) -> bytes:
    """The page of a template, which may include what lies beside it and in `LOOK`; a name without content raises."""
    templates = Environment(
        loader=FileSystemLoader([template.parent, LOOK]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    templates.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return templates.get_template(template.name).render(**content).encode()
