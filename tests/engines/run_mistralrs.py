"""mistral.rs on the CPU, in F32. It answers in text: a tokenizer of words
('t17' is id 17) goes with the pack, and each prefix is a request of its own.
"""
import json
import tempfile

import adapter


def word_tokenizer(vocab):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    words = {f"t{i}": i for i in range(vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, "t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def with_tokenizer(pack, work, vocab):
    for name in "config.json", "model.safetensors", "generation_config.json":
        (work / name).symlink_to(pack / name)
    word_tokenizer(vocab).save(str(work / "tokenizer.json"))
    (work / "tokenizer_config.json").write_text(json.dumps({
        "chat_template": "{% for m in messages %}{{ m['content'] }}"
        "{% endfor %}"}))


def ask(runner, ids, vocab):
    """Log-probabilities of what follows."""
    from mistralrs import ChatCompletionRequest
    answer = runner.send_chat_completion_request(ChatCompletionRequest(
        messages=" ".join(f"t{i}" for i in ids), model="default",
        max_tokens=1, logprobs=True, top_logprobs=vocab, temperature=0))
    row = [float("nan")] * vocab
    for top in answer.choices[0].logprobs.content[0].top_logprobs:
        row[top.token] = top.logprob
    return row


def run(pack, ids):
    import numpy as np
    from mistralrs import ModelDType, Runner, Which
    vocab = adapter.config(pack)["vocab_size"]
    with tempfile.TemporaryDirectory() as work:
        with_tokenizer(pack, adapter.Path(work), vocab)
        runner = Runner(which=Which.Plain(model_id=work,
                                          dtype=ModelDType.F32))
        return {"logprobs": np.array([ask(runner, ids[:n + 1], vocab)
                                      for n in range(len(ids))], np.float32)}


if __name__ == "__main__":
    adapter.main("mistralrs", run)
