"""Writes base/unicode_tables.h from a list of ranges.

    python tests/reference/make_unicode.py \
        tests/data/tokenizer/unicode_classes.json > base/unicode_tables.h

The list holds, for each of L M N P S Nd space, the code points that the
regular expressions \\p{L} … \\s of the Hugging Face tokenizers match
(Unicode 16). With the word `check` as a second argument nothing is written:
the list is compared with the regular expressions themselves, code point by
code point (needs the `tokenizers` package).
"""
import json
import sys

BITS = {"L": 1, "M": 2, "N": 4, "P": 8, "S": 16, "space": 32, "Nd": 64}
END = 0x110000
PAGED = 0x20000     # below this, a page of 256 has its own entry


def classes(ranges):
    table = bytearray(END)
    for name, bit in BITS.items():
        for low, high in ranges[name]:
            for cp in range(low, high + 1):
                table[cp] |= bit
    return table


def runs(table):
    """(start, class) wherever the class changes."""
    out = [(0, table[0])]
    for cp in range(1, END):
        if table[cp] != table[cp - 1]:
            out.append((cp, table[cp]))
    return out


def pages(starts):
    """Index of the run that holds the first code point of each page."""
    out, run = [], 0
    for page in range(PAGED // 256 + 1):
        while run + 1 < len(starts) and starts[run + 1] <= page * 256:
            run += 1
        out.append(run)
    return out


def c_array(kind, name, values, form):
    text = f"static const {kind} {name}[{len(values)}] = {{\n"
    line = "   "
    for value in values:
        item = " " + form % value + ","
        if len(line) + len(item) > 78:
            text += line + "\n"
            line = "   "
        line += item
    return text + line + "\n};\n"


def check(table):
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split
    for name, bit in BITS.items():
        regex = r"\s" if name == "space" else rf"\p{{{name}}}"
        split = Split(Regex(regex), "isolated")
        for cp in range(END):
            if 0xD800 <= cp < 0xE000:
                continue
            found = len(split.pre_tokenize_str(chr(cp) * 2)) == 2
            if found != bool(table[cp] & bit):
                sys.exit(f"{regex}: U+{cp:04X} differs")
    print("every code point agrees")


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        data = json.load(file)
    table = classes({k: v["rust_0_23_2"] for k, v in data.items()})
    if sys.argv[2:] == ["check"]:
        return check(table)
    found = runs(table)
    print("/* unicode_tables.h: generated, do not edit.\n *\n"
          " *     python tests/reference/make_unicode.py \\\n"
          " *         tests/data/tokenizer/unicode_classes.json "
          "> base/unicode_tables.h\n *\n"
          " * Unicode 16. A run is its first code point << 8 | its class; a"
          " page of 256\n * code points names the run that its first one"
          " lies in. */")
    print(c_array("uint8_t", "ascii_class", table[:128], "%d"))
    print(c_array("uint32_t", "class_run", [s << 8 | c for s, c in found],
                  "0x%x"))
    print(c_array("uint16_t", "page_run", pages([s for s, _ in found]),
                  "%d"), end="")


if __name__ == "__main__":
    main()
