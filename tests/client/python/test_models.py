"""Models written out for calibration, against transformers' own forward pass on random weights."""

import json
import shutil

import pytest
import torch
from tiny_model import make_model
from transformers import (AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MistralConfig,
                          Qwen2Config, Qwen3Config)

from flashquant.models import ARCHITECTURES, Window, load_model
from flashquant.models.base import (chunked_attention, hidden_states, joined_attention,
                                    past_of, window_mask)

SIZES = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "head_dim": 64,
         "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 1024}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 256}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
        "original_max_position_embeddings": 256}
MODELS = {
    "llama": LlamaConfig(**SIZES),
    "llama-biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama-no-tie": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama3-rope": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "llama-yarn": LlamaConfig(**SIZES, rope_parameters=YARN),
    "llama-linear": LlamaConfig(**SIZES, rope_parameters={
        "rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}),
    "mistral-sliding": MistralConfig(**SIZES, sliding_window=100),
    "mistral-full": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen2-sliding": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=70,
                                 max_window_layers=1),
    "qwen3": Qwen3Config(**SIZES),
    "gemma3": Gemma3TextConfig(**SIZES | {"num_hidden_layers": 7, "head_dim": 96},
                               sliding_window=90, query_pre_attn_scalar=64,
                               rope_parameters={
                                   "sliding_attention": {"rope_type": "default",
                                                         "rope_theta": 10000.0},
                                   "full_attention": {"rope_type": "linear", "factor": 8.0,
                                                      "rope_theta": 1e6}}),
}


def save_random(config, folder, dtype=torch.float32):
    """A model of random weights, norms and biases included, in `folder`; transformers' object."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    for name, weight in model.named_parameters():
        offset = 1.0 if "norm" in name and "gemma" not in config.model_type else 0.0
        torch.nn.init.normal_(weight, mean=offset, std=0.15)
    model.save_pretrained(folder)
    return model.eval()


def logits_of(model, ids):
    with torch.no_grad():
        return hidden_states(model, ids) @ model.head_weight().float().T


@pytest.mark.parametrize("name", MODELS)
def test_forward_matches_transformers(name, tmp_path):
    theirs = save_random(MODELS[name], tmp_path)
    ids = torch.randint(256, (300,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
    found = logits_of(load_model(tmp_path), ids)
    assert torch.allclose(found, expected, atol=2e-4 * float(expected.abs().max()))
    assert float(expected.std()) > 0.1  # the weights matter


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_sequences_together_same_as_alone(name, tmp_path):
    """Three sequences in one pass, behind pasts of their own, give what each gives alone."""
    save_random(MODELS[name], tmp_path)
    model = load_model(tmp_path)
    ids = torch.randint(256, (3, 400), generator=torch.Generator().manual_seed(0))

    def run(ids):
        with torch.no_grad():
            past = past_of(model, ids[..., :256])
            return hidden_states(model, ids[..., 256:], lambda _, k, v: (-k, 2 * v), past=past)

    together, alone = run(ids), torch.stack([run(line) for line in ids])
    assert torch.allclose(together, alone, atol=1e-4 * float(alone.abs().max()))


def test_every_architecture_is_tested():
    tested = {AutoModelForCausalLM.from_config(c).__class__.__name__ for c in MODELS.values()}
    assert tested == set(ARCHITECTURES)


def test_forward_older_configuration_same(tmp_path):
    """`rope_theta`, `rope_scaling`, `rope_local_base_freq` at the top, no layer types."""
    for name, change in (
            ("llama3-rope", {"rope_theta": 10000.0, "rope_scaling": {
                k: v for k, v in LLAMA3.items() if k != "rope_theta"}}),
            ("gemma3", {"rope_theta": 1e6, "rope_local_base_freq": 10000.0,
                        "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
            ("qwen2-sliding", {"rope_theta": 10000.0})):
        folder = tmp_path / name
        save_random(MODELS[name], folder)
        ids = torch.arange(200) % 256
        expected = logits_of(load_model(folder), ids)
        file = folder / "config.json"
        config = json.loads(file.read_text("utf-8"))
        for gone in ("rope_parameters", "layer_types"):
            config.pop(gone, None)
        file.write_text(json.dumps(config | change), "utf-8")
        assert torch.equal(logits_of(load_model(folder), ids), expected)


def test_half_precision_weights_stay_so(tmp_path):
    theirs = save_random(MODELS["qwen3"], tmp_path, torch.bfloat16)
    model = load_model(tmp_path)
    assert model.head_weight().dtype == torch.bfloat16
    ids = torch.randint(256, (200,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.float()(ids[None]).logits[0]
    error = (logits_of(model, ids) - expected).pow(2).mean() / expected.pow(2).mean()
    assert float(error) < 1e-3


def test_sharded_weights_found(tmp_path):
    theirs = save_random(MODELS["llama"], tmp_path / "one")
    theirs.save_pretrained(tmp_path / "many", max_shard_size="100KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    ids = torch.arange(100)
    assert torch.equal(logits_of(load_model(tmp_path / "many"), ids),
                       logits_of(load_model(tmp_path / "one"), ids))


@pytest.mark.parametrize("sliding", [None, 1, 40, 200])
@pytest.mark.parametrize("tokens", [70, 300, 512])
def test_joined_attention_same_as_chunked(tokens, sliding):
    """What runs on a device, against what runs on the CPU."""
    generator = torch.Generator().manual_seed(tokens)
    q, k, v, far_k, far_v = (torch.randn(2, heads, tokens, 64, generator=generator)
                             for heads in (4, 2, 2, 2, 2))
    window = Window()
    expected = chunked_attention(q, k, v, (far_k, far_v), window, sliding)
    mask = window_mask(tokens, window, "cpu", sliding)
    assert torch.allclose(joined_attention(q, k, v, (far_k, far_v), mask), expected, atol=1e-5)


def test_far_queries_see_coded_rows_only_far(tmp_path):
    model = load_model(make_model(tmp_path))
    ids = torch.randint(256, (512,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        raw = hidden_states(model, ids)
        coded = hidden_states(model, ids, lambda _, k, v: (k * 0, v * 0), Window(16, 128, 64))
    different = (raw != coded).any(1).nonzero()[:, 0]
    # The chunk at 192 is the first whose window leaves rows (16..63) beyond it.
    assert int(different[0]) == 192


@pytest.mark.parametrize("change,message", [
    ({"architectures": ["GemmaForCausalLM"]}, "architecture .'GemmaForCausalLM'. is not supported"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported: 'silu'"),
    ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1.0}}, "rope_type is 'dynamic'"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0, "mscale": 0.7}}, "mscale"),
    ({"num_hidden_layers": 3}, "no weight 'model.layers.2"),
    ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0, "factor": 2.0}},
     "config.json lacks 'low_freq_factor'"),
])
def test_load_model_unknown_refused(tmp_path, change, message):
    make_model(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "model")


def test_load_model_no_weights_refused(tmp_path):
    make_model(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no \\*.safetensors file"):
        load_model(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(ValueError, match="no config.json"):
        load_model(tmp_path / "model")


def test_embed_too_long_refused(tmp_path):
    model = load_model(make_model(tmp_path))
    with pytest.raises(ValueError, match="1025 tokens, but the model has 1024"):
        model.embed(torch.zeros(1025, dtype=torch.long))
