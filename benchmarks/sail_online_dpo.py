"""Our online DPO, an update for each line on standard input; a child of `online_dpo_peers`.

Writes one JSON object a line: seconds and tokens drawn of each update, peak memory at the end.
"""

import argparse
import json
import os
import resource
import sys
import time

import jax

from sail_jax import trainer
from sail_jax.language import task
from sail_jax.language.config import LanguageRun

RUN = {
    'workload': 'language',
    'objective': {'beta': 0.1, 'response_grad': 0.0},
    'divergence': {'coefficient': 0.0},
    'evaluation': {'prompts': 2},
    'logging': {'tensorboard': False},
}


def reward(prompts: list, responses: list[str]) -> list[float]:
    """How many words are even, as the other child counts them."""
    return [float(sum(word[-1] in '02468' for word in text.split())) for text in responses]


def say(**values) -> None:
    print(json.dumps(values), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--model', required=True)
    parser.add_argument('--data', required=True)
    parser.add_argument('--prompts', type=int, required=True)
    parser.add_argument('--response-tokens', type=int, required=True)
    parser.add_argument('--max-length', type=int, required=True)
    parser.add_argument('--learning-rate', type=float, required=True)
    parser.add_argument('--updates', type=int, required=True)
    parser.add_argument('--dir', required=True)
    options = parser.parse_args()
    os.environ['XDG_CACHE_HOME'] = options.dir
    limits = {
        'max_prompt_tokens': options.max_length - options.response_tokens,
        'max_response_tokens': options.response_tokens,
    }
    run = LanguageRun.model_validate(
        RUN
        | {
            'model': {'path': options.model},
            'data': {'path': options.data, **limits},
            'sampling': {'max_tokens': options.response_tokens},
            'prompts_per_update': options.prompts,
            'total_prompts': options.prompts * options.updates,
            'optimizer': {'learning_rate': options.learning_rate},
        }
    )
    made = task.make(run, reward=reward)
    state = trainer.initial_state(run, made, made.start(run.seed))
    say(versions=trainer.versions())
    for _ in range(options.updates):
        sys.stdin.readline()
        wall, cpu = time.perf_counter(), time.process_time()
        state, metrics = made.dispatch(state)
        jax.block_until_ready(state)
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        tokens = float(metrics['response_length'][0]) * options.prompts * run.group_size
        say(seconds=seconds, cpu_seconds=cpu_seconds, tokens=round(tokens))
    say(peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == '__main__':
    main()
