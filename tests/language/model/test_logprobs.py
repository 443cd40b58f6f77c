from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from sail_jax.core import divergence
from sail_jax.language.model import logprobs
from sail_jax.language.model.logprobs import Predictions, Prompts
from sail_jax.language.model.transformer import Head
from tests.support import tiny

B, L, T, D, V = 2, 3, 7, 5, 19


def random_predictions(seed, dtype):
    rng = np.random.default_rng(seed)
    hidden, head = rng.standard_normal((B, L, T, D)), rng.standard_normal((D, V))
    return Predictions(jnp.asarray(hidden, dtype), Head(jnp.asarray(head, dtype)))


TARGET = np.random.default_rng(3).integers(0, V, (B, L, T))


def naive(policy, reference, target):
    ours, theirs = (x.hidden @ x.head.matrix_DxV for x in (policy, reference))
    pick = lambda x: jnp.take_along_axis(jax.nn.log_softmax(x), target[..., None], -1)[..., 0]
    return logprobs.Compared(
        pick(ours),
        pick(theirs),
        divergence.categorical_kl(theirs, ours),
        divergence.categorical_kl(ours, theirs),
    )


@pytest.mark.parametrize('tokens', [4, 16, 1024])
def test_values_and_gradients_are_those_of_the_naive_form(tokens):
    with jax.enable_x64(True):
        policy, reference = random_predictions(0, jnp.float64), random_predictions(1, jnp.float64)
        weights = np.random.default_rng(2).standard_normal((5, B, L, T))

        def value(function, policy, reference):
            compared = function(policy, reference, TARGET)
            alone = (
                logprobs.log_probs(policy, TARGET, tokens) if function is chunked else compared[0]
            )
            return jnp.sum(weights[:4] * jnp.stack(compared)) + (weights[4] * alone).sum(), compared

        def chunked(*args):
            return logprobs.compare(*args, tokens=tokens)

        def held(policy, reference, target):
            return naive(policy, jax.lax.stop_gradient(reference), target)

        def values_and_gradients(function):
            grad = jax.value_and_grad(partial(value, function), (0, 1), has_aux=True)
            return jax.jit(grad)(policy, reference)

        (ours, compared), gradients = values_and_gradients(chunked)
        (theirs, expected), exact = values_and_gradients(held)
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
        np.testing.assert_allclose(compared, expected, rtol=1e-12, atol=1e-13)
        for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(exact), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
        assert not any(np.any(x) for x in jax.tree.leaves(gradients[1]))


@pytest.mark.parametrize('name', logprobs.Compared._fields)
def test_each_score_alone_has_its_gradient_and_a_frozen_head_none(x64, name):
    """Of an embedding as the head, through what a family makes of the products, a cap."""

    def bent(predicted):
        matrix_VxD = predicted.head.matrix.T
        return predicted._replace(
            head=Head(matrix_VxD, lambda x: 3 * jnp.tanh(x / 3), of_words=True)
        )

    policy, reference = (bent(random_predictions(seed, jnp.float64)) for seed in (0, 1))
    weights = np.random.default_rng(2).standard_normal((B, L, T))

    def of_hidden(hidden):
        compared = logprobs.compare(policy._replace(hidden=hidden), reference, TARGET, tokens=8)
        return (weights * getattr(compared, name)).sum()

    def of_all(policy):
        compared = logprobs.compare(policy, reference, TARGET, tokens=8)
        return (weights * getattr(compared, name)).sum()

    alone, whole = jax.jit(jax.grad(of_hidden))(policy.hidden), jax.jit(jax.grad(of_all))(policy)
    np.testing.assert_allclose(alone, whole.hidden, rtol=1e-12)
    assert np.any(alone) == (name != 'reference_logp')
    check_grads(jax.jit(of_all), (policy,), order=1, modes=['rev'], rtol=1e-6)
    # Neither the products of the head's gradient nor, for `logp`, the reference's logits.
    dots = lambda f, x: str(jax.make_jaxpr(jax.grad(f))(x)).count('dot_general')
    assert dots(of_hidden, policy.hidden) == dots(of_all, policy) - 1


def test_gradients_in_bfloat16_are_those_of_float32():
    policy, reference = random_predictions(0, jnp.bfloat16), random_predictions(1, jnp.bfloat16)

    def total(policy):
        compared = logprobs.compare(policy, reference, TARGET, tokens=16)
        return compared.logp.sum() + 2 * compared.ref_to_policy.sum() - compared.policy_to_ref.sum()

    wide = jax.tree.map(lambda x: x.astype(jnp.float32), policy)
    gradient = jax.jit(jax.grad(total))
    both = zip(jax.tree.leaves(gradient(policy)), jax.tree.leaves(gradient(wide)), strict=True)
    for rounded, exact in both:
        assert rounded.dtype == jnp.bfloat16
        # bfloat16 has 8 bits.
        np.testing.assert_allclose(rounded, exact, atol=0.01 * np.abs(exact).max())


def test_bfloat16_states_give_float32_log_probabilities():
    policy, reference = random_predictions(0, jnp.bfloat16), random_predictions(1, jnp.bfloat16)
    compared = logprobs.compare(policy, reference, TARGET)
    assert {x.dtype for x in compared} == {jnp.dtype('float32')}
    exact = naive(*jax.tree.map(lambda x: x.astype(jnp.float32), (policy, reference)), TARGET)
    np.testing.assert_allclose(compared, exact, atol=1e-5)
    assert (compared.ref_to_policy > 0).all()


def _inner(value):
    if hasattr(value, 'eqns'):
        return [value]
    if hasattr(value, 'jaxpr'):
        return _inner(value.jaxpr)
    if isinstance(value, (tuple, list)):
        return [jaxpr for x in value for jaxpr in _inner(x)]
    return []


def array_sizes(jaxpr):
    """Entries of every array that a program computes, inner programs included."""
    for eqn in jaxpr.eqns:
        yield from (var.aval.size for var in eqn.outvars)
        for value in eqn.params.values():
            for inner in _inner(value):
                yield from array_sizes(inner)


def test_vocabulary_of_a_whole_batch_never_exists():
    policy, reference = random_predictions(0, jnp.float32), random_predictions(1, jnp.float32)

    def program(function):
        loss = lambda policy: jnp.stack(function(policy, reference, TARGET)).sum()
        return jax.make_jaxpr(jax.grad(loss))(policy).jaxpr

    tokens = 2
    chunked = lambda *args: logprobs.compare(*args, tokens=tokens)
    assert max(array_sizes(program(naive))) == B * L * T * V
    assert max(array_sizes(program(chunked))) <= max(B * L * T * D, tokens * V, D * V)


def test_predictions_are_those_of_whole_sequences():
    decoder = tiny.decoder('qwen2-windows')
    prompts = Prompts(tiny.tokens(2, 8), jnp.array([8, 3]))
    responses = tiny.tokens(2, 3, 5, seed=1)

    @jax.jit
    def program(state, prompts, responses):
        return logprobs.predictions(nnx.merge(graphdef, state), prompts, responses)

    graphdef, state = nnx.split(decoder)
    tokens = program(state, prompts, responses)
    for row, lane in np.ndindex(2, 3):
        n = int(prompts.lengths_B[row])
        sequence = np.zeros((1, 13), int)
        sequence[0, : n + 5] = np.concatenate([prompts.tokens_BxP[row, :n], responses[row, lane]])
        expected, _ = tiny.whole(decoder, jnp.asarray(sequence))
        np.testing.assert_allclose(tokens.hidden[row, lane], expected[0, n - 1 : n + 4], atol=2e-5)
