"""What `real_language` says of its runs: numbers, a table, pictures, samples."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sail_jax.language import export
from sail_jax.language.config import Sampling
from sail_jax.language.data import rows, sources, tokens
from sail_jax.language.data.rows import DataRow, Prompt
from sail_jax.language.reward import reward_model, rewards
from sail_jax.language.samples import cell, prompt_text
from sail_jax.plots import Picture
from sail_jax.training import metrics

BATCH = 32
TIMEOUT_S = 600.0
CURVES = {
    'prompts': 'prompts',
    'proxy': 'eval/reward/proxy',
    'gold': 'eval/reward/gold',
    'kl': 'eval/response_kl_policy_to_start',
    'pair_margin': 'eval/pair_margin',
    'pair_accuracy': 'eval/pair_accuracy',
}
"""Of a run's evaluations, and what `metrics.jsonl` calls them."""
COLUMNS = (
    'proxy',
    'gold',
    'gain',
    'win_rate_chosen',
    'win_rate_start',
    'kl',
    'words',
    'distinct_2',
    'declines',
    'pair_accuracy',
)
DECLINES = re.compile(
    r'\b(unable|not able|not allowed|not equipped|cannot|can.t|sorry)\b', re.IGNORECASE
)
"""What harmless models are rewarded for, whatever they are asked."""
SAMPLES = 3

Rater = Callable[[Sequence[Prompt], Sequence[str]], list[float]]


def held_out(runs: Path) -> list[DataRow]:
    """The rows that nothing learnt from."""
    file = runs / 'data' / 'held_out.jsonl'
    return [rows.trl(located.load()) for located in sources.read(file)]


def respond(model: Path, prompts: Sequence[Prompt], new_tokens: int, seed: int = 0) -> list[str]:
    """A response to each prompt, sampled as the study's runs sample."""
    decoder, tokenizer, _ = export.load(model)
    texts = []
    for i in range(0, len(prompts), BATCH):
        drawn = export.generate(
            decoder,
            tokenizer,
            prompts[i : i + BATCH],
            Sampling(max_tokens=new_tokens),
            seed=seed + i,
        )
        texts += [text for (text,) in drawn]
    return texts


