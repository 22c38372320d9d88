"""Adapters to other people's trainers, one module for each, which needs its host alone (extra ``[integrations]``).

* `smoothloss.integrations.transformers`: Hugging Face's Trainer, and models whose logits never exist.
"""
