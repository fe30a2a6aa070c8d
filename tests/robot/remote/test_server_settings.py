"""Settings of the policy server that are refused."""

from pathlib import Path

import pytest

from saccade.errors import InputError
from saccade.robot.remote.server_settings import ServerSettings
from saccade_testing.toy_policy import TOKEN


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"token": "short"}, "token"),
        ({"token": "a token with spaces in it"}, "token"),
        ({"port": 70000}, "port"),
        ({"host": "0.0.0.0"}, "host 0.0.0.0"),
        ({"host": "example.org"}, "host example.org"),
        ({"host": "::"}, "host ::"),
        ({"certificate": Path("x.pem")}, "key"),
        ({"key": Path("x.key")}, "certificate"),
        ({"ping_seconds": 0.0}, "ping_seconds"),
    ],
)
def test_invalid_settings_are_refused(changes, what):
    with pytest.raises(InputError) as refused:
        ServerSettings(**{"token": TOKEN, **changes})
    assert refused.value.what.startswith(what)
    assert TOKEN not in repr(ServerSettings(token=TOKEN))


def test_invalid_certificates_are_refused(certificate, tmp_path):
    pem, key = certificate
    noise = tmp_path / "noise.pem"
    noise.write_text("no certificate")
    for changes, message in (
        ({"certificate": tmp_path / "gone.pem", "key": key}, "no file"),
        ({"certificate": noise, "key": key}, "certificate: got"),
        ({"certificate": pem, "key": noise}, "certificate: got"),
    ):
        with pytest.raises(InputError, match=message):
            ServerSettings(token=TOKEN, **changes).context()
