"""What several tests share, by package: importable in the processes that tests spawn, too."""

from pathlib import Path

SUPPORT = Path(__file__).parents[1]
"""The folder to put on the path of a process that is to import this package."""

TESTS = SUPPORT.parent
"""The folder of all tests, in which recorded data lies."""
