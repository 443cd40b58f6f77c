"""What an environment or a function from Python must be, tried on shapes before anything starts."""

from collections.abc import Mapping
from typing import Any

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
import numpy as np
from brax.envs.base import Env, State, Wrapper

from sail_jax.core.trial import explain, tried_on_one
from sail_jax.errors import UserError, one_line

FIELDS = ('obs', 'reward', 'done')
"""Of a state, what is read here; the rest is the environment's own."""
EXPECTED = (
    "expected an environment in JAX with Brax's interface (brax.envs.Env): action_size, and "
    'reset(key) and step(state, action) that return a State'
)
LIBRARIES = {
    'gymnasium': 'Gymnasium',
    'gym': 'Gym',
    'gymnax': 'Gymnax',
    'jumanji': 'Jumanji',
    'pettingzoo': 'PettingZoo',
    'envpool': 'EnvPool',
    'dm_env': 'dm_env',
    'dm_control': 'dm_control',
}
"""Whose environments have other interfaces."""
WRAPPERS = (
    'VmapWrapper',
    'DomainRandomizationVmapWrapper',
    'BraxDomainRandomizationVmapWrapper',
    'MadronaWrapper',
    'EpisodeWrapper',
    'AutoResetWrapper',
    'BraxAutoResetWrapper',
    'EvalWrapper',
)
"""Brax's and Playground's, that do what is done here: batch, cut and begin episodes."""
MAX_ACTION_SIZE = 2**16
ROUNDS = 8
"""Types go from bool to int to float; a leaf that takes its type from others may take some."""


def sound(env: Any) -> Env:
    """The environment, if it keeps to Brax's interface, tried on shapes alone.

    What can be made right without harm is: leaves whose types differ between reset and step
    (weak, bool, int and float) or in shape () and (1,); reward and done of another type or of
    shape (1,); an observation of one number; a dict of observations without `state`, which gets
    one: all of its leaves in the order of their keys, one after the other; keys of
    `jax.random.key`, which no checkpoint takes. The environment's own state is then the
    `pipeline_state`.

    Raises:
      UserError: what it is instead, or which leaf differs, and how.
    """
    _require_environment(env)
    name = type(env).__name__
    key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    action = jax.ShapeDtypeStruct((env.action_size,), jnp.float32)
    # Under `vmap`, as it runs, and where values kept outside of the state show.
    start = tried_on_one(f'env: {name}.reset', env.reset, key)
    _require_state(f'env: {name}.reset', start)
    types, first = start, None
    for _ in range(ROUNDS):
        try:
            after = tried_on_one(f'env: {name}.step', env.step, types, action)
        except UserError:
            if first is None:
                raise
            break  # Not with the types that would suit both.
        _require_state(f'env: {name}.step', after)
        first = after if first is None else first
        before, types = types, _joined(name, types, after)
        if _types(before) == _types(types):
            # What a step leaves in the environment shows in what follows it.
            tried_on_one(f'env: {name}.reset', env.reset, key)
            tried_on_one(f'env: {name}.step', env.step, types, action)
            kept = _types(start) == _types(first)
            return env if kept and _is_plain(start) else Sound(env, types)
    raise UserError(f'env: {name}: {_difference(start, first)}')


def _require_environment(env: Any) -> None:
    """Refuses what is no bare environment, and says what it is."""
    kind = type(env)
    if isinstance(env, type):
        raise UserError(f'env: the class {env.__name__}; give an instance of it, {env.__name__}()')
    if isinstance(env, str):
        raise UserError(
            f'env: a name, {env!r:.80}; the setting env.name takes it, or give '
            f'brax.envs.get_environment({env!r:.80})'
        )
    origins = {base.__module__.partition('.')[0] for base in kind.__mro__}
    for origin, library in LIBRARIES.items():
        if origin in origins:
            raise UserError(f'env: {kind.__name__} is an environment of {library}; {EXPECTED}')
    inner, seen = env, set()
    while inner is not None and id(inner) not in seen:
        wrappers = [base.__name__ for base in type(inner).__mro__ if base.__name__ in WRAPPERS]
        if wrappers:
            raise UserError(
                f'env: wrapped in {wrappers[0]}; give the bare environment '
                '(brax.envs.get_environment, or env.unwrapped): states are batched, and episodes '
                'begun and cut, by sail_jax itself (env.episode_length)'
            )
        seen.add(id(inner))
        inner = getattr(inner, '__dict__', {}).get('env')
    methods = ('reset', 'step')
    missing = [key for key in methods if not callable(_attribute(env, key))]
    size = _attribute(env, 'action_size')
    if size is None or missing:
        spaces = _attribute(env, 'action_space') is not None
        like = ' (action_space is of Gym and Gymnax)' if spaces else ''
        lacks = ', '.join([*missing, *(['action_size'] if size is None else [])])
        raise UserError(f'env: {kind.__name__} has no {lacks}{like}; {EXPECTED}')
    if callable(size):
        raise UserError(f'env: {kind.__name__}.action_size is a method; make it a property')
    if not isinstance(size, int | np.integer) or not 1 <= size <= MAX_ACTION_SIZE:
        raise UserError(
            f'env: {kind.__name__}.action_size: {size!r:.80}; '
            f'expected a whole number from 1 to {MAX_ACTION_SIZE}'
        )


