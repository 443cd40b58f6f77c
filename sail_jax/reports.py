"""The tables that commands print."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sail_jax import config, terminal
from sail_jax.sweep import Members

if TYPE_CHECKING:
    from sail_jax.training.metrics import Row
    from sail_jax.training.result import Result

# The rows of the final table: title, metric, and the metric of its standard error.
TABLE = (
    ('return, stochastic', 'return', 'return_se'),
    ('return, deterministic', 'deterministic_return', 'deterministic_return_se'),
    ('median return, stochastic', 'return_q50', None),
    ('episode length', 'length', None),
    ('KL(policy || reference) per step', 'kl_policy_to_ref', None),
    ('KL(reference || policy) per step', 'kl_ref_to_policy', None),
    ('win rate against the reference', 'win_rate', None),
    ('label accuracy, whole episodes', 'label_accuracy', None),
    ('episodes that broke the simulator', 'not_finite', None),
)
SWEEP_TABLE = (
    ('return', 'return', 'return_se'),
    ('of the mode', 'deterministic_return', 'deterministic_return_se'),
    ('KL per step', 'kl_policy_to_ref', None),
)
LANGUAGE_TABLE = (
    ('reward', 'reward', 'reward_se'),
    ('win rate against the reference', 'win_rate', None),
    ('KL(policy || reference) per response', 'response_kl_policy_to_ref', None),
    ('KL(reference || policy) per response', 'response_kl_ref_to_policy', None),
    ('accuracy on held-out pairs', 'pair_accuracy', None),
    ('margin on held-out pairs', 'pair_margin', 'pair_margin_se'),
    ('response length, tokens', 'response_length', None),
    ('responses that ended', 'ended', None),
    ('rewards and judgements that are no finite number', 'not_finite', None),
    ('loss on held-out responses, nats per token', 'loss', None),
    ('perplexity on held-out responses', 'perplexity', None),
)


def print_result(result: Result) -> None:
    """What a finished run came to."""
    print_comparison(
        f'{result.length:,} {result.unit.replace("_", " ")}, {result.labels:,} labels, '
        f'{result.wall_s:.0f} s',
        _strip(result.before),
        _strip(result.after),
    )


def print_sweep(run: config.Run, results: list[Result]) -> None:
    """The members of a sweep, each by the name of its directory: reference, then trained."""
    names = [member.name for member in Members.of(run).each]
    rows = []
    for name, result in zip(names, results, strict=True):
        before, after = _strip(result.before), _strip(result.after)
        cells = [f'{_cell(before, *keys)} → {_cell(after, *keys)}' for _, *keys in SWEEP_TABLE]
        rows.append((name, *cells))
    title = f'reference → trained, {results[0].length:,} steps each, {results[0].wall_s:.0f} s'
    terminal.print_table(title, ('', *(name for name, *_ in SWEEP_TABLE)), rows)


def print_comparison(title: str, before: Row, after: Row) -> None:
    """The table of reference against trained policy."""
    table = TABLE if TABLE[0][1] in after else LANGUAGE_TABLE
    # A run that an older version has begun has a first evaluation of fewer numbers.
    table = [row for row in table if row[1] in before.keys() & after.keys()]
    rows = [(name, _cell(before, *keys), _cell(after, *keys)) for name, *keys in table]
    terminal.print_table(title, ('', 'reference', 'trained policy'), rows)
    for who, numbers in (('reference', before), ('trained policy', after)):
        _say_what_is_not_sound(who, numbers)


def _say_what_is_not_sound(who: str, numbers: Row) -> None:
    """Of which episodes of a policy, or of its responses, there is nothing to go by."""
    simulator = 'episodes is sound: the simulator returned NaN or infinity in all of them'
    for key, what in (
        ('return', f'stochastic {simulator}'),
        ('deterministic_return', f'deterministic {simulator}'),
        ('reward', 'responses has a reward that is a finite number'),
    ):
        if math.isnan(numbers.get(key, 0)):
            terminal.out(f'{who}: none of its {what}')


def _strip(row: Row) -> Row:
    return {key.removeprefix('eval/'): value for key, value in row.items()}


def _cell(numbers: Row, key: str, error: str | None) -> str:
    if math.isnan(numbers[key]):
        return '-'
    if key == 'not_finite':
        return f'{numbers[key]:,.0f}'
    value = number(numbers[key])
    if f'{key}_low' in numbers:  # A 95 % interval.
        return f'{value} ({numbers[f"{key}_low"]:.2f} to {numbers[f"{key}_high"]:.2f})'
    return f'{value} ± {_short(numbers[error])}' if error else value


def number(value: float) -> str:
    """A number as people read it: three decimals or one, thousands apart, the small by their
    power of ten."""
    size = abs(value)
    if size >= 10_000:
        return f'{value:,.0f}'
    if size >= 10:
        return f'{value:.1f}'
    return f'{value:.2g}' if 0 < size < 5e-4 else f'{value:.3f}'


def _short(value: float) -> str:
    return f'{value:,.0f}' if abs(value) >= 99.5 else f'{value:.2g}'
