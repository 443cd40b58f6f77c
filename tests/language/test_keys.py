"""No two tokens, labels or routes of a language run come from one key."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.core import update
from sail_jax.core.types import Policies, Policy
from sail_jax.language import workload
from sail_jax.language.config import LanguageRun
from sail_jax.language.model import sampler
from sail_jax.language.model.attention import Memory
from sail_jax.language.model.sampler import Sampling
from tests.support import tiny
from tests.support.keys import reused, uses

B, K, T, V = 2, 2, 3, 300


class Uniform:
    """A model without weights, to which all tokens are alike."""

    architecture = tiny.FAMILIES['qwen2'].model_copy(update={'vocab_size': V, 'layers': 1})
    dtype = jnp.dtype('float32')
    mesh = None

    def __call__(self, tokens, positions):
        a = self.architecture
        keys = jnp.zeros((a.layers, len(tokens), a.kv_heads, *tokens.shape[1:], a.head_dim))
        return jnp.zeros((*tokens.shape, 1)), Memory(keys, keys, positions)

    def decoding(self):
        return None

    def decode(self, weights, tokens, index, memory, prefix):
        return jnp.zeros((*tokens.shape, V)), memory

    def last_logits(self, weights, hidden):
        return jnp.zeros((*hidden.shape[:-1], V))


@pytest.fixture(scope='module')
def program():
    """An update up to its labels: all four members, a lane of the reference, labels by chance."""
    run = LanguageRun.model_validate(
        {
            'workload': 'language',
            'model': {'path': 'unread'},
            'data': {'path': 'unread', 'max_response_tokens': T},
            'prompts_per_update': B,
            'sampling': {'max_tokens': T},
            'objective': {'mixture': {'dpr': 0.4, 'dpp': 0.2, 'ddp': 0.2}},
            'divergence': {'coefficient': 1.0, 'states': 'reference'},
            'labeller': {'rationality': 1.0, 'mistake': 0.2},
        }
    )
    decoders = SimpleNamespace(policy=lambda *_: Uniform(), reference=lambda *_: Uniform())
    made = workload.make(run, decoders, eos_ids=(7,))
    pairs = workload.Pairs(jnp.ones((B, 2, T), jnp.int32), jnp.full((B, 2), T))
    rows = workload.PromptBatch(sampler.pad_prompts([[3, 1, 4], [1, 5]], 4), pairs)
    policy = Policy({'theta': jnp.zeros(1)}, jnp.zeros((), jnp.int32))
    state = update.init(made, run, Policies(policy, policy))

    def labelled(state):
        sampled = update.draw(made, state._replace(sampler=rows))
        return workload.labelled(run, state, sampled, jnp.zeros((B, K)))

    return labelled, state


def test_updates_use_no_key_twice(program):
    labelled, state = program
    one, other = (uses(labelled, state._replace(step=jnp.int32(step))) for step in range(2))
    for found in (one, other, {*one, *other}):
        assert not reused(found)
    assert all(use.what == 'random_fold_in' for use in {*one} & {*other})
    # A block and a token of it for each token of each lane; a route, labels and mistakes.
    bits = [use for use in one if use.what == 'random_bits']
    assert len(bits) == B * T * (K + 1) * 2 + B * 3


def test_a_token_and_its_block_are_drawn_apart():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal(V), jnp.float32)
    assert V > 2 * sampler.BLOCK
    found = uses(lambda key: sampler.categorical(key, logits), jax.random.key(0))
    assert not reused(found)
    n = 40_000
    token, logp, _ = jax.jit(jax.vmap(lambda key: sampler.draw(key, logits, Sampling())))(
        jax.random.split(jax.random.key(1), n)
    )
    probability = np.asarray(jax.nn.softmax(logits))
    np.testing.assert_allclose(logp, np.log(probability)[token], atol=1e-5)
    count = np.bincount(np.asarray(token), minlength=V)
    error = np.sqrt(probability * (1 - probability) / n)
    np.testing.assert_array_less(np.abs(count / n - probability), 5 * error)
