"""Language models and their adapters: LLaMA-Adapter V1 and V2 on Llama-family models."""

__all__ = ()