def rater(path: Path, max_tokens: int) -> Rater:
    """A reward model's scores, of prompt and response of so many tokens together."""
    tokenizer = tokens.load(path)
    function = reward_model.from_model(
        reward_model.load(path),
        tokenizer,
        max_tokens,
        pad_id=reward_model.padding(path, tokenizer),
    )

    def rate(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        groups = [[response] for response in responses]
        scores_Nx1 = rewards.score(function, prompts, groups, batch_size=BATCH, timeout_s=TIMEOUT_S)
        return scores_Nx1[:, 0].tolist()

    return rate


def distinct(texts: Sequence[str], n: int) -> float:
    """The share of n-grams of words, over all texts, that are different ones."""
    grams = [
        tuple(words[i : i + n])
        for words in (text.split() for text in texts)
        for i in range(len(words) - n + 1)
    ]
    return len(set(grams)) / max(len(grams), 1)


def declines(texts: Sequence[str]) -> float:
    """The share of responses that decline or apologise."""
    return float(np.mean([bool(DECLINES.search(text)) for text in texts]))


def wins(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The share in which ours is better; ties count half."""
    a, b = np.asarray(ours), np.asarray(theirs)
    return float(((a > b) + 0.5 * (a == b)).mean())


def mean(scores: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Of the prompts, and its standard error."""
    return (
        round(float(np.mean(scores)), 3),
        round(float(np.std(scores, ddof=1) / len(scores) ** 0.5), 3),
    )


def over(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """By how much ours is better in the mean, prompt by prompt, and the standard error of it."""
    return mean(np.asarray(ours) - np.asarray(theirs))


def row(
    ours: Mapping[str, Any], start: Mapping[str, Any], chosen: Mapping[str, Any]
) -> dict[str, Any]:
    """What the rewards say of responses, by themselves and against the start's and the data's.

    Args:
      ours, start, chosen: `texts`, and the scores of each reward by its name.
    """
    texts = ours['texts']
    proxy, _ = mean(ours['proxy'])
    gold, gold_se = mean(ours['gold'])
    gain, gain_se = over(ours['gold'], start['gold'])
    return {
        'proxy': proxy,
        'gold': gold,
        'gold_se': gold_se,
        'gain': gain,
        'gain_se': gain_se,
        'win_rate_chosen': round(wins(ours['gold'], chosen['gold']), 3),
        'win_rate_start': round(wins(ours['gold'], start['gold']), 3),
        'words': round(float(np.mean([len(text.split()) for text in texts])), 1),
        'distinct_2': round(distinct(texts, 2), 3),
        'declines': round(declines(texts), 3),
        'samples': texts[:SAMPLES],
    }


def curves(run_dir: Path) -> dict[str, list[float]]:
    """A run's evaluations."""
    evaluations = [
        line for line in metrics.read_rows(run_dir / 'metrics.jsonl') if 'eval/reward' in line
    ]
    return {
        name: [round(float(line[key]), 4) for line in evaluations] for name, key in CURVES.items()
    }


def reward_row(run_dir: Path) -> dict[str, float]:
    """The last evaluation of a reward model."""
    last = metrics.read_rows(run_dir / 'metrics.jsonl')[-1]
    return {
        key.removeprefix('eval/'): round(float(value), 3)
        for key, value in last.items()
        if key.startswith('eval/')
    }


def table(results: Mapping[str, Any]) -> str:
    """Markdown: means over seeds, with the lowest and the highest."""
    lines = [
        "| responses of | proxy | gold | over the start's | gold prefers them to the chosen "
        "| to the start's "
        '| KL from the start, nats a response | words | distinct-2 | decline or apologise '
        '| accuracy on held-out pairs |',
        '|---|---|---|---|---|---|---|---|---|---|---|',
    ]
    for name in ('chosen', 'rejected', 'start'):
        lines.append(_line(name, [results[name]]))
    for method, seeds in results['methods'].items():
        ends = [
            one | {key: values[-1] for key, values in one['curves'].items() if key not in one}
            for one in seeds.values()
        ]
        lines.append(_line(method, ends))
    return '\n'.join(lines)


def _line(name: str, ends: Sequence[Mapping[str, Any]]) -> str:
    return f'| {name} | {" | ".join(_cell(ends, key) for key in COLUMNS)} |'


def _cell(ends: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [end[key] for end in ends if key in end]
    if not values:
        return ''
    mean = f'{np.mean(values):.2f}'
    return mean if len(values) == 1 else f'{mean} ({min(values):.2f} to {max(values):.2f})'


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Gold against KL and proxy against KL, over each method's evaluations; means over seeds."""
    picture = Picture(figsize=(11, 4.5), layout='constrained')
    axes = picture.subplots(1, 2)
    for method, seeds in results['methods'].items():
        of = [one['curves'] for one in seeds.values()]
        for axis, name in zip(axes, ('proxy', 'gold'), strict=True):
            kl, reward = (np.mean([curve[key] for curve in of], 0) for key in ('kl', name))
            axis.plot(kl, reward, marker='o', markersize=4, label=method)
            axis.set_xlabel('KL(policy || start), nats a response')
            axis.set_ylabel(f'{name} reward of held-out prompts')
    axes[0].legend(fontsize='small')
    picture.write(path)


def samples(results: Mapping[str, Any], prompts: Sequence[Prompt]) -> str:
    """Markdown: three responses of each method, side by side; of the first seed."""
    of = {'start': results['start']} | {
        method: next(iter(seeds.values())) for method, seeds in results['methods'].items()
    }
    lines = []
    for i, prompt in enumerate(prompts[:SAMPLES]):
        lines += [f'| prompt | {cell(prompt_text(prompt))} |', '|---|---|']
        lines += [f'| {name} | {cell(one["samples"][i])} |' for name, one in of.items()]
        lines.append('')
    return '\n'.join(lines)
