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
from sail_jax.sweep import Members
from sail_jax.training import checkpoint, integrity, setup
from sail_jax.language import task
from tests.support import small

settings, out, path = json.loads(sys.argv[1]), sys.argv[2], Path(sys.argv[2]).parent
checkpoint, prompts = path / 'model', path / 'prompts.jsonl'
if not checkpoint.exists():
    small.checkpoint(checkpoint, multiple=8)
    small.data(prompts, rows=32)
settings |= {'prompts_per_update': 8, 'divergence': {'coefficient': 0.1}}
run = small.run(checkpoint, prompts, **settings)
made = task.make(run, reward=small.letters)
state = setup.initial_state(Members.of(run), made, made.start(0), made.shared())
held = {'params': state.policy.params, 'moments': state.optimizer, 'shared': state.shared}
of_device = lambda x: x.addressable_shards[0].data.nbytes
size = lambda tree, of: sum(map(of, jax.tree.leaves(tree)))
whole = lambda x: x.nbytes
bytes_ = {name: (size(tree, of_device), size(tree, whole)) for name, tree in held.items()}
losses = []
for _ in range(3):
    state, metrics = made.dispatch(state)
    names = 'objective', 'preference', 'kl', 'margin', 'reward', 'response_length'
    losses.append([float(metrics[name][0]) for name in names])
mark = integrity._fingerprint.lower(state.policy.params).compile().as_text()
np.savez(
    out,
    devices=jax.device_count(),
    losses=losses,
    gathers=mark.count('all-gather('),
    **bytes_,
)
"""


SPLIT = {'data': 2, 'fsdp': 2, 'tensor': 2}
REWARD = """
import json, sys
from pathlib import Path
import jax, numpy as np
from flax import nnx
from sail_jax.training import checkpoint, devices, setup
from sail_jax.language.reward import labels, reward_model
from sail_jax.language.data import tokens
from sail_jax.language.model import weights
from tests.support import small, tiny, tiny_tokenizer

mesh, out, path = json.loads(sys.argv[1]), sys.argv[2], Path(sys.argv[2]).parent / 'reward'
if not path.exists():
    vocabulary = tokens.load(tiny_tokenizer.write(path.parent / 'tokenizer')).vocab_size
    a = tiny.FAMILIES['qwen2'].model_copy(update={'vocab_size': vocabulary + -vocabulary % 8})
    graphdef, state = nnx.split(reward_model.RewardModel(a, rngs=nnx.Rngs(1)))
    state = jax.tree.map(lambda x: 10 * x if x.ndim > 1 else x, state)
    weights.save(nnx.merge(graphdef, state), path)
    tiny_tokenizer.write(path)
reward = {'source': 'model', 'path': str(path)}
run = small.run(path, path / 'none', prompts_per_update=8, devices=mesh, reward=reward)
before = jax.live_arrays()
labeller = labels.make(run, devices.make_mesh(8, run.devices))
known = set(map(id, before))
model = [x for x in jax.live_arrays() if id(x) not in known]
prompts = ['the cat', 'no', 'what a cat']
groups = [['yes', 'no no'], [' sat', ''], [' said hello', ' mat']]
np.savez(
    out,
    devices=jax.device_count(),
    held=sum(x.addressable_shards[0].data.nbytes for x in model),
    whole=sum(x.nbytes for x in model),
    scores=labeller.score(prompts, groups),
)
"""


FAMILY = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from sail_jax.config import Devices
from sail_jax.language.config import Sampling
from sail_jax.language.model import logprobs, sampler, sharding
from sail_jax.training import devices
from tests.support import tiny

mesh, out = devices.make_mesh(8, Devices(**json.loads(sys.argv[1]))), {}
prompts = sampler.pad_prompts([[1 + i, 2, 3, 4][: 2 + i % 3] for i in range(8)])
for name in ('gemma3', 'phi3', 'olmo2'):
    graphdef, state = nnx.split(tiny.decoder(name, mesh=mesh))
    state = jax.device_put(state, devices.tree_by_rules(mesh, sharding.RULES, state))

    @jax.jit
    def draw(state):
        keys = jax.random.split(jax.random.key(0), 8)
        settings, eos_E = Sampling(max_tokens=12), jnp.asarray([0])
        model = nnx.merge(graphdef, state)
        return sampler.generate(
            model, prompts, keys, group_size=2, settings=settings, eos_E=eos_E
        )

    @jax.jit
    @jax.grad
    def gradient(state, drawn):
        predicted = logprobs.predictions(nnx.merge(graphdef, state), prompts, drawn.tokens_BxKxR)
        logp = logprobs.log_probs(predicted, drawn.tokens_BxKxR)
        return jnp.where(drawn.mask_BxKxR, logp, 0).mean()

    drawn = draw(state)
    out[f'{name}.logp'] = drawn.logp_BxKxR
    for path, x in jax.tree_util.tree_leaves_with_path(gradient(state, drawn)):
        out[f'{name}{jax.tree_util.keystr(path)}'] = x
np.savez(sys.argv[2], devices=jax.device_count(), **out)
"""


@pytest.mark.slow
def test_families_with_parts_of_their_own_draw_and_learn_as_on_one_device(tmp_path):
    one, split = (
        run_on(count, FAMILY, mesh, tmp_path / f'{count}.npz')
        for count, mesh in ((1, {}), (8, SPLIT))
    )
    assert one.keys() == split.keys()
    for name in one.keys() - {'devices'}:
        largest = np.abs(one[name]).max()
        assert largest > 0 or name.endswith('lm_head'), name
        np.testing.assert_allclose(split[name], one[name], rtol=0, atol=1e-4 * largest)


