"""A language policy: what of a decoder is trained, and what it shares with its reference."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sail_jax.core.keys import START, stream
from sail_jax.core.types import Policy
from sail_jax.errors import UserError
from sail_jax.language.config import Lora, StartModel
from sail_jax.language.model import architecture as architectures
from sail_jax.language.model import lora, weights
from sail_jax.language.model.architecture import Architecture
from sail_jax.language.model.transformer import Decoder
from sail_jax.language.model.weights import ShardingOf
from sail_jax.training import hosts


class Decoders(NamedTuple):
    """What makes a decoder of a policy's arrays."""

    settings: StartModel
    architecture: Architecture
    on: nnx.GraphDef[Decoder]
    """Merges with a policy's parameters and, under an adapter, the weights shared."""
    off: nnx.GraphDef[Decoder]
    """Of an adapted model, the one without the adapter: merges with the weights shared."""
    abstract: Policy
    """Shapes and types of a policy."""
    abstract_shared: nnx.State | tuple = ()
    """Shapes and types of `State.shared`: the weights that are not trained."""
    model: Callable[..., Decoder] = Decoder
    """The class of the model."""

    reference_adapted: bool = False
    """Whether the reference has an adapter too: it is refreshed, or training starts from one."""

    @property
    def adapted(self) -> bool:
        """Whether an adapter is trained."""
        return self.settings.train == 'lora'

    @property
    def shares(self) -> bool:
        """Whether only a part is trained, and the rest is `shared`."""
        return self.settings.train != 'full'

    def policy(self, policy: Policy, shared: Any) -> Decoder:
        """The model that is trained."""
        base = (shared,) if self.shares else ()
        return nnx.merge(self.on, policy.params, *base)

    def reference(self, reference: Policy, shared: Any) -> Decoder:
        """What the policy is held to: its own copy, or the weights shared without an adapter where
        that is what training started from."""
        if self.adapted and not self.reference_adapted:
            return nnx.merge(self.off, shared)
        return self.policy(reference, shared)

    def start(self, seed: int, sharding: ShardingOf | None = None) -> Policy:
        """Reads the checkpoint, but for what is `shared`; an adapter, or a network without a
        checkpoint, is new, by the seed; a score that the checkpoint does not have is 0.

        Raises:
          UserError: as of `weights.load`.
        """
        # How many updates made the policy.
        updates = jnp.zeros((), jnp.int32)
        if self.settings.path is None:
            new = lambda key: nnx.state(_build(self.settings, self.architecture, key))
            return Policy(self._new(new, seed, sharding), updates)
        if not self.shares:
            return Policy(nnx.state(self._load(sharding)), updates)
        if self.settings.adapter is not None:
            model, _ = lora.load(self._abstract(), self.settings.adapter)
            layout = self._layout(sharding)
            read = _trained(model, self._score())
            return Policy(read if layout is None else hosts.place(read, layout), updates)
        score = self._score()

        def new_part(key: jax.Array) -> nnx.State:
            model = self._abstract()
            if self.adapted:
                model = lora.add(model, self.settings.lora, key)
            return _trained(model, score)

        return Policy(self._new(new_part, seed, sharding), updates)

    def shared(self, sharding: ShardingOf | None = None) -> nnx.State | tuple:
        """Reads what policy and reference share, see `State.shared`.

        Raises:
          UserError: as of `weights.load`.
        """
        return nnx.state(self._load(sharding), nnx.Not(lora.TRAINED)) if self.shares else ()

    def _load(self, sharding: ShardingOf | None) -> Decoder:
        s = self.settings
        return weights.load(
            s.path,
            self.model,
            score=self._score(),
            dtype=jnp.dtype(s.dtype),
            param_dtype=jnp.dtype(s.param_dtype),
            remat=s.remat,
            sharding=sharding,
        )

    def _layout(self, sharding: ShardingOf | None) -> nnx.State | None:
        """Where parameters lie."""
        flat = nnx.to_flat_state(self.abstract.params)
        return sharding and nnx.from_flat_state(
            [(keys, sharding('.'.join(map(str, keys)), x.shape)) for keys, x in flat]
        )

    def _abstract(self) -> Decoder:
        """The whole model, of shapes and types."""
        return nnx.merge(self.on, self.abstract.params, self.abstract_shared)

    def _score(self) -> np.ndarray | None:
        """What the score of a reward model begins as; None of a model without."""
        score = dict(nnx.to_flat_state(self.abstract.params)).get(('score', 'kernel'))
        return None if score is None else weights.read_score(self.settings.path, score.shape)

    def _new(
        self,
        build: Callable[[jax.Array], nnx.State],
        seed: int,
        sharding: ShardingOf | None,
    ) -> nnx.State:
        """New parameters of a key, each device's part of them made there."""
        make = jax.jit(
            lambda seed: build(stream(seed, START)), out_shardings=self._layout(sharding)
        )
        return make(np.uint32(seed))


