"""Training: what gets better when gradients go through the whole model. A quantized one (QAT), or a smaller
one (distillation).

attach.py       the layers that are trained, in the place of quantized ones, and back
fake.py         layers that compute with what their codes will stand for, and let gradients through
teacher.py      what the model is to predict, and the losses
texts.py        windows to learn from, and others to be judged by
loop.py         steps through `accelerate`: schedule, loss curve, early stop
checkpoint.py   what a killed run goes on from
qat.py          quantization-aware training of a model
distill.py      a student with fewer layers
"""
