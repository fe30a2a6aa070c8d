"""Makes what the tests of this folder share importable, here and in the processes that they spawn."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
