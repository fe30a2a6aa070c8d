"""Orders that reach a session while an episode runs."""

from __future__ import annotations

import queue


class OperatorCommands:
    """What other threads ask of a running session; each is carried out within a few milliseconds."""

    def __init__(self) -> None:
        self._operator_commands: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self.session_ending = False

    def stop(self, reason: str = "asked for") -> None:
        """Stop the arm, latched."""
        self._operator_commands.put(("stop", reason))

    def end_session(self, reason: str = "asked for") -> None:
        """Stop the arm, latched, and begin no further episode."""
        self.session_ending = True
        self.stop(reason)

    def rearm(self) -> None:
        """End a stop."""
        self._operator_commands.put(("rearm", ""))

    def end_episode(self) -> None:
        """End the episode; the arm is held."""
        self._operator_commands.put(("end", ""))

    def change_instruction(self, instruction: str) -> None:
        """Go on under another instruction; what was decided under the old one is dropped."""
        self._operator_commands.put(("instruction", instruction))

    def take(self) -> list[tuple[str, str]]:
        """Return what was asked since the last call."""
        taken = []
        while not self._operator_commands.empty():
            taken.append(self._operator_commands.get())
        return taken
