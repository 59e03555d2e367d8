"""From a model and a recipe to a quantized model and its ledger.

convert.py     apply a recipe to a model in memory sensitivity/   how much the output changes if one layer is
quantized, and the choice of formats within a budget methods/       how codes are chosen calibration/   the
layer inputs of a model on a calibration text
"""
