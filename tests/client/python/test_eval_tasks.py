"""Tasks of evaluation: copying, look-up, greedy decoding, HumanEval and its sandbox."""

import pytest
import torch
from tiny_model import make_model, make_texts

from flashquant.evaluate import human_eval
from flashquant.evaluate.codecs import NamedCodec
from flashquant.evaluate.generation import Generator
from flashquant.evaluate.human_eval import HumanEval, body_of, program_of, read_problems
from flashquant.evaluate.sandbox import isolation, passes
from flashquant.evaluate.tasks import Copying, Greedy, Recall, make_look_ups
from flashquant.models import load_model, load_tokenizer
from flashquant.models.base import hidden_states, same_rows
from flashquant.models.text import read_documents
from flashquant.rivals import RIVALS

RAW = NamedCodec("raw", same_rows, 16.0, 16.0)
KEPT = NamedCodec("fp8", lambda _, k, v: RIVALS["fp8"].apply(k, v), 8.0, 8.0)
LONG_S = 60.0  # of wall time; of processor time it is SECONDS
ZERO = NamedCodec("zero", lambda _, k, v: (k * 0, v * 0), 0.0, 0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    return make_model(path / "model", max_position_embeddings=4096)


@pytest.fixture(scope="module")
def documents(folder):
    return read_documents(folder, [*map(type(folder), make_texts(folder / "text", 2, 7))], 3000)


def test_copying_raw_no_loss_zero_loss(folder, documents):
    copying = Copying(load_model(folder), documents)
    assert copying.score(RAW).perplexity_excess_percent == 0
    lost = copying.score(ZERO)
    assert lost.kl_divergence > 0.01 and lost.top1_agreement_percent < 100


def test_look_ups_hold_answers_once_before_the_look_up(folder):
    tokenizer = load_tokenizer(folder)
    found = make_look_ups(folder, 6, seed=3, context=4096)
    ids = found.passage.ids
    assert found.passage.first % 64 == 0 and len(found.answers) == 6
    for begin, end in found.answers:
        value = tokenizer.decode(ids[begin:end])
        assert len(value) == 36 and tokenizer.decode(ids[:begin]).count(value) == 1
    again, other = (make_look_ups(folder, 6, seed, 4096).passage.ids for seed in (3, 4))
    assert ids.equal(again) and not ids.equal(other)


def test_look_ups_no_room_refused(folder):
    with pytest.raises(ValueError, match="--recall-keys: 60 pairs take"):
        make_look_ups(folder, 60, seed=0, context=4096)


def test_recall_counts_answers_and_their_probability(folder):
    look_ups = [make_look_ups(folder, 6, seed, 4096) for seed in (0, 1)]
    recall = Recall(load_model(folder), look_ups)
    kept, lost = recall.score(RAW, None), recall.score(ZERO, None)
    assert kept.look_ups == 12 and kept.raw_log_probability < -36
    assert abs(kept.log_probability - kept.raw_log_probability) < 1
    assert abs(lost.log_probability - lost.raw_log_probability) > 1


def plain_greedy(folder, ids, count):
    model = load_model(folder)
    for _ in range(count):
        logits = hidden_states(model, ids)[-1] @ model.head_weight().float().T
        ids = torch.cat([ids, logits.argmax()[None]])
    return ids[-count:]


def test_generator_decodes_what_the_model_says_in_a_batch(folder, documents):
    generator = Generator(folder, "cpu")
    prefix = documents[0].ids[:128]
    prompts = [documents[1].ids[begin:begin + length] for begin, length in ((0, 5), (50, 1))]
    cache = generator.prefix_cache(prefix[None])
    for prompt, found in zip(prompts, generator.decode(cache, prefix[None], prompts, 8)):
        wanted = plain_greedy(folder, torch.cat([prefix, prompt]), 8)
        assert found.tolist() == wanted[:len(found)].tolist() and len(found)


def test_generator_decodes_behind_prefixes_of_their_own(folder, documents):
    generator = Generator(folder, "cpu")
    prefixes, last = torch.stack([d.ids[:128] for d in documents]), documents[0].ids[900:901]
    found = generator.decode(generator.prefix_cache(prefixes), prefixes, [last, last], 8)
    for prefix, ids in zip(prefixes, found):
        wanted = plain_greedy(folder, torch.cat([prefix, last]), 8)
        assert ids.tolist() == wanted[:len(ids)].tolist() and len(ids)


def test_greedy_raw_agrees_zero_does_not(folder, documents):
    continuations = [plain_greedy(folder, d.ids[:256], 12) for d in documents]
    greedy = Greedy(load_model(folder), documents, 256, continuations)
    kept, lost = greedy.score(RAW, None), greedy.score(ZERO, None)
    assert kept.new_tokens == 11 and lost.mean_agreed_tokens < kept.mean_agreed_tokens
    assert kept.mean_agreed_tokens == pytest.approx(11 * kept.whole_percent / 100, abs=11)


def test_problems_solutions_pass_others_do_not():
    problems = read_problems()
    assert len(problems) == 164
    for problem in problems[::40]:
        assert passes(program_of(problem, problem.canonical_solution), LONG_S)
        assert not passes(program_of(problem, "    return None\n"))


@pytest.mark.parametrize("program", [
    "while True: pass", "import time; time.sleep(60)", "x = bytearray(2 << 30)",
    "open('big', 'wb').write(bytes(2 << 20))", "raise SystemExit(3)", "syntax error"])
def test_sandbox_limits(program):
    assert not passes(program, seconds=2)


def test_sandbox_no_network():
    program = "import socket; assert len(socket.if_nameindex()) <= 1"
    assert passes(program, LONG_S) or not isolation()


def test_body_ends_at_first_line_that_is_not_indented():
    body = "    x = 1\n\n    return x\n"
    assert body_of(body + "\ndef f():\n    y\n") == body


def test_human_eval_raw_agrees_with_itself(folder, monkeypatch):
    monkeypatch.setattr(human_eval, "SHOT_TOKENS", 300)
    monkeypatch.setattr(human_eval, "NEW_TOKENS", 6)
    tests = HumanEval(folder, "cpu", 2)
    kept, lost = tests.score(KEPT, None), tests.score(ZERO, None)
    assert tests.raw_pass_percent == 0 and kept.agreed_percent > lost.agreed_percent
    assert lost.agreed_percent < 100
    with pytest.raises(ValueError, match="--problems: found 500"):
        HumanEval(folder, "cpu", 500)
