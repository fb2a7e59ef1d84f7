"""Generated command lines and configuration files: mostly wrong, some right, all of them cheap where they are right."""

import re

COMMANDS = (
    ("pretrain",), ("generate",), ("fill",), ("evaluate",), ("finetune",), ("predict",), ("explain",), ("kernels",),
    ("data",), ("data", "prepare"), ("data", "show"), ("tokenizer",), ("tokenizer", "train"), ("tokenizer", "encode"),
    ("tokenizer", "decode"),
)  # fmt: skip
NUMBERS = (
    "0", "1", "2", "3", "-1", "-0", "7", "16", "0.0", "0.5", "1.5", "-0.1", "1e-9", "1e309", "-1e309", "nan", "inf",
    "-inf", "1_0", "0x10", "１２", "1e3", "999999999999", "9223372036854775807", "9223372036854775808",
    "18446744073709551616", "-9223372036854775809", "1" + "0" * 30, "1" * 5000,
)  # fmt: skip
WORDS = (
    "", " ", "none", "true", "false", "auto", "cpu", "cuda", "mps", "meta", "loss", "latest", "best", "adamw", "muon",
    "sgd", "decoder", "encoder", "causal_lm", "masked_lm", "padded", "packed", "char", "byte", "bpe", "unigram",
    "lora", "skip", "stop", "a,b", ",", "[", "{}", "[]", "%s", "%", "=", "==", "a=b", "é", "日本", "\u202e", "\udcff",
    "x\udc80y", "a\x00b", "\n", "\t", "x" * 3000, "-", "--", "---", "-x", "--help", "--json", "*", "~", "$HOME", "'",
    '"', "\\", "null", "None", "NaN", "[MASK]",
)  # fmt: skip
TOML_VALUES = (
    "1", "-1", "0", "1.5", "nan", "inf", "true", '""', '"x"', '"none"', '"é"', '"\\u0000"', "[]", "[1]", '["a", 1]',
    "{}", "{a = 1}", "1979-05-27", "07:32:00", "1e400", "9223372036854775807", "9223372036854775808", "1" + "0" * 40,
    "0xffffffffff", '"' + "y" * 2000 + '"', "[[1], [2]]", "[nan]", '"""\n"""',
)  # fmt: skip
NO_TOML = (
    b"", b"\xef\xbb\xbf", b"\xff\xfe", b"[", b"[train", b"a", b"= 1", b"a = ", b"[a]\n[a]\n", b"\x00",
    b"[train]\r\nseed = 1\r", b"a" * 10000, b"[" * 3000, b"a = " + b"[" * 3000, b"a." * 3000 + b"b = 1",
)  # fmt: skip
CHEAP = {
    "model.context": ("4", "8", "16"), "model.num_layers": ("1", "2"), "model.width": ("8", "16"),
    "model.num_heads": ("1", "2"), "tokenizer.vocab_size": ("300",), "train.batch_size": ("2", "4"),
    "train.max_steps": ("1", "2"), "train.device": ("cpu",),
}  # fmt: skip
SLOW = {"help", "train.compile"}  # options that are left out: the second takes a minute wherever it is right


