"""Keys and values kept in 8 or 4 bits while a model reads and writes.

forms.py    what a form is called and what it takes; loads nothing heavy
affine.py   numbers to codes with a scale and a smallest value for each group, and back
cache.py    the cache that transformers' models read and write
"""

from qcore.kvcache.forms import FORMS, NONE, Form, check_config, form_named

__all__ = ["FORMS", "NONE", "Form", "check_config", "form_named"]
