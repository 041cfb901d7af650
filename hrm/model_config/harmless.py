"""Fields of Hugging Face configurations that change no shape, no count and no layer, whatever they hold.

A field that is neither here nor read by its family is refused unless it is off (`Reader.refuse_unread`): a refusal can
be answered by whoever has the file, a wrong number by nobody. So a field enters these lists only when its use is known.
"""

from __future__ import annotations

import re

__all__ = ["is_harmless"]

_BY_TOPIC = {
    "who wrote the file, and with what": """
        _name_or_path _source architectures auto_map model_type name_or_path tokenizer_class transformers_version
        vocab_file""",
    "how it is run": """
        _attn_implementation _experts_implementation attn_implementation cache_implementation chunk_size_feed_forward
        dtype enable_attention_fp32_softmax enable_lm_head_fp32 enable_moe_fp32_combine ep_size for_llm_class
        gradient_checkpointing is_causal is_decoder keys_to_ignore_at_inference pretraining_tp return_dict
        return_dict_in_generate router_dtype torch_dtype torchscript use_bfloat16 use_cache use_flash_attention
        use_flash_attn use_return_dict""",
    "what tokens are sampled or classified": """
        bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
        exponential_decay_length_penalty finetuning_task id2label label2id
        length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_labels
        num_return_sequences prefix problem_type remove_invalid_values repetition_penalty suppress_tokens
        task_specific_params temperature tf_legacy_loss top_k top_p typical_p""",
    "how positions enter": """
        attn_scale attn_temperature_tuning floor_scale initial_context_length max_sequence_length
        original_max_position_embeddings rope_interleave rope_local_base_freq""",
    "how experts are chosen, and values scaled or clipped": """
        attention_multiplier attn_logit_softcapping clip_qkv embedding_multiplier final_logit_softcapping
        logits_scaling moe_norm_min moe_router_enable_expert_bias n_group norm_topk_prob query_pre_attn_scalar
        residual_multiplier route_norm route_scale scoring_func seq_aux swiglu_alpha swiglu_limit topk_group
        topk_method use_routing_bias""",
    "layers that draft further tokens: a model's published size leaves them out": """
        mtp_transformer_layers num_mtp_layers num_mtp_modules num_nextn_predict_layers use_mtp""",
}
_HARMLESS = frozenset(name for names in _BY_TOPIC.values() for name in names.split())

_HARMLESS_PATTERN = re.compile(
    r".*(_id|_token_ids|_token_index|_token_indices|_pdrop|dropout|dropout_prob|_loss_coef|_loss_alpha|_loss_weight"
    r"|_jitter_noise|_scaling_factor)"
    r"|layernorm_.*_(alpha|beta)|output_(attentions|hidden_states|past|router_logits|scores)|initializer_.*|aux_loss_.*"
)


def is_harmless(name: str) -> bool:
    """Whether a field of this name changes nothing that is counted."""
    return name in _HARMLESS or _HARMLESS_PATTERN.fullmatch(name) is not None
