"""The exact problem: a log-linear policy over responses that can be enumerated.

`pi_theta(y|x) = softmax_y(phi(x, y) . theta)` for X equally likely contexts, Y responses to each
and D features. J, the KL of either direction and all derivatives are sums over every context and
every pair of responses, with nothing sampled. All functions take one problem and one theta;
`jax.vmap` makes them take thousands. They are meant for float64, see `jax.enable_x64`.
"""

import io
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from sail_jax import files
from sail_jax.bandit.config import Problems
from sail_jax.core.divergence import categorical_kl
from sail_jax.errors import UserError

MAX_PROBLEM = 2**30
"""Bytes of an .npz, packed and unpacked."""


class Problem(NamedTuple):
    """Everything that J depends on besides theta, beta and lambda."""

    features_XxYxD: jax.Array
    reward_XxY: jax.Array
    """The labeller's: `P(a beats b) = sigmoid(r_a - r_b)`."""
    reference_logp_XxY: jax.Array


class ExactObjective(NamedTuple):
    """`J_lambda = J - ref_to_policy * KL(pi_ref || pi) - policy_to_ref * KL(pi || pi_ref)`.

    Both coefficients 0 is SAIL. The leaves may be arrays, so that one `vmap` covers objectives.
    """

    beta: jax.typing.ArrayLike
    ref_to_policy: jax.typing.ArrayLike = 0.0
    policy_to_ref: jax.typing.ArrayLike = 0.0


def random(rng: np.random.Generator, settings: Problems) -> Problem:
    """A random problem; `Problems` says of what distribution."""
    shape = (settings.contexts, settings.responses)
    features = rng.normal(size=(*shape, settings.features)) / settings.features**0.5
    reward: Any = rng.normal(size=shape) * settings.reward_scale
    logits = rng.normal(size=shape) * settings.reference_scale
    reference_logp: Any = scipy.special.log_softmax(logits, axis=-1)
    return Problem(features_XxYxD=features, reward_XxY=reward, reference_logp_XxY=reference_logp)


def load(path: Path) -> Problem:
    """Reads a problem from an .npz; `Problems.path` says what it holds.

    Raises:
      UserError: not an .npz, absurdly large, an array missing, of the wrong shape or type, not
        finite in float32, features that tell no responses apart, or a reference that is no
        distribution of full support.
    """
    content = io.BytesIO(files.read(path, MAX_PROBLEM))
    try:
        with np.load(content, allow_pickle=False) as file:
            size = sum(member.file_size for member in file.zip.infolist())
            if size > MAX_PROBLEM:  # Zeros take a thousandth of their size.
                raise ValueError(f'{size} bytes unpacked; at most {MAX_PROBLEM}')
            # Of a member that is no array it gives the bytes.
            arrays: dict[str, Any] = {name: np.asarray(file[name]) for name in file.files}
    except Exception as error:  # NumPy and zipfile raise whatever the damage happens to hit.
        reason = ' '.join(str(error).split())[:120]
        raise UserError(f'{path}: not an .npz of plain arrays ({reason})') from None
    names = ('features', 'reward', 'reference')
    if unknown := sorted(arrays.keys() - set(names)):
        raise UserError(f'{path}: unknown array {unknown[0]!r}; known: {", ".join(names)}')
    for name in names[:2]:
        if name not in arrays:
            raise UserError(f'{path}: no array {name!r}')
    features = arrays['features']
    if features.ndim != 3 or features.shape[1] < 2 or features.shape[2] < 2 or not features.size:
        raise UserError(
            f'{path}: features: shape {features.shape}; expected (contexts, responses, features) '
            'with at least 2 responses and 2 features'
        )
    arrays.setdefault('reference', np.full(features.shape[:2], 1 / features.shape[1]))
    for name, array in arrays.items():
        if array.dtype.kind not in 'iuf':
            raise UserError(f'{path}: {name}: type {array.dtype}; expected real numbers')
        if name != 'features' and array.shape != features.shape[:2]:
            raise UserError(
                f'{path}: {name}: shape {array.shape}; expected {features.shape[:2]} as in features'
            )
        with np.errstate(over='ignore'):  # Infinity, which is refused.
            finite = np.isfinite(array.astype(np.float32)).all()
        if not finite:
            raise UserError(f'{path}: {name}: not all finite in float32, which studies sample in')
    if not np.ptp(features, axis=1).any():
        raise UserError(
            f'{path}: features: the same for all responses to each context; no policy tells them '
            'apart'
        )
    return Problem(
        features_XxYxD=features.astype(float),
        reward_XxY=arrays['reward'].astype(float),
        reference_logp_XxY=_reference(path, arrays['reference'].astype(float)),
    )


