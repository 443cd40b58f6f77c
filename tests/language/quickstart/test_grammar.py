"""The grammar of reviews, and the lexicon that scores them."""

import collections
import json
import math
import random
import statistics

import pytest

from sail_jax.errors import UserError
from sail_jax.language.data import tokens
from sail_jax.language.quickstart import grammar
from sail_jax.language.reward.sentiment import positivity

SMALL = grammar.Reviews(reviews=600, pairs=20, vocab_size=600)


def polarity(reviews):
    return positivity([r.prompt for r in reviews], [r.response for r in reviews])


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp('text') / 'reviews'
    grammar.write(SMALL, 3, path)
    return path


def test_text_is_a_function_of_the_seed(directory, tmp_path):
    for seed, same in ((3, True), (4, False)):
        other = tmp_path / str(seed)
        grammar.write(SMALL, seed, other)
        for name in (grammar.REVIEWS, grammar.PAIRS, 'tokenizer.json'):
            equal = (other / name).read_bytes() == (directory / name).read_bytes()
            assert equal is same, name


def test_reviews_are_neutral_on_average_and_far_from_it_each():
    values = polarity(list(grammar.reviews(0, 4000)))
    # On a scale from -1 to 1; what is learnt from it has room to rise.
    assert abs(statistics.mean(values)) < 0.05
    assert statistics.pstdev(values) > 0.4
    assert 0.45 < sum(value < 0 for value in values) / len(values) < 0.55


def test_praise_scores_above_complaint():
    pairs = list(grammar.pairs(0, 1000))
    praise, complaint = (polarity(side) for side in zip(*pairs, strict=True))
    assert statistics.mean(praise) > 0.3 > -0.3 > statistics.mean(complaint)
    for good, bad in pairs:
        assert good.prompt == bad.prompt
        assert good.response != bad.response


@pytest.mark.parametrize(
    ('worse', 'better'),
    [(' not good.', ' good.'), (' good.', ' very good.'), (' awful.', ' not awful.')],
)
def test_lexicon_knows_negation_and_intensifiers(worse, better):
    low, high = positivity(['', ''], [worse, better])
    assert low < high


def test_text_without_known_words_is_neutral():
    assert positivity(['', ''], ['', ' the of zzz \x00 é']) == [0, 0]


def test_nats_are_minus_the_log_of_how_often_a_text_comes():
    """No two derivations give one text; so the entropy bounds every model's loss."""
    rng = random.Random(0)
    prompt, subject = grammar.opening(rng)
    nats, count, total = {}, collections.Counter(), 20_000
    for _ in range(total):
        review = grammar.review(rng, prompt, subject)
        assert math.isclose(nats.setdefault(review.response, review.nats), review.nats)
        count[review.response] += 1
    common = [text for text in nats if nats[text] < 6]
    assert len(common) > 10
    for text in common:
        expected = total * math.exp(-nats[text])
        assert abs(count[text] - expected) < 5 * expected**0.5, text


def test_tokeniser_gives_the_text_back(directory):
    tokenizer = tokens.load(directory)
    rows = [json.loads(line) for line in (directory / grammar.REVIEWS).read_text().splitlines()]
    assert len(rows) == SMALL.reviews
    for row in rows[:100]:
        ids = tokenizer.response_ids(row['prompt'], row['chosen'])
        assert ids[-1] == tokenizer.eos_ids[0]
        assert tokenizer.text(ids) == row['chosen']
        # Words, not letters.
        assert len(ids) < 30


def test_nothing_is_overwritten(directory):
    with pytest.raises(UserError, match='exists already'):
        grammar.write(SMALL, 3, directory)
