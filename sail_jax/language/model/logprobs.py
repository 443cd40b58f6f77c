"""Log-probabilities and exact per-token KL of responses, a few tokens at a time.

A vocabulary is 50 times wider than a hidden state, so logits of a whole batch are never formed,
forward or backward. Each device goes through its own tokens, some at a time. The forward pass keeps
the normalisers of its distributions, so the backward pass forms logits once more and their gradient
from them at once, in the type of the hidden states; the gradient of the output matrix is a sum over
the device's tokens, and the devices' sums are added up once.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sail_jax.core.types import Compared
from sail_jax.language.model.attention import prompt_positions, response_positions
from sail_jax.language.model.transformer import Decoder, Head, Tokens
from sail_jax.training import devices

LOGITS_BYTES = 5 * 2**28
"""Of the float32 logits of one model that exist at once on a device. There are two such arrays
where models are compared, and one in the type of the hidden states in the backward pass."""


class Prompts(NamedTuple):
    """Token ids, padded on the right."""

    tokens_BxP: jax.Array
    lengths_B: jax.Array
    """At least 1."""


class Predictions(NamedTuple):
    """A model's distributions over the next token at each of T places: what they follow from,
    since the probabilities of all V words of all places are never held at once."""

    hidden: jax.Array
    """[..., T, D]"""
    head: Head


def predictions(decoder: Decoder, prompts: Prompts, responses_BxLxT: jax.Array) -> Predictions:
    """What the model expects at each place of the responses, [B, L, T, D].

    The prompt is computed once for its L responses. Tokens after a response's end have no
    influence on those before; what stands in their places is to be masked by the lengths.
    """
    B, L, T = responses_BxLxT.shape
    prompt = Tokens(
        prompts.tokens_BxP[:, None],
        prompt_positions(prompts.lengths_B, prompts.tokens_BxP.shape[1]),
    )
    # The last token predicts nothing that is asked; T places tile better than T - 1.
    lanes = Tokens(responses_BxLxT, response_positions(prompts.lengths_B, L, T))
    hidden, rest = decoder.with_lanes(prompt, lanes)
    first = last_hidden(hidden, prompts.lengths_B)
    first = jnp.broadcast_to(first[:, None, None], (B, L, 1, first.shape[-1]))
    return Predictions(jnp.concatenate([first, rest[..., :-1, :]], 2), decoder.head())


def last_hidden(hidden_Bx1xPxD: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """The hidden state of each prompt's last token, [B, D]."""
    return last_of_lanes(hidden_Bx1xPxD, lengths_B[:, None])[:, 0]


def last_of_lanes(hidden_BxLxTxD: jax.Array, lengths_BxL: jax.Array) -> jax.Array:
    """The hidden state of each lane's last token, [B, L, D]."""
    index = (lengths_BxL - 1)[..., None, None]
    return jnp.take_along_axis(hidden_BxLxTxD, index, axis=2)[:, :, 0]


def log_probs(predicted: Predictions, target: jax.Array, tokens: int | None = None) -> jax.Array:
    """Log-probability of each target, float32 [..., T].

    Args:
      target: token ids [..., T].
      tokens: whose logits exist at once on a device; None takes those that `LOGITS_BYTES` hold.
    """
    scores: Any = _compare(predicted, None, target, tokens)
    return scores.logp


def compare(
    policy: Predictions, reference: Predictions, target: jax.Array, tokens: int | None = None
) -> Compared:
    """Log-probabilities under both models and the exact KL between them, both directions.

    The KLs cost no matrix product beyond those of the two log-probabilities. Differentiable in the
    policy; the reference is constant. Arguments as of `log_probs`.
    """
    return _compare(policy, jax.lax.stop_gradient(reference), target, tokens)


class _Kept(NamedTuple):
    """What the backward pass takes from the forward pass, float32 [..., T]."""

    normaliser: jax.Array
    """Of the policy's logits, and of the reference's."""
    reference_normaliser: Any
    policy_to_ref: Any


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _compare(policy: Predictions, reference: Any, target: jax.Array, tokens: int | None) -> Any:
    """Without a reference nothing but `logp` is there."""
    return _forward(policy, reference, target, tokens)[0]


def _forward(
    policy: Predictions, reference: Any, target: jax.Array, tokens: int | None
) -> tuple[Any, _Kept]:
    def of_device(policy: Predictions, reference: Any, target: jax.Array) -> tuple[Any, _Kept]:
        chunks = _Chunks.of(policy.head, target, tokens)

        def chunk(args: Any) -> tuple[Any, _Kept]:
            hidden, reference_hidden, target_N = args
            other = reference and reference._replace(hidden=reference_hidden)
            return _scores(policy._replace(hidden=hidden), other, target_N)

        args = policy.hidden, reference and reference.hidden, target
        return chunks.join(jax.lax.map(chunk, chunks.cut(args)))

    split = _Split.of(policy.head.mesh, target)
    specs = _rows_of(policy), _rows_of(reference), ROWS
    return split.over_devices(of_device, specs, ROWS)(policy, reference, target)


