"""`saccade serve`: a policy for arms that do not carry it, over websocket and msgpack."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ..errors import InputError
from .checkpoints.worker_policies import Device, Precision

if TYPE_CHECKING:
    from ..robot.remote.server_settings import ServerSettings


@dataclass(frozen=True)
class ServeConfig:
    """Hold a policy for `saccade run --policy ws://...`, or for any program that uses openpi's client.

    Whoever connects shows a token: that of --token-file, or of the variable SACCADE_TOKEN, or one that is made and
    printed. One client is in control at a time. Only this machine reaches the server; for others there are
    --certificate and --key, or an SSH tunnel. Which policy it is was decided here: no client changes it.
    """

    checkpoint: Annotated[str, tyro.conf.Positional] = "starter"
    """Folder of a checkpoint or of a training, or `starter`, the checkpoint that ships in the package."""
    host: str = "127.0.0.1"
    """Address to listen at; one that other machines reach, such as 0.0.0.0, needs --certificate and --key."""
    port: int = 8000
    """Port to listen at; 0 takes a free one and prints it."""
    token_file: Path | None = None
    """File that holds the token, 16 or more letters, digits or -._~+/=."""
    certificate: Path | None = None
    """PEM file of the server's TLS certificate."""
    key: Path | None = None
    """PEM file of the certificate's private key, without a password."""
    device: Device = "cpu"
    """Where the policy decides."""
    precision: Precision = "fp32"
    """Precision of the policy's weights and arithmetic."""
    threads: int = 1
    """CPU threads for a decision; more help only policies much wider than the starter."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise InputError("threads", got=self.threads, expected="1 or more", fix="Raise --threads.")


def run(config: ServeConfig) -> int:
    """Load the policy, decide once or more to be quick from the first request on, and serve until a signal."""
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
    # Whatever is wrong with these is said before minutes are spent on loading a policy.
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
        print("warning: that is too slow for its own control rate; an arm would stop and go", file=sys.stderr)

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
    """Return the token, and whether it was made up just now.

    Raises InputError for a file that cannot be read and for a token that is too weak.
    """
    from ..robot.remote.protocol import TOKEN_VARIABLE, check_token, new_token

    if config.token_file is not None:
        try:
            text = config.token_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            got = f"{config.token_file} ({getattr(error, 'strerror', None) or 'no text'})"
            fix = "Give --token-file a file that holds the token and nothing else."
            raise InputError("token file", got=got, expected="a text file", fix=fix) from None
        return check_token(text, str(config.token_file)), False
    given = os.environ.get(TOKEN_VARIABLE)
    if given is not None:
        return check_token(given, TOKEN_VARIABLE), False
    return new_token(), True


def client_address(settings: ServerSettings, port: int) -> str:
    """Return the address to type at a client; one that listens everywhere has no name that we would know."""
    if settings.host in ("0.0.0.0", "::"):
        return f"wss://THIS_MACHINE:{port}"
    return settings.url(port)
