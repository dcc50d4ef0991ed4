"""The work of transformers, PEFT and Pillow that ours is timed beside: `worker.py WORK`, one of

step,SIZE,WAY        an optimiser step: reference, policy, loss, backward, clipping, AdamW; WAY is default, cached, recompute
head,frozen|trained  log-probabilities of 1024 tokens, D 512, V 32,000, with gradients
generate,SHAPE,BATCH greedy decoding
decode,FILE          a JPEG, 32 times
preprocess,FILE      CLIP's processor on it, 32 times; fast,FILE: the processor on torch tensors

It does the work once, says `ready` with versions, then does it for each line of standard input and answers with its seconds
and the growth of the peak of resident memory since its imports, in MB.
"""

import os
import resource
import sys
import time

THREADS = int(os.environ.get("THREADS", os.cpu_count()))
os.environ["OMP_NUM_THREADS"] = str(THREADS)
# A thread that waits shall not take a core from whoever is timed in turn.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
import torch.nn.functional as F

torch.set_num_threads(THREADS)
torch.manual_seed(0)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


MIDDLE = dict(layers=8, width=512, heads=8, inner=1376, vocab=32064, rank=32, pairs=2, batches=1, answer=64)
SIZES = {
    "small": dict(layers=4, width=128, heads=4, inner=352, vocab=552, rank=16, pairs=8, batches=2, prefix=32, answer=56),
    **{f"prefix-{prefix}": dict(MIDDLE, prefix=prefix) for prefix in (96, 288, 608)},
}


def llama(width, inner, layers, heads, vocab, groups=None):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=groups or heads, max_position_embeddings=2048,
        attn_implementation="sdpa", bos_token_id=1, eos_token_id=2,
    )
    return LlamaForCausalLM(config).float()


def step(size, way):
    from peft import LoraConfig, get_peft_model

    s = SIZES[size]
    model = llama(s["width"], s["inner"], s["layers"], s["heads"], s["vocab"])
    model.config.use_cache = False
    lora = LoraConfig(r=s["rank"], lora_alpha=2 * s["rank"], target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    model.train()
    if way == "recompute":
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0)
    prefix, answer, pairs = s["prefix"], s["answer"], s["pairs"]
    # Chosen rows, then rejected ones, as TRL lays them: the prefix is in both.
    ids = torch.randint(3, 500, (s["batches"], 2 * pairs, prefix + answer))
    ids[:, pairs:, :prefix] = ids[:, :pairs, :prefix]

    def log_probs(ids):
        with torch.no_grad():
            embeds = model.get_input_embeddings()(ids)
        if way == "recompute":
            embeds.requires_grad_(torch.is_grad_enabled())
        logits = model(inputs_embeds=embeds, logits_to_keep=answer + 1).logits[:, :-1]
        flat = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, prefix:].reshape(-1), reduction="none")
        return -flat.view(2 * pairs, answer).sum(1)

    def reference(ids):
        with torch.no_grad(), model.disable_adapter():
            return log_probs(ids)

    kept = [reference(rows) for rows in ids] if way == "cached" else None

    def work():
        for part, rows in enumerate(ids):
            ratio = log_probs(rows) - (kept[part] if kept else reference(rows))
            loss = -F.logsigmoid(0.1 * (ratio[:pairs] - ratio[pairs:])).sum() / (pairs * s["batches"])
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work


def head(kind):
    hidden = torch.randn(1024, 512, requires_grad=True)
    weight = (0.04 * torch.randn(32_000, 512)).requires_grad_(kind == "trained")
    labels = (torch.arange(1024) * 7919) % 32_000

    def work():
        logits = hidden @ weight.T
        torch.log_softmax(logits, 1).gather(1, labels[:, None]).mean().backward()
        hidden.grad = weight.grad = None

    return work


def generate(shape, batch):
    shapes = {"tiny": ((128, 352, 4, 4, 552), 64), "135m": ((576, 1536, 30, 9, 49_152, 3), 32)}
    sizes, new = shapes[shape]
    model = llama(*sizes).eval()
    row = torch.arange(int(batch))[:, None] * 31 + torch.arange(64)[None] * 17
    ids = row % 500 + 3
    options = dict(max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0, use_cache=True)

    @torch.inference_mode()
    def work():
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)

    return work


def pictures(kind, file):
    import io
    from concurrent.futures import ThreadPoolExecutor

    from PIL import Image
    import transformers

    data = open(file, "rb").read()
    pool = ThreadPoolExecutor(THREADS)
    decode = lambda _=None: Image.open(io.BytesIO(data)).convert("RGB")
    if kind == "decode":
        return lambda: list(pool.map(decode, range(32)))
    picture = decode()
    if kind == "fast":
        processor = transformers.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=336)
        return lambda: processor([picture] * 32, return_tensors="pt")
    slow = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    processor = slow(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    return lambda: list(pool.map(lambda _: processor(picture, return_tensors="np"), range(32)))


def main():
    import transformers  # noqa: F401  (counted before, as the project's own code is)

    kind, *rest = sys.argv[1].split(",")
    before = peak()
    make = dict(step=step, head=head, generate=generate)
    work = make[kind](*rest) if kind in make else pictures(kind, *rest)
    work()
    print("ready", torch.__version__, transformers.__version__, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        work()
        print(time.perf_counter() - start, peak() - before, flush=True)


main()
