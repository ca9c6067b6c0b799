"""Third-party engines, each behind its files: vllm_* (vLLM), deepspeed_engine, lora (peft), hf_* (transformers)."""
