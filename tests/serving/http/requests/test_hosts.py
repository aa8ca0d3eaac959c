"""Which Host headers a server answers."""

import socket

import httpx
import pytest

from adde.errors import UserError
from adde.serving.http.requests.hosts import AllowedHosts

LOCAL = ["localhost", "127.0.0.1", "[::1]", "localhost:8000", "LOCALHOST.:80", "127.8.9.1:1"]
GIVEN = ["shop.example", "Shop.Example:443", "shop.example.", "10.0.0.7:8000", "[fd00::7]:8000"]
OTHERS = ["evil.example", "shop.example.evil.example", "localhost.evil.example", "10.0.0.8", ""]
BROKEN = ["localhost@evil.example", "localhost/x", "[::1", "::1", "localhost:80:80", "localhost x"]
NAMES = ["shop.example", "10.0.0.7:443", "[fd00::7]"]


@pytest.mark.parametrize("host", LOCAL)
def test_loopback_is_answered_wherever_the_server_is_bound(host):
    for address in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "10.0.0.7"):
        for names in ([], NAMES):
            assert AllowedHosts(address, names).allows([host], probe=False)


@pytest.mark.parametrize("host", GIVEN)
def test_names_that_are_given_are_answered(host):
    for address in ("127.0.0.1", "0.0.0.0"):
        assert AllowedHosts(address, NAMES).allows([host], probe=False)
    assert not AllowedHosts("127.0.0.1", []).allows([host], probe=True)


@pytest.mark.parametrize("values", [*([host] for host in OTHERS + BROKEN), [], ["localhost"] * 2])
def test_other_hosts_are_rejected_on_loopback_or_with_names(values):
    for probe in (False, True):
        assert not AllowedHosts("127.0.0.1", NAMES).allows(values, probe)
        assert AllowedHosts("0.0.0.0", []).allows(values, probe)
    assert not AllowedHosts("0.0.0.0", NAMES).allows(values, probe=False)
    assert AllowedHosts("0.0.0.0", NAMES).allows(values, probe=True)  # at a pod's address


@pytest.mark.parametrize("name", ["", "https://shop.example", "shop.example/x", "a b", "fd00::7"])
def test_malformed_names_are_reported(name):
    with pytest.raises(UserError, match=r"--allow-host: expected a name .*, found"):
        AllowedHosts("127.0.0.1", [name])


def test_a_rejection_is_a_problem_and_comes_first(serve):
    server = serve(hosts=AllowedHosts("127.0.0.1", ["shop.example"]))
    for path in ("/", "/page/main.js", "/v1/schema", "/healthz", "/metrics", "/nothing"):
        answer = httpx.get(server.url + path, headers={"host": "evil.example:80"})
        assert answer.status_code == 421
        assert answer.headers["content-type"] == "application/problem+json"
        assert "default-src" in answer.headers["content-security-policy"]
    assert answer.json()["type"] == "urn:adde:problem:host"
    assert "found 'evil.example:80'" in answer.json()["detail"]
    for host in ("shop.example", "localhost:1", "127.0.0.1"):
        assert httpx.get(f"{server.url}/v1/schema", headers={"host": host}).status_code == 200
    assert 'adde_refused_total{why="host"} 6.0' in httpx.get(f"{server.url}/metrics").text
    with socket.create_connection(server.url[7:].split(":")) as raw:
        raw.sendall(b"GET /v1/schema HTTP/1.0\r\n\r\n")  # names none
        assert b" 421 " in raw.recv(4096).partition(b"\r\n")[0]
