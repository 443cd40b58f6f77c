"""Soft actor-critic as one would write it in PyTorch: a contender of `benchmarks.sac_peer`.

CleanRL's algorithm (`sac_continuous_action.py`) with our sizes and rates, written to be fast: the
replay is preallocated tensors, both critics are one batched network, the optimizers are fused, the
slow copies move by one `lerp`, and the simulator is MuJoCo's C engine on the model that
Playground's CheetahRun has, without a wrapper. `torch.compile` of the networks made a gradient step
of 256 slower. Several seeds are divided over processes of one thread each, which is faster than one
seed after the other on all threads.
"""

import argparse
import multiprocessing
import os
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.rounds import serve

DISCOUNT, TAU, TARGET_EVERY = 0.99, 0.005, 2
LEARNING_RATE, TEMPERATURE_RATE, TEMPERATURE = 5e-4, 1e-4, 0.1
LOG_STD = (-5.0, 2.0)
EPISODE, SETTLE, SPEED = 1000, 200, 10.0


class Cheetah:
    """CheetahRun: observations of 17, actions of 6, one step of the simulator an env step."""

    def __init__(self, seed: int) -> None:
        place = find_spec('mujoco_playground').submodule_search_locations[0]
        path = Path(place) / '_src' / 'dm_control_suite' / 'xmls' / 'cheetah.xml'
        self.model = mujoco.MjModel.from_xml_path(str(path))
        self.model.opt.timestep = 0.01
        self.data = mujoco.MjData(self.model)
        self.random = np.random.default_rng(seed)
        self.speed = self.model.sensor('torso_subtreelinvel').adr[0]
        self.actions = self.model.nu
        self.obs = self.reset()

    def reset(self) -> np.ndarray:
        mujoco.mj_resetData(self.model, self.data)
        low, high = self.model.jnt_range[3:].T
        self.data.qpos[3:] = self.random.uniform(low, high)
        mujoco.mj_step(self.model, self.data, SETTLE)
        self.clock = 0
        return self.observe()

    def observe(self) -> np.ndarray:
        return np.concatenate([self.data.qpos[1:], self.data.qvel]).astype(np.float32)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """The observation, the reward, and whether the episode is at its limit."""
        self.data.ctrl[:] = action
        mujoco.mj_step(self.model, self.data)
        self.clock += 1
        reward = float(np.clip(self.data.sensordata[self.speed] / SPEED, 0, 1))
        return self.observe(), reward, self.clock >= EPISODE


class Twin(nn.Module):
    """Two networks of one shape, whose layers are batched products."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            nn.init.orthogonal_(torch.empty(2, a, b)) for a, b in pairwise(sizes)
        )
        self.biases = nn.ParameterList(torch.zeros(2, 1, b) for b in sizes[1:])

    def forward(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        x = torch.cat([obs, action], -1).expand(2, -1, -1)
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            x = x if i == last else functional.relu(x)
        return x.squeeze(-1)


class Actor(nn.Module):
    def __init__(self, obs: int, hidden: list[int], actions: int) -> None:
        super().__init__()
        sizes = [obs, *hidden, 2 * actions]
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1])

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A squashed action and its log-density."""
        loc, raw = self.net(obs).chunk(2, -1)
        low, high = LOG_STD
        log_std = low + (high - low) / 2 * (torch.tanh(raw) + 1)
        noise = torch.randn_like(loc)
        x = loc + log_std.exp() * noise
        squash = 2 * (np.log(2) - x - functional.softplus(-2 * x))
        logp = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi) - squash
        return torch.tanh(x), logp.sum(-1)


