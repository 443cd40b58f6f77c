"""Rewards: functions on the host held to their shape and time, and reward models."""

import decimal
import fractions
import functools
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from sail_jax.errors import TrainingFailed, UserError
from sail_jax.language.data import tokens
from sail_jax.language.data.rows import Message
from sail_jax.language.model import architecture, weights
from sail_jax.language.model import families as model_families
from sail_jax.language.model.sampler import pad_prompts
from sail_jax.language.reward import labels, reward_model, rewards
from tests.support import small, tiny
from tests.support.tiny import FAMILIES
from tests.support.tiny_tokenizer import END, IM_END, write

PROMPTS = ['a', (Message('user', 'b'),), 'c']
ASKED = ['a', [{'role': 'user', 'content': 'b'}], 'c']
RESPONSES = [['1', '22'], ['333', ''], ['55555', '4444']]


def test_scores_are_of_their_prompt_and_response_whatever_the_batches():
    sizes = []

    def reward(prompts, responses):
        sizes.append(len(responses))
        pairs = zip(prompts, responses, strict=True)
        return [10 * ASKED.index(prompt) + len(response) for prompt, response in pairs]

    for batch_size in (1, 4, 64):
        scores = rewards.score(reward, PROMPTS, RESPONSES, batch_size=batch_size)
        np.testing.assert_array_equal(scores, [[1, 2], [13, 10], [25, 24]])
        assert scores.dtype == np.float32
    assert sizes == [1] * 6 + [4, 2] + [6]


class Unreadable:
    def __array__(self, *args, **kwargs):
        raise RuntimeError('on another device')


@pytest.mark.parametrize(
    ('answer', 'message'),
    [
        ([1.0], r'expected shape \(2,\), one number a response, got \(1,\)'),
        ([[1.0], [2.0]], r'got \(2, 1\)'),
        (1.0, r'got \(\)'),
        (['good', 'bad'], 'expected 2 numbers, got list'),
        ([[1.0], []], 'expected 2 numbers, got list'),
        (object(), 'expected 2 numbers, got object'),
        (['1', '2'], 'expected 2 numbers, got list'),
        (np.array(['1', 'nan']), 'expected 2 numbers, got ndarray'),
        ([None, '2'], 'expected 2 numbers, got list'),
        ([1j, 2], 'expected 2 numbers, got list'),
        (np.array([1j, 2]), 'expected 2 numbers, got ndarray'),
        (np.array(['2026-01-01', 'NaT'], 'datetime64[D]'), 'expected 2 numbers, got ndarray'),
        (np.array([(1.0,)] * 2, [('reward', 'f4')]), 'expected 2 numbers, got ndarray'),
        ([{'score': 1.0}] * 2, 'expected 2 numbers, got list'),
        ([10**400, 1], 'expected 2 numbers, got list'),
        (iter([1.0, 2.0]), 'expected 2 numbers, got list_iterator'),
        (Unreadable(), 'expected 2 numbers, got Unreadable'),
        (np.ma.masked_all((2, 1)), r'got \(2, 1\)'),
    ],
)
def test_answer_of_another_shape_is_refused(answer, message):
    with pytest.raises(UserError, match=f'lambda.*: .*{message}'):
        rewards.score(lambda prompts, responses: answer, PROMPTS[:1], RESPONSES[:1])


@pytest.mark.parametrize(
    ('answer', 'expected'),
    [
        ([None, 1], [np.nan, 1]),
        (np.ma.array([7, 1], mask=[True, False]), [np.nan, 1]),
        ([1e300, -1e300], [np.inf, -np.inf]),
        ([True, np.float16(0.5)], [1, 0.5]),
        ([decimal.Decimal('0.5'), fractions.Fraction(1, 4)], [0.5, 0.25]),
        (jnp.array([1, 2], jnp.bfloat16), [1, 2]),
    ],
)
def test_what_is_a_number_and_no_answer_is_not_a_number(answer, expected):
    scores = rewards.score(lambda prompts, responses: answer, PROMPTS[:1], RESPONSES[:1])
    np.testing.assert_array_equal(scores, [expected])


