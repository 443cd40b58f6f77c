"""Language runs: they learn, go on where they stopped, and leave a model that others can read."""

import json
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import sail_jax
from sail_jax import runs
from sail_jax.errors import TrainingFailed, UserError
from sail_jax.language import export
from sail_jax.language.data import tokens
from sail_jax.language.data.rows import Message
from sail_jax.language.model import policy
from sail_jax.training import metrics
from tests.support import small, tiny_tokenizer

ALIGN = {
    'prompts_per_update': 8,
    'group_size': 4,
    'objective': {'beta': 0.1, 'response_grad': 0.3},
    'optimizer': {'learning_rate': 2e-2},
    'evaluation': {'every_updates': 100, 'prompts': 8, 'samples': 8},
    'checkpoints': {'every_updates': 100},
}
LORA = {
    'train': 'lora',
    'lora': {'rank': 8, 'targets': ['q_proj', 'v_proj', 'o_proj', 'up_proj', 'down_proj']},
}


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return small.checkpoint(tmp_path_factory.mktemp('model') / 'm')


@pytest.fixture(scope='module')
def prompts(tmp_path_factory):
    return small.data(tmp_path_factory.mktemp('prompts') / 'prompts.jsonl', rows=32)


def train(run, path, reward=small.letters, **kwargs):
    return sail_jax.train(run, path, reward=reward, quiet=True, **kwargs)


@pytest.fixture(scope='module', params=['full', pytest.param('lora', marks=pytest.mark.slow)])
def aligned(request, model, prompts, tmp_path_factory):
    """A run whose reward is the share of letters, and its directory."""
    settings = ALIGN | {'total_prompts': 8 * 80}
    if request.param == 'lora':
        settings |= {'model': LORA}
    path = tmp_path_factory.mktemp(request.param) / 'run'
    return train(small.run(model, prompts, **settings), path), path


def test_mean_reward_rises_clearly(aligned):
    result, path = aligned
    after = result.after
    assert after['eval/reward_gain'] > 3 * after['eval/reward_gain_se'] > 0
    assert after['eval/reward'] - result.before['eval/reward'] == pytest.approx(
        after['eval/reward_gain'], abs=1e-5
    )
    assert after['eval/win_rate'] > 0.5
    assert after['eval/win_rate_low'] < after['eval/win_rate'] <= after['eval/win_rate_high']
    rows = metrics.read_rows(path / 'metrics.jsonl')
    assert [row['step'] for row in rows] == list(range(81))
    assert rows[-1]['prompts'] == 640
    assert rows[-1]['labels'] == 640 * 6
    # The first update's programs are compiled within it, and its speed leaves that out.
    took = rows[1]['wall_s'] - rows[0]['wall_s']
    assert 0 < rows[1]['time/compile_s'] < took
    assert rows[1]['time/prompts_per_s'] > 8 / took
    assert 'time/compile_s' not in rows[-1]
    rewards = [row['train/reward'] for row in rows[1:]]
    assert np.mean(rewards[-10:]) > np.mean(rewards[:10]) + 0.1


def test_divergence_from_the_start_policy(aligned):
    result, _ = aligned
    for direction in ('policy_to_start', 'start_to_policy'):
        assert result.before[f'eval/response_kl_{direction}'] == pytest.approx(0, abs=1e-5)
        per_token = result.after[f'eval/kl_{direction}']
        assert 6 * per_token >= result.after[f'eval/response_kl_{direction}'] > per_token > 0.01
    assert result.before['eval/win_rate'] == 0.5


def test_samples_off_the_policy_are_said_once_and_measured(model, prompts, tmp_path, caplog):
    settings = {'sampling': {'max_tokens': 6, 'temperature': 0.7}, 'total_prompts': 8}
    train(small.run(model, prompts, **settings), tmp_path / 'run')
    said = [message for message in caplog.messages if message.startswith('sampling: temperature')]
    assert len(said) == 1
    rows = metrics.read_rows(tmp_path / 'run' / 'metrics.jsonl')
    gaps = [row['train/sampling_gap'] for row in rows[1:]]
    assert len(gaps) == 2
    # Sharper than the policy: what is drawn is more probable than under it.
    assert all(gap > 0.01 for gap in gaps)


