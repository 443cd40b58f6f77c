"""SAIL-RevKL as one would write it in PyTorch on Gymnasium's MuJoCo environments.

A contender of `benchmarks.control_peers`, written to be fast: every core has a process with its
share of the environments, which runs whole segments with its own copy of the policy, so that there
is one exchange an update and not one a step; environments are bare (no wrappers), dead lanes are
not stepped, inference and learning are batched. The algorithm and its settings are those of
`benchmarks.control_contenders`; the physics is MuJoCo's C engine, whose returns do not compare with
Brax's.
"""

import argparse
import os
from typing import NamedTuple

import gymnasium
import numpy as np
import torch
from torch import nn
from torch.nn.functional import logsigmoid

from benchmarks.control_contenders import add_options
from benchmarks.rounds import peak_mib, serve

CONTEXTS, LANES, STEPS, EPISODE = 32, 8, 32, 1000
BETA, RESPONSE_GRAD, KL, CLIP, DISCOUNT, REFRESH = 0.1, 0.3, 0.1, 0.2, 0.99, 4
IDS = {
    'hopper': 'Hopper-v5',
    'walker2d': 'Walker2d-v5',
    'halfcheetah': 'HalfCheetah-v5',
    'ant': 'Ant-v5',
    'humanoid': 'Humanoid-v5',
}


