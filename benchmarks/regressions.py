"""Which ratios moved by more than 10 % against those that are committed?

Ratios within one run of one machine carry over to another better than speeds do.

    python -m benchmarks.regressions runs/benchmarks           # exit status 1 if any got worse
    python -m benchmarks.regressions runs/benchmarks --update  # these are the baseline from now on
"""

import argparse
import json
from pathlib import Path
from typing import Any

BASELINE = Path(__file__).with_name('baseline.json')
TOLERANCE = 0.1


def read_rows(directory: Path) -> list[dict[str, Any]]:
    """The ratios of all results in a directory."""
    files = [json.loads(path.read_text()) for path in sorted(directory.glob('*.json'))]
    return [row for results in files for row in results.get('rows', [])]


def read_baseline() -> dict[str, float]:
    """The committed ratios by name."""
    return json.loads(BASELINE.read_text())


def moved(row: dict[str, Any], baseline: dict[str, float]) -> float | None:
    """Change of a ratio against the baseline, -0.2 for 20 % less; None where it has none."""
    before = baseline.get(row['name'])
    return None if before is None else row['ratio'] / before - 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('results', type=Path, help='what `python -m benchmarks` wrote')
    parser.add_argument('--update', action='store_true', help='write the baseline')
    options = parser.parse_args()
    rows = read_rows(options.results)
    baseline = read_baseline()
    if options.update:
        baseline |= {row['name']: row['ratio'] for row in rows}
        BASELINE.write_text(json.dumps(baseline, indent=1, sort_keys=True) + '\n')
        return 0
    worse = 0
    for row in rows:
        change = moved(row, baseline)
        if change is not None and abs(change) > TOLERANCE:
            worse += change < 0
            print(
                f'{row["name"]}: {baseline[row["name"]]:.2f} -> {row["ratio"]:.2f} ({change:+.0%})'
            )
    return int(worse > 0)


if __name__ == '__main__':
    raise SystemExit(main())
