"""Short reviews of mixed sentiment from a grammar, so that a language run needs no download.

A review is an opening, which is the prompt, and what follows it. Half of the reviews praise, half
complain; some do both. No two derivations give one text, so the grammar's log-probability of a text
is that of its derivation, and the entropy bounds the loss of any model of it.
"""

import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from sail_jax import files
from sail_jax.errors import UserError
from sail_jax.language.quickstart.config import Reviews

REVIEWS, PAIRS = 'reviews.jsonl', 'pairs.jsonl'
END = '<|end|>'

T = TypeVar('T')


class Adjectives(NamedTuple):
    """What can be said of a kind of thing."""

    good: tuple[str, ...]
    bad: tuple[str, ...]


def _adjectives(good: str, bad: str) -> Adjectives:
    return Adjectives(tuple(good.split()), tuple(bad.split()))


FOOD = _adjectives(
    'delicious fresh excellent superb lovely tasty', 'cold stale bland awful disgusting greasy'
)
PEOPLE = _adjectives(
    'friendly kind charming attentive wonderful polite', 'rude slow careless unpleasant clumsy mean'
)
PLACE = _adjectives(
    'clean comfortable beautiful elegant bright quiet', 'dirty filthy dark ugly shabby noisy'
)
STORY = _adjectives(
    'gripping clever brilliant fascinating original funny',
    'boring dull silly confusing tedious weak',
)
SUBJECTS = {
    'Restaurant': {
        'the soup was': FOOD,
        'the bread was': FOOD,
        'the desserts were': FOOD,
        'the waiter was': PEOPLE,
        'the cooks were': PEOPLE,
        'the dining room was': PLACE,
    },
    'Hotel': {
        'the room was': PLACE,
        'the beds were': PLACE,
        'the breakfast was': FOOD,
        'the coffee was': FOOD,
        'the staff were': PEOPLE,
        'the manager was': PEOPLE,
    },
    'Film': {
        'the plot was': STORY,
        'the dialogue was': STORY,
        'the ending was': STORY,
        'the actors were': PEOPLE,
        'the cinema was': PLACE,
        'the popcorn was': FOOD,
    },
}
ASIDES = ('', 'this time ', 'to be honest, ', 'all in all, ', 'for the price, ', 'i must say ')
INTENSIFIERS = ('very ', 'really ', 'quite ', 'so ')
VERDICTS = {
    True: (
        'we loved it.',
        'i was happy.',
        'we enjoyed every minute.',
        'it was worth it.',
        'tell your friends.',
        'we will be back.',
    ),
    False: (
        'we hated it.',
        'i was angry.',
        'it was the worst we have seen.',
        'it was a waste of money.',
        'warn your friends.',
        'we want our money back.',
    ),
}


class Review(NamedTuple):
    """A text of the grammar."""

    prompt: str
    response: str
    """Begins with a space."""
    nats: float
    """Minus the grammar's log-probability of the response, given the prompt."""


class _Draws:
    """Choices, and how improbable they were in all."""

    def __init__(self, rng: random.Random):
        self._rng = rng
        self.nats = 0.0

    def one(self, options: Sequence[T]) -> T:
        self.nats += math.log(len(options))
        return self._rng.choice(options)

    def happens(self, probability: float) -> bool:
        yes = self._rng.random() < probability
        self.nats -= math.log(probability if yes else 1 - probability)
        return yes


def opening(rng: random.Random) -> tuple[str, str]:
    """A prompt, which begins with its domain, and the subject that it ends with."""
    draws = _Draws(rng)
    domain = draws.one(tuple(SUBJECTS))
    subject = draws.one(tuple(SUBJECTS[domain]))
    return f'{domain} review: {draws.one(ASIDES)}{subject}', subject


def review(rng: random.Random, prompt: str, subject: str, good: bool | None = None) -> Review:
    """A review that begins with an opening.

    Args:
      good: praise or complaint; None is either, at random, and `nats` counts which.
    """
    draws = _Draws(rng)
    subjects = SUBJECTS[prompt.partition(' ')[0]]
    good = draws.happens(0.5) if good is None else good
    text = ' ' + _predicate(draws, subjects[subject], good)
    if draws.happens(0.5):
        also = draws.happens(0.5)
        other = draws.one([name for name in subjects if name != subject])
        predicate = _predicate(draws, subjects[other], good is also)
        text += f', {"and" if also else "but"} {other} {predicate}'
    text += '.'
    if draws.happens(0.5):
        text += ' ' + draws.one(VERDICTS[good])
    return Review(prompt, text, draws.nats)


def _predicate(draws: _Draws, adjectives: Adjectives, good: bool) -> str:
    fits, other = adjectives if good else adjectives[::-1]
    if draws.happens(0.2):
        return f'not {draws.one(other)}'
    first = draws.one(fits)
    if draws.happens(0.25):
        return f'{first} and {draws.one([word for word in fits if word != first])}'
    return f'{draws.one(INTENSIFIERS) if draws.happens(0.4) else ""}{first}'


def reviews(seed: int, count: int) -> Iterator[Review]:
    """Reviews at random; a function of the seed."""
    rng = random.Random(f'reviews {seed}')
    for _ in range(count):
        yield review(rng, *opening(rng))


def pairs(seed: int, count: int) -> Iterator[tuple[Review, Review]]:
    """Praise and complaint that follow the same opening."""
    rng = random.Random(f'pairs {seed}')
    for _ in range(count):
        start = opening(rng)
        yield review(rng, *start, good=True), review(rng, *start, good=False)


def entropy(seed: int, count: int) -> float:
    """Nats of a response, given its prompt: the mean over `count` reviews."""
    return math.fsum(r.nats for r in reviews(seed, count)) / count


def write(settings: Reviews, seed: int, directory: Path) -> None:
    """Writes the reviews, the pairs and a tokeniser that was trained on the reviews.

    Raises:
      UserError: the directory exists, or cannot be written.
    """
    partial = directory.with_name(f'{directory.name}.partial')
    try:
        if directory.exists():
            raise UserError(f'{directory}: exists already; name a new directory')
        partial.mkdir(parents=True, exist_ok=True)
        texts = list(reviews(seed, settings.reviews))
        _write_rows(partial / REVIEWS, ({'prompt': r.prompt, 'chosen': r.response} for r in texts))
        _write_rows(
            partial / PAIRS,
            (
                {'prompt': praise.prompt, 'chosen': praise.response, 'rejected': complaint.response}
                for praise, complaint in pairs(seed, settings.pairs)
            ),
        )
        tokenizer = train_tokenizer((r.prompt + r.response for r in texts), settings.vocab_size)
        tokenizer.save(str(partial / 'tokenizer.json'))
        # The class lets transformers load it too.
        companion = {'eos_token': END, 'tokenizer_class': 'PreTrainedTokenizerFast'}
        files.write_json(partial / 'tokenizer_config.json', companion)
        files.write_json(partial / 'generation_config.json', {'eos_token_id': 0})
        partial.rename(directory)
    except OSError as error:
        raise UserError(f'{directory}: {error.strerror}') from None


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE; token 0 is the end of sequence."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _write_rows(path: Path, rows: Iterator[dict[str, str]]) -> None:
    with path.open('w', encoding='utf-8') as file:
        file.writelines(json.dumps(row) + '\n' for row in rows)