def _attribute(env: Any, key: str) -> Any:
    """None where there is none."""
    try:
        return getattr(env, key, None)
    except Exception as error:  # Of a user's property.
        raise UserError(f'env: {type(env).__name__}.{key}: raised {explain(error)}') from error


def _require_state(where: str, state: Any) -> None:
    lacks = [key for key in FIELDS if not hasattr(state, key)]
    if lacks:
        of = f' of {len(state)}' if isinstance(state, tuple | list) else ''
        like = ', as Gymnax and Gym have it' if type(state) is tuple else ''
        raise UserError(
            f'{where}: returned a{_kind(state)}{of}{like}, without {", ".join(lacks)}; '
            "expected Brax's State (pipeline_state, obs, reward, done, metrics, info)"
        )
    for key in FIELDS[1:]:
        leaf = getattr(state, key)
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            raise UserError(f'{where}: {key} is a{_kind(leaf)}; expected one number')
        batch = '; one environment is asked for, not a batch' if leaf.shape[:1] > (1,) else ''
        if leaf.shape not in ((), (1,)) or not is_real(leaf):
            raise UserError(f'{where}: {key} is {_type(leaf)}; expected one number{batch}')
    obs = state.obs
    if not isinstance(obs, Mapping | jax.ShapeDtypeStruct):
        raise UserError(
            f'{where}: obs is a {type(obs).__name__}; expected an array [N], or a dict of them'
        )
    seen: dict[str, Any] = {'obs': obs}
    if isinstance(obs, Mapping):
        seen = {"obs['state']": obs['state']} if 'state' in obs else _leaves(obs, 'obs')
    for key, leaf in seen.items():
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            raise UserError(f'{where}: {key} is a {type(leaf).__name__}; expected an array [N]')
        if leaf.ndim > 1:
            raise UserError(
                f'{where}: {key} is {_type(leaf)}; expected a vector [N] (the policy is an MLP): '
                'flatten it'
            )
    if not sum(leaf.size for leaf in seen.values()):
        raise UserError(f'{where}: obs is empty; expected at least one number')
    for key, leaf in _leaves(obs, 'obs').items():
        if not is_real(leaf):
            raise UserError(f'{where}: {key} is {_type(leaf)}; expected real numbers')


def _joined(name: str, before: Any, after: Any) -> Any:
    """The state's types that hold those of reset and of step.

    Raises:
      UserError: a leaf that only one of the two has, or that differs.
    """
    first, second = _leaves(before), _leaves(after)
    joined = [_join(first[key], second[key]) for key in first.keys() & second.keys()]
    same = jax.tree.structure(before) == jax.tree.structure(after)
    if not same or None in joined:
        raise UserError(f'env: {name}: {_difference(before, after)}')
    return jax.tree.map(_join, before, after)


