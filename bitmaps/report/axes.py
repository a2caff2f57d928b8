"""The axes of pictures, with round ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Axis:
    """The ends of an axis, and its ticks, which are round and lie between them."""

    low: float
    high: float
    ticks: Sequence[float]
    log: bool

    @property
    def format(self) -> str:
        """The format of the ticks: the same decimals if their distances are equal.

        >>> Axis(0, 1, [0.5, 1.0], False).format, Axis(0.1, 20, [0.5, 1, 10], True).format
        ('.1f', 'g')
        """
        steps = {rounded(after - tick) for tick, after in pairwise(self.ticks)}
        texts = [f"{tick:g}" for tick in self.ticks]
        if len(steps) > 1 or any("e" in text for text in texts):
            return "g"
        return f".{max((len(text.partition('.')[2]) for text in texts), default=0)}f"


def axis_of(values: Sequence[float], log: bool, margin: float = 0.08) -> Axis:
    """An axis with room beside all of these values.

    Args:
        log: wanted; not for values of which one is not positive.
        margin: the room at each end, as a share of the axis.
    """
    low, high = min(values), max(values)
    if log and low > 0:
        beside = max((high / low) ** margin, 1.05)
        low, high = low / beside, high * beside
        return Axis(low, high, log_ticks(low, high), True)
    beside = max(margin * (high - low), 0.02 * abs(high), 1e-9)
    low, high = low - beside, high + beside
    return Axis(low, high, linear_ticks(low, high), False)


def log_ticks(low: float, high: float, least: int = 3) -> list[float]:
    """Round numbers on a logarithmic axis: powers of ten, or those and more, until there are
    ``least``.

    >>> log_ticks(2.5, 90), log_ticks(3.3, 4.2)
    ([5.0, 10.0, 20.0, 50.0], [3.4, 3.6, 3.8, 4.0, 4.2])
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 2, 5), (1, 2, 3, 5, 7)):
        numbers = [rounded(step * 10.0**power) for power in powers for step in steps]
        if len(found := [number for number in numbers if low <= number <= high]) >= least:
            return found
    return linear_ticks(low, high)


def linear_ticks(low: float, high: float, least: int = 4) -> list[float]:
    """Round numbers at equal distances, at least ``least`` of them.

    >>> linear_ticks(0.02, 0.46)
    [0.1, 0.2, 0.3, 0.4]
    """
    power = 10.0 ** math.floor(math.log10((high - low) / least) + 1)
    for step in (power, power / 2, power / 5, power / 10):
        numbers = range(math.ceil(low / step), math.floor(high / step) + 1)
        if len(numbers) >= least:
            break
    return [rounded(number * step) for number in numbers]


def rounded(number: float) -> float:
    return float(f"{number:.10g}")