class Policy(nn.Module):
    """Two layers of 64, a normal before a tanh; observations are normalised."""

    def __init__(self, obs: int, actions: int) -> None:
        super().__init__()
        self.net, self.value = mlp(obs, 2 * actions), mlp(obs, 1)
        self.register_buffer('mean', torch.zeros(obs))
        self.register_buffer('variance', torch.ones(obs))
        self.register_buffer('count', torch.tensor(1e-4))

    def normalise(self, obs: torch.Tensor) -> torch.Tensor:
        return (obs - self.mean) * torch.rsqrt(self.variance + 1e-8)

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation."""
        loc, scale = self.net(self.normalise(obs)).chunk(2, -1)
        return loc, nn.functional.softplus(scale) + 1e-3

    def values(self, obs: torch.Tensor) -> torch.Tensor:
        return self.value(self.normalise(obs)).squeeze(-1) / (1 - DISCOUNT)

    def see(self, obs: torch.Tensor) -> None:
        """Takes observations [N, O] into the normaliser (Chan et al.'s parallel moments)."""
        count = self.count + len(obs)
        delta = obs.mean(0) - self.mean
        moment = self.variance * self.count + obs.var(0, unbiased=False) * len(obs)
        self.variance = (moment + delta**2 * self.count * len(obs) / count) / count
        self.mean = self.mean + delta * len(obs) / count
        self.count = count


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    layers = nn.Linear(inputs, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, outputs)
    return nn.Sequential(*layers)


def log_prob(loc: torch.Tensor, scale: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Normal(loc, scale).log_prob(raw).sum(-1)


class Batch(NamedTuple):
    """Of B contexts, K lanes and T steps."""

    obs: np.ndarray
    raw: np.ndarray
    reward: np.ndarray
    mask: np.ndarray
    logp: np.ndarray
    last_obs: np.ndarray
    terminated: np.ndarray


class Share(gymnasium.Env):
    """One core's contexts; `gymnasium.vector.AsyncVectorEnv` gives it a process."""

    observation_space = action_space = gymnasium.spaces.Box(-1, 1)

    def __init__(self, env_id: str, contexts: int, seed: int) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self._random = np.random.default_rng(seed)
        self._envs = [gymnasium.make(env_id).unwrapped for _ in range(contexts * LANES)]
        space = self._envs[0].action_space
        self._middle, self._half = (space.high + space.low) / 2, (space.high - space.low) / 2
        self._policy = Policy(self._envs[0].observation_space.shape[0], space.shape[0])
        self._starts = [self._reset() for _ in range(contexts)]

    def _reset(self) -> tuple:
        """Positions, velocities, observation and clock of a new start state."""
        env = self._envs[0]
        obs, _ = env.reset(seed=int(self._random.integers(2**31)))
        return env.data.qpos.copy(), env.data.qvel.copy(), obs, 0

    @torch.inference_mode()
    def segments(self, weights: dict[str, np.ndarray]) -> Batch:
        """K segments from each context; goes on from one of each."""
        self._policy.load_state_dict({k: torch.from_numpy(x) for k, x in weights.items()})
        N, contexts = len(self._envs), len(self._starts)
        starts = [start for start in self._starts for _ in range(LANES)]
        for env, (qpos, qvel, _, _) in zip(self._envs, starts, strict=True):
            env.set_state(qpos, qvel)
        obs = np.stack([start[2] for start in starts]).astype(np.float32)
        clock = np.asarray([start[3] for start in starts])
        live, terminated = np.ones(N, bool), np.zeros(N, bool)
        record = [[], [], [], [], []]
        for t in range(STEPS):
            loc, scale = self._policy(torch.from_numpy(obs))
            raw = torch.normal(loc, scale)
            action = torch.tanh(raw).numpy() * self._half + self._middle
            reward, before = np.zeros(N, np.float32), obs.copy()
            happened = live.copy()
            for i in np.flatnonzero(live):
                obs[i], reward[i], terminated[i], _, _ = self._envs[i].step(action[i])
            row = before, raw.numpy(), reward, happened, log_prob(loc, scale, raw).numpy()
            for column, value in zip(record, row, strict=True):
                column.append(value)
            live = live & ~terminated & (clock + t + 1 < EPISODE)
        chosen = np.arange(contexts) * LANES + self._random.integers(0, LANES, contexts)
        self._starts = [
            (
                self._envs[i].data.qpos.copy(),
                self._envs[i].data.qvel.copy(),
                obs[i].copy(),
                clock[i] + STEPS,
            )
            if live[i]
            else self._reset()
            for i in chosen
        ]
        group = lambda x: x.reshape(contexts, LANES, *x.shape[1:])
        columns = [group(np.stack(column, 1)) for column in record]
        return Batch(*columns, group(obs), group(terminated))

    def peak_mib(self) -> float:
        return peak_mib()


def labels(policy: Policy, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Hard preferences [B, K, K] by discounted return, and returns-to-go [B, K, T]."""
    with torch.no_grad():
        value = policy.values(batch.last_obs) * ~batch.terminated
        targets = torch.zeros_like(batch.reward)
        for t in reversed(range(STEPS)):
            value = torch.where(batch.mask[..., t], batch.reward[..., t] + DISCOUNT * value, value)
            targets[..., t] = value
    returns = targets[..., 0]
    return (1 + torch.sign(returns[:, :, None] - returns[:, None, :])) / 2, targets


def loss(policy: Policy, reference: Policy, batch: Batch, prob, targets) -> torch.Tensor:
    """Minus the surrogate of J - lambda KL, and the value's error; as `core.update.loss`."""
    mask = batch.mask
    loc, scale = policy(batch.obs)
    with torch.no_grad():
        ref_loc, ref_scale = reference(batch.obs)
        ref_logp = log_prob(ref_loc, ref_scale, batch.raw)
    logp = log_prob(loc, scale, batch.raw)
    h = BETA * ((logp - ref_logp) * mask).sum(-1)
    margin = h[:, :, None] - h[:, None, :]
    f = prob * logsigmoid(margin) + (1 - prob) * logsigmoid(-margin)
    pair = 1 - torch.eye(LANES)
    pairs = LANES * (LANES - 1) / 2
    J = (f * pair).sum((1, 2)).mean() / 2 / pairs
    total = (f * pair).detach().sum(-1)
    rest = total.sum(-1, keepdim=True) / 2 - total
    baseline = rest / (pairs - (LANES - 1))
    advantage = (total - (LANES - 1) * baseline) / pairs
    ratio = torch.exp(logp - batch.logp)
    weight = advantage[..., None] * mask
    score = torch.minimum(weight * ratio, weight * ratio.clamp(1 - CLIP, 1 + CLIP))
    response = score.sum((1, 2)).mean()
    spread, shift = ref_scale / scale, (ref_loc - loc) / scale
    kl = (0.5 * (spread**2 + shift**2 - 1) - torch.log(spread)).sum(-1)
    kl = ((kl * mask).sum(-1) / mask.sum(-1).clamp(min=1)).mean()
    error = (policy.values(batch.obs) - targets) * (1 - DISCOUNT) * mask
    value_loss = 0.5 * (error**2).sum() / mask.sum()
    return value_loss - J - RESPONSE_GRAD * response + KL * kl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    options = parser.parse_args()
    cores, passes = os.cpu_count(), options.passes
    shares = gymnasium.vector.AsyncVectorEnv(
        [lambda i=i: Share(IDS[options.env], CONTEXTS // cores, seed=i) for i in range(cores)]
    )
    env = gymnasium.make(IDS[options.env])
    policy, reference = (
        Policy(env.observation_space.shape[0], env.action_space.shape[0]) for _ in range(2)
    )
    reference.load_state_dict(policy.state_dict())
    optimizer = torch.optim.Adam([*policy.net.parameters(), *policy.value.parameters()], 3e-4)

    def update(step: int) -> tuple[float, float]:
        """Env steps that happened, and the reward of each."""
        weights = {key: x.numpy() for key, x in policy.state_dict().items()}
        parts = shares.call('segments', weights)
        arrays = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
        batch = Batch(*arrays)
        prob, targets = labels(policy, batch)
        for _ in range(passes):
            for rows in torch.arange(CONTEXTS).reshape(-1, passes).T:
                part = Batch(*(x[rows] for x in batch))
                value = loss(policy, reference, part, prob[rows], targets[rows])
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
                optimizer.step()
        policy.see(batch.obs[batch.mask])
        if step % REFRESH == 0:
            reference.load_state_dict(policy.state_dict())
        return float(batch.mask.sum()), float(batch.reward.sum() / batch.mask.sum())

    def call() -> dict[str, float]:
        nonlocal step
        counts = []
        for _ in range(options.updates):
            step += 1
            counts.append(update(step))
        live, reward = np.asarray(counts).T
        peak = peak_mib() + sum(shares.call('peak_mib'))
        return {
            'env_steps': live.sum(),
            'live_steps': live.sum(),
            'reward_per_step': reward.mean(),
            'peak_mib': peak,
        }

    step = 0
    for _ in range(options.warm_up):
        call()
    serve(call)


if __name__ == '__main__':
    main()
