"""Training with gradients through the whole model: of a quantized model (QAT), or of a smaller one
(distillation).

attach.py       exchange quantized layers for trainable ones, and back
fake.py         trainable layers with fake quantization
teacher.py      the teacher's predictions, and the losses
corpus.py       windows for training and for validation
loop.py         steps through `accelerate`: schedule, loss curve, early stop
checkpoint.py   the state from which a killed run resumes
judging.py      loss and perplexity on the validation text
qat.py          quantization-aware training of a model
distill.py      a student with fewer layers
"""