def _scores(policy: Predictions, reference: Any, target_N: jax.Array) -> tuple[Any, _Kept]:
    """Of a chunk of tokens."""
    logits_NxV = policy.head.logits(policy.hidden)
    if reference is None:
        nothing: Any = None
        normaliser_N = jax.nn.logsumexp(logits_NxV, -1)
        logp_N = _pick(logits_NxV, target_N) - normaliser_N
        return Compared(logp_N, nothing, nothing, nothing), _Kept(normaliser_N, nothing, nothing)
    reference_NxV = reference.head.logits(reference.hidden)
    most_N, reference_most_N = logits_NxV.max(-1), reference_NxV.max(-1)
    # With the largest logits known, all other sums are made in one pass through both arrays.
    logits_NxV, reference_NxV = (
        logits_NxV - most_N[:, None],
        reference_NxV - reference_most_N[:, None],
    )
    exp_NxV, reference_exp_NxV = jnp.exp(logits_NxV), jnp.exp(reference_NxV)
    ratio_NxV = logits_NxV - reference_NxV
    sum_N, reference_sum_N = exp_NxV.sum(-1), reference_exp_NxV.sum(-1)
    log_N, reference_log_N = jnp.log(sum_N), jnp.log(reference_sum_N)
    between_N = log_N - reference_log_N
    compared = Compared(
        logp=_pick(logits_NxV, target_N) - log_N,
        reference_logp=_pick(reference_NxV, target_N) - reference_log_N,
        ref_to_policy=between_N - (reference_exp_NxV * ratio_NxV).sum(-1) / reference_sum_N,
        policy_to_ref=(exp_NxV * ratio_NxV).sum(-1) / sum_N - between_N,
    )
    kept = _Kept(most_N + log_N, reference_most_N + reference_log_N, compared.policy_to_ref)
    return compared, kept


def _pick(logits_NxV: jax.Array, target_N: jax.Array) -> jax.Array:
    """A sum, since the words may be split over devices."""
    return jnp.where(_is_target(logits_NxV, target_N), logits_NxV, 0).sum(-1)


def _is_target(logits_NxV: jax.Array, target_N: jax.Array) -> jax.Array:
    return jnp.arange(logits_NxV.shape[-1]) == target_N[:, None]


def _forward_rule(policy: Any, reference: Any, target: Any, tokens: int | None) -> Any:
    learned = policy.head.matrix.perturbed
    policy, reference, target = jax.tree.map(lambda x: x.value, (policy, reference, target))
    compared, kept = _forward(policy, reference, target, tokens)
    # By structure, since residuals are arrays: under an adapter the head is not learned.
    return compared, (policy, reference, target, kept, () if learned else None)


def _backward_rule(tokens: int | None, residuals: Any, cotangent: Any) -> Any:
    policy, reference, target, kept, learned = residuals
    zero = lambda x: isinstance(x, SymbolicZero)
    weights = jax.tree.map(lambda x: None if zero(x) else x, cotangent, is_leaf=zero)
    head, split = policy.head, _Split.of(policy.head.mesh, target)

    def of_device(
        policy: Predictions, reference: Any, target: jax.Array, kept: _Kept, weights: Any
    ) -> tuple[jax.Array, Any]:
        head, chunks = policy.head, _Chunks.of(policy.head, target, tokens)
        wide = jnp.promote_types(head.matrix.dtype, jnp.float32)

        def chunk(head_gradient: Any, args: Any) -> tuple[Any, jax.Array]:
            hidden, reference_hidden, *of_tokens = args
            other = reference and reference._replace(hidden=reference_hidden)
            gradient_NxV = _logits_gradient(policy._replace(hidden=hidden), other, *of_tokens)
            if learned is not None:
                pair = (gradient_NxV.T, hidden) if head.of_words else (hidden.T, gradient_NxV)
                head_gradient += jnp.matmul(*pair, preferred_element_type=wide)
            product = jnp.matmul(gradient_NxV, head.matrix_DxV.T, preferred_element_type=wide)
            return head_gradient, product.astype(hidden.dtype)

        start = None if learned is None else jnp.zeros(head.matrix.shape, wide)
        args = policy.hidden, reference and reference.hidden, target, kept, weights
        head_gradient, hidden_gradient = jax.lax.scan(chunk, start, chunks.cut(args))
        return chunks.join(hidden_gradient), split.add_up(head, head_gradient)

    specs = _rows_of(policy), _rows_of(reference), ROWS, ROWS, ROWS
    summed = split.over_devices(of_device, specs, (ROWS, split.of_sum(head)))
    hidden_gradient, matrix = summed(policy, reference, target, kept, weights)
    if matrix is not None:
        matrix = matrix.astype(head.matrix.dtype)
    return (
        policy._replace(hidden=hidden_gradient, head=replace(head, matrix=matrix)),
        None,
        None,
    )


