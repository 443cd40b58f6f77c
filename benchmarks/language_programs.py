"""The two compiled programs of a language update, on abstract arrays."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding

from sail_jax import devices, update
from sail_jax.language import logprobs, sharding, workload
from sail_jax.language.config import LanguageRun
from sail_jax.language.logprobs import Prompts
from sail_jax.language.policy import Models
from sail_jax.update import Sampled, State, Workload


class Programs(NamedTuple):
    """Sampling and learning, and what they take."""

    draw: Callable[[State, workload.Rows], Sampled]
    learn: Callable[[State, Sampled, jax.Array], State]
    state: State
    rows: workload.Rows
    sampled: Sampled
    scores: jax.Array


def of_run(run: LanguageRun, models: Models, mesh: Mesh, made: Workload | None = None) -> Programs:
    """The programs of a run whose prompts and responses have their largest sizes.

    Args:
      made: stands in for the run's workload.
    """
    made = made or workload.make(run, models, eos_ids=(0,))
    start = models.abstract._replace(frozen=models.abstract_frozen)
    state = jax.eval_shape(lambda p: update.init(made, run, p, p), start)
    layout = devices.state_sharding(mesh, state, sharding.RULES)
    state = jax.tree.map(laid_out, state, layout)
    by_rows, B = devices.by_rows(mesh), run.prompts_per_update

    def of_rows(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((B, *shape), jnp.int32, sharding=by_rows)

    pairs = None
    if run.reads_pairs:
        pairs = workload.Pairs(of_rows(2, run.data.max_response_tokens), of_rows(2))
    rows = workload.Rows(Prompts(of_rows(run.data.max_prompt_tokens), of_rows()), pairs)

    def draw(state: State, rows: workload.Rows) -> Sampled:
        return update.draw(made, state._replace(sampler=rows))

    def learn(state: State, sampled: Sampled, scores: jax.Array) -> State:
        sampled = workload.labelled(run, state, sampled, scores)
        new, _ = update.make_learn(made, run)(state, sampled)
        return jax.lax.with_sharding_constraint(new, layout)

    def split(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return laid_out(x, by_rows if x.shape[:1] == (B,) else devices.replicated(mesh))

    sampled = jax.tree.map(split, jax.eval_shape(draw, state, rows))
    scores = jax.ShapeDtypeStruct((B, run.group_size), jnp.float32, sharding=by_rows)
    return Programs(draw, learn, state, rows, sampled, scores)


def unchunked(made: Workload, models: Models) -> Workload:
    """The workload with the logits of a whole batch at once."""

    def compare(policy, reference, theirs, inputs):
        ours = logprobs.predictions(models.policy(policy), inputs.prompts, inputs.tokens_BxLxT)
        held = logprobs.Tokens(theirs, models.reference(reference).head_DxV())
        tokens = inputs.tokens_BxLxT
        return logprobs.compare(ours, held, tokens, chunk=tokens.size)

    return made._replace(compare=compare)


def laid_out(x: jax.ShapeDtypeStruct, layout: Sharding) -> Any:
    """The same shape, on the devices."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout)
