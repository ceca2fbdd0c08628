"""Several clients on one node: same prefix, other models, other ranges, no room."""

import threading

import grpc
import pytest
from raw_client import (EXISTS, FULL, OK, Session, chain, count_right, descriptor, open_request, pb,
                        whole_range)


def test_two_writers_of_one_prefix_leave_it_whole(node):
    statuses = {}
    start = threading.Barrier(4)

    def write(name: int) -> None:
        with node.channel() as channel, Session(channel) as session:
            start.wait()
            statuses[name] = [session.store(chain(f"race/{turn}", 32)) for turn in range(4)]

    writers = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    for turn in range(4):
        for per_block in zip(*(statuses[w][turn] for w in statuses), strict=True):
            assert sorted(per_block) == [OK, EXISTS, EXISTS, EXISTS]  # one wins
        with node.channel() as channel, Session(channel) as session:
            assert session.fetch(chain(f"race/{turn}", 32)) == 32
    assert node.status().blocks == 4 * 32


def test_readers_of_a_chain_being_written_see_whole_blocks_only(node):
    keys = chain("growing", 64)
    done = threading.Event()

    def write() -> None:
        try:
            with node.channel() as channel, Session(channel) as session:
                for i in range(0, 64, 2):
                    session.store(keys[i:i + 2], first_block_index=i)
        finally:
            done.set()

    writer = threading.Thread(target=write)
    writer.start()
    with node.channel() as channel, Session(channel) as session:
        seen = 0
        while not done.is_set():
            matched = session.fetch(keys)
            assert matched >= seen
            seen = matched
        assert session.fetch(keys) == 64
    writer.join()


@pytest.mark.parametrize("field, value, mine", [
    ("model", "test/other", "test/tiny"), ("weights_digest", "beef", ""), ("layers", 3, 2),
    ("kv_heads", 4, 2), ("head_size", 128, 64), ("dtype", pb.DTYPE_BF16, pb.DTYPE_F16),
    ("rope", "theta=5", "theta=10000"), ("extra", {"packing": "x"}, None)])
def test_other_model_under_the_same_name_is_refused_with_both_values(node, field, value, mine):
    with node.channel() as channel, Session(channel):
        with pytest.raises(grpc.RpcError) as error:
            Session(channel, open_request(namespace_descriptor=descriptor(**{field: value})))
        assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        text = error.value.details()
        assert field in text, text
        for expected in (value, mine):
            if isinstance(expected, (str, int)) and field != "dtype":
                assert str(expected) in text, text
        assert node.status().sessions == 1


def test_unknown_codec_set_is_refused(node):
    with node.channel() as channel, pytest.raises(grpc.RpcError) as error:
        Session(channel, open_request(namespace_descriptor=descriptor(codec_set_id=b"\7" * 32)))
    assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "07070707" in error.value.details()


def test_another_namespace_or_range_does_not_match(node):
    keys = chain("a", 4)
    with node.channel() as channel, Session(channel) as mine:
        mine.store(keys)
        with Session(channel, open_request(namespace_name="tests/other")) as other:
            assert other.fetch(keys) == 0
        half = whole_range()
        half.layer_end = 1
        with Session(channel, open_request(range=half)) as other:
            assert other.fetch(keys) == 0
        assert mine.fetch(keys) == 4


def test_foreign_lease_is_unknown(node):
    keys = chain("a", 4)
    with node.channel() as channel, Session(channel) as mine, Session(channel) as other:
        mine.store(keys)
        lease = mine.lookup(keys).lease_id
        with pytest.raises(grpc.RpcError) as error:
            other.load(lease, 4)
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
        assert other.release(lease).unknown == 1
        assert count_right(keys, mine.load(lease, 4)) == 4


def test_eviction_leaves_leased_blocks_alone(start_node):
    node = start_node(host_bytes="8MiB")
    leased = chain("leased", 24)
    with node.channel() as channel, Session(channel) as session:
        assert session.store(leased) == [OK] * 24
        lease = session.lookup(leased).lease_id
        for turn in range(12):
            assert session.store(chain(f"flood/{turn}", 24)) == [OK] * 24
            status = node.status()
            assert status.host_used_bytes <= status.host_capacity_bytes
        assert node.status().counters["fq_evicted_blocks_total"] > 100
        assert count_right(leased, session.load(lease, 24)) == 24
        assert session.fetch(chain("flood/11", 24)) == 24
        session.release(lease)
        for turn in range(12):
            session.store(chain(f"flood again/{turn}", 24))
        assert session.fetch(leased) == 0


def test_everything_leased_answers_full_and_keeps_what_is_there(start_node):
    node = start_node(host_bytes="4MiB")
    with node.channel() as channel, Session(channel) as session:
        leases = {}
        for turn in range(20):
            keys = chain(f"{turn}", 8)
            statuses = session.store(keys)
            found = session.lookup(keys)
            if found.matched_blocks:
                leases[turn] = (keys[:found.matched_blocks], found.lease_id)
            if FULL in statuses:
                break
        assert FULL in statuses and set(statuses) <= {OK, FULL}
        assert node.status().counters["fq_store_full_total"] > 0
        for keys, lease in leases.values():
            assert count_right(keys, session.load(lease, len(keys))) == len(keys)
            session.release(lease)
        assert session.store(chain("after", 8)) == [OK] * 8


def test_full_node_under_many_clients_delivers_only_what_was_stored(start_node):
    node = start_node(host_bytes="6MiB")
    errors = []
    delivered = [0] * 4

    def work(index: int) -> None:
        try:
            with node.channel() as channel, Session(channel) as session:
                for turn in range(40):
                    keys = chain(f"shared/{(turn * 7 + index) % 12}", 16)
                    session.store(keys)
                    delivered[index] += session.fetch(keys)
        except (AssertionError, grpc.RpcError) as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert min(delivered) > 100
    assert node.status().leases == 0
