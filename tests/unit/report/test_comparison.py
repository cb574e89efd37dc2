"""What a terminal shows of a comparison."""

import io

import pytest
from rich.console import Console

from hf_dumper.core.verdicts import Comparison, Divergence, Finding, Verdict
from hf_dumper.report.comparison import comparison, snippet, worst
from hf_dumper.report.words import message
from tests.comparisons import compared, failed, pair, passed, token

TOKENS = "Tokens that do not agree:"
SCREEN = 50
"""Lines of a terminal that is not small."""


def screen(found: Comparison, width: int = 80) -> list[str]:
    """Return the lines, as a pipe is given them."""
    file = io.StringIO()
    console = Console(file=file, width=width, markup=False, highlight=False, emoji=False)
    console.print(comparison(found))
    code = snippet(found)
    if code is not None:
        console.print(code, soft_wrap=True)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def section(lines, title):
    """Return the lines under a title."""
    start = lines.index(title) + 1
    return lines[start : lines.index("", start) if "" in lines[start:] else None]


def fact(lines, name):
    """Return what stands beside a name."""
    (line,) = [line for line in lines if line.split("  ")[0] == name]
    return line[len(name) :].strip()


def test_a_failure_says_where_first():
    assert screen(failed())[0] == "FAIL  first at model.layers.1.self_attn output.0, token 0"


def test_a_failure_names_run_token_row_and_position():
    assert fact(screen(failed()), "where") == "run 0, token 0, row 0, position 3"


def test_a_failure_says_how_sure():
    assert fact(screen(failed(), 120), "how sure") == (
        "functional: its inputs and its children agree, so the fault is in its own forward"
    )


def test_what_was_not_checked_before_it_is_said():
    said = "first among those checked: 2 records before it could not be"
    assert said in [line.strip() for line in screen(failed())]


def test_a_failure_says_which_rule_decided():
    assert fact(screen(failed()), "why") == "rel_l2 0.31 > 0.00001 (fp32)"


def test_a_failure_shows_its_evidence_and_its_suspects():
    lines = screen(failed())
    assert fact(lines, "evidence") == "channels 64..127 negated at position 3"
    assert fact(lines, "suspects") == "model.layers.0.mlp"


def test_the_pairs_around_the_first_divergence_are_shown_in_order():
    shown = section(screen(failed(), 100), "Around it, in order of completion:")[1:]
    names = [line.split()[-2] for line in shown]
    assert names[-2:] == ["model.layers.1.self_attn", "model.layers.1"]
    assert names[0] == "model.layers.1.self_attn.q_proj"


def test_pairs_of_another_token_are_not_around_it():
    found = failed()
    rows = found.results.to_pylist()
    rows[1]["token"] = 7
    other = compared(Verdict.FAIL, rows, divergence=found.divergence)
    assert "k_proj" not in "".join(section(screen(other), "Around it, in order of completion:"))


def test_the_snippet_is_printed_whole_and_unwrapped():
    lines = section(screen(failed(), 40), "To see it in Python:")
    assert "\n".join(line[2:] for line in lines) + "\n" == failed().divergence.snippet


def test_tokens_that_differ_are_shown_with_their_text():
    (shown,) = section(screen(failed()), TOKENS)[1:]
    assert " ".join(shown.split()) == r"diverged 0 0 1 another 5 ' a' / 7 ' b\n' 1.5 1e-06"


def test_a_token_that_both_were_given_is_shown_once():
    given = token(2, verdict="fail", top1_equal=False, golden_text="x", candidate_text="x")
    (shown,) = section(screen(compared(Verdict.FAIL, tokens=[given])), TOKENS)[1:]
    assert " ".join(shown.split()) == "fail 0 0 2 another 5 'x' 1.5 1e-06"


def test_tokens_with_another_first_choice_are_shown_first():
    tokens = [token(i, verdict="fail") for i in range(9)] + [token(9, 5, 6, "diverged")]
    shown = section(screen(compared(Verdict.FAIL, tokens=tokens)), TOKENS)[1:]
    assert len(shown) == 5
    assert shown[0].startswith("diverged")


def test_tokens_are_counted():
    said = "2 tokens: 1 identical, 1 diverged; largest KL 1e-06 nats"
    assert fact(screen(failed()), "tokens") == said


def test_what_has_no_partner_is_counted_with_its_reason():
    assert "1 record of the golden unmatched: not there" in "".join(screen(failed()))


def test_a_pass_is_short_and_says_what_was_compared():
    lines = screen(passed())
    assert lines[0] == "PASS  all that was compared agrees within the limits"
    assert fact(lines, "compared") == "2 pairs: 1 identical, 1 pass"
    assert "Around it" not in "".join(lines)


def test_another_setting_is_told():
    said = "dtype: float32 / bfloat16 (rounds differently)"
    assert fact(screen(passed()), "setting") == said