class Learner:
    """One seed: environment, replay, networks."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        torch.manual_seed(seed)
        self.env = Cheetah(seed)
        obs, actions = len(self.env.obs), self.env.actions
        self.actor = Actor(obs, options.hidden, actions)
        sizes = [obs + actions, *options.hidden, 1]
        self.critics, self.targets = Twin(sizes), Twin(sizes)
        self.targets.load_state_dict(self.critics.state_dict())
        self.log_temperature = torch.tensor(np.log(TEMPERATURE), requires_grad=True)
        adam = lambda parameters, rate: torch.optim.Adam(parameters, rate, fused=True)
        self.of_actor = adam(self.actor.parameters(), LEARNING_RATE)
        self.of_critics = adam(self.critics.parameters(), LEARNING_RATE)
        self.of_temperature = adam([self.log_temperature], TEMPERATURE_RATE)
        self.batch, self.rows, self.written = options.batch, options.capacity, 0
        self.replay = [torch.zeros(self.rows, n) for n in (obs, actions, 1, obs)]
        self.target_entropy, self.gradient_steps = -float(actions), 0

    def act(self) -> None:
        """An env step, into the replay; nothing ends before the episode's limit."""
        with torch.no_grad():
            action = self.actor(torch.from_numpy(self.env.obs)[None])[0][0]
        before = self.env.obs
        self.env.obs, reward, ended = self.env.step(action.numpy())
        place = self.written % self.rows
        row = (
            torch.from_numpy(before),
            action,
            torch.tensor([reward]),
            torch.from_numpy(self.env.obs),
        )
        for there, new in zip(self.replay, row, strict=True):
            there[place] = new
        self.written += 1
        if ended:
            self.env.obs = self.env.reset()

    def learn(self) -> None:
        rows = torch.randint(min(self.written, self.rows), (self.batch,))
        obs, action, reward, next_obs = (x[rows] for x in self.replay)
        temperature = self.log_temperature.detach().exp()
        with torch.no_grad():
            next_action, logp = self.actor(next_obs)
            soft = self.targets(next_obs, next_action).amin(0) - temperature * logp
            target = reward[:, 0] + DISCOUNT * soft
        loss = ((self.critics(obs, action) - target) ** 2).mean(-1).sum()
        self._step(self.of_critics, loss)
        new, logp = self.actor(obs)
        self.critics.requires_grad_(False)
        loss = (temperature * logp - self.critics(obs, new).amin(0)).mean()
        self._step(self.of_actor, loss)
        self.critics.requires_grad_(True)
        loss = -self.log_temperature.exp() * (logp.detach().mean() + self.target_entropy)
        self._step(self.of_temperature, loss)
        self.gradient_steps += 1
        if self.gradient_steps % TARGET_EVERY == 0:
            with torch.no_grad():
                torch._foreach_lerp_(
                    list(self.targets.parameters()), list(self.critics.parameters()), TAU
                )

    def _step(self, rule: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        rule.zero_grad(set_to_none=True)
        loss.backward()
        rule.step()


def run(learners: list[Learner], steps: int) -> None:
    """So many env steps of each, and a gradient step after each."""
    for learner in learners:
        for _ in range(steps):
            learner.act()
            learner.learn()


def _share(options: argparse.Namespace, seeds: range, pipe: Any) -> None:
    """A process: runs its seeds whenever told to."""
    torch.set_num_threads(1)
    learners = [Learner(options, seed) for seed in seeds]
    while pipe.recv():
        run(learners, options.steps)
        pipe.send(True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ours understands too."""
    parser.add_argument('--seeds', type=int, default=1)
    parser.add_argument('--steps', type=int, default=200, help='of each seed in a call')
    parser.add_argument('--hidden', type=int, nargs='+', default=[256, 256])
    parser.add_argument('--batch', type=int, default=256)
    parser.add_argument('--capacity', type=int, default=100_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument('--threads', type=int, default=os.cpu_count(), help='of a seed alone')
    options = parser.parse_args()
    total = options.steps * options.seeds
    counted = {'env_steps': total, 'gradient_steps': total}
    processes = min(options.seeds, os.cpu_count() or 1)
    if processes == 1:
        torch.set_num_threads(options.threads)
        learners = [Learner(options, seed) for seed in range(options.seeds)]
        run(learners, options.steps)
        serve(lambda: run(learners, options.steps) or counted)
    context = multiprocessing.get_context('spawn')
    pipes = []
    for i in range(processes):
        ours, theirs = context.Pipe()
        share = (options, range(i, options.seeds, processes), theirs)
        context.Process(target=_share, args=share, daemon=True).start()
        pipes.append(ours)

    def call() -> dict[str, int]:
        for pipe in pipes:
            pipe.send(True)
        for pipe in pipes:
            pipe.recv()
        return counted

    try:
        call()
        serve(call)
    finally:
        for pipe in pipes:
            pipe.send(False)


if __name__ == '__main__':
    main()
