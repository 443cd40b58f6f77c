"""How an arm of `benchmarks.convergence` chooses its settings: a grid, and then the neighbours of
the best until it is better than all of them, or the trials are used up."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.convergence_arms import MAX_TRIALS, Axis

Point = tuple[float, ...]
"""A value of each axis, in their order."""
Box = dict[str, tuple[float, ...]]
"""Values of each axis; all combinations of them."""


class Choice(NamedTuple):
    """What was chosen, and from what."""

    settings: dict[str, float]
    open: list[str]
    """Axes on which a neighbour of the choice was not tried; none if the choice is well inside."""
    trials: list[dict[str, Any]]
    """Settings, and the return of each tuning seed, in the order in which they were tried."""


def points(box: Box) -> list[Point]:
    """All combinations, the last axis fastest."""
    return list(itertools.product(*box.values()))


def neighbours(axes: dict[str, Axis], best: Point) -> dict[str, list[Point]]:
    """Of each axis the points one step down and one step up its ladder."""
    around = {}
    for index, (name, axis) in enumerate(axes.items()):
        place = axis.ladder.index(best[index])
        values = [axis.ladder[i] for i in (place - 1, place + 1) if 0 <= i < len(axis.ladder)]
        around[name] = [(*best[:index], value, *best[index + 1 :]) for value in values]
    return around


def choose(
    axes: dict[str, Axis], score: Callable[[Box], list[list[float]]], limit: int = MAX_TRIALS
) -> Choice:
    """The point of the best mean return over the tuning seeds.

    Args:
      axes: what is chosen, by name.
      score: trains all points of a box, and returns what each tuning seed of each reached, in the
        order of `points`; NaN counts as the worst.
      limit: points that may be tried.
    """
    tried: dict[Point, list[float]] = {}

    def attempt(box: Box) -> None:
        tried.update(zip(points(box), score(box), strict=True))

    def mean(point: Point) -> float:
        value = float(np.mean(tried[point]))
        return -math.inf if math.isnan(value) else value

    attempt({name: axis.first for name, axis in axes.items()})
    while True:
        best = max(tried, key=mean)
        around = neighbours(axes, best)
        untried = {
            name: fresh
            for name, near in around.items()
            if (fresh := [point for point in near if point not in tried])
        }
        if not untried or len(tried) >= limit:
            break
        for index, name in enumerate(axes):
            if values := [point[index] for point in untried.get(name, [])][: limit - len(tried)]:
                fixed = {key: (value,) for key, value in zip(axes, best, strict=True)}
                attempt(fixed | {name: tuple(values)})
    trials = [
        {'settings': dict(zip(axes, point, strict=True)), 'returns': returns}
        for point, returns in tried.items()
    ]
    return Choice(dict(zip(axes, best, strict=True)), list(untried), trials)


def untuned(axes: dict[str, Axis]) -> Choice:
    """Without a trial."""
    return Choice({name: axis.untuned for name, axis in axes.items()}, [], [])


def slug(box: Box) -> str:
    """A name of a box for a directory."""
    spans = {name: '+'.join(f'{value:g}' for value in values) for name, values in box.items()}
    return '-'.join(f'{name}-{span}' for name, span in spans.items())
