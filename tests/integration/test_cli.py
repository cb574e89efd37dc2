"""The commands, as a user meets them: what they print, their exit status, and what they leave."""

import json
import os
import pty
import shutil
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from transformers.utils import logging

from hf_dumper.cli.failures import DONE, FAILED, IMPOSSIBLE, hub_reason
from tests.commands import opened, run_tiny, save_model


@pytest.fixture
def dump(place, cli):
    """Return the path of a dump of two prompts, four tokens each."""
    run = ("run", "tiny", "--prompt", "one", "--prompt", "two", "--max-new-tokens", 4)
    status, _, err = cli(*run, "--dump", "d", "--token-range", "all", "--statistics", "both")
    assert (status, err) == (DONE, "")
    return place / "d"


# --- help -----------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy():
    heavy = {"accelerate", "datasets", "numpy", "pyarrow", "torch", "transformers"}
    code = (
        "import sys\nfrom hf_dumper.cli import main\ntry:\n    main([*sys.argv[1:], '--help'])\n"
        f"finally:\n    print(sorted(sys.modules.keys() & {heavy}), file=sys.stderr)"
    )
    names = ("run", "inspect", "show", "demo", "trace", "compare", "judge", "summary", "verify")
    for command in ([], *([name] for name in names)):
        done = subprocess.run(
            [sys.executable, "-c", code, *command], capture_output=True, text=True, check=True
        )
        assert done.stderr.strip() == "[]"
        assert "Usage" in done.stdout


def test_the_version_is_printed(cli):
    status, out, _ = cli("--version")
    assert status == DONE
    assert out.startswith("hf_dumper ")


def test_no_command_shows_the_help(cli):
    assert "inspect" in "".join(cli()[1:])


# --- run ------------------------------------------------------------------------------------------


def test_run_prints_answers_and_what_to_do_next(place, cli):
    status, out, err = cli(*run_tiny())
    assert (status, err) == (DONE, "")
    assert "run 0  one → " in out
    assert "token 0 (the prefill) of 2" in out
    assert "hf-dumper inspect d" in out
    assert opened(place / "d").run_info(0)["complete"]


def test_run_without_a_folder_makes_one_here(place, cli):
    assert cli("run", "tiny", "--prompt", "one", "--max-new-tokens", 1)[0] == DONE
    assert [p.name.startswith("hf_dump_") for p in place.iterdir() if p.name != "tiny"] == [True]


def test_run_json_parses_and_is_all_of_stdout(place, cli):
    status, out, err = cli(*run_tiny("--json", "--self-check"))
    facts = json.loads(out)
    assert (status, err) == (DONE, "")
    assert facts["self_check"]["identical"] is True
    assert [run["prompt"] for run in facts["runs"]] == [["one"]]
    assert facts["complete"] is True


def test_options_reach_the_configuration(place, cli):
    options = ("--layer-name", "model.layers.*", "--module-list", "Linear", "--tensor-part", 1)
    more = ("--token-range", "0-1", "--statistics", "statistics", "--seed", 3, "--no-hash-weights")
    assert cli(*run_tiny(*options, *more))[0] == DONE
    config = opened(place / "d").manifest["identity"]["dump_config"]
    assert config["layer_name"] == ["model.layers.*"]
    assert config["module_list"] == ["Linear"]
    assert (config["tensor_part"], config["token_range"], config["seed"]) == (1, "0-1", 3)
    assert config["dump_statistics_mode"] == 1
    assert opened(place / "d").manifest["weights"] is None


def test_a_file_gives_the_configuration_and_options_win(place, cli):
    (place / "c.json").write_text('{"tensor_part": 0, "seed": 4, "dump_last_logits": true}')
    assert cli(*run_tiny("--config", "c.json", "--seed", 5))[0] == DONE
    config = opened(place / "d").manifest["identity"]["dump_config"]
    assert (config["tensor_part"], config["seed"], config["dump_last_logits"]) == (0, 5, True)


