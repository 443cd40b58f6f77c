"""Tables of `benchmarks.convergence`, from its `raw.json`.

Environment by environment: returns of the stochastic policy and of its mode, as they are; then the
stochastic return between the start of the seeds, 0, and PPO, 1; and between the start and the arm
that gains most, 1, which a small gain of PPO does not blow up. Only the last, and probabilities of
improvement, are put together over environments. PPO's batches are larger: its curve is read at the
env steps of the others. Interquartile means with 95 % stratified bootstrap intervals, seeds
resampled within each environment.

    python -m benchmarks.convergence_report DIR    draws them anew
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import convergence_figures
from benchmarks.convergence_arms import PPO, TOLD
from benchmarks.convergence_statistics import (
    Interval,
    array,
    bootstrap,
    cohens_d,
    collapsed,
    improvement,
    iqm,
)
from benchmarks.machine import write as write_json

RIVALS = (PPO, 'online DPO, refreshed')
"""Whom every arm is compared with, seed against seed."""

Numbers = dict[str, np.ndarray]
"""An arm on an environment, all seeds of its pieces: [seeds, evaluations]."""


def joined(result: dict[str, Any]) -> Numbers:
    """The pieces of an arm as one."""
    pieces = result['pieces']
    curves = [key for key, values in pieces[0].items() if _is_curve(key, values)]
    steps = array(pieces[0]['env_steps'])
    assert all(piece['env_steps'] == pieces[0]['env_steps'] for piece in pieces)
    return {
        'env_steps': steps,
        **{key: np.concatenate([array(piece[key]) for piece in pieces]) for key in curves},
    }


def _is_curve(key: str, values: Any) -> bool:
    return key not in ('seeds', 'env_steps', 'labels', 'skipped') and isinstance(values, list)


def at_end(numbers: dict[str, Numbers], arm: str, key: str = 'return') -> np.ndarray:
    """Of one arm at the env steps where the first of all arms ends, [seeds]."""
    end = min(each['env_steps'][-1] for each in numbers.values())
    return np.asarray([np.interp(end, numbers[arm]['env_steps'], x) for x in numbers[arm][key]])


def scores(numbers: dict[str, Numbers], one: float) -> dict[str, np.ndarray]:
    """Returns of all arms between the mean start of all seeds, 0, and the return `one`."""
    zero = start(numbers)
    return {arm: (at_end(numbers, arm) - zero) / (one - zero) for arm in numbers}


def start(numbers: dict[str, Numbers]) -> float:
    """Mean return of the policies that all arms start from, over the seeds that most arms have."""
    most = max(numbers.values(), key=lambda each: len(each['return']))
    return float(most['return'][:, 0].mean())


def of_environment(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A row an arm."""
    numbers = {arm: joined(result) for arm, result in results.items()}
    means = {arm: at_end(numbers, arm).mean() for arm in numbers}
    of_best = scores(numbers, max(means.values()))
    of_ppo = scores(numbers, means[PPO]) if PPO in means else {}
    rivals = [rival for rival in RIVALS if rival in numbers]
    rows = {}
    for arm, result in results.items():
        ours = at_end(numbers, arm)
        others = {rival: at_end(numbers, rival) for rival in rivals if rival != arm}
        middle = lambda key, arm=arm: float(np.nanmedian(at_end(numbers, arm, key)))
        rows[arm] = {
            'told': result['told'],
            'seeds': len(ours),
            'labels': result['pieces'][0].get('labels', [0])[-1],
            'return': bootstrap([ours], iqm)._asdict(),
            'mode': bootstrap([at_end(numbers, arm, 'deterministic_return')], iqm)._asdict(),
            'normalised': bootstrap([of_ppo[arm]], iqm)._asdict() if of_ppo else None,
            'of_best': bootstrap([of_best[arm]], iqm)._asdict(),
            'improves': {
                rival: bootstrap([ours, theirs], improvement)._asdict()
                for rival, theirs in others.items()
            },
            'cohens_d': {rival: cohens_d(ours, theirs) for rival, theirs in others.items()},
            'collapsed': int(collapsed(numbers[arm]['return']).sum()),
            **{key: middle(key) for key in ('action_std', 'entropy', 'kl_policy_to_start')},
            'settings': result['settings'],
            'open': result['open'],
            'trials': len(result['trials']),
            'minutes': [piece['minutes'] for piece in result['pieces']],
        }
    return rows


