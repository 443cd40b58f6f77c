"""How evaluations decode, and their numbers where a reward or a judge gives none."""

import numpy as np
import pytest

from sail_jax import reports
from sail_jax.core.types import Preferences
from sail_jax.language import evaluate
from sail_jax.language.data import tokens
from sail_jax.language.data.dataset import Example
from sail_jax.language.data.rows import DataRow
from sail_jax.language.kind import TABLE
from sail_jax.language.model import contrastive, policy, sampler
from sail_jax.language.reward import rewards
from sail_jax.language.reward.labels import Rater
from sail_jax.language.samples import Answers
from sail_jax.language.scored import chosen_numbers, reward_numbers, win_numbers
from tests.support import small, tiny_tokenizer

NOTHING = [np.nan, np.inf, -np.inf]
PROMPTS = ['a', 'b', 'c']
REWARDED = Rater(score=lambda *_: None)


def answers(rewards=None):
    """Of two samples for each of three prompts."""
    rewards = None if rewards is None else np.asarray(rewards, np.float32)
    one = np.ones((3, 2), int)
    return Answers(one[..., None], one, one.astype(bool), [['x', 'y']] * 3, rewards)


OURS = [[1.0, 2.0], [0.0, 4.0], [3.0, 2.0]]
THEIRS = answers([[0.0, 3.0], [1.0, 4.0], [-2.0, 0.0]])


@pytest.mark.parametrize('value', NOTHING)
def test_a_reward_that_is_not_finite_counts_as_the_worst_and_loses(value):
    rewards = np.array(OURS)
    rewards[2, 0] = value
    got = reward_numbers(answers(rewards), THEIRS) | win_numbers(
        REWARDED, PROMPTS, answers(rewards), THEIRS
    )
    assert got['not_finite'] == 1
    # The worst that either has is -2.
    assert got['reward'] == pytest.approx(np.mean([1, 2, 0, 4, -2, 2]))
    assert got['reward_gain'] == pytest.approx(got['reward'] - THEIRS.rewards.mean())
    assert got['win_rate'] == pytest.approx((1 + 0 + 0 + 0.5 + 0 + 1) / 6)
    assert got['win_rate_low'] < got['win_rate'] < got['win_rate_high']


@pytest.mark.parametrize('value', NOTHING)
def test_theirs_is_no_better_for_it(value):
    rewards = THEIRS.rewards.copy()
    rewards[0, 1] = value  # A 3, which beat our 2.
    theirs, ours = answers(rewards), answers(OURS)
    assert win_numbers(REWARDED, PROMPTS, ours, theirs)['win_rate'] == pytest.approx(4.5 / 6)
    assert reward_numbers(ours, theirs)['not_finite'] == 0
    gain = reward_numbers(ours, theirs)['reward_gain']
    assert gain == pytest.approx(np.mean(OURS) - np.mean([0, -2, 1, 4, -2, 0]))


def test_without_any_reward_there_is_no_number_and_that_is_said(capsys):
    ours = answers(np.full((3, 2), np.nan))
    got = reward_numbers(ours, THEIRS) | win_numbers(REWARDED, PROMPTS, ours, THEIRS)
    assert np.isnan([got['reward'], got['reward_gain']]).all()
    assert (got['win_rate'], got['not_finite']) == (0, 6)
    both = win_numbers(REWARDED, PROMPTS, ours, ours)
    assert both['win_rate'] == 0.5
    sound = reward_numbers(THEIRS, THEIRS) | win_numbers(REWARDED, PROMPTS, THEIRS, THEIRS)
    reports.print_comparison(TABLE, '', sound, got)
    said = ' '.join(capsys.readouterr().out.split())
    assert 'trained policy: none of its responses has a reward' in said
    assert 'reference: none' not in said


