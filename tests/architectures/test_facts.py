"""What the package relies on in the models of transformers, and what a dump makes of it."""

import copy
import shutil

import pytest
import torch
import transformers
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM

from hf_dumper import DumpConfig, DumpIncompleteWarning, open_dump, register_hook
from hf_dumper.errors import UnsupportedGenerationError
from tests.architectures.checks import belongings
from tests.architectures.models import IDS, LEFT, NEW, PAD, architectures, build, find_task

ALL = {(a.family, a.type): a for a in architectures()}

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # of transformers, about sizes nobody would choose


class Case:
    """A small model, dumped once in what it can do."""

    def __init__(self, path, family, kind):
        self.architecture = ALL[family, kind]
        self.model = build(self.architecture)
        self.task, _ = find_task(self.architecture, self.model)
        with register_hook(self.model, DumpConfig(path, "all", hash_weights=False)):
            self.task(self.model)
        self.reader = open_dump(path)
        self.rows = self.reader.index().to_pylist()

    def select(self, **wanted):
        return [row for row in self.rows if all(row[n] == value for n, value in wanted.items())]


@pytest.fixture
def dumped(tmp_path):
    """Return a function that dumps a small model of a family and a type."""
    cases = []

    def make(family, kind):
        cases.append(Case(tmp_path / kind, family, kind))
        return cases[-1]

    yield make
    for case in cases:
        case.reader.close()


def test_a_shared_layer_is_called_as_often_as_there_are_layers(dumped):
    case = dumped("encoder", "albert")
    (name,) = {row["module"] for row in case.rows if row["class"] == "AlbertLayer"}
    calls = [row["call"] for row in case.select(module=name, slot="output")]
    assert calls == list(range(case.model.config.num_hidden_layers))
    assert len(calls) > 1


def test_a_t5_encoder_drops_out_twice_and_its_shared_embedding_is_never_called(dumped):
    case = dumped("seq2seq", "t5")
    first = case.select(module="encoder.dropout", slot="output", forward=0)
    assert [row["call"] for row in first] == [0, 1]
    assert not case.select(module="shared")
    assert case.select(module="encoder.embed_tokens", slot="output")


def test_a_tied_head_has_no_parameter_name_of_its_own():
    model = build(ALL["causal", "gemma"])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in dict(model.named_parameters())


def test_stacked_experts_are_one_module_and_their_choice_is_its_input(dumped):
    case = dumped("causal", "mixtral")
    experts = "model.layers.0.mlp.experts"
    assert case.model.get_submodule(experts).gate_up_proj.ndim == 3
    inputs = {row["param"]: row for row in case.select(module=experts, forward=0)}
    assert set(inputs) == {"hidden_states", "top_k_index", "top_k_weights", ""}
    router = case.select(module="model.layers.0.mlp.gate", forward=0)
    assert [row["slot"] for row in router] == ["input.0", "output.0", "output.1", "output.2"]
    tokens = IDS.numel()
    assert [row["shape"] for row in router[1:]] == [[tokens, 4], [tokens, 2], [tokens, 2]]
    assert {row["axes"] for row in router} == {"row*pos,-"}


def test_experts_see_tokens_in_no_order(dumped):
    case = dumped("causal", "zaya")  # one expert each: as many as there are tokens
    rows = [row for row in case.rows if row["module"].endswith("experts.act_fn")]
    assert [IDS.numel(), *rows[0]["shape"][1:]] == rows[0]["shape"]
    assert {row["axes"] for row in rows} == {""}


def test_alibi_takes_no_position_ids_and_has_positions(dumped):
    case = dumped("causal", "bloom")
    assert not [row for row in case.rows if "position_ids" in row["slot"]]
    table = case.reader.positions().to_pydict()
    assert table["position"][: IDS.shape[1]] == [-1] * PAD + list(range(IDS.shape[1] - PAD))


def test_position_ids_of_three_axes_are_rows_and_positions(dumped):
    case = dumped("image-text", "qwen2_vl")
    (slot,) = {row["slot"] for row in case.rows if row["module"].endswith("rotary_emb")} & {
        "input.1",
        "input.position_ids",
    }
    rows = [r for r in case.select(slot=slot) if r["module"].endswith("language_model.rotary_emb")]
    assert {len(row["shape"]) for row in rows} == {3}
    assert {row["axes"] for row in rows} == {"-,row,pos"}


@pytest.mark.parametrize("kind", ["llava", "aya_vision", "qwen2_vl"])
def test_a_vision_tower_belongs_to_token_0_wherever_it_runs(dumped, kind):
    case = dumped("image-text", kind)
    assert case.task.note == "one row with an image"
    tower = [r for r in case.rows if ".vision_tower." in r["module"] or ".visual." in r["module"]]
    assert {(row["forward"], row["token"]) for row in tower} == {(0, 0)}


def test_llavas_tower_runs_inside_generate_before_the_model(dumped):
    case = dumped("image-text", "llava")
    tower = [row["seq_in"] for row in case.rows if ".vision_tower" in row["module"]]
    assert max(tower) < min(row["seq_in"] for row in case.select(module="root"))


