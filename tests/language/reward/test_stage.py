"""Training reward models: the loss, the run, and what others read of what it leaves."""

import json
from collections import defaultdict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sail_jax
from sail_jax import files
from sail_jax.errors import UserError
from sail_jax.language import export, model_card
from sail_jax.language.data import dataset, tokens
from sail_jax.language.data.dataset import Example
from sail_jax.language.data.rows import DataRow
from sail_jax.language.model import weights
from sail_jax.language.reward import labels, reward_model
from sail_jax.language.reward.stage import learn
from sail_jax.language.reward.stage.config import BradleyTerry, RewardRun
from sail_jax.language.supervised.config import MODEL
from sail_jax.training import devices, metrics
from tests.support import small
from tests.support.checkpoints import same, without_times

HEADS = 3


def settings(path, **changes) -> RewardRun:
    """Some updates of a tiny model; sections are merged."""
    base = {
        'workload': 'reward',
        'total_prompts': 96,
        'prompts_per_update': 8,
        'model': {'path': str(path / 'm'), 'train': 'lora', 'lora': {'rank': 4}, 'heads': HEADS},
        'data': {
            'path': str(path / 'pairs.jsonl'),
            'max_prompt_tokens': 24,
            'max_response_tokens': 8,
        },
        'optimizer': {'learning_rate': 1e-2},
        'evaluation': {'every_updates': 4, 'prompts': 8},
        'checkpoints': {'every_updates': 4, 'metric': 'eval/pair_accuracy'},
        'logging': {'tensorboard': False},
    }
    merged = {
        key: {**base[key], **value} if isinstance(base.get(key), dict) else value
        for key, value in changes.items()
    }
    return RewardRun.model_validate(base | merged)


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp('reward')
    small.checkpoint(path / 'm')
    small.data(path / 'pairs.jsonl', rows=40, pairs=True)
    return path


@pytest.fixture(scope='module')
def trained(path):
    """`(run directory, result)` of a run that its patience ended."""
    run = settings(path, total_prompts=800, evaluation={'patience': 2})
    return path / 'run', sail_jax.train(run, path / 'run', quiet=True)


@pytest.mark.parametrize('centering', [None, 0.01])
@pytest.mark.parametrize('with_margin', [False, True])
def test_loss_is_trls(centering, with_margin):
    """That of its RewardTrainer, which has no label smoothing; one head."""
    torch = pytest.importorskip('torch')
    trainer = pytest.importorskip('trl').RewardTrainer
    rng = np.random.default_rng(0)
    rewards, margin = rng.normal(size=(5, 2)).astype('f'), rng.normal(size=5).astype('f')
    margin *= with_margin
    logits = torch.tensor(rewards.T.reshape(10, 1))  # All chosen ones, then all rejected ones.
    asked = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=centering),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
    )
    inputs = {'margin': torch.tensor(margin)} if with_margin else {}
    answer = lambda **_: SimpleNamespace(logits=logits)
    theirs = trainer.compute_loss(asked, answer, inputs)
    loss = BradleyTerry(centering=centering or 0.0)
    ours = learn.pair_losses(jnp.asarray(rewards)[..., None], jnp.asarray(margin), loss)
    assert ours.shape == (5, 1)
    np.testing.assert_allclose(ours.mean(), theirs, rtol=1e-6)


def test_label_smoothing_is_a_mean_of_both_labels():
    rng = np.random.default_rng(0)
    rewards, margin = rng.normal(size=(5, 2, 3)), rng.normal(size=5)
    difference = rewards[:, 0] - rewards[:, 1] - margin[:, None]
    probability = 1 / (1 + np.exp(-difference))
    wanted = -0.8 * np.log(probability) - 0.2 * np.log(1 - probability)
    wanted += 0.3 * rewards.sum(1) ** 2
    loss = BradleyTerry(label_smoothing=0.2, centering=0.3)
    ours = learn.pair_losses(jnp.asarray(rewards), jnp.asarray(margin), loss)
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)


