"""A batch: whose responses stand in which row, their log-probabilities, and their labels."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from sail_jax import configfile
from sail_jax.core import loss, update
from sail_jax.core.types import Policies, Preferences
from sail_jax.language import workload
from sail_jax.language.config import LanguageRun, check
from sail_jax.language.data import reader, tokens
from sail_jax.language.model import policy
from tests.support import small
from tests.support.paths import ROOT


def test_the_guides_configuration_is_one():
    guide = (ROOT / 'docs' / 'guides' / 'language.md').read_text()
    block = re.search(r'```yaml\n(workload: language.*?)```', guide, re.DOTALL)[1]
    check(LanguageRun.model_validate(yaml.safe_load(block)))


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    """A batch of all kinds of rows, with a lane of the reference, and both models on it."""
    path = tmp_path_factory.mktemp('mixed')
    run = small.run(
        small.checkpoint(path / 'm'),
        small.data(path / 'pairs.jsonl', rows=24, pairs=True),
        prompts_per_update=16,
        objective={'mixture': {'dpr': 0.3, 'dpp': 0.2, 'ddp': 0.2}},
        divergence={'states': 'reference'},
        seed=1,
    )
    tokenizer, decoders = tokens.load(run.model.path), policy.read(run.model)
    data = reader.prepare(run, tokenizer)
    examples = data.examples(0)
    made = workload.make(run, decoders, tokenizer.eos_ids)
    assert made.stacked in decoders.abstract.params
    start = decoders.start(run.seed)
    # A policy that is not its reference.
    moved = start._replace(params=jax.tree.map(lambda x: x * 1.1, start.params))
    state = update.init(made, run, Policies(moved, start))

    @jax.jit
    def both(state, rows):
        sampled = update.draw(made, state._replace(sampler=rows))
        inputs = sampled.batch.inputs
        held = made.predict_reference(state.policies, inputs)
        return sampled, made.compare(state.policies, held, inputs)

    sampled, compared = both(state, reader.batch(examples, run.data.max_response_tokens))
    return run, examples, state, jax.device_get(sampled), jax.device_get(compared)


def test_rows_hold_the_responses_of_their_route(drawn):
    run, examples, _, sampled, _ = drawn
    batch = sampled.batch
    assert batch.inputs.tokens_BxLxT.shape == (16, 3, 8)
    lengths = batch.mask_BxLxT.sum(-1)
    assert 3 < batch.route.on_policy_B.sum() < 13
    for row, example in enumerate(examples):
        ids = [batch.inputs.tokens_BxLxT[row, lane, : lengths[row, lane]] for lane in range(3)]
        if batch.route.on_policy_B[row]:
            assert lengths[row].max() <= run.sampling.max_tokens
            assert ids[0].tolist() != example.chosen
        else:
            assert [x.tolist() for x in ids[:2]] == [example.chosen, example.rejected]


def test_recomputed_log_probabilities_are_the_samplers(drawn):
    _, _, _, sampled, compared = drawn
    batch, on_policy_B = sampled.batch, sampled.batch.route.on_policy_B
    mask, behaviour = batch.mask_BxLxT, batch.behaviour_logp_BxLxT
    ours = mask[on_policy_B, :2]
    np.testing.assert_allclose(
        compared.logp[on_policy_B, :2][ours], behaviour[on_policy_B, :2][ours], atol=1e-4
    )
    theirs = compared.reference_logp[:, 2][mask[:, 2]]
    np.testing.assert_allclose(theirs, behaviour[:, 2][mask[:, 2]], atol=1e-4)
    assert np.abs(compared.logp - compared.reference_logp)[mask].max() > 0.01
    assert (compared.ref_to_policy[mask] > 0).all()
    assert (compared.policy_to_ref[mask] > 0).all()


def test_the_reference_draws_the_last_of_a_group_where_it_is_the_opponent(drawn):
    run, examples, state, of_lane, _ = drawn
    run = configfile.update(
        run,
        {
            'sampling.opponent': 'reference',
            'objective.mixture': {'dpr': 1, 'dpp': 0, 'ddp': 0},
            'divergence.states': 'policy',
        },
    )
    check(run)
    made = workload.make(run, policy.read(run.model), tokens.load(run.model.path).eos_ids)
    assert (made.group_size, made.opponents) == (2, 1)
    draw = jax.jit(lambda state, rows: update.draw(made, state._replace(sampler=rows)).batch)
    batch = draw(state, reader.batch(examples))
    assert batch.inputs.tokens_BxLxT.shape == (16, 2, 6)
    # The key of the lane that it has beside a group; ours is another's.
    theirs = of_lane.batch.inputs.tokens_BxLxT[:, 2, :6]
    np.testing.assert_array_equal(batch.inputs.tokens_BxLxT[:, 1], theirs)
    assert (batch.inputs.tokens_BxLxT[:, 0] != theirs).any()
    behaviour = of_lane.batch.behaviour_logp_BxLxT[:, 2, :6]
    np.testing.assert_allclose(batch.behaviour_logp_BxLxT[:, 1], behaviour, atol=1e-6)
    for states, lanes in (('policy', [1, 0]), ('reference', [0, 1])):
        other = configfile.update(run, {'divergence.states': states})
        lane = loss.penalty_lanes(other.divergence, batch.route, 1, 2)
        np.testing.assert_array_equal(lane, [lanes] * 16)
        assert loss.count(batch, made, other).lanes == 16


def test_labels_are_the_labellers_and_the_datas(drawn):
    run, _, state, sampled, _ = drawn
    rewards = np.tile(np.asarray([[1.0, 2.0]], np.float32), (16, 1))
    labelled = workload.labelled(run, state, sampled, rewards)
    route, labels = sampled.batch.route, labelled.batch.labels
    # The second is the better one by the labeller, the first by the data.
    expected_B = np.where(route.on_policy_B, 0.0, 1.0)
    np.testing.assert_array_equal(labels.prob_BxKxK[:, 0, 1], expected_B)
    np.testing.assert_array_equal(labels.prob_BxKxK[:, 1, 0], 1 - expected_B)
    assert labelled.labels_asked == (~route.policy_label_B).sum()

    half = Preferences(np.full((16, 2, 2), 0.5, np.float32), np.ones((16, 2, 2), np.float32))
    judged = workload.labelled(run, state, sampled, half).batch.labels
    np.testing.assert_array_equal(judged.prob_BxKxK[:, 0, 1], np.where(route.on_policy_B, 0.5, 1.0))


@pytest.mark.parametrize('max_labels', [None, 6])
def test_a_typical_reward_is_that_of_the_rows_that_were_asked(drawn, max_labels):
    run, _, state, sampled, _ = drawn
    route = sampled.batch.route
    asks_B = ~route.policy_label_B  # Those of the data cost a label, and get no reward.
    covered_B = asks_B & (np.cumsum(asks_B) <= (max_labels or 16))
    asked_B = covered_B & route.on_policy_B
    assert 2 <= asked_B.sum() < 8
    rewards = np.zeros((16, 2), np.float32)
    rewards[asked_B] = 10 + np.arange(2 * asked_B.sum()).reshape(-1, 2)
    teacher = run.labeller.model_copy(update={'skip': 1.0, 'max_labels': max_labels})
    run = run.model_copy(update={'labeller': teacher})
    weight = workload.labelled(run, state, sampled, rewards).batch.labels.weight_BxKxK[:, 0, 1]
    kept_B = rewards.max(1) > rewards[asked_B].mean()
    np.testing.assert_array_equal(weight[asked_B], kept_B[asked_B])
    assert 0 < kept_B[asked_B].mean() < 1


def test_parts_have_their_rows_results_and_gradients():
    rows, sizes = np.arange(12.0).reshape(6, 2), []

    def function(scale, x):
        sizes.append(len(x))
        return {'product': scale * x, 'sum': (scale * x**2).sum(1)}

    whole, parts = (workload.in_parts(function, n) for n in (1, 3))
    jax.tree.map(np.testing.assert_array_equal, parts(2.0, rows), whole(2.0, rows))
    total = lambda of: lambda scale: jnp.square(of(scale, rows)['sum']).sum()
    ours, wanted = (jax.grad(total(of))(2.0) for of in (parts, whole))
    np.testing.assert_allclose(ours, wanted, rtol=1e-6)
    assert set(sizes) == {2, 6}


@pytest.mark.slow
def test_a_gradient_in_parts_is_the_same(drawn):
    run, _, state, sampled, _ = drawn
    rewards = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    sampled = workload.labelled(run, state, sampled, rewards)
    steps = {'rule': 'sgd', 'learning_rate': 0.1, 'max_grad_norm': None, 'minibatches': 2}
    learnt = []
    for parts in (1, 4):
        part = configfile.update(run, {'optimizer': {**steps, 'accumulation': parts}})
        made = workload.make(part, policy.read(run.model), (0,))
        start = update.init(made, part, state.policies, seed=state.seed)
        learnt.append(jax.jit(update.make_learn(made, part))(start, sampled))
    (whole, numbers), (in_parts, same) = learnt
    for name, value in numbers.items():
        np.testing.assert_allclose(same[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    moved = [
        jax.tree.map(lambda x, y: np.asarray(x - y), new.policy.params, state.policy.params)
        for new in (whole, in_parts)
    ]
    largest = max(np.abs(x).max() for x in jax.tree.leaves(moved[0]))
    assert largest > 1e-3
    jax.tree.map(lambda x, y: np.testing.assert_allclose(y, x, rtol=0, atol=1e-5 * largest), *moved)


def test_trimming_keeps_what_is_in_the_response(drawn):
    sampled = drawn[3]
    longest = int(sampled.batch.mask_BxLxT.sum(-1).max())
    trimmed = workload.trimmed(sampled, longest)
    assert trimmed.batch.inputs.tokens_BxLxT.shape[-1] == longest
    assert trimmed.batch.mask_BxLxT.sum() == sampled.batch.mask_BxLxT.sum()
