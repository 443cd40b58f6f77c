"""The reference of a language run: refreshed or averaged, of all parameters or an adapter."""

import jax
import numpy as np
import pytest
from flax import nnx

import sail_jax
from sail_jax.errors import UserError
from sail_jax.language.config import check
from sail_jax.language.model import lora, policy, weights
from sail_jax.training import metrics
from tests.support import small

LORA = {'train': 'lora', 'lora': {'rank': 4}}
SETTINGS = {
    'optimizer': {'learning_rate': 1e-2},
    'evaluation': {'every_updates': 100, 'prompts': 4},
    'checkpoints': {'every_updates': 100},
}


def train(path, prompts, updates, resume=False, **settings):
    run = small.run(
        path / 'm', path / 'prompts.jsonl', **SETTINGS | settings, total_prompts=4 * updates
    )
    return sail_jax.train(run, path / prompts, reward=small.letters, quiet=True, resume=resume)


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp('reference')
    small.checkpoint(path / 'm')
    small.data(path / 'prompts.jsonl')
    return path


@pytest.mark.parametrize('adapted', [False, True])
def test_only_a_reference_that_moves_has_an_adapter(path, adapted):
    run = small.run(path / 'm', path / 'prompts.jsonl', model=LORA if adapted else {})
    ids = np.asarray([[5, 80, 200]])
    for moves in (False, True):
        decoders = policy.read(run.model, reference_moves=moves)
        start, shared = decoders.start(0), decoders.shared()
        moved = start._replace(params=jax.tree.map(lambda x: x + 0.1, start.params))
        ours = small.logits(decoders.policy(moved, shared), ids)
        theirs = small.logits(decoders.reference(moved, shared), ids)
        gap = np.abs(ours - theirs).max()
        assert (gap > 0.1) if adapted and not moves else gap == 0


@pytest.mark.slow
@pytest.mark.parametrize('model', [{}, LORA])
def test_after_a_refresh_policy_and_reference_agree_and_the_run_resumes(path, model):
    kind = model.get('train', 'full')
    settings = {'model': model, 'reference': {'refresh_prompts': 7}}  # Rounded up to 8: 2 updates.
    whole = train(path, f'{kind}-whole', 5, **settings)
    rows = metrics.read_rows(path / f'{kind}-whole' / 'metrics.jsonl')[1:]
    kl = [row['train/kl'] for row in rows]
    np.testing.assert_allclose([kl[0], kl[2], kl[4]], 0, atol=1e-6)
    assert min(kl[1], kl[3]) > 1e-5
    # Evaluations compare with the start all the same.
    assert whole.after['eval/kl_policy_to_start'] > max(kl)

    train(path, f'{kind}-part', 3, **settings)
    resumed = train(path, f'{kind}-part', 5, resume=True, **settings)
    jax.tree.map(np.testing.assert_array_equal, resumed.policy, whole.policy)
    assert resumed.after == whole.after


@pytest.mark.slow
def test_a_moving_average_lags_behind(path):
    kls = {}
    for ema in (0.0, 0.5, 0.999):
        settings = {'model': LORA, 'reference': {'refresh_prompts': 4, 'ema': ema}}
        train(path, f'ema-{ema}', 4, **settings)
        rows = metrics.read_rows(path / f'ema-{ema}' / 'metrics.jsonl')
        kls[ema] = rows[-1]['train/kl']
    assert abs(kls[0.0]) < 1e-6 < 1e-5 < kls[0.5] < kls[0.999]


@pytest.fixture(scope='module')
def adapter(path):
    """An adapter that does something, as PEFT would leave it."""
    settings = lora.Lora(rank=3, alpha=5.0, targets=('q_proj', 'down_proj'))
    decoder = lora.add(weights.load(path / 'm'), settings, jax.random.key(0))
    state = nnx.state(decoder, nnx.LoRAParam)
    nnx.update(decoder, jax.tree.map(lambda x: x + 0.1, state))
    return decoder, lora.save(decoder, settings, path / 'adapter')


def test_an_adapter_to_start_from_is_policy_and_reference(path, adapter):
    decoder, directory = adapter
    model = {'train': 'lora', 'adapter': str(directory), 'lora': {'dropout': 0.1}}
    decoders = policy.read(small.run(path / 'm', 'd', model=model).model)
    start, shared = decoders.start(0), decoders.shared()
    ids = np.asarray([[5, 80, 200]])
    expected = small.logits(decoder, ids)
    for read in (decoders.policy(start, shared), decoders.reference(start, shared)):
        np.testing.assert_array_equal(small.logits(read, ids), expected)
    jax.tree.map(lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype), start, decoders.abstract)
    assert decoders.settings.lora == lora.Lora(
        rank=3, alpha=5.0, targets=('q_proj', 'down_proj'), dropout=0.1
    )


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        ({'train': 'lora', 'lora': {'rank': 8}}, r'model.lora.rank: 8; the adapter in .* has 3;'),
        (
            {'train': 'lora', 'lora': {'targets': 'all-linear'}},
            r'model.lora.targets: .*all-linear.*; the ',
        ),
        ({'train': 'full'}, 'model.adapter: not used by model.train: full'),
    ],
)
def test_an_adapter_to_start_from_brings_its_settings(path, adapter, model, message):
    run = small.run(path / 'm', 'd', model={**model, 'adapter': str(adapter[1])})
    refuse = check if run.model.train == 'full' else lambda run: policy.read(run.model)
    with pytest.raises(UserError, match=message) as caught:
        refuse(run)
    assert '\n' not in str(caught.value)


def test_targets_of_an_adapter_have_no_order(path, adapter):
    lora_ = {'targets': ['down_proj', 'q_proj'], 'rank': 3}
    model = {'train': 'lora', 'adapter': str(adapter[1]), 'lora': lora_}
    decoders = policy.read(small.run(path / 'm', 'd', model=model).model)
    assert decoders.settings.lora.targets == ('q_proj', 'down_proj')


@pytest.mark.slow
def test_a_run_from_an_adapter_with_dropout_resumes_bit_for_bit(path, adapter):
    model = {'train': 'lora', 'adapter': str(adapter[1]), 'lora': {'dropout': 0.3}}
    whole = train(path, 'adapter-whole', 4, model=model)
    assert whole.before['eval/response_kl_policy_to_start'] == pytest.approx(0, abs=1e-5)
    rows = metrics.read_rows(path / 'adapter-whole' / 'metrics.jsonl')[1:]
    # What learns is not quite what drew.
    assert abs(rows[0]['train/kl']) > 1e-6
    train(path, 'adapter-part', 2, model=model)
    resumed = train(path, 'adapter-part', 4, resume=True, model=model)
    jax.tree.map(np.testing.assert_array_equal, resumed.policy, whole.policy)
    assert resumed.after == whole.after
    out = sail_jax.export(path / 'adapter-part', path / 'exported', adapter=True)
    assert lora.read_settings(out).rank == 3


def test_how_often_the_reference_is_refreshed():
    def updates(**reference):
        return small.run('m', 'd', reference=reference).refresh_updates

    assert [updates(), updates(ema=0.9), updates(refresh_prompts=9, ema=0.9)] == [None, 1, 3]
    run = small.run('m', 'd', model={'param_dtype': 'bfloat16'}, reference={'ema': 0.9})
    with pytest.raises(UserError, match=r'^reference.ema: in bfloat16 a moving average'):
        check(run)
    check(run.model_copy(update={'model': run.model.model_copy(update={'train': 'lora'})}))
