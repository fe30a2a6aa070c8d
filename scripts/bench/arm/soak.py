"""Soak test: inject random faults into a long session, and judge the virtual arm's motion.

No particular reaction is expected. The judge requires that no goal and no true joint exceeds the position, speed and
step limits, and that nothing moves while the arm is held or stopped; and, by the flight record, that every target of
the governor is legal.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import InputError, WorldError
from ....sim.json_files import write_json
from ....sim.virtual_arm.faults import Fault
from ....sim.virtual_arm.world import VirtualArm
from .judge import HELD_STATES, RecordTail, unsafe_goals, unsafe_motion, unsafe_targets, unsafe_while_held
from .rig import send_signal
from .swing_policy import IMAGE_SIZE
from .swing_session import SwingSession, SwingSessionSettings

JUDGE_SECONDS = 10.0
KILL_PHASE_FRACTION = 0.12
"""Fraction of the soak, at its end, in which processes are killed too; memory is sampled before."""

WARM_UP_FRACTION = 0.1
SETTLE = 0.3
MAX_SESSION_SECONDS = 25.0
"""Longest life of a session in the kill phase."""


@dataclass
class SoakMetrics:
    """Results of a soak; growth is a fraction of the memory after warm-up, None if a process lived too briefly."""

    minutes: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    unsafe: list[str] = field(default_factory=list)
    judged_seconds: float = 0.0
    moving_seconds: float = 0.0
    held_seconds: float = 0.0
    holds: int = 0
    stops: int = 0
    lives: int = 0
    ended: list[str] = field(default_factory=list)
    session_growth: float | None = None
    control_growth: float | None = None
    session_mib: tuple[float, ...] = ()
    control_mib: tuple[float, ...] = ()
    load: float = 0.0

    @property
    def growth(self) -> float | None:
        """The larger growth of the two."""
        known = [each for each in (self.session_growth, self.control_growth) if each is not None]
        return max(known, default=None)


class Soak:
    """One soak; `run` returns its metrics and writes them to `folder` repeatedly."""

    def __init__(self, folder: Path, minutes: float, seed: int = 0, fault_probability: float = 0.015) -> None:
        if not minutes > 0:
            raise InputError(
                "soak minutes", got=minutes, expected="above 0", fix="Set minutes to 60 for an hour of faults."
            )
        self._folder, self._seconds, self._seed, self._fault_probability = (
            folder,
            60.0 * minutes,
            seed,
            fault_probability,
        )
        self._rng = random.Random(seed)
        self._counts: Counter[str] = Counter()
        self.metrics = SoakMetrics()
        self._session_count = 0
        self._memory: dict[str, list[tuple[float, float]]] = {"session": [], "control": []}

    def run(self) -> SoakMetrics:
        """Inject faults until the time is over."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with VirtualArm.start(image_size=IMAGE_SIZE, seed=self._seed) as world:
            self._started = time.monotonic()
            while self._elapsed() < self._seconds:
                self._run_session(world)
                # The next session must not inherit faults or a limp arm.
                world.clear_faults()
                world.reset()
        self._write_metrics()
        return self.metrics

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _in_kill_phase(self) -> bool:
        return self._elapsed() > (1.0 - KILL_PHASE_FRACTION) * self._seconds

    # One session.

    def _run_session(self, world: VirtualArm) -> None:
        self._session_count += 1
        record = self._folder / f"flight_{os.getpid()}_{self._session_count}.jsonl"
        settings = SwingSessionSettings(
            record=record,
            seed=self._seed + self._session_count,
            fault_probability=self._fault_probability,
            episodes=100_000,
            # Only stops end an episode: the bus must answer when the next one begins.
            seconds=3600.0,
            rearm_wait_seconds=2.5,
            overrun_share=0.2,
            decision_seconds=5.0,
        )
        session = SwingSession.start(world, self._folder, settings)
        control = session.control_process()
        self._tail, self._judged_until = RecordTail(record), time.monotonic()
        self._held_since, self._last_state = None, ""
        self._lines: list[dict[str, Any]] = []
        self._memory = {"session": [], "control": []}
        session_started, kill_phase = time.monotonic(), self._in_kill_phase()
        next_judgement = session_started + JUDGE_SECONDS
        try:
            while session.is_running and session.limits is not None and self._elapsed() < self._seconds:
                if kill_phase != self._in_kill_phase():
                    break
                self._lines += self._tail.read()
                if self._is_moving():
                    self._inject_random_fault(world, session, control)
                self._wait(session, self._rng.uniform(0.5, 3.0))
                if time.monotonic() >= next_judgement:
                    next_judgement = time.monotonic() + JUDGE_SECONDS
                    self._judge(world, session)
                    self._sample_memory(session, control)
                    self._write_metrics()
                if kill_phase and time.monotonic() - session_started > self._rng.uniform(5.0, MAX_SESSION_SECONDS):
                    self._inject_fatal_fault(world, session, control)
                    break
            time.sleep(1.0)
            if session.limits is not None:
                self._judge(world, session)
        finally:
            session.close()
            ended = [content for kind, *content in session.messages if kind in ("failed", "over")]
            self.metrics.ended.append(str(ended[-1][0])[:200] if ended else f"exit code {session.process.exitcode}")
            if not kill_phase:
                self._measure_growth()
            with contextlib.suppress(OSError):
                record.unlink()
            self._write_metrics()

    def _is_moving(self) -> bool:
        """Return whether the arm is not stopped: faults of a stopped arm show nothing."""
        last = next((line for line in reversed(self._lines) if line["call"] == "tick"), None)
        return last is not None and last["state"] not in ("stopped", "idle")

    def _wait(self, session: SwingSession, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while session.is_running and (left := ends - time.monotonic()) > 0:
            session.listen(min(left, 0.2))
            time.sleep(min(max(ends - time.monotonic(), 0.0), 0.1))

    # Injection.

    def _inject_random_fault(self, world: VirtualArm, session: SwingSession, control: int | None) -> None:
        rng = self._rng
        joint = rng.choice(("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"))
        camera = rng.choice(("front", "wrist"))
        short, long = rng.uniform(0.05, 0.5), rng.uniform(0.3, 1.5)
        faults: list[Fault | tuple[str, Callable[[], object]]] = [
            Fault("drop", seconds=long, probability=rng.choice((0.02, 0.2, 1.0))),
            Fault("drop", joint=joint, count=rng.randint(1, 5)),
            Fault("corrupt", seconds=long, probability=rng.choice((0.02, 0.2, 1.0))),
            Fault("truncate", seconds=long, probability=rng.choice((0.02, 0.2, 1.0))),
            Fault("delay", value=rng.choice((0.002, 0.01, 0.03, 0.1)), seconds=long),
            Fault("delay", joint=joint, value=0.2, count=1),
            Fault("silent", joint=joint, seconds=long),
            Fault("silent", seconds=short),
            Fault("stuck", joint=joint, seconds=long),
            Fault("status", joint=joint, value=rng.choice((1, 8)), seconds=short),
            Fault("camera_frozen", camera=camera, seconds=long),
            Fault("camera_dropped", camera=camera, seconds=long),
            Fault("camera_black", camera=camera, seconds=long),
            Fault("camera_delayed", camera=camera, value=rng.uniform(0.05, 0.6), seconds=long),
            ("control process paused", lambda: self._freeze(control, short)),
            ("session process paused", lambda: self._freeze(session.process.pid, 2 * short)),
            ("stop", lambda: session.order("stop", "soak")),
            ("stop and re-arm", lambda: (session.order("stop", "soak"), time.sleep(short), session.order("rearm"))),
            ("instruction", lambda: session.order("change_instruction", "swing")),
        ]
        chosen = rng.choice(faults)
        if isinstance(chosen, Fault):
            self._counts[chosen.kind] += 1
            world.inject_fault(chosen)
            return
        self._counts[chosen[0]] += 1
        with contextlib.suppress(OSError):
            chosen[1]()

    @staticmethod
    def _freeze(process: int | None, seconds: float) -> None:
        if process is None:
            return
        send_signal(process, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            send_signal(process, signal.SIGCONT)

    def _inject_fatal_fault(self, world: VirtualArm, session: SwingSession, control: int | None) -> None:
        ways: dict[str, Callable[[], object]] = {
            "session killed": session.process.kill,
            "session terminated": session.process.terminate,
            "session interrupted": lambda: send_signal(session.process.pid, signal.SIGINT),
            "control process killed": lambda: send_signal(control, signal.SIGKILL) if control else None,
            "control process terminated": lambda: send_signal(control, signal.SIGTERM) if control else None,
            "port gone": lambda: world.inject_fault(Fault("port", seconds=3.0)),
            "no power": lambda: world.inject_fault(Fault("power", seconds=2.0)),
        }
        name = self._rng.choice(sorted(ways))
        self._counts[name] += 1
        ways[name]()
        self._wait(session, 3.0)

    # Judgement.

    def _judge(self, world: VirtualArm, session: SwingSession) -> None:
        """Judge the motion since the last time, except for the last moments: they are judged next time."""
        until = time.monotonic() - SETTLE
        joint_trajectory = world.joint_trajectory(self._judged_until - 2 * SETTLE)
        self._lines += self._tail.read()
        if session.limits is None or len(joint_trajectory.times) == 0:
            return
        tick = 0.02
        found = unsafe_goals(joint_trajectory, session.limits, tick) + unsafe_motion(joint_trajectory, session.limits)
        # The last lines judged before give the state in which this part begins.
        new = [line for line in self._lines if line.get("now", 0.0) > self._judged_until - 2 * SETTLE]
        found += unsafe_targets(new, session.limits, tick)
        for held, ends, target in self._held_spans(until):
            found += unsafe_while_held(joint_trajectory, held, ends, target)
        self.metrics.judged_seconds += max(until - self._judged_until, 0.0)
        self._judged_until = until
        if found:
            self.metrics.unsafe += [f"{self._elapsed():.0f} s: {each}" for each in found]
            path = self._folder / f"unsafe_{len(self.metrics.unsafe)}.npz"
            np.savez_compressed(path, **joint_trajectory._asdict())
            kept = self._lines[-1500:]
            write_json(path.with_suffix(".json"), {"found": found, "lines": kept})
        self._lines = self._lines[-1500:]

    def _held_spans(self, until: float) -> list[tuple[float, float, np.ndarray | None]]:
        """Return begin, end and first target of each hold that was not judged before."""
        spans, since, last, target = [], None, None, None
        for line in self._lines:
            if line["call"] != "tick" or line["now"] > until:
                continue
            held = line["state"] in HELD_STATES
            new = line["now"] > self._judged_until
            if new and last is not None:
                seconds = min(line["now"] - last["now"], 1.0)
                self.metrics.held_seconds += seconds * held
                self.metrics.moving_seconds += seconds * (not held)
                self.metrics.holds += held and last["state"] not in HELD_STATES
                self.metrics.stops += line["state"] == "stopped" and last["state"] != "stopped"
            if held and since is None:
                since = line["now"]
                target = None if line["target"] is None else np.array(line["target"])
            elif not held and since is not None and last is not None:
                spans.append((since, last["now"], target))
                since = None
            last = line
        if since is not None and last is not None:
            spans.append((since, last["now"], target))
        return [span for span in spans if span[1] > self._judged_until]

    def _sample_memory(self, session: SwingSession, control: int | None) -> None:
        for name, process in (("session", session.process.pid), ("control", control)):
            mib = resident_mib(process)
            if mib is not None:
                self._memory[name].append((self._elapsed(), mib))

    def _measure_growth(self) -> None:
        """Compare the memory after warm-up with that at the end, for processes that lived through most of the soak."""
        for name, rows in self._memory.items():
            if not rows or rows[-1][0] - rows[0][0] < 0.5 * self._seconds:
                continue
            values = [mib for _, mib in rows]
            warm, tenth = int(WARM_UP_FRACTION * len(values)), max(len(values) // 10, 3)
            before, after = statistics.median(values[warm : warm + tenth]), statistics.median(values[-tenth:])
            setattr(self.metrics, f"{name}_growth", after / before - 1.0)
            setattr(self.metrics, f"{name}_mib", (round(before, 2), round(after, 2)))

    def _write_metrics(self) -> None:
        self.metrics.minutes = self._elapsed() / 60.0
        self.metrics.faults = dict(self._counts)
        self.metrics.lives = self._session_count
        self.metrics.load = os.getloadavg()[2]
        write_json(self._folder / "soak.json", {**asdict(self.metrics), "memory": self._memory})


def resident_mib(process: int | None) -> float | None:
    """Return the private memory of a process in MiB, None if it has ended; needs Linux."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Private_Dirty:"):
                return int(line.split()[1]) / 1024.0
    except OSError:
        return None
    return None


def soak(folder: Path, minutes: float, seed: int = 0) -> SoakMetrics:
    """Run a soak and return its metrics.

    Raises:
        WorldError: The arm hardly moved, so the soak shows nothing.
    """
    metrics = Soak(folder, minutes, seed).run()
    if metrics.moving_seconds < 0.05 * metrics.judged_seconds:
        raise WorldError(
            f"the arm moved for only {metrics.moving_seconds:.0f} s of the soak, which shows nothing: repeat it"
        )
    return metrics
