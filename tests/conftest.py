"""Tests run headless: a rendering backend is chosen before anything imports MuJoCo."""

from saccade.sim.rendering import choose_backend

choose_backend()