def test_tensors_are_numbers_whatever_their_type_and_gradient():
    torch = pytest.importorskip('torch')
    for dtype in (torch.float32, torch.bfloat16):
        whole = torch.tensor([1.0, 2.0], dtype=dtype, requires_grad=True)
        for answer in (whole, list(whole), 2 * whole / 2):
            scores = rewards.score(lambda *_, a=answer: a, PROMPTS[:1], RESPONSES[:1])
            np.testing.assert_array_equal(scores, [[1, 2]])
    with pytest.raises(UserError, match='expected 2 numbers, got Tensor'):
        rewards.score(lambda *_: torch.empty(2, device='meta'), PROMPTS[:1], RESPONSES[:1])


def test_an_error_that_cannot_be_printed_is_one_line():
    class Mute(Exception):
        def __str__(self):
            raise ValueError

    def broken(prompts, responses):
        raise Mute

    with pytest.raises(UserError, match=r'broken: raised Mute:'):
        rewards.score(broken, PROMPTS, RESPONSES)


def test_function_that_raises_is_one_line_with_its_cause():
    def broken(prompts, responses):
        raise ValueError('two\nlines')

    with pytest.raises(UserError, match=r'broken: raised ValueError: two lines$') as caught:
        rewards.score(broken, PROMPTS, RESPONSES)
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize('name', ['reward', 'judge'])
@pytest.mark.parametrize(
    ('function', 'message'),
    [
        ([len], r'\[<built-in function len>\]; expected a function'),
        ('checkpoints/reward', "'checkpoints/reward'; expected a function"),
        (3, '3; expected a function'),
    ],
    ids=['list', 'path', 'number'],  # The same in every process.
)
def test_what_is_no_function_is_refused_before_training(name, function, message):
    run = small.run(Path('model'), Path('prompts.jsonl'))
    with pytest.raises(UserError, match=f'^{name}: {message}'):
        labels.make(run, None, **{name: function})


def keywords(completions, **columns):
    return [1.0] * len(completions)


def turned(completions, prompts):
    return [1.0] * len(completions)


def solved(completions, solution, **columns):
    return [1.0] * len(completions)


class Keeper:
    """Empty, and so false."""

    def __len__(self):
        return 0

    def __call__(self, prompts, items):
        return [0.25] * len(items)


@pytest.mark.parametrize('name', ['reward', 'judge'])
@pytest.mark.parametrize(
    ('function', 'message'),
    [
        (keywords, r'called with two lists, \(prompts, .*which keywords does not take: too many'),
        (lambda: 0, 'called with two lists'),
        (lambda samples, prompts, outputs: 0, "missing a required argument: 'outputs'"),
        (turned, r'called with \(prompts, .*turned takes \(completions, prompts\)'),
        (solved, r'solved takes \(completions, solution\)'),
        (lambda pairs, prompts: 0, r'takes \(pairs, prompts\)'),
        (Keeper, 'the class Keeper; give an instance of it'),
    ],
    ids=['keywords', 'nothing', 'three', 'turned', 'solved', 'pairs', 'class'],
)
def test_what_takes_other_arguments_is_refused_before_training(name, function, message):
    run = small.run(Path('model'), Path('prompts.jsonl'))
    with pytest.raises(UserError, match=f'^{name}: .*{message}'):
        labels.make(run, None, **{name: function})


@pytest.mark.parametrize('name', ['reward', 'judge'])
@pytest.mark.parametrize(
    'function',
    [
        Keeper(),
        Keeper().__call__,
        lambda *both: [0.25] * len(both[1]),
        lambda asked, texts, scale=1: [0.25] * len(texts),
        functools.partial(lambda scale, prompts, completions: [scale] * len(prompts), 0.25),
    ],
    ids=['object', 'method', 'star', 'default', 'partial'],
)
def test_whatever_takes_two_lists_is_called(name, function):
    run = small.run(Path('model'), Path('prompts.jsonl'))
    labeller = labels.make(run, None, **{name: function})
    ask = labeller.score if name == 'reward' else labeller.compare
    answer = ask(PROMPTS, RESPONSES)
    value = answer if name == 'reward' else answer.prob_BxKxK[:, 0, 1]
    np.testing.assert_array_equal(value, np.full(value.shape, 0.25))


