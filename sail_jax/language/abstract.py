"""Shapes of what a language run computes with, and how much a model has to compute."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sail_jax.language.model.architecture import Architecture
from sail_jax.language.model.logprobs import Prompts
from sail_jax.training import devices

SPLIT = 'set devices: {data: 1, fsdp: auto}, model.param_dtype: bfloat16 or model.train: lora'
"""`Programs.split`."""


def forward_flops(a: Architecture, rows: int, prompt: int, lanes: int, response: int) -> float:
    """Operations of the matrix products of one forward pass over prompts and the lanes that follow
    each, logits at the lanes' tokens, scores that causality hides left out."""
    width = a.head_dim * (2 * a.heads + 2 * a.kv_heads)  # Queries, keys, values, and out.
    layer = a.hidden_size * (width + 3 * a.intermediate_size)
    tokens = prompt + lanes * response
    seen = prompt**2 / 2 + lanes * (response * prompt + response**2 / 2)
    per_row = a.layers * (2 * layer * tokens + 4 * a.heads * a.head_dim * seen)
    logits = 2 * a.hidden_size * a.vocab_size * lanes * response
    return float(rows * (per_row + logits))


def prompts_of(rows: int, size: int) -> Prompts:
    return Prompts(
        tokens_BxP=abstract((rows, size), jnp.int32), lengths_B=abstract((rows,), jnp.int32)
    )


def abstract(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def laid_out(tree: Any, layout: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), tree)


def by_rows(mesh: Mesh, tree: Any, rows: int | None = None) -> Any:
    """Leaves that lead with the rows split over them; those that do not, everywhere."""

    def of(x: Any) -> Any:
        leads = x.ndim > 0 and rows in (None, x.shape[0])
        layout = devices.by_rows(mesh) if leads else devices.replicated(mesh)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout)

    return jax.tree.map(of, tree)
