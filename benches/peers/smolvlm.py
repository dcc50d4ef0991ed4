"""A checkpoint of SmolVLM-256M's shape with random weights, and transformers' and PEFT's step on it.

smolvlm.py make FOLDER FILES   writes it, with tokenizer and template of the tiny Idefics3 checkpoint in FILES
                               (crates/aspo-models/tests/fixtures/models/idefics3); pictures are one tile, not cut
smolvlm.py step FOLDER [N]     seconds of N steps (3) of one pair, as TRL makes one: two rows, the reference with the adapter off,
                               the tower in every pass, LoRA of rank 64 on every linear layer of the language model, f32; and the
                               peak of resident memory
"""

import json
import os
import pathlib
import resource
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import torch.nn.functional as F

torch.set_num_threads(int(os.environ.get("THREADS", 2)))
torch.manual_seed(0)
IMAGE = 341


def make(folder, files):
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    folder, files = pathlib.Path(folder), pathlib.Path(files)
    config = Idefics3Config(
        scale_factor=4, image_token_id=IMAGE, tie_word_embeddings=False, pad_token_id=2,
        vision_config=dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                           image_size=512, patch_size=16),
        text_config=dict(model_type="llama", hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                         num_attention_heads=9, num_key_value_heads=3, head_dim=64, vocab_size=49280,
                         max_position_embeddings=8192, rope_theta=100000.0, rms_norm_eps=1e-5, bos_token_id=1,
                         eos_token_id=2, pad_token_id=2),
    )
    Idefics3ForConditionalGeneration(config).float().save_pretrained(folder)
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]:
        (folder / name).write_bytes((files / name).read_bytes())
    processor = json.loads((files / "processor_config.json").read_text())
    processor["image_seq_len"] = 64
    processor["image_processor"].update(
        max_image_size={"longest_edge": 512}, size={"longest_edge": 2048}, do_image_splitting=False
    )
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2))


def step(folder, steps=3):
    from peft import LoraConfig, get_peft_model
    from transformers import Idefics3ForConditionalGeneration

    model = Idefics3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    layers = r".*text_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    lora = LoraConfig(r=64, lora_alpha=128, target_modules=layers, task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    model.config.use_cache = False
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    prompt, answer = 112, 200
    ids = torch.randint(10, 300, (2, prompt + answer))
    ids[1, :prompt] = ids[0, :prompt]
    ids[:, 5:69] = IMAGE
    pixels = torch.randn(1, 1, 3, 512, 512).expand(2, -1, -1, -1, -1)

    def log_probs():
        mask = torch.ones_like(ids)
        out = model(input_ids=ids, pixel_values=pixels, attention_mask=mask, logits_to_keep=answer + 1)
        logits = out.logits[:, :-1].reshape(2 * answer, -1)
        return -F.cross_entropy(logits, ids[:, prompt:].reshape(-1), reduction="none").view(2, answer).sum(1)

    for number in range(int(steps) + 1):
        start = time.perf_counter()
        with torch.no_grad(), model.disable_adapter():
            reference = log_probs()
        ratio = log_probs() - reference
        (-F.logsigmoid(0.1 * (ratio[0] - ratio[1]))).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        # The first warms up.
        if number:
            print(f"{time.perf_counter() - start:.2f} s a pair, {peak} MiB at the peak", flush=True)


{"make": make, "step": step}[sys.argv[1]](*sys.argv[2:])