def _join(a: jax.ShapeDtypeStruct, b: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct | None:
    """The type that holds both leaves; None where there is none."""
    one_number = {a.shape, b.shape} == {(), (1,)}
    if a.shape != b.shape and not one_number:
        return None
    if a.dtype == b.dtype:
        return jax.ShapeDtypeStruct(b.shape, b.dtype)
    if not (is_real(a) and is_real(b)):
        return None
    unsigned = [jnp.issubdtype(leaf.dtype, jnp.unsignedinteger) for leaf in (a, b)]
    boolean = [leaf.dtype == bool for leaf in (a, b)]
    if any(unsigned) and not all(unsigned) and not any(boolean):  # Bits of a key, perhaps.
        return None
    return jax.ShapeDtypeStruct(b.shape, jnp.promote_types(a.dtype, b.dtype))


def _difference(before: Any, after: Any) -> str:
    """The first leaf in which the states of reset and step differ, that no type suits if any."""
    first, second = _leaves(before), _leaves(after)
    for key in (*first, *second):
        if key not in second:
            return f'{key} is in the state that reset returns, and not in that of step'
        if key not in first:
            return f"{key} is in the state that step returns; reset's must have it too"
    differ = [key for key in first if _type(first[key]) != _type(second[key])]
    for key in sorted(differ, key=lambda key: _join(first[key], second[key]) is not None):
        return (
            f'{key} is {_type(first[key])} in the state that reset returns, '
            f'and {_type(second[key])} in that of step'
        )
    structures = [one_line(jax.tree.structure(state)) for state in (before, after)]
    return f'the states that reset and step return are built otherwise: {" and ".join(structures)}'


def _leaves(tree: Any, prefix: str = '') -> dict[str, jax.ShapeDtypeStruct]:
    """By their names, as Python would write them."""
    return {
        (prefix + jax.tree_util.keystr(path)).removeprefix('.'): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _types(tree: Any) -> list[str]:
    return [_type(leaf) for leaf in jax.tree.leaves(tree)]


def _type(leaf: jax.ShapeDtypeStruct) -> str:
    return f'{leaf.dtype}[{",".join(map(str, leaf.shape))}]'


def _kind(x: Any) -> str:
    return 'n array' if isinstance(x, jax.ShapeDtypeStruct) else f' {type(x).__name__}'


def is_real(leaf: jax.ShapeDtypeStruct) -> bool:
    """Whether a leaf's type is bool, int or float, and one that JAX computes with: it mixes floats
    of 8 bits and integers of 4 with no others."""
    kinds = bool, jnp.integer, jnp.floating
    if not any(jnp.issubdtype(leaf.dtype, kind) for kind in kinds):
        return False
    try:
        jnp.promote_types(leaf.dtype, jnp.float32)
    except jax.dtypes.TypePromotionError:
        return False
    return True


def _is_plain(state: Any) -> bool:
    """Whether the state can be taken as it is."""
    # Returns are sums of rewards: not in half precision.
    numbers = all(
        leaf.shape == () and leaf.dtype == jnp.float32 for leaf in (state.reward, state.done)
    )
    obs, leaves = state.obs, jax.tree.leaves(state)
    vector = obs.get('state') if isinstance(obs, Mapping) else obs
    plain = vector is not None and vector.ndim == 1
    odd = any(leaf.dtype == bool for leaf in jax.tree.leaves(obs)) or any(map(_is_key, leaves))
    return numbers and plain and not odd and hasattr(state, 'replace')  # Not of a NamedTuple.


class Sound(Wrapper):
    """An environment whose state is made right: the types of its leaves, what is read of it."""

    def __init__(self, env: Env, types: Any):
        super().__init__(env)
        self._types = types

    def reset(self, rng: jax.Array) -> State:
        return self._right(self.env.reset(rng))

    def step(self, state: State, action: jax.Array) -> State:
        unpacked = jax.tree.map(_unpacked, state.pipeline_state, self._types)
        return self._right(self.env.step(unpacked, action))

    def _right(self, state: Any) -> State:
        state = jax.tree.map(_packed, state, self._types)
        number = lambda leaf: leaf.reshape(()).astype(jnp.float32)
        return State(state, _observation(state.obs), number(state.reward), number(state.done))

    def observed(self, obs: Any) -> Any:
        """What the policy takes, of observations [...] as the environment itself gives them; what
        is none of those stays as it is."""
        batch = batch_of(obs, self._types.obs)
        if batch is None:
            return obs
        convert = _observation
        for _ in batch:
            convert = jax.vmap(convert)
        return convert(obs)

    @property
    def observation_size(self) -> Any:
        obs = _observation(jax.tree.map(lambda of: jnp.zeros(of.shape, of.dtype), self._types.obs))
        return jax.tree.map(jnp.shape, obs) if isinstance(obs, Mapping) else obs.size

    @property
    def action_size(self) -> int:
        return self.env.action_size

    @property
    def backend(self) -> str:
        return 'python'


def batch_of(obs: Any, one: Any) -> tuple[int, ...] | None:
    """What stands before the shapes of one observation in all leaves; None where they are others.

    Args:
      one: the shapes and types of one.
    """
    if jax.tree.structure(obs) != jax.tree.structure(one):
        return None
    batches = set()
    for leaf, of in zip(jax.tree.leaves(obs), jax.tree.leaves(one), strict=True):
        n = max(leaf.ndim - of.ndim, 0)
        batches.add(leaf.shape[:n] if leaf.shape[n:] == of.shape else None)
    return batches.pop() if len(batches) == 1 else None


def _packed(leaf: Any, of: jax.ShapeDtypeStruct) -> jax.Array:
    """Of the type that suits both, and a key as its bits."""
    if _is_key(of):
        return jax.random.key_data(leaf)
    return jnp.asarray(leaf, of.dtype).reshape(of.shape)


def _unpacked(leaf: jax.Array, of: jax.ShapeDtypeStruct) -> jax.Array:
    """What was stored, as the environment takes it."""
    if not _is_key(of):
        return leaf
    return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(jnp.empty((), of.dtype)))


def _is_key(leaf: jax.ShapeDtypeStruct) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _observation(obs: Any) -> Any:
    """As the policy takes it: a vector, or a dict of arrays whose `state` is one."""
    obs = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == bool else x, obs)
    if not isinstance(obs, Mapping):
        return obs.reshape(-1)
    state = obs['state'] if 'state' in obs else _vector(obs)
    return {**{str(key): value for key, value in obs.items()}, 'state': state.reshape(-1)}


def _vector(tree: Any) -> jax.Array:
    leaves = [jnp.ravel(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate(leaves)