def run_on(count, script, settings, out):
    """What the script leaves on so many devices."""
    subprocess.run(
        [sys.executable, '-c', script, json.dumps(settings), out],
        env={**os.environ, 'XLA_FLAGS': f'--xla_force_host_platform_device_count={count}'},
        check=True,
        timeout=900,
    )
    found = dict(np.load(out))
    assert int(found['devices']) == count
    return found


@pytest.mark.slow
def test_a_reward_model_is_split_as_the_policy_and_scores_as_on_one_device(tmp_path):
    one = run_on(1, REWARD, {}, tmp_path / 'one.npz')
    split = run_on(8, REWARD, SPLIT, tmp_path / 'split.npz')
    assert one['held'] == one['whole'] == split['whole'] > 0
    assert split['held'] <= 1.1 * split['whole'] / (SPLIT['fsdp'] * SPLIT['tensor'])
    assert np.ptp(one['scores']) > 0.1
    np.testing.assert_allclose(split['scores'], one['scores'], atol=1e-4, rtol=0)


DRAW = """
import json, sys
from pathlib import Path
import jax, numpy as np
from sail_jax import workloads
from tests.support import small

out = Path(sys.argv[2])
model = small.checkpoint(out.parent / 'model')
run = small.run(model, out.parent / 'none', prompts_per_update=8, **json.loads(sys.argv[1]))
draw = workloads.of(run).programs(run, jax.devices()).programs[0]
text = draw.function.lower(*draw.arguments).compile().as_text()
np.savez(out, devices=jax.device_count(), gathers=text.count(' all-gather('))
"""


@pytest.mark.slow
def test_one_collective_tells_every_host_what_was_drawn(tmp_path):
    assert run_on(8, DRAW, {}, tmp_path / 'draw.npz')['gathers'] == 1


SHARE = """
import json, sys
from pathlib import Path
import jax, numpy as np
from sail_jax import workloads
from sail_jax.plan import hlo
from tests.support import small

out = Path(sys.argv[2])
sizes = {'vocab_size': 512, 'hidden_size': 128, 'intermediate_size': 512}
sizes |= {'num_hidden_layers': 2, 'num_attention_heads': 8}
sizes['num_key_value_heads'], prompt = json.loads(sys.argv[1])
config = {'model_type': 'qwen2', 'max_position_embeddings': 512, **sizes}
(out.parent / 'config.json').write_text(json.dumps(config))
settings = {'prompts_per_update': 8, 'devices': {'fsdp': 8}, 'data': {'max_prompt_tokens': prompt}}
run = small.run(out.parent, out.parent / 'none', **settings)
draw = workloads.of(run).programs(run, jax.devices()).programs[0]
module = hlo.parse(draw.function.lower(*draw.arguments).compile().as_text())

def reached(name):
    for instruction in module.computations[name].instructions.values():
        yield instruction
        for inner in instruction.called.values():
            yield from reached(inner)

loops = [
    instruction
    for computation in module.computations.values()
    for instruction in computation.instructions.values()
    if instruction.opcode == 'while' and module.lines(instruction)[0].file.endswith('sampler.py')
]
arrays = [
    array
    for loop in loops
    for instruction in reached(loop.called['body'])
    for array in hlo.leaves(instruction.shape)
]
largest = max(array.size for array in arrays)
np.savez(out, devices=jax.device_count(), largest=largest, whole=128 * 512)
"""


@pytest.mark.slow
@pytest.mark.parametrize('heads_and_prompt', [(8, 32), (4, 128)])
def test_a_device_decodes_with_its_share_of_weights_and_rows(tmp_path, heads_and_prompt):
    """Nothing in the loop over tokens is larger than the share of the largest matrices; whole they
    all would be, and keys of all rows."""
    found = run_on(8, SHARE, heads_and_prompt, tmp_path / 'share.npz')
    assert found['whole'] / 8 <= found['largest'] <= 1.25 * found['whole'] / 8


KINDS = {
    'full': {},
    'lora': {'model': {'train': 'lora', 'lora': {'rank': 4}}},
    'all of it': {
        'model': {
            'train': 'lora',
            'lora': {'rank': 4, 'targets': 'all-linear', 'dropout': 0.2},
        },
        'reference': {'refresh_prompts': 8, 'ema': 0.5},
        'optimizer': {'accumulation': 2},
        'objective': {'loss': 'rebel', 'exploration': 'selm', 'alpha': 0.01},
    },
}


@pytest.fixture(
    scope='module',
    params=[
        kind if kind == 'full' else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS
    ],
)
def outcomes(request, tmp_path_factory):
    path, found = tmp_path_factory.mktemp('outcomes'), []
    for count, mesh in ((1, {}), (8, SPLIT)):
        settings = KINDS[request.param] | {'devices': mesh}
        found.append(run_on(count, SCRIPT, settings, path / f'{count}.npz'))
    return found


def test_losses_are_those_of_one_device(outcomes):
    one, split = outcomes
    assert np.ptp(one['losses'][:, 0]) > 1e-4
    # Parameters are not compared: a bias on keys has no gradient but rounding, and Adam follows it.
    np.testing.assert_allclose(split['losses'], one['losses'], atol=1e-5, rtol=0)


def test_a_device_holds_its_share_of_parameters_and_moments(outcomes):
    parts = SPLIT['fsdp'] * SPLIT['tensor']
    for name in ('params', 'moments', 'shared'):
        held, whole = map(int, outcomes[1][name])
        assert held <= 1.1 * whole / parts, name


def test_a_fingerprint_is_made_where_the_parts_lie(outcomes):
    assert int(outcomes[1]['gathers']) == 0