def together(raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A row an arm, over the environments; only of arms that all of them have."""
    environments = {
        env: {arm: joined(result) for arm, result in results.items()}
        for env, results in raw['envs'].items()
    }
    common = set.intersection(*(set(numbers) for numbers in environments.values()))
    arms = [arm for arm in next(iter(environments.values())) if arm in common]
    ends = {arm: [at_end(numbers, arm) for numbers in environments.values()] for arm in arms}
    best = [
        scores(numbers, max(at_end(numbers, arm).mean() for arm in numbers))
        for numbers in environments.values()
    ]
    rows = {}
    for arm in arms:
        fallen = [collapsed(numbers[arm]['return']) for numbers in environments.values()]
        rows[arm] = {
            'of_best': bootstrap([each[arm] for each in best], iqm)._asdict(),
            'improves': {
                rival: bootstrap(ends[arm] + ends[rival], improvement)._asdict()
                for rival in RIVALS
                if rival in arms and rival != arm
            },
            'collapsed': int(sum(map(np.sum, fallen))),
            'seeds': int(sum(map(len, fallen))),
        }
    return rows


def summarise(raw: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry an arm: its environments, and all of them together."""
    environments = {env: of_environment(results) for env, results in raw['envs'].items()}
    pooled = together(raw)
    arms = list(dict.fromkeys(arm for rows in environments.values() for arm in rows))
    return [
        {
            'method': arm,
            'envs': {env: rows[arm] for env, rows in environments.items() if arm in rows},
            'together': pooled.get(arm),
        }
        for arm in arms
    ]


def measurement(machine: dict[str, Any]) -> str:
    """What something was measured on, in a line."""
    return (
        f'`{machine["command"]}`, {machine["cpu_cores"]} {machine["platform"]} cores, '
        f'jax {machine["versions"]["jax"]}, {machine["date"]}'
    )


def measurements(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What an environment's pieces were measured on, each once."""
    pieces = [piece['machine'] for result in results.values() for piece in result['pieces']]
    return list({json.dumps(machine): machine for machine in pieces}.values())


def interval(numbers: dict[str, float] | None, digits: int = 2) -> str:
    return '' if numbers is None else Interval(**numbers).rounded(digits)


def settings_of(row: dict[str, Any]) -> str:
    """What an arm chose; a star at what has a neighbour that was not tried."""
    star = lambda key: '*' if key in row['open'] else ''
    return ', '.join(f'{key} {value:g}{star(key)}' for key, value in row['settings'].items())


def lines_of_environment(env: str, rows: dict[str, Any], measured: str) -> list[str]:
    """The tables of one environment."""
    first = [
        f'## {env}',
        '',
        measured,
        '',
        '| arm | told | seeds | return | of the mode | PPO = 1 | best arm = 1 | P(better than PPO) '
        '| P(better than online DPO, refreshed) | d to PPO | d to that | collapsed |',
        '|---|---|---|---|---|---|---|---|---|---|---|---|',
    ]
    second = [
        '',
        '| arm | standard deviation of actions | entropy, nats a step '
        '| KL(policy to start), nats a step | labels | settings | tried | minutes |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for arm, row in rows.items():
        chances = [interval(row['improves'].get(rival)) for rival in RIVALS]
        effects = [f'{row["cohens_d"].get(rival, np.nan):.2f}' for rival in RIVALS]
        cells = [
            arm,
            row['told'],
            str(row['seeds']),
            interval(row['return'], 0),
            interval(row['mode'], 0),
            interval(row['normalised']),
            interval(row['of_best']),
            *chances,
            *('' if text == 'nan' else text for text in effects),
            f'{row["collapsed"]} of {row["seeds"]}',
        ]
        first.append(f'| {" | ".join(cells)} |')
        minutes = ' + '.join('?' if x is None else f'{x:.0f}' for x in row['minutes'])
        second.append(
            f'| {arm} | {row["action_std"]:.3f} | {row["entropy"]:.2f} '
            f'| {row["kl_policy_to_start"]:.3g} | {row["labels"]:,} | {settings_of(row)} '
            f'| {row["trials"]} | {minutes} |'
        )
    return [*first, *second, '']


def lines_together(raw: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """The table over environments."""
    lines = [
        f'## {", ".join(raw["envs"])} together',
        '',
        '| arm | best arm = 1 | P(better than PPO) | P(better than online DPO, refreshed) '
        '| collapsed |',
        '|---|---|---|---|---|',
    ]
    for row in rows:
        if both := row['together']:
            chances = [interval(both['improves'].get(rival)) for rival in RIVALS]
            cells = [row['method'], interval(both['of_best']), *chances]
            lines.append(f'| {" | ".join(cells)} | {both["collapsed"]} of {both["seeds"]} |')
    return lines


def markdown(raw: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The tables; those of single environments come first."""
    size = raw['size']
    tuned = (
        f'Settings were chosen in runs of {size["tuning_env_steps"]:,} env steps on other seeds; a '
        'star is at a setting with a neighbour that was not tried.'
        if size['tuning_env_steps']
        else 'Nothing was tuned.'
    )
    lines = [f'{size["env_steps"]:,} env steps, rounded up to whole evaluations. {tuned}', '']
    lines += [*(f'* told {name}: {meaning}' for name, meaning in TOLD.items()), '']
    for env, results in raw['envs'].items():
        measured = '; '.join(map(measurement, measurements(results)))
        of_env = {row['method']: row['envs'][env] for row in rows if env in row['envs']}
        lines += lines_of_environment(env, of_env, measured)
    if len(raw['envs']) > 1:
        lines += lines_together(raw, rows)
    return '\n'.join(lines).rstrip() + '\n'


def write(raw: dict[str, Any], out: Path) -> None:
    """`table.json`, `table.md`, and the figures (PNG, PDF) in `out`."""
    rows = summarise(raw)
    measured = {env: measurements(results) for env, results in raw['envs'].items()}
    write_json({'machines': measured, 'methods': rows}, out / 'table.json')
    (out / 'table.md').write_text(markdown(raw, rows))
    curves = {
        env: {arm: joined(result) for arm, result in results.items()}
        for env, results in raw['envs'].items()
    }
    convergence_figures.draw(curves, out)


if __name__ == '__main__':
    directory = Path(sys.argv[1])
    write(json.loads((directory / 'raw.json').read_text()), directory)
