"""The campaigns in small: they keep their promises, and they can see one broken."""

from __future__ import annotations

import random
from contextlib import nullcontext
from pathlib import Path

import pytest

from faults.campaign import Campaign, Verdict, run_campaign
from faults.campaigns import CAMPAIGNS
from faults.mutate import mutate
from faults.planted import BUGS

QUICK = {"shards": 30, "skip-bad": 20, "checkpoints": 8, "hostile-pickles": 8, "prompts": 12, "command-lines": 30}
SLOW = {"videos": 30, "saving": 40, "order": 3, "kills": 3, "sigterms": 3, "planted": len(BUGS)}


def promises_are_kept(name: str, instances: int) -> None:
    report = run_campaign(CAMPAIGNS[name], seed=0, instances=instances, on_progress=lambda: None)
    assert not report.missed, report.line
    assert sum(report.counts.values()) == instances


@pytest.mark.parametrize(("name", "instances"), QUICK.items())
def test_promises_are_kept(name: str, instances: int) -> None:
    promises_are_kept(name, instances)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "instances"), SLOW.items())
def test_promises_are_kept_by_processes(name: str, instances: int) -> None:
    promises_are_kept(name, instances)


def test_every_campaign_is_tried_here() -> None:
    assert {*QUICK, *SLOW} == set(CAMPAIGNS)


def campaign(outcomes: dict[int, Verdict]) -> Campaign:
    numbers = iter(range(100))

    def judge(draw: random.Random) -> Verdict:
        number = next(numbers)
        if number == 2:
            raise KeyError("lost")
        return outcomes.get(number, Verdict("fine"))

    return Campaign(
        name="toy", title="toys", instances=5, held=("fine",), broken=("torn",), open=lambda folder: nullcontext(judge)
    )


def test_a_broken_promise_and_a_crash_are_counted_and_told() -> None:
    report = run_campaign(campaign({1: Verdict("torn", "so")}), seed=0, instances=4, on_progress=lambda: None)
    assert report.counts == {"fine": 2, "torn": 1, "crash": 1}
    assert report.missed[0] == {"instance": 1, "outcome": "torn", "detail": "so"}
    assert "KeyError" in str(report.missed[1]["detail"])
    assert report.line.startswith("4 toys: fine 2, torn 1, crash 1 (")


def test_an_instance_depends_on_the_seed_and_its_number_alone(tmp_path: Path) -> None:
    drawn: list[float] = []

    def judge(draw: random.Random) -> Verdict:
        drawn.append(draw.random())
        return Verdict("fine")

    toy = Campaign(name="t", title="t", instances=3, held=("fine",), broken=(), open=lambda folder: nullcontext(judge))
    run_campaign(toy, seed=4, instances=3, on_progress=lambda: None)
    run_campaign(toy, seed=4, instances=3, only=2, on_progress=lambda: None)
    run_campaign(toy, seed=5, instances=3, only=2, on_progress=lambda: None)
    assert len(set(drawn[:3])) == 3 and drawn[3] == drawn[2] and drawn[4] not in drawn[:3]


def test_mutations_change_something() -> None:
    data = bytes(2000)
    assert all(mutate(data, random.Random(seed))[0] != data for seed in range(300))
