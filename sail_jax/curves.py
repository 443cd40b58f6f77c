"""What `plot` draws: the rows of `metrics.jsonl`, by runs that differ in nothing but the seed."""

import difflib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from sail_jax import config, configfile, runs, workloads
from sail_jax.errors import UserError
from sail_jax.kind import Figure
from sail_jax.sweep import Members
from sail_jax.training import metrics

NAMED = 3
"""Settings, at most, that a legend has of a run."""
MINOR = ('evaluation.', 'checkpoints.', 'logging.', 'devices.')
"""Settings that are named last: they do not change what is learned."""


class Curve(NamedTuple):
    """One run's rows."""

    name: str
    """Of its directory; of a member of a sweep, the sweep's."""
    run: config.Settings
    rows: list[metrics.MetricsRow]
    directory: Path | None = None
    """Where they are from."""

    @property
    def figure(self) -> Figure:
        """What is drawn of it."""
        figure = workloads.of(self.run).figure
        assert figure is not None  # `load` has seen to it.
        return figure

    @property
    def titles(self) -> dict[str, str]:
        """Of the metrics that are drawn where none are asked for."""
        return self.figure.y | self.figure.penalised(self.run)


class Group(NamedTuple):
    """Runs that differ in nothing but the seed: a line and its band."""

    name: str
    """For the legend."""
    curves: list[Curve]


def load(path: Path, name: str, keys: Collection[str] = ()) -> Curve:
    """Reads a run, or a member of a sweep.

    Args:
      path: its directory.
      name: what it is called.
      keys: of the metrics that rows are kept for; none are those that the workload draws.

    Raises:
      UserError: no run there, or one that has no such number yet.
    """
    rows = metrics.read_rows(path / 'metrics.jsonl')
    curve = Curve(name, runs.load(path / runs.CONFIG), rows, path.resolve())
    asked = keys or curve.titles
    kept = [row for row in rows if any(key in row for key in asked)]
    if not kept:
        raise UserError(f'{path}/metrics.jsonl: {_what_is_missing(keys, rows)}')
    placed = [row for row in kept if _has(row, curve.figure.x)]
    for key in asked:
        # A policy that broke in every evaluation has no return in any.
        if any(key in row for row in kept) and not any(_has(row, (key,)) for row in placed):
            raise UserError(
                f'{path}/metrics.jsonl: {key!r:.80}: no row has a number of it, and of how far '
                'training was'
            )
    return curve._replace(rows=kept)


def _has(row: metrics.MetricsRow, keys: Collection[str]) -> bool:
    return any(row.get(key) is not None for key in keys)


def _what_is_missing(keys: Collection[str], rows: Sequence[metrics.MetricsRow]) -> str:
    names = sorted({name for row in rows for name in row})
    if not keys or not names:
        return 'no evaluation in it yet'
    key = next(iter(keys))
    close = difflib.get_close_matches(key, names, 1)
    hint = f'did you mean {close[0]}?' if close else f'it has {", ".join(names)}'
    return f'no {key!r:.80}; {hint}'


def load_all(
    run_dirs: Sequence[Path], keys: Collection[str] = ()
) -> tuple[list[Curve], list[UserError]]:
    """The curves that go into one figure, those of the first run's workload and of the members of
    sweeps, and what is wrong with the others: a member that is not begun, say. A run that is named
    twice, beside its sweep for example, is there once."""
    curves: list[Curve] = []
    refused = []
    for run_dir in run_dirs:
        try:
            whole = runs.load(run_dir / runs.CONFIG)
            kind = workloads.of(whole)
            if kind.figure is None:
                raise UserError(f'{run_dir}: a {kind.name} run leaves figures of its own')
            first = workloads.of(curves[0].run).name if curves else kind.name
            if kind.name != first:
                raise UserError(f'{run_dir}: {kind.name} beside {first}; plot them apart')
            paths = Members.of(whole).directories(run_dir)
        except UserError as error:
            refused.append(error)
            continue
        for path in paths:
            if path.resolve() in {curve.directory for curve in curves}:
                continue
            try:
                curves.append(load(path, run_dir.resolve().name, keys))
            except UserError as error:
                refused.append(error)
    return curves, refused


def group_by_settings(curves: Sequence[Curve]) -> list[Group]:
    """Runs that differ in nothing but the seed, under a name that says what sets them apart.

    A group goes by its first run's directory and by its own values of settings in which groups
    differ: of the environment, the reward and whatever else.
    """
    groups: list[list[Curve]] = []
    for curve in curves:
        for group in groups:
            if not configfile.differences(curve.run, group[0].run, ignore=('seed',)):
                group.append(curve)
                break
        else:
            groups.append([curve])
    settings = [configfile.flatten(group[0].run) for group in groups]
    apart = [
        key
        for key in dict.fromkeys(key for each in settings for key in each if key != 'seed')
        if any(each.get(key) != settings[0].get(key) for each in settings)
    ]
    apart.sort(key=lambda key: key.startswith(MINOR))
    return [
        Group(_name(group, {key: each.get(key) for key in apart[:NAMED]}), group)
        for group, each in zip(groups, settings, strict=True)
    ]


def _name(group: Sequence[Curve], values: dict[str, object]) -> str:
    shown = ', '.join(
        f'{key} {"none" if value is None else value}' for key, value in values.items()
    )
    seeds = 'seeds' if len({curve.run.seed for curve in group}) == len(group) else 'runs'
    name = f'{group[0].name}: {shown}' if shown else group[0].name
    return f'{name} ({len(group)} {seeds})' if len(group) > 1 else name
