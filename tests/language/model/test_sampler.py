import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from sail_jax.language.model import logprobs, sampler
from sail_jax.language.model.sampler import Sampling
from tests.support import tiny

PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7]]
EOS = (7, 11, 13, 17)
PLAIN = Sampling(max_tokens=12)


@partial(jax.jit, static_argnums=(0, 5))
def _generate(graphdef, state, prompts, key_B, eos_E, how):
    decoder = nnx.merge(graphdef, state)
    return sampler.generate(decoder, prompts, key_B, group_size=8, settings=how, eos_E=eos_E)


def generate(prompts, key_B, how=PLAIN, eos=EOS):
    # Always as many ids, so that one program serves.
    eos_E = jnp.asarray(np.resize(eos, 30), jnp.int32)
    return _generate(*nnx.split(tiny.decoder('mistral')), prompts, key_B, eos_E, how)


@partial(jax.jit, static_argnums=0)
def _recompute(graphdef, state, prompts, tokens):
    return logprobs.log_probs(
        logprobs.predictions(nnx.merge(graphdef, state), prompts, tokens), tokens, tokens=48
    )


def recompute(prompts, responses):
    decoder = nnx.split(tiny.decoder('mistral'))
    return _recompute(*decoder, prompts, responses.tokens_BxKxR) * responses.mask_BxKxR


def keys(n, seed=0):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(n))


@pytest.fixture(scope='module')
def batch():
    prompts = sampler.pad_prompts(PROMPTS, 8)
    return prompts, generate(prompts, keys(3))


def test_training_recomputes_the_samplers_log_probabilities(batch):
    prompts, responses = batch
    assert PLAIN.on_policy
    assert len(set(np.asarray(responses.lengths_BxK).ravel().tolist())) > 4
    assert abs(responses.gap) < 1e-6
    again = recompute(prompts, responses)
    np.testing.assert_allclose(responses.logp_BxKxR, again, atol=1e-4, rtol=0)
    np.testing.assert_allclose(
        responses.sampling_logp_BxKxR, responses.logp_BxKxR, atol=1e-6, rtol=0
    )


def test_log_probabilities_are_the_policys_own_when_sampling_is_not():
    prompts = sampler.pad_prompts(PROMPTS, 8)
    how = Sampling(max_tokens=12, temperature=0.7, top_k=9, top_p=0.8)
    assert not how.on_policy
    responses = generate(prompts, keys(3), how)
    np.testing.assert_allclose(
        responses.logp_BxKxR, recompute(prompts, responses), atol=1e-4, rtol=0
    )
    difference = (responses.sampling_logp_BxKxR - responses.logp_BxKxR)[responses.mask_BxKxR]
    np.testing.assert_allclose(responses.gap, difference.mean(), rtol=1e-5)
    assert responses.gap > 0.1


def test_response_runs_up_to_and_including_its_end(batch):
    _, responses = batch
    assert responses.ended_BxK.any()
    assert not responses.ended_BxK.all()
    for row, lane in np.ndindex(3, 8):
        n = int(responses.lengths_BxK[row, lane])
        tokens = np.asarray(responses.tokens_BxKxR[row, lane])
        assert not np.isin(tokens[: n - 1], EOS).any()
        assert (tokens[n - 1] in EOS) == bool(responses.ended_BxK[row, lane])
        assert n == 12 or responses.ended_BxK[row, lane]
        assert not tokens[n:].any()
        assert not responses.logp_BxKxR[row, lane, n:].any()
        assert (responses.logp_BxKxR[row, lane, :n] < 0).all()


def test_loop_ends_with_the_last_lane(batch):
    responses = generate(batch[0], keys(3), eos=range(30))
    assert int(responses.steps) == int(responses.lengths_BxK.max()) < 12
    assert responses.ended_BxK.all()


def test_lanes_that_have_ended_are_left_behind_and_samples_are_the_same():
    """Lengths are about geometric, with a quarter of the maximum as their mean."""
    how, eos = Sampling(max_tokens=64), range(4)
    rows = [PROMPTS[i % 3] for i in range(32)]
    responses = generate(sampler.pad_prompts(rows, 8), keys(32), how, eos)
    kept = int(responses.lengths_BxK.sum())
    assert 10 * 256 < kept < 20 * 256
    assert int(responses.decoded) <= 1.5 * kept
    assert int(responses.steps) == int(responses.lengths_BxK.max())
    # Of three rows all lanes are decoded to the end.
    for first in (0, 12, 27):
        some = slice(first, first + 3)
        alone = generate(sampler.pad_prompts(rows[some], 8), keys(32)[some], how, eos)
        assert int(alone.decoded) == 24 * int(alone.steps)
        for name in ('tokens_BxKxR', 'lengths_BxK', 'ended_BxK'):
            np.testing.assert_array_equal(getattr(responses, name)[some], getattr(alone, name))
        np.testing.assert_allclose(responses.logp_BxKxR[some], alone.logp_BxKxR, atol=1e-5)


