"""Third-party engines, each behind one file: vllm_engine, deepspeed_engine, lora (peft); transformers behind two,
hf_models and hf_text."""
