from __future__ import annotations

from pathlib import Path

import pytest

from experiments.study.index import BEGIN, END, main

STUDY = """
about: Which masks?
claim: Tubes are better.
base: study_small
grid: {mask.kind: [tube, random]}
at: [500, 1500, 4000]
evals: {eval: {only: [fidelity], captions: 4}}
measures: {joint: eval.fidelity/heldout/joint}
"""


@pytest.mark.seconds
def test_the_page_gets_the_table_and_the_picture_of_what_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(STUDY)
    names, rows = [str(tmp_path / "mine.yaml")], []
    for kind, value in ("tube", 0), ("random", 1):
        for step in 500, 1500, 4000:
            rows += [f"{kind},{step},{seed},joint,{value} 1 {value} 1" for seed in (0, 1)]
    rows += ["square,500,0,joint,1 1 1 1", "tube,600,0,joint,1 1 1 1", "tube,500,0,colour,1 1 1 1"]  # no more asked for
    (tmp_path / "mine.csv").write_text("\n".join(["mask.kind,step,seed,measure,values", *rows, ""]))
    (tmp_path / "figures").mkdir()
    page = tmp_path / "RESULTS.md"
    page.write_text(f"before\n\n{BEGIN}\n\nold\n\n{END}\n\nafter\n")
    for _ in range(2):  # the same again
        assert main(tmp_path, tmp_path, names) == 0
        lines = page.read_text().splitlines()
        assert lines[0] == "before" and lines[-1] == "after" and "old" not in lines
        (row,) = (line for line in lines if "Tubes are better" in line)
        assert "0.38 M parameters, 4,000 steps, 2 seeds" in row and "not yet answered" in row
    assert "6 arms of 1 study " in capsys.readouterr().out
    assert (tmp_path / "figures" / "studies.svg").stat().st_size > 5000
