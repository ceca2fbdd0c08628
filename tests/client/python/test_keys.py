"""Keys: golden vectors, and the properties that the cache's safety rests on."""

import json
from pathlib import Path

import numpy as np
import pytest

from flashquant.keys import KeyChain, Namespace, root_key

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "keys.json").read_text("utf-8"))


@pytest.mark.parametrize("vector", GOLDEN["namespaces"], ids=lambda v: v["model"])
def test_fingerprint_golden_equal(vector):
    fields = {k: v for k, v in vector.items() if k != "fingerprint"}
    fields["codec_set_id"] = bytes.fromhex(fields["codec_set_id"])
    assert Namespace(**fields).fingerprint().hex() == vector["fingerprint"]


@pytest.mark.parametrize("vector", GOLDEN["chains"], ids=lambda v: v["tenant"] or "no-tenant")
def test_chain_golden_equal(vector):
    root = root_key(bytes.fromhex(vector["fingerprint"]), vector["tenant"], vector["salt"])
    assert root.hex() == vector["root"]
    chain = KeyChain(root)
    chain.extend(vector["tokens"], [bytes.fromhex(e) for e in vector["extra"]])
    assert chain.keys(0, len(chain)).hex() == "".join(vector["keys"])


def make_chain(tokens, extras=(), tenant="t", salt="s"):
    chain = KeyChain(root_key(bytes(32), tenant, salt))
    chain.extend(tokens, extras)
    return chain


def test_chain_grown_in_steps_equals_at_once():
    tokens = np.random.default_rng(7).integers(0, 1 << 32, 640, dtype=np.uint32)
    whole = make_chain(tokens)
    steps = make_chain(tokens[:64])
    steps.extend(tokens[64:192])
    steps.extend(tokens[192:])
    assert steps.keys(0, 10) == whole.keys(0, 10)
    assert steps.keys(3, 5) == whole.keys(0, 10)[96:160]


@pytest.mark.parametrize("position", [0, 63, 64, 200, 255])
def test_chain_one_token_changed_changes_all_later_keys_only(position):
    tokens = np.arange(256)
    other = tokens.copy()
    other[position] += 1
    a, b = make_chain(tokens), make_chain(other)
    for block in range(4):
        same = a.keys(block, block + 1) == b.keys(block, block + 1)
        assert same == (block < position // 64)


def test_chain_tenant_salt_extra_separate():
    tokens = np.arange(128)
    chains = [make_chain(tokens), make_chain(tokens, tenant="ts", salt=""),
              make_chain(tokens, salt="s2"), make_chain(tokens, [b"lora", b"lora"])]
    assert len({c.keys(0, 1) for c in chains}) == len(chains)


def test_chain_part_of_a_block_refused():
    with pytest.raises(ValueError, match="65 tokens"):
        make_chain(np.arange(65))
    with pytest.raises(ValueError, match="1 extras"):
        make_chain(np.arange(128), [b"x"])


def test_root_fingerprint_of_wrong_length_refused():
    with pytest.raises(ValueError, match="32 bytes, got 31"):
        root_key(bytes(31), "", "")
