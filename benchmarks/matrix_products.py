"""The matrix products of an update, each shape as often as it occurs, and what they `take` by
themselves, each timed alone. Of online DPO those of attention, and of adapters, are left out (a few
hundredths at these lengths)."""

from collections import Counter
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.language_throughput import seconds
from sail_jax.language.model.architecture import Architecture


class Product(NamedTuple):
    """`[rows, inner]` by `[inner, columns]`."""

    rows: int
    inner: int
    columns: int


class Lengths(NamedTuple):
    """Of an update: B prompts of P places, two responses of R tokens to each."""

    prompts: int
    prompt_tokens: int
    new_tokens: int


def drawing(a: Architecture, lengths: Lengths) -> dict[Product, int]:
    """How often each is formed while the responses are drawn."""
    B, P, R = lengths
    prefill = counted(layer(a, B * P), a.layers)
    decode = counted(layer(a, 2 * B), a.layers * R)
    return prefill | decode | {logits(a, 2 * B): R}


def learning(a: Architecture, lengths: Lengths, full: bool) -> dict[Product, int]:
    """The same of the gradient step: the reference forward, the policy forward and back.

    Args:
      full: all parameters are trained, and not an adapter alone.
    """
    B, P, R = lengths
    forward = counted(layer(a, B * (P + 2 * R)), a.layers) | {logits(a, 2 * B * R): 1}
    total = counted(forward, 2)
    for (rows, inner, columns), times in forward.items():
        backward = [Product(rows, columns, inner)]
        backward += [Product(inner, rows, columns)] if full else []
        for product in backward:
            total[product] = total.get(product, 0) + times
    return total


def layer(a: Architecture, rows: int) -> dict[Product, int]:
    """The maps of a layer."""
    D, F = a.hidden_size, a.intermediate_size
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    maps = [(D, queries), (D, keys), (D, keys), (queries, D), (D, F), (D, F), (F, D)]
    products = [Product(rows, *shape) for shape in maps]
    return {product: products.count(product) for product in products}


def logits(a: Architecture, rows: int) -> Product:
    return Product(rows, a.hidden_size, a.vocab_size)


def gradient_step(batch: int, obs: int, action: int, hidden: list[int]) -> dict[Product, int]:
    """The same of a gradient step of soft actor-critic, critics and policy.

    Forward: the policy at the next states and at the states, the reference, and each of two critics
    three times. Back: to both critics' weights, through both critics to the action, and from there
    to the policy's weights.
    """
    actor = [Product(batch, *layer) for layer in pairwise((obs, *hidden, 2 * action))]
    critic = [Product(batch, *layer) for layer in pairwise((obs + action, *hidden, 1))]
    weights = lambda layers: [Product(x.inner, x.rows, x.columns) for x in layers]
    inputs = lambda layers: [Product(x.rows, x.columns, x.inner) for x in layers]
    of_critic = 3 * critic + weights(critic) + inputs(critic[1:]) + inputs(critic)
    return Counter(3 * actor + weights(actor) + inputs(actor[1:]) + 2 * of_critic)


def counted(products: dict[Product, int], times: int) -> dict[Product, int]:
    return {product: count * times for product, count in products.items()}


def take(products: dict[Product, int], dtype: str = 'float32') -> float:
    """Seconds of all of them, each timed alone."""
    return sum(times * one(product, dtype) for product, times in products.items())


def one(product: Product, dtype: str) -> float:
    left = jnp.ones((product.rows, product.inner), dtype)
    right = jnp.ones((product.inner, product.columns), dtype)
    multiply = jax.jit(jnp.matmul)
    return seconds(lambda: multiply(left, right))