def test_prompts_come_from_a_file_with_chat(place, cli):
    row = {"id": "q", "messages": [{"role": "user", "content": "hi"}]}
    (place / "p.jsonl").write_text(json.dumps(row))
    run = ("run", "tiny", "--prompts", "p.jsonl", "--chat", "--dump", "d", "--max-new-tokens", 1)
    assert cli(*run)[0] == DONE
    assert opened(place / "d").run_info(0)["prompt"]["text"] == ["<hi>"]


def test_a_model_without_a_head_runs_forwards(place, cli, tiny_llama):
    save_model(tiny_llama().model, place / "headless")
    config = json.loads((place / "headless" / "config.json").read_text())
    (place / "headless" / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    status, out, _ = cli("run", "headless", "--prompt", "one", "--dump", "d", "--self-check")
    assert status == DONE
    assert "Self-check passed" in out


def test_sampling_under_a_seed_repeats(place, cli):
    sampled = ("--do-sample", "--temperature", 2, "--top-k", 50, "--seed", 1, "--json")
    first = json.loads(cli(*run_tiny(*sampled))[1])["runs"][0]["text"]
    assert json.loads(cli(*run_tiny(*sampled))[1])["runs"][0]["text"] == first


def test_the_libraries_are_as_loud_as_before(place, cli):
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    cli(*run_tiny())
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


# --- self-check -----------------------------------------------------------------------------------


def test_self_check_is_told_and_written_to_the_manifest(place, cli):
    status, out, _ = cli(*run_tiny("--self-check"))
    assert status == DONE
    assert "Self-check passed: with and without dumping the same token ids and raw logits" in out
    assert opened(place / "d").manifest["self_check"]["identical"] is True
    assert "self-check  passed" in cli("inspect", "d")[1]


def test_a_failed_self_check_is_status_1_and_the_dump_is_made_all_the_same(place, cli, monkeypatch):
    from hf_dumper.session import DumpSession

    arm = DumpSession.arm

    def arm_badly(self):
        arm(self)
        self._hooks.enter_context(
            self._model.lm_head.register_forward_hook(lambda module, args, output: output + 1)
        )

    monkeypatch.setattr(DumpSession, "arm", arm_badly)
    status, out, _ = cli(*run_tiny("--self-check"))
    assert status == FAILED
    assert "Self-check FAILED: logits of token 0: 128 of 128 values differ" in out
    manifest = opened(place / "d").manifest
    assert manifest["self_check"]["identical"] is False
    assert "FAILED" in cli("inspect", "d")[1]


# --- what goes wrong ------------------------------------------------------------------------------

NO_DUMP = "There is no dump at 'nope'"

BAD = [
    ("bogus", "No such command 'bogus'"),
    ("run", "Missing argument 'MODEL'"),
    ("run tiny", "Give either --prompt TEXT"),
    ("run tiny --prompt x --prompts y.txt", "Give either --prompt TEXT"),
    ("run tiny --prompt x --column y", "--column is about --prompts"),
    ("run tiny --prompt x --promts y", "No such option: --promts"),
    ("run ./tinny --prompt x", "There is no folder './tinny'. Did you mean 'tiny'?"),
    ("run tinny --prompt x", "Cannot load 'tinny': no folder here has that name, and"),
    ("run empty --prompt x", "'empty' holds no config.json"),
    ("run . --prompt x", "There are models at 'broken', 'tiny'."),
    ("run p.jsonl --prompt x", "'p.jsonl' is a file"),
    ("run broken --prompt x", "Cannot load 'broken': "),
    ("run tiny --prompts promts.jsonl", "There is no file 'promts.jsonl'. Did you mean"),
    ("run tiny --prompts p.jsonl --column promt", "no column 'promt'. Did you mean 'prompt'?"),
    ("run tiny --prompts odd.xlsx", "Cannot tell from the suffix"),
    ("run tiny --prompt x --dump p.jsonl", "'p.jsonl' is a file. Choose another --dump"),
    ("run tiny --prompt x --dump p.jsonl/d", "is a file. Choose another --dump"),
    ("run tiny --prompt x --dump tiny", "tiny is not empty and is no dump"),
    ("run tiny --prompt x --layer-name model.layer.0", "Did you mean 'model.layers.0'"),
    ("run tiny --prompt x --layer-name nope.*.at.all", "No module matches layer_name"),
    ("run tiny --prompt x --module-list Liner", "No module is a 'Liner'. Did you mean 'Linear'"),
    ("run tiny --prompt x --token-range 3-", "Cannot read token_range '3-'"),
    ("run tiny --prompt x --tensor-part 7", "tensor_part must be one of 0, 1, 2, not 7"),
    ("run tiny --prompt x --statistics bot", "'bot' is not one of"),
    ("run tiny --prompt x --device-id 3", "device_id=3 selects nothing"),
    ("run tiny --prompt x --dtype f32", "There is no dtype 'f32'. Did you mean 'float32'"),
    ("run tiny --prompt x --temperature 2", "--temperature: without --do-sample"),
    ("run tiny --prompt x --max-new-tokens 0", "Invalid value for '--max-new-tokens'"),
    ("run tiny --prompt x --token-range 40", "Nothing was dumped to"),
    ("run tiny --prompt x --config nope.json", "Cannot read 'nope.json': No such file"),
    ("run tiny --prompt x --config broken.json", "broken.json is no JSON"),
    ("run tiny --prompt x --config list.json", "holds list, not an object"),
    ("run tiny --prompt x --config typo.json", "'token_rang'.* Did you mean 'token_range'"),
    ("run tiny --prompt x --attn-implementation nope", "Cannot load 'tiny': "),
    ("inspect nope", NO_DUMP),
    ("inspect tiny", "'tiny' is no dump that a reader recognises"),
    ("inspect p.jsonl", "'p.jsonl' is no dump"),
    ("show nope root", NO_DUMP),
]


@pytest.fixture
def traps(place):
    """Put files to stumble over into the working directory."""
    (place / "p.jsonl").write_text('{"prompt": "x"}\n')
    (place / "odd.xlsx").write_text("x")
    (place / "empty").mkdir()
    (place / "broken").mkdir()
    (place / "broken" / "config.json").write_text("{")
    (place / "broken.json").write_text("{")
    (place / "list.json").write_text("[]")
    (place / "typo.json").write_text('{"token_rang": [0]}')


@pytest.mark.filterwarnings("ignore:Tokens .* of token_range were not reached")
@pytest.mark.parametrize(("command", "said"), BAD, ids=[command for command, _ in BAD])
def test_bad_input_is_one_line_and_status_2(traps, cli, command, said):
    status, _, err = cli(*command.split())
    told = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert status == IMPOSSIBLE
    assert len(told) == 1
    assert told[0].startswith("hf-dumper")
    assert all(part in told[0] for part in said.split(".*"))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("inspect d --run 7", "No run 7 in d. Runs: 0, 1."),
        ("inspect d --token 9", "Run 0 has no token 9. Recorded: 0-3."),
        ("inspect d --token 9 --lines", "Run 0 has no token 9. Recorded: 0-3."),
        ("show d model.layer.0", "Did you mean 'model.layers.0'"),
        ("show d model.norm --slot outpt", "'model.norm' has no 'outpt'"),
        ("show d model.norm --slot output --call 3", "no 'output' call 3"),
        ("show d model.norm --values", "Which tensor? Add --slot with one of input.0, output."),
        ("show d model.norm --slot output --row 5", "row"),
        ("run tiny --prompt x --dump d", "token_range is 'all' there and None here"),
    ],
)
def test_what_a_dump_lacks_is_one_line_and_status_2(dump, cli, command, said):
    status, out, err = cli(*command.split())
    assert (status, out) == (IMPOSSIBLE, "")
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize(
    ("option", "name"),
    [
        (("--mode", "api"), "mode"),
        (("--api-list", "linear"), "api_list"),
        (("--analyze",), "analyze"),
        (("--dump-weight",), "dump_weight"),
        (("--dump-kv-cache",), "dump_kv_cache"),
        (("--layout", "msit"), "layout"),
        (("--allow-eager",), "allow_eager"),
    ],
)
def test_every_field_of_the_configuration_is_an_option(place, cli, option, name):
    from hf_dumper.config import _LATER

    status, _, err = cli(*run_tiny(*option))
    if name in _LATER:
        assert status == IMPOSSIBLE
        assert f"{name}=" in err
        assert "not supported yet" in err
    else:
        assert "No such option" not in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told_before_the_model_is_loaded(place, cli):
    (place / "locked").mkdir(mode=0o500)
    status, _, err = cli("run", "nope/at/all", "--prompt", "x", "--dump", "locked/d")
    assert status == IMPOSSIBLE
    assert "no permission in" in err