def _reference(path: Path, reference_XxY: np.ndarray) -> Any:
    """Log-probabilities of a file's reference; errors as of `load`."""
    if (reference_XxY <= 0).any():
        raise UserError(f'{path}: reference: probabilities must be above 0, or its KL is infinite')
    totals = reference_XxY.sum(-1)
    if np.abs(totals - 1).max() > 1e-5:
        context = int(np.abs(totals - 1).argmax())
        raise UserError(
            f'{path}: reference: sums to {totals[context]:.6g} in context {context}; expected 1'
        )
    return np.log(reference_XxY / totals[:, None])


def log_prob(problem: Problem, theta_D: jax.Array) -> jax.Array:
    """`log pi_theta(y|x)`, [X, Y]."""
    return jax.nn.log_softmax(problem.features_XxYxD @ theta_D, axis=-1)


def preference(problem: Problem, theta_D: jax.Array, beta: jax.typing.ArrayLike) -> jax.Array:
    """SAIL's `J = E_x E_{a, b ~ pi} [P_ab logsigmoid(D_ab) + (1 - P_ab) logsigmoid(-D_ab)]`."""
    # Every unordered pair once: f_ab = f_ba, and f_aa = -log 2.
    a, b = np.triu_indices(problem.reward_XxY.shape[1], 1)
    logp_XxY = log_prob(problem, theta_D)
    h_XxY = beta * (logp_XxY - problem.reference_logp_XxY)
    D_XxP = h_XxY[:, a] - h_XxY[:, b]
    loses_XxP = jax.nn.sigmoid(problem.reward_XxY[:, b] - problem.reward_XxY[:, a])
    # logsigmoid(-D) = logsigmoid(D) - D.
    f_XxP = jax.nn.log_sigmoid(D_XxP) - loses_XxP * D_XxP
    prob_XxY = jnp.exp(logp_XxY)
    apart_X = 2 * (prob_XxY[:, a] * prob_XxY[:, b] * f_XxP).sum(-1)
    return (apart_X - jnp.log(2) * (prob_XxY**2).sum(-1)).mean()


def value(problem: Problem, objective: ExactObjective, theta_D: jax.Array) -> jax.Array:
    """J_lambda."""
    logp_XxY, reference_logp_XxY = log_prob(problem, theta_D), problem.reference_logp_XxY
    return (
        preference(problem, theta_D, objective.beta)
        - objective.ref_to_policy * categorical_kl(reference_logp_XxY, logp_XxY).mean()
        - objective.policy_to_ref * categorical_kl(logp_XxY, reference_logp_XxY).mean()
    )


value_and_grad = jax.value_and_grad(value, argnums=2)
hessian = jax.hessian(value, argnums=2)


def feature_covariance(problem: Problem, theta_D: jax.Array) -> jax.Array:
    """`E_x Cov_theta(phi)`, [D, D]: the Hessian of `KL(pi_ref || pi_theta)`, whatever pi_ref is."""
    prob_XxY = jnp.exp(log_prob(problem, theta_D))
    mean_XxD = jnp.einsum('xy,xyd->xd', prob_XxY, problem.features_XxYxD)
    centred_XxYxD = problem.features_XxYxD - mean_XxD[:, None]
    covariance_DxD = jnp.einsum('xy,xyd,xye->de', prob_XxY, centred_XxYxD, centred_XxYxD)
    return covariance_DxD / len(prob_XxY)
