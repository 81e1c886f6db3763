"""Every architecture that can be merged: a literal table."""

from collections.abc import Mapping

from blindmerge.manifest.architectures import (
    albert,
    bert,
    deberta,
    distilbert,
    gpt2,
    llama,
    mixtures,
    mpnet,
    t5,
    vision,
)
from blindmerge.manifest.rules import Architecture

__all__ = ["ARCHITECTURES"]

_DECODERS: Mapping[str, Architecture] = {
    **dict.fromkeys(
        ("Gemma", "Gemma2", "Gemma3Text", "Llama", "Mistral", "Qwen2", "Qwen3"), llama.LLAMA
    ),
    "Mixtral": mixtures.MIXTRAL,
    "Qwen2Moe": mixtures.QWEN_MOE,
    "Qwen3Moe": mixtures.QWEN_MOE,
}

ARCHITECTURES: Mapping[str, Architecture] = {
    "CLIPForImageClassification": vision.CLIP,
    "ViTForImageClassification": vision.VIT,
    "AlbertForSequenceClassification": albert.ALBERT,
    "AlbertForTokenClassification": albert.ALBERT.for_words("classifier"),
    "BertForSequenceClassification": bert.BERT,
    "BertForTokenClassification": bert.BERT.for_words("classifier"),
    "DebertaV2ForSequenceClassification": deberta.DEBERTA_V2,
    "DebertaV2ForTokenClassification": deberta.DEBERTA_V2.for_words("classifier"),
    "DistilBertForSequenceClassification": distilbert.DISTILBERT,
    "DistilBertForTokenClassification": distilbert.DISTILBERT.for_words("classifier"),
    "ElectraForSequenceClassification": bert.ELECTRA,
    "ElectraForTokenClassification": bert.ELECTRA.for_words("classifier"),
    "GPT2ForSequenceClassification": gpt2.GPT2,
    "GPT2ForTokenClassification": gpt2.GPT2.for_words("classifier"),
    "GPT2LMHeadModel": gpt2.GPT2.for_language(),
    "MPNetForSequenceClassification": mpnet.MPNET,
    "MPNetForTokenClassification": mpnet.MPNET.for_words("classifier"),
    "RobertaForSequenceClassification": bert.ROBERTA,
    "RobertaForTokenClassification": bert.ROBERTA.for_words("classifier"),
    "T5ForConditionalGeneration": t5.T5,
    **{f"{name}ForSequenceClassification": rules for name, rules in _DECODERS.items()},
    **{
        f"{name.removesuffix('Text')}ForCausalLM": rules.for_language()
        for name, rules in _DECODERS.items()
    },
    **{
        f"{name}ForTokenClassification": rules.for_words("score")
        for name, rules in _DECODERS.items()
        if name != "Gemma3Text"  # transformers has none
    },
}
