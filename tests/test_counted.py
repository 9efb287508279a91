"""Numbers and their nouns."""

import pytest

from lumos_pl.machinery.counted import counted


@pytest.mark.parametrize(("n", "words"), [(0, "0 clips"), (1, "1 clip"), (2, "2 clips"), (2500, "2,500 clips")])
def test_one_is_not_many(n: int, words: str) -> None:
    assert counted(n, "clip") == words
    assert counted(n, "process", "processes") == words.replace("clips", "processes").replace("clip", "process")
