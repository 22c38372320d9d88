"""Adapters to other people's trainers, one module for each; what they adapt to comes with the extra ``[integrations]``.

* `smoothloss.integrations.transformers`: Hugging Face's Trainer, and models that make their loss without logits.
* `smoothloss.integrations.teacher`: a cached teacher in the batches.
* `smoothloss.integrations.trl`: TRL's fine-tuning and distillation.
* `smoothloss.integrations.lightning`: steps of a LightningModule.
* `smoothloss.integrations.torchtitan`, `smoothloss.integrations.megatron`: their hooks for a loss, with split classes.
"""
