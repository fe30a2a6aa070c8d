"""`RemotePolicy` at its public address; the client itself is in `robot/remote/client.py`."""

from .remote.client import RemotePolicy

__all__ = ["RemotePolicy"]
