"""Which prompts `minillm generate` is asked for, and that the choice of tokens is what the words say."""

import dataclasses

from minillm.cli.generate import main, read_prompts
from minillm.generate import GenerateConfig, Generation
from minillm.loading import Loaded


def test_every_option_reaches_the_choice_of_tokens(monkeypatch, tiny_runs):
    """No setting is left at its default, so that one which has no option, or is lost on the way, is seen."""
    asked = []

    def generate(model, tokenizer, prompts, config, *, ends, on_text):
        asked.append((prompts, config, ends))
        return [Generation(text="", tokens=0, stop="length") for _ in prompts]

    monkeypatch.setattr("minillm.generate.generate", generate)
    monkeypatch.setattr(Loaded, "ends", frozenset({9}))  # of an imported model
    words = "--prompt a --prompt b --max-tokens 7 --temperature 0.5 --top-k 3 --top-p 0.6 --min-p 0.07"
    words += " --repetition-penalty 1.4 --stop x --stop y --seed 5 --no-cache"
    main([str(tiny_runs["decoder"]), *words.split()])
    sampling = {"temperature": 0.5, "top_k": 3, "top_p": 0.6, "min_p": 0.07, "repetition_penalty": 1.4}
    config = GenerateConfig(max_tokens=7, stop=("x", "y"), seed=5, use_cache=False, **sampling)
    assert asked == [(["a", "b"], config, {9})]
    assert all(getattr(config, field.name) != field.default for field in dataclasses.fields(config))


def test_a_line_of_a_prompts_file_is_one_prompt(tmp_path) -> None:
    """Only a newline ends it, of DOS too; what else Unicode calls a line end stays in the prompt."""
    (tmp_path / "prompts.txt").write_bytes("\ufeffone\x0ctwo\r\nthree\u2028four\x85\n\nfive".encode())
    assert read_prompts(["zero"], tmp_path / "prompts.txt") == ["zero", "one\x0ctwo", "three\u2028four\x85", "five"]
