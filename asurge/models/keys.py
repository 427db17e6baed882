"""Every key of a config.json is obeyed, known to change nothing, or refused by name: one that is passed over gives wrong text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from asurge.errors import ModelLoadError

_SHOWN = 80
"""Characters of a value in an error."""

_TRAINING = "matters in training only"
_IDS = (
    "what ends a text is the tokenizer's to know, which reads this key itself; the others matter where texts are padded"
)
_BOOKKEEPING = "says where the config comes from"
_OUTPUTS = "what else a forward pass hands out in transformers"
_GENERATION = "how transformers generates by default; requests say it here"
_SAME = "how transformers computes the same"
_TENSORS = "which biases there are is seen from the tensors: one that is not expected is refused"

HARMLESS: Mapping[str, str] = {
    key: reason
    for reason, keys in {
        _TRAINING: (
            "attention_dropout attn_pdrop resid_pdrop embd_pdrop hidden_dropout dropout initializer_range router_aux_loss_coef "
            "router_jitter_noise gradient_checkpointing problem_type id2label label2id num_labels finetuning_task "
            "task_specific_params classifier_dropout"
        ),
        _IDS: "bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id decoder_start_token_id",
        _BOOKKEEPING: (
            "architectures model_type transformers_version _name_or_path _commit_hash name_or_path tokenizer_class auto_map "
            "unsloth_version unsloth_fixed"
        ),
        "weights are read in the engine's dtype": "torch_dtype dtype use_bfloat16",
        _OUTPUTS: "output_attentions output_hidden_states output_router_logits return_dict use_return_dict torchscript",
        _GENERATION: (
            "use_cache cache_implementation max_length min_length do_sample early_stopping num_beams num_beam_groups "
            "diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size "
            "encoder_no_repeat_ngram_size bad_words_ids num_return_sequences return_dict_in_generate output_scores "
            "forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens "
            "begin_suppress_tokens prefix"
        ),
        _SAME: (
            "pretraining_tp chunk_size_feed_forward attn_implementation _attn_implementation _attn_implementation_internal "
            "_attn_implementation_autoset _flash_attn_2_enabled tf_legacy_loss"
        ),
        _TENSORS: "attention_bias mlp_bias",
    }.items()
    for key in keys.split()
}
"""Keys that change nothing about what is computed, and why."""


def _one_of(*values: object) -> Callable[[Any, Mapping[str, Any]], bool]:
    return lambda value, _: any(value == one and type(value) is type(one) for one in values)


def _unused_window(value: object, raw: Mapping[str, Any]) -> bool:
    return raw.get("use_sliding_window") is False


NEUTRAL: Mapping[str, Callable[[Any, Mapping[str, Any]], bool]] = {
    "partial_rotary_factor": _one_of(1.0, 1),
    "use_sliding_window": _one_of(False),
    "sliding_window": _unused_window,
    "max_window_layers": _unused_window,
    "layer_types": lambda value, _: isinstance(value, list) and all(one == "full_attention" for one in value),
    "use_mrope": _one_of(False),
    "use_qk_norm": _one_of(False),
    "use_bidirectional_attention": _one_of(False),
    "is_encoder_decoder": _one_of(False),
    "is_decoder": _one_of(False, True),
    "add_cross_attention": _one_of(False),
    "tie_encoder_decoder": _one_of(False),
    "pruned_heads": _one_of({}),
    "rope_interleaved": _one_of(False),
    "tie_word_embeddings": _one_of(False),
}
"""Keys of features that a family lacks, and whether a value, beside the others, leaves them off. Null always does."""


class WatchedConfig(Mapping[str, Any]):
    """A parsed ``config.json`` that knows which of its keys have been read."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._raw, self._unread = raw, set(raw)

    def __getitem__(self, key: str) -> Any:  # JSON
        value = self._raw[key]
        self._unread.discard(key)
        return value

    def __contains__(self, key: object) -> bool:
        return key in self._raw

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def refuse_unread(self, besides: Collection[str] = ()) -> None:
        """Raise if a key was not read that may change what the model computes.

        Raises:
            ModelLoadError: it names key and value.
        """
        raw = self._raw
        for key in sorted(self._unread - HARMLESS.keys() - set(besides)):
            value, is_neutral = raw[key], NEUTRAL.get(key)
            if value is not None and not (is_neutral is not None and is_neutral(value, raw)):
                raise passed_over(key, value)


def passed_over(key: str, value: object) -> ModelLoadError:
    """The error for a key that nothing reads."""
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return ModelLoadError(
        f"config.json: {key}={shown} is not supported, and to pass over it could give wrong text: take another checkpoint, or "
        "remove the key if it changes nothing about what the model computes"
    )
