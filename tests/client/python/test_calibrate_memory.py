"""A model larger than the memory that calibration takes: weights stay in the file."""

import json
import re
import subprocess
import sys

import torch
from safetensors.torch import save_file

LAYERS, HIDDEN, INNER, VOCABULARY, TOKENS = 30, 768, 2048, 512, 512
CHILD = """
import re, sys
from pathlib import Path
import torch
from flashquant.calibrate import gradients
from flashquant.models import Window, load_model

torch.set_num_threads(1)
gradients.MEMORY_BYTES = 0

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def observe(layer, k, v):
    seen.append(anonymous())
    return k, v

seen = []
start = anonymous()
model = load_model(Path(sys.argv[1]))
stack = gradients.LayerInputs
gradients.LayerInputs = lambda: stack(0)
gradients.fisher_of(model, torch.arange(%d) %% 512, Window(), 0, observe)
print("grown", max(*seen, anonymous()) - start)
""" % TOKENS


def write_model(folder):
    """Weights are zero: only their size matters here. Returns their bytes."""
    kv = HIDDEN // 2
    shapes = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (kv, HIDDEN),
              "self_attn.v_proj": (kv, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
              "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
              "mlp.down_proj": (HIDDEN, INNER), "input_layernorm": (HIDDEN,),
              "post_attention_layernorm": (HIDDEN,)}
    weights = {f"model.layers.{layer}.{name}.weight": torch.zeros(shape, dtype=torch.bfloat16)
               for layer in range(LAYERS) for name, shape in shapes.items()}
    weights["model.embed_tokens.weight"] = torch.ones(VOCABULARY, HIDDEN, dtype=torch.bfloat16)
    weights["model.norm.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": 12, "num_key_value_heads": 6,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}), "utf-8")
    return sum(w.numel() * 2 for w in weights.values())


def test_fisher_of_large_model_takes_less_memory_than_its_weights(tmp_path):
    size = write_model(tmp_path)
    child = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], check=True,
                           stdout=subprocess.PIPE, text=True)
    grown = int(re.search(r"grown (\d+)", child.stdout)[1])
    print(f"weights {size / 1e6:.0f} MB, memory grown by {grown / 1e6:.0f} MB")
    assert grown < size / 2
