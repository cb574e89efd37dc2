"""DumpingModel loads what an Auto class loads, and leaves it what it is."""

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
    pipeline,
)

from hf_dumper import ConfigError, DumpConfig, DumpingModel, open_dump

IDS = torch.randint(5, 128, (2, 7), generator=torch.Generator().manual_seed(0))
SMALL = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


@pytest.fixture
def folder(tiny_llama, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def load(tmp_path):
    """Load with a dump; whatever was loaded is closed in the end."""
    loaded = []

    def load(path, **options):
        options.setdefault("dump_config", DumpConfig(tmp_path / "dump"))
        loaded.append(DumpingModel.from_pretrained(path, **options))
        return loaded[-1]

    yield load
    for model in loaded:
        model.dump.__exit__(KeyError, None, None)  # closes, however empty the dump is


def test_the_model_is_the_real_one(folder, load):
    model = load(folder)
    assert type(model) is LlamaForCausalLM
    assert model.dump.path.is_dir()


def test_it_generates_and_dumps(folder, load):
    want = AutoModelForCausalLM.from_pretrained(folder).generate(IDS, max_new_tokens=3)
    model = load(str(folder))
    assert torch.equal(model.generate(IDS, max_new_tokens=3), want)
    with open_dump(model.dump.path) as reader:
        assert reader.load("lm_head").shape == (2, 1, 128)


def test_the_configuration_may_be_overridden(folder, load):
    assert len(load(folder, num_hidden_layers=1).model.layers) == 1


def test_a_dtype_is_passed_on(folder, load):
    assert load(folder, dtype=torch.bfloat16).dtype is torch.bfloat16


def test_an_attention_implementation_is_passed_on(folder, load):
    assert load(folder, attn_implementation="eager").config._attn_implementation == "eager"


def test_a_configuration_object_is_passed_on(folder, load, tiny_llama):
    config = tiny_llama().config
    config.num_hidden_layers = 1
    assert len(load(folder, config=config).model.layers) == 1


def test_a_configuration_by_name_means_what_it_means_to_the_auto_class(
    folder, load, tmp_path, tiny_llama
):
    tiny_llama(num_hidden_layers=1).config.save_pretrained(tmp_path / "other")
    options = {"config": str(tmp_path / "other")}
    want = AutoModelForCausalLM.from_pretrained(folder, **options).config.to_dict()
    assert load(folder, **options).config.to_dict() == want


def test_without_a_dump_config_the_dump_lies_in_the_working_directory(
    folder, load, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    model = load(folder, dump_config=None)
    assert model.dump.config == DumpConfig()
    assert [path.name for path in tmp_path.glob("hf_dump_*")] == [model.dump.path.name]


def test_two_models_loaded_within_a_second_have_folders_of_their_own(
    folder, load, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    paths = {load(folder, dump_config=None, num_hidden_layers=n).dump.path for n in (1, 2)}
    assert len(paths) == 2


def test_an_unknown_keyword_is_answered_as_by_the_auto_class(folder, load):
    with pytest.raises(TypeError) as plain:
        AutoModelForCausalLM.from_pretrained(folder, no_such_thing=1)
    with pytest.raises(TypeError) as ours:
        load(folder, no_such_thing=1)
    assert str(ours.value) == str(plain.value)


def test_a_missing_folder_is_answered_as_by_the_auto_class(load, tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("given", [{"token_range": "all"}, "dump", 3])
def test_something_else_than_a_dump_config_is_refused_before_loading(load, tmp_path, given):
    with pytest.raises(ConfigError, match="must be a DumpConfig"):
        load(tmp_path / "nowhere", dump_config=given)


def test_an_auto_class_may_be_given(folder, load):
    assert type(load(folder, auto_class=AutoModel)) is LlamaModel


def test_a_class_of_another_kind_may_be_given(tmp_path, load):
    AlbertModel(AlbertConfig(**SMALL, embedding_size=16)).save_pretrained(tmp_path / "albert")
    model = load(tmp_path / "albert", auto_class=AutoModelForSequenceClassification)
    assert type(model).__name__ == "AlbertForSequenceClassification"


@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification", "MaskedLM"])
def test_a_head_that_was_saved_is_the_one_that_is_loaded(tmp_path, load, head):
    saved = getattr(transformers, f"BertFor{head}")(BertConfig(**SMALL))
    saved.save_pretrained(tmp_path / "bert")
    model = load(tmp_path / "bert")
    assert type(model) is type(saved)
    want = saved.state_dict()
    assert model.state_dict().keys() == want.keys()
    assert all(torch.equal(value, want[name]) for name, value in model.state_dict().items())


def test_an_encoder_decoder_is_loaded_whole(tmp_path, load):
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    T5ForConditionalGeneration(T5Config(vocab_size=128, **sizes)).save_pretrained(tmp_path / "t5")
    assert type(load(tmp_path / "t5")) is T5ForConditionalGeneration


def test_a_speech_encoder_decoder_is_loaded_whole(tmp_path, load):
    config = WhisperConfig(
        vocab_size=64,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_mel_bins=8,
        max_source_positions=10,
        max_target_positions=10,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    WhisperForConditionalGeneration(config).save_pretrained(tmp_path / "whisper")
    model = load(tmp_path / "whisper")
    assert any(name.endswith("encoder.conv1") for name, _ in model.named_modules())


def test_a_model_without_a_head_of_ours_is_loaded_as_its_base(tmp_path, load):
    AlbertModel(AlbertConfig(**SMALL, embedding_size=16)).save_pretrained(tmp_path / "albert")
    assert type(load(tmp_path / "albert")) is AlbertModel


@pytest.mark.parametrize("cls", [BertModel, BertForMaskedLM])
def test_an_encoder_is_loaded_without_weights_made_up(cls, tmp_path, load):
    cls(BertConfig(**SMALL)).save_pretrained(tmp_path / "bert")
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        options = {"dump_config": DumpConfig(tmp_path / f"dump {seed}")}
        states.append(load(tmp_path / "bert", **options).state_dict())
    different = [name for name in states[0] if not torch.equal(states[0][name], states[1][name])]
    assert different == []


def test_a_second_load_with_the_same_settings_goes_on_in_the_same_dump(folder, load):
    for _ in range(2):
        model = load(folder)
        model(IDS)
        model.dump.close()
    assert model.dump.runs == (1,)


def words():
    vocabulary = {f"w{i}": i for i in range(128)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="w3"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="w0", padding_side="left")


def test_a_pipeline_runs_on_it_and_is_dumped(folder, load):
    prompts, options = ["w5 w6 w7", "w8"], {"max_new_tokens": 3, "do_sample": False}

    def answers(model):
        made = pipeline("text-generation", model=model, tokenizer=words(), batch_size=2)
        return made(prompts, **options)

    want = answers(AutoModelForCausalLM.from_pretrained(folder))
    model = load(folder)
    assert answers(model) == want
    with open_dump(model.dump.path) as reader:
        assert reader.positions(0)["position"].to_pylist()[:6] == [0, 1, 2, -1, -1, 0]
        assert reader.run_info(0)["tokens"] == 1


def test_a_tokenizer_is_kept_and_gives_the_text(folder, load):
    model = load(folder, tokenizer=words())
    ids = torch.tensor([[5, 6]])
    out = model.generate(ids, max_new_tokens=2)
    with open_dump(model.dump.path) as reader:
        info = reader.run_info(0)
    assert info["prompt"]["text"] == ["w5 w6"]
    assert info["generated_text"] == words().batch_decode(out[:, 2:])
    again = PreTrainedTokenizerFast.from_pretrained(model.dump.path / "tokenizer")
    assert again("w9")["input_ids"] == [9]
