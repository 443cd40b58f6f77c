"""Online DPO here and in TRL (Hugging Face generate), side by side.

Both train the same checkpoint of random weights on the same prompts, on all cores, each in a
process of its own that works while the other waits: a few updates each, in turn. Hardly a response
comes to an end before its limit, so both draw, score and learn from the same number of tokens. The
first updates, which compile, are not timed. Compared with TRL

* `same`: batch, lengths, float32, temperature 1, no recomputation of activations; Adam, learning
  rate, clip, beta and reward are the same in all;
* `defaults`: what TRL takes if nothing is said: bfloat16, activations recomputed, which turns the
  KV cache of its generation off, temperature 0.9.

    python -m benchmarks.language_peer --out benchmarks/results/language_peer_cpu.json

With `--model` both train an adapter of a real instruct model on conversations, at the same settings
alone, and responses end when they end; `products` is what our update's matrix products take.

    python -m benchmarks.real_model models/SmolLM2-135M-Instruct
    python -m benchmarks.language_peer --model models/SmolLM2-135M-Instruct --batch 16 \\
        --data data/hh/proxy.jsonl --prompt-tokens 128 \\
        --out benchmarks/results/language_peer_real_cpu.json
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine, make_parser, write
from benchmarks.rounds import Turn, peak_mib, row, serve, stopwatch, take_turns

WARM_UP = 2
"""Updates, which compile."""
RESERVED = ('<|pad|>', '<|begin|>')
PEERS = ('same', 'defaults')
ADAPTER = {'train': 'lora', 'lora': {'rank': 16, 'alpha': 32, 'targets': 'all-linear'}}
"""What is trained of a real model."""


def make_checkpoint(path: Path, size: str) -> None:
    """Random weights, and a tokeniser of words; its end of sequence is as improbable as any."""
    import jax
    from flax import nnx
    from tokenizers import Tokenizer, models, pre_tokenizers

    from benchmarks.language_models import SMALL
    from sail_jax.language.model import weights
    from sail_jax.language.model.transformer import Decoder

    a = SMALL[size]
    weights.save(jax.jit(lambda: Decoder(a, rngs=nnx.Rngs(0)))(), path)
    words = [*RESERVED, *(f'w{i}' for i in range(a.vocab_size - len(RESERVED) - 1)), '<|end|>']
    ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=RESERVED[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path / 'tokenizer.json'))
    special = {'eos_token': '<|end|>', 'pad_token': RESERVED[0]}
    (path / 'tokenizer_config.json').write_text(json.dumps(special))


def make_prompts(path: Path, words: int, rows: int = 1024) -> None:
    """Prompts of half to all of `words` words."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(rows):
        length = rng.integers(words // 2, words + 1)
        lines.append({'prompt': ' '.join(f'w{i}' for i in rng.integers(0, 8000, length))})
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def fitting_prompts(path: Path, data: Path, model: Path, most: int) -> None:
    """The prompts of a file of conversations that have no more tokens than that."""
    from sail_jax.language.data import tokens
    from sail_jax.language.data.rows import trl as read

    tokenizer = tokens.load(model)
    raws = [json.loads(line) for line in data.read_text().splitlines()]
    fit = [raw for raw in raws if len(tokenizer.prompt_ids(read(raw).prompt)) <= most]
    path.write_text(''.join(json.dumps({'prompt': raw['prompt']}) + '\n' for raw in fit))


def reward(prompts: list, responses: list, **_: Any) -> list[float]:
    """Something to prefer, at no cost: of text, or of TRL's messages."""
    texts = [one if isinstance(one, str) else one[-1]['content'] for one in responses]
    return [float(text.count('7') + text.count('e')) for text in texts]


def ours(settings: dict[str, Any]) -> None:
    """The worker for this project: whole updates as the trainer runs them."""
    import jax

    from sail_jax.language import task
    from sail_jax.language.config import LanguageRun
    from sail_jax.sweep import Members
    from sail_jax.training import setup

    base = peak_mib()
    run = LanguageRun.model_validate(
        {
            'workload': 'language',
            'total_prompts': 10**6,
            'prompts_per_update': settings['batch'],
            'model': {'path': settings['model'], **settings['trained']},
            'data': {
                'path': settings['prompts'],
                'max_prompt_tokens': settings['prompt_tokens'],
                'max_response_tokens': settings['new_tokens'],
            },
            'sampling': {'max_tokens': settings['new_tokens']},
            'objective': {'beta': 0.1, 'response_grad': 0.0},  # Online DPO,
            'divergence': {'coefficient': 0.0},  # with no further penalty.
            'optimizer': {'learning_rate': 5e-7, 'max_grad_norm': 1.0},
            'evaluation': {'prompts': 2},
        }
    )
    job = task.make(run, reward=reward)
    state = setup.initial_state(Members.of(run), job, job.start(0), job.shared())

    def call(updates: int = settings['updates']) -> dict[str, Any]:
        nonlocal state
        seconds, length = [], []
        for _ in range(updates):
            taken = stopwatch()
            state, metrics = job.dispatch(state)
            length.append(float(jax.device_get(metrics['response_length'])[0]))
            jax.block_until_ready(state)
            seconds.append(taken())
        return {'update_s': seconds, 'tokens': float(np.mean(length)), 'base_mib': base}

    call(WARM_UP)
    serve(call)


def adapter(trained: dict[str, Any]) -> Any:
    """PEFT's configuration of our settings; None trains all parameters."""
    if not trained:
        return None
    import peft

    lora = trained['lora']
    return peft.LoraConfig(
        r=lora['rank'],
        lora_alpha=lora['alpha'],
        target_modules=lora['targets'],
        task_type='CAUSAL_LM',
    )


# lines: the whole worker, whose classes are of libraries that only it imports.
def trl(settings: dict[str, Any]) -> None:
    """The worker for TRL. It may have an environment of its own, without this project."""
    os.environ['TRL_EXPERIMENTAL_SILENCE'] = '1'
    import datasets
    import torch
    import transformers
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    torch.set_num_threads(os.cpu_count())
    base = peak_mib()
    same = {
        'gradient_checkpointing': False,
        'bf16': False,
        'temperature': 1.0,
        'per_device_train_batch_size': settings['batch'],
    }
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(settings['model'])
    end, lengths = tokenizer.eos_token_id, []

    def counted(prompts: list, completions: list, completion_ids: list, **_: Any) -> list[float]:
        # TRL pads what it hands over to the longest of the batch.
        kept = [ids.index(end) + 1 if end in ids else len(ids) for ids in completion_ids]
        lengths.append(np.mean(kept))
        return reward(prompts, completions)

    class Turns(transformers.TrainerCallback):
        """Times whole steps, from the end of one to the end of the next; waits when it is due."""

        def __init__(self):
            self.turn, self.warm = Turn(), False

        def take(self, updates: int) -> None:
            self.seconds, self.left = [], updates
            lengths.clear()
            self.taken = stopwatch()

        def on_train_begin(self, args, state, control, **_):
            self.take(WARM_UP)

        def on_step_end(self, args, state, control, **_):
            self.seconds.append(self.taken())
            self.taken, self.left = stopwatch(), self.left - 1
            if self.left:
                return
            if self.warm:
                tokens = float(np.mean(lengths))
                self.turn.done(update_s=self.seconds, tokens=tokens, base_mib=base)
            self.warm = True
            self.turn.wait()
            self.take(settings['updates'])

    with tempfile.TemporaryDirectory() as out:
        args = OnlineDPOConfig(
            output_dir=out,
            max_steps=100_000,
            max_new_tokens=settings['new_tokens'],
            use_cpu=True,
            report_to='none',
            save_strategy='no',
            logging_strategy='no',
            disable_tqdm=True,
            lr_scheduler_type='constant',
            **({} if settings['kind'] == 'defaults' else same),
        )
        model = transformers.AutoModelForCausalLM.from_pretrained(
            settings['model'], dtype=torch.float32
        )
        trainer = OnlineDPOTrainer(
            model=model,
            reward_funcs=counted,
            args=args,
            train_dataset=datasets.Dataset.from_json(settings['prompts']),
            processing_class=tokenizer,
            callbacks=[Turns()],
            peft_config=adapter(settings['trained']),
        )
        trainer.train()


def compare(
    settings: dict[str, Any], rounds: int, updates: int, trl_python: str, logs: Path
) -> dict[str, Any]:
    """Medians over rounds in which all have their turn; ratios within a round."""
    pythons = {'sail_jax': sys.executable} | dict.fromkeys(settings['peers'], trl_python)
    root, commands = Path(__file__).parents[1], {}
    for kind, python in pythons.items():
        more = {'kind': kind, 'updates': updates if kind == 'sail_jax' else max(1, updates // 4)}
        command = [
            python,
            '-m',
            'benchmarks.language_peer',
            '--worker',
            json.dumps(settings | more),
        ]
        commands[kind] = ['env', f'PYTHONPATH={root}', *command]
    outcome = take_turns(commands, rounds, logs)
    answers = {kind: result['calls'] for kind, result in outcome.items()}
    speed = {
        kind: np.asarray([settings['batch'] / np.median(call['update_s']) for call in calls])
        for kind, calls in answers.items()
    }
    return {
        kind: {
            'pairs_per_s': round(float(np.median(speed[kind])), 3),
            'tokens_per_s': round(float(np.median(speed[kind]) * 2 * calls[-1]['tokens']), 1),
            'tokens_per_response': calls[-1]['tokens'],
            'ours_over_this': round(float(np.median(speed['sail_jax'] / speed[kind])), 2),
            'peak_MiB': calls[-1]['peak_mib'],
            'peak_above_imports_MiB': calls[-1]['peak_mib'] - calls[-1]['base_mib'],
            'rounds_pairs_per_s': np.round(speed[kind], 3).tolist(),
        }
        for kind, calls in answers.items()
    }


def rows(sizes: dict[str, Any], real: bool = False) -> list[dict[str, Any]]:
    """Online DPO here over TRL's; the goal of a real model is another."""
    goal = 1.5 if real else 5.0
    return [
        row(
            f'{size}: sail_jax / TRL, {kind}',
            'pairs/s',
            outcome['sail_jax']['pairs_per_s'],
            outcome[kind]['pairs_per_s'],
            outcome[kind]['ours_over_this'],
            goal if kind == 'same' else None,
        )
        for size, outcome in sizes.items()
        for kind in PEERS
        if kind in outcome
    ]


def peer_versions(python: str) -> dict[str, str]:
    """Of what TRL's worker has."""
    names = ('trl', 'torch', 'transformers')
    code = f'import {", ".join(names)}; print({", ".join(f"{name}.__version__" for name in names)})'
    done = subprocess.run([python, '-c', code], check=True, capture_output=True, text=True)
    return dict(zip(names, done.stdout.split(), strict=True))


def say(size: str, compared: dict[str, Any]) -> None:
    for kind, numbers in compared.items():
        print(
            f'{size:4} {kind:9} {numbers["pairs_per_s"]:8.2f} pairs/s '
            f'{numbers["tokens_per_s"]:8.0f} tokens/s, {numbers["peak_MiB"]:5} MiB; '
            f'ours over this: {numbers["ours_over_this"]}',
            file=sys.stderr,
        )


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('--sizes', nargs='+', default=['4M', '12M', '32M'])
    parser.add_argument('--model', type=Path, help='of an instruct model, instead of the sizes')
    parser.add_argument('--data', type=Path, help='a .jsonl file of conversations, for --model')
    parser.add_argument('--batch', type=int, default=8, help="prompts an update (TRL's default)")
    parser.add_argument('--prompt-tokens', type=int, default=64, help='the longest')
    parser.add_argument('--new-tokens', type=int, default=64, help="TRL's default")
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--updates', type=int, default=8, help="in a round; TRL's a quarter")
    parser.add_argument('--quick', action='store_true', help='the smallest size, 2 rounds')
    parser.add_argument('--trl-python', default=sys.executable, help='has trl and torch')
    parser.add_argument('--worker', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        settings = json.loads(options.worker)
        (ours if settings['kind'] == 'sail_jax' else trl)(settings)
        return
    if options.quick:
        options.sizes, options.rounds = options.sizes[:1], 2

    if (options.model is None) != (options.data is None):
        sys.exit('--model and --data: give both, or none')
    results: dict[str, Any] = {
        'machine': machine('benchmarks.language_peer'),
        'peer': peer_versions(options.trl_python),
        'prompts_per_update': options.batch,
        'new_tokens': options.new_tokens,
        'longest_prompt': options.prompt_tokens,
        'sizes': {},
    }
    with tempfile.TemporaryDirectory() as directory:
        for size in [options.model.name] if options.model else options.sizes:
            results['sizes'][size] = of_size(size, options, Path(directory))
            results['rows'] = rows(results['sizes'], real=options.model is not None)
            if options.out:
                write(results, options.out)
    if not options.out:
        write(results, None)


def of_size(size: str, options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Both on one checkpoint: a real one, or one of random weights."""
    from benchmarks.language_models import SMALL, parameter_count
    from sail_jax.language.model import architecture as architectures

    prompts, model = directory / 'prompts.jsonl', options.model
    if model is None:
        model = directory / size
        make_checkpoint(model, size)
        make_prompts(prompts, options.prompt_tokens)
    else:
        fitting_prompts(prompts, options.data, model, options.prompt_tokens)
    settings = {
        'model': str(model),
        'prompts': str(prompts),
        'batch': options.batch,
        'prompt_tokens': options.prompt_tokens,
        'new_tokens': options.new_tokens,
        'trained': ADAPTER if options.model else {},
        'peers': PEERS[:1] if options.model else PEERS,
    }
    logs = directory / f'{size}-logs'
    compared = compare(settings, options.rounds, options.updates, options.trl_python, logs)
    say(size, compared)
    if options.model is None:
        return {'parameters': parameter_count(SMALL[size])} | compared
    a = architectures.read(model)
    numbers = products(a, options, options.batch / compared['sail_jax']['pairs_per_s'])
    print(f'{size} matrix products: {json.dumps(numbers)}', file=sys.stderr)
    return {'parameters': parameter_count(a), 'products': numbers} | compared


def products(a: Any, options: argparse.Namespace, update_s: float) -> dict[str, float]:
    """What the matrix products of our update take by themselves, and their share of it."""
    from benchmarks import matrix_products
    from sail_jax.language.model.sampler import bucket

    places = bucket(options.prompt_tokens)
    lengths = matrix_products.Lengths(options.batch, places, options.new_tokens)
    draw_s = matrix_products.take(matrix_products.drawing(a, lengths))
    learn_s = matrix_products.take(matrix_products.learning(a, lengths, full=False))
    return {
        'draw_s': round(draw_s, 3),
        'learn_s': round(learn_s, 3),
        'update_s': round(update_s, 3),
        'share_of_update': round((draw_s + learn_s) / update_s, 3),
    }


if __name__ == '__main__':
    main()