def test_samples_of_the_policy_have_no_gap(aligned):
    rows = metrics.read_rows(aligned[1] / 'metrics.jsonl')
    assert {row['train/sampling_gap'] for row in rows[1:]} == {0}


def test_sample_table_shows_prompts_and_both_responses(aligned):
    _, path = aligned
    assert sorted(file.name for file in (path / 'samples').iterdir()) == ['000000.md', '000080.md']
    before, after = (
        [line.split(' | ') for line in file.read_text().splitlines()]
        for file in sorted((path / 'samples').iterdir())
    )
    assert len(before) == len(after) == 2 + 8
    assert before[2][0] == after[2][0] == '| the cat 0'
    assert all(row[1] == row[2] for row in before[2:])
    assert [row[1] for row in before] == [row[1] for row in after]
    assert any(row[1] != row[2] for row in after[2:])


def test_evaluate_repeats_the_runs_own_numbers(aligned):
    result, path = aligned
    before, after = runs.evaluate(path, reward=small.letters)
    for ours, theirs in ((before, result.before), (after, result.after)):
        assert {f'eval/{k}': v for k, v in ours.items()} == pytest.approx(theirs, abs=1e-5)
    with pytest.raises(UserError, match='--episodes is for control, sac runs'):
        runs.evaluate(path, episodes=3)
    with pytest.raises(UserError, match='env: not for a language run'):
        runs.evaluate(path, env=object())


def test_others_load_what_is_exported(aligned, tmp_path):
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    _, path = aligned
    opened = export.open_run(path, runs.load(path / 'config.yaml'))
    ids = np.asarray([[5, 80, 200, 9, 31]])
    ours = small.logits(opened.decoder, ids)
    out = export.export(opened, tmp_path / 'hf')
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.no_grad():
        np.testing.assert_allclose(theirs(torch.tensor(ids)).logits, ours, atol=1e-4)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(out)
    assert tokenizer.eos_token == '<|end|>'
    assert tokenizer.convert_tokens_to_ids('<|end|>') in theirs.generation_config.eos_token_id
    assert tokenizer.chat_template
    base = small.logits(export.load(opened.run.model.path)[0], ids)
    assert np.abs(ours - base).max() > 0.1

    if opened.run.model.train == 'full':
        with pytest.raises(UserError, match='--adapter'):
            export.export(opened, tmp_path / 'adapter', adapter=True)
        return
    peft = pytest.importorskip('peft')
    out = export.export(opened, tmp_path / 'adapter', adapter=True)
    start = transformers.AutoModelForCausalLM.from_pretrained(opened.run.model.path)
    adapted = peft.PeftModel.from_pretrained(start, out).eval()
    with torch.no_grad():
        np.testing.assert_allclose(adapted(torch.tensor(ids)).logits, ours, atol=1e-4)


def test_generate_answers_from_a_run_and_from_what_it_exports(aligned, tmp_path):
    _, path = aligned
    out = export.export(export.open_run(path, runs.load(path / 'config.yaml')), tmp_path / 'hf')
    answers = []
    for source in (path, out):
        decoder, tokenizer, sampling = export.load(source)
        sampling = sampling.model_copy(update={'max_tokens': 6})
        answers.append(export.generate(decoder, tokenizer, ['the cat'], sampling, samples=3))
    assert answers[0] == answers[1]
    assert len(set(answers[0][0])) > 1
    # What others generate ends where ours does: the source's files do not name the end.
    said = json.loads((out / 'generation_config.json').read_text())
    assert said == {'eos_token_id': list(tokenizer.eos_ids)}


def test_responses_beyond_the_positions_of_a_model_are_told(tmp_path, capsys):
    source = small.checkpoint(tmp_path / 'model')
    data = json.loads((source / 'config.json').read_text())
    (source / 'config.json').write_text(json.dumps(data | {'max_position_embeddings': 8}))
    decoder, tokenizer, sampling = export.load(source)
    length = len(tokenizer.prompt_ids('the cat'))
    for max_tokens, said in ((8 - length, ''), (9 - length, f'a prompt of {length} tokens and')):
        settings = sampling.model_copy(update={'max_tokens': max_tokens})
        export.generate(decoder, tokenizer, ['the cat'], settings)
        printed = capsys.readouterr().err
        assert printed.startswith(said)
        assert ('8 positions' in printed) == bool(said)


