"""Commands of an operator to a running session."""

from __future__ import annotations

import queue


class OperatorCommands:
    """Commands that other threads give to a running session, which carries out each within a few milliseconds.

    Attributes:
        session_ending: Whether no further episode begins.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self.session_ending = False

    def stop(self, reason: str = "asked for") -> None:
        """Stop the arm, latched."""
        self._queue.put(("stop", reason))

    def end_session(self, reason: str = "asked for") -> None:
        """Stop the arm, latched, and begin no further episode."""
        self.session_ending = True
        self.stop(reason)

    def rearm(self) -> None:
        """End a stop."""
        self._queue.put(("rearm", ""))

    def end_episode(self) -> None:
        """End the episode; the arm is held."""
        self._queue.put(("end", ""))

    def change_instruction(self, instruction: str) -> None:
        """Continue under another instruction; steps decided under the old one are dropped."""
        self._queue.put(("instruction", instruction))

    def take_all(self) -> list[tuple[str, str]]:
        """Return the commands since the last call, each with its text: "stop", "rearm", "end" or "instruction"."""
        taken = []
        while not self._queue.empty():
            taken.append(self._queue.get())
        return taken
