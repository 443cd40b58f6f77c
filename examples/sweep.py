"""Seeds and values of a setting side by side, in one compiled program, and their plot.

    python examples/sweep.py runs/sweep

Each member is then a run of its own, in `runs/sweep/beta-0.1-seed-0` for example.
"""

import sys
from pathlib import Path
from typing import Any

import sail_jax
from sail_jax.sweep import Members

CONFIG = 'configs/quickstart.yaml'


def main(run_dir: str, **overrides: Any) -> dict[str, sail_jax.Result]:
    """Trains two seeds of two values of beta; gives each member's result by its name."""
    run = sail_jax.load(CONFIG, seeds=2, sweep={'beta': [0.1, 0.3]}, **overrides)
    results = sail_jax.train(run, run_dir)
    members = {
        member.name: result for member, result in zip(Members.of(run).each, results, strict=True)
    }
    for name, result in members.items():
        print(f'{name}: {result.before["eval/return"]:.1f} -> {result.after["eval/return"]:.1f}')
    sail_jax.plot(run_dir, Path(run_dir) / 'return.png')
    return members


if __name__ == '__main__':
    main(sys.argv[1])