def test_a_prompt_that_fails_keeps_the_runs_before_it(place, cli):
    run = ("run", "tiny", "--prompt", "good", "--prompt", "bad", "--chat", "--dump", "d")
    status, out, err = cli(*run, "--max-new-tokens", 2)
    assert status == IMPOSSIBLE
    assert "run 0  good → " in out
    assert err.splitlines() == [
        "hf-dumper: The chat template refuses prompt '1': bad words",
        "The 1 prompt before that can be read: hf-dumper inspect d",
    ]
    with opened(place / "d") as reader:
        assert reader.runs() == (0,)
        assert reader.run_info(0)["complete"]
        assert reader.load("lm_head").shape == (1, 1, 128)


def test_an_interrupt_keeps_the_runs_before_it(place, cli, monkeypatch):
    from hf_dumper.runner import prompts as runner

    count = runner._Counter.__call__

    def interrupt(self, ids, scores, **kwargs):
        if ids[0, 0] == ord("t"):
            raise KeyboardInterrupt
        return count(self, ids, scores, **kwargs)

    monkeypatch.setattr(runner._Counter, "__call__", interrupt)
    status, _, err = cli(*run_tiny("--prompt", "two"))
    told = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert status == IMPOSSIBLE
    assert told[0] == "hf-dumper: interrupted."
    assert "before that can be read" in told[1]
    with opened(place / "d") as reader:
        assert reader.run_info(0)["complete"]