@pytest.fixture
def blip():
    architecture = ALL["image-text", "blip"]
    model = build(architecture)
    return model, *find_task(architecture, model)


def test_where_a_part_generates_its_forwards_are_the_tokens(blip, tmp_path):
    model, task, plain = blip
    before = belongings(model.text_decoder)
    with register_hook(model, DumpConfig(tmp_path, "all")):
        result = task(model)
        assert belongings(model.text_decoder) - before == {
            found for found in belongings(model.text_decoder) if "Tap" in found[1]
        }
    assert torch.equal(result.sequences, plain.sequences)
    assert belongings(model.text_decoder) == before
    with open_dump(tmp_path) as reader:
        info = reader.run_info()
        assert info["complete"]
        assert info["prompt"]["part"] == "text_decoder"
        assert info["prompt"]["input_ids"] == plain.sequences[:, :-NEW].tolist()
        assert info["generated_ids"] == plain.sequences[:, -NEW:].tolist()
        for token in range(NEW):
            logits = reader.load("text_decoder", "output.logits", token)
            assert torch.equal(logits[:, -1], plain.logits[token])
        tower = {k.forward for k in reader.keys(run=0) if k.module.startswith("vision_model")}
        assert tower == {0}
        assert [row["chosen_id"] for row in reader.trace().to_pylist()] == info["generated_ids"][0]


def test_beams_of_a_part_are_followed(blip, tmp_path):
    model, task, _ = blip
    plain = task(model, num_beams=2)
    with register_hook(model, DumpConfig(tmp_path, "all")):
        result = task(model, num_beams=2)
    assert torch.equal(result.sequences, plain.sequences)
    with open_dump(tmp_path) as reader:
        assert reader.run_info()["complete"]
        assert reader.run_info()["beams"]["beams"] == 2


def test_last_logits_of_a_part_are_the_models(blip, tmp_path):
    model, task, plain = blip
    with register_hook(model, DumpConfig(tmp_path, "all", dump_last_logits=True)):
        task(model)
    with open_dump(tmp_path) as reader:
        found = [reader.load("root", "logits", token) for token in range(NEW)]
    assert all(map(torch.equal, found, plain.logits))


def test_a_part_that_fails_leaves_nothing_behind(blip, tmp_path):
    model, task, _ = blip
    before = belongings(model.text_decoder)
    with register_hook(model, DumpConfig(tmp_path, "all")) as session:
        with (
            pytest.raises(ZeroDivisionError),
            model.text_decoder.register_forward_hook(lambda *_: 1 / 0),
        ):
            task(model)
        task(model)
        assert len(session.runs) == 2
    assert belongings(model.text_decoder) == before
    with open_dump(tmp_path) as reader:
        assert [reader.run_info(run)["complete"] for run in reader.runs()] == [False, True]


class Speaker(transformers.LlamaForCausalLM):
    """Generates with one part, then with another, as models that speak do."""

    def __init__(self, config):
        super().__init__(config)
        self.thinker, self.talker = (transformers.LlamaForCausalLM(config) for _ in range(2))

    def generate(self, input_ids, **options):
        thought = self.thinker.generate(input_ids, **options)
        return self.talker.generate(thought, **options)


def test_a_second_part_that_generates_makes_the_run_incomplete(tmp_path):
    torch.manual_seed(0)
    model = Speaker(build(ALL["causal", "llama"]).config).eval()
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    plain = model.generate(IDS, **options)
    told = pytest.warns(DumpIncompleteWarning, match="'talker' runs after that of 'thinker'")
    with told, register_hook(model, DumpConfig(tmp_path, "all")):
        assert torch.equal(model.generate(IDS, **options), plain)
    with open_dump(tmp_path) as reader:
        assert not reader.run_info()["complete"]
        assert reader.load("thinker", "output.logits", NEW - 1).shape == (2, 1, 96)


def test_speculation_by_a_part_is_refused(blip, tmp_path):
    model, task, _ = blip
    with register_hook(model, DumpConfig(tmp_path, "all")) as session:
        with pytest.raises(UnsupportedGenerationError, match="by the part 'text_decoder'"):
            task(model, prompt_lookup_num_tokens=2)
        session.summary()
        task(model)


def test_a_state_of_a_sequence_is_no_length():
    model = build(ALL["causal", "mamba"])
    with torch.no_grad():
        cache = model(IDS, use_cache=True).cache_params
    with pytest.raises(ValueError, match="get_seq_length"):
        cache.get_seq_length()


def test_a_step_of_mamba_is_given_no_mask_and_keeps_its_positions(dumped):
    case = dumped("causal", "mamba")
    assert case.select(module="root", slot="input.attention_mask", forward=0)
    assert not case.select(module="root", slot="input.attention_mask", forward=1)
    table = case.reader.positions().to_pydict()
    later = [p for f, p in zip(table["forward"], table["position"], strict=True) if f == 1]
    assert later == LEFT.sum(1).tolist()


