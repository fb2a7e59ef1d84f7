"""Which prompts `minillm generate` is asked for."""

from minillm.cli.generate import read_prompts


def test_a_line_of_a_prompts_file_is_one_prompt(tmp_path) -> None:
    """Only a newline ends it, of DOS too; what else Unicode calls a line end stays in the prompt."""
    (tmp_path / "prompts.txt").write_bytes("\ufeffone\x0ctwo\r\nthree\u2028four\x85\n\nfive".encode())
    assert read_prompts(["zero"], tmp_path / "prompts.txt") == ["zero", "one\x0ctwo", "three\u2028four\x85", "five"]