def test_a_traceback_is_shown_on_request_only(place, cli, monkeypatch):
    assert "Traceback" not in cli("inspect", "nope")[2]
    monkeypatch.setenv("HF_DUMPER_DEBUG", "1")
    assert "Traceback" in cli("inspect", "nope")[2]


def test_an_incomplete_run_is_status_1(place, cli, monkeypatch):
    from hf_dumper.capture.observer import Observer

    def fail(self, ids, scores):
        self.failure = OSError("the disk is full")

    monkeypatch.setattr(Observer, "see_scores", fail)
    status, out, err = cli(*run_tiny())
    assert status == FAILED
    assert "Run 0 is INCOMPLETE" in out
    assert err.startswith("warning: Run 0 in d is incomplete: ")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("GatedRepoError", "the repository is gated"),
        ("RepositoryNotFoundError", "no such repository"),
        ("LocalEntryNotFoundError", "the hub cannot be reached"),
        ("RevisionNotFoundError", "no such revision"),
    ],
)
def test_errors_of_the_hub_are_recognised_behind_those_of_transformers(name, said):
    import huggingface_hub.errors

    cause = getattr(huggingface_hub.errors, name)
    error = OSError("We could not load it")
    error.__cause__ = cause.__new__(cause)
    assert said in str(hub_reason(error))


# --- inspect and show -----------------------------------------------------------------------------


def test_inspect_shows_runs_and_the_tree(dump, cli):
    status, out, err = cli("inspect", "d")
    assert (status, err) == (DONE, "")
    assert "LlamaForCausalLM" in out
    assert "one → " in out
    assert "layers.0  LlamaDecoderLayer" in out
    assert "layers.1: the same 32 tensors, other values (--all)" in out
    assert "There is more: --run 0-1 and --token 0-3." in out
    assert max(map(len, out.splitlines())) <= 80


def test_inspect_all_unfolds(dump, cli):
    assert "layers.1  LlamaDecoderLayer" in cli("inspect", "d", "--all")[1]


