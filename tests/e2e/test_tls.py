"""TLS on TCP: who may connect, and which tenant they are."""

from dataclasses import dataclass

import grpc
import pytest
from authority import Authority, Identity
from node_process import free_port, run_flashquantd
from raw_client import Session, chain


@dataclass
class SecureNode:
    """Where it listens and whom it trusts."""
    port: int
    authority: Authority

    def channel(self, client: Identity | None) -> grpc.Channel:
        credentials = grpc.ssl_channel_credentials(
            self.authority.cert, *([client.key, client.cert] if client else []))
        return grpc.secure_channel(f"localhost:{self.port}", credentials)


@pytest.fixture
def secure(start_node, tmp_path) -> SecureNode:
    """A node that wants client certificates."""
    authority, port = Authority(), free_port()
    server = authority.issue("node")
    files = {"cert": server.cert, "key": server.key, "ca": authority.cert}
    for name, text in files.items():
        (tmp_path / name).write_bytes(text)
    start_node(listen=f"0.0.0.0:{port}", tls_cert=tmp_path / "cert", tls_key=tmp_path / "key",
               tls_client_ca=tmp_path / "ca")
    return SecureNode(port, authority)


def test_tenant_is_the_name_in_the_certificate(secure):
    with secure.channel(secure.authority.issue("team-a")) as channel, Session(channel) as session:
        assert session.opened.tenant == "team-a"
        session.store(chain("a", 4))
        assert session.fetch(chain("a", 4)) == 4


def test_tenants_do_not_see_each_others_blocks(secure):
    keys = chain("a", 4)
    with secure.channel(secure.authority.issue("team-a")) as channel, Session(channel) as mine, \
            secure.channel(secure.authority.issue("team-b")) as other_channel, \
            Session(other_channel) as other:
        mine.store(keys)
        lease = mine.lookup(keys).lease_id
        assert other.fetch(keys) == 0
        with pytest.raises(grpc.RpcError) as error:
            other.load(lease, 4)
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
        stolen = Session.__new__(Session)
        stolen.stub, stolen.id = other.stub, mine.id  # the session id alone opens nothing
        with pytest.raises(grpc.RpcError) as error:
            stolen.lookup(keys)
        assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert other.store(keys) == mine.store(chain("b", 4))  # not EXISTS: nothing leaks
        assert mine.fetch(keys) == 4


@pytest.mark.parametrize("who", ["nobody", "stranger", "plaintext"])
def test_caller_without_a_trusted_certificate_is_refused(secure, who):
    if who == "plaintext":
        channel = grpc.insecure_channel(f"localhost:{secure.port}")
    else:
        channel = secure.channel(Authority().issue("team-a") if who == "stranger" else None)
    with channel, pytest.raises(grpc.RpcError) as error:
        Session(channel)
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("broken", ["cert", "key", "ca"])
def test_broken_pem_file_is_refused_at_start(broken, tmp_path):
    authority = Authority()
    server = authority.issue("node")
    files = {"cert": server.cert, "key": server.key, "ca": authority.cert} | {broken: b"not PEM"}
    for name, text in files.items():
        (tmp_path / name).write_bytes(text)
    result = run_flashquantd("--socket=", "--metrics-listen=", f"--listen=127.0.0.1:{free_port()}",
                             f"--tls-cert={tmp_path}/cert", f"--tls-key={tmp_path}/key",
                             f"--tls-client-ca={tmp_path}/ca")
    assert result.returncode == 1, result
