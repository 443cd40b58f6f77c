"""TRL's online DPO, an update for each line on standard input; a child of `online_dpo_peers`.

Runs in an environment of its own that has `trl` and `torch`, and imports nothing of this project.
Writes one JSON object a line: seconds and tokens drawn of each update, peak memory at the end.
"""

import argparse
import json
import os
import resource
import sys
import time
import warnings

os.environ |= {'TRL_EXPERIMENTAL_SILENCE': '1', 'HF_HUB_OFFLINE': '1'}
warnings.filterwarnings('ignore')

import datasets  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback  # noqa: E402
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer  # noqa: E402

# What a user sets for this task whatever else is left alone.
TASK = {
    'lr_scheduler_type': 'constant',
    'report_to': 'none',
    'save_strategy': 'no',
    'disable_tqdm': True,
    'use_cpu': True,
}
# What makes it as fast as it goes here. Checkpointing also turns off the cache of its sampling.
TUNED = {
    'gradient_checkpointing': False,
    'bf16': False,
    'temperature': 1.0,
    'logging_steps': 10**6,
}


class OnRequest(TrainerCallback):
    """Waits for a line before each update, and reports it."""

    def __init__(self, counted: list[int]):
        self.counted, self.answer = counted, sys.stdout

    def on_step_begin(self, *args, **kwargs):
        sys.stdin.readline()
        self.counted[0] = 0
        self.began = time.perf_counter(), time.process_time()

    def on_step_end(self, *args, **kwargs):
        wall, cpu = self.began
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        say(self.answer, seconds=seconds, cpu_seconds=cpu_seconds, tokens=self.counted[0])


def say(stream, **values) -> None:
    print(json.dumps(values), file=stream, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--model', required=True)
    parser.add_argument('--data', required=True)
    parser.add_argument('--prompts', type=int, required=True)
    parser.add_argument('--response-tokens', type=int, required=True)
    parser.add_argument('--max-length', type=int, required=True)
    parser.add_argument('--learning-rate', type=float, required=True)
    parser.add_argument('--threads', type=int, required=True)
    parser.add_argument('--updates', type=int, required=True)
    parser.add_argument('--dir', required=True)
    parser.add_argument('--defaults', action='store_true')
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with open(options.data) as file:
        prompts = [json.loads(line)['prompt'] for line in file]
    counted = [0]

    def reward(completions, completion_ids, **_):
        counted[0] += sum(map(len, completion_ids))
        return [sum(word[-1] in '02468' for word in text.split()) for text in completions]

    # The automatic choice goes by the architecture's name, not by the file.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    # What is answered must not mix with what libraries print.
    answers, sys.stdout = sys.stdout, sys.stderr
    callback = OnRequest(counted)
    callback.answer = answers
    trainer = OnlineDPOTrainer(
        model=model,
        reward_funcs=reward,
        args=OnlineDPOConfig(
            output_dir=options.dir,
            per_device_train_batch_size=options.prompts,
            max_steps=options.updates,
            max_new_tokens=options.response_tokens,
            max_length=options.max_length,
            learning_rate=options.learning_rate,
            **TASK,
            **({} if options.defaults else TUNED),
        ),
        train_dataset=datasets.Dataset.from_dict({'prompt': prompts}),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    versions = {module.__name__: module.__version__ for module in (trl, transformers, torch)}
    say(answers, versions=versions)
    trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    say(answers, peak_bytes=peak)


if __name__ == '__main__':
    main()
