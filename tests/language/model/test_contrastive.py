"""Contrastive search against a plain one that computes every candidate's text anew."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sail_jax.language.model import contrastive, sampler
from tests.support import tiny

PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7]]
R, SIZE = 10, 20


@partial(jax.jit, static_argnums=0)
def _search(graphdef, state, prompts, alpha, eos_E):
    decoder = nnx.merge(graphdef, state)
    return contrastive.generate(decoder, prompts, max_tokens=R, eos_E=eos_E, alpha=alpha)


@pytest.fixture(scope='module')
def decoder():
    return tiny.decoder('mistral')  # With windows.


def states(decoder, texts):
    """Hidden states of whole texts, and the probabilities of what follows."""
    padded = jnp.asarray([text + [0] * (SIZE - len(text)) for text in texts])
    hidden = tiny.whole(decoder, padded, jnp.asarray([len(text) for text in texts]))[0]
    last = jnp.stack([h[len(text) - 1] for h, text in zip(hidden, texts, strict=True)])
    return np.asarray(hidden, np.float64), np.asarray(jax.nn.softmax(decoder.logits(last)))


def plain(decoder, prompt, alpha, eos):
    text = list(prompt)
    while len(text) < len(prompt) + R and not (len(text) > len(prompt) and text[-1] in eos):
        # Always 4 texts, so that one program serves.
        probability = states(decoder, [text] * 4)[1][0]
        candidates = np.argsort(-probability)[:4]
        hidden, _ = states(decoder, [[*text, int(token)] for token in candidates])
        unit = hidden / np.linalg.norm(hidden, axis=-1, keepdims=True)
        n = len(text)
        likeness = [(unit[i, :n] @ unit[i, n]).max() for i in range(4)]
        score = (1 - alpha) * probability[candidates] - alpha * np.asarray(likeness)
        text.append(int(candidates[score.argmax()]))
    return text[len(prompt) :]


def test_it_is_what_a_plain_search_comes_to(decoder):
    prompts, split = sampler.pad_prompts(PROMPTS, 8), nnx.split(decoder)
    never = jnp.full(2, -1)
    texts = {}
    for alpha in (0.6, 0.0):
        got = _search(*split, prompts, alpha, never)
        texts[alpha] = np.asarray(got.tokens_BxKxR)[:, 0].tolist()
        assert texts[alpha] == [plain(decoder, prompt, alpha, ()) for prompt in PROMPTS]
        assert (np.asarray(got.lengths_BxK) == R).all()
        assert not got.ended_BxK.any()
    assert texts[0.6] != texts[0.0]  # Greedy.


def test_responses_end_where_they_end(decoder):
    prompts, split = sampler.pad_prompts(PROMPTS, 8), nnx.split(decoder)
    whole = np.asarray(_search(*split, prompts, 0.6, jnp.full(2, -1)).tokens_BxKxR)[:, 0]
    eos = [int(whole[0, 3]), int(whole[1, 6])]
    got = _search(*split, prompts, 0.6, jnp.asarray(eos))
    for row, tokens in enumerate(whole):
        ends = np.flatnonzero(np.isin(tokens, eos))
        length = int(ends[0]) + 1 if ends.size else R
        assert int(got.lengths_BxK[row, 0]) == length
        assert bool(got.ended_BxK[row, 0]) == bool(ends.size)
        assert (np.asarray(got.tokens_BxKxR)[row, 0, :length] == tokens[:length]).all()
        assert not np.asarray(got.tokens_BxKxR)[row, 0, length:].any()
