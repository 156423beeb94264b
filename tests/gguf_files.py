"""GGUF files of tiny models, as llama.cpp names their tensors, and a kernel in Python for packed weights."""

from types import SimpleNamespace

import gguf
import torch

NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_llama(model, path):
    """Write the weights of a Llama in float32. Rows of q and k stay as they are, so that a reader permutes them."""
    config, writer = model.config, gguf.GGUFWriter(str(path), "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    for key, value in model.state_dict().items():
        key = key.removesuffix(".weight")
        if key.startswith("model.layers."):
            _, _, layer, rest = key.split(".", 3)
            name = f"blk.{layer}.{LAYER_NAMES[rest]}.weight"
        else:
            name = f"{NAMES[key]}.weight"
        writer.add_tensor(name, value.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# Names of an LFM2, whose weights transformers leaves packed; the longer ones first where one begins another.
LFM2_NAMES = {
    "model.embed_tokens.": "token_embd.",
    "model.embedding_norm.": "token_embd_norm.",
    "lm_head.": "output.",
    "model.layers.": "blk.",
    ".operator_norm.": ".attn_norm.",
    ".self_attn.q_layernorm.": ".attn_q_norm.",
    ".self_attn.k_layernorm.": ".attn_k_norm.",
    ".self_attn.q_proj.": ".attn_q.",
    ".self_attn.k_proj.": ".attn_k.",
    ".self_attn.v_proj.": ".attn_v.",
    ".self_attn.out_proj.": ".attn_output.",
    ".feed_forward.w1.": ".ffn_gate.",
    ".feed_forward.w2.": ".ffn_down.",
    ".feed_forward.w3.": ".ffn_up.",
    ".conv.in_proj.": ".shortconv.in_proj.",
    ".conv.out_proj.": ".shortconv.out_proj.",
    ".conv.conv.": ".shortconv.conv.",
}


def write_packed_lfm2(model, path):
    """Write the weights of an LFM2, its matrices in blocks of 8-bit numbers (Q8_0)."""
    config, writer = model.config, gguf.GGUFWriter(str(path), "lfm2")
    writer.add_token_list([f"word{number}" for number in range(config.vocab_size)])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(
        [config.num_key_value_heads if kind == "full_attention" else 0 for kind in config.layer_types]
    )
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_shortconv_l_cache(config.conv_L_cache)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    blocks = gguf.GGMLQuantizationType.Q8_0
    for name, value in model.state_dict().items():
        for ours, theirs in LFM2_NAMES.items():
            name = name.replace(ours, theirs)
        if name.endswith(".shortconv.conv.weight"):
            value = value.squeeze(1)
        array = value.float().numpy()
        if array.ndim == 2 and array.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(array, blocks), raw_dtype=blocks)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def use_packed_weights(monkeypatch):
    """Give transformers a kernel in Python for matrices in blocks, without which it unpacks them."""
    from transformers.integrations.gguf import kernels
    from transformers.integrations.gguf.dequant import dequantize

    def mul_mat_vec(blocks, states, kind, size):
        return states.float() @ dequantize(blocks, kind, torch.float32).reshape(size, -1).T

    functions = {"dequantize": None, "get_rows": None, "mul_mat_id": None}
    module = SimpleNamespace(mul_mat_vec=mul_mat_vec, GEMV_TYPES={int(gguf.GGMLQuantizationType.Q8_0)}, **functions)
    monkeypatch.setattr(kernels, "_gguf_kernel", kernels.GgufKernel(module))