class Fuzz:
    """Makes words from a generator of random numbers.

    folder: where files may be written; it is the current directory when the words are run. paths: what exists there.
    options: command -> its options as `--help` lists them.
    """

    def __init__(self, chance, folder, paths, options):
        self.chance, self.folder, self.paths, self.options = chance, folder, [str(path) for path in paths], options
        self.made = 0

    def value(self, option):
        """Return a value for an option: a right one now and then."""
        pool = self.chance.choice((NUMBERS, WORDS, self.paths, CHEAP.get(option, WORDS), CHEAP.get(option, NUMBERS)))
        return self.chance.choice(pool)

    def settings(self, names, count):
        """Return words that set some options."""
        words = []
        for name in self.chance.choices(names, k=count):
            style = self.chance.random()
            if name in ("overwrite", "resume") and style < 0.9:  # else most lines would be about them
                continue
            if style < 0.1:
                words.append(f"--{name}")
            elif style < 0.3:
                words.append(f"--{name}={self.value(name)}")
            else:
                words += [f"--{name}", self.value(name)]
            if self.chance.random() < 0.03:
                words[-1] = self.misspelt(words[-1])
        return words

    def misspelt(self, word):
        """Return a word with a letter gone, doubled or changed."""
        place = self.chance.randrange(len(word) + 1)
        return word[:place] + self.chance.choice(("", word[place : place + 1] * 2, "q", "-")) + word[place + 1 :]

    def toml(self):
        """Write a configuration file and return its name."""
        self.made += 1
        path = self.folder / f"fuzz-{self.made}.toml"
        if self.chance.random() < 0.15:
            path.write_bytes(self.chance.choice(NO_TOML))
            return path.name
        names = self.options[self.chance.choice((("pretrain",), ("finetune",)))]
        sections = {}
        for name in self.chance.choices(names, k=self.chance.randint(1, 5)):
            section, _, key = name.rpartition(".")
            value = self.chance.choice((*TOML_VALUES, *(f'"{v}"' for v in CHEAP.get(name, ()))))
            sections.setdefault(section, {})[key if self.chance.random() > 0.1 else f"{key}s"] = value
        lines = [line for section, keys in sorted(sections.items()) for line in self.section(section, keys)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path.name

    def section(self, name, keys):
        """Return the lines of a section."""
        return [*([f"[{name}]"] if name else []), *(f"{key} = {value}" for key, value in keys.items())]

    def words(self):
        """Return one command line."""
        chance = self.chance
        if chance.random() < 0.03:
            return [self.misspelt(chance.choice(COMMANDS)[0]), *chance.choices(WORDS, k=chance.randint(0, 2))]
        command = chance.choice((*COMMANDS, ("pretrain",), ("pretrain",), ("finetune",)))
        names = self.options[command] or ["json"]
        words = [*command, *self.right_start(command)]
        words += self.settings(names, chance.choice((0, 0, 1, 1, 1, 2, 3)))
        if chance.random() < 0.15:
            words.insert(chance.randint(len(command), len(words)), self.value(""))
        if chance.random() < 0.05:
            chance.shuffle(words)
        return words

    def right_start(self, command):
        """Return words that let a command come far, most of the time."""
        chance = self.chance
        self.made += 1
        out = f"out-{chance.choice((self.made, self.made, 'same', 'decoder'))}"
        source = chance.choice(("story.txt", "tiny.txt", "empty.txt", "noise.bin", ".", "nowhere"))
        cheap = [word for name, values in CHEAP.items() for word in (f"--{name}", chance.choice(values))]
        run = chance.choice(("decoder", "encoder", "tuned", "damaged", "nowhere", "story.txt"))
        if chance.random() < 0.2:
            return []
        match command:
            case ("pretrain",):
                preset = chance.choice((["--preset", chance.choice(("tiny-decoder", "tiny-encoder"))], [self.toml()]))
                how = chance.choice(([*preset, "--data.input", source, "--out", out], preset, ["--resume", run]))
                return [*how, *cheap] if "--resume" not in how else how
            case ("finetune",):
                tables = ["--train", "table.csv", "--valid", chance.choice(("table.csv", source))]
                how = chance.choice(
                    ([run, *tables], [run, *tables], ["--config", self.toml(), run, *tables], ["--resume", run])
                )
                if "--resume" in how:
                    return how
                return [
                    *how,
                    "--out",
                    out,
                    "--train.max_steps",
                    "1",
                    "--train.batch_size",
                    "2",
                    "--train.device",
                    "cpu",
                ]
            case ("generate",):
                return [run, "--prompt", chance.choice(WORDS), "--max-tokens", "2"]
            case ("fill",):
                return [run, "--text", chance.choice(("the [MASK]", *WORDS))]
            case ("predict" | "explain",):
                return [
                    run,
                    *chance.choice(
                        (["--text", chance.choice(WORDS)], ["--input", chance.choice(("table.csv", source))])
                    ),
                ]
            case ("evaluate",):
                return [run]
            case ("data", "prepare") | ("tokenizer", "train"):
                return ["--data.input", source, "--out", out]
            case ("data", "show"):
                return ["--data.input", source]
            case ("tokenizer", "encode"):
                return ["decoder/tokenizer", "--text", chance.choice(WORDS)]
            case ("tokenizer", "decode"):
                return ["decoder/tokenizer", "--tokens", chance.choice((*NUMBERS, *WORDS, "1 2 3"))]
        return []


def options_in(text):
    """Return the names of the options that a help text lists."""
    return sorted(set(re.findall(r"(?<![\w-])--([\w][\w.-]*)", text)) - SLOW)
