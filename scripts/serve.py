"""`saccade serve`: serve a policy to a robot on another machine, over websocket and msgpack."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ..errors import InputError
from ..ranges import require_at_least
from .checkpoints.worker_policies import Device, Precision

if TYPE_CHECKING:
    from ..robot.remote.server_settings import ServerSettings


@dataclass(frozen=True)
class ServeConfig:
    """Serve a policy to `saccade run --policy ws://...` or to any client of openpi.

    A client needs the token: from --token-file, from the variable SACCADE_TOKEN, or a new one that the server prints.
    One client controls the policy at a time. By default only this machine can connect; other machines need an SSH
    tunnel, or --certificate and --key. A client cannot change the policy.
    """

    checkpoint: Annotated[str, tyro.conf.Positional] = "starter"
    """Folder of a checkpoint or of a training run, or `starter`, the checkpoint that ships with the package."""
    host: str = "127.0.0.1"
    """Address to listen on. One that other machines can reach, such as 0.0.0.0, needs --certificate and --key."""
    port: int = 8000
    """Port to listen on. 0 chooses a free port and prints it."""
    token_file: Path | None = None
    """File with the token: 16 or more letters, digits or -._~+/=. Default: the variable SACCADE_TOKEN."""
    certificate: Path | None = None
    """PEM file of the server's TLS certificate."""
    key: Path | None = None
    """PEM file of the certificate's private key, without a password."""
    device: Device = "cpu"
    """Device of the policy."""
    precision: Precision = "fp32"
    """Precision of the policy's weights and arithmetic."""
    threads: int = 1
    """CPU threads of the policy. More than 1 helps only policies much wider than the starter."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "threads", option=True)


def run(config: ServeConfig) -> int:
    """Load the policy, warm it up, and serve it until SIGINT or SIGTERM; return the exit code."""
    from ..robot.remote.protocol import TOKEN_VARIABLE
    from ..robot.remote.server_settings import ServerSettings
    from .checkpoints.find import checkpoint_folder

    folder = checkpoint_folder(config.checkpoint)
    token, generated = find_token(config)
    settings = ServerSettings(
        token=token,
        host=config.host,
        port=config.port,
        certificate=config.certificate,
        key=config.key,
        policy=config.checkpoint,
    )
    # Check these before the policy is loaded, which takes long.
    settings.context()
    settings.check_bindable()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    print(f"loading {folder}", flush=True)
    from ..robot.remote.serving import serve_until_signal
    from .checkpoints.checkpoint_policy import CheckpointPolicy, warm_up

    chunk_policy = CheckpointPolicy(folder, device=config.device, precision=config.precision, threads=config.threads)
    seconds, contract = warm_up(chunk_policy), chunk_policy.contract
    motion_seconds = contract.execute / contract.control_hz
    print(f"decides in {1000 * seconds:.0f} ms for {1000 * motion_seconds:.0f} ms of motion")
    if seconds > motion_seconds:
        print("warning: too slow for the control rate of the policy; an arm would stop and go", file=sys.stderr)

    def ready(port: int) -> None:
        if generated:
            print(f"token, made for this run: {token}")
        print(f"ready: {settings.url(port)}")
        print("connect with:")
        print(
            f"  {TOKEN_VARIABLE}={token if generated else '...'} saccade run --policy {client_address(settings, port)}",
            flush=True,
        )

    serve_until_signal(chunk_policy, settings, ready)
    print("stopped")
    return 0


def find_token(config: ServeConfig) -> tuple[str, bool]:
    """Find the token: in the file, else in the environment, else a new random one.

    Args:
        config: The options of the server.

    Returns:
        The token, and whether it is a new one.

    Raises:
        InputError: The file cannot be read, or the token is too weak.
    """
    from ..robot.remote.protocol import TOKEN_VARIABLE, check_token, new_token

    if config.token_file is not None:
        try:
            text = config.token_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            got = f"{config.token_file} ({getattr(error, 'strerror', None) or 'no text'})"
            fix = "Give a --token-file that holds only the token."
            raise InputError("token file", got=got, expected="a text file", fix=fix) from None
        return check_token(text, str(config.token_file)), False
    given = os.environ.get(TOKEN_VARIABLE)
    if given is not None:
        return check_token(given, TOKEN_VARIABLE), False
    return new_token(), True


def client_address(settings: ServerSettings, port: int) -> str:
    """Return the address for a client; a server that listens on all addresses does not know its own name."""
    if settings.host in ("0.0.0.0", "::"):
        return f"wss://THIS_MACHINE:{port}"
    return settings.url(port)
