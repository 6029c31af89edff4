"""Our language models as transformers models: Auto classes, ``generate``, the Trainer's loss, PEFT.

After :func:`register`, ``AutoModelForCausalLM.from_pretrained(folder)`` reads a folder that ``statescan.save_pretrained`` wrote, and what
``model.save_pretrained(folder)`` writes is read by ``statescan.from_pretrained``. :func:`wrap` takes a model that is already in memory::

    from statescan.interop import transformers_bridge
    model = transformers_bridge.wrap(statescan.from_pretrained(folder))
    model.generate(ids, attention_mask=mask, max_new_tokens=20, num_beams=3)

An attention mask says which positions exist, on either side of a row; positions that restart at 0 say where packed documents begin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

try:
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
    from transformers.cache_utils import Cache
    from transformers.utils import ModelOutput
except ImportError as error:
    raise ImportError("the transformers bridge needs transformers 5: pip install 'statescan[hub]'") from error

from statescan import state as states
from statescan.heads import LanguageModel
from statescan.interop.config import tagged_floats
from statescan.interop.pretrained import MODEL_TYPE, VERSION
from statescan.interop.weights import some
from statescan.layers import QuantLinear
from statescan.spec import Spec
from statescan.state import State
from statescan.timeline import Timeline


def register() -> None:
    """Make ``AutoConfig`` and ``AutoModelForCausalLM`` know folders of this library."""
    AutoConfig.register(MODEL_TYPE, StatescanConfig, exist_ok=True)
    AutoModelForCausalLM.register(StatescanConfig, StatescanForCausalLM, exist_ok=True)


def wrap(model: LanguageModel) -> StatescanForCausalLM:
    """A model in memory as a transformers model; it shares the weights."""
    _expect_floats(any(isinstance(module, QuantLinear) for module in model.modules()))
    tokenizer = model.tokenizer
    config = StatescanConfig(
        model=Spec.of(model).to_dict(),
        tokenizer=getattr(tokenizer, "name", None),
        eos_token_id=getattr(tokenizer, "eos_id", None),
        dtype=model.lm_head.weight.dtype,
    )
    with torch.device("meta"):
        wrapped = StatescanForCausalLM(config)
    wrapped.model = model
    return wrapped.train(model.training)


def _expect_floats(quantized: bool) -> None:
    """transformers would tie, cast and initialise weights that are bytes."""
    if quantized:
        raise ValueError("the transformers bridge takes no quantised model: use statescan.from_pretrained, or the model it was made from")


class StatescanConfig(PreTrainedConfig):
    """Our config.json: ``model`` is the resolved Spec of the language model."""

    model_type = MODEL_TYPE
    format: str = "statescan"
    version: int = VERSION
    model: dict[str, Any] | None = None
    tokenizer: str | None = None
    quantization: dict[str, Any] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    use_cache: bool = True

    @property
    def spec(self) -> Spec[LanguageModel]:
        """The model as a Spec."""
        spec = Spec.from_dict(self.model or {})
        if spec.name != "LanguageModel":
            raise ValueError(f"the transformers bridge takes a LanguageModel; got a {spec.name}")
        return spec.resolved()

    @property
    def vocab_size(self) -> int:
        return self.spec.arguments["vocab_size"]

    @property
    def hidden_size(self) -> int:
        return self.spec.arguments["d_model"]

    @property
    def tie_word_embeddings(self) -> bool:
        return self.model is not None and self.spec.arguments["tie_embeddings"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON can hold."""
        return tagged_floats(super().to_dict())


class StatescanCache(Cache):
    """A model's state in the clothes of a transformers cache. Each call replaces the state it holds; no tensor is changed in place."""

    def __init__(self, state: State | None = None, length: int = 0) -> None:
        super().__init__(layers=[])
        self.state = state
        self.length = length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns read so far, padding included."""
        return self.length

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return self.state is not None

    def advance(self, state: State, columns: int) -> StatescanCache:
        """Hold the state after so many more columns."""
        self.state, self.length = state, self.length + columns
        return self

    def reset(self) -> None:
        self.state, self.length = None, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in a new order: what beam search asks for."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.state = None if self.state is None else states.select(self.state, indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.state is not None:
            rows = torch.arange(self.batch_size).repeat_interleave(repeats)
            self.state = states.select(self.state, rows)

    def crop(self, tokens_to_remove: int) -> None:
        """A recurrent state cannot forget its last tokens: keep a copy from before them."""
        if tokens_to_remove:
            raise ValueError("a recurrent state cannot be cropped: keep a cache from before the tokens to remove")

    def activate_past_recording(self) -> None:
        raise ValueError("a recurrent state cannot be rolled back, which assisted decoding needs: generate without an assistant")

    @property
    def batch_size(self) -> int:
        return 0 if self.state is None else states.tensors(self.state)[0].shape[0]

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_croppable(self) -> bool:
        return False

    @property
    def is_initialized(self) -> bool:
        return self.state is not None

    def __len__(self) -> int:
        return 0 if self.state is None else len(self.state.layers)

    def __repr__(self) -> str:
        return f"StatescanCache({self.batch_size} rows, {self.length} columns read)"


@dataclass
class StatescanOutput(ModelOutput):
    """What a call returns."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: StatescanCache | None = None