def _trained(model: Any, score: np.ndarray | None) -> nnx.State:
    """What is trained of a model whose weights are frozen, with this score."""
    if score is not None:
        model.score.kernel = nnx.Param(jnp.asarray(score))
    return nnx.state(model, lora.TRAINED)


def _build(
    settings: StartModel,
    architecture: Architecture,
    key: jax.Array,
    mesh: Mesh | None = None,
    model: Callable[..., Decoder] = Decoder,
) -> Decoder:
    return model(
        architecture,
        rngs=nnx.Rngs(key),
        dtype=jnp.dtype(settings.dtype),
        param_dtype=jnp.dtype(settings.param_dtype),
        remat=settings.remat,
        mesh=mesh,
    )


def _with_adapter(settings: StartModel) -> StartModel:
    """The settings with what the adapter that training starts from says."""
    if settings.adapter is None:
        return settings
    read, default, given = lora.read_settings(settings.adapter), Lora(), settings.lora
    for key in ('rank', 'alpha', 'targets', 'layers'):
        value, its = getattr(given, key), getattr(read, key)
        # PEFT writes targets in any order.
        same = set(value) == set(its) if key == 'targets' else value == its
        if not same and value != getattr(default, key):
            raise UserError(
                f'model.lora.{key}: {value}; the adapter in {settings.adapter} has {its}; leave it '
                'out'
            )
    read = read.model_copy(update={'dropout': given.dropout})
    return settings.model_copy(update={'lora': read})


def read(
    settings: StartModel,
    mesh: Mesh | None = None,
    architecture: Architecture | None = None,
    reference_moves: bool = False,
    length: int | None = None,
    model: Callable[..., Decoder] = Decoder,
) -> Decoders:
    """Reads a checkpoint's `config.json`, and none of its weights.

    Args:
      mesh: devices that the models' activations are split over.
      architecture: of a new network, which has no checkpoint.
      reference_moves: whether the reference is refreshed.
      length: see `Decoder`.
      model: a class of decoders, as `weights.load` takes it.

    Raises:
      UserError: as of `architecture.read`; an adapter that does not fit its settings.
    """
    architecture = architecture or architectures.read(Path(settings.path))
    settings = _with_adapter(settings)

    def build() -> Decoder:
        decoder = _build(settings, architecture, jax.random.key(0), mesh, model).of_length(length)
        if settings.train != 'lora':
            return decoder
        return lora.add(decoder, settings.lora, jax.random.key(0))

    decoder = nnx.eval_shape(build)
    updates = jax.ShapeDtypeStruct((), jnp.int32)
    if settings.train == 'full':
        on, params = nnx.split(decoder)
        abstract = Policy(params, updates)
        return Decoders(settings, architecture, on=on, off=on, abstract=abstract, model=model)
    adapted = lora.split(decoder)
    return Decoders(
        settings,
        architecture,
        on=adapted.on,
        off=adapted.off,
        abstract=Policy(adapted.trained, updates),
        abstract_shared=adapted.frozen,
        reference_adapted=reference_moves or settings.adapter is not None,
        model=model,
    )
