"""What a workload says is compiled is what its runs compile, and nothing is read for it."""

import json

import jax
import pytest

from sail_jax import runs, workloads
from sail_jax.bandit import programs as bandit_programs
from sail_jax.errors import UserError
from sail_jax.language import abstract, programs
from sail_jax.language.model import architecture, published, weights
from sail_jax.language.reward.stage.config import RewardRun
from sail_jax.sweep import Members
from sail_jax.training import devices
from sail_jax.training.setup import Layout
from tests.support import small, tiny
from tests.support.paths import ROOT

NAMES = {
    'language': ['draw', 'learn', 'score', 'evaluate', 'weigh'],
    'sft': ['learn', 'evaluate'],
    'reward': ['learn', 'evaluate'],
    'control': ['update', 'evaluate'],
}


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return small.checkpoint(tmp_path_factory.mktemp('model') / 'm')


@pytest.fixture(scope='module')
def prompts(tmp_path_factory):
    return small.data(tmp_path_factory.mktemp('prompts') / 'prompts.jsonl', rows=32)


def shapes(tree):
    return [(x.shape, x.dtype, x.sharding) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize('train', ['full', 'lora'])
def test_the_state_of_a_plan_is_that_of_the_run(train, model, prompts):
    run = small.run(model, prompts, model={'train': train})
    task = runs.make_task(run, None, reward=small.letters)
    trained = Layout.of(Members.of(run), task).state
    draw = programs.programs(run).programs[0]
    planned = draw.arguments[0]
    assert shapes(planned._replace(shared=())) == shapes(trained)
    assert (planned.shared == ()) is (train == 'full')


@pytest.mark.parametrize('train', ['full', 'lora'])
def test_the_programs_trace(train, model, prompts):
    run = small.run(model, prompts, model={'train': train})
    plan = workloads.of(run).programs(run, jax.devices())
    assert [program.name for program in plan.programs] == ['draw', 'learn', 'evaluate', 'weigh']
    for program in plan.programs:
        jax.eval_shape(program.function, *program.arguments)
    assert plan.per_update == {'prompts': 4, 'pairs': 4, 'tokens': 4 * 2 * 6}


@pytest.mark.parametrize('train', ['full', 'lora', 'head'])
def test_a_reward_models_state_and_programs_are_those_of_its_run(train, model, tmp_path):
    pairs = small.data(tmp_path / 'pairs.jsonl', rows=16, pairs=True)
    run = RewardRun.model_validate(
        {
            'workload': 'reward',
            'prompts_per_update': 4,
            'model': {'path': str(model), 'train': train, 'heads': 2},
            'data': {'path': str(pairs), 'max_prompt_tokens': 24, 'max_response_tokens': 8},
            'evaluation': {'prompts': 6},
        }
    )
    plan = workloads.of(run).programs(run, jax.devices())
    learn, evaluate = plan.programs
    trained = Layout.of(Members.of(run), runs.make_task(run, None)).state
    assert shapes(learn.arguments[0]._replace(shared=())) == shapes(trained)
    _, metrics = jax.eval_shape(learn.function, *learn.arguments)
    assert metrics['loss'].shape == ()
    rewards = jax.eval_shape(evaluate.function, *evaluate.arguments)
    assert rewards.shape == (4, 2, 2)
    assert plan.per_update == {'prompts': 4, 'tokens': 4 * 2 * 32}


@pytest.mark.parametrize(
    ('file', 'kept'),
    [
        # Policy, and the reference that is the start policy; the reward model in bfloat16; moments.
        (
            'language/qwen2.5-0.5b-ultrafeedback',
            {'weights': 2 * 494_032_768 * 4 + 596_050_944 * 2, 'optimizer': 2 * 494_032_768 * 4},
        ),
        ('language/sft', {'weights': 2 * 494_032_768 * 4, 'optimizer': 2 * 494_032_768 * 4}),
        # With a score of 896 numbers.
        ('language/reward', {'weights': 2 * 494_033_664 * 4, 'optimizer': 2 * 494_033_664 * 4}),
    ],
)
def test_shipped_files_are_planned_without_model_and_data(file, kept):
    run = runs.load(ROOT / 'configs' / f'{file}.yaml')
    kind = workloads.of(run)
    plan = kind.programs(run, jax.devices()[:1])
    assert [program.name for program in plan.programs] == NAMES[kind.name]
    for name, size in kept.items():
        assert devices.size_on_one(plan.resident[name]) == pytest.approx(size, rel=1e-6)


def test_control_has_what_its_loop_has():
    run = runs.load(ROOT / 'configs' / 'quickstart.yaml', env={'name': 'inverted_pendulum'})
    plan = workloads.of(run).programs(run, jax.devices()[:1])
    assert [program.name for program in plan.programs] == NAMES['control']
    update, evaluate = plan.programs
    assert update.per_update == 1 / run.updates_per_dispatch
    assert update.steps == run.updates_per_dispatch * run.rollout.segment_length
    assert evaluate.steps == 2 * run.env.episode_length
    assert plan.per_update == {'env_steps': 32 * 8 * 32, 'pairs': 32 * 28}


def test_workloads_that_train_nothing_by_updates_have_no_plan():
    with_plan = workloads.names('plan')
    assert with_plan.split(', ')[:4] == ['control', 'sac', 'bandit', 'sft']
    assert 'language-quickstart' not in with_plan.split(', ')
    with pytest.raises(UserError, match='a landscape learns nothing'):
        bandit_programs.programs(runs.load(ROOT / 'configs' / 'bandit' / 'landscape.yaml'))


def test_a_study_that_learns_has_one_program():
    run = runs.load(ROOT / 'configs' / 'bandit' / 'sample_complexity.yaml')
    plan = workloads.of(run).programs(run, jax.devices())
    (ascend,) = plan.programs
    means = jax.eval_shape(ascend.function, *ascend.arguments)
    assert means.shape[:2] == (4, 24)
    assert plan.per_update == {'pairs': 4 * 24 * 4 * run.group_size * (run.group_size - 1) // 2}


def test_the_products_of_a_forward_pass():
    a = tiny.FAMILIES['llama2']  # 3 layers, width 16, heads 4 x 4, MLP 24, 61 words
    maps = 16 * 16 * 4 + 3 * 16 * 24
    scores = 2 * 2 * 16 * (8 * 8 / 2 + 2 * (5 * 8 + 5 * 5 / 2))
    expected = 3 * (2 * maps * (8 + 2 * 5) + scores) + 2 * 16 * 61 * 2 * 5
    assert abstract.forward_flops(a, 1, 8, 2, 5) == expected
    assert abstract.forward_flops(a, 7, 8, 2, 5) == 7 * expected


@pytest.mark.parametrize(
    ('directory', 'name'),
    [
        ('Meta-Llama-3-8B-Instruct', 'llama-3-8b'),
        ('Skywork-Reward-V2-Llama-3.1-8B', 'llama-3.1-8b'),
        ('Qwen2.5-0.5B', 'qwen2.5-0.5b'),
    ],
)
def test_published_sizes_by_name(directory, name, tmp_path, caplog):
    expected = architecture.from_hf(published.PUBLISHED[name], name)
    assert published.architecture(tmp_path / directory) == expected
    assert f'planned with the published sizes of {name}' in caplog.text


def test_a_config_json_at_hand_is_read(tmp_path):
    (tmp_path / 'qwen2.5-0.5b').mkdir()
    data = architecture.to_hf(tiny.FAMILIES['qwen2'])
    (tmp_path / 'qwen2.5-0.5b' / 'config.json').write_text(json.dumps(data))
    assert published.architecture(tmp_path / 'qwen2.5-0.5b').hidden_size == 16
    with pytest.raises(UserError, match='no model whose sizes are known: llama-3-8b'):
        published.architecture(tmp_path / 'mine')


@pytest.mark.parametrize(
    ('name', 'parameters'),
    [
        ('llama-3-8b', 8_030_261_248),
        ('qwen2.5-0.5b', 494_032_768),
        ('qwen3-0.6b', 596_049_920),
        ('qwen1.5-0.5b', 463_987_712),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(name, parameters):
    from flax import nnx

    from sail_jax.language.model.transformer import Decoder

    a = architecture.from_hf(published.PUBLISHED[name], name)
    decoder = nnx.eval_shape(lambda: Decoder(a, rngs=nnx.Rngs(0)))
    assert sum(x.size for x in weights.parameters(decoder).values()) == parameters
