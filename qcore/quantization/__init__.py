"""From a model and a recipe to a quantized model and its ledger.

convert.py     apply a recipe to a model in memory
sensitivity/   how much the output changes when a layer is quantized, and the formats chosen by it
methods/       how codes are chosen
calibration/   activations of a model that reads a calibration text
"""
