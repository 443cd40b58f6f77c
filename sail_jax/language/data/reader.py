"""The rows of a run: which are held out, and which ones an update reads."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sail_jax import files
from sail_jax.errors import UserError
from sail_jax.language.config import LanguageRun
from sail_jax.language.data import dataset, sources
from sail_jax.language.data.dataset import Data, Dataset, Example
from sail_jax.language.data.rows import RowType
from sail_jax.language.data.tokens import Tokenizer
from sail_jax.language.model.sampler import bucket, pad_prompts
from sail_jax.language.supervised.config import SupervisedRun
from sail_jax.language.workload import Pairs, PromptBatch

log = logging.getLogger(__name__)


class Reader(NamedTuple):
    """A run's data. Which rows an update reads follows from its number alone."""

    dataset: Dataset
    training: np.ndarray
    """Row numbers that are trained on."""
    held_out: list[Example]
    seed: int
    rows_per_update: int

    def examples(self, step: int, rows: np.ndarray | None = None) -> list[Example]:
        """The rows of the update that follows `step` updates.

        Args:
          rows: which of them; None is all.
        """
        cursor, count = step * self.rows_per_update, self.rows_per_update
        order = dataset.indices(self.seed, cursor, count, len(self.training))
        order = order if rows is None else order[rows]
        return [self.dataset[row] for row in self.training[order]]


def cache_dir() -> Path:
    """Where prepared data are kept between runs.

    Raises:
      UserError: the user has no such place.
    """
    cache = files.user_cache()
    if cache is None:
        raise UserError(
            'data are prepared in the home directory, and there is none; XDG_CACHE_HOME, an '
            'absolute path, says where else'
        )
    return cache / 'data'


def prepare(
    run: LanguageRun | SupervisedRun,
    tokenizer: Tokenizer,
    cache: Path | None = None,
    row_type: RowType | None = None,
) -> Reader:
    """Reads and checks the data of a run, or finds them prepared.

    Args:
      row_type: what is needed of each row. None needs pairs of a data set that has them, whether or
        not training reads the responses.

    Raises:
      UserError: as of `dataset.prepare`; fewer rows than are to be held out.
    """
    cache, settings = cache or cache_dir(), run.evaluation
    reads_pairs = isinstance(run, LanguageRun) and run.reads_pairs
    training = dataset.prepare(
        run.data, row_type or _row_type(run.data, reads_pairs), tokenizer, cache
    )
    rows = np.arange(len(training))
    if settings.path is None and settings.split is None:
        elsewhere = training
        numbers = _spread(settings.prompts, len(training), 'data.path: ' + run.data.path, spare=1)
        rows = np.setdiff1d(rows, numbers)
    else:
        path, split = settings.path or run.data.path, settings.split or 'test'
        other = run.data.model_copy(update={'path': path, 'split': split})
        elsewhere = dataset.prepare(other, row_type or _row_type(other, False), tokenizer, cache)
        if twice := _files(run.data) & _files(other):  # Of one file the split is no matter.
            log.warning('evaluation: on rows that are trained on too, of %s', min(twice))
        numbers = _spread(settings.prompts, len(elsewhere), f'evaluation.path: {path}')
    if run.prompts_per_update > len(rows):
        log.warning(
            'prompts_per_update: %d, and %s has %d rows to train on: every update has some of them '
            'more than once',
            run.prompts_per_update,
            run.data.path,
            len(rows),
        )
    held_out = [elsewhere[number] for number in numbers]
    return Reader(
        dataset=training,
        training=rows,
        held_out=held_out,
        seed=run.seed,
        rows_per_update=run.prompts_per_update,
    )


def batch(
    examples: Sequence[Example], pair_places: int | None = None, prompt_places: int = 1
) -> PromptBatch:
    """Rows as the compiled programs take them, padded to buckets.

    Args:
      pair_places: of each of the data's responses; None leaves them out.
      prompt_places: of each prompt at the least.
    """
    prompts = pad_prompts([example.prompt for example in examples], bucket(prompt_places))
    if pair_places is None:
        return PromptBatch(prompts, None)
    tokens: Any = np.zeros((len(examples), 2, pair_places), np.int32)  # To be put on devices.
    lengths: Any = np.zeros((len(examples), 2), np.int32)
    for row, example in enumerate(examples):
        for lane, response in enumerate((example.chosen, example.rejected)):
            assert response is not None  # Rows of pairs have both.
            tokens[row, lane, : len(response)] = response
            lengths[row, lane] = len(response)
    return PromptBatch(prompts, Pairs(tokens_Bx2xR=tokens, lengths_Bx2=lengths))


def places(longest: int, most: int) -> int:
    """The padded size for responses: their bucket, but never more than the limit."""
    return min(bucket(longest), most)


def _files(settings: Data) -> set[str]:
    return {*map(os.path.realpath, sources.find(settings.path, settings.split))}


def _row_type(settings: Data, pairs: bool) -> RowType:
    return 'preference' if pairs or dataset.has_pairs(settings) else 'prompt'


def _spread(count: int, size: int, where: str, spare: int = 0) -> np.ndarray:
    """`count` row numbers, evenly spread over `size` rows."""
    if count + spare > size:
        raise UserError(f'evaluation.prompts: {count} to hold out; {where} has {size} usable rows')
    return np.arange(count) * size // count
