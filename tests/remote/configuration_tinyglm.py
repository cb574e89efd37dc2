from transformers import PretrainedConfig


class TinyGLMConfig(PretrainedConfig):
    model_type = "tinyglm"

    def __init__(
        self,
        vocab_size=132,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=4,
        inner_hidden_size=48,
        layernorm_epsilon=1e-5,
        max_sequence_length=256,
        pad_token_id=128,
        gmask_token_id=129,
        bos_token_id=130,
        eos_token_id=131,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_attention_heads = num_attention_heads
        self.inner_hidden_size = inner_hidden_size
        self.layernorm_epsilon = layernorm_epsilon
        self.max_sequence_length = max_sequence_length
        self.gmask_token_id = gmask_token_id
        self.use_cache = True
        super().__init__(
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            **kwargs,
        )
