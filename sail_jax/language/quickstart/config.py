"""Configuration of the language quickstart."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from sail_jax.config import Section, Settings
from sail_jax.errors import UserError
from sail_jax.language import config as language_config
from sail_jax.language.config import LanguageRun
from sail_jax.language.sft import config as sft_config
from sail_jax.language.sft.config import SftRun

REVIEWS, SFT = 'reviews', 'sft'
"""Directories of the text and of the supervised stage in the run directory."""
METHODS = {'online-dpo': 'online DPO', 'sail': 'SAIL', 'sail-revkl': 'SAIL-RevKL'}
"""Directories of the alignments in the run directory, and their titles."""


class Reviews(Section):
    """How much text is made."""

    reviews: int = Field(default=8192, ge=1, le=2**20)
    """Reviews to learn from, half of them complaints, in `reviews.jsonl`."""
    pairs: int = Field(default=256, ge=1, le=2**20)
    """Pairs of one opening's praise (chosen) and complaint (rejected), in `pairs.jsonl`."""
    vocab_size: int = Field(default=640, ge=257, le=2**20)
    """Tokens, of which 256 are bytes."""


class QuickstartRun(Settings):
    """Writes reviews, trains a small model on them, and aligns it by three methods.

    The stages are runs of their own within the run directory, which their paths are relative to;
    their seed is this file's.
    """

    workload: Literal['language-quickstart']
    """What this file configures."""
    reviews: Reviews = Reviews()
    sft: SftRun
    alignment: LanguageRun
    """SAIL-RevKL's; SAIL is the same without its KL penalty, online DPO without its response-score
    term too."""


def check(run: QuickstartRun) -> None:
    """Refuses stages that cannot run, and an alignment of which the three methods are not three.

    Raises:
      UserError: naming the key.
    """
    if run.sft.model.tokenizer is None:
        raise UserError('sft.model: trains a new network; give its architecture and tokenizer')
    sft_config.check(run.sft)
    language_config.check(run.alignment)
    for key, value in (
        ('objective.response_grad', run.alignment.objective.response_grad),
        ('divergence.coefficient', run.alignment.divergence.coefficient),
    ):
        if value == 0:
            raise UserError(f'alignment.{key}: 0 makes two of {", ".join(METHODS.values())} equal')


def supervised(run: QuickstartRun, run_dir: Path) -> SftRun:
    """The supervised stage as a run of its own."""
    model, data = run.sft.model, run.sft.data
    assert model.tokenizer is not None  # `check` has seen to it.
    return run.sft.model_copy(
        update={
            'seed': run.seed,
            'model': model.model_copy(update={'tokenizer': run_dir / model.tokenizer}),
            'data': data.model_copy(update={'path': str(run_dir / data.path)}),
        }
    )


def alignment(run: QuickstartRun, run_dir: Path, method: str) -> LanguageRun:
    """An alignment as a run of its own; `method` is one of `METHODS`."""
    base = run.alignment
    off = {'online-dpo': (0.0, 0.0), 'sail': (base.objective.response_grad, 0.0)}
    response_grad, coefficient = off.get(
        method, (base.objective.response_grad, base.divergence.coefficient)
    )
    sections = {
        'objective': {'response_grad': response_grad},
        'divergence': {'coefficient': coefficient},
        'model': {'path': run_dir / base.model.path},
        'data': {'path': str(run_dir / base.data.path)},
        'evaluation': {'path': base.evaluation.path and str(run_dir / base.evaluation.path)},
    }
    updates = {name: getattr(base, name).model_copy(update=sections[name]) for name in sections}
    return base.model_copy(update={'seed': run.seed, **updates})