def test_sample_depends_on_its_own_key_alone(batch):
    prompts, responses = batch
    alone = generate(sampler.pad_prompts(PROMPTS[1:2], 32), keys(3)[1:2])
    np.testing.assert_array_equal(alone.tokens_BxKxR[0], responses.tokens_BxKxR[1])
    np.testing.assert_allclose(alone.logp_BxKxR[0], responses.logp_BxKxR[1], atol=1e-5)
    other = generate(prompts, keys(3, seed=1))
    assert (other.tokens_BxKxR != responses.tokens_BxKxR).any()
    tokens = np.asarray(responses.tokens_BxKxR).reshape(24, -1)
    assert len({row.tobytes() for row in tokens}) > 18


def test_tokens_are_drawn_with_the_probabilities_of_what_is_left():
    n, how = 20_000, Sampling(temperature=1.3, top_k=40)
    logits = jnp.asarray(np.random.default_rng(0).standard_normal(61), jnp.float32) * 2
    token, logp, sampling_logp = jax.jit(jax.vmap(lambda key: sampler.draw(key, logits, how)))(
        jax.random.split(jax.random.key(0), n)
    )
    np.testing.assert_allclose(logp, jax.nn.log_softmax(logits)[token], atol=1e-6)
    weight = np.where(logits >= np.sort(logits)[-40], np.exp(np.asarray(logits) / 1.3), 0)
    probability = weight / weight.sum()
    np.testing.assert_allclose(sampling_logp, np.log(probability[token]), atol=1e-5)
    count = np.bincount(np.asarray(token), minlength=61)
    error = np.sqrt(probability * (1 - probability) / n)
    np.testing.assert_array_less(np.abs(count / n - probability), 4.5 * error + 1e-9)


_truncate = jax.jit(sampler.truncate, static_argnums=1)
LOGITS = st.lists(st.integers(-40, 40), min_size=8, max_size=8).map(
    lambda values: np.asarray(values, np.float32) / 8
)


@settings(deadline=None, max_examples=40)
@given(LOGITS, st.sampled_from([1, 3, 8, 9]), st.sampled_from([0.1, 0.5, 0.9, 1.0]))
def test_truncation_keeps_the_smallest_sufficient_set(logits, k, p):
    how = Sampling(temperature=0.5, top_k=k, top_p=p)
    kept = np.isfinite(np.asarray(_truncate(jnp.asarray(logits), how)))
    least = np.sort(logits)[::-1][min(k, len(logits)) - 1]
    candidates = logits >= least
    weight = np.where(candidates, np.exp(2 * logits.astype(np.float64)), 0)
    probability = weight / weight.sum()
    assert kept.any()
    assert not (kept & ~candidates).any()
    assert logits[kept].min() > logits[candidates & ~kept].max(initial=-np.inf)
    assert probability[kept].sum() >= p - 1e-5
    # Without its least probable tokens the set would fall short.
    assert probability[kept & (logits > logits[kept].min())].sum() < p + 1e-5


def test_truncation_is_that_of_transformers():
    torch = pytest.importorskip('torch')
    generation = pytest.importorskip('transformers.generation.logits_process')
    logits = np.random.default_rng(0).standard_normal((20, 61)).astype(np.float32) * 3
    theirs = torch.tensor(logits)
    for warp in (
        generation.TemperatureLogitsWarper(0.7),
        generation.TopKLogitsWarper(20),
        generation.TopPLogitsWarper(0.9),
    ):
        theirs = warp(None, theirs)
    how = Sampling(temperature=0.7, top_k=20, top_p=0.9)
    ours = jax.jit(jax.vmap(partial(sampler.truncate, settings=how)))(jnp.asarray(logits))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


def test_prompts_are_padded_to_a_handful_of_sizes():
    assert {sampler.bucket(n) for n in range(1, 2049)} == {32, 64, 128, 256, 512, 1024, 2048}
    assert all(n <= sampler.bucket(n) for n in range(1, 2049))
    prompts = sampler.pad_prompts(PROMPTS)
    assert prompts.tokens_BxP.shape == (3, 32)
    assert prompts.lengths_B.tolist() == [5, 2, 7]
    with pytest.raises(ValueError, match='prompt 1 is empty'):
        sampler.pad_prompts([[1], [], [2]])


def test_tokens_are_written_as_they_are_kept_with_64_bits_too():
    prompts = sampler.pad_prompts(PROMPTS, 8)
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter('error')  # In later versions of JAX it is one.
        shapes = jax.eval_shape(lambda: generate(prompts, keys(3)))
    assert shapes.tokens_BxKxR.dtype == jnp.int32