def test_inspect_lines_are_the_documented_ones(dump, cli):
    _, out, _ = cli("inspect", "d", "--lines", "--run", 1, "--token", 0)
    with opened(dump) as reader:
        expected = reader.load("model.layers.0.input_layernorm", "input.0", 0, run=1)
    mean, total = expected.double().mean().item(), expected.double().sum().item()
    line = f"input - mean: {mean:.6g}, sum: {total:.6g}, shape: (1, 3, 64)"
    assert f"Layer model.layers.0.input_layernorm {line}" in out.splitlines()
    assert all(line.startswith("Layer ") for line in out.splitlines())


def test_inspect_json_parses(dump, cli):
    facts = json.loads(cli("inspect", "d", "--json", "--token", 2)[1])
    assert [run["run"] for run in facts["runs"]] == [0, 1]
    assert (facts["run"], facts["token"]) == (0, 2)
    assert {"module", "slot", "mean", "shape", "status"} <= facts["records"][0].keys()


@pytest.mark.parametrize("options", [("--statistics", "statistics"), ("--dump-last-logits",)])
def test_inspect_shows_dumps_of_other_kinds(place, cli, options):
    assert cli(*run_tiny(*options))[0] == DONE
    status, out, err = cli("inspect", "d")
    assert (status, err) == (DONE, "")
    assert "root  LlamaForCausalLM" in out


def test_a_dump_whose_process_was_killed_is_shown(place, cli, monkeypatch, tiny_llama):
    from hf_dumper.config import DumpConfig
    from hf_dumper.model import register_hook

    model = tiny_llama()
    with register_hook(model, DumpConfig("d", "all")) as session:

        def copy_the_dump(module, args, output):  # as it would be found after a kill at this point
            while session.path.exists() and not opened("d").index(0).num_rows:
                time.sleep(0.01)
            shutil.copytree("d", "killed", dirs_exist_ok=True)

        handle = None

        def start(ids, scores, **kwargs):
            nonlocal handle
            handle = handle or model.lm_head.register_forward_hook(copy_the_dump)
            return torch.zeros(1, dtype=torch.bool)

        ids = torch.tensor([[5, 6, 7]])
        model.generate(ids, attention_mask=ids > 0, max_new_tokens=2, stopping_criteria=[start])
    status, out, err = cli("inspect", "killed")
    assert (status, err) == (DONE, "")
    assert "Run 0 is INCOMPLETE: still running, or stopped before its end" in out
    assert "layers.0  LlamaDecoderLayer" in out


def test_an_empty_dump_is_shown(place, cli, tiny_llama):
    from hf_dumper.config import DumpConfig
    from hf_dumper.errors import EmptyDumpError
    from hf_dumper.model import register_hook

    with pytest.raises(EmptyDumpError):
        register_hook(tiny_llama(), DumpConfig("d")).close()
    assert cli("inspect", "d")[:2] == (DONE, cli("inspect", "d")[1])
    assert "There are no runs in this dump." in cli("inspect", "d")[1]
    assert cli("show", "d", "root")[0] == IMPOSSIBLE


def test_show_lists_the_tensors_of_a_module(dump, cli):
    status, out, err = cli("show", "d", "root.model.layers.0.mlp")
    assert (status, err) == (DONE, "")
    assert "model.layers.0.mlp  LlamaMLP" in out
    assert "input.0  (1, 3, 64)" in out


def test_show_prints_the_values_of_a_tensor(dump, cli):
    _, out, _ = cli("show", "d", "lm_head", "--slot", "output", "--token", 1, "--run", 1)
    assert "(1, 1, 128)" in out
    assert "..." in out
    assert "..." not in cli("show", "d", "lm_head", "--slot", "output", "--values")[1]


def test_show_json_has_every_value(dump, cli):
    _, out, _ = cli("show", "d", "lm_head", "--slot", "output", "--values", "--json")
    with opened(dump) as reader:
        expected = reader.load("lm_head", run=0)
    assert torch.equal(torch.tensor(json.loads(out)["values"]), expected)


def test_show_takes_one_row(dump, cli):
    facts = cli("show", "d", "model.norm", "--slot", "output", "--row", 0, "--json")[1]
    assert json.loads(facts)["shape"] == [3, 64]


