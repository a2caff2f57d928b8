from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest


class Cases:
    """Numbered cases of one test, each with randomness of its own.

    With BITMAPS_LONG, all cases are tried. The numbers of those that passed are written to
    ``$BITMAPS_LONG/<test>.txt``, so that the next run goes on after them. Without it, a sample is
    tried, always the same.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.trying: int | None = None

    def __call__(self, total: int, sample: int) -> Iterator[tuple[int, random.Random]]:
        """Number and randomness of each case. A case has passed when the next one is asked for."""
        numbers = random.Random(self.name).sample(range(total), sample)
        passed = None
        if folder := os.environ.get("BITMAPS_LONG"):
            passed = Path(folder) / f"{self.name}.txt"
            passed.parent.mkdir(parents=True, exist_ok=True)
            passed.touch()
            done = set(map(int, passed.read_text(encoding="ascii").split()))
            numbers = [number for number in range(total) if number not in done]
        for number in numbers:
            self.trying = number
            yield number, random.Random(f"{self.name} {number}")
            if passed is not None:
                with passed.open("a", encoding="ascii") as file:
                    file.write(f"{number}\n")
        self.trying = None


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> Iterator[Cases]:
    found = Cases(request.node.name)
    yield found
    if found.trying is not None:
        print(f"failed: case {found.trying} of {found.name}")
