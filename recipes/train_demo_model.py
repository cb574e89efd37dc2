"""Train the demo model of hf_dumper from scratch: a Llama of 0.87 M parameters.

Run (8 minutes on one CPU core): ``python recipes/train_demo_model.py --out my_demo_model``.
What to look at: the printed loss falls from ln(1024) = 6.9 to below 0.3; ``--out`` gets a model for
``from_pretrained`` and ``training.json``, the settings and the loss curve. Half the rows are chats:
the user begins a paragraph, the assistant continues. Some input tokens, ever fewer, are swapped.
"""

import argparse
import json
import random
from importlib.metadata import version
from pathlib import Path

import torch
import transformers as tf
from tokenizers import ByteLevelBPETokenizer, Tokenizer

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}"
    "{{eos_token if m.role == 'assistant'}}{% endfor %}{{'<|assistant|>' if add_generation_prompt}}"
)
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHAPE = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "vocab_size": 1024}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
FIXED = {"noise": 0.1, "warmup": 100, "decay": 0.1, "clip": 1.0, "init_std": 0.03, "tokens": 2048}
WINDOWS = (128, 256, 128, 512)  # tokens in a row, one length per step, in turn
Result = tuple[tf.PreTrainedTokenizerFast, tf.LlamaForCausalLM, list[float]]


def make_tokenizer(documents: list[str]) -> tf.PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, which gives back any text unchanged."""
    bpe = ByteLevelBPETokenizer()
    options = {"special_tokens": [*SPECIAL.values(), *ROLES], "show_progress": False}
    bpe.train_from_iterator(documents, SHAPE["vocab_size"], **options)
    inputs = {"model_input_names": ["input_ids", "attention_mask"], "padding_side": "left"}
    inputs |= {"chat_template": CHAT_TEMPLATE, "model_max_length": 512, **SPECIAL}
    return tf.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(bpe.to_str()), **inputs)


def make_chat(rng: random.Random, words: list[str]) -> list[dict[str, str]]:
    """Cut a paragraph into a user and an assistant turn; half the time after a system message."""
    cut, first = rng.randint(4, 10), rng.randint(0, 1)
    user, assistant = " ".join(words[:cut]), " " + " ".join(words[cut:])
    turns = [("system", "Continue the text."), ("user", user), ("assistant", assistant)]
    return [{"role": role, "content": content} for role, content in turns[first:]]


def make_streams(corpus: Path, seed: int) -> tuple[tf.PreTrainedTokenizerFast, list[torch.Tensor]]:
    """Give the tokenizer and two rows of ids: all texts in turn, and four chats per paragraph."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(corpus.glob("*.txt"))]
    parts = [[" ".join(p.split()) for p in text.split("\n\n") if p.split()] for text in texts]
    documents, rng = ["\n\n".join(paragraphs) for paragraphs in parts], random.Random(seed)
    tokenizer = make_tokenizer(documents)
    middle = [p.split() for paragraphs in parts for p in paragraphs if 16 <= len(p.split()) <= 120]
    chats = [make_chat(rng, words) for words in rng.sample(middle * 4, 4 * len(middle))]
    rows = [f"<s>{d}</s>" for d in documents], tokenizer.apply_chat_template(chats, tokenize=False)
    encode = tokenizer.backend_tokenizer.encode
    return tokenizer, [torch.tensor(encode("".join(texts)).ids) for texts in rows]


def draw(stream: torch.Tensor, starts: torch.Tensor, rows: int, size: int) -> torch.Tensor:
    """Draw rows of the stream, each begun at one of ``starts``; past the end it wraps around."""
    places = starts[torch.randint(len(starts), (rows, 1))] + torch.arange(size)
    return stream[places % len(stream)]


def train(corpus: Path, seed: int, steps: int, rate: float, stop: int | None = None) -> Result:
    """Take the first ``stop`` of ``steps`` steps; the role tokens (3 to 5) are never a target."""
    tokenizer, (plain, chat) = make_streams(corpus, seed)
    every, begins = torch.arange(len(plain)), (chat == IDS["bos_token_id"]).nonzero()[:, 0]
    torch.manual_seed(seed)
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**SHAPE, **HEADS, **IDS, tie_word_embeddings=True))
    for weight in (weight for weight in model.parameters() if weight.dim() > 1):
        torch.nn.init.normal_(weight, std=FIXED["init_std"])
    adam = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=FIXED["decay"])
    schedule, losses = tf.get_cosine_schedule_with_warmup(adam, FIXED["warmup"], steps), []
    for step, length in enumerate((WINDOWS * steps)[: stop or steps]):
        rows = FIXED["tokens"] // length // 2
        ids = torch.cat([draw(chat, begins, rows, length), draw(plain, every, rows, length)])
        swap = (torch.rand(ids.shape) < FIXED["noise"] * (1 - step / steps)) & (ids > 5)
        seen = torch.where(swap, torch.randint(6, SHAPE["vocab_size"], ids.shape), ids)
        loss = model(input_ids=seen, labels=ids.where((ids < 3) | (ids > 5), -100)).loss
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), FIXED["clip"])
        adam.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 0:
            print(f"step {step:5d}  loss {losses[-1]:.4f}", flush=True)
    return tokenizer, model, losses


def main() -> None:
    """Train on one thread; write the bfloat16 model, the tokenizer and the training record."""
    parser = argparse.ArgumentParser(description="Train the demo model from scratch.")
    parser.add_argument("--corpus", type=Path, default=Path(__file__).parent / "demo_corpus")
    parser.add_argument("--out", type=Path, required=True)
    for flag, default in (("--seed", 7), ("--steps", 2200), ("--rate", 4e-3)):
        parser.add_argument(flag, type=type(default), default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer, model, losses = train(args.corpus, args.seed, args.steps, args.rate)
    model.generation_config = tf.GenerationConfig(do_sample=False, **IDS)
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    setup = args.out / "tokenizer_config.json"  # name the class as older releases know it, too
    setup.write_text(setup.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    record = {"seed": args.seed, "steps": args.steps, "rate": args.rate, **FIXED}
    record |= {"windows": WINDOWS, "final_loss": round(sum(losses[-50:]) / 50, 4)}
    record["versions"] = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    record["losses"] = {i: round(x, 4) for i, x in enumerate(losses) if i < 60 or i % 50 == 0}
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