def test_a_judge_of_trl_which_gives_an_index_is_refused():
    base = type('BasePairwiseJudge', (), {'__module__': 'trl.experimental.judges.judges'})

    class Shorter(base):
        def judge(self, prompts, completions, shuffle_order=True):
            return [int(len(b) < len(a)) for a, b in completions]

    run = small.run(Path('model'), Path('prompts.jsonl'))
    with pytest.raises(UserError, match=r"judge: a method of TRL's Shorter.*1 - i for i in"):
        labels.make(run, None, judge=Shorter().judge)
    assert labels.make(run, None, judge=lambda p, c: [1 - i for i in Shorter().judge(p, c)]).compare


def test_function_that_hangs_is_left():
    hanging = threading.Event()
    with pytest.raises(TrainingFailed, match=r'no answer for 6 responses in 0.05 s'):
        rewards.score(lambda *_: hanging.wait(), PROMPTS, RESPONSES, timeout_s=0.05)
    hanging.set()


def test_a_conversation_is_a_list_of_dicts_that_the_function_may_change():
    turns = (Message('system', 's'), Message('user', 'u'))
    dicts = [{'role': 'system', 'content': 's'}, {'role': 'user', 'content': 'u'}]
    seen = []

    def note(prompts, answers):
        for prompt in prompts:
            seen.append([dict(turn) for turn in prompt])
            prompt[0]['content'] = 'changed'
            prompt.append({'role': 'assistant', 'content': 'done'})
        return [1] * len(answers)

    rewards.score(note, [turns, turns], [['1', '2'], ['3', '4']], batch_size=3)
    rewards.compare(note, [turns], [['1', '2', '3']])
    assert seen == [dicts] * 7
    assert turns == (('system', 's'), ('user', 'u'))


def test_judge_is_asked_each_pair_once_and_turned_round():
    asked = []

    def longer(prompts, pairs):
        asked.extend(zip(map(str, prompts), pairs, strict=True))
        return [0.25 if len(a) < len(b) else 1.0 for a, b in pairs]

    groups = [['1', '22', '333'], ['1', '', '333']]
    preferences = rewards.compare(longer, PROMPTS[:2], groups, batch_size=2)
    expected = [
        [[0.5, 0.25, 0.25], [0.75, 0.5, 0.25], [0.75, 0.75, 0.5]],
        [[0.5, 1.0, 0.25], [0.0, 0.5, 0.25], [0.75, 0.75, 0.5]],
    ]
    np.testing.assert_array_equal(preferences.prob_BxKxK, expected)
    np.testing.assert_array_equal(preferences.weight_BxKxK, [1 - np.eye(3)] * 2)
    assert len(asked) == len(set(asked)) == 6
    with pytest.raises(UserError, match='expected probabilities, got 2'):
        rewards.compare(lambda prompts, pairs: [2] * len(pairs), PROMPTS[:2], groups)
    with pytest.raises(UserError, match=r'got 1\.0000001'):
        rewards.compare(lambda prompts, pairs: [1.0000001] * len(pairs), PROMPTS[:2], groups)


