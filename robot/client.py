"""The public import path of `RemotePolicy`; the client is in `robot/remote/client.py`."""

from .remote.client import RemotePolicy

__all__ = ["RemotePolicy"]
