"""What the numbers of a run mean, and which are good: the table of `sail-jax metrics`."""

from typing import NamedTuple


class Meaning(NamedTuple):
    """Of numbers that are read alike."""

    metrics: tuple[str, ...]
    """Keys of `metrics.jsonl`."""
    good: str
    """Which values are, in a few words."""
    text: str
    """What they say."""


MEANINGS = (
    Meaning(
        ('eval/return', 'eval/reward', 'eval/win_rate'),
        'high',
        'What you are after. A win rate of 0.5 is no better than the start.',
    ),
    Meaning(
        ('eval/reward_gain',),
        'above 0',
        "Reward less that of the start policy's responses to the same prompts. Prompts differ more "
        'than policies do, so it is surer than the difference of the two means, and than a win '
        'rate.',
    ),
    Meaning(
        ('eval/success_rate', 'eval/deterministic_success_rate'),
        'high',
        'Of a control run: the share of episodes that evaluation.success calls one; of sampled '
        'actions, and of the mode.',
    ),
    Meaning(
        ('eval/chosen_win_rate',),
        'high',
        "Of a language run, against the data's chosen responses: 0.5 is as good as those. Ties, "
        'eval/chosen_ties, count one half; without them it is lower by half their share.',
    ),
    Meaning(
        ('eval/label_accuracy', 'eval/pair_accuracy', 'train/label_accuracy'),
        'above 0.5',
        'The share of compared pairs whose margin has the sign of their label: whether the policy, '
        'by its own probabilities, tells better from worse. In training 0.5 just after a refresh '
        'of the reference.',
    ),
    Meaning(
        ('eval/margin', 'eval/pair_margin', 'train/margin'),
        'above 0',
        'By how much: the difference of the implicit rewards beta log(pi / pi_ref) of a pair, in '
        "the label's direction. In training it falls to 0 at every refresh.",
    ),
    Meaning(
        ('train/preference',),
        'above -0.693',
        'J, the mean log-likelihood of the labels; -0.693 (-log 2) is a margin of 0. A high J does '
        'not mean a high return.',
    ),
    Meaning(
        ('train/kl',),
        'small',
        'What divergence.coefficient holds down, nats to the current reference.',
    ),
    Meaning(
        ('eval/kl_policy_to_start', 'eval/response_kl_policy_to_start'),
        'as small as the gain allows',
        'KL(policy || start): how far the policy has moved from its start, over what the policy '
        'does; nats an env step or token, or a response. It grows where the policy does what the '
        'start would not.',
    ),
    Meaning(
        ('eval/kl_start_to_policy', 'eval/response_kl_start_to_policy'),
        'as small as the gain allows',
        'KL(start || policy): the same over what the start does. It grows where the policy has '
        'given up what the start does.',
    ),
    Meaning(
        ('eval/loss', 'eval/perplexity'),
        'low',
        'Of a supervised stage: on held-out responses, nats a token, and their exponential. Of a '
        'reward model on held-out pairs, nats a pair, where 0.693 knows nothing.',
    ),
    Meaning(
        ('eval/calibration_error', 'eval/confidence'),
        'near 0; the accuracy',
        'Of a reward model: how far its probabilities are from how often they are right, and the '
        'mean probability of what it takes to be better.',
    ),
    Meaning(
        ('eval/mean_reward',),
        'near 0',
        'Of a reward model, over held-out responses. Only differences mean something; members of '
        'an ensemble should have the same mean (loss.centering).',
    ),
    Meaning(
        ('eval/reward_spread', 'train/reward_spread'),
        'small',
        'Standard deviation over an ensemble of rewards. Where it grows during an alignment, the '
        'policy has gone where they have learned nothing.',
    ),
    Meaning(
        ('train/answer_accuracy', 'train/answer_calibration_error'),
        'above 0.5; near 0',
        "Of a reward that is learned from a teacher's answers: the share that it had right before "
        'it learned from them, and how far its probabilities were from that. Questions are chosen '
        'to be hard.',
    ),
    Meaning(
        ('train/reward_correlation',),
        'near 1',
        'Of the learned and the true returns of an update. Nothing is learned from it.',
    ),
    Meaning(
        ('eval/ended',),
        'near 1',
        'The share of responses that came to an end of sequence.',
    ),
    Meaning(
        ('eval/not_finite', 'train/not_finite', 'train/skipped'),
        '0',
        'Episodes, rewards or judgements that are no finite number; gradient steps left out for '
        'that reason.',
    ),
    Meaning(
        ('eval/no_verdict', 'train/no_verdict'),
        '0',
        'Answers of a judge behind an API that name no better response, and count as ties.',
    ),
    Meaning(
        ('train/entropy', 'train/temperature'),
        'steady; low',
        'Of soft actor-critic: nats per step, which go to temperature.target_entropy, and what one '
        'of them is worth in reward.',
    ),
    Meaning(
        ('train/critic_loss', 'train/q'),
        'no growth without end',
        'Of soft actor-critic: the squared error of the critics, and what they take actions of the '
        'policy to be worth. A q far above the discounted returns that there are is an illusion.',
    ),
    Meaning(
        ('train/grad_norm',),
        'steady',
        'Above optimizer.max_grad_norm the gradient is clipped.',
    ),
)
