"""A language model split over (fake) devices trains as on one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import json, sys
from pathlib import Path
import jax, numpy as np
from sail_jax import trainer
from sail_jax.language import task
from tests.language import small

settings, out, path = json.loads(sys.argv[1]), sys.argv[2], Path(sys.argv[2]).parent
checkpoint, prompts = path / 'model', path / 'prompts.jsonl'
if not checkpoint.exists():
    small.checkpoint(checkpoint, multiple=8)
    small.data(prompts, rows=32)
settings |= {'prompts_per_update': 8, 'divergence': {'coefficient': 0.1}}
run = small.run(checkpoint, prompts, **settings)
made = task.make(run, reward=small.letters)
state = trainer.initial_state(run, made, made.start(0))
held = {'params': state.policy.params, 'moments': state.optimizer, 'frozen': state.policy.frozen}
of_device = lambda x: x.addressable_shards[0].data.nbytes
size = lambda tree, of: sum(map(of, jax.tree.leaves(tree)))
whole = lambda x: x.nbytes
bytes_ = {name: (size(tree, of_device), size(tree, whole)) for name, tree in held.items()}
losses = []
for _ in range(3):
    state, metrics = made.dispatch(state)
    names = 'objective', 'preference', 'kl', 'margin', 'reward', 'response_length'
    losses.append([float(metrics[name][0]) for name in names])
np.savez(
    out,
    devices=jax.device_count(),
    losses=losses,
    **bytes_,
)
"""
SPLIT = {'data': 2, 'fsdp': 2, 'tensor': 2}


@pytest.fixture(scope='module', params=['full', pytest.param('lora', marks=pytest.mark.slow)])
def outcomes(request, tmp_path_factory):
    path, found = tmp_path_factory.mktemp(request.param), []
    for count, mesh in ((1, {}), (8, SPLIT)):
        settings = {'model': {'train': request.param, 'lora': {'rank': 4}}, 'devices': mesh}
        out = path / f'{count}.npz'
        subprocess.run(
            [sys.executable, '-c', SCRIPT, json.dumps(settings), out],
            env={**os.environ, 'XLA_FLAGS': f'--xla_force_host_platform_device_count={count}'},
            check=True,
            timeout=900,
        )
        found.append(dict(np.load(out)))
    assert [int(outcome['devices']) for outcome in found] == [1, 8]
    return found


def test_losses_are_those_of_one_device(outcomes):
    one, split = outcomes
    assert np.ptp(one['losses'][:, 0]) > 1e-4
    # Parameters are not compared: a bias on keys has no gradient but rounding, and Adam follows it.
    np.testing.assert_allclose(split['losses'], one['losses'], atol=1e-5, rtol=0)


def test_a_device_holds_its_share_of_parameters_and_moments(outcomes):
    parts = SPLIT['fsdp'] * SPLIT['tensor']
    for name in ('params', 'moments', 'frozen'):
        held, whole = map(int, outcomes[1][name])
        assert held <= 1.1 * whole / parts, name