@pytest.mark.parametrize(
    ('name', 'pad'),
    [
        ('llama3', None),
        ('qwen2', IM_END),
        ('qwen3', END),
        ('llama3', 289),
        ('gemma3', None),
        pytest.param('phi3', END, marks=pytest.mark.slow),
        pytest.param('olmo2', END, marks=pytest.mark.slow),
        pytest.param('smollm3', None, marks=pytest.mark.slow),
    ],
)
def test_parity_with_transformers(tmp_path, name, pad):
    """Where the padding is the end of sequence, the score is read before it."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    tokenizer = tokens.load(write(tmp_path))
    a = FAMILIES[name].model_copy(update={'vocab_size': tokenizer.vocab_size})
    fields = {k: v for k, v in architecture.to_hf(a).items() if k != 'architectures'}
    config = transformers.AutoConfig.for_model(**fields | {'num_labels': 1, 'pad_token_id': pad})
    torch.manual_seed(0)
    theirs = transformers.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            parameter.normal_(float('norm' in key), 0.3)
    theirs.eval().save_pretrained(tmp_path)
    named = model_families.FAMILIES[FAMILIES[name].family].classifier_class
    assert type(theirs).__name__ == named

    prompts = [(Message('user', 'what a cat'),), (Message('user', 'no'),), 'the cat']
    responses = [['hello', 'no no no no'], ['yes', 'sat'], [' sat', ' said hello']]
    padding = reward_model.pad_id(tmp_path)
    assert padding == pad
    model = reward_model.load(tmp_path)
    reward = reward_model.from_model(model, tokenizer, max_tokens=64, pad_id=padding)
    ours = rewards.score(reward, prompts, responses, batch_size=6)

    reader = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for i, (prompt, group) in enumerate(zip(prompts, responses, strict=True)):
        for k, response in enumerate(group):
            if isinstance(prompt, str):
                ids = reader(prompt + response)['input_ids']
            else:
                turns = [*prompt, Message('assistant', response)]
                messages = [turn._asdict() for turn in turns]
                ids = reader.apply_chat_template(messages, tokenize=True, return_dict=False)
            with torch.no_grad():
                expected = theirs(torch.tensor([ids])).logits.item()
            assert ours[i, k] == pytest.approx(expected, abs=1e-4)
    assert np.ptp(ours) > 0.1


def test_of_a_response_that_is_too_long_the_first_tokens_are_scored(tmp_path, caplog):
    tokenizer = tokens.load(write(tmp_path))
    a = FAMILIES['qwen2'].model_copy(update={'vocab_size': tokenizer.vocab_size})
    model = reward_model.RewardModel(a, rngs=nnx.Rngs(0))
    short, whole = (reward_model.from_model(model, tokenizer, max_tokens=n) for n in (8, 64))
    prompt, responses = 'the cat', ['cat' * 6, 'cat' * 9, ' sat']
    fits = [len(tokenizer.scored_ids(prompt, response)) <= 8 for response in responses]
    assert fits == [False, False, True]
    first = tokenizer.scored_ids(prompt, responses[0])[:8]
    expected = model.rewards(pad_prompts([first]))[0, 0]
    for _ in range(2):
        scores = rewards.score(short, [prompt], [responses])[0]
        np.testing.assert_allclose(scores[:2], expected, rtol=1e-5)
        np.testing.assert_allclose(scores[2], rewards.score(whole, [prompt], [responses])[0, 2])
    (record,) = caplog.records
    assert 'more than reward.max_tokens (8) tokens' in record.getMessage()


def test_other_checkpoints_are_no_reward_models(tmp_path):
    path = weights.save(tiny.decoder('qwen2'), tmp_path / 'a')
    with pytest.raises(UserError, match=r'tensors missing: score.weight \(1 in all\)'):
        reward_model.load(path)
    file = path / 'model.safetensors'
    two_labels = {'score.weight': np.zeros((2, 16), np.float32)}
    save_file(load_file(file) | two_labels, file)
    with pytest.raises(UserError, match=r'score.weight: 2 labels; expected 1: .*num_labels=1'):
        reward_model.load(path)


def test_a_language_model_is_no_reward_model_and_says_so(tmp_path):
    model = tiny.decoder('llama2')
    assert not model.architecture.tied
    path = weights.save(model, tmp_path / 'a')
    with pytest.raises(UserError, match=r'a: a language model, .* lm_head.weight and no score.wei'):
        reward_model.load(path)
    file, width = path / 'model.safetensors', model.architecture.hidden_size
    save_file(load_file(file) | {'score.weight': np.ones((1, width), np.float32)}, file)
    assert reward_model.load(path).score.kernel.shape == (width, 1)
