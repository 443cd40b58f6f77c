"""What a run says of its adapter."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from sail_jax.config import Section

Projection = Literal[
    'q_proj',
    'k_proj',
    'v_proj',
    'o_proj',
    'gate_proj',
    'up_proj',
    'down_proj',
    'qkv_proj',
    'gate_up_proj',
]

ALL_LINEAR = 'all-linear'


def _listed(value: Any) -> Any:
    return (value,) if value == ALL_LINEAR else value


class Lora(Section):
    """Which maps get an adapter, and how large it is."""

    rank: int = Field(default=64, ge=1, le=2**12)
    """Of each adapter."""
    alpha: float = Field(default=16.0, gt=0, le=2**20)
    """The adapter's output is scaled by `alpha / rank`."""
    targets: Annotated[tuple[Literal[Projection, 'all-linear'], ...], BeforeValidator(_listed)] = (
        Field(default=('q_proj', 'k_proj', 'v_proj', 'o_proj'), min_length=1)
    )
    """The linear maps of every layer that get one; `all-linear`, as in PEFT, all that there are,
    attention's and the MLP's. `phi3` has the last two, and no others but `o_proj`, `down_proj`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """The share of an adapter's inputs that are zero in a gradient step, drawn for each row of an
    update; what samples, evaluates or is the reference has none."""

    layers: int | None = Field(default=None, ge=1)
    """Only so many layers get one, the last of the model; none is all. The layers before them keep
    an adapter of zeros, which has no gradient: memory and time are those of all."""

    def wants(self, name: str) -> bool:
        """Whether the linear map of that dotted name gets one."""
        return ALL_LINEAR in self.targets or name.rpartition('.')[2] in self.targets