def test_show_says_that_values_were_not_kept(place, cli):
    cli(*run_tiny("--statistics", "statistics"))
    status, out, _ = cli("show", "d", "lm_head", "--slot", "output")
    assert status == DONE
    assert "The values were not kept" in out


# --- pipes and terminals --------------------------------------------------------------------------


def read_to_the_end(terminal):
    """Return what is written to a terminal until the other side is closed."""
    seen = b""
    try:
        while more := os.read(terminal, 4096):
            seen += more
    except OSError:  # Linux says so when nobody holds the other side any more
        pass
    os.close(terminal)
    return seen


def command(*args):
    return [sys.executable, "-c", "from hf_dumper.cli import main; main()", *map(str, args)]


def test_a_reader_that_stops_early_is_no_error(dump):
    with subprocess.Popen(
        command("inspect", dump, "--lines"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == DONE


def test_a_pipe_is_quiet_and_a_terminal_shows_progress(place):
    code = (
        "from hf_dumper.cli import terminal\nterminal.SOON = 0.0\n"
        "from hf_dumper.cli import main\nmain()"
    )
    args: list[Any] = [sys.executable, "-c", code, *map(str, run_tiny())]
    piped = subprocess.run(args, capture_output=True, text=True, check=True)
    assert piped.stderr == ""
    assert "\x1b" not in piped.stdout
    parent, child = pty.openpty()
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=child) as process:
        os.close(child)
        progress = read_to_the_end(parent)
        assert process.stdout is not None
        assert b"\x1b" not in process.stdout.read()
    assert b"Loading tiny" in progress


# --- demo -----------------------------------------------------------------------------------------


@pytest.fixture
def small_demo(place, monkeypatch):
    """Let the demonstration be short: two prompts of its own and few tokens."""
    prompts = "If you modify the Program, you must", "You may copy"
    rows = (json.dumps({"id": str(i), "prompt": text}) for i, text in enumerate(prompts))
    (place / "p.jsonl").write_text("\n".join(rows))
    monkeypatch.setattr("hf_dumper.cli.demo.PROMPTS", place / "p.jsonl")
    monkeypatch.setattr("hf_dumper.cli.demo.TOKENS", 4)


def test_the_demo_tells_its_story(small_demo, place, cli):
    status, out, err = cli("demo", "--dump", "d")
    assert (status, err) == (DONE, "")
    golden, port, broken = (out.index(f"\n{i}. " if i > 1 else "1. ") for i in (1, 2, 3))
    assert "run 1  You may copy → " in out[golden:port]
    assert "model.layers.1.self_attn  LlamaAttention" in out[golden:port]
    assert "\nPASS  " in out[port:broken]
    assert "\nFAIL  first at model.layers.1.self_attn output.0" in out[broken:]


def test_the_demo_leaves_three_dumps(small_demo, place, cli):
    assert cli("demo", "--dump", "d")[0] == DONE
    dtypes = [
        opened(place / "d" / name).manifest["identity"]["dtype"]
        for name in ("golden", "bfloat16", "broken")
    ]
    assert dtypes == ["torch.float32", "torch.bfloat16", "torch.float32"]


def test_the_commands_and_the_python_that_the_demo_names_work(small_demo, place, cli):
    _, out, _ = cli("demo", "--dump", "d")
    lines = [line.strip() for line in out.splitlines()]
    shell = lines[: lines.index("or in Python:")]
    shell = [line.split()[1:] for line in shell if line.startswith("hf-dumper ")]
    assert [cli(*line)[0] for line in shell] == [DONE, DONE, FAILED]
    python = lines[lines.index("or in Python:") + 1 : lines.index("or with a model of your own:")]
    values: dict[str, Any] = {}
    exec("\n".join(python), values)
    values["dump"].close()


def test_the_demo_makes_a_folder_of_its_own(small_demo, place, cli):
    assert cli("demo")[0] == DONE
    assert len(list(place.glob("hf_dump_demo_*"))) == 1


def test_the_word_demo_is_the_embedded_model(small_demo, cli):
    run = ("run", "demo", "--prompt", "one", "--max-new-tokens", 1, "--dump", "d", "--self-check")
    assert cli(*run)[0] == DONE