@pytest.mark.parametrize('name', ['config.json', 'generation_config.json'])
def test_the_end_of_sequence_that_a_source_names_is_left(tmp_path, name):
    source = small.checkpoint(tmp_path / 'model')
    data = json.loads((source / name).read_text()) if (source / name).exists() else {}
    (source / name).write_text(json.dumps(data | {'eos_token_id': 3}))
    run = small.run(source, small.data(tmp_path / 'prompts'))
    decoders = policy.read(run.model)
    opened = export.OpenedModel(run, decoders, decoders.start(0), decoders.shared())
    out = export.export(opened, tmp_path / 'hf')
    assert json.loads((out / name).read_text())['eos_token_id'] == 3
    assert (out / 'generation_config.json').exists() == (name == 'generation_config.json')


def test_an_export_renders_prompts_as_training_did(tmp_path):
    source = small.checkpoint(tmp_path / 'model')
    tiny_tokenizer.write(source, template="{{ mood }}{{ messages[0]['content'] }}")
    run = small.run(
        source,
        small.data(tmp_path / 'prompts'),
        model={'path': str(source), 'chat_template_kwargs': {'mood': 'no'}},
    )
    decoders = policy.read(run.model)
    out = export.export(
        export.OpenedModel(run, decoders, decoders.start(0), decoders.shared()), tmp_path / 'hf'
    )
    prompt = (Message('user', 'hello'),)
    trained = tokens.load(source, **run.model.template).prompt_ids(prompt)
    assert tokens.load(out).prompt_ids(prompt) == trained
    assert tokens.load(source).prompt_ids(prompt) != trained


def test_an_export_has_the_type_that_was_asked_for_its_adapter_too(model, prompts, tmp_path):
    run = small.run(model, prompts, model={'path': str(model), **LORA})
    decoders = policy.read(run.model)
    opened = export.OpenedModel(run, decoders, decoders.start(0), decoders.shared())
    for dtype in ('int8', 'flaot32', 'float64', object()):
        with pytest.raises(UserError, match=r'^dtype: .*; expected one of bfloat16, float16, '):
            export.export(opened, tmp_path / 'none', dtype=dtype)
    for out, options in (('adapter', {'adapter': True}), ('whole', {})):
        export.export(opened, tmp_path / out, dtype='bfloat16', **options)
        (file,) = (tmp_path / out).glob('*.safetensors')
        assert {tensor.dtype.name for tensor in load_file(file).values()} == {'bfloat16'}


class Recorded:
    """A reward that notes what it was asked, and how many programs had been compiled by then."""

    def __init__(self, compiled=lambda: 0):
        self.prompts, self.compiled, self.count = [], [], compiled

    def __call__(self, prompts, responses):
        self.prompts.append(prompts)
        self.compiled.append(self.count())
        return small.letters(prompts, responses)

    def updates(self):
        """Prompts of each training update: evaluations have fewer responses."""
        return [batch[::4] for batch in self.prompts if len(batch) == 32]


def make_run(model, prompts, updates, **settings):
    return small.run(model, prompts, **ALIGN | {'total_prompts': 8 * updates} | settings)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope='module')
def whole(model, prompts, tmp_path_factory):
    """Six updates, two epochs, in one go."""
    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: events.append(name) if 'backend_compile' in name else None
    )
    reward = Recorded(lambda: len(events))
    path = tmp_path_factory.mktemp('whole') / 'run'
    return train(make_run(model, prompts, 6), path, reward), reward, path


def test_resume_continues_bit_for_bit_and_row_by_row(whole, model, prompts, tmp_path):
    reward = Recorded()
    train(make_run(model, prompts, 4), tmp_path / 'run', reward)
    result = train(make_run(model, prompts, 6), tmp_path / 'run', reward, resume=True)
    same(result.policy, whole[0].policy)
    assert result.after == whole[0].after
    assert reward.updates() == whole[1].updates()


def test_every_row_is_read_once_an_epoch_and_none_that_is_held_out(whole, prompts):
    updates = whole[1].updates()
    assert len(updates) == 6
    epochs = [[row for batch in updates[i : i + 3] for row in batch] for i in (0, 3)]
    held_out = set(whole[1].prompts[0])
    assert len(held_out) == 8
    assert set(epochs[0]) == set(epochs[1])
    assert len(set(epochs[0])) == 24
    assert not held_out & set(epochs[0])
    assert epochs[0] != epochs[1]


