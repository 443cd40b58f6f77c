"""A labeller that needs no model: the sentiment of a text by a lexicon.

A lexicon counts words, so a policy that is pushed hard enough writes nothing but praise. It is for
demonstrations and tests.
"""

from textblob.sentiments import PatternAnalyzer

from sail_jax.language.reward.protocols import TrlPrompt

_ANALYZER = PatternAnalyzer()


def positivity(prompts: list[TrlPrompt], responses: list[str]) -> list[float]:
    """A `Reward`: each response's polarity by TextBlob's lexicon, from -1 to 1.

    The mean over the words that the lexicon has, after negation ("not good") and intensifiers
    ("very good"); 0 where it has none.
    """
    return [_ANALYZER.analyze(response).polarity for response in responses]
