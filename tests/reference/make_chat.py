"""Renders random conversations with a published chat template.

    python tests/reference/make_chat.py tokenizer_config.json N \
        > tests/data/tokenizer/chat_v3.jsonl

The template is the one in the tokenizer_config.json of DeepSeek-V3, run by
jinja2 in the environment that transformers gives it. One conversation a line:
messages (tool calls as [type, name, arguments]), generation_prompt, text. The
conversations are made from a seed; the first ones are the plain cases.
"""
import json
import random
import sys

from jinja2.sandbox import ImmutableSandboxedEnvironment

WORDS = ["Hi", "What is 2+2?", "", "4", "你好", "two\nlines\n", " padded ",
         "<think>hm</think>yes", "a </think> b </think> c", "ü — “q”", "{}"]


def template(path):
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True)
    names = {key: config[key]["content"] for key in ("bos_token", "eos_token")}
    return environment.from_string(config["chat_template"]), names


def call(r):
    return {"type": "function", "function": {
        "name": r.choice(["weather", "add", "搜索"]),
        "arguments": r.choice(['{"city": "Paris"}', "{}", '{"a": 1}\n'])}}


def message(r):
    role = r.choice(["user", "user", "assistant", "assistant", "call", "tool",
                     "tool", "system"])
    if role == "call":
        calls = [call(r) for _ in range(r.randint(1, 3))]
        return {"role": "assistant", "content": None, "tool_calls": calls}
    return {"role": role, "content": r.choice(WORDS)}


def conversations(n):
    user = {"role": "user", "content": "Hi"}
    hello = {"role": "assistant", "content": "Hello!"}
    system = {"role": "system", "content": "Be brief."}
    plain = [[], [user], [system, user], [user, hello, user],
             [system, user, hello], [system, system, user]]
    yield from plain
    r = random.Random(1)
    for _ in range(n - len(plain)):
        yield [message(r) for _ in range(r.randint(1, 9))]


def packed(m):
    out = {"role": m["role"], "content": m["content"]}
    if "tool_calls" in m:
        out["calls"] = [[c["type"], c["function"]["name"],
                         c["function"]["arguments"]] for c in m["tool_calls"]]
    return out


def main():
    jinja, names = template(sys.argv[1])
    for i, messages in enumerate(conversations(int(sys.argv[2]))):
        prompt = i % 3 != 2
        text = jinja.render(messages=messages, add_generation_prompt=prompt,
                            **names)
        row = {"messages": [packed(m) for m in messages],
               "generation_prompt": prompt, "text": text}
        print(json.dumps(row, separators=(",", ":"), ensure_ascii=False))


if __name__ == "__main__":
    main()