class StatescanForCausalLM(PreTrainedModel, GenerationMixin):
    """A :class:`statescan.LanguageModel`, as ``model``, behind transformers' interface."""

    config_class = StatescanConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _is_stateful = True
    _no_split_modules = ("Residual",)
    _tied_weights_keys = {"model.lm_head.weight": "model.backbone.embedding.weight"}  # noqa: RUF012 - their protocol

    config: StatescanConfig

    def __init__(self, config: StatescanConfig) -> None:
        _expect_floats(bool(config.quantization))
        super().__init__(config)
        self.model = config.spec()
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: StatescanCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> StatescanOutput | tuple[Any, ...]:
        """Logits (B, L, V), the loss of ``labels`` (shifted here), and the cache.

        Args:
            input_ids: the new tokens, (B, L).
            attention_mask: (B, L), or (B, everything so far): 0 where a position does not exist.
            position_ids: (B, L) or (1, L), counting from 0 in every packed document; only where they are 0 matters.
            past_key_values: what a call before returned; it then holds the new state.
            logits_to_keep: 0 for all, 1 for the last existing position of each row, n for the last n columns, or columns.

        Embeddings instead of ids, attentions and hidden states are part of the interface and refused.
        """
        if inputs_embeds is not None or output_attentions or output_hidden_states:
            raise ValueError(
                "inputs_embeds, output_attentions and output_hidden_states are not supported: the model takes ids and gives logits"
            )
        if past_key_values is not None and not isinstance(past_key_values, StatescanCache):
            raise ValueError(f"past_key_values must be a StatescanCache; got a {type(past_key_values).__name__}")
        use_cache = (self.config.use_cache and not self.training) if use_cache is None else use_cache
        timeline = _timeline(input_ids, attention_mask, position_ids)
        before = None if past_key_values is None else past_key_values.state
        last = labels is None and isinstance(logits_to_keep, int) and logits_to_keep == 1
        logits, after = self.model(input_ids, timeline, state=before, return_state=True, logits_at="last" if last else "all")
        if last:
            logits = logits.unsqueeze(1)
        elif labels is None:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = logits[:, keep]
        loss = None
        if labels is not None:
            counted = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **counted)
        cache = None
        if use_cache:
            cache = (StatescanCache() if past_key_values is None else past_key_values).advance(after, input_ids.shape[1])
        output = StatescanOutput(loss=loss, logits=logits, past_key_values=cache)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, next_sequence_length: int | None = None, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """The new columns only; positions that ``generate`` numbers are left out, and so is a mask of what was read before.

        ``generate`` checks its arguments against the signatures: it looks for the very name ``kwargs``.
        """
        prepared = super().prepare_inputs_for_generation(
            input_ids, next_sequence_length=next_sequence_length, is_first_iteration=is_first_iteration, **kwargs
        )
        prepared.pop("position_ids", None)
        if prepared.get("use_cache") and not is_first_iteration:
            prepared.pop("attention_mask", None)
        return prepared

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: Any, batch_size: int, max_cache_length: int
    ) -> None:
        if generation_config.cache_implementation is not None:
            raise ValueError(f"cache_implementation={generation_config.cache_implementation!r} does not apply: the state has one form")
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = StatescanCache()

    @classmethod
    def from_pretrained(cls, *arguments: Any, output_loading_info: bool = False, **options: Any) -> Any:
        """As transformers does, but strict: a tensor that is missing, surprising or of a wrong shape is an error, not a warning."""
        model, info = super().from_pretrained(*arguments, output_loading_info=True, **options)
        faults = [f"{len(names)} {kind}: {some(map(str, names))}" for kind, names in _faults(info) if names]
        if faults:
            raise ValueError(f"the folder's weights do not fit its config.json: {'; '.join(faults)}")
        return (model, info) if output_loading_info else model

    def get_input_embeddings(self) -> nn.Module:
        return self.model.backbone.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.backbone.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        return self.model.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.model.lm_head = new_embeddings  # type: ignore[assignment]  # any Linear will do

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: our modules initialise themselves, and a checkpoint must be complete."""


def _timeline(ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> Timeline | None:
    if attention_mask is None and position_ids is None:
        return None
    mask = reset = None
    if attention_mask is not None:
        if attention_mask.ndim != 2 or attention_mask.shape[0] != ids.shape[0] or attention_mask.shape[1] < ids.shape[1]:
            raise ValueError(f"attention_mask must have shape {tuple(ids.shape)}, or more columns; got {tuple(attention_mask.shape)}")
        mask = attention_mask[:, -ids.shape[1] :].bool()
    if position_ids is not None:
        reset = position_ids == 0
    return Timeline(reset, mask)


def _faults(info: Mapping[str, Any]) -> list[tuple[str, list[Any]]]:
    return [
        (kind, sorted(info.get(key) or (), key=str))
        for kind, key in (("missing", "missing_keys"), ("surprising", "unexpected_keys"), ("of wrong shape", "mismatched_keys"))
    ]
