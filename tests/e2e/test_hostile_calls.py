"""The call socket under packets that are no calls, peers that vanish and too many of them."""

import random
import socket
import struct

import pytest
from hostile import KEYS, SEED
from node_process import WAIT_SECONDS
from raw_client import Session, pb

pytestmark = pytest.mark.usefixtures("survives")

MAX_CONNECTIONS = 256
MAX_PACKET = 128 << 10


def connect(path: str) -> socket.socket | None:
    """A connection that was greeted; None: the node hung up."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer.settimeout(WAIT_SECONDS)
    peer.connect(path)
    if peer.recv(16) != struct.pack("<II", 1, MAX_PACKET):
        peer.close()
        return None
    return peer


def lookup_packet(session_id: bytes) -> bytes:
    request = pb.LookupRequest(session_id=session_id, keys=b"".join(KEYS), no_lease=True)
    return struct.pack("<IIQ", 2, 0, WAIT_SECONDS * 1_000_000) + request.SerializeToString()


def ask(peer: socket.socket, packet: bytes) -> tuple[int, bytes]:
    peer.send(packet)
    reply = peer.recv(MAX_PACKET)
    return struct.unpack_from("<II", reply)[0], reply[8:]


def test_packets_of_chance_are_answered_and_the_next_call_works(server):
    generator = random.Random(SEED)
    with server.channel() as channel, Session(channel) as session:
        good = lookup_packet(session.id)
        peer = connect(session.opened.call_socket)
        for _ in range(500):
            packet = bytearray(good if generator.random() < 0.7 else
                               generator.randbytes(generator.randrange(1, 5000)))
            for _ in range(generator.randrange(5)):
                packet[generator.randrange(len(packet))] = generator.randrange(256)
            ask(peer, bytes(packet))
        status, reply = ask(peer, good)
        assert status == 0
        assert pb.LookupResponse.FromString(reply).matched_blocks == len(KEYS)
        peer.close()


def test_peers_that_vanish_under_their_calls(server):
    with server.channel() as channel, Session(channel) as session:
        for _ in range(300):
            peer = connect(session.opened.call_socket)
            peer.send(lookup_packet(session.id))
            peer.close()
        status, _ = ask(connect(session.opened.call_socket), lookup_packet(session.id))
        assert status == 0


def test_too_many_connections_and_grpc_goes_on(server):
    with server.channel() as channel, Session(channel) as session:
        peers = [connect(session.opened.call_socket) for _ in range(MAX_CONNECTIONS + 20)]
        assert peers[0] is not None and peers[-1] is None
        assert session.lookup(KEYS).matched_blocks == len(KEYS)
        assert ask(peers[0], lookup_packet(session.id))[0] == 0
        for peer in peers:
            if peer is not None:
                peer.close()