# --- hooks ----------------------------------------------------------------------------------------


@pytest.fixture
def llama():
    return build(ALL["causal", "llama"])


def test_a_hook_without_keywords_misses_the_inputs_of_attention(llama):
    seen = {}
    attention = llama.model.layers[0].self_attn
    attention.register_forward_pre_hook(lambda _module, args: seen.update(plain=args))
    attention.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.update(named=set(kwargs)), with_kwargs=True
    )
    llama(IDS)
    assert seen["plain"] == ()
    assert {"hidden_states", "position_embeddings"} <= seen["named"]


def test_a_hook_that_returns_a_pair_replaces_the_arguments():
    module = nn.Linear(2, 2)
    module.register_forward_pre_hook(
        lambda _m, args, kwargs: ((args[0] * 0,), kwargs), with_kwargs=True
    )
    assert torch.equal(module(torch.ones(1, 2))[0], module.bias)


def test_a_hook_that_is_always_called_is_given_none_by_a_forward_that_raised():
    class Fails(nn.Module):
        def forward(self):
            raise ValueError

    module, seen = Fails(), []
    module.register_forward_hook(lambda _m, _args, out: seen.append(out), always_call=True)
    with pytest.raises(ValueError, match=r"^$"):
        module()
    assert seen == [None]


def test_a_cache_is_changed_by_the_forward_that_is_given_it(llama):
    with torch.no_grad():
        cache = llama(IDS, use_cache=True).past_key_values
        llama(IDS[:, :1], past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == IDS.shape[1] + 1


def test_attention_is_given_a_mask_only_where_something_is_masked(llama):
    seen = []
    llama.model.layers[0].self_attn.register_forward_pre_hook(
        lambda _m, _args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    llama(IDS, attention_mask=torch.ones_like(IDS))
    llama(IDS, attention_mask=LEFT)
    assert seen[0] is None
    assert isinstance(seen[1], torch.Tensor)


def test_a_model_made_of_a_living_configuration_changes_the_model_that_has_it(llama):
    assert llama.config._attn_implementation == "sdpa"
    AutoModelForCausalLM.from_config(llama.config, attn_implementation="eager")
    assert llama.config._attn_implementation == "eager"


def test_a_hook_of_a_class_is_copied_with_its_model_unless_it_says_otherwise(llama):
    class Hook:
        def __call__(self, *_):
            """See what a module returns."""

    llama.model.register_forward_hook(Hook())
    assert len(copy.deepcopy(llama).model._forward_hooks) == 1


# --- what may run in other ways -------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"use_reentrant": False}, {"use_reentrant": True}], ids=str)
def test_what_gradient_checkpointing_computes_again_is_not_recorded(llama, tmp_path, options):
    """The second pass calls hooks, too, with None for what it stops early."""
    plain, again = copy.deepcopy(llama).train(), llama.train()
    again.gradient_checkpointing_enable(options)
    again.enable_input_require_grads()
    calls, hashes = [], []
    again.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    for name, model in (("plain", plain), ("again", again)):
        with register_hook(model, DumpConfig(tmp_path / name)):
            model(IDS, labels=IDS, use_cache=False).loss.backward()
        with open_dump(tmp_path / name) as reader:
            assert reader.runs() == (0,)
            assert reader.run_info()["complete"]
            rows = reader.index().to_pylist()
        hashes.append({(row["module"], row["slot"], row["call"]): row["hash"] for row in rows})
    assert len(calls) == 2
    assert hashes[0] == hashes[1]
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_names_are_those_of_modules_not_of_the_checkpoint(tmp_path):
    model = build(ALL["causal", "mixtral"])
    model.save_pretrained(tmp_path / "saved")
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as file:
        saved = set(file.keys())
    with register_hook(model, DumpConfig(tmp_path / "dump", dump_weight=True)):
        model(IDS)
    with open_dump(tmp_path / "dump") as reader:
        modules = {key.module for key in reader.keys(run=0)}
        weights = set(reader.weights())
        hashed = set(reader.manifest["weights"])
    assert any("block_sparse_moe.experts.0" in name for name in saved)
    assert "model.layers.0.mlp.experts" in modules
    assert weights >= hashed == set(model.state_dict())
    assert hashed - saved


@pytest.mark.skipif(shutil.which("g++") is None, reason="flex attention is compiled by g++")
def test_flex_attention_is_dumped_and_its_block_masks_are_counted(llama, tmp_path):
    llama.set_attn_implementation("flex_attention")
    with torch.no_grad():
        plain = llama(IDS).logits
        with register_hook(llama, DumpConfig(tmp_path)):
            assert torch.equal(llama(IDS).logits, plain)
    with open_dump(tmp_path) as reader:
        info = reader.run_info()
        assert info["complete"]
        assert info["counts"]["skipped_by_reason"]["not a tensor: BlockMask"]
        attention = reader.load("model.layers.0.self_attn", "output.0")
        assert attention.shape == (*IDS.shape, llama.config.hidden_size)
