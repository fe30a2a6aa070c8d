"""Orders that reach a session while an episode runs."""

from __future__ import annotations

import queue


class Orders:
    """What other threads ask of a running session; each is carried out within a few milliseconds."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self.leaving = False

    def stop(self, reason: str = "asked for") -> None:
        """Stop the arm, latched."""
        self._orders.put(("stop", reason))

    def leave(self, reason: str = "asked for") -> None:
        """Stop the arm, latched, and begin no further episode."""
        self.leaving = True
        self.stop(reason)

    def rearm(self) -> None:
        """End a stop."""
        self._orders.put(("rearm", ""))

    def end_episode(self) -> None:
        """End the episode; the arm is held."""
        self._orders.put(("end", ""))

    def change_instruction(self, instruction: str) -> None:
        """Go on under another instruction; what was decided under the old one is dropped."""
        self._orders.put(("instruction", instruction))

    def take(self) -> list[tuple[str, str]]:
        """Return what was asked since the last call."""
        taken = []
        while not self._orders.empty():
            taken.append(self._orders.get())
        return taken
