"""The public names and signatures are a promise: a change here is a change for users."""

import inspect
import subprocess
import sys
from inspect import Parameter

import pytest

import hf_dumper
from hf_dumper import errors

PUBLIC = [
    "DEMO_MODEL",
    "CaptureError",
    "Comparison",
    "CompiledModelError",
    "ConfigError",
    "DumpConfig",
    "DumpError",
    "DumpFormatError",
    "DumpIdentityError",
    "DumpIncompleteWarning",
    "DumpLogitsProcessor",
    "DumpNotFoundError",
    "DumpSession",
    "DumpStoppingCriteria",
    "DumpWarning",
    "DumpWriteError",
    "DumpingModel",
    "EmptyDumpError",
    "FollowTokens",
    "HFDumperError",
    "HubError",
    "KeyNotFoundError",
    "LaunchError",
    "ModelError",
    "NotYetError",
    "PromptError",
    "SelectionError",
    "TokenNeverReachedWarning",
    "UnsupportedGenerationError",
    "Verdict",
    "compare",
    "judge",
    "load_comparison",
    "open_dump",
    "register_hook",
    "seeded",
]

SIGNATURES = {
    "DumpConfig": (
        "(dump_path=None, token_range=None, *, module_list=(), api_list=(), mode='module', "
        "layer_name=None, tensor_part=2, device_id=None, dump_statistics_mode=0, analyze=False, "
        "dump_last_logits=False, dump_weight=False, dump_kv_cache=False, seed=None, "
        "layout='native', overwrite=False, max_bytes=None, on_error='warn', durable=False, "
        "hash_weights=True, allow_eager=False)"
    ),
    "DumpingModel.from_pretrained": (
        "(name_or_path, *, dump_config=None, auto_class=None, tokenizer=None, **auto_model_kwargs)"
    ),
    "register_hook": "(model, config, hook_type='dump_data', *, tokenizer=None)",
    "seeded": "(seed)",
    "open_dump": "(path, *, reader=None)",
    "FollowTokens": "(ids)",
    "compare": "(golden, candidate, *, floor=None, limits=None, metrics=None)",
    "judge": "(comparison, *, limits)",
    "load_comparison": "(folder)",
}

NOT_IMPORTED = [
    "datasets",
    "llama_cpp",
    "onnxruntime",
    "openvino",
    "paddle",
    "sglang",
    "tensorrt_llm",
    "torch",
    "torch_npu",
    "transformers",
    "vllm",
]


def shown(function):
    """Return the signature without annotations, which the type checker looks after."""
    signature = inspect.signature(function)
    bare = [p.replace(annotation=Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=Parameter.empty))


def imported_by(statement):
    """Return the names of `NOT_IMPORTED` that a fresh process has after a statement."""
    code = f"{statement}\nimport sys\nprint(*sorted(sys.modules.keys() & {set(NOT_IMPORTED)}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.split()


def test_the_public_names_are_these():
    assert hf_dumper.__all__ == PUBLIC


def test_the_public_names_are_sorted():
    # The order of ruff's RUF022: constants, then classes, then the rest.
    def key(name):
        return (not name.isupper(), name[0].islower(), name)

    assert sorted(PUBLIC, key=key) == PUBLIC


def test_every_error_and_warning_is_public():
    classes = [n for n, o in vars(errors).items() if inspect.isclass(o)]
    assert set(classes) <= set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_can_be_imported(name):
    assert getattr(hf_dumper, name) is not None


def test_dir_lists_the_public_names():
    assert set(PUBLIC) <= set(dir(hf_dumper))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'hf_dumper' has no attribute 'novelty'"):
        _ = hf_dumper.novelty


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_is_kept(name):
    first, _, attribute = name.partition(".")
    target = getattr(hf_dumper, first)
    assert shown(getattr(target, attribute) if attribute else target) == SIGNATURES[name]


def test_importing_the_package_imports_nothing_heavy():
    assert imported_by("import hf_dumper") == []


def test_the_check_for_heavy_imports_can_fail():
    assert "torch" in imported_by("import torch")