def test_nothing_is_compiled_after_the_first_update(whole):
    at_updates = [
        n for n, batch in zip(whole[1].compiled, whole[1].prompts, strict=True) if len(batch) == 32
    ]
    assert at_updates[0] < at_updates[1] == at_updates[-1]


def test_reward_that_fails_is_one_line_and_costs_nothing(whole, model, prompts, tmp_path):
    calls = []

    def failing(prompts, responses):
        calls.append(len(responses))
        if calls.count(32) == 5:
            raise ConnectionError('no\nanswer')
        return small.letters(prompts, responses)

    run, path = make_run(model, prompts, 6), tmp_path / 'run'
    message = r'failing: raised ConnectionError: no answer; saved at 32 prompts$'
    with pytest.raises(UserError, match=message):
        train(run, path, failing)
    assert metrics.read_rows(path / 'metrics.jsonl')[-1]['step'] == 4
    same(train(run, path, resume=True).policy, whole[0].policy)


@pytest.mark.slow
def test_reward_that_fails_in_an_evaluation_costs_nothing(whole, model, prompts, tmp_path):
    calls = []

    def failing(prompts, responses):
        calls.append(len(responses))
        if calls.count(32) and len(responses) != 32:
            raise ConnectionError('no answer')
        return small.letters(prompts, responses)

    run, path = make_run(model, prompts, 6), tmp_path / 'run'
    with pytest.raises(UserError, match=r'raised ConnectionError: no answer; saved at'):
        train(run, path, failing)
    result = train(run, path, resume=True)
    same(result.policy, whole[0].policy)
    assert result.after == whole[0].after
    rows = metrics.read_rows(path / 'metrics.jsonl')
    assert [row['step'] for row in rows] == list(range(7))


@pytest.mark.parametrize(
    ('answer', 'error', 'message'),
    [
        (lambda values: time.sleep(60), TrainingFailed, 'no answer for 32 responses in 3 s'),
        pytest.param(lambda values: values[:-1], UserError, '31', marks=pytest.mark.slow),
    ],
    ids=['hangs', 'of another shape'],
)
def test_reward_that_hangs_or_answers_with_another_shape_saves_the_state(
    model, prompts, tmp_path, answer, error, message
):
    calls = []

    def failing(prompts, responses):
        calls.append(len(responses))
        values = small.letters(prompts, responses)
        return answer(values) if calls.count(32) == 3 else values

    run, path = make_run(model, prompts, 6), tmp_path / 'run'
    run = run.model_copy(update={'reward': run.reward.model_copy(update={'timeout_s': 3.0})})
    with pytest.raises(error, match=f'{message}.*; saved at 16 prompts$'):
        train(run, path, failing)
    assert (path / 'checkpoints' / '2').exists()


def test_reward_that_is_not_a_number_skips_the_update_and_is_counted(model, prompts, tmp_path):
    calls = []

    def reward(prompts, responses):
        calls.append(len(responses))
        values = small.letters(prompts, responses)
        if calls.count(32) == 2 and len(responses) == 32:
            values[3] = None
        return values

    train(make_run(model, prompts, 3), tmp_path / 'run', reward)
    rows = metrics.read_rows(tmp_path / 'run' / 'metrics.jsonl')[1:]
    assert [row['train/skipped'] for row in rows] == [0, 1, 1]
    assert [row['train/not_finite'] for row in rows] == [0, 1, 0]
    assert all(np.isfinite(row['train/reward']) for row in rows)


def test_label_budget_ends_the_run_and_nobody_is_asked_more(model, prompts, tmp_path):
    calls = []

    def reward(prompts, responses):
        calls.append(len(responses))
        return small.letters(prompts, responses)

    run = make_run(model, prompts, 6, labeller={'max_labels': 60})
    result = train(run, tmp_path / 'run', reward)
    assert result.labels == 60
    # 48 comparisons, and 12: those of two prompts. Evaluations are of 64 responses.
    assert [count for count in calls if count != 64] == [32, 8]
    assert result.length < 48
