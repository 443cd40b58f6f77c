"""The members of a sweep: runs that `seeds` and `sweep` make of one configuration, trained side by
side in one program. A run alone is one member."""

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sail_jax import scalars
from sail_jax.config import MAX_MEMBERS, Run, Section, Seeded, Settings
from sail_jax.errors import UserError

SECTIONS = {
    'beta': 'objective',
    'response_grad': 'objective',
    'coefficient': 'divergence',
    'learning_rate': 'optimizer',
}
"""Where the values of a sweep belong."""


@dataclass(frozen=True)
class Member:
    """One run of those that are trained side by side."""

    name: str
    """Of its directory within the sweep's; empty for a run alone."""
    run: Any
    """A `config.Trained`; of a sweep, a `config.Seeded` without seeds and swept values."""

    def directory(self, run_dir: Path) -> Path:
        """Where its rows go; for a run alone, the run directory itself."""
        return run_dir / self.name


@dataclass(frozen=True)
class Members:
    """The runs of a configuration."""

    run: Any
    """The configuration that they are made of."""
    each: tuple[Member, ...]
    sweep: bool
    """Whether arrays lead with an axis over the members. A run alone has no such axis."""

    @classmethod
    def of(cls, run: Settings) -> 'Members':
        """The members of a configuration: one for each combination of seeds and swept values.

        Raises:
          UserError: there are more than `MAX_MEMBERS`, or seeds beyond int32.
        """
        if not isinstance(run, Seeded) or (run.seeds is None and not _values(run.sweep)):
            return cls(run, (Member('', run),), sweep=False)
        return cls(run, tuple(_combinations(run)), sweep=True)

    def directories(self, run_dir: Path) -> list[Path]:
        """Where each member's rows go."""
        return [member.directory(run_dir) for member in self.each]

    @property
    def shared(self) -> Any:
        """The configuration that a program for all members is made of.

        What depends on whether there is a penalty is there if any member has one.
        """
        if not self.sweep:
            return self.run
        coefficient = max(member.run.divergence.coefficient for member in self.each)
        divergence = self.run.divergence.model_copy(update={'coefficient': coefficient})
        return self.run.model_copy(update={'divergence': divergence})


def require_alone(run: Settings, run_dir: Path) -> None:
    """Refuses a sweep where one run's policy is asked for.

    Raises:
      UserError: naming one of its runs.
    """
    members = Members.of(run)
    if members.sweep:
        one = members.each[0].directory(run_dir)
        raise UserError(f'{run_dir}: a sweep; name one of its runs, e.g. {one}')


def check(run: Run) -> None:
    """Refuses members that cannot be trained side by side.

    Raises:
      UserError: naming the keys.
    """
    members = check_names(run)
    penalised = {member.run.divergence.coefficient > 0 for member in members}
    if len(penalised) > 1 and run.divergence.states == 'reference':
        raise UserError(
            'sweep.coefficient: 0 and positive values draw different samples with '
            'divergence.states: reference; sweep them apart'
        )


def check_names(run: Seeded) -> tuple[Member, ...]:
    """The members, each of which has a directory of its own.

    Raises:
      UserError: two of them are the same run.
    """
    members = Members.of(run).each
    names = [member.name for member in members]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(
            f'seeds, sweep: the same run twice, {twice[0]} (six digits of a value are looked at)'
        )
    return members


def _values(sweep: Section) -> dict[str, tuple[float, ...]]:
    return {key: values for key, values in sweep.model_dump().items() if values}


def _combinations(run: Seeded) -> list[Member]:
    swept = _values(run.sweep)
    if isinstance(run.seeds, int):
        seeds, number = range(run.seed, run.seed + run.seeds), run.seeds
    else:
        seeds = run.seeds or (run.seed,)
        number = len(seeds)
    # Before anything is made of them: a number of seeds can be beyond what `len` counts.
    count = number * math.prod(map(len, swept.values()))
    if count > MAX_MEMBERS:
        raise UserError(f'seeds, sweep: {count:,} runs side by side; at most {MAX_MEMBERS:,}')
    if max(seeds, default=0) > scalars.INT_MAX:
        raise UserError(
            f'seeds: {run.seeds} from seed {run.seed} on; the largest is {scalars.INT_MAX}'
        )
    return [
        _member(run, dict(zip(swept, values, strict=True)), int(seed))
        for *values, seed in itertools.product(*swept.values(), seeds)
    ]


def _member(run: Seeded, values: dict[str, float], seed: int) -> Member:
    data = run.model_dump() | {'seeds': None, 'sweep': {}, 'seed': seed}
    for key, value in values.items():
        section = SECTIONS[key]
        data[section] = data[section] | {key: value}
    name = '-'.join([*(f'{key}-{value:g}' for key, value in values.items()), f'seed-{seed}'])
    return Member(name, type(run).model_validate(data))
