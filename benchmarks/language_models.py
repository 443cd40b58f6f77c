"""Networks that two cores can train, and how many parameters a network has."""

from sail_jax.language.model.architecture import Architecture


def small(hidden: int, layers: int, heads: int) -> Architecture:
    """A Qwen2-like network that two cores can train."""
    return Architecture(
        family='qwen2',
        vocab_size=8192,
        hidden_size=hidden,
        intermediate_size=-(-hidden * 11 // 4 // 64) * 64,
        layers=layers,
        heads=heads,
        kv_heads=2,
        head_dim=hidden // heads,
        qkv_bias=True,
        tied=True,
        max_positions=1024,
    )


SMALL = {'4M': small(192, 6, 6), '12M': small(320, 8, 10), '32M': small(512, 10, 8)}
"""By parameters, embedding included."""


def parameter_count(a: Architecture) -> int:
    """Of all matrices; the embedding counts once where it is the output matrix too."""
    attention = a.hidden_size * a.head_dim * (2 * a.heads + 2 * a.kv_heads)
    mlp = 3 * a.hidden_size * a.intermediate_size
    return a.layers * (attention + mlp) + a.vocab_size * a.hidden_size * (1 if a.tied else 2)