def test_other_inputs_are_the_answer():
    finding = Finding("weights of model.norm", "12ab", "34cd", "another checkpoint")
    lines = screen(compared(Verdict.INPUTS, inputs=(finding,)))
    assert lines[0].startswith("INPUTS DIFFER  the models were not given the same")
    assert fact(lines, "differs") == "weights of model.norm: 12ab / 34cd (another checkpoint)"


def test_nothing_compared_says_so():
    lines = screen(compared(Verdict.NOTHING))
    assert lines[0].startswith("NOTHING COMPARED  the two dumps have nothing in common")
    assert fact(lines, "compared") == "no pair of tensors"


def test_values_that_are_not_finite_say_why():
    nan = pair("model.norm", verdict=Verdict.NON_FINITE, rel_l2=None, reason="7 NaN born here")
    divergence = Divergence("model.norm", "output", 0, 0, 0, "source")
    lines = screen(compared(Verdict.NON_FINITE, [nan], divergence=divergence))
    assert lines[0].startswith("NON-FINITE  first at model.norm output")
    assert fact(lines, "why") == "7 NaN born here"


def test_a_divergence_without_a_pair_is_shown():
    divergence = Divergence("root", "weight.x", 0, None, None, "weights")
    found = compared(Verdict.FAIL, divergence=divergence)
    assert fact(screen(found), "how sure") == "weights: its weights are not the same"


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("found", [failed(), passed(), compared(Verdict.NOTHING)])
def test_no_line_but_code_is_wider_than_the_terminal(found, width):
    lines = screen(found, width)
    text = lines[: lines.index("To see it in Python:")] if found.divergence else lines
    assert max(map(len, text)) <= width


def test_thousands_of_pairs_fit_on_one_screen():
    names = [f"model.layers.{i}.some_very_long_name_of_a_module.q_proj" for i in range(3000)]
    pairs = [pair(name, verdict=Verdict.FAIL, rel_l2=0.1 * i) for i, name in enumerate(names)]
    tokens = [token(i, 5, 6, "diverged") for i in range(300)]
    suspects = tuple(f"model.layers.{i}" for i in range(50))
    divergence = Divergence(names[0], "output", 0, 0, 0, "source", suspects=suspects)
    lines = screen(compared(Verdict.FAIL, pairs, tokens, divergence=divergence))
    assert len(lines) <= SCREEN
    assert max(map(len, lines)) <= 80


def test_nothing_in_a_pipe_steers_a_terminal():
    nasty = pair("model\x1b[31m.norm", verdict=Verdict.FAIL, reason="\x1b]0;title\x07")
    divergence = Divergence("model\x1b[31m.norm", "output", 0, 0, 0, "source", ("\x1b[2J",))
    found = compared(Verdict.FAIL, [nasty], [token(0, verdict="diverged")], divergence=divergence)
    assert "\x1b" not in "\n".join(screen(found))


def test_the_worst_pairs_are_faults_first_then_the_largest():
    pairs = [
        pair("small", rel_l2=0.1),
        pair("large", rel_l2=0.9),
        pair("broken", verdict=Verdict.NON_FINITE, rel_l2=None),
        pair("equal", verdict=Verdict.IDENTICAL, rel_l2=0.0),
    ]
    names = [row["module"] for row in worst(compared(Verdict.NON_FINITE, pairs), 9)]
    assert names == ["broken", "large", "small"]


def test_warnings_come_before_what_passes():
    pairs = [pair("large", rel_l2=0.9), pair("odd", verdict=Verdict.WARN, rel_l2=0.1)]
    names = [row["module"] for row in worst(compared(Verdict.WARN, pairs), 9)]
    assert names == ["odd", "large"]


def test_inputs_that_agree_are_not_around_a_divergence():
    fault = pair("m.b", verdict=Verdict.FAIL)
    pairs = [pair("m.a", "input.0"), pair("m.a"), pair("m.b", "input.0"), fault]
    divergence = Divergence("m.b", "output", 0, 0, 0, "source")
    lines = screen(compared(Verdict.FAIL, pairs, divergence=divergence))
    shown = section(lines, "Around it, in order of completion:")[1:]
    assert [line.split()[-2:] for line in shown] == [["m.a", "output"], ["m.b", "output"]]


def test_many_findings_are_cut_short():
    findings = tuple(Finding(f"weight w{i}", 1, 2, "") for i in range(99))
    lines = screen(compared(Verdict.INPUTS, inputs=findings))
    assert "weight w0, weight w1 and 97 more" in " ".join(lines)
    assert "and 95 more" in [line.strip() for line in lines]


def test_the_message_has_all_but_the_tables():
    text = message(failed())
    assert text.startswith("FAIL: first at model.layers.1.self_attn output.0, token 0.\n")
    for part in ("rel_l2 0.31 > 0.00001", "functional: ", "channels 64..127", "golden.load("):
        assert part in text
