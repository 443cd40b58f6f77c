"""What a reward and a judge are: functions from Python that say which responses are good."""

from typing import Protocol

from numpy.typing import ArrayLike

TrlPrompt = str | list[dict[str, str]]
"""A prompt as TRL's reward functions get it: text, or a conversation of
`{'role': 'user', 'content': '...'}` that awaits the assistant's turn; before it, where a row has
tools of its own, these as JSON in a turn of the role `tools`. A copy, which the function may
change."""


class Reward(Protocol):
    """Scores responses; called on the host, with at most `reward.batch_size` of them at a time.

    def brevity(prompts, responses):
        return [-len(response) for response in responses]

    sail_jax.train('my.yaml', reward=brevity)
    """

    def __call__(self, prompts: list[TrlPrompt], responses: list[str], /) -> ArrayLike:
        """Rewards of N responses.

        Args:
          prompts: [N]; a prompt stands before each of its responses, as in TRL's reward functions.
          responses: [N]; text, also to a conversation, where TRL has a message of the assistant's.

        Returns:
          [N] real numbers, as a list or an array of any library; more is better. NaN or None is no
          answer: the update is skipped and counted. What it raises ends the run, in one line. Of an
          `async def` all batches of an update are awaited together, in one event loop.
        """
        ...


class Judge(Protocol):
    """Compares two responses; called on the host, with at most `reward.batch_size` pairs at a time.

    def shorter(prompts, pairs):
        return [float(len(first) < len(second)) for first, second in pairs]

    sail_jax.train('my.yaml', judge=shorter)
    """

    def __call__(self, prompts: list[TrlPrompt], pairs: list[tuple[str, str]], /) -> ArrayLike:
        """Preferences in N pairs of responses.

        Args:
          prompts: [N]; a prompt stands before each of its pairs.
          pairs: [N], of text.

        Returns:
          [N] probabilities that the first of the pair is preferred, from 0 to 1; else as of
          `Reward`. (TRL's judges return the number of the better response instead.)
        """
        ...