def test_held_out_numbers_by_hand():
    """Two pairs whose probabilities are 0.8 and 0.6, the second ranked wrongly."""
    margins = np.log([4.0, 1.5]) * [1, -1]
    got = learn.numbers(np.stack([margins + 1, np.ones(2)], 1)[..., None])
    assert got['pair_accuracy'] == 0.5
    assert got['loss'] == pytest.approx(-np.log([0.8, 0.4]).mean())
    assert got['confidence'] == pytest.approx(0.7)
    # In bins of their own: |1 - 0.8| and |0 - 0.6|.
    assert got['calibration_error'] == pytest.approx((0.2 + 0.6) / 2)
    assert got['mean_reward'] == pytest.approx(1 + margins.mean() / 2)
    assert 'reward_spread' not in got
    twice = learn.numbers(np.stack([margins, np.zeros(2)], 1)[..., None] * [0.0, 2.0])
    assert twice['pair_margin'] == pytest.approx(margins.mean())
    assert twice['reward_spread'] == pytest.approx(np.abs(margins).mean() / 2)


@pytest.mark.parametrize('broken', [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_no_number_is_no_error(broken):
    rewards = np.zeros((3, 2, 2))
    rewards[1, 0, 0] = broken
    assert not np.isfinite(learn.numbers(rewards)['pair_margin'])


def test_calibration_is_within_bins():
    """Ten pairs of probability 0.75 of which eight are right: apart by 0.05."""
    margins = np.log(3) * np.asarray([1] * 8 + [-1] * 2)
    got = learn.numbers(np.stack([margins, np.zeros(10)], 1)[..., None])
    assert got['calibration_error'] == pytest.approx(0.05)


def example(number: int) -> Example:
    return Example(DataRow('', margin=number / 2), [], [number + 5, 3, 2], [7, number])


def test_rows_lie_chosen_first_without_padding_at_their_end():
    rows = learn.collate([example(1), example(4)], pad_id=2)
    np.testing.assert_array_equal(rows.lengths_Bx2, [[2, 2], [2, 2]])
    np.testing.assert_array_equal(
        rows.tokens_Bx2xS[:, :, :3], [[[6, 3, 0], [7, 1, 0]], [[9, 3, 0], [7, 4, 0]]]
    )
    np.testing.assert_array_equal(rows.margin_B, [0.5, 2])
    np.testing.assert_array_equal(rows.weight_BxH, 1)


def test_each_head_learns_from_a_half_of_its_own_that_stays():
    examples = [example(number) for number in range(2000)]
    weights_BxH = learn.collate(examples, heads=3, seed=1).weight_BxH
    assert set(np.unique(weights_BxH)) == {0, 2}
    # Halves, of which two heads share one half: standard deviations of 0.022.
    np.testing.assert_allclose(weights_BxH.mean(0), 1, atol=0.1)
    np.testing.assert_allclose(np.corrcoef(weights_BxH.T) - np.eye(3), 0, atol=0.1)
    again = learn.collate(examples[::-1], heads=3, seed=1).weight_BxH
    np.testing.assert_array_equal(again[::-1], weights_BxH)
    assert (learn.collate(examples, heads=3, seed=2).weight_BxH != weights_BxH).any()


def test_a_run_learns_and_its_patience_ends_it(trained):
    run_dir, result = trained
    assert result.before['eval/pair_accuracy'] == 0.5  # A new score is 0.
    assert result.before['eval/loss'] == pytest.approx(np.log(2))
    assert result.after['eval/pair_accuracy'] > 0.9
    rows = metrics.read_rows(run_dir / 'metrics.jsonl')
    accuracy = [row['eval/pair_accuracy'] for row in rows if 'eval/loss' in row]
    assert result.length < 800
    assert max(accuracy[-2:]) <= max(accuracy[:-2])
    assert all(max(accuracy[i : i + 2]) > max(accuracy[:i]) for i in range(1, len(accuracy) - 2))
    assert rows[-1]['train/pairs'] == 8
    assert rows[-1]['eval/reward_spread'] > 0


@pytest.mark.slow
def test_resumes_bit_for_bit(path, tmp_path):
    run = settings(path)
    whole = sail_jax.train(run, tmp_path / 'whole', quiet=True)

    def stop(row):
        if row['step'] == 6:
            raise ValueError

    with pytest.raises(UserError, match='on_update: raised ValueError'):
        sail_jax.train(run, tmp_path / 'stopped', quiet=True, on_update=stop)
    resumed = sail_jax.train(run, tmp_path / 'stopped', quiet=True, resume=True)
    same(resumed.policy, whole.policy)
    assert without_times(tmp_path / 'stopped') == without_times(tmp_path / 'whole')


def test_what_ended_early_stays_at_its_end(path, trained, capsys):
    run_dir, result = trained
    run = settings(path, total_prompts=800, evaluation={'patience': 2})
    again = sail_jax.train(run, run_dir, resume=True)
    assert again.length == result.length
    assert 'nothing is left to train: the run is at its end' in capsys.readouterr().err


def test_the_model_left_is_the_best_one_and_transformers_scores_equally(path, trained):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    run_dir, _ = trained
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(run_dir / MODEL).eval()
    assert type(theirs).__name__ == 'Qwen2ForSequenceClassification'
    assert theirs.config.num_labels == HEADS
    reader = transformers.PreTrainedTokenizerFast.from_pretrained(run_dir / MODEL)
    run = settings(path)
    tokenizer = tokens.load(run_dir / MODEL)
    held_out = [json.loads(line) for line in (path / 'pairs.jsonl').read_text().splitlines()[::5]]
    texts = [row['prompt'] + row[name] for row in held_out for name in ('chosen', 'rejected')]
    reader.pad_token = reader.convert_ids_to_tokens(theirs.config.pad_token_id)
    batch = reader(texts, return_tensors='pt', padding=True, padding_side='right')
    batch.pop('token_type_ids', None)
    with torch.no_grad():
        expected = theirs(**batch).logits.numpy()
    # As the run's evaluations score.
    best = export.open_run(run_dir, run, best=True)
    encoded = [dataset.encode_comparison(run.data, tokenizer, DataRow(**row)) for row in held_out]
    padding = reward_model.padding(run_dir / MODEL, tokenizer)
    rows = learn.collate(encoded, heads=HEADS, pad_id=padding)
    ours = learn.rewards_of(best.decoder, rows)
    np.testing.assert_allclose(np.reshape(ours, (-1, HEADS)), expected, atol=1e-4)
    assert np.ptp(expected) > 0.1
    numbers = learn.numbers(np.asarray(ours))
    evaluated = [
        row['eval/pair_accuracy']
        for row in metrics.read_rows(run_dir / 'metrics.jsonl')
        if 'eval/loss' in row
    ]
    assert numbers['pair_accuracy'] == max(evaluated)
    # As an alignment scores, whose reward they are.
    reward = {'source': 'model', 'path': str(run_dir / MODEL), 'aggregate': 'minimum'}
    aligned = small.run(path / 'm', path / 'none', reward=reward)
    rater = labels.make(aligned, devices.make_mesh(4, aligned.devices))
    groups = [[row['chosen'], row['rejected']] for row in held_out]
    rated = rater.rated([row['prompt'] for row in held_out], groups)
    np.testing.assert_allclose(np.ravel(rated['rewards']), expected.min(1), atol=1e-4)
    np.testing.assert_allclose(np.ravel(rated['spread']), expected.std(1), atol=1e-4)


@pytest.mark.slow
def test_an_adapters_dropout_is_of_training_alone(path, tmp_path):
    lora = {'rank': 4, 'targets': 'all-linear', 'dropout': 0.5}
    rows = []
    for name, settings_of in (('plain', lora | {'dropout': 0.0}), ('dropped', lora)):
        run = settings(path, model={'lora': settings_of}, total_prompts=24)
        sail_jax.train(run, tmp_path / name, quiet=True)
        rows.append(metrics.read_rows(tmp_path / name / 'metrics.jsonl'))
    plain, dropped = rows
    assert dropped[0]['eval/loss'] == plain[0]['eval/loss']
    # A new adapter adds nothing, whatever it reads, and under a new score it learns nothing yet.
    for update, apart in ((1, False), (2, False), (3, True)):
        ours, theirs = (rows[update]['train/loss'] for rows in (dropped, plain))
        assert (abs(ours - theirs) > 1e-4) == apart


def test_what_it_starts_from(path, trained, tmp_path):
    """A new score is 0; that of a classifier goes on, whatever else is trained; it is float32."""
    run_dir, _ = trained
    left = files.read_json(run_dir / MODEL / 'config.json')
    score = reward_model.load(run_dir / MODEL).score.kernel[...]
    for train in ('full', 'head', 'lora'):
        model = {'path': str(run_dir / MODEL), 'train': train, 'param_dtype': 'bfloat16'}
        decoders = export.decoders_of(settings(path, model=model))
        start = decoders.start(0)
        model = decoders.policy(start, decoders.shared())
        assert model.embed_tokens.embedding.dtype == jnp.bfloat16
        np.testing.assert_array_equal(model.score.kernel[...], score)
        assert (len(jax.tree.leaves(start.params)) == 1) is (train == 'head')
    new = export.decoders_of(settings(path, model={'train': 'head'})).start(0)
    [kernel] = jax.tree.leaves(new.params)
    assert kernel.dtype == jnp.float32
    assert not kernel.any()
    assert left['id2label'] == {'0': 'reward_0', '1': 'reward_1', '2': 'reward_2'}


def test_other_heads_are_refused(path, trained):
    run_dir, _ = trained
    run = settings(path, model={'path': str(run_dir / MODEL), 'heads': 2})
    with pytest.raises(UserError, match=r'score.weight: 3 labels; expected 2'):
        export.decoders_of(run).start(0)


def test_a_classifier_of_other_labels_is_no_ensemble(trained, tmp_path):
    run_dir, _ = trained
    assert reward_model.heads_of(run_dir / MODEL) == HEADS
    config = files.read_json(run_dir / MODEL / 'config.json')
    moods = {'0': 'sad', '1': 'so so', '2': 'glad'}
    files.write_json(tmp_path / 'config.json', config | {'id2label': moods})
    assert reward_model.heads_of(tmp_path) == 1


def test_exports_are_whole_models(path, trained, tmp_path):
    run_dir, _ = trained
    out = sail_jax.export(run_dir, tmp_path / 'best', best=True)
    same = [weights.read_score(place, (16, HEADS)) for place in (out, run_dir / MODEL)]
    np.testing.assert_array_equal(*same)
    card = model_card.text(export.open_run(run_dir, settings(path)), run_dir, 'me/judge')
    assert "AutoModelForSequenceClassification.from_pretrained('me/judge')" in card
    assert 'pipeline_tag: text-classification' in card
    assert '| calibration_error |' in card
    with pytest.raises(UserError, match='adapter=True: a reward model has a score besides'):
        sail_jax.export(run_dir, tmp_path / 'adapter', adapter=True)
    with pytest.raises(UserError, match=r'generate is for .*sft'):
        sail_jax.generate(run_dir, ['no'])


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'data': {'max_prompt_tokens': 250}}, '250, and .*: 8: .* has 256 positions'),
        ({'optimizer': {'accumulation': 3}}, 'optimizer.accumulation: 3 does not divide'),
        (
            {'evaluation': {'patience': 1}, 'checkpoints': {'keep_best': 0}},
            'evaluation.patience: leaves the best model, and checkpoints.keep_best: 0',
        ),
    ],
)
def test_bad_settings_are_one_line(path, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        sail_jax.train(settings(path, **changes), tmp_path / 'run', quiet=True)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        ({'margin': 'large'}, ":1: margin: expected a number, got 'large'"),
        ({'margin': True}, ':1: margin: expected a number, got True'),
        ({'chosen': ' yes' * 50}, ':1: chosen, with its prompt: .* tokens; at most 32'),
        ({'rejected': None}, ':1: rejected: missing'),
    ],
)
def test_bad_rows_are_named(path, tmp_path, row, message):
    whole = {'prompt': 'no', 'chosen': ' yes', 'rejected': ' no'} | row
    (tmp_path / 'rows.jsonl').write_text(json.dumps(whole))
    data = settings(path, data={'path': str(tmp_path / 'rows.jsonl')}).data
    with pytest.raises(UserError, match=message):
        dataset.prepare(data, 'comparison', tokens.load(path / 'm'), tmp_path / 'cache')


def test_margins_of_the_data(path, tmp_path, caplog):
    rows = [{'prompt': 'no', 'chosen': ' yes', 'rejected': f' no {i}'} for i in range(2)]
    rows[1]['margin'] = 1.5
    file = tmp_path / 'rows.jsonl'
    file.write_text('\n'.join(map(json.dumps, rows)))
    data = settings(path, data={'path': str(file)}).data
    tokenizer = tokens.load(path / 'm')
    prepared = dataset.prepare(data, 'comparison', tokenizer, tmp_path / 'cache')
    assert [prepared[i].row.margin for i in range(2)] == [0, 1.5]
    assert 'not read' not in caplog.text
    dataset.prepare(data, 'preference', tokenizer, tmp_path / 'cache')
    assert 'not read: margin' in caplog.text
