"""Models that were classifiers before: their heads name classes, in an order of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from case_models.building import CORPUS, store, word_pieces
from case_models.encoders import bert_config

NLI = ("contradiction", "neutral", "entailment")


def named(names: Sequence[str]) -> dict[str, dict[int, str] | dict[str, int]]:
    """The keys of a config for these classes, in the order of the outputs."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def classifier(folder: Path, names: Sequence[str], bias: Sequence[float]) -> None:
    """A BERT that tells texts of these classes apart, and prefers those with the larger `bias`."""
    import torch
    from transformers import BertForSequenceClassification

    tokenizer = word_pieces()
    model = BertForSequenceClassification(bert_config(tokenizer, **named(names)))
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor(bias))
    store(folder, model, tokenizer)


def nli(folder: Path) -> None:
    classifier(folder, NLI, (-2.0, -2.0, 2.0))


def similarity(folder: Path) -> None:
    """A BERT that answers with a number, as cross-encoders for similarity do."""
    classifier(folder, ("LABEL_0",), (0.5,))


def nli_unnamed(folder: Path) -> None:
    """The same kind of model, whose config does not say what its outputs are."""
    classifier(folder, [f"LABEL_{i}" for i in range(3)], (1.0, 0.0, -1.0))


def posneg(folder: Path) -> None:
    classifier(folder, ("pos", "neg"), (1.0, -1.0))


def tagger(folder: Path) -> None:
    """A BERT that tags words with entities, its outputs in an order of their own."""
    import torch
    from transformers import BertForTokenClassification

    tokenizer = word_pieces()
    model = BertForTokenClassification(bert_config(tokenizer, **named(("I-PER", "B-LOC", "O", "B-PER", "I-LOC"))))
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([-1.0, 0.5, 1.0, 0.0, -0.5]))
    store(folder, model, tokenizer)


def resnet(folder: Path) -> None:
    """A small ResNet that tells three animals apart, its head two modules deep (`classifier.1`)."""
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **named(("cat", "Dog", "ant"))
    )
    store(folder, ResNetForImageClassification(config), ConvNextImageProcessor(size={"shortest_edge": 32}))


def breakless_t5(folder: Path) -> None:
    """A T5 whose tokenizer makes spaces of line breaks, as the real one does."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    inner.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>")
    )
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    store(folder, T5ForConditionalGeneration(config), tokenizer)


MAKERS = {
    "breakless-t5": breakless_t5,
    "nli": nli,
    "nli-unnamed": nli_unnamed,
    "posneg": posneg,
    "similarity": similarity,
    "tagger": tagger,
    "resnet-animals": resnet,
}