def _logits_gradient(
    policy: Predictions, reference: Any, target_N: jax.Array, kept: _Kept, weights: Any
) -> jax.Array:
    """Gradient of the weighted sum of a chunk's scores by what the output matrix gives, [N, V], in
    the type of the hidden states.

    With `p`, `q` the distributions of policy and reference: `e_target - p` of `logp`, `p - q` of
    `KL(q || p)`, and `p (log(p / q) - KL)` of `KL(p || q)`.
    """
    products_NxV = policy.head.products(policy.hidden)
    logits_NxV, through_finish = jax.vjp(policy.head.finish, products_NxV)
    logp_NxV = logits_NxV - kept.normaliser[:, None]
    p_NxV, gradient_NxV = jnp.exp(logp_NxV), jnp.zeros_like(logits_NxV)
    if weights.logp is not None:
        gradient_NxV += weights.logp[:, None] * (_is_target(logits_NxV, target_N) - p_NxV)
    if weights.ref_to_policy is None and weights.policy_to_ref is None:
        return through_finish(gradient_NxV)[0].astype(policy.hidden.dtype)
    reference_NxV = reference.head.logits(reference.hidden)
    reference_logp_NxV = reference_NxV - kept.reference_normaliser[:, None]
    if weights.ref_to_policy is not None:
        gradient_NxV += weights.ref_to_policy[:, None] * (p_NxV - jnp.exp(reference_logp_NxV))
    if weights.policy_to_ref is not None:
        ratio_NxV = logp_NxV - reference_logp_NxV - kept.policy_to_ref[:, None]
        gradient_NxV += weights.policy_to_ref[:, None] * p_NxV * ratio_NxV
    return through_finish(gradient_NxV)[0].astype(policy.hidden.dtype)


_compare.defvjp(_forward_rule, _backward_rule, symbolic_zeros=True)


class _Chunks(NamedTuple):
    """Tokens in parts of a size, those of each row one after the other."""

    shape: tuple[int, ...]
    """Of the tokens, [..., T]."""
    size: int

    @classmethod
    def of(cls, head: Head, target: jax.Array, tokens: int | None) -> '_Chunks':
        """A power of two of tokens, which tiles."""
        V = head.matrix_DxV.shape[1] // (1 if head.mesh is None else head.mesh.shape['tensor'])
        most = tokens or max(1, LOGITS_BYTES // (4 * V))
        return cls(target.shape, min(max(1, target.size), 1 << (most.bit_length() - 1)))

    def cut(self, arrays: Any) -> Any:
        """[..., T, D] -> [parts, size, D], padded with zeros."""

        def cut(x: jax.Array) -> jax.Array:
            x = x.reshape(-1, *x.shape[len(self.shape) :])
            padding = [(0, -len(x) % self.size)] + [(0, 0)] * (x.ndim - 1)
            return jnp.pad(x, padding).reshape(-1, self.size, *x.shape[1:])

        return jax.tree.map(cut, arrays)

    def join(self, arrays: Any) -> Any:
        """[parts, size, D] -> [..., T, D]."""

        def join(x: jax.Array) -> jax.Array:
            x = x.reshape(-1, *x.shape[2:])
            return x[: math.prod(self.shape)].reshape(*self.shape, *x.shape[1:])

        return jax.tree.map(join, arrays)


ROWS: Any = P(devices.ROWS)
EVERYWHERE: Any = P()


def _rows_of(predicted: Predictions | None) -> Any:
    """Each device has its rows, and the matrix as far as `tensor` does not split it."""
    return predicted and Predictions(hidden=ROWS, head=EVERYWHERE)


class _Split(NamedTuple):
    """How the rows of a batch lie on devices."""

    mesh: Mesh | None
    """None where one device has all rows: there is one, or their number does not divide."""

    @classmethod
    def of(cls, mesh: Mesh | None, target: jax.Array) -> '_Split':
        if mesh is None or len(target) % devices.parts(mesh, devices.ROWS):
            return cls(None)
        return cls(mesh)

    def over_devices(self, function: Any, in_specs: Any, out_specs: Any) -> Any:
        """The function of the rows of each device; `tensor` is left to the compiler."""
        if self.mesh is None:
            return function
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=set(devices.ROWS),
            check_vma=False,
        )

    def of_sum(self, head: Head) -> P:
        """The layout of `add_up`: split as FSDP's parameters are, where that divides."""
        if self.mesh is None or head.matrix_DxV.shape[0] % self.mesh.shape['fsdp']:
            return P()
        return P(None, 'fsdp') if head.of_words else P('fsdp')

    def add_up(self, head: Head, x: jax.Array | None) -> jax.Array | None:
        """The devices' parts of the gradient of the head's matrix."""
        if x is None or self.mesh is None:
            return x
        if self.of_sum(head) == P():
            return jax.lax.psum(x, devices.ROWS)
        x, axis = jax.lax.psum(x, 'data'), 1 if head.of_words else 0
        return jax.lax.psum_scatter(x, 'fsdp', scatter_dimension=axis, tiled=True)