def test_pairs_that_a_judge_says_nothing_of_are_left_out_and_counted():
    prob = iter([np.array([0.75, np.nan, 1.0]), np.array([0.5, np.nan, np.nan])])

    def judge(prompts, pairs):
        first = next(prob)
        return Preferences(np.stack([np.stack([first, first], -1)] * 2, 1), None)

    got = win_numbers(Rater(compare=judge), PROMPTS, answers(), answers())
    assert got['win_rate'] == pytest.approx((0.75 + 1 + 0.5) / 3)
    assert got['not_finite'] == 3
    # Of two prompts something is known: the interval is that of two.
    assert got['win_rate_high'] - got['win_rate_low'] > 0.6

    nothing = lambda *_: Preferences(np.full((3, 2, 2), np.nan), None)
    got = win_numbers(Rater(compare=nothing), PROMPTS, answers(), answers())
    assert np.isnan(got['win_rate'])
    assert got['not_finite'] == 6


@pytest.mark.parametrize('favoured', [0, 1])
def test_a_judge_who_favours_a_position_favours_no_policy(favoured):
    def judge(prompts, groups):
        prefers = lambda pairs: [
            float(a > b) if 'better' in (a, b) else 1.0 - favoured for a, b in pairs
        ]
        return rewards.compare(lambda _, pairs: prefers(pairs), prompts, groups)

    of = lambda *texts: answers()._replace(texts=[list(texts)] * 4)
    got = lambda ours: win_numbers(Rater(compare=judge), [*PROMPTS, 'd'], ours, of('a', 'a'))[
        'win_rate'
    ]
    assert got(of('a', 'a')) == 0.5
    # What it does know counts wherever it stands.
    assert got(of('better', 'a')) == (1 + 0.5) / 2


CHOSEN = answers([[1.0], [4.0], [np.nan]])._replace(texts=[['good']] * 3)


def test_rewards_are_held_against_the_one_of_the_chosen():
    got = chosen_numbers(REWARDED, PROMPTS, answers([[1.0, 2.0], [np.nan, 4.0], [3, 0]]), CHOSEN)
    # Of the third prompt's chosen response nothing is known: it is not beaten either.
    assert got['chosen_win_rate'] == pytest.approx((0.5 + 1 + 0 + 0.5) / 4)
    assert got['chosen_ties'] == pytest.approx(2 / 4)
    assert got['not_finite'] == 1
    assert got['chosen_win_rate_low'] < got['chosen_win_rate'] < got['chosen_win_rate_high']
    assert chosen_numbers(Rater(), PROMPTS, answers(), CHOSEN._replace(rewards=None)) == {}


def test_the_chosen_are_scored_without_an_end_of_sequence(tmp_path):
    """As a policy's are, whose text has none."""
    tokenizer = tokens.load(tiny_tokenizer.write(tmp_path))
    rows = [DataRow('a', chosen=f' yes{end}', rejected='no') for end in ('', '<|im_end|>')]
    asked = []
    rater = Rater(score=lambda _, groups: asked.extend(groups) or np.zeros((2, 1)))
    evaluate._chosen(rater, tokenizer, ['a', 'a'], [Example(row, [], [1], [2]) for row in rows])
    assert asked == [[' yes'], [' yes']]


def test_a_judge_is_asked_in_both_orders_and_its_ties_are_told():
    asked = []

    def prefers(prompts, pairs):  # By content, by position, and once not at all.
        asked.extend(pairs)
        say = {('best', 'good'): 1.0, ('good', 'best'): 0.25, ('none', 'good'): np.nan}
        return [say.get(pair, 0.75) for pair in pairs]

    judge = Rater(compare=lambda prompts, groups: rewards.compare(prefers, prompts, groups))
    ours = answers()._replace(texts=[['best', 'same'], ['same', 'best'], ['none', 'best']])
    got = chosen_numbers(judge, PROMPTS, ours, CHOSEN)
    # Best wins by the mean of 1 and 1 - 0.25; by position alone it is a tie.
    assert got['chosen_win_rate'] == pytest.approx((3 * 0.875 + 2 * 0.5) / 5)
    assert got['chosen_ties'] == pytest.approx(2 / 5)
    assert got['not_finite'] == 1
    assert len(asked) == 12
    assert asked.count(('best', 'good')) == asked.count(('good', 'best')) == 3


