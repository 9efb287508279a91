"""What a checkpoint says of the data that it learned from."""

from __future__ import annotations

from pathlib import Path

from experiments.assemble import assemble
from experiments.read_config import load_experiment
from lumos_pl.checkpoints.description import refuse_changes
from lumos_pl.errors import CheckpointError
from tests.data_modules.shards.shard_files import make_sample, open_writer
from tests.refusals import refused


def test_a_run_knows_whose_codes_it_learns(tmp_path: Path) -> None:
    with open_writer(tmp_path) as writer:
        writer.add(make_sample(0, text="a cat"))
    config = load_experiment("debug", ["data.kind=video", f"data.root={tmp_path}", "data.val_root=null"])
    assert assemble(config).data.identity()["visual_tokenizer"] == "toy"
    assert assemble(load_experiment("debug", [])).data.identity()["visual_tokenizer"] is None  # made up


def test_a_run_goes_on_from_a_checkpoint_that_does_not_say_it(tmp_path: Path) -> None:
    now = {"data": {"visual_tokenizer": "toy"}}
    refuse_changes({"data": {}}, now)
    with refused(CheckpointError, where="data.visual_tokenizer", got="toy", expected="other"):
        refuse_changes({"data": {"visual_tokenizer": "other"}}, now)
