"""Batched policies for fake worlds, importable by worker processes: they act like FakeActor; some fail."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from saccade.errors import InputError

from .fake_world import FakeActor


class FakeBatchedPolicy:
    """A FakeActor for each slot; a decision is two of its actions, which depend on the second number only."""

    def __init__(self, max_batch_size: int, log: Path | None) -> None:
        self.max_batch_size, self.log, self.actors = max_batch_size, log, {}

    def begin(self, slot, instruction, seed):
        self.actors[slot] = FakeActor()
        self.actors[slot].reset(instruction, seed)

    def decide(self, observations):
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{len(observations)}\n")
        return {slot: [self.actors[slot].act(each) for _ in range(2)] for slot, each in observations.items()}, 0.001

    def overlay(self, slot):
        return self.actors[slot].overlay()


@dataclass(frozen=True)
class MakePolicy:
    """Builds the policy; with a mishap, its third decision fails until the marker file exists."""

    max_batch_size: int = 4
    log: Path | None = None
    mishap: str | None = None
    marker: Path | None = None

    def __call__(self) -> FakeBatchedPolicy:
        policy = FakeBatchedPolicy(self.max_batch_size, self.log)
        if self.mishap is not None:
            policy.decide = _failing(policy.decide, self.mishap, self.marker)
        return policy


def _failing(decide, mishap, marker):
    calls = []

    def fail_or_decide(observations):
        calls.append(None)
        if len(calls) == 3 and not marker.exists():
            marker.touch()
            if mishap == "die":
                os._exit(7)
            if mishap == "hang":
                time.sleep(600)
            raise RuntimeError("out of memory")
        return decide(observations)

    return fail_or_decide


def refuse_policy():
    raise InputError("contract", got="wrist", expected="front", fix="Rename the camera.")


def break_policy():
    raise RuntimeError("no weights here")