@pytest.mark.parametrize(
    'decoding', ['greedy', pytest.param('contrastive', marks=pytest.mark.slow)]
)
def test_evaluations_decode_as_they_are_told(tmp_path, decoding):
    path = small.checkpoint(tmp_path / 'm')
    run = small.run(
        path,
        tmp_path / 'none',
        sampling={'max_tokens': 6, 'temperature': 0.9, 'top_p': 0.8},
        evaluation={'decoding': decoding},
    )
    decoders = policy.read(run.model, length=run.longest)
    start, eos = decoders.start(0), (3,)
    programs = evaluate.make_programs(run, decoders, eos)
    prompts, number_B = sampler.pad_prompts([[5, 6, 7], [8, 9]], 8), np.arange(2, dtype=np.uint32)
    drawn, again = (
        programs.generate(start, (), np.uint32(seed), prompts, number_B) for seed in (0, 1)
    )
    tokens = np.asarray(drawn.tokens_BxKxR)
    assert (tokens == again.tokens_BxKxR).all()
    decoder = decoders.policy(start, ())
    if decoding == 'contrastive':
        expected = contrastive.generate(decoder, prompts, max_tokens=6, eos_E=np.asarray(eos))
        assert (tokens == expected.tokens_BxKxR).all()
        return
    texts = np.zeros((2, 9), int)
    for row, length in enumerate(prompts.lengths_B):
        texts[row, :length] = prompts.tokens_BxP[row, :length]
        texts[row, length : length + 6] = tokens[row, 0]
    best = small.logits(decoder, texts).argmax(-1)
    for row, start in enumerate(prompts.lengths_B):
        end = start + int(drawn.lengths_BxK[row, 0])
        assert (best[row, start - 1 : end - 1] == texts[row, start:end]).all()


def test_log_probabilities_of_pairs_are_of_whole_responses(tmp_path):
    run = small.run(small.checkpoint(tmp_path / 'm'), tmp_path / 'none')
    decoders = policy.read(run.model, length=run.longest)
    start, programs = decoders.start(0), evaluate.make_programs(run, decoders, (3,))
    prompts, responses = [[5, 6, 7], [8, 9]], [[[4, 3], [6, 5, 4]], [[7], [9, 3]]]
    tokens_BxSxR, lengths_BxS = np.zeros((2, 2, 4), np.int32), np.zeros((2, 2), np.int32)
    expected = np.zeros((2, 2))
    for b, s in np.ndindex(2, 2):
        text, length = [*prompts[b], *responses[b][s]], len(responses[b][s])
        tokens_BxSxR[b, s, :length], lengths_BxS[b, s] = responses[b][s], length
        logits = np.float64(small.logits(decoders.policy(start, ()), np.asarray([text]))[0])
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected[b, s] = sum(logp[i - 1, text[i]] for i in range(len(prompts[b]), len(text)))
    padded = sampler.pad_prompts(prompts, 8)
    got = programs.log_prob(start, (), padded, tokens_BxSxR, lengths_BxS)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_pairs_are_compared_by_what_training_changed():
    ours, starts = np.asarray([[-1.0, -3], [-2, -2], [-5, -4]]), np.asarray([[-2.0, -3]] * 3)
    lengths = np.full((3, 2), 7)
    got = evaluate._pair_numbers(ours, starts, lengths, 'dpo', 0.5)
    margins = 0.5 * np.asarray([1, -1, -2])
    assert got['pair_accuracy'] == pytest.approx(1 / 3)
    assert got['pair_margin'] == pytest.approx(margins.mean())
    assert got['pair_margin_se'] == pytest.approx(margins.std(ddof=1) / 3**0.5)
