"""Every architecture that can be merged: a literal table."""

from collections.abc import Mapping

from blindmerge.manifest.architectures import bert, distilbert, mpnet
from blindmerge.manifest.rules import Architecture

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Mapping[str, Architecture] = {
    "BertForSequenceClassification": bert.BERT,
    "BertForTokenClassification": bert.BERT.for_words("classifier"),
    "DistilBertForSequenceClassification": distilbert.DISTILBERT,
    "DistilBertForTokenClassification": distilbert.DISTILBERT.for_words("classifier"),
    "ElectraForSequenceClassification": bert.ELECTRA,
    "ElectraForTokenClassification": bert.ELECTRA.for_words("classifier"),
    "MPNetForSequenceClassification": mpnet.MPNET,
    "MPNetForTokenClassification": mpnet.MPNET.for_words("classifier"),
    "RobertaForSequenceClassification": bert.ROBERTA,
    "RobertaForTokenClassification": bert.ROBERTA.for_words("classifier"),
}
