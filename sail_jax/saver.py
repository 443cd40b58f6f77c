"""What is done about a checkpoint that cannot be written: it costs no other, and not the run."""

import math
from typing import Any

import jax
import orbax.checkpoint as ocp

from sail_jax import checkpoint
from sail_jax.recorder import Recorder
from sail_jax.update import State


class Saver:
    """Saves a run's states as it goes; failures are said and counted by the recorder."""

    def __init__(self, manager: ocp.CheckpointManager, recorder: Recorder):
        self._manager, self._recorder = manager, recorder
        self._scores = checkpoint.scores(manager)
        self._step = 0

    def save(
        self,
        step: int,
        state: State,
        meta: dict[str, Any],
        score: float = -math.inf,
        wait: bool = False,
    ) -> bool:
        """Starts a save once the one before is done, see `checkpoint.save`.

        Args:
          wait: until it is on the disk.

        Returns:
          False where it is known to have failed.
        """
        self._finish()
        self._step, self._scores[step] = step, score
        try:
            checkpoint.save(self._manager, step, state, meta, score)
        except Exception as error:  # A full disk, say; Orbax raises what it hits.
            self._note(error)
            return False
        return self._finish() if wait else True

    def is_among_best(self, score: float, count: int) -> bool:
        """Whether an evaluation is among the `count` best of those that were saved."""
        better = sum(other >= score for other in self._scores.values())
        return better < count and score > -math.inf

    def _finish(self) -> bool:
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._note(error)
            return False
        return True

    def _note(self, error: Exception) -> None:
        if jax.process_count() > 1:  # The others are in the middle of theirs.
            raise error
        self._scores.pop(self._step)
        self._recorder.note_failed_save(self._step, error)
