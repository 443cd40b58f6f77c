"""The supervised stage: what its loss is, that it learns, and that it goes on where it stopped."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sail_jax import files, runs
from sail_jax.core.types import Policy
from sail_jax.errors import TrainingFailed, UserError
from sail_jax.language import export
from sail_jax.language.data import tokens
from sail_jax.language.data.dataset import Example
from sail_jax.language.data.rows import DataRow
from sail_jax.language.model import lora, policy, weights
from sail_jax.language.quickstart import grammar
from sail_jax.language.sft import task as sft_task
from sail_jax.language.sft.config import SftRun
from sail_jax.language.sft.learn import collate, make_loss, nats
from sail_jax.language.supervised import learn
from sail_jax.language.supervised import task as supervised_task
from sail_jax.language.supervised.config import MODEL, SupervisedOptimizer
from sail_jax.training import trainer
from tests.support import tiny
from tests.support.checkpoints import same, without_times
from tests.support.disk import on_a_full_disk

SIZES = {
    'family': 'qwen2',
    'hidden_size': 32,
    'intermediate_size': 64,
    'layers': 1,
    'heads': 2,
    'kv_heads': 1,
    'head_dim': 16,
    'qkv_bias': True,
    'tied': True,
    'max_positions': 64,
}
WORDS = ('good', 'bad', 'fine', 'poor')


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    """Four responses, equally likely, whatever the prompt: log 4 nats each."""
    path = tmp_path_factory.mktemp('text')
    rows = [{'prompt': f'it {verb}', 'chosen': f' {w}'} for verb in ('is', 'was') for w in WORDS]
    order = np.random.default_rng(0).permutation(rows * 40)
    (path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in order))
    said = (row['prompt'] + row['chosen'] for row in rows)
    grammar.train_tokenizer(said, 300).save(str(path / 'tokenizer.json'))
    files.write_json(path / 'tokenizer_config.json', {'eos_token': grammar.END})
    return path


def settings(text, **changes) -> SftRun:
    size = tokens.load(text).vocab_size
    data = {'path': str(text / 'rows.jsonl'), 'max_prompt_tokens': 8, 'max_response_tokens': 8}
    base = {
        'workload': 'sft',
        'total_prompts': 64,
        'prompts_per_update': 8,
        'model': {'tokenizer': str(text), 'architecture': SIZES | {'vocab_size': size}},
        'data': data,
        'optimizer': {'learning_rate': 1e-2},
        'evaluation': {'every_updates': 4, 'prompts': 8},
        'checkpoints': {'every_updates': 4},
        'logging': {'tensorboard': False},
    }
    return SftRun.model_validate(base | changes)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def example(prompt, chosen) -> Example:
    return Example(DataRow('', ''), prompt, chosen, None)


def plain_nats(decoder, ids, first):
    """The sum over the tokens from `first` on, of a row by itself and without padding."""
    hidden, _ = tiny.whole(decoder, jnp.asarray([ids]))
    logp = jax.nn.log_softmax(decoder.logits(hidden[0, :-1]))
    return -sum(float(logp[place - 1, ids[place]]) for place in range(first, len(ids)))


@pytest.mark.parametrize('loss_on', ['response', 'sequence'])
def test_loss_is_that_of_each_row_alone(loss_on):
    decoder = tiny.decoder()
    rows = [example([5, 6, 7], [8, 0]), example([9], [0, 0, 4, 3, 2]), example([1, 2], [0])]
    total, count = nats(decoder, collate(rows), loss_on)
    first = [len(row.prompt) if loss_on == 'response' else 1 for row in rows]
    expected = [
        plain_nats(decoder, row.prompt + row.chosen, place)
        for row, place in zip(rows, first, strict=True)
    ]
    assert int(count) == (8 if loss_on == 'response' else 8 + 3)
    np.testing.assert_allclose(total, sum(expected), rtol=1e-5)


def test_accumulation_changes_nothing_but_the_memory():
    decoder = tiny.decoder()
    graphdef, params = nnx.split(decoder)
    rows = collate([example([3] * n, [4] * (6 - n)) for n in (1, 2, 3, 5)])
    loss = make_loss(lambda p, _: nnx.merge(graphdef, p.params), 'response')
    results = []
    for parts in (1, 2):
        state = learn.init(Policy(params, jnp.int32(0)), jnp.uint32(0), optax.sgd(0.1))
        step = jax.jit(learn.make_learn(loss, parts, optax.sgd(1)))
        results.append(step(state, rows))
    (whole, numbers), (parted, in_parts) = results
    np.testing.assert_allclose(in_parts['loss'], numbers['loss'], rtol=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
    jax.tree.map(close, parted.policy.params, whole.policy.params)


@pytest.mark.slow
def test_dropout_is_of_a_row_in_an_update_whatever_parts_it_is_computed_in():
    adapted = lora.split(
        lora.add(tiny.decoder(), lora.Lora(rank=3, targets=('v_proj',)), jax.random.key(0))
    )
    adapter = jax.tree.map(lambda x: x + 0.1, adapted.trained)
    rows = collate([example([3] * n, [4] * (6 - n)) for n in (1, 2, 3, 5)])
    loss = make_loss(lambda p, shared: nnx.merge(adapted.on, p.params, shared), 'response')
    start = learn.init(Policy(adapter, jnp.int32(0)), jnp.uint32(0), optax.sgd(0.1))
    start = start._replace(shared=adapted.frozen)

    def first_loss(state, parts=1, rate=0.3):
        step = jax.jit(learn.make_learn(loss, parts, optax.sgd(0.0), rate))
        return float(step(state, rows)[1]['loss'])

    plain = first_loss(start, rate=0.0)
    dropped = first_loss(start)
    assert abs(dropped - plain) > 1e-4
    assert first_loss(start, parts=2) == pytest.approx(dropped, rel=1e-5)
    for later in (start._replace(step=jnp.int32(1)), start._replace(seed=jnp.uint32(1))):
        assert abs(first_loss(later) - dropped) > 1e-4


def test_an_update_that_is_not_finite_is_skipped_and_counted():
    graphdef, params = nnx.split(tiny.decoder())
    broken = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan), params)
    optimizer = learn.make_optimizer(SupervisedOptimizer(), 4)
    loss = make_loss(lambda p, _: nnx.merge(graphdef, p.params), 'response')
    step = learn.make_learn(loss, 1, optimizer)
    state = learn.init(Policy(broken, jnp.int32(0)), jnp.uint32(0), optimizer)
    after, _ = jax.jit(step)(state, collate([example([3], [4]), example([3], [5])] * 4))
    assert int(after.skipped) == int(after.skipped_in_a_row) == int(after.step) == 1
    jax.tree.map(np.testing.assert_array_equal, after.policy.params, broken)


def test_matrices_decay_and_norms_do_not():
    params = nnx.state(tiny.decoder())
    optimizer = learn.make_optimizer(SupervisedOptimizer(learning_rate=0.1, weight_decay=0.5), 100)
    zero = jax.tree.map(np.zeros_like, params)
    moved, _ = jax.jit(lambda p: optimizer.update(zero, optimizer.init(p), p))(params)
    for path, change in nnx.to_flat_state(moved):
        assert bool((change[...] != 0).any()) == (path[-1] in ('kernel', 'embedding')), path


def test_muon_makes_each_layers_matrices_orthogonal():
    """Not the stack of norms, which has two axes as well: those follow Adam."""
    rng = np.random.default_rng(0)
    layers = {'kernel': rng.normal(size=(2, 4, 6)), 'scale': rng.normal(size=(2, 6))}
    params = {'layers': {name: jnp.asarray(x, jnp.float32) for name, x in layers.items()}}
    chosen = SupervisedOptimizer(rule='muon', learning_rate=0.1, decay='none')
    rule = learn.make_optimizer(chosen, 8)
    moved, _ = rule.update(params, rule.init(params), params)
    moved = moved['layers']
    sizes = np.linalg.svd(np.asarray(moved['kernel']), compute_uv=False)
    assert sizes.min() > 0.6 * sizes.max()
    step = moved['scale'] * -np.sign(layers['scale'])
    np.testing.assert_allclose(step, step.mean(), rtol=1e-4)


WEIGHTS = {'score': {'kernel': jnp.asarray([0.3, -0.7]), 'bias': jnp.asarray([0.5])}}


def three_steps(rule) -> dict:
    """Where parameters are after gradients of 1, -2 and 0.5 times themselves, by name."""
    params, state = WEIGHTS, rule.init(WEIGHTS)
    for slope in (1.0, -2.0, 0.5):
        grads = jax.tree.map(lambda x, slope=slope: slope * x, WEIGHTS)
        updates, state = rule.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params['score']


@pytest.mark.parametrize(
    ('settings', 'of_matrices', 'of_others'),
    [
        (
            {'rule': 'rmsprop', 'arguments': {'decay': 0.5}, 'decay': 'none'},
            optax.rmsprop(0.1, decay=0.5),
            optax.rmsprop(0.1, decay=0.5),
        ),
        (
            {'rule': 'lion', 'weight_decay': 0.3, 'arguments': {'b1': 0.5}, 'decay': 'none'},
            optax.lion(0.1, b1=0.5, weight_decay=0.3),
            optax.lion(0.1, b1=0.5, weight_decay=0.0),
        ),
        (
            {
                'schedule': 'exponential_decay',
                'schedule_arguments': {'init_value': 1.0, 'transition_steps': 1, 'decay_rate': 0.5},
            },
            optax.adamw(optax.exponential_decay(0.1, 1, 0.5), weight_decay=0.0),
            optax.adamw(optax.exponential_decay(0.1, 1, 0.5), weight_decay=0.0),
        ),
    ],
)
def test_the_optimizer_is_optaxs_by_its_name(settings, of_matrices, of_others):
    chosen = SupervisedOptimizer(learning_rate=0.1, max_grad_norm=None, **settings)
    got = three_steps(learn.make_optimizer(chosen, 8))
    np.testing.assert_allclose(got['kernel'], three_steps(of_matrices)['kernel'], rtol=1e-6)
    np.testing.assert_allclose(got['bias'], three_steps(of_others)['bias'], rtol=1e-6)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'rule': 'rmsprob'}, r"optimizer\.rule: 'rmsprob'; did you mean rmsprop\?"),
        ({'rule': 'lbfgs'}, r'optimizer\.rule: lbfgs: raised'),
        ({'arguments': {'beta': 1}}, r'optimizer\.arguments: adamw: .*beta'),
        (
            {'arguments': {'weight_decay': 1}},
            r'arguments: weight_decay: use optimizer\.weight_decay',
        ),
        ({'rule': 'rmsprop', 'weight_decay': 1}, r'optimizer\.weight_decay: of matrices alone'),
        ({'schedule': 'linear'}, r"optimizer\.schedule: 'linear'; did you mean"),
        (
            {'schedule': 'constant_schedule', 'warmup_updates': 2},
            'optimizer.schedule: stands in for',
        ),
        ({'schedule': 'constant_schedule', 'decay': 'linear'}, 'optimizer.schedule: stands in for'),
        ({'schedule_arguments': {'value': 1}}, 'schedule_arguments: not used without'),
    ],
)
def test_an_optimizer_that_cannot_be_used_is_one_line(settings, message, tmp_path):
    run = {
        'workload': 'sft',
        'model': {'path': 'm'},
        'data': {'path': 'd'},
        'optimizer': settings,
    }
    with pytest.raises(UserError, match=message) as caught:
        runs.train(SftRun.model_validate(run), tmp_path / 'run')
    assert '\n' not in str(caught.value)


def test_learns_the_distribution_and_leaves_a_checkpoint(text, tmp_path):
    """The loss comes down to the entropy: log 4 nats for the word, 0 for what follows it."""
    held_out = {'every_updates': 1000, 'prompts': 80}
    run = settings(text, total_prompts=960, evaluation=held_out)
    result = runs.train(run, tmp_path / 'run', quiet=True)
    tokenizer = tokens.load(text)
    lengths = [len(tokenizer.response_ids('it is', f' {word}')) for word in WORDS]
    floor = math.log(4) / np.mean(lengths)
    assert result.before['eval/loss'] > 3 * floor
    assert floor * 0.9 < result.after['eval/loss'] < floor * 1.2
    assert result.after['eval/perplexity'] == pytest.approx(math.exp(result.after['eval/loss']))

    left = tmp_path / 'run' / MODEL
    trained = policy.read(run.model, architecture=run.model.architecture).policy(
        result.policy, result.shared
    )
    ids = jnp.asarray([tokenizer.prompt_ids('it is')])
    ours, theirs = (tiny.whole(decoder, ids)[0] for decoder in (trained, weights.load(left)))
    np.testing.assert_array_equal(ours, theirs)
    assert tokens.load(left).text(tokens.load(left).response_ids('it is', ' fine')) == ' fine'
    before, after = runs.evaluate(tmp_path / 'run')
    assert before['loss'] == result.before['eval/loss']
    assert after['loss'] == result.after['eval/loss']
    # It goes on from there like from any checkpoint.
    model = {'path': str(left)}
    again = settings(text, model=model, total_prompts=8, evaluation=held_out)
    more = runs.train(again, tmp_path / 'more', quiet=True)
    assert more.before['eval/loss'] == pytest.approx(result.after['eval/loss'], rel=1e-5)


def test_a_model_that_a_full_disk_does_not_take_is_left_by_a_resume(text, tmp_path, monkeypatch):
    run, path = settings(text), tmp_path / 'run'
    with monkeypatch.context() as patch:
        patch.setattr(
            supervised_task.export, 'export', on_a_full_disk(supervised_task.export.export, 1000)
        )
        with pytest.raises(TrainingFailed, match=f'run/{MODEL}: cannot be written .*--resume'):
            runs.train(run, path, quiet=True)
    assert not (path / MODEL).exists()
    # What processes leave that were killed while they wrote one, or put it in the other's place.
    for name in (f'{MODEL}.abc.partial', f'{MODEL}.before', MODEL):
        (path / name / 'half').mkdir(parents=True)
    result = runs.train(run, path, resume=True, quiet=True)
    decoder = weights.load(path / MODEL)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(decoder), result.policy.params)
    assert [each.name for each in path.glob(f'{MODEL}*')] == [MODEL]


def test_an_export_is_there_whole_or_not_at_all(text, tmp_path, monkeypatch):
    """Also where what fails is the last thing to be written, after the weights."""
    run = settings(text)
    decoders = export.decoders_of(run)
    opened = export.OpenedModel(run, decoders, decoders.start(0), ())

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export, '_name_end', killed)
        with pytest.raises(KeyboardInterrupt):
            export.export(opened, tmp_path / 'out')
    assert list(tmp_path.iterdir()) == []
    export.export(opened, tmp_path / 'out')
    assert tokens.load(tmp_path / 'out').eos_ids == tokens.load(text).eos_ids


@pytest.mark.slow
def test_resumes_bit_for_bit(text, tmp_path):
    run = settings(text)
    whole = runs.train(run, tmp_path / 'whole', quiet=True)
    stopped = tmp_path / 'stopped'

    class Stop(Exception):
        pass

    def stop_at_6(task):
        def dispatch(state):
            if int(state.step) == 6:
                raise Stop
            return task.dispatch(state)

        return task._replace(dispatch=dispatch)

    with pytest.raises(Stop):
        trainer.train(run, stop_at_6(sft_task.make(run)), stopped, quiet=True)
    resumed = runs.train(run, stopped, resume=True, quiet=True)
    same(resumed.policy, whole.policy)
    rows = without_times(stopped)
    assert rows == without_times(tmp_path / 'whole')
    assert [row['step'] for row in rows] == list(range(9))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model': {}}, 'model: give the path'),
        ({'model': {'path': 'x', 'tokenizer': 'y'}}, 'model.path: a checkpoint brings'),
        ({'prompts_per_update': 9, 'optimizer': {'accumulation': 2}}, 'accumulation: 2 does not'),
        ({'optimizer': {'warmup_updates': 8}}, 'warmup_updates: 8; the run has 8'),
        ({'model': {'path': 'nowhere'}}, 'nowhere: no such directory'),
        ({'evaluation': {'prompts': 320}}, 'evaluation.prompts: 320 to hold out'),
    ],
)
def test_bad_settings_are_one_line(text, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        runs.train(settings(text, **changes), tmp_path / 'run', quiet=True)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('family', 'switch', 'said'),
    [
        ('qwen2', 'qkv_bias', r'qwen2 .* another qkv_bias \(False -> True\)'),
        ('qwen3', 'qk_norm', r'qwen3 .* another qk_norm \(False -> True\)'),
        ('llama', 'qk_norm', r'llama .* another qk_norm \(True -> False\)'),
    ],
)
def test_a_network_that_its_family_has_not_is_refused(text, tmp_path, family, switch, said):
    """What it would leave could not be read."""
    switches = {'qkv_bias': False, 'qk_norm': False, switch: family == 'llama'}
    sizes = SIZES | {'vocab_size': 300, 'family': family} | switches
    model = {'tokenizer': str(text), 'architecture': sizes}
    with pytest.raises(UserError, match=rf'model\.architecture: {said}'):
        runs.train(settings(text, model=model), tmp_path / 'run', quiet=True)


def test_a_tokeniser_larger_than_the_network_is_refused(text, tmp_path):
    model = {'tokenizer': str(text), 'architecture': SIZES | {'vocab_size': 100}}
    with pytest.raises(UserError, match=r'model\.architecture\.vocab_size: 100'):
        runs.train(settings(text, model=model), tmp_path / 'run', quiet=True)
