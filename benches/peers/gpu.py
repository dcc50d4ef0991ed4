"""A checkpoint of LLaVA-1.5's shape with random weights, and transformers' and PEFT's step on it on one GPU.

gpu.py make SHAPE FOLDER FILES       writes it in bf16, with the tokenizer of the tiny LLaVA in FILES (examples/assets/llava)
gpu.py step FOLDER DATA IMAGES WAY [N]
                                     seconds of N optimiser steps (8), each of 8 pairs in micro-batches of WAY's pairs, as TRL makes
                                     them: two rows a pair, the tower and the reference (the adapter off) in every pass, bf16 by
                                     autocast, LoRA of rank 64 on every linear layer of the language model; and the peak of memory.
                                     WAY is a number of pairs, with `r` behind it under gradient checkpointing
"""

import json
import os
import pathlib
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import torch.nn.functional as F

torch.manual_seed(0)
SHAPES = {
    "7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32),
    "1b": dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=16),
    # Small enough to try the script on a CPU.
    "tiny": dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2),
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PAIRS = 8


def make(shape, folder, files):
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    folder, files = pathlib.Path(folder), pathlib.Path(files)
    tiny = json.loads((files / "config.json").read_text())
    vision = dict(model_type="clip_vision_model", hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
                  num_attention_heads=16, image_size=336, patch_size=14, projection_dim=768, hidden_act="quick_gelu")
    if shape == "tiny":
        vision.update(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    ids = {name: tiny["text_config"][name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = dict(model_type="llama", vocab_size=32064, max_position_embeddings=4096, rms_norm_eps=1e-5, **ids, **SHAPES[shape])
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=tiny["image_token_index"],
                         tie_word_embeddings=False)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(DEVICE):
        LlavaForConditionalGeneration(config).save_pretrained(folder, max_shard_size="4GB")
    (folder / "tokenizer.json").write_bytes((files / "tokenizer.json").read_bytes())
    processor = json.loads((files / "preprocessor_config.json").read_text())
    processor.update(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2))


def step(folder, data, images, way, steps=8):
    import numpy as np
    from peft import LoraConfig, get_peft_model
    from PIL import Image
    from tokenizers import Tokenizer
    from transformers import LlavaForConditionalGeneration

    batch, recompute = int(way.rstrip("r")), way.endswith("r")
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").to(DEVICE)
    image, pad = model.config.image_token_index, model.config.text_config.pad_token_id
    layers = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    model = get_peft_model(model, LoraConfig(r=64, lora_alpha=128, target_modules=layers, task_type="CAUSAL_LM"))
    model.config.use_cache = False
    model.train()
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=DEVICE == "cuda")
    pairs = json.loads(pathlib.Path(data).read_text())
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids

    def micro_batch(pairs):
        rows, begins = [], []
        for which in ("chosen", "reject"):
            for pair in pairs:
                prompt = [1, *encode("USER: "), *[image] * 576, *encode(f"\n{pair['question']} ASSISTANT:")]
                rows.append(prompt + encode(" " + pair[which]) + [2])
                begins.append(len(prompt))
        length = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
        answer = torch.tensor([[begin <= i < len(row) for i in range(length)] for row, begin in zip(rows, begins)])
        read = lambda pair: np.asarray(Image.open(f"{images}/{pair['image_id']}").convert("RGB").resize((336, 336), 3))
        pixels = torch.stack([torch.tensor(read(pair)).permute(2, 0, 1) / 127.5 - 1.0 for pair in pairs])
        return [t.to(DEVICE) for t in (ids, answer, torch.cat([pixels, pixels]).bfloat16())]

    def log_probs(ids, answer, pixels):
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            logits = model(input_ids=ids, pixel_values=pixels, attention_mask=(ids != pad).long()).logits
        flat = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        return -(flat.view(len(ids), -1) * answer[:, 1:]).sum(1)

    wait = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None
    took, tokens = [], 0
    for number in range(int(steps) + 2):
        start = time.perf_counter()
        for at in range(0, PAIRS, batch):
            ids, answer, pixels = micro_batch(pairs[PAIRS * number + at:][:batch])
            tokens += int((ids != pad).sum())
            with torch.no_grad(), model.disable_adapter():
                reference = log_probs(ids, answer, pixels)
            ratio = log_probs(ids, answer, pixels) - reference
            (-F.logsigmoid(0.1 * (ratio[:batch] - ratio[batch:])).sum() / PAIRS).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait()
        took.append(time.perf_counter() - start)
    # The first two warm up.
    median = sorted(took[2:])[len(took[2:]) // 2]
    peak = torch.cuda.max_memory_allocated() / 1e9 if DEVICE == "cuda" else 0
    print(f"{way}: {median:.3f} s a step of {PAIRS} pairs ({PAIRS / median:.2f} pairs/s), {tokens // len(took)} tokens a step, "
          f"{peak:.1f} GB at the peak; all: {' '.join(f'{t:.3f}' for t in took)}", flush=True)


{"make": make, "step": step}[sys.argv[1]](*sys.argv[2:])
