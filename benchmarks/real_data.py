"""Real preferences for the study on a real model: two halves to learn two rewards from, and rows
that nothing learns from.

    python -m benchmarks.real_data test.jsonl.gz --model models/SmolLM2-135M-Instruct --out data/hh

Of HH-RLHF's rows (Anthropic/hh-rlhf, MIT) those with prompts and responses of few enough tokens, in
an order of their own: `held_out.jsonl`, then `proxy.jsonl` and `gold.jsonl`, as many each.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import preference_files
from sail_jax.errors import UserError
from sail_jax.language.config import Data
from sail_jax.language.data import dataset, rows, sources, tokens
from sail_jax.language.data.rows import DataRow
from sail_jax.language.data.tokens import Tokenizer

SEED = 0


class Sizes(NamedTuple):
    """Tokens of the longest rows, and how many rows are held out."""

    prompt_tokens: int = 128
    response_tokens: int = 96
    held_out: int = 96


def usable(path: Path, tokenizer: Tokenizer, sizes: Sizes) -> list[DataRow]:
    """The rows that are short enough; a prompt that comes again is left out, so that none is in
    two parts."""
    limits = Data(
        path=str(path),
        max_prompt_tokens=sizes.prompt_tokens,
        max_response_tokens=sizes.response_tokens,
    )
    kept: dict[rows.Prompt, DataRow] = {}
    for file in sources.find(path, 'train'):
        for located in sources.read(file):
            try:
                row = rows.check(rows.hh_rlhf(located.load()), 'preference')
                dataset.encode(limits, tokenizer, row)
            except UserError:
                continue
            kept.setdefault(row.prompt, row)
    return list(kept.values())


def split(kept: list[DataRow], held_out_rows: int) -> dict[str, list[DataRow]]:
    """The rows of each part."""
    order = np.random.default_rng(SEED).permutation(len(kept))
    half = (len(kept) - held_out_rows) // 2
    ends = np.cumsum([held_out_rows, half, half])[:-1]
    held_out, proxy, gold = np.split(order[: held_out_rows + 2 * half], ends)
    parts = {'held_out': held_out, 'proxy': proxy, 'gold': gold}
    return {name: [kept[i] for i in indices] for name, indices in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('data', type=Path)
    parser.add_argument('--model', type=Path, required=True, help='whose tokens count')
    parser.add_argument('--out', type=Path, required=True, help='directory for the three parts')
    options = parser.parse_args()
    try:
        sizes = Sizes()
        parts = split(usable(options.data, tokens.load(options.model), sizes), sizes.held_out)
    except UserError as error:
        sys.exit(str(error))
    preference_files.write(parts, options.out)


if __name__ == '__main__':
    main()
