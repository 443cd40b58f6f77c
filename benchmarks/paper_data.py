"""The data of the paper's language runs as this project reads them: prompts in the authors' plain
templates, split 80 to 20 with seed 42 as `datasets` splits.

    hf download --repo-type dataset openbmb/UltraFeedback --local-dir data/UltraFeedback
    python -m benchmarks.paper_data u10 data/UltraFeedback/*.jsonl --out data/u10
    hf download --repo-type dataset PKU-Alignment/PKU-SafeRLHF-10K --local-dir data/PKU-SafeRLHF-10K
    python -m benchmarks.paper_data pp10 data/PKU-SafeRLHF-10K/train.jsonl --out data/pp10

Of UltraFeedback it is the first 10,000 rows; chosen and rejected are the completions of the highest
and the lowest `overall_score`. A row that has no two different ones is left out of its part. Which
of several files are the first rows is said by their order on the command line.
"""

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import preference_files
from sail_jax.errors import UserError
from sail_jax.language.data import sources
from sail_jax.language.data.rows import DataRow, pku_safe_rlhf

ROWS = 10_000
SEED = 42
U10_PROMPT = '[INST] {} [/INST]'
PP10_PROMPT = 'Human: {} Assistant:'


def u10(raw: Mapping[str, Any]) -> DataRow | None:
    """A row of openbmb/UltraFeedback; None where its scores say no preference.

    Raises:
      UserError: no such row.
    """
    try:
        scored = [(float(c['overall_score']), c['response']) for c in raw['completions']]
        prompt = U10_PROMPT.format(raw['instruction'])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f'no row of openbmb/UltraFeedback: {error!r:.80}') from None
    if not scored:
        return None
    scores = [score for score, _ in scored]
    high, low = int(np.argmax(scores)), int(np.argmin(scores))
    if scores[high] == scores[low] or scored[high][1] == scored[low][1]:
        return None
    return DataRow(prompt, chosen=scored[high][1], rejected=scored[low][1])


def pp10(raw: Mapping[str, Any]) -> DataRow | None:
    """A row of PKU-SafeRLHF-10K, by the more helpful response."""
    row = pku_safe_rlhf(raw)
    if row.chosen == row.rejected:
        return None
    return row._replace(prompt=PP10_PROMPT.format(raw['prompt']))


CONVERTERS = {'u10': u10, 'pp10': pp10}


def split(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the rows for training and for tests, in the order in which
    `datasets.Dataset.train_test_split(test_size=0.2, seed=42)` has them."""
    tests = -(-rows // 5)
    order = np.random.default_rng(SEED).permutation(rows)
    return order[tests:], order[:tests]


def convert(name: str, raws: Sequence[Mapping[str, Any]]) -> dict[str, list[DataRow]]:
    """The rows of each part, usable ones only."""
    train, test = split(len(raws))
    parts = {'train': train, 'test': test}
    return {
        part: [row for i in indices if (row := CONVERTERS[name](raws[i])) is not None]
        for part, indices in parts.items()
    }


def read(paths: Sequence[Path]) -> list[Mapping[str, Any]]:
    """The first rows of files or directories.

    Raises:
      UserError: no such data; a row that cannot be read.
    """
    files = itertools.chain.from_iterable(sources.find(path, 'train') for path in paths)
    located = itertools.chain.from_iterable(map(sources.read, files))
    return [row.load() for row in itertools.islice(located, ROWS)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('data', choices=sorted(CONVERTERS))
    parser.add_argument('files', type=Path, nargs='+')
    parser.add_argument('--out', type=Path, required=True, help='directory for the two parts')
    options = parser.parse_args()
    try:
        parts = convert(options.data, read(options.files))
    except UserError as error:
        sys.exit(str(error))
    preference_files.write(parts, options.out)


if __name__ == '__main__':
    main()
