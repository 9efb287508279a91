"""The data sets of a run's mixture, by its configuration as it stands in its file: nothing of it is built."""

from __future__ import annotations

from typing import Any

from data_modules.stream.skipped_steps import SkippedSteps
from lumos_pl.errors import ConfigError

MOST_STEPS = 10**7  # that are counted, which takes seconds where weights change all along


def steps_of_sources(config: dict[str, Any], step: int) -> dict[str, int]:
    """How many of a training's steps before one were of each data set; nothing where the settings do not tell."""
    from data_modules.stream.mixture import Mixture, Weights, check_weights

    try:
        of_settings = {name: source.get("weight", 1) for name, source in sources_of(config).items()}
        weights = {name: Weights.parse(weight, name) for name, weight in of_settings.items()}
        skipped = SkippedSteps.parse(config["data"].get("skip_steps", []))
        check_weights(weights, "data.sources")
    except (ConfigError, AttributeError, TypeError, KeyError):
        return {}
    if not weights or not 0 < step <= MOST_STEPS:
        return dict.fromkeys(weights, 0) if step == 0 else {}
    order, end = Mixture(weights), skipped.of_order(step - 1) + 1
    counts = order.steps_before(end)
    for first, last in skipped.ranges:
        if last < end:
            before, after = order.steps_before(first), order.steps_before(last + 1)
            counts = {name: n - (after[name] - before[name]) for name, n in counts.items()}
    return counts


def sources_of(config: dict[str, Any]) -> dict[str, Any]:
    """The data sets that are mixed, by name; none where there is no mixture."""
    data = config.get("data")
    sources = data.get("sources") if isinstance(data, dict) else None
    return sources if isinstance(sources, dict) else {}
