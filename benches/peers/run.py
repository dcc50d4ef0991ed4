"""Times this project beside transformers, PEFT and Pillow, in turn: `python run.py [step|head|generate|images]… [--rounds N]`.

Each work has a process of ours and one of theirs, which do it once when told to; they are told in turn, so that a noisy
machine slows both. The table gives medians, and the median of the paired ratios. Run it through `benches/peers/run`.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKER = pathlib.Path(__file__).with_name("worker.py")


def build():
    """Paths of the project's bench programs, built in the profile that their results are from."""
    names = ["train", "loss", "models", "data"]
    targets = [word for name in names for word in ("--bench", name)]
    command = ["cargo", "bench", "--no-run", "-p", "aspo-benches", *targets, "--message-format=json"]
    out = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    messages = map(json.loads, out.splitlines())
    made = [m for m in messages if m.get("executable") and m["target"]["name"] in names]
    return {m["target"]["name"]: m["executable"] for m in made}


class Worker:
    def __init__(self, command, threads):
        env = dict(os.environ, THREADS=str(threads), RAYON_NUM_THREADS=str(threads))
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True)
        self.said = self.process.stdout.readline().split()
        if self.said[:1] != ["ready"]:
            sys.exit(f"{command}: said {self.said} instead of `ready`")
        self.seconds, self.memory = [], 0.0

    def tell(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds, memory = map(float, self.process.stdout.readline().split())
        self.seconds.append(seconds)
        self.memory = memory

    def end(self):
        self.process.stdin.close()
        self.process.wait()


class Row:
    """One line of the table."""

    def __init__(self, name, ours, theirs, aim=None, memory_aim=None, peer="theirs"):
        self.name, self.ours, self.theirs = name, ours, theirs
        self.aim, self.memory_aim, self.peer = aim, memory_aim, peer


def rows(parts, made, photo):
    ours = lambda bench, work: [made[bench], "--serve", work]
    theirs = lambda work: [sys.executable, str(WORKER), work]
    if "step" in parts:
        aims = {"small": (2.4, 0.3), "prefix-96": (2.0, 0.4), "prefix-288": (2.2, 0.3), "prefix-608": (2.5, 0.3)}
        for size, (aim, memory) in aims.items():
            yield Row(f"step, {size}", ours("train", f"{size},default"), theirs(f"step,{size},default"), aim, memory)
        for size in aims:
            for way in ("cached", "recompute"):
                yield Row(f"step, {size}, {way}", ours("train", f"{size},{way}"), theirs(f"step,{size},{way}"), 2.0)
    if "step" in parts or "share" in parts:
        for size in ("prefix-288", "prefix-608"):
            step, products = ours("train", f"{size},default"), ours("train", f"{size},products")
            yield Row(f"share of gemm's own products, {size}", step, products, 0.9, peer="gemm alone")
        step, plain = ours("train", "prefix-608,recompute"), ours("train", "prefix-608,default")
        yield Row("recomputation, prefix-608, beside our plain step", step, plain, 1 / 1.35, 0.4, peer="plain")
    if "head" in parts:
        yield Row("head, frozen", ours("loss", "frozen"), theirs("head,frozen"), 1 / 0.8)
        yield Row("head, trained", ours("loss", "trained"), theirs("head,trained"), 1.0)
    if "generate" in parts:
        for shape in ("tiny", "135m"):
            for batch in (1, 64):
                work = f"{shape},{batch}"
                yield Row(f"decoding, {shape}, batch {batch}", ours("models", work), theirs(f"generate,{work}"), 2.0)
    if "images" in parts:
        decode, preprocess = ours("data", f"decode,{photo}"), ours("data", f"preprocess,{photo}")
        yield Row("32 JPEGs of 640×427 decoded", decode, theirs(f"decode,{photo}"), peer="Pillow")
        yield Row("CLIP's preprocessing of 32", preprocess, theirs(f"preprocess,{photo}"), peer="transformers, Pillow")
        yield Row("CLIP's preprocessing of 32", preprocess, theirs(f"fast,{photo}"), peer="transformers, torch tensors")


def time(row, rounds, threads):
    pair = [Worker(row.ours, threads), Worker(row.theirs, threads)]
    for _ in range(rounds):
        for worker in pair:
            worker.tell()
    for worker in pair:
        worker.end()
    ours, theirs = pair
    faster = statistics.median(t / o for o, t in zip(ours.seconds, theirs.seconds))
    number = lambda aim: "" if aim is None else f"{aim:.2f}"
    span = lambda seconds: f"{statistics.median(seconds):.3f} ({min(seconds):.3f}–{max(seconds):.3f})"
    cells = [row.name, row.peer, span(ours.seconds), span(theirs.seconds), f"**{faster:.2f}**", number(row.aim),
             f"{ours.memory:.0f}", f"{theirs.memory:.0f}", f"{ours.memory / theirs.memory:.2f}", number(row.memory_aim)]
    return "| " + " | ".join(cells) + " |", theirs.said[1:]


def photo(folder):
    """A JPEG of COCO's usual size with some structure in it."""
    from PIL import Image

    picture = Image.effect_noise((640, 427), 40).convert("RGB")
    path = pathlib.Path(folder) / "photo.jpg"
    picture.save(path, quality=90)
    return path


def processor_name():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line for line in lines if line.startswith("flags")), "")
    vector = next((flag for flag in ("avx512f", "avx2", "avx") if flag in flags.split()), "no AVX")
    return f"{name}, {vector}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["step", "share", "head", "generate", "images"]
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; all unless given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benches/results/peers.md")
    options = parser.parse_args()
    unknown = set(options.parts) - set(parts)
    if unknown:
        parser.error(f"no {', '.join(unknown)}; there are {', '.join(parts)}")
    made = build()
    lines, versions = [], []
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(options.parts or parts, made, photo(folder)):
            line, said = time(row, options.rounds, options.threads)
            versions = said or versions
            lines.append(line)
            print(line, flush=True)
    torch, transformers = versions or ("?", "?")
    head = [
        "# Beside transformers, PEFT and Pillow",
        "",
        f"`{' '.join(['benches/peers/run', *options.parts])}` on {processor_name()}, {options.threads} threads, {options.rounds} rounds in turn, ours in the bench",
        f"(release) profile; torch {torch}, transformers {transformers}. Seconds: median (least–most). Faster: median of the paired ratios, above 1",
        "where ours is faster. MB: growth of the peak of resident memory since the start (ours) or the imports (theirs).",
        "",
        "A step is the reference's forward (unless cached), the policy's forward and backward, clipping and AdamW, in f32, LoRA on all linear",
        "layers. Ours packs a pair into one row; theirs is what TRL does: chosen and rejected rows, `logits_to_keep`, sdpa. Neither runs a tower.",
        "Ours also makes ASPO's metrics and reads the rows into batches.",
        "",
        "| work | beside | ours, s | theirs, s | faster | aim | ours, MB | theirs, MB | of theirs | aim |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    text = "\n".join(head + lines) + "\n"
    partial = options.out.with_suffix(".tmp")
    partial.write_text(text)
    partial.replace(options.out)


main()
